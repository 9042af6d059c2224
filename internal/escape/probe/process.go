//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	add(map[string]door{
		"see-process":      seeProcess,
		"signal-process":   signalProcess,
		"kill-init":        func(o options) (bool, string) { return carriedOut(unix.Kill(o.pid, 0)) },
		"ptrace":           ptraceProcess,
		"process-vm-read":  processVMRead,
		"process-mem":      func(o options) (bool, string) { return opens(procFile(o.pid, "mem"), unix.O_RDWR) },
		"process-environ":  func(o options) (bool, string) { return reads(procFile(o.pid, "environ"), o.marker) },
		"process-fds":      func(o options) (bool, string) { return lists(procFile(o.pid, "fd")) },
		"process-root":     func(o options) (bool, string) { return lists(procFile(o.pid, "root") + "/") },
		"process-exe":      processExe,
		"pidfd-getfd":      pidfdGetfd,
		"setns":            setns,
		"inherited-env":    inheritedEnv,
		"oom-score":        func(o options) (bool, string) { return opens(procFile(o.pid, "oom_score_adj"), unix.O_WRONLY) },
		"realtime":         realtime,
		"process-priority": func(o options) (bool, string) { return carriedOut(unix.Setpriority(unix.PRIO_PROCESS, 0, -5)) },
	})
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}

// seeProcess looks for a process whose command line has the marker and that
// is not a probe for it.
func seeProcess(o options) (bool, string) {
	for _, pid := range pids() {
		b, err := os.ReadFile(procFile(pid, "cmdline"))
		if err == nil && bytes.Contains(b, []byte(o.marker)) && !bytes.Contains(b, []byte("see-process")) {
			return true, strconv.Itoa(pid)
		}
	}
	return false, fmt.Sprintf("%d processes seen", len(pids()))
}

// signalProcess reaches for a process by the number that it has outside.
// There is another, or none, of that number here.
func signalProcess(o options) (bool, string) {
	if err := unix.Kill(o.pid, 0); err != nil {
		return false, err.Error()
	}
	b, _ := os.ReadFile(procFile(o.pid, "cmdline"))
	return bytes.Contains(b, []byte(o.marker)), "a process of that number is there"
}

// ptraceProcess uses PTRACE_SEIZE, which does not stop its target.
func ptraceProcess(o options) (bool, string) {
	const ptraceSeize = 0x4206
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptraceSeize, uintptr(o.pid), 0, 0, 0, 0)
	return errno == 0, errno.Error()
}

func processVMRead(o options) (bool, string) {
	b, err := os.ReadFile(procFile(o.pid, "maps"))
	addr := uint64(0x400000) // where a static binary begins when its map is hidden
	if err == nil && len(b) > 0 {
		addr, _ = strconv.ParseUint(strings.SplitN(string(b), "-", 2)[0], 16, 64)
	}
	buf := make([]byte, 4)
	_, err = unix.ProcessVMReadv(o.pid, []unix.Iovec{{Base: &buf[0], Len: 4}}, []unix.RemoteIovec{{Base: uintptr(addr), Len: 4}}, 0)
	return err == nil, fmt.Sprint(err)
}

// processExe would overwrite the program of the first process. A kernel that
// answers "text file busy" has let the caller pass.
func processExe(o options) (bool, string) {
	f, err := os.OpenFile(procFile(o.pid, "exe"), os.O_WRONLY, 0)
	if err == nil {
		f.Close()
		return true, "opened for writing"
	}
	return strings.Contains(err.Error(), unix.ETXTBSY.Error()), err.Error()
}

func pidfdGetfd(o options) (bool, string) {
	p, err := unix.PidfdOpen(o.pid, 0)
	if err != nil {
		return false, err.Error()
	}
	defer unix.Close(p)
	for fd := range 16 {
		got, err := unix.PidfdGetfd(p, fd, 0)
		if err == nil {
			unix.Close(got)
			return true, fmt.Sprintf("took descriptor %d", fd)
		}
	}
	return false, "none could be taken"
}

// setns tries the namespaces of every process that can be seen, where they
// differ from its own.
func setns(o options) (bool, string) {
	tried := 0
	for _, pid := range append(pids(), o.pid) {
		for _, kind := range []string{"user", "mnt", "net", "pid", "ipc", "uts", "cgroup"} {
			own, _ := os.Readlink("/proc/self/ns/" + kind)
			theirs, err := os.Readlink(procFile(pid, "ns/"+kind))
			if err == nil && own == theirs {
				continue
			}
			fd, err := unix.Open(procFile(pid, "ns/"+kind), unix.O_RDONLY, 0)
			if err != nil {
				continue
			}
			tried++
			err = unix.Setns(fd, 0)
			unix.Close(fd)
			if err == nil {
				return true, fmt.Sprintf("entered %s of %d", kind, pid)
			}
		}
	}
	return false, fmt.Sprintf("%d namespaces refused", tried)
}

func inheritedEnv(o options) (bool, string) {
	for _, pid := range pids() {
		if b, err := os.ReadFile(procFile(pid, "environ")); err == nil && bytes.Contains(b, []byte(o.marker)) {
			return true, procFile(pid, "environ")
		}
	}
	for _, kv := range os.Environ() {
		if strings.Contains(kv, o.marker) {
			return true, "own environment"
		}
	}
	return false, "not there"
}

func realtime(options) (bool, string) {
	param := struct{ priority int32 }{1}
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, 1 /* SCHED_FIFO */, uintptr(unsafe.Pointer(&param)))
	if errno == 0 {
		param.priority = 0
		unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, 0, uintptr(unsafe.Pointer(&param)))
	}
	return errno == 0, errno.Error()
}

func opens(path string, flags int) (bool, string) {
	fd, err := unix.Open(path, flags|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return false, err.Error()
	}
	defer unix.Close(fd)
	// A file covered by the null device can be opened, and is shut.
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err == nil && st.Mode&unix.S_IFMT == unix.S_IFCHR &&
		st.Rdev == unix.Mkdev(1, 3) && !strings.HasPrefix(path, "/dev/") {
		return false, path + " is masked"
	}
	return true, "opened " + path
}

func reads(path, marker string) (bool, string) {
	b, err := os.ReadFile(path)
	if err != nil {
		return false, err.Error()
	}
	return bytes.Contains(b, []byte(marker)), fmt.Sprintf("%d bytes", len(b))
}

func lists(path string) (bool, string) {
	entries, err := os.ReadDir(path)
	if err != nil {
		return false, err.Error()
	}
	return true, fmt.Sprintf("%d entries", len(entries))
}
