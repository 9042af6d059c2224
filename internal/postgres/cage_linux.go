package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// system is what a process sees of this machine, read-only. What is a symbolic
// link here is one there.
var system = []string{"/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/ld.so.cache", "/etc/ssl/certs",
	"/etc/alternatives", "/dev/null", "/dev/zero", "/dev/random", "/dev/urandom"}

// names is what a process that uses this machine's network sees beside it.
var names = []string{"/etc/resolv.conf", "/etc/hosts", "/etc/services"}

// rootAt is where the new root is put together: any directory will do.
const rootAt = "/tmp"

// enter puts the calling thread into namespaces of its own. Mounts are cloned
// before the place they are named after is covered.
func (l Local) enter() error {
	flags := unix.CLONE_NEWNS
	if !l.Network {
		flags |= unix.CLONE_NEWNET
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if !l.Network {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("set up loopback: %w", err)
		}
	}
	trees, err := l.cloneTrees()
	defer trees.close()
	if err != nil {
		return err
	}
	return l.furnish(trees)
}

// tree is a cloned mount and where it goes.
type tree struct {
	fd   int
	path string
	dir  bool
}

type trees []tree

func (ts trees) close() {
	for _, t := range ts {
		unix.Close(t.fd)
	}
}

func (l Local) cloneTrees() (ts trees, err error) {
	shared := system
	if l.Network {
		shared = append(append([]string(nil), system...), names...)
	}
	for _, path := range shared {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Type() == fs.ModeSymlink && !strings.HasPrefix(path, "/etc/") {
			continue
		}
		if err == nil {
			ts, err = ts.add(Bind{Dir: Dir{Host: path}, ReadOnly: !strings.HasPrefix(path, "/dev/")})
		}
		if err != nil {
			return ts, err
		}
	}
	for _, b := range l.Show {
		if ts, err = ts.add(b); err != nil {
			return ts, err
		}
	}
	return ts, nil
}

func (ts trees) add(b Bind) (trees, error) {
	info, err := os.Stat(b.Host)
	if err != nil {
		return ts, err
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, b.Host, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return ts, fmt.Errorf("clone mount of %s: %w", b.Host, err)
	}
	ts = append(ts, tree{fd: fd, path: b.inside(), dir: info.IsDir()})
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID}
	if b.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return ts, fmt.Errorf("restrict mount of %s: %w", b.Host, err)
	}
	return ts, nil
}

// furnish makes the new root and leaves the old one.
func (l Local) furnish(ts trees) error {
	if err := unix.Mount("tmpfs", rootAt, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=256m"); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	for dir, mode := range map[string]fs.FileMode{"tmp": 0o1777, "etc": 0o755, "dev": 0o755, "dev/shm": 0o1777} {
		path := filepath.Join(rootAt, dir)
		if err := errors.Join(os.MkdirAll(path, 0o755), unix.Chmod(path, uint32(mode))); err != nil {
			return err
		}
	}
	for name, content := range l.files() {
		if err := os.WriteFile(filepath.Join(rootAt, name), []byte(content), 0o644); err != nil {
			return err
		}
	}
	for _, path := range system {
		if target, err := os.Readlink(path); err == nil && !strings.HasPrefix(path, "/etc/") {
			if err := os.Symlink(target, filepath.Join(rootAt, path)); err != nil {
				return err
			}
		}
	}
	for _, t := range ts {
		if err := t.attach(); err != nil {
			return err
		}
	}
	return pivot()
}

// files are the users that a process can look up, itself among them: initdb
// insists.
func (l Local) files() map[string]string {
	return map[string]string{
		"etc/passwd": fmt.Sprintf("root:x:0:0::/:/bin/false\npostgres:x:%d:%d::/tmp:/bin/sh\n", l.UID, l.GID),
		"etc/group":  fmt.Sprintf("root:x:0:\npostgres:x:%d:\n", l.GID),
	}
}

func (t tree) attach() error {
	path := filepath.Join(rootAt, t.path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	var err error
	if t.dir {
		err = os.MkdirAll(path, 0o755)
	} else {
		err = os.WriteFile(path, nil, 0o644)
	}
	if err != nil {
		return err
	}
	if err := unix.MoveMount(t.fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s: %w", t.path, err)
	}
	return nil
}

func pivot() error {
	if err := unix.Chdir(rootAt); err != nil {
		return err
	}
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("change root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave old root: %w", err)
	}
	return unix.Chdir("/")
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
