package main

import (
	"errors"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// tree is what the guest can make of the root file system before its
// instructions arrive.
type tree struct {
	proc, dev, pts, empty int // mounts
}

// nodes are the devices that environments have.
var nodes = []string{"null", "zero", "full", "random", "urandom", "tty"}

// prepare makes mounts while the server makes the others. /dev takes shape
// over the host's, in this mount namespace, because Linux before 6.15 cannot
// mount upon what is not attached.
func prepare() (t tree, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return t, failed("make mounts private", err)
	}
	const quiet = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	// Needs a /proc that shows everything in this namespace, so it comes
	// before the host's is left behind.
	if t.proc, err = mount("proc", quiet|unix.MOUNT_ATTR_NODEV); err != nil {
		return t, failed("mount proc (is the server's own /proc masked?)", err)
	}
	var devices [6]int
	for i, name := range nodes {
		devices[i], err = unix.OpenTree(unix.AT_FDCWD, "/dev/"+name, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
		if err != nil {
			return t, failed("clone /dev/"+name, err)
		}
	}
	if t.dev, err = mount("tmpfs", quiet, "mode", "755", "size", "64k", "nr_inodes", "64"); err != nil {
		return t, failed("mount /dev", err)
	}
	if err := attach(t.dev, "/dev"); err != nil {
		return t, err
	}
	for i, name := range nodes {
		if err := unix.Mknodat(t.dev, name, unix.S_IFREG|0o444, 0); err != nil {
			return t, failed("make /dev/"+name, err)
		}
		if err := attach(devices[i], "/dev/"+name); err != nil {
			return t, err
		}
		unix.Close(devices[i])
	}
	for _, l := range [][2]string{
		{"fd", "/proc/self/fd"}, {"stdin", "/proc/self/fd/0"}, {"stdout", "/proc/self/fd/1"},
		{"stderr", "/proc/self/fd/2"}, {"ptmx", "pts/ptmx"},
	} {
		if err := unix.Symlinkat(l[1], t.dev, l[0]); err != nil {
			return t, failed("make /dev/"+l[0], err)
		}
	}
	for _, name := range []string{"pts", "shm"} {
		if err := unix.Mkdirat(t.dev, name, 0o755); err != nil {
			return t, failed("make /dev/"+name, err)
		}
	}
	if t.empty, err = mount("tmpfs", quiet|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_RDONLY, "mode", "755", "size", "4k", "nr_inodes", "1"); err != nil {
		return t, failed("mount /sys", err)
	}
	return t, failed("bring up loopback", loopback())
}

// enter makes the root file system whole and the namespaces' root.
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
	if err := t.devices(c); err != nil {
		return err
	}
	if err := place(t.proc, "/proc"); err != nil {
		return err
	}
	if err := place(t.empty, "/sys"); err != nil {
		return err
	}
	if !c.Nested {
		if err := t.mask(); err != nil {
			return err
		}
	}
	for _, fd := range []int{t.proc, t.dev, t.pts, t.empty, fds[boot.RootFD]} {
		unix.Close(fd)
	}
	if err := leave(old); err != nil {
		return err
	}
	if err := failed("set hostname", unix.Sethostname([]byte(c.Hostname))); err != nil {
		return err
	}
	return failed("unshare cgroup namespace", unix.Unshare(unix.CLONE_NEWCGROUP))
}

// pivot makes the mount the root and returns the old one, which lies on top
// of it until leave.
func pivot(root int) (old int, err error) {
	old, err = unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, failed("open old root", err)
	}
	const staging = "/proc" // any directory that every machine has
	if err := attach(root, staging); err != nil {
		return -1, err
	}
	if err := unix.Chdir(staging); err != nil {
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

// devices moves /dev to its place and completes it.
func (t *tree) devices(c boot.Config) (err error) {
	if err := place(t.dev, "/dev"); err != nil {
		return err
	}
	const quiet = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	// A terminal's device belongs to the user of commands, who may open it by
	// name; group 5 is tty wherever there is such a group.
	t.pts, err = mount("devpts", quiet, "ptmxmode", "666", "mode", "620", "gid", "5",
		"uid", strconv.FormatUint(uint64(c.UID), 10), "max", "1024")
	if err != nil {
		return failed("mount /dev/pts", err)
	}
	if err := attach(t.pts, "/dev/pts"); err != nil {
		return err
	}
	shm, err := mount("tmpfs", quiet|unix.MOUNT_ATTR_NODEV, "mode", "1777", "size", strconv.FormatUint(c.SharedMemory, 10))
	if err != nil {
		return failed("mount /dev/shm", err)
	}
	defer unix.Close(shm)
	if err := attach(shm, "/dev/shm"); err != nil {
		return err
	}
	return failed("make /dev read-only", unix.MountSetattr(t.dev, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}))
}

// What /proc shows of the machine, and what could change it.
var (
	hiddenFiles = []string{"kcore", "keys", "key-users", "timer_list", "sched_debug", "latency_stats",
		"interrupts", "sysrq-trigger", "kmsg", "kpagecount", "kpageflags", "kpagecgroup", "vmallocinfo", "slabinfo"}
	hiddenDirs   = []string{"acpi", "asound", "scsi", "driver", "dynamic_debug"}
	readOnlyDirs = []string{"bus", "fs", "irq", "sys", "sysvipc", "tty"}
)

// mask hides and locks parts of /proc and takes away user namespaces. Where
// sandboxes nest, nothing may be hidden: the kernel refuses to mount a new
// /proc in a namespace that does not see all of its own.
func (t tree) mask() error {
	if err := set("/proc/sys/user/max_user_namespaces", "0"); err != nil {
		return err
	}
	for _, name := range hiddenFiles {
		if err := cover("/dev/null", "/proc/"+name, 0); err != nil {
			return err
		}
	}
	for _, name := range hiddenDirs {
		if err := cover("/sys", "/proc/"+name, 0); err != nil {
			return err
		}
	}
	for _, name := range readOnlyDirs {
		if err := cover("/proc/"+name, "/proc/"+name, unix.MOUNT_ATTR_RDONLY); err != nil {
			return err
		}
	}
	return nil
}

// cover mounts a copy of source upon target, if there is such a thing.
func cover(source, target string, attr uint64) error {
	if unix.Access(target, unix.F_OK) == unix.ENOENT {
		return nil
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return failed("clone "+source, err)
	}
	defer unix.Close(fd)
	if attr != 0 {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &unix.MountAttr{Attr_set: attr}); err != nil {
			return failed("restrict "+source, err)
		}
	}
	return attach(fd, target)
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

// loopback brings the only network interface up.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	lo, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	lo.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo)
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
