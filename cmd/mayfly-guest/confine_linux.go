package main

import (
	"os"
	"syscall"
	"unsafe"

	landlock "github.com/landlock-lsm/go-landlock/landlock/syscall"
	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// maxFiles is how many files a command may have open, if the machine allows.
const maxFiles = 65536

// confine gives up what no command needs. The guest itself keeps, in main,
// what it takes to become the commands' user and to signal them.
func confine(c boot.Config) error {
	if err := limit(c); err != nil {
		return err
	}
	for capability := 0; capability <= unix.CAP_LAST_CAP; capability++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(capability), 0, 0, 0)
		if err != nil && err != unix.EINVAL { // not known to this kernel
			return failed("drop capability from the bounding set", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return failed("set no_new_privs", err)
	}
	if !c.Nested {
		if err := restrict(); err != nil {
			return failed("landlock", err)
		}
	}
	return failed("seccomp", install(c.Filter))
}

// limit sets the resource limits that commands inherit. The number of tasks
// counts per user, and thus not the guest's own.
func limit(c boot.Config) error {
	if err := syscall.Setrlimit(unix.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return failed("limit core dumps", err)
	}
	var files syscall.Rlimit
	if err := syscall.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return failed("limit files", err)
	}
	files.Max = min(files.Max, maxFiles)
	files.Cur = files.Max
	if err := syscall.Setrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return failed("limit files", err)
	}
	if c.Tasks == 0 {
		return nil
	}
	return failed("limit tasks", syscall.Setrlimit(unix.RLIMIT_NPROC, &syscall.Rlimit{Cur: c.Tasks, Max: c.Tasks}))
}

// keep drops every capability but the given from all threads.
func keep(capabilities ...uint) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for _, c := range capabilities {
		data[c/32].Effective |= 1 << (c % 32)
		data[c/32].Permitted |= 1 << (c % 32)
	}
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET,
		uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// restrict puts this thread, and thus every command, into a Landlock domain,
// as far as the kernel knows Landlock: nothing below /proc and /sys can be
// written, no signal and no connection to an abstract socket leaves it. A
// domain per thread would keep commands from signalling each other, so that
// the library's own way of entering one is of no use here.
func restrict() error {
	abi, err := landlock.LandlockGetABIVersion()
	if err != nil {
		return nil // not built in, or switched off
	}
	var attr landlock.RulesetAttr
	attr.HandledAccessFS = landlock.AccessFSWriteFile
	if abi >= 2 {
		attr.HandledAccessFS |= landlock.AccessFSRefer
	}
	if abi >= 3 {
		attr.HandledAccessFS |= landlock.AccessFSTruncate
	}
	if abi >= 6 {
		attr.Scoped = landlock.ScopeAbstractUnixSocket | landlock.ScopeSignal
	}
	if abi < 2 {
		return nil // would forbid renames between directories
	}
	rules, err := landlock.LandlockCreateRuleset(&attr, 0)
	if err != nil {
		return err
	}
	defer unix.Close(rules)
	entries, err := os.ReadDir("/")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.IsDir() || e.Name() == "proc" || e.Name() == "sys" {
			continue
		}
		if err := permit(rules, "/"+e.Name(), attr.HandledAccessFS); err != nil {
			return failed("/"+e.Name(), err)
		}
	}
	return landlock.LandlockRestrictSelf(rules, 0)
}

func permit(rules int, path string, access uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return landlock.LandlockAddPathBeneathRule(rules, &landlock.PathBeneathAttr{AllowedAccess: access, ParentFd: fd}, 0)
}

// install loads the seccomp filter into all threads, which sets no_new_privs
// on them, too.
func install(filter []byte) error {
	const size = unsafe.Sizeof(unix.SockFilter{})
	if len(filter) == 0 || uintptr(len(filter))%size != 0 {
		return unix.EINVAL
	}
	p := unix.SockFprog{
		Len:    uint16(uintptr(len(filter)) / size),
		Filter: (*unix.SockFilter)(unsafe.Pointer(&filter[0])),
	}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&p)))
	if errno != 0 {
		return errno
	}
	if r != 0 {
		return unix.EAGAIN // the thread r could not be synchronised
	}
	return nil
}
