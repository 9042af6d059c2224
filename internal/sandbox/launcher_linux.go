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

// ask has the launcher start a guest. A launcher that is gone is replaced
// once.
func (n *Native) ask(l boot.Launch, fds []int) (*process, error) {
	n.launching.Lock()
	defer n.launching.Unlock()
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
		n.launcher.close()
		n.launcher = nil
		if attempt > 0 {
			return nil, err
		}
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
