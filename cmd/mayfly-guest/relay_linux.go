package main

import (
	"os"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/guest/wire"
)

// maxRelays is how many connections to one port are relayed at a time; the
// others wait to be accepted.
const maxRelays = 256

// port is one that the guest listens at for the server.
type port struct {
	listener *os.File
	free     chan struct{} // holds a token for each relay that there may be more
	server   *os.File      // the connection that it is open for
	gone     chan struct{} // closed when it is closed
}

// listenAt opens a port for as long as conn is open, or until another server
// asks for it: that the one before has ended may not have been seen yet.
func (w *warden) listenAt(conn *os.File, number uint16) {
	w.mu.Lock()
	before := w.ports[number]
	w.mu.Unlock()
	if before != nil {
		shutdown(before.server, unix.SHUT_RDWR)
		<-before.gone
	}
	fd, err := listenLoopback(number)
	if err == unix.EADDRINUSE {
		reply(conn, wire.Taken, err.Error())
		return
	}
	if err != nil {
		reply(conn, wire.Failed, err.Error())
		return
	}
	p := &port{os.NewFile(uintptr(fd), "port"), make(chan struct{}, maxRelays), conn, make(chan struct{})}
	defer close(p.gone)
	defer p.listener.Close()
	for range maxRelays {
		p.free <- struct{}{}
	}
	w.mu.Lock()
	w.ports[number] = p
	w.mu.Unlock()
	defer func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.ports, number)
	}()
	reply(conn, wire.OK, "")
	conn.Read(make([]byte, 1))
}

func listenLoopback(number uint16) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, err
	}
	err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(number), Addr: [4]byte{127, 0, 0, 1}})
	}
	if err == nil {
		err = unix.Listen(fd, 1024)
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// acceptAt relays the next connection to a port over conn.
func (w *warden) acceptAt(conn *os.File, number uint16) {
	w.mu.Lock()
	p := w.ports[number]
	w.mu.Unlock()
	if p == nil {
		reply(conn, wire.NotFound, "")
		return
	}
	<-p.free
	defer func() { p.free <- struct{}{} }()
	from, err := p.accept()
	if err != nil {
		reply(conn, wire.NotFound, "")
		return
	}
	defer from.Close()
	reply(conn, wire.OK, "")
	done := make(chan struct{})
	go func() {
		defer close(done)
		pump(conn, from)
	}()
	pump(from, conn)
	<-done
}

// accept waits for a connection until the port is closed.
func (p *port) accept() (*os.File, error) {
	raw, err := p.listener.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	var failure error
	err = raw.Read(func(listener uintptr) bool {
		fd, _, failure = unix.Accept4(int(listener), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
		return failure != unix.EAGAIN && failure != unix.ECONNABORTED
	})
	if err == nil {
		err = failure
	}
	if err != nil {
		return nil, err
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	return os.NewFile(uintptr(fd), "relayed"), nil
}

// pump copies each piece as it comes, and the end after the last. When it
// cannot be written, the other direction ends, too.
func pump(to, from *os.File) {
	b := make([]byte, 32<<10)
	for {
		n, err := from.Read(b)
		if n > 0 {
			if _, werr := to.Write(b[:n]); werr != nil {
				shutdown(to, unix.SHUT_RDWR)
				break
			}
		}
		if err != nil {
			break
		}
	}
	shutdown(to, unix.SHUT_WR)
}

func shutdown(f *os.File, how int) {
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), how) })
	}
}
