// The runtime would read the control groups of the guest to choose how many
// threads to use, and hold their files open.
//
//go:debug containermaxprocs=0
//go:debug updatemaxprocs=0

// Mayfly-guest is the first process of an environment. It attaches the mounts
// that it is handed, gives up its powers, and then starts and looks after the
// environment's commands on request; see packages boot and wire for its two
// sockets, and package record for what it writes.
//
// Executed as mayfly-launcher, it starts guests for a server.
//
// Its start is on the path of every environment's creation: it imports little.
package main

import (
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// The main goroutine keeps the first thread: commands descend from it alone,
// because what they inherit (Landlock's domain, the cgroup namespace, the
// bounding set) belongs to a thread. The runtime makes its other threads from
// one that it keeps clean.
func init() { runtime.LockOSThread() }

func main() {
	// Executed by descriptor, it is named after the descriptor's number.
	if name, err := unix.BytePtrFromString(os.Args[0]); err == nil {
		unix.Prctl(unix.PR_SET_NAME, uintptr(unsafe.Pointer(name)), 0, 0, 0)
	}
	if os.Args[0] == boot.LauncherName {
		launcher()
		return
	}
	if len(os.Args) > 1 && os.Args[1] == boot.GVisor {
		underGVisor()
	}
	unix.CloseOnExec(boot.SocketFD)
	w, listener, err := start()
	if err != nil {
		answer(append([]byte{boot.Failed}, err.Error()...))
		os.Exit(1)
	}
	answer([]byte{boot.Ready})
	// What stops all threads comes after the answer, and still before the
	// first request is heard.
	if err := keep(unix.CAP_SETUID, unix.CAP_SETGID, unix.CAP_KILL); err != nil {
		panic(err)
	}
	runtime.GOMAXPROCS(2) // one was faster to start with; disks may block the other
	go w.reap()
	go w.accept(listener)
	w.fork()
}

// start makes the environment and returns the guest that serves it, and where
// requests arrive. What needs nothing of the server's comes first: the server
// makes that meanwhile.
func start() (w *warden, listener int, err error) {
	unix.Umask(0o022)
	c, err := config()
	if err != nil {
		return nil, -1, err
	}
	t, err := prepare(c)
	if err != nil {
		return nil, -1, err
	}
	fds, err := descriptors(boot.FirstBind + len(c.Binds))
	if err != nil {
		return nil, -1, err
	}
	if err := t.enter(c, fds); err != nil {
		return nil, -1, err
	}
	oom, err := unix.Open("/proc/self/oom_score_adj", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, -1, failed("open oom_score_adj", err)
	}
	if err := confine(c); err != nil {
		return nil, -1, err
	}
	return newWarden(c, fds, oom), fds[boot.ListenerFD], nil
}

// answer ends the boot conversation.
func answer(b []byte) {
	unix.Write(boot.SocketFD, b)
	unix.Close(boot.SocketFD)
}

// config reads the config. A server that ends before it has sent everything
// takes the guest with it.
func config() (boot.Config, error) {
	head, err := readFull(4)
	if err != nil {
		return boot.Config{}, err
	}
	size := int(uint32(head[0]) | uint32(head[1])<<8 | uint32(head[2])<<16 | uint32(head[3])<<24)
	if size > boot.MaxConfig {
		return boot.Config{}, boot.ErrMalformed
	}
	body, err := readFull(size)
	if err != nil {
		return boot.Config{}, err
	}
	return boot.Parse(body)
}

func readFull(n int) ([]byte, error) {
	b := make([]byte, n)
	for done := 0; done < n; {
		m, err := unix.Read(boot.SocketFD, b[done:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, failed("receive config", err)
		}
		if m == 0 {
			os.Exit(0)
		}
		done += m
	}
	return b, nil
}

// descriptors receives the mounts.
func descriptors(want int) ([]int, error) {
	for {
		message, fds, err := receive(boot.SocketFD, 1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, failed("receive mounts", err)
		}
		if len(message) == 0 {
			os.Exit(0)
		}
		if message[0] != boot.Mounts || len(fds) != want {
			return nil, boot.ErrMalformed
		}
		return fds, nil
	}
}

// receive receives a message of at most size bytes and its descriptors.
func receive(socket, size int) ([]byte, []int, error) {
	b := make([]byte, size)
	rights := make([]byte, unix.CmsgSpace(4*253))
	n, rn, _, _, err := unix.Recvmsg(socket, b, rights, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, nil, err
	}
	var fds []int
	messages, err := unix.ParseSocketControlMessage(rights[:rn])
	if err != nil {
		return nil, nil, err
	}
	for i := range messages {
		more, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, nil, err
		}
		fds = append(fds, more...)
	}
	return b[:n], fds, nil
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
