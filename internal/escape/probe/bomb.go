//go:build linux

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bombs go as far as -count says and are open when they got there: outside
// they do, inside a limit must stop them first.
func init() {
	add(map[string]door{
		"fork-bomb":    forkBomb,
		"memory-bomb":  memoryBomb,
		"shm-bomb":     shmBomb,
		"disk-bomb":    diskBomb,
		"inode-bomb":   inodeBomb,
		"log-bomb":     logBomb,
		"sparse-bomb":  sparseBomb,
		"inotify-bomb": inotifyBomb,
		"mqueue-bomb":  mqueueBomb,
		"cpu-bomb":     cpuBomb,
		"sleep":        func(o options) (bool, string) { time.Sleep(time.Duration(o.count) * time.Second); return false, "" },
	})
}

// forkBomb keeps count children at once. They sleep until their parent ends.
func forkBomb(o options) (bool, string) {
	r, w, err := os.Pipe()
	if err != nil {
		return false, err.Error()
	}
	defer w.Close()
	for n := range o.count {
		pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		if errno != 0 {
			return false, fmt.Sprintf("stopped after %d children: %v", n, errno)
		}
		if pid == 0 {
			var b [1]byte
			unix.RawSyscall(unix.SYS_CLOSE, w.Fd(), 0, 0)
			unix.RawSyscall(unix.SYS_READ, r.Fd(), uintptr(unsafe.Pointer(&b)), 1)
			unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
		}
	}
	return true, fmt.Sprintf("%d children", o.count)
}

const page = 1 << 20

// memoryBomb touches count bytes in a child, so that somebody is left to
// tell the tale.
func memoryBomb(o options) (bool, string) {
	if o.name != "child" {
		return inSelf("memory-bomb", o)
	}
	var held [][]byte
	for n := int64(0); n < o.count; n += page {
		b := make([]byte, page)
		for i := 0; i < page; i += 4096 {
			b[i] = byte(i>>12) | 1
		}
		held = append(held, b)
	}
	return len(held) > 0, fmt.Sprintf("%d bytes", o.count)
}

// shmBomb fills shared memory, which outlives the processes that made it.
func shmBomb(o options) (bool, string) {
	if o.name != "child" {
		return inSelf("shm-bomb", o)
	}
	p := "/dev/shm/bomb-" + strconv.Itoa(os.Getpid())
	defer os.Remove(p)
	return fill(p, o.count)
}

func inSelf(name string, o options) (bool, string) {
	out, err := exec.Command("/proc/self/exe", "-count", strconv.FormatInt(o.count, 10), "-name", "child", name).Output()
	if err != nil {
		return false, err.Error()
	}
	return bytes.Contains(out, []byte(`"open":true`)), string(bytes.TrimSpace(out))
}

func diskBomb(o options) (bool, string) {
	p := filepath.Join(work(), "bomb")
	defer os.Remove(p)
	return fill(p, o.count)
}

// fill writes count bytes that do not compress.
func fill(path string, count int64) (bool, string) {
	f, err := os.Create(path)
	if err != nil {
		return false, err.Error()
	}
	defer f.Close()
	b := noise(page)
	for n := int64(0); n < count; n += page {
		b[0], b[1], b[2] = byte(n>>20), byte(n>>28), byte(n>>36)
		if _, err := f.Write(b); err != nil {
			return false, fmt.Sprintf("stopped after %d MiB: %v", n>>20, err)
		}
	}
	if err := f.Sync(); err != nil {
		return false, "sync: " + err.Error()
	}
	return true, fmt.Sprintf("%d MiB", count>>20)
}

func noise(n int) []byte {
	b := make([]byte, n)
	x := uint64(88172645463325252)
	for i := 0; i+8 <= n; i += 8 {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		*(*uint64)(unsafe.Pointer(&b[i])) = x
	}
	return b
}

// inodeBomb makes count empty files with long names in one directory.
func inodeBomb(o options) (bool, string) {
	dir, err := os.MkdirTemp(work(), "inodes")
	if err != nil {
		return false, err.Error()
	}
	defer os.RemoveAll(dir)
	pad := string(bytes.Repeat([]byte("x"), 200))
	for n := range o.count {
		fd, err := unix.Open(filepath.Join(dir, pad+strconv.FormatInt(n, 36)), unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o600)
		if err != nil {
			return false, fmt.Sprintf("stopped after %d files: %v", n, err)
		}
		unix.Close(fd)
	}
	return true, fmt.Sprintf("%d files", o.count)
}

// logBomb writes count bytes to standard error, which the guest logs.
func logBomb(o options) (bool, string) {
	w := bufio.NewWriterSize(os.Stderr, 1<<16)
	line := append(bytes.Repeat([]byte("log bomb "), 100), '\n')
	for n := int64(0); n < o.count; n += int64(len(line)) {
		if _, err := w.Write(line); err != nil {
			return false, err.Error()
		}
	}
	return w.Flush() == nil, fmt.Sprintf("%d bytes written", o.count)
}

// sparseBomb makes a file of count bytes that uses none.
func sparseBomb(o options) (bool, string) {
	p := filepath.Join(work(), "sparse")
	defer os.Remove(p)
	f, err := os.Create(p)
	if err != nil {
		return false, err.Error()
	}
	defer f.Close()
	err = f.Truncate(o.count)
	return err == nil, fmt.Sprint(err)
}

// inotifyBomb holds count inotify instances until it is killed or its time is
// over, so that the suite can see whether others still get one.
func inotifyBomb(o options) (bool, string) {
	got := int64(0)
	for ; got < o.count; got++ {
		if _, err := unix.InotifyInit1(unix.IN_CLOEXEC); err != nil {
			break
		}
	}
	// With every descriptor in use, the runtime cannot sleep by itself.
	unix.Nanosleep(&unix.Timespec{Sec: 3}, nil)
	return got == o.count, fmt.Sprintf("%d instances", got)
}

// mqueueBomb makes count message queues and leaves them for a moment.
func mqueueBomb(o options) (bool, string) {
	var made []string
	defer func() {
		for _, name := range made {
			syscallPath(unix.SYS_MQ_UNLINK, name)
		}
	}()
	for n := range o.count {
		name := fmt.Sprintf("probe-%d", n)
		p, err := unix.BytePtrFromString(name)
		if err != nil {
			return false, err.Error()
		}
		fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(p)), unix.O_CREAT|unix.O_RDWR, 0o600, 0, 0, 0)
		if errno != 0 {
			return false, fmt.Sprintf("stopped after %d queues: %v", n, errno)
		}
		unix.Close(int(fd))
		made = append(made, name)
	}
	return true, fmt.Sprintf("%d queues", o.count)
}

// cpuBomb keeps every core busy for count milliseconds and reports how many
// cores' worth of time it got.
func cpuBomb(o options) (bool, string) {
	end := time.Now().Add(time.Duration(o.count) * time.Millisecond)
	done := make(chan bool)
	const workers = 8
	for range workers {
		go func() {
			for time.Now().Before(end) {
			}
			done <- true
		}()
	}
	for range workers {
		<-done
	}
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		return false, err.Error()
	}
	used := float64(u.Utime.Nano()+u.Stime.Nano()) / float64(time.Duration(o.count)*time.Millisecond)
	return used > 0.2, fmt.Sprintf("%.2f cores", used)
}
