package sandbox

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// backlog is how many connections wait to be accepted.
const backlog = 1024

// Listen implements Runtime: the socket is made in the network namespace of
// the guest, by a thread of this process that enters it for the moment.
func (n *Native) Listen(_ context.Context, s Spec, port int) (net.Listener, error) {
	if err := checkPort(port); err != nil {
		return nil, err
	}
	guest, err := n.openGuest(s.Environment)
	if err != nil {
		return nil, fmt.Errorf("listen in environment: %w", err)
	}
	defer unix.Close(guest)
	l, err := listenBeside(guest, port)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, mayfly.Errorf(mayfly.Conflict, "listen in environment %s: a process inside holds port %d: %w", s.Environment, port, err)
	}
	if err != nil {
		return nil, fmt.Errorf("listen in environment: %w", err)
	}
	return n.listeners.keep(s.Environment, l), nil
}

func checkPort(port int) error {
	if port < 1 || port > 65535 {
		return mayfly.Errorf(mayfly.Invalid, "no such port: %d", port)
	}
	return nil
}

// openGuest opens the guest, which may be of a server before this one: the
// process of the environment's control groups that is the first in a pid
// namespace right below this process's own. Commands can make pid namespaces
// only further below.
func (n *Native) openGuest(env string) (pidfd int, err error) {
	pids, err := n.cgroups.Processes(env)
	if err != nil {
		return -1, err
	}
	for _, pid := range pids {
		if !isFirst(pid) {
			continue
		}
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended
		}
		// Until it was open, its number could become another's.
		now, err := n.cgroups.Processes(env)
		if err == nil && slices.Contains(now, pid) && isFirst(pid) && !ended(fd) {
			return fd, nil
		}
		unix.Close(fd)
	}
	return -1, mayfly.Errorf(mayfly.NotFound, "environment %s does not run", env)
}

// isFirst reads the process's number in each pid namespace from ours inwards,
// see proc_pid_status(5).
func isFirst(pid int) bool {
	status, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(status), "\nNSpid:")
	line, _, _ := strings.Cut(after, "\n")
	numbers := strings.Fields(line)
	return len(numbers) == 2 && numbers[1] == "1"
}

// listenBeside listens on the loopback device of a process's network
// namespace.
func listenBeside(pidfd, port int) (l net.Listener, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// The first thread cannot be thrown away.
			l, err = listenBeside(pidfd, port)
			runtime.UnlockOSThread()
			return
		}
		var back bool
		l, back, err = visit(pidfd, func() (net.Listener, error) { return listenLoopback(port) })
		if back {
			runtime.UnlockOSThread() // otherwise the thread ends here
		}
	}()
	<-done
	return l, err
}

// visit calls f in the network namespace of a process and reports whether the
// calling thread is back in its own.
func visit(pidfd int, f func() (net.Listener, error)) (l net.Listener, back bool, err error) {
	const own = "/proc/thread-self/ns/net"
	home, err := unix.Open(own, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, true, fmt.Errorf("open network namespace: %w", err)
	}
	defer unix.Close(home)
	var here, there unix.Stat_t
	if err := unix.Fstat(home, &here); err != nil {
		return nil, true, fmt.Errorf("look at network namespace: %w", err)
	}
	if err := unix.Setns(pidfd, unix.CLONE_NEWNET); err != nil {
		return nil, true, fmt.Errorf("enter network namespace: %w", err)
	}
	if err = unix.Stat(own, &there); err != nil {
		err = fmt.Errorf("look at network namespace: %w", err)
	} else if there.Dev == here.Dev && there.Ino == here.Ino {
		err = errors.New("the environment has no network namespace of its own")
	} else {
		l, err = f()
	}
	return l, unix.Setns(home, unix.CLONE_NEWNET) == nil, err
}

// listenLoopback listens at 127.0.0.1, also when connections that a listener
// before it had accepted linger.
func listenLoopback(port int) (net.Listener, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "listener")
	defer f.Close() // of which the listener has a copy
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, err
	}
	if err := unix.Listen(fd, backlog); err != nil {
		return nil, err
	}
	return net.FileListener(f)
}
