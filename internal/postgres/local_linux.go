package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// Local starts processes on this machine, each alone in namespaces of its own
// and under a root directory that holds the system's programs, read-only, and
// the given directories. It is what baselines are prepared in: SQL that a
// superuser executes can start programs. It needs root.
type Local struct {
	UID, GID uint32
	Show     []Bind
	Network  bool // share this machine's network; else there is a loopback device only
	// Group is the control group of the unified hierarchy to start in; nil: that
	// of this process.
	Group *os.File
}

// Bind shows a directory of this machine to a process.
type Bind struct {
	Dir
	ReadOnly bool
}

// Launch implements Launcher.
func (l Local) Launch(_ context.Context, c Command) (Process, error) {
	p := &localProcess{ended: make(chan struct{})}
	p.cmd = &exec.Cmd{Path: c.Argv[0], Args: c.Argv, Env: c.Env, Dir: c.Dir, Stdout: &p.output, Stderr: &p.output}
	if err := l.start(p.cmd, p.ended); err != nil {
		return nil, err
	}
	go func() {
		p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// run runs a command to its end, or kills it when ctx ends.
func (l Local) run(ctx context.Context, cmd *exec.Cmd) error {
	ended := make(chan struct{})
	if err := l.start(cmd, ended); err != nil {
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
func (l Local) start(cmd *exec.Cmd, ended <-chan struct{}) error {
	if os.Geteuid() != 0 {
		return mayfly.Errorf(mayfly.Unsupported, "starting Postgres under a user id of its own needs root: %w", errors.ErrUnsupported).
			Hint("sudo mayfly serve")
	}
	if l.UID == 0 || l.GID == 0 {
		return errors.New("start Postgres: no user id to start it under")
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Credential: &syscall.Credential{Uid: l.UID, Gid: l.GID},
		Pdeathsig:  unix.SIGKILL,
		Setsid:     true,
	}
	if l.Group != nil {
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(l.Group.Fd())
	}
	started := make(chan error, 1)
	go onThread(func() {
		err := l.enter()
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

// localProcess is the first process of a PID namespace: all others in it end
// with it.
type localProcess struct {
	cmd    *exec.Cmd
	output tail
	ended  chan struct{}
}

func (p *localProcess) Signal(_ context.Context, sig syscall.Signal) error {
	err := p.cmd.Process.Signal(sig)
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

func (p *localProcess) Kill(ctx context.Context) error {
	if err := p.Signal(ctx, unix.SIGKILL); err != nil {
		return err
	}
	_, err := p.Wait(ctx)
	return err
}

func (p *localProcess) Wait(ctx context.Context) (string, error) {
	select {
	case <-p.ended:
		return p.cmd.ProcessState.String(), nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

func (p *localProcess) Output(context.Context) string { return p.output.String() }

// tailBytes is how much of a process's output is kept.
const tailBytes = 64 << 10

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex // guards buf
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b[max(0, len(b)-tailBytes):]...)
	if len(t.buf) > 2*tailBytes {
		t.buf = append([]byte(nil), t.buf[len(t.buf)-tailBytes:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}

// exists reports whether there is anything at path.
func exists(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
