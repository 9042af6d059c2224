//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	add(map[string]door{
		"setuid-file":       setuidFile,
		"capability-file":   capabilityFile,
		"become-root":       becomeRoot,
		"capabilities":      statusHas("CapPrm", "CapEff", "CapBnd", "CapInh", "CapAmb"),
		"no-new-privileges": func(options) (bool, string) { return status("NoNewPrivs") == "0", status("NoNewPrivs") },
		"no-filter":         func(options) (bool, string) { return status("Seccomp") == "0", status("Seccomp") },
		"i386-calls":        inChild("call-i386"),
		"call-i386":         func(options) (bool, string) { return pidOf(getpid32()) },
		"x32-calls":         inChild("call-x32"),
		"call-x32":          callX32,
		"inject-input":      injectInput,
		"console":           console,
	})
}

// setuidFile runs a program that belongs to root and carries the setuid bit.
// It is this one: it reports what became of it.
func setuidFile(o options) (bool, string) {
	out, err := exec.Command(o.path, "whoami").CombinedOutput()
	if err != nil {
		return false, err.Error() + " " + strings.TrimSpace(string(out))
	}
	return strings.Contains(string(out), `euid 0 `), strings.TrimSpace(string(out))
}

// capabilityFile runs a program that carries file capabilities.
func capabilityFile(o options) (bool, string) {
	out, err := exec.Command(o.path, "whoami").CombinedOutput()
	if err != nil {
		return false, err.Error() + " " + strings.TrimSpace(string(out))
	}
	return !strings.Contains(string(out), "effective 0000000000000000"), strings.TrimSpace(string(out))
}

func init() {
	add(map[string]door{"whoami": func(options) (bool, string) {
		return false, fmt.Sprintf("euid %d effective %s", os.Geteuid(), status("CapEff"))
	}})
}

func becomeRoot(options) (bool, string) {
	for _, f := range []func() error{
		func() error { return syscall.Setuid(0) },
		func() error { return syscall.Setgid(0) },
		func() error { return syscall.Setgroups([]int{0}) },
	} {
		if f() == nil {
			return true, "became root or its group"
		}
	}
	return false, "refused"
}

func status(field string) string {
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, field+":"); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

// statusHas reports whether any of the capability sets is not empty.
func statusHas(fields ...string) door {
	return func(options) (bool, string) {
		for _, f := range fields {
			if v := strings.Trim(status(f), "0"); v != "" {
				return true, f + " " + status(f)
			}
		}
		return false, "empty"
	}
}

// inChild runs another door in a process of its own, since the kernel may
// answer with a signal.
func inChild(name string) door {
	return func(options) (bool, string) {
		out, err := exec.Command("/proc/self/exe", name).Output()
		if err != nil {
			return false, err.Error()
		}
		return strings.Contains(string(out), `"open":true`), strings.TrimSpace(string(out))
	}
}

func pidOf(got int) (bool, string) {
	return got == os.Getpid(), fmt.Sprint("getpid returned ", got)
}

func callX32(options) (bool, string) {
	const x32 = 0x40000000
	pid, _, errno := unix.RawSyscall(x32+unix.SYS_GETPID, 0, 0, 0)
	if errno != 0 {
		return false, errno.Error()
	}
	return pidOf(int(pid))
}

// injectInput types into the terminal that it runs on, as if its user had:
// what is left in the queue would be read by whoever reads the terminal next.
func injectInput(options) (bool, string) {
	for _, name := range []string{"/dev/tty", "/proc/self/fd/0", "/proc/self/fd/1"} {
		fd, err := unix.Open(name, unix.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			continue
		}
		defer unix.Close(fd)
		c := byte(' ')
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSTI, uintptr(unsafe.Pointer(&c))); errno == 0 {
			return true, "typed into " + name
		} else if errno == unix.ENOTTY {
			continue
		} else {
			return false, errno.Error()
		}
	}
	return false, "no terminal"
}

// console asks for the machine's console by ioctl and by name.
func console(options) (bool, string) {
	for _, name := range []string{"/dev/console", "/dev/tty0", "/dev/tty1", "/dev/ttyS0", "/dev/vcs"} {
		if open, detail := opens(name, unix.O_RDWR); open {
			return true, detail
		}
	}
	return false, "none could be opened"
}
