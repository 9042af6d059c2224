package sandbox

import (
	"errors"
	"fmt"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// mounts are the detached mounts of one sandbox. They belong to no mount
// namespace until the guest attaches them in its own; of those that nobody
// attaches, nothing is left when they are closed.
type mounts struct {
	root    int
	runs    int
	binds   []int
	targets []string // of binds
	open    []int    // everything to close
}

func (m *mounts) close() {
	for _, fd := range m.open {
		unix.Close(fd)
	}
}

// assemble makes the mounts of a sandbox. Ids on disk are those seen inside;
// the mounts map them to the range of the guest's user namespace.
func assemble(s Spec, pid int) (m *mounts, err error) {
	if len(s.Binds) >= boot.MaxBinds {
		return nil, mayfly.Errorf(mayfly.Invalid, "%d directories to show, %d at most", len(s.Binds), boot.MaxBinds)
	}
	m = &mounts{}
	defer func() {
		if err != nil {
			m.close()
		}
	}()
	users, err := m.keep(unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0))
	if err != nil {
		return nil, fmt.Errorf("open user namespace: %w", err)
	}
	if m.root, err = m.overlay(s, users); err != nil {
		return nil, fmt.Errorf("mount root: %w", err)
	}
	const private = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	if m.runs, err = m.clone(filepath.Join(s.Host, runsName), users, private|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_NOSYMFOLLOW); err != nil {
		return nil, err
	}
	if s.DB != "" {
		if err := m.bind(s.DB, DBDir, users, private); err != nil {
			return nil, err
		}
	}
	for _, b := range s.Binds {
		if err := m.bind(b.Source, b.Target, -1, private|unix.MOUNT_ATTR_RDONLY); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// keep notes a descriptor to close.
func (m *mounts) keep(fd int, err error) (int, error) {
	if err == nil {
		m.open = append(m.open, fd)
	}
	return fd, err
}

func (m *mounts) bind(source, target string, users int, attr uint64) error {
	if !filepath.IsAbs(target) || strings.Contains(target, "\x00") {
		return fmt.Errorf("mount %s: bad target %q", source, target)
	}
	fd, err := m.clone(source, users, attr)
	if err != nil {
		return err
	}
	m.binds, m.targets = append(m.binds, fd), append(m.targets, target)
	return nil
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
	const private = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
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
	for _, o := range [][2]string{{"redirect_dir", "on"}, {"metacopy", "off"}, {"index", "off"}} {
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
