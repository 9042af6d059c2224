// Mayfly-guest is the first process of an environment. It attaches the mounts
// that it is handed, gives up its powers, and then starts and looks after the
// environment's commands on request; see packages boot and wire for its two
// sockets, and package record for what it writes.
//
// Its start is on the path of every environment's creation: it imports little.
package main

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// The main goroutine keeps the first thread: commands descend from it alone,
// because what they inherit (Landlock's domain, the cgroup namespace, the
// bounding set) belongs to a thread. The runtime makes its other threads from
// one that it keeps clean.
func init() { runtime.LockOSThread() }

func main() {
	unix.CloseOnExec(boot.SocketFD)
	unix.CloseOnExec(boot.ListenerFD)
	w, err := start()
	if err != nil {
		answer(append([]byte{boot.Failed}, err.Error()...))
		os.Exit(1)
	}
	runtime.GOMAXPROCS(2) // one was faster to start with; disks may block the other
	go w.reap()
	go w.accept(boot.ListenerFD)
	answer([]byte{boot.Ready})
	w.fork()
}

// start makes the environment and returns the guest that serves it.
func start() (*warden, error) {
	unix.Umask(0o022)
	t, err := prepare()
	if err != nil {
		return nil, err
	}
	c, fds, err := instructions()
	if err != nil {
		return nil, err
	}
	if err := t.enter(c, fds); err != nil {
		return nil, err
	}
	oom, err := unix.Open("/proc/self/oom_score_adj", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, failed("open oom_score_adj", err)
	}
	if err := confine(c); err != nil {
		return nil, err
	}
	return newWarden(c, fds, oom), nil
}

// answer ends the boot conversation.
func answer(b []byte) {
	unix.Write(boot.SocketFD, b)
	unix.Close(boot.SocketFD)
}

// instructions receives the config and the descriptors. A server that ends
// before it has sent them takes the guest with it.
func instructions() (boot.Config, []int, error) {
	buf := make([]byte, 64<<10)
	rights := make([]byte, unix.CmsgSpace(4*(boot.FirstBind+boot.MaxBinds)))
	n, rn, _, _, err := unix.Recvmsg(boot.SocketFD, buf, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return boot.Config{}, nil, failed("receive instructions", err)
	}
	if n == 0 {
		os.Exit(0)
	}
	var fds []int
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil {
		return boot.Config{}, nil, failed("receive descriptors", err)
	}
	for i := range messages {
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return boot.Config{}, nil, failed("receive descriptors", err)
		}
		fds = append(fds, more...)
	}
	c, err := config(buf[:n])
	if err == nil && len(fds) != boot.FirstBind+len(c.Binds) {
		err = boot.ErrMalformed
	}
	return c, fds, err
}

// config reads the rest of the config after its first bytes.
func config(b []byte) (boot.Config, error) {
	for {
		if len(b) >= 4 {
			size := int(uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24)
			if size > boot.MaxConfig {
				return boot.Config{}, boot.ErrMalformed
			}
			if len(b) >= 4+size {
				return boot.Parse(b[4 : 4+size])
			}
		}
		more := make([]byte, 64<<10)
		n, err := unix.Read(boot.SocketFD, more)
		if err != nil {
			return boot.Config{}, failed("receive instructions", err)
		}
		if n == 0 {
			return boot.Config{}, boot.ErrMalformed
		}
		b = append(b, more[:n]...)
	}
}

// stepError says what failed; it spares the guest package fmt.
type stepError struct {
	step string
	err  error
}

func (e *stepError) Error() string { return e.step + ": " + e.err.Error() }
func (e *stepError) Unwrap() error { return e.err }

// failed wraps an error with the step that it occurred in; nil stays nil.
func failed(step string, err error) error {
	if err == nil {
		return nil
	}
	return &stepError{step, err}
}
