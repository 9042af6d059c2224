package main

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// tree is what the guest can make of the root file system before the server's
// mounts arrive. It takes shape over directories of the host's, in this mount
// namespace, because Linux before 6.15 cannot mount upon what is not attached.
type tree struct {
	proc, dev, empty int // mounts, with others upon them
}

// Where the tree takes shape. The new /dev covers /sys, so that the host's
// devices can still be reached; nothing covers /dev later than they are.
const (
	newProc  = "/proc"
	newDev   = "/sys"
	newEmpty = "/dev"
)

// quiet is the attributes of the kernel's own file systems.
const quiet = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC

// prepare makes mounts and sets what belongs to the new namespaces.
func prepare(c boot.Config) (t tree, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return t, failed("make mounts private", err)
	}
	if err := t.devices(c); err != nil {
		return t, err
	}
	t.empty, err = mount("tmpfs", quiet|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_RDONLY, "mode", "755", "size", "4k", "nr_inodes", "1")
	if err != nil {
		return t, failed("mount /sys", err)
	}
	if err := attach(t.empty, newEmpty); err != nil {
		return t, err
	}
	// Needs a /proc that shows everything in this namespace, so it comes
	// before the host's is left behind.
	if t.proc, err = mount("proc", quiet|unix.MOUNT_ATTR_NODEV); err != nil {
		return t, failed("mount proc (is the server's own /proc masked?)", err)
	}
	if err := attach(t.proc, newProc); err != nil {
		return t, err
	}
	if !c.Nested {
		if err := mask(); err != nil {
			return t, err
		}
	}
	if err := unix.Sethostname([]byte(c.Hostname)); err != nil {
		return t, failed("set hostname", err)
	}
	return t, failed("unshare cgroup namespace", unix.Unshare(unix.CLONE_NEWCGROUP))
}

// devices makes /dev.
func (t *tree) devices(c boot.Config) (err error) {
	if t.dev, err = mount("tmpfs", quiet, "mode", "755", "size", "64k", "nr_inodes", "64"); err != nil {
		return failed("mount /dev", err)
	}
	if err := attach(t.dev, newDev); err != nil {
		return err
	}
	for _, name := range [...]string{"null", "zero", "full", "random", "urandom", "tty"} {
		if err := unix.Mknodat(t.dev, name, unix.S_IFREG|0o444, 0); err != nil {
			return failed("make /dev/"+name, err)
		}
		if err := unix.Mount("/dev/"+name, newDev+"/"+name, "", unix.MS_BIND, ""); err != nil {
			return failed("bind /dev/"+name, err)
		}
	}
	for _, l := range [...][2]string{
		{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"},
		{"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"},
	} {
		if err := unix.Symlinkat(l[1], t.dev, l[0]); err != nil {
			return failed("make /dev/"+l[0], err)
		}
	}
	// A terminal's device belongs to the user of commands, who may open it by
	// name; group 5 is tty wherever there is such a group.
	if err := t.below("pts", "devpts", quiet, "ptmxmode", "666", "mode", "620", "gid", "5",
		"uid", strconv.FormatUint(uint64(c.UID), 10), "max", "1024"); err != nil {
		return err
	}
	if err := t.below("shm", "tmpfs", quiet|unix.MOUNT_ATTR_NODEV, "mode", "1777",
		"size", strconv.FormatUint(c.SharedMemory, 10)); err != nil {
		return err
	}
	return failed("make /dev read-only", unix.MountSetattr(t.dev, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
}

// below mounts a new file system upon a directory of /dev.
func (t *tree) below(name, kind string, attr int, options ...string) error {
	if err := unix.Mkdirat(t.dev, name, 0o755); err != nil {
		return failed("make /dev/"+name, err)
	}
	fd, err := mount(kind, attr, options...)
	if err != nil {
		return failed("mount /dev/"+name, err)
	}
	defer unix.Close(fd)
	return attach(fd, newDev+"/"+name)
}

// enter makes the server's mount the root and the tree whole.
func (t tree) enter(c boot.Config, fds []int) error {
	old, err := pivot(fds[boot.RootFD])
	if err != nil {
		return err
	}
	// From here on paths are those inside, whatever links the image holds.
	for i, target := range c.Binds {
		if err := attach(fds[boot.FirstBind+i], target); err != nil {
			return err
		}
		unix.Close(fds[boot.FirstBind+i])
	}
	for _, m := range [...]struct {
		fd   int
		path string
	}{{t.dev, "/dev"}, {t.proc, "/proc"}, {t.empty, "/sys"}} {
		if err := place(m.fd, m.path); err != nil {
			return err
		}
		unix.Close(m.fd)
	}
	unix.Close(fds[boot.RootFD])
	return leave(old)
}

// pivot makes the mount the root and returns the old one, which lies on top
// of it until leave.
func pivot(root int) (old int, err error) {
	old, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, failed("open old root", err)
	}
	const staging = "/" // upon the old root, which stays this process's until the pivot
	if err := attach(root, staging); err != nil {
		return -1, err
	}
	if err := unix.Fchdir(root); err != nil {
		return -1, failed("enter root", err)
	}
	return old, failed("pivot_root", unix.PivotRoot(".", "."))
}

// leave lets go of the old root and everything below it.
func leave(old int) error {
	if err := unix.Fchdir(old); err != nil {
		return failed("enter old root", err)
	}
	unix.Close(old)
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return failed("detach old root", err)
	}
	return failed("enter root", unix.Chdir("/"))
}

// What /proc shows of the machine, and what could change it. Files that only
// root may read or write need no cover: nobody inside is the machine's root.
var (
	hiddenFiles  = [...]string{"kcore", "keys", "key-users", "timer_list", "sched_debug", "latency_stats", "interrupts", "sysrq-trigger"}
	hiddenDirs   = [...]string{"acpi", "asound", "scsi"}
	readOnlyDirs = [...]string{"bus", "fs", "irq", "sys"}
)

// mask hides and locks parts of /proc and takes away user namespaces. Where
// sandboxes nest, nothing may be hidden: the kernel refuses to mount a new
// /proc in a namespace that does not see all of its own.
func mask() error {
	if err := set(newProc+"/sys/user/max_user_namespaces", "0"); err != nil {
		return err
	}
	for _, name := range hiddenFiles {
		if err := cover(newDev+"/null", newProc+"/"+name); err != nil {
			return err
		}
	}
	for _, name := range hiddenDirs {
		if err := cover(newEmpty, newProc+"/"+name); err != nil {
			return err
		}
	}
	for _, name := range readOnlyDirs {
		path := newProc + "/" + name
		if err := cover(path, path); err != nil {
			return err
		}
		err := unix.MountSetattr(unix.AT_FDCWD, path, 0, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY})
		if err != nil && err != unix.ENOENT {
			return failed("make "+path+" read-only", err)
		}
	}
	return nil
}

// cover binds source upon target, if there is such a thing.
func cover(source, target string) error {
	if err := unix.Mount(source, target, "", unix.MS_BIND, ""); err != unix.ENOENT {
		return failed("cover "+target, err)
	}
	return nil
}

// mount makes a new file system with the given options, in pairs.
func mount(kind string, attr int, options ...string) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, err
	}
	defer unix.Close(fs)
	for i := 0; i < len(options); i += 2 {
		if err := unix.FsconfigSetString(fs, options[i], options[i+1]); err != nil {
			return -1, failed(options[i], err)
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, err
	}
	return unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attr)
}

// attach moves a mount to a path, which is resolved inside the current root.
func attach(fd int, path string) error {
	err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_SYMLINKS)
	return failed("mount "+path, err)
}

// place is attach to a directory that may have to be made. It must be no
// link: the kernel's own file systems belong where they belong.
func place(fd int, path string) error {
	if err := unix.Mkdir(path, 0o755); err != nil && err != unix.EEXIST {
		return failed("make "+path, err)
	}
	return failed("mount "+path, unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// set writes a value into a file of the kernel's.
func set(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return failed("open "+path, err)
	}
	_, err = unix.Write(fd, []byte(value))
	unix.Close(fd)
	return failed("write "+path, err)
}

// kills reads how many processes were killed for memory so far; 0 when that
// cannot be known.
func kills(fd int) int64 {
	var b [1024]byte
	n, err := unix.Pread(fd, b[:], 0)
	if err != nil && !errors.Is(err, unix.EINTR) {
		return 0
	}
	for line := range strings.SplitSeq(string(b[:max(n, 0)]), "\n") {
		if v, ok := strings.CutPrefix(line, "oom_kill "); ok {
			k, _ := strconv.ParseInt(v, 10, 64)
			return k
		}
	}
	return 0
}
