package main

import (
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/guest/wire"
)

// probe answers whether a process accepts connections at a port of the
// loopback device.
func (w *warden) probe(conn *os.File, port uint16) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		reply(conn, wire.Failed, err.Error())
		return
	}
	defer unix.Close(fd)
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(port), Addr: [4]byte{127, 0, 0, 1}})
	if err == unix.EINPROGRESS {
		err = connected(fd)
	}
	if err != nil {
		reply(conn, wire.OK, "")
		return
	}
	reply(conn, wire.Taken, "")
}

// probeTimeout is how long a connection to a port may take.
const probeTimeout = 500 * time.Millisecond

// connected waits for the outcome of a connection that is being made.
func connected(fd int) error {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(fds, int(probeTimeout.Milliseconds())); n != 1 || err != nil {
		return unix.ETIMEDOUT
	}
	errno, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err == nil && errno != 0 {
		err = unix.Errno(errno)
	}
	return err
}

// clearTimeout bounds how long the processes of a user may take to end.
const clearTimeout = 10 * time.Second

// kill kills what runs as a user. A signal to everybody reaches those whom the
// sender may signal: it is sent with that user's id and none of the guest's
// powers. Its real user is nobody's: those who are about to be started are the
// guest's own still.
func kill(uid uint32) {
	as(wire.LastUID+1, uid, uid, func() { unix.Kill(-1, unix.SIGKILL) })
}

// clear kills what runs as a user until nothing does.
func (w *warden) clear(conn *os.File, uid uint32) {
	for deadline := time.Now().Add(clearTimeout); ; time.Sleep(time.Millisecond) {
		kill(uid)
		if !anyOf(uid) {
			reply(conn, wire.OK, "")
			return
		}
		if time.Now().After(deadline) {
			reply(conn, wire.Failed, "processes do not end")
			return
		}
	}
}

// anyOf reports whether there is a process of a user, which no process can
// hide in its status.
func anyOf(uid uint32) bool {
	d, err := os.Open("/proc")
	if err != nil {
		return true
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return true
	}
	line := "\nUid:\t" + strconv.FormatUint(uint64(uid), 10) + "\t"
	for _, name := range names {
		if name[0] < '1' || name[0] > '9' {
			continue
		}
		if b, err := os.ReadFile("/proc/" + name + "/status"); err == nil && strings.Contains(string(b), line) {
			return true
		}
	}
	return false
}
