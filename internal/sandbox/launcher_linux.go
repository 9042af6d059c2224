package sandbox

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// launcher is the small process that forks guests. It ends with this one.
type launcher struct {
	pid  int
	conn int
}

// ask has the launcher start a guest, and returns while that still settles; the
// next one waits for it.
func (n *Native) ask(l boot.Launch, fds []int) (*process, error) {
	n.launching.Lock()
	p, err := n.askLauncher(l, fds)
	if n.launcher == nil {
		n.launching.Unlock()
		return p, err
	}
	left := make(chan struct{})
	go func() {
		defer n.launching.Unlock()
		defer close(left)
		if n.launcher.settle() != nil {
			n.closeLauncher()
		}
	}()
	if err != nil {
		return nil, err
	}
	p.left = left
	return p, nil
}

// askLauncher replaces a launcher that is gone, once.
func (n *Native) askLauncher(l boot.Launch, fds []int) (*process, error) {
	for attempt := 0; ; attempt++ {
		if n.launcher == nil {
			started, err := n.startLauncher()
			if err != nil {
				return nil, fmt.Errorf("start launcher: %w", err)
			}
			n.launcher = started
		}
		p, err := n.launcher.launch(l, fds)
		if !errors.Is(err, errLauncher) {
			return p, err
		}
		n.closeLauncher()
		if attempt > 0 {
			return nil, err
		}
	}
}

// closeLauncher ends the launcher, if any.
func (n *Native) closeLauncher() {
	if n.launcher != nil {
		n.launcher.close()
		n.launcher = nil
	}
}

// errLauncher says that the launcher is gone or talks nonsense.
var errLauncher = errors.New("the launcher does not answer")

func (n *Native) startLauncher() (*launcher, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fds[1])
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		unix.Close(fds[0])
		return nil, err
	}
	defer null.Close()
	pid, err := syscall.ForkExec("/proc/self/fd/"+strconv.Itoa(int(n.guest.Fd())), []string{boot.LauncherName}, &syscall.ProcAttr{
		Dir:   "/",
		Env:   []string{"GOMAXPROCS=1"},
		Files: []uintptr{null.Fd(), null.Fd(), null.Fd(), uintptr(fds[1])},
		Sys:   &syscall.SysProcAttr{Setsid: true},
	})
	if err != nil {
		unix.Close(fds[0])
		return nil, err
	}
	// A launcher that hangs is replaced like one that is gone.
	patience := unix.NsecToTimeval(startTimeout.Nanoseconds())
	if err := unix.SetsockoptTimeval(fds[0], unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience); err != nil {
		(&launcher{pid: pid, conn: fds[0]}).close()
		return nil, err
	}
	return &launcher{pid: pid, conn: fds[0]}, nil
}

func (l *launcher) launch(m boot.Launch, fds []int) (*process, error) {
	if err := unix.Sendmsg(l.conn, m.Append(nil), unix.UnixRights(fds...), nil, unix.MSG_NOSIGNAL); err != nil {
		return nil, fmt.Errorf("%w: %w", errLauncher, err)
	}
	var b [boot.LaunchSize]byte
	var rights [64]byte
	n, rn, _, _, err := unix.Recvmsg(l.conn, b[:], rights[:], unix.MSG_CMSG_CLOEXEC)
	for err == unix.EINTR {
		n, rn, _, _, err = unix.Recvmsg(l.conn, b[:], rights[:], unix.MSG_CMSG_CLOEXEC)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errLauncher, err)
	}
	answer, err := boot.ParseLaunched(b[:n])
	if err != nil {
		return nil, errLauncher
	}
	if answer.Errno != 0 {
		return nil, syscall.Errno(answer.Errno)
	}
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil || len(messages) != 1 {
		return nil, errLauncher
	}
	received, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(received) != 1 {
		return nil, errLauncher
	}
	unix.SetNonblock(received[0], true) // so that the runtime waits for it
	return &process{
		pidfd: os.NewFile(uintptr(received[0]), "guest"),
		done:  make(chan struct{}),
	}, nil
}

// settle waits until the launcher has left the groups of the guest that it
// has started: it would be frozen and killed with that.
func (l *launcher) settle() error {
	var b [1]byte
	for {
		n, err := unix.Read(l.conn, b[:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return fmt.Errorf("%w: %w", errLauncher, err)
		case n != 1 || b[0] != boot.Left:
			return errLauncher
		}
		return nil
	}
}

// close ends the launcher; guests live on.
func (l *launcher) close() {
	unix.Close(l.conn)
	unix.Kill(l.pid, unix.SIGKILL)
	for {
		_, err := unix.Wait4(l.pid, nil, 0, nil)
		if err != unix.EINTR {
			return
		}
	}
}
