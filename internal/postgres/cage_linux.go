package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// cage is where programs run that talk to somebody else's server: each alone
// in namespaces of its own, under a root directory that holds the system's
// programs, read-only, and the given directories. It needs root.
type cage struct {
	uid, gid uint32
	show     []bind
	network  bool // share this machine's network; else there is a loopback device only
}

// bind shows a directory of this machine to a process.
type bind struct {
	Dir
	readOnly bool
}

// run runs a command to its end, or kills it when ctx ends.
func (c cage) run(ctx context.Context, cmd *exec.Cmd) error {
	ended := make(chan struct{})
	if err := c.start(cmd, ended); err != nil {
		return err
	}
	defer close(ended)
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	err := cmd.Wait()
	return errors.Join(ctx.Err(), err)
}

// start starts a command from a thread that has entered the namespaces, and
// keeps the thread until the command ends: the command dies with it, and so
// with this process.
func (c cage) start(cmd *exec.Cmd, ended <-chan struct{}) error {
	if os.Geteuid() != 0 {
		return mayfly.Errorf(mayfly.Unsupported, "starting a program under a user id of its own needs root: %w", errors.ErrUnsupported).
			Hint("sudo mayfly serve")
	}
	if c.uid == 0 || c.gid == 0 {
		return errors.New("no user id to start a program under")
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS
	cmd.SysProcAttr.Credential = &syscall.Credential{Uid: c.uid, Gid: c.gid}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	cmd.SysProcAttr.Setsid = true
	started := make(chan error, 1)
	go onThread(func() {
		err := c.enter()
		if err == nil {
			err = cmd.Start()
		}
		started <- err
		if err == nil {
			<-ended
		}
	})
	err := <-started
	if errors.Is(err, unix.EPERM) {
		return mayfly.Errorf(mayfly.Unsupported, "making namespaces is not permitted here: %w", err).
			Hint("run the server as root, outside of containers without CAP_SYS_ADMIN")
	}
	if err != nil {
		return fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	return nil
}

// onThread runs f on a thread that nobody else gets, and that ends with f. The
// first thread of a process never ends: it would keep the namespaces, and what
// is mounted in them.
func onThread(f func()) {
	runtime.LockOSThread() // for good, so that the thread ends with the goroutine
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	taken := make(chan struct{})
	go onThread(func() {
		close(taken)
		f()
	})
	<-taken // by another thread: this one is held
	runtime.UnlockOSThread()
}

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
func (c cage) enter() error {
	flags := unix.CLONE_NEWNS
	if !c.network {
		flags |= unix.CLONE_NEWNET
	}
	if err := unix.Unshare(flags); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("set no_new_privs: %w", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if !c.network {
		if err := loopbackUp(); err != nil {
			return fmt.Errorf("set up loopback: %w", err)
		}
	}
	trees, err := c.cloneTrees()
	defer trees.close()
	if err != nil {
		return err
	}
	return c.furnish(trees)
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

func (c cage) cloneTrees() (ts trees, err error) {
	shared := system
	if c.network {
		shared = append(append([]string(nil), system...), names...)
	}
	for _, path := range shared {
		info, err := os.Lstat(path)
		if errors.Is(err, fs.ErrNotExist) || err == nil && info.Mode().Type() == fs.ModeSymlink && !strings.HasPrefix(path, "/etc/") {
			continue
		}
		if err == nil {
			ts, err = ts.add(bind{Dir: Dir{Host: path}, readOnly: !strings.HasPrefix(path, "/dev/")})
		}
		if err != nil {
			return ts, err
		}
	}
	for _, b := range c.show {
		if ts, err = ts.add(b); err != nil {
			return ts, err
		}
	}
	return ts, nil
}

func (ts trees) add(b bind) (trees, error) {
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
	if b.readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, &attr); err != nil {
		return ts, fmt.Errorf("restrict mount of %s: %w", b.Host, err)
	}
	return ts, nil
}

// furnish makes the new root and leaves the old one.
func (c cage) furnish(ts trees) error {
	if err := unix.Mount("tmpfs", rootAt, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size=256m"); err != nil {
		return fmt.Errorf("mount root: %w", err)
	}
	for dir, mode := range map[string]fs.FileMode{"tmp": 0o1777, "etc": 0o755, "dev": 0o755, "dev/shm": 0o1777} {
		path := filepath.Join(rootAt, dir)
		if err := errors.Join(os.MkdirAll(path, 0o755), unix.Chmod(path, uint32(mode))); err != nil {
			return err
		}
	}
	for name, content := range c.files() {
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
func (c cage) files() map[string]string {
	return map[string]string{
		"etc/passwd": fmt.Sprintf("root:x:0:0::/:/bin/false\npostgres:x:%d:%d::/tmp:/bin/sh\n", c.uid, c.gid),
		"etc/group":  fmt.Sprintf("root:x:0:\npostgres:x:%d:\n", c.gid),
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
