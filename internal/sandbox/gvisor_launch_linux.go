package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// assemble makes the mounts, with the layer of the guest's directories on top
// of the others, and the one of the directory for its socket.
func (g *GVisor) assemble(s Spec, dir string) (m *mounts, socket int, err error) {
	holder, end, err := g.holdUsers(s.UIDBase)
	if err != nil {
		return nil, -1, fmt.Errorf("make user namespace: %w", err)
	}
	defer end()
	s.Lower = append([]string{filepath.Join(dir, layerName)}, s.Lower...)
	if m, err = show(s); err != nil {
		return nil, -1, err
	}
	var users int
	if err = m.assemble(s, holder); err == nil {
		users, err = m.keep(userNamespace(holder))
	}
	if err == nil {
		socket, err = m.clone(filepath.Join(dir, listenName), users, private|unix.MOUNT_ATTR_NOEXEC)
	}
	if err != nil {
		m.close()
		return nil, -1, err
	}
	return m, socket, nil
}

// holdUsers makes a user namespace with the environment's ids, by means of a
// guest that waits in it for instructions that never come. It ends with this
// process at the latest.
func (g *GVisor) holdUsers(base uint32) (holder *os.File, end func(), err error) {
	ours, theirs, err := socketpair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	defer null.Close()
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(base), Size: idRange}}
	pidfd := -1
	pid, err := syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(int(g.guest.Fd())), []string{boot.GuestName}, &syscall.ProcAttr{
		Dir:   "/",
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), theirs.Fd()},
		Sys: &syscall.SysProcAttr{
			Cloneflags:  unix.CLONE_NEWUSER,
			UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
			Credential: &syscall.Credential{Uid: 0, Gid: 0},
			PidFD:      &pidfd,
		},
	})
	if err != nil {
		ours.Close()
		return nil, nil, err
	}
	holder = os.NewFile(uintptr(pidfd), "holder")
	return holder, func() {
		holder.Close()
		ours.Close()
		unix.Kill(pid, unix.SIGKILL)
		for {
			if _, err := unix.Wait4(pid, nil, 0, nil); err != unix.EINTR {
				return
			}
		}
	}, nil
}

// run starts the sandbox and returns when runsc has left it to itself. The
// mounts are attached in a mount namespace that ends with this function; the
// sandbox has made its own of it by then.
func (g *GVisor) run(ctx context.Context, s Spec, dir string, m *mounts, socket int) error {
	at, err := stage(dir, g.runsc)
	if err != nil {
		return err
	}
	if err := newBundle(s, at).write(dir); err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(s.Host, logName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("open guest log: %w", err)
	}
	defer log.Close()
	config, err := os.Open(filepath.Join(dir, configName))
	if err != nil {
		return err
	}
	defer config.Close()
	program, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(g.guest.Fd()))) // gVisor executes no file that is open for writing
	if err != nil {
		return err
	}
	defer program.Close()
	group, err := g.cgroups.Directory(s.Environment)
	if err != nil {
		return fmt.Errorf("open control group: %w", err)
	}
	cmd := exec.CommandContext(ctx, g.runsc, runscArgs(s, dir)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{config, program} // from descriptor 3 on, see runscArgs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if group != nil {
		defer group.Close()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(group.Fd())
	}
	return apart(func() error {
		if err := attach(at, m, socket); err != nil {
			return err
		}
		if err := findTargets(s, m); err != nil {
			return err
		}
		if err := g.enter(s.Environment); err != nil {
			return err
		}
		return cmd.Run()
	})
}

// enter moves the calling thread, which has no way back, into the v1 groups of
// an environment.
func (g *GVisor) enter(env string) error {
	in, out, err := g.cgroups.Doors(env)
	if err != nil {
		return err
	}
	for _, f := range out {
		f.Close()
	}
	for _, f := range in {
		_, werr := f.WriteString("0")
		err = errors.Join(err, werr, f.Close())
	}
	if err != nil {
		return fmt.Errorf("enter control groups: %w", err)
	}
	return nil
}

// runscArgs are the arguments that matter for safety: no network but a
// loopback interface of gVisor's own stack, no file of the host beyond the
// mounts, and no socket of the host, though the guest may make one.
func runscArgs(s Spec, dir string) []string {
	return []string{
		"--root=" + filepath.Join(dir, stateName),
		"--platform=systrap",
		"--network=none",
		"--host-uds=create",
		"--overlay2=none",         // changes go to the volume at once, not to a copy in memory
		"--file-access=exclusive", // nobody else writes to what is mounted
		"--file-access-mounts=exclusive",
		"--ignore-cgroups", // it is born in the right ones
		"run", "--detach",
		"--bundle=" + dir,
		"--pass-fd=3:" + strconv.Itoa(boot.ConfigFD),
		"--exec-fd=4",
		s.Environment,
	}
}

// stage returns a directory that every machine has and that is above none of
// the paths. In the mount namespace of run, the mounts are attached there:
// the sandbox's own user must find its way to them, and it cannot enter the
// state directory.
func stage(paths ...string) (string, error) {
	for _, dir := range []string{"/run", "/tmp", "/var/tmp"} {
		dir, err := filepath.EvalSymlinks(dir)
		if err != nil {
			continue
		}
		free := true
		for _, p := range paths {
			p, err := filepath.EvalSymlinks(p)
			if err != nil {
				return "", err
			}
			if rel, err := filepath.Rel(dir, p); err != nil || filepath.IsLocal(rel) {
				free = false
			}
		}
		if free {
			return dir, nil
		}
	}
	return "", errors.New("no directory to attach mounts in: neither /run nor /tmp nor /var/tmp is free of state")
}

// attach puts the mounts below dir, where the bundle says they are.
func attach(dir string, m *mounts, socket int) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=755,size=1m"); err != nil {
		return fmt.Errorf("mount staging directory: %w", err)
	}
	all := map[string]int{rootName: m.root, runsName: m.runs, listenName: socket}
	for i, fd := range m.binds {
		all[bindName(i)] = fd
	}
	for name, fd := range all {
		path := filepath.Join(dir, name)
		if err := mountPoint(path, fd); err != nil {
			return fmt.Errorf("make mount point %s: %w", name, err)
		}
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, path, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("attach %s: %w", name, err)
		}
	}
	return nil
}

// findTargets checks that every target of a bind is there, in the root file
// system or in a bind before it: runsc would make it, in the volume.
func findTargets(s Spec, m *mounts) error {
	targets := s.targets()
	for i, target := range targets {
		dir, path := m.root, target
		for j := range i {
			if rest, ok := strings.CutPrefix(target, targets[j]+"/"); ok {
				dir, path = m.binds[j], rest
			}
		}
		fd, err := unix.Openat2(dir, path, &unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
		if err != nil {
			return fmt.Errorf("mount %s: %w", target, err)
		}
		unix.Close(fd)
	}
	return nil
}

// mountPoint makes a file or a directory, whichever fd is.
func mountPoint(path string, fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.MkdirAll(path, 0o700)
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// apart runs f on a thread in a mount namespace of its own. Both end with it,
// and with them every mount that f made and no other process keeps.
func apart(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread cannot end before the process.
			done <- apart(f)
			runtime.UnlockOSThread()
			return
		}
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			done <- fmt.Errorf("unshare mounts: %w", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			done <- fmt.Errorf("make mounts private: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
