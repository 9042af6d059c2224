//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	add(map[string]door{
		"mount":                  mount,
		"mount-new-api":          mountNewAPI,
		"open-tree":              openTree,
		"remount-writable":       remountWritable,
		"unmount":                unmount,
		"pivot-root":             pivotRoot,
		"release-agent":          releaseAgent,
		"user-namespace":         userNamespace,
		"user-namespace-3":       userNamespaceClone3,
		"other-namespaces":       otherNamespaces,
		"mount-in-own-namespace": mountInOwn,
	})
}

func mount(options) (bool, string) {
	dir, err := os.MkdirTemp(work(), "mount")
	if err != nil {
		return false, err.Error()
	}
	defer os.Remove(dir)
	for _, m := range []struct {
		source, kind string
		flags        uintptr
	}{{"tmpfs", "tmpfs", 0}, {"proc", "proc", 0}, {"sysfs", "sysfs", 0}, {"/", "", unix.MS_BIND}} {
		if err = unix.Mount(m.source, dir, m.kind, m.flags, ""); err == nil {
			unix.Unmount(dir, unix.MNT_DETACH)
			return true, "mounted " + m.source
		}
	}
	return false, err.Error()
}

func mountNewAPI(options) (bool, string) {
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false, err.Error()
	}
	defer unix.Close(fd)
	if err := unix.FsconfigCreate(fd); err != nil {
		return false, err.Error()
	}
	m, err := unix.Fsmount(fd, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return false, err.Error()
	}
	unix.Close(m)
	return true, "mounted tmpfs"
}

// openTree clones a mount and would change its attributes.
func openTree(options) (bool, string) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		err := unix.MountSetattr(unix.AT_FDCWD, "/", 0, &unix.MountAttr{Attr_clr: unix.MOUNT_ATTR_NOSUID})
		return err == nil, fmt.Sprint(err)
	}
	unix.Close(fd)
	return true, "cloned /"
}

// remountWritable takes the read-only flag off every mount that has it, and
// off a bind of its own where it may make one.
func remountWritable(o options) (bool, string) {
	tried := 0
	for _, m := range append(mountPoints(), o.path) {
		var st unix.Statfs_t
		if unix.Statfs(m, &st) != nil || st.Flags&unix.ST_RDONLY == 0 {
			continue
		}
		tried++
		if err := unix.Mount("", m, "", unix.MS_REMOUNT|unix.MS_BIND, ""); err == nil {
			unix.Mount("", m, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
			return true, "remounted " + m
		}
		dir, err := os.MkdirTemp(work(), "remount")
		if err != nil {
			continue
		}
		defer os.Remove(dir)
		if unix.Mount(m, dir, "", unix.MS_BIND, "") != nil {
			continue
		}
		err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND, "")
		unix.Unmount(dir, unix.MNT_DETACH)
		if err == nil {
			return true, "remounted a bind of " + m
		}
	}
	return false, fmt.Sprintf("%d mounts", tried)
}

func unmount(options) (bool, string) {
	points := mountPoints()
	for i := len(points) - 1; i >= 0; i-- {
		if points[i] == "/" {
			continue
		}
		if err := unix.Unmount(points[i], unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err == nil {
			return true, "unmounted " + points[i]
		}
	}
	return false, fmt.Sprintf("%d mounts", len(points))
}

// pivotRoot fails in one of two ways: refused, or told that the arguments
// make no sense by a kernel that would have done it.
func pivotRoot(options) (bool, string) {
	return carriedOut(unix.PivotRoot("/", "/"))
}

// releaseAgent mounts a control group hierarchy and opens its release agent,
// a program that the kernel runs as root outside every namespace.
func releaseAgent(options) (bool, string) {
	var found string
	filepath.WalkDir("/sys/fs/cgroup", func(p string, d os.DirEntry, err error) error {
		if err == nil && d.Name() == "release_agent" && found == "" {
			if open, _ := opens(p, unix.O_WRONLY); open {
				found = p
			}
		}
		return nil
	})
	if found != "" {
		return true, found
	}
	dir, err := os.MkdirTemp(work(), "cgroup")
	if err != nil {
		return false, err.Error()
	}
	defer os.Remove(dir)
	for _, controller := range []string{"rdma", "memory", "pids", "freezer", "misc", "none,name=mayfly-probe"} {
		if err = unix.Mount("cgroup", dir, "cgroup", 0, controller); err != nil {
			continue
		}
		open, detail := opens(filepath.Join(dir, "release_agent"), unix.O_WRONLY)
		unix.Unmount(dir, unix.MNT_DETACH)
		if open {
			return true, detail
		}
	}
	return false, fmt.Sprint(err)
}

func userNamespace(options) (bool, string) {
	open := false
	detail := onThread(func() string {
		if err := unix.Unshare(unix.CLONE_NEWUSER); err != nil {
			// A program with threads is told EINVAL where it is allowed:
			// only a fresh child can find out.
			open = err == unix.EINVAL && childInUserNamespace()
			return err.Error()
		}
		open = true
		return "unshared"
	})
	return open, detail
}

// childInUserNamespace clones with CLONE_NEWUSER and lets the child go.
func childInUserNamespace() bool {
	pid, _, errno := unix.RawSyscall6(unix.SYS_CLONE, unix.CLONE_NEWUSER|uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
	if errno != 0 {
		return false
	}
	if pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	unix.Wait4(int(pid), nil, 0, nil)
	return true
}

func userNamespaceClone3(options) (bool, string) {
	args := struct {
		flags, pidfd, childTID, parentTID, exitSignal, stack, stackSize, tls uint64
	}{flags: unix.CLONE_NEWUSER, exitSignal: uint64(unix.SIGCHLD)}
	pid, _, errno := unix.RawSyscall(unix.SYS_CLONE3, uintptr(unsafe.Pointer(&args)), unsafe.Sizeof(args), 0)
	if errno != 0 {
		return false, errno.Error()
	}
	if pid == 0 {
		unix.RawSyscall(unix.SYS_EXIT_GROUP, 0, 0, 0)
	}
	unix.Wait4(int(pid), nil, 0, nil)
	return true, "cloned"
}

func otherNamespaces(options) (bool, string) {
	var open []string
	for name, flag := range map[string]int{"mount": unix.CLONE_NEWNS, "net": unix.CLONE_NEWNET, "ipc": unix.CLONE_NEWIPC,
		"uts": unix.CLONE_NEWUTS, "pid": unix.CLONE_NEWPID, "cgroup": unix.CLONE_NEWCGROUP} {
		onThread(func() string {
			if unix.Unshare(flag) == nil {
				open = append(open, name)
			}
			return ""
		})
	}
	return len(open) > 0, strings.Join(open, " ")
}

// mountInOwn mounts a fresh proc as root of namespaces of its own.
func mountInOwn(o options) (bool, string) {
	dir, err := os.MkdirTemp(work(), "own")
	if err != nil {
		return false, err.Error()
	}
	defer os.Remove(dir)
	if err := unix.Mount("proc", dir, "proc", 0, ""); err != nil {
		return false, "proc: " + err.Error()
	}
	unix.Unmount(dir, unix.MNT_DETACH)
	return true, "mounted proc"
}

// onThread runs f on a thread that is thrown away afterwards, so that what it
// did to its namespaces ends with it.
func onThread(f func() string) string {
	done := make(chan string)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	return <-done
}
