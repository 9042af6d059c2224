package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// mounts are the detached mounts of one sandbox. They belong to no mount
// namespace until the guest attaches them in its own; of those that nobody
// attaches, nothing is left when they are closed.
type mounts struct {
	root  int
	runs  int
	binds []int // where Spec.targets says
	open  []int // everything to close
}

func (m *mounts) close() {
	for _, fd := range m.open {
		unix.Close(fd)
	}
}

// private are the attributes of all mounts.
const private = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV

// show makes the mounts of what a sandbox shows of the host, which are the same
// whoever its guest is.
func show(s Spec) (*mounts, error) {
	m := &mounts{}
	for _, b := range s.Binds {
		fd, err := m.clone(b.Source, -1, private|unix.MOUNT_ATTR_RDONLY)
		if err != nil {
			m.close()
			return nil, err
		}
		m.binds = append(m.binds, fd)
	}
	return m, nil
}

// assemble adds the mounts of what is a sandbox's own. Ids on disk are those
// seen inside; the mounts map them to the range of the guest's user namespace.
func (m *mounts) assemble(s Spec, guest *os.File) error {
	users, err := m.keep(userNamespace(guest))
	if err != nil {
		return fmt.Errorf("open user namespace: %w", err)
	}
	if m.root, err = m.overlay(s, users); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	if m.runs, err = m.clone(filepath.Join(s.Host, runsName), users, private|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSYMFOLLOW); err != nil {
		return err
	}
	if s.DB != "" {
		fd, err := m.clone(s.DB, users, private)
		if err != nil {
			return err
		}
		m.binds = append(m.binds, fd)
	}
	return nil
}

// keep notes a descriptor to close.
func (m *mounts) keep(fd int, err error) (int, error) {
	if err == nil {
		m.open = append(m.open, fd)
	}
	return fd, err
}

// targets says where the binds go, in the order of mounts.binds.
func (s Spec) targets() []string {
	var targets []string
	for _, b := range s.Binds {
		targets = append(targets, b.Target)
	}
	if s.DB != "" {
		targets = append(targets, DBDir)
	}
	return targets
}

// userNamespace opens the user namespace of a process, see ioctl_pidfd(2).
func userNamespace(pidfd *os.File) (fd int, err error) {
	raw, err := pidfd.SyscallConn()
	if err != nil {
		return -1, err
	}
	cerr := raw.Control(func(p uintptr) {
		r, _, errno := unix.Syscall(unix.SYS_IOCTL, p, unix.PIDFD_GET_USER_NAMESPACE, 0)
		if fd = int(r); errno != 0 {
			err = errno
		}
	})
	return fd, errors.Join(err, cerr)
}

// clone makes a detached copy of the mount at path, with everything mounted
// below it unless ids are mapped.
func (m *mounts) clone(path string, users int, attr uint64) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	at := uint(unix.AT_EMPTY_PATH)
	set := unix.MountAttr{Attr_set: attr, Propagation: unix.MS_PRIVATE}
	if users >= 0 {
		set.Attr_set |= unix.MOUNT_ATTR_IDMAP
		set.Userns_fd = uint64(users)
	} else {
		flags |= unix.AT_RECURSIVE
		at |= unix.AT_RECURSIVE
	}
	fd, err := m.keep(unix.OpenTree(unix.AT_FDCWD, path, flags))
	if err != nil {
		return -1, fmt.Errorf("clone mount of %s: %w", path, err)
	}
	err = unix.MountSetattr(fd, "", at, &set)
	if err == unix.EINVAL && users >= 0 {
		return -1, mayfly.Errorf(mayfly.Unsupported, "the file system of %s cannot map user ids: %w", path, errors.ErrUnsupported).
			Hint("put the state directory on btrfs, ext4 or xfs")
	}
	if err != nil {
		return -1, fmt.Errorf("set attributes of the mount of %s: %w", path, err)
	}
	return fd, nil
}

// overlay makes the root file system.
func (m *mounts) overlay(s Spec, users int) (int, error) {
	lower := make([]int, len(s.Lower))
	for i, path := range s.Lower {
		fd, err := m.clone(path, users, private|unix.MOUNT_ATTR_RDONLY)
		if err != nil {
			return -1, err
		}
		lower[i] = fd
	}
	// Both must be of the same mount.
	parent, err := m.clone(filepath.Dir(s.Upper), users, private)
	if err != nil {
		return -1, err
	}
	upper, err := m.directory(parent, filepath.Base(s.Upper))
	if err != nil {
		return -1, err
	}
	work, err := m.directory(parent, filepath.Base(s.Work))
	if err != nil {
		return -1, err
	}
	fs, err := m.keep(unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC))
	if err != nil {
		return -1, fmt.Errorf("fsopen overlay: %w", err)
	}
	if err := configure(fs, lower, upper, work); err != nil {
		return -1, explain(fs, err)
	}
	if err := asMapped(s.UIDBase, func() error { return unix.FsconfigCreate(fs) }); err != nil {
		return -1, explain(fs, err)
	}
	root, err := m.keep(unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, private|unix.MOUNT_ATTR_NOATIME))
	if err != nil {
		return -1, fmt.Errorf("fsmount overlay: %w", err)
	}
	return root, nil
}

func (m *mounts) directory(parent int, name string) (int, error) {
	fd, err := m.keep(unix.Openat(parent, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0))
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", name, err)
	}
	return fd, nil
}

// configure sets the options of an overlay. It is volatile: fsync inside
// costs nothing, because what a crash of the machine loses is an environment
// that was lost anyway.
func configure(fs int, lower []int, upper, work int) error {
	for _, fd := range lower {
		if err := unix.FsconfigSetFd(fs, "lowerdir+", fd); err != nil {
			return fmt.Errorf("lowerdir: %w", err)
		}
	}
	if err := unix.FsconfigSetFd(fs, "upperdir", upper); err != nil {
		return fmt.Errorf("upperdir: %w", err)
	}
	if err := unix.FsconfigSetFd(fs, "workdir", work); err != nil {
		return fmt.Errorf("workdir: %w", err)
	}
	// xino tells the inode numbers of the layers' file systems apart.
	for _, o := range [][2]string{{"redirect_dir", "on"}, {"metacopy", "off"}, {"index", "off"}, {"xino", "on"}} {
		if err := unix.FsconfigSetString(fs, o[0], o[1]); err != nil {
			return fmt.Errorf("%s: %w", o[0], err)
		}
	}
	return unix.FsconfigSetFlag(fs, "volatile")
}

// explain adds the kernel's own words to an error of fsconfig(2).
func explain(fs int, err error) error {
	b := make([]byte, 512)
	if n, rerr := unix.Read(fs, b); rerr == nil && n > 0 {
		return fmt.Errorf("overlay: %w (%s)", err, strings.TrimSpace(string(b[:n])))
	}
	return fmt.Errorf("overlay: %w", err)
}

// asMapped runs f as a user whose id the mounts map. An overlay keeps the ids
// of its maker for what it does by itself, and is silently read-only when
// they cannot be written. All other powers stay.
func asMapped(id uint32, f func() error) error {
	runtime.LockOSThread()
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("capget: %w", err)
	}
	gid, _ := unix.SetfsgidRetGid(int(id))
	uid, _ := unix.SetfsuidRetUid(int(id))
	err := unix.Capset(&header, &caps[0])
	if err == nil {
		err = f()
	}
	unix.SetfsuidRetUid(uid)
	unix.SetfsgidRetGid(gid)
	if restored := unix.Capset(&header, &caps[0]); restored != nil {
		return errors.Join(err, restored) // the thread is not what it was: let it end
	}
	runtime.UnlockOSThread()
	return err
}
