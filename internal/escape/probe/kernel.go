//go:build linux

package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	add(map[string]door{
		"sysrq":            opensOne("/proc/sysrq-trigger"),
		"core-pattern":     opensOne("/proc/sys/kernel/core_pattern"),
		"modprobe-path":    opensOne("/proc/sys/kernel/modprobe"),
		"hotplug":          opensOne("/proc/sys/kernel/hotplug", "/sys/kernel/uevent_helper"),
		"binfmt-misc":      opensOne("/proc/sys/fs/binfmt_misc/register", "/proc/sys/fs/binfmt_misc"),
		"proc-sys":         procSys,
		"sysfs-write":      sysfsWrite,
		"sysfs-read":       sysfsRead,
		"kernel-memory":    kernelMemory,
		"kernel-log":       kernelLog,
		"kernel-addresses": kernelAddresses,
		"kernel-keys":      kernelKeys,
		"device-nodes":     deviceNodes,
		"mknod":            mknod,
		"bpf":              bpf,
		"perf":             perf,
		"userfaultfd":      userfaultfd,
		"io-uring":         ioUring,
		"kexec":            kexec,
		"module-load":      moduleLoad,
		"module-unload":    moduleUnload,
		"reboot":           reboot,
		"swap":             func(options) (bool, string) { return carriedOut(syscallPath(unix.SYS_SWAPON, "/nonexistent")) },
		"accounting":       func(options) (bool, string) { return carriedOut(syscallPath(unix.SYS_ACCT, "/nonexistent")) },
		"fanotify":         fanotify,
		"clock":            clock,
		"hostname":         func(options) (bool, string) { return carriedOut(unix.Sethostname([]byte("probe"))) },
		"keyring":          keyring,
		"host-key":         hostKey,
		"io-ports":         ioPorts,
		"personality":      personality,
	})
}

// opensOne tries to open any of the files for writing; it writes nothing.
func opensOne(paths ...string) door {
	return func(options) (bool, string) {
		var last string
		for _, p := range paths {
			flags := unix.O_WRONLY
			if st, err := os.Stat(p); err == nil && st.IsDir() {
				continue
			}
			open, detail := opens(p, flags)
			if open {
				return true, detail
			}
			last = detail
		}
		return false, last
	}
}

// procSys opens every kernel parameter for writing, except those of
// namespaces that are the environment's own when it is their root.
func procSys(options) (bool, string) {
	tried := 0
	var found string
	filepath.WalkDir("/proc/sys", func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || found != "" {
			return nil
		}
		tried++
		if open, _ := opens(p, unix.O_WRONLY); open {
			found = p
		}
		return nil
	})
	return found != "", fmt.Sprintf("%d parameters %s", tried, found)
}

func sysfsWrite(options) (bool, string) {
	for _, p := range []string{"/sys/power/state", "/sys/kernel/mm/transparent_hugepage/enabled", "/sys/kernel/profiling",
		"/sys/fs/cgroup/cgroup.procs", "/sys/fs/cgroup/memory/cgroup.procs", "/sys/fs/cgroup/unified/cgroup.procs",
		"/sys/kernel/mm/ksm/run", "/sys/block/loop0/uevent", "/sys/devices/system/cpu/cpu1/online"} {
		if open, detail := opens(p, unix.O_WRONLY); open {
			return true, detail
		}
	}
	return false, "none could be opened"
}

// sysfsRead finds the hardware and the kernel's tunables described.
func sysfsRead(options) (bool, string) {
	for _, dir := range []string{"/sys/class/block", "/sys/kernel/security", "/sys/module", "/sys/kernel/debug", "/sys/firmware"} {
		if entries, err := os.ReadDir(dir); err == nil && len(entries) > 0 {
			return true, fmt.Sprintf("%d entries in %s", len(entries), dir)
		}
	}
	return false, "nothing there"
}

func kernelMemory(options) (bool, string) {
	for _, p := range []string{"/proc/kcore", "/dev/mem", "/dev/kmem", "/dev/port", "/proc/kpagecount", "/proc/kpageflags", "/proc/vmallocinfo", "/proc/slabinfo"} {
		if open, detail := opens(p, unix.O_RDONLY); open {
			return true, detail
		}
	}
	return false, "none could be opened"
}

func kernelLog(options) (bool, string) {
	for _, p := range []string{"/dev/kmsg", "/proc/kmsg"} {
		if open, detail := opens(p, unix.O_RDONLY); open {
			return true, detail
		}
	}
	const readAll = 3
	buf := make([]byte, 4096)
	n, err := unix.Klogctl(readAll, buf)
	return err == nil && n > 0, fmt.Sprintf("%d bytes: %v", n, err)
}

func kernelAddresses(options) (bool, string) {
	for _, p := range []string{"/proc/kallsyms", "/proc/modules", "/proc/iomem", "/proc/timer_list"} {
		f, err := os.Open(p)
		if err != nil {
			continue
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		for range 100 {
			if !lines.Scan() {
				break
			}
			addr := strings.TrimLeft(strings.Fields(lines.Text() + " x")[0], "0-")
			if p == "/proc/kallsyms" && addr != "" {
				return true, p + ": " + lines.Text()
			}
		}
	}
	return false, "no addresses"
}

// kernelKeys looks for keys of others in the table of keys.
func kernelKeys(o options) (bool, string) { return reads("/proc/keys", o.name) }

// deviceNodes opens every device node there is but those that every program
// expects.
func deviceNodes(options) (bool, string) {
	expected := map[string]bool{"null": true, "zero": true, "full": true, "random": true, "urandom": true, "tty": true, "ptmx": true}
	tried := 0
	var found string
	filepath.WalkDir("/dev", func(p string, d os.DirEntry, err error) error {
		if err != nil || found != "" || d.Type()&os.ModeDevice == 0 || expected[d.Name()] || filepath.Dir(p) == "/dev/pts" {
			return nil
		}
		tried++
		if open, detail := opens(p, unix.O_RDONLY); open {
			found = detail
		}
		return nil
	})
	return found != "", fmt.Sprintf("%d nodes %s", tried, found)
}

// mknod makes and opens a node for /dev/kmsg and a loop device.
func mknod(options) (bool, string) {
	var last error
	for _, n := range []struct {
		mode       uint32
		major, min uint32
	}{{unix.S_IFCHR, 1, 11}, {unix.S_IFBLK, 7, 0}, {unix.S_IFCHR, 10, 237}} {
		for _, dir := range []string{work(), "/dev/shm", "/dev"} {
			p := filepath.Join(dir, "probe-node")
			if last = unix.Mknod(p, n.mode|0o666, int(unix.Mkdev(n.major, n.min))); last != nil {
				continue
			}
			open, detail := opens(p, unix.O_RDONLY)
			os.Remove(p)
			if open {
				return true, detail
			}
		}
	}
	return false, fmt.Sprint(last)
}

// bpf asks for the simplest map.
func bpf(options) (bool, string) {
	attr := struct{ typ, key, value, entries, flags uint32 }{2 /* array */, 4, 4, 1, 0}
	fd, _, errno := unix.Syscall(unix.SYS_BPF, 0 /* BPF_MAP_CREATE */, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr))
	return usable(fd, errno)
}

func perf(options) (bool, string) {
	attr := unix.PerfEventAttr{Type: unix.PERF_TYPE_SOFTWARE, Config: unix.PERF_COUNT_SW_CPU_CLOCK, Bits: unix.PerfBitDisabled}
	attr.Size = uint32(unsafe.Sizeof(attr))
	for _, pid := range []int{0, -1} {
		fd, err := unix.PerfEventOpen(&attr, pid, 0, -1, 0)
		if err == nil {
			unix.Close(fd)
			return true, "opened an event"
		}
	}
	return false, "refused"
}

func userfaultfd(options) (bool, string) {
	const userModeOnly = 1
	for _, flags := range []uintptr{0, userModeOnly} {
		if fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, flags, 0, 0); errno == 0 {
			return usable(fd, errno)
		}
	}
	return opens("/dev/userfaultfd", unix.O_RDWR)
}

func ioUring(options) (bool, string) {
	var params [120]byte
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params)), 0)
	return usable(fd, errno)
}

func fanotify(options) (bool, string) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT, unix.O_RDONLY)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil, fmt.Sprint(err)
}

// kexec passes flags that no kernel knows: who may call it is told so.
func kexec(options) (bool, string) {
	_, _, errno := unix.Syscall6(unix.SYS_KEXEC_LOAD, 0, 0, 0, 0xffff, 0, 0)
	if open, detail := carriedOut(errno); open {
		return open, detail
	}
	_, _, errno = unix.Syscall6(unix.SYS_KEXEC_FILE_LOAD, ^uintptr(0), ^uintptr(0), 0, 0, 0xffff, 0)
	return carriedOut(errno)
}

func moduleLoad(options) (bool, string) {
	junk := []byte("not a module")
	params := []byte{0}
	_, _, errno := unix.Syscall(unix.SYS_INIT_MODULE, uintptr(unsafe.Pointer(&junk[0])), uintptr(len(junk)), uintptr(unsafe.Pointer(&params[0])))
	if open, detail := carriedOut(errno); open {
		return open, detail
	}
	_, _, errno = unix.Syscall(unix.SYS_FINIT_MODULE, ^uintptr(0), uintptr(unsafe.Pointer(&params[0])), 0)
	return carriedOut(errno)
}

func moduleUnload(options) (bool, string) {
	return carriedOut(syscallPath(unix.SYS_DELETE_MODULE, "mayfly_nonexistent"))
}

// reboot passes magic numbers that no kernel accepts.
func reboot(options) (bool, string) {
	_, _, errno := unix.Syscall6(unix.SYS_REBOOT, 1, 2, 3, 0, 0, 0)
	return carriedOut(errno)
}

// clock sets the length of a tick to what it is.
func clock(options) (bool, string) {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return false, err.Error()
	}
	t.Modes = unix.ADJ_TICK
	_, err := unix.Adjtimex(&t)
	return err == nil, fmt.Sprint(err)
}

// keyring reaches keyrings, which no namespace separates.
func keyring(options) (bool, string) {
	if _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_KEYRING, true); err == nil {
		return true, "the user's keyring"
	}
	if _, err := unix.AddKey("user", "mayfly-probe", []byte("x"), unix.KEY_SPEC_PROCESS_KEYRING); err == nil {
		return true, "added a key"
	}
	_, err := unix.RequestKey("user", "mayfly-nonexistent", "", 0)
	return !denied(err), fmt.Sprint(err)
}

func hostKey(o options) (bool, string) {
	for _, ring := range []int{unix.KEY_SPEC_USER_KEYRING, unix.KEY_SPEC_SESSION_KEYRING, unix.KEY_SPEC_USER_SESSION_KEYRING} {
		if id, err := unix.KeyctlSearch(ring, "user", o.name, 0); err == nil {
			return true, fmt.Sprint("key ", id)
		}
	}
	return false, "not found"
}

func ioPorts(options) (bool, string) {
	_, _, errno := unix.Syscall(unix.SYS_IOPERM, 0x80, 1, 1)
	if errno == 0 {
		return true, "ioperm"
	}
	_, _, errno = unix.Syscall(unix.SYS_IOPL, 3, 0, 0)
	return errno == 0, errno.Error()
}

// personality asks for executable data pages, the 32-bit personality and a
// fixed layout: the first and the last weaken defences of the process itself,
// the second reaches other system call tables.
func personality(options) (bool, string) {
	const query, readImpliesExec = 0xffffffff, 0x0400000
	old, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, query, 0, 0)
	if errno != 0 {
		return false, errno.Error()
	}
	_, _, errno = unix.RawSyscall(unix.SYS_PERSONALITY, old|readImpliesExec, 0, 0)
	if errno != 0 {
		return false, errno.Error()
	}
	unix.RawSyscall(unix.SYS_PERSONALITY, old, 0, 0)
	return true, "set"
}

func usable(fd uintptr, errno syscall.Errno) (bool, string) {
	if errno != 0 {
		return false, errno.Error()
	}
	unix.Close(int(fd))
	return true, "opened"
}

func syscallPath(nr uintptr, path string) error {
	p, err := unix.BytePtrFromString(path)
	if err != nil {
		return err
	}
	_, _, errno := unix.Syscall(nr, uintptr(unsafe.Pointer(p)), 0, 0)
	if errno == 0 {
		return errors.New("succeeded on nothing")
	}
	return errno
}
