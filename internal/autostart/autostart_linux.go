// Package autostart holds a state directory to one server, and starts that
// server when somebody needs it.
package autostart

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// Names of files in a state directory.
const (
	SocketName = "mayfly.sock"
	LogName    = "server.log"
	lockName   = "server.lock"
)

// Lock takes the state directory for the calling process until the returned
// file is closed or the process ends. When another process has it, the error
// is of kind mayfly.Conflict. It is an open file description lock, see
// fcntl(2), because that can be asked after without being taken.
func Lock(stateDir string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(stateDir, lockName), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the state directory: %w", err)
	}
	if err := take(f); err != nil {
		f.Close()
		if isTaken(err) {
			return nil, mayfly.Errorf(mayfly.Conflict, "another server runs on %s", stateDir).
				Hint("use it as it is, stop it, or choose another directory with --state")
		}
		return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return f, nil
}

// lockPatience is how long a lock may outlive the server that was killed: a
// child that it had just forked holds it until it executes its program.
const lockPatience = 500 * time.Millisecond

func take(f *os.File) error {
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(5 * time.Millisecond) {
		err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
		if !isTaken(err) || time.Now().After(deadline) {
			return err
		}
	}
}

func isTaken(err error) bool { return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) }

// locked reports whether a server has the state directory.
func locked(stateDir string) bool {
	f, err := os.OpenFile(filepath.Join(stateDir, lockName), os.O_RDWR|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	l := unix.Flock_t{Type: unix.F_WRLCK}
	return unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &l) == nil && l.Type != unix.F_UNLCK
}

// Server says how to start a server.
type Server struct {
	State   string   // the state directory; made when it is missing
	Command []string // program and arguments
	Env     []string
	// Ready reports whether the server answers.
	Ready func(ctx context.Context) bool
	// Patience is how long the server may take to answer; default 15 s.
	Patience time.Duration
}

// Start starts the server in a session of its own, with its output in the
// state directory's log, and returns when it answers. When several processes
// start one at the same time, the one that gets the lock stays and all are
// content; while a server that is stopping has the lock, Start waits. The
// server must exit with the status of mayfly.Conflict when it does not get the
// lock.
func (s Server) Start(ctx context.Context) error {
	if s.Patience == 0 {
		s.Patience = 15 * time.Second
	}
	if err := os.MkdirAll(s.State, 0o755); err != nil {
		return mayfly.Errorf(mayfly.Forbidden, "make the state directory: %w", err).
			Hint("choose another with --state or MAYFLY_STATE, or use sudo")
	}
	log, err := os.OpenFile(filepath.Join(s.State, LogName), os.O_RDWR|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return mayfly.Errorf(mayfly.Forbidden, "open the server's log: %w", err)
	}
	defer log.Close()
	before, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	return s.await(ctx, log, before)
}

// await starts the server whenever nobody has the lock, until one answers.
func (s Server) await(ctx context.Context, log *os.File, before int64) error {
	deadline := time.After(s.Patience)
	var ended <-chan error // nil while none of ours runs
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) {
		if s.Ready(ctx) {
			return nil
		}
		if ended == nil && !locked(s.State) {
			var err error
			if ended, err = s.launch(log); err != nil {
				return err
			}
		}
		select {
		case err := <-ended:
			var exit *exec.ExitError
			if errors.As(err, &exit) && exit.ExitCode() == mayfly.Conflict.ExitStatus() {
				ended = nil // another one was faster: wait for that
				continue
			}
			if s.Ready(ctx) {
				return nil
			}
			return s.failure(fmt.Sprintf("the server ended at once (%s)", outcome(err)), tail(log, before))
		case <-deadline:
			return s.failure(fmt.Sprintf("the server does not answer after %v", s.Patience), tail(log, before))
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(pause):
		}
	}
}

// launch starts the program; its end comes through the channel.
func (s Server) launch(log *os.File) (<-chan error, error) {
	cmd := exec.Command(s.Command[0], s.Command[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = s.Env, "/", log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, mayfly.Errorf(mayfly.Unavailable, "start the server: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return ended, nil
}

func outcome(err error) string {
	if err == nil {
		return "exit status 0"
	}
	return err.Error()
}

func (s Server) failure(what, log string) error {
	path := filepath.Join(s.State, LogName)
	if log == "" {
		return mayfly.Errorf(mayfly.Unavailable, "%s; it wrote nothing to %s", what, path).
			Hint("see what it says in the foreground: sudo mayfly serve --state %s", s.State)
	}
	return mayfly.Errorf(mayfly.Unavailable, "%s; the end of %s:\n%s", what, path, log)
}

// Bounds of what a failure shows of the log.
const (
	tailBytes = 8 << 10
	tailLines = 10
)

// tail returns the last lines that were written to the log after an offset.
func tail(log *os.File, after int64) string {
	info, err := log.Stat()
	if err != nil {
		return ""
	}
	after = max(after, info.Size()-tailBytes)
	b, err := io.ReadAll(io.NewSectionReader(log, after, tailBytes))
	if err != nil {
		return ""
	}
	lines := strings.Split(string(bytes.TrimSpace(b)), "\n")
	lines = lines[max(0, len(lines)-tailLines):]
	for i, l := range lines {
		lines[i] = "  " + l
	}
	return strings.TrimSpace(strings.Join(lines, "\n"))
}
