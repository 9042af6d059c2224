package main

import (
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/guest/record"
	"mayfly.dev/mayfly/internal/guest/wire"
	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// warden looks after the commands of an environment.
type warden struct {
	uid, gid uint32
	env      []string // of every command
	dir      int      // of logs and exit records
	kills    int      // counts processes killed for memory
	oom      int      // own oom_score_adj
	calm     []byte   // what it was at the start
	forks    chan func()

	mu    sync.Mutex // guards what follows, and forking against reaping
	alive *sync.Cond // signalled when there is a child to wait for
	runs  map[string]*run
	pids  map[int]*run
	ports map[uint16]*port
}

func newWarden(c boot.Config, fds []int, oom int) *warden {
	w := &warden{
		uid: c.UID, gid: c.GID, env: c.Env,
		dir: fds[boot.RunsFD], kills: fds[boot.KillsFD], oom: oom,
		forks: make(chan func()),
		runs:  map[string]*run{},
		pids:  map[int]*run{},
		ports: map[uint16]*port{},
	}
	w.calm = make([]byte, 16)
	if n, err := unix.Pread(oom, w.calm, 0); err == nil && n > 0 {
		w.calm = w.calm[:n]
	} else {
		w.calm = []byte("0")
	}
	w.alive = sync.NewCond(&w.mu)
	return w
}

// fork executes what has to happen on the main thread. It never returns.
func (w *warden) fork() {
	for f := range w.forks {
		f()
	}
}

// onMain executes f on the main thread and returns when it has.
func (w *warden) onMain(f func()) {
	done := make(chan struct{})
	w.forks <- func() {
		f()
		close(done)
	}
	<-done
}

// accept serves connections, each in a goroutine of its own.
func (w *warden) accept(listener int) {
	l := os.NewFile(uintptr(listener), "listener")
	raw, err := l.SyscallConn()
	if err != nil {
		panic(err)
	}
	for {
		conn := -1
		err := raw.Read(func(fd uintptr) bool {
			conn, _, err = unix.Accept4(int(fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
			return err != unix.EAGAIN
		})
		if err != nil || conn < 0 {
			time.Sleep(time.Millisecond) // out of descriptors, or the like
			continue
		}
		go w.serve(os.NewFile(uintptr(conn), "conn"))
	}
}

// serve answers one request.
func (w *warden) serve(conn *os.File) {
	defer conn.Close()
	if _, err := conn.Write([]byte{wire.Hello}); err != nil {
		return
	}
	r, err := wire.ReadRequest(conn)
	if err == wire.ErrMalformed {
		reply(conn, wire.Invalid, "malformed request")
	}
	if err != nil {
		return
	}
	switch r.Op {
	case wire.OpStart:
		w.start(conn, r)
	case wire.OpWait:
		w.wait(conn, r.Run)
	case wire.OpSignal:
		w.signal(conn, r.Run, unix.Signal(r.Signal))
	case wire.OpAttach:
		w.attach(conn, r.Run)
	case wire.OpListen:
		w.listenAt(conn, r.Port)
	case wire.OpAccept:
		w.acceptAt(conn, r.Port)
	case wire.OpProbe:
		w.probe(conn, r.Port)
	case wire.OpClear:
		w.clear(conn, r.UID)
	case wire.OpKill:
		kill(r.UID)
		reply(conn, wire.OK, "")
	}
}

func reply(conn *os.File, s wire.Status, text string) {
	conn.Write(wire.AppendReply(nil, s, []byte(text)))
}

// start starts a run, unless it was started before, by this guest or by one
// before it: the run's directory is the claim.
func (w *warden) start(conn *os.File, q wire.Request) {
	if bad := invalid(q); bad != "" {
		reply(conn, wire.Invalid, bad)
		return
	}
	w.mu.Lock()
	r, known := w.runs[q.Run]
	if !known {
		r = newRun(q.Run)
		w.runs[q.Run] = r
	}
	w.mu.Unlock()
	if known {
		<-r.started
	} else {
		w.begin(r, q)
	}
	if r.refused != nil {
		reply(conn, wire.Failed, r.refused.Error())
		return
	}
	reply(conn, wire.OK, "")
}

// invalid says what is wrong with a request to start.
func invalid(q wire.Request) string {
	if len(q.Argv) == 0 || q.Argv[0] == "" {
		return "no command"
	}
	if q.Dir != "" && q.Dir[0] != '/' {
		return "the working directory is not absolute"
	}
	for _, list := range [][]string{q.Argv, q.Env, {q.Dir}} {
		for _, s := range list {
			if strings.IndexByte(s, 0) >= 0 {
				return "an argument or a variable holds a NUL"
			}
		}
	}
	for _, e := range q.Env {
		if strings.IndexByte(e, '=') <= 0 {
			return "a variable is not of the form NAME=value"
		}
	}
	return ""
}

// known returns a run of this guest's.
func (w *warden) known(id string) *run {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.runs[id]
}

// recorded opens the directory of a run that is over or of another guest's.
func (w *warden) recorded(id string) (*os.File, error) {
	fd, err := unix.Openat(w.dir, id, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), id), nil
}

// wait answers with the exit record when there is one.
func (w *warden) wait(conn *os.File, id string) {
	if r := w.known(id); r != nil {
		if !r.await(conn) {
			return
		}
		reply(conn, wire.OK, string(r.exit.AppendJSON(nil)))
		return
	}
	dir, err := w.recorded(id)
	if err != nil {
		reply(conn, wire.NotFound, "")
		return
	}
	defer dir.Close()
	b, err := record.ReadExit(dir)
	if err != nil {
		reply(conn, wire.NotFound, "")
		return
	}
	reply(conn, wire.OK, string(b))
}

// signal signals a run that has not ended. Signal 0 asks whether there is one.
func (w *warden) signal(conn *os.File, id string, sig unix.Signal) {
	if sig < 0 || sig > 64 {
		reply(conn, wire.Invalid, "no such signal")
		return
	}
	if r := w.known(id); r != nil {
		<-r.started
		w.send(r, sig)
		reply(conn, wire.OK, "")
		return
	}
	dir, err := w.recorded(id)
	if err == nil {
		dir.Close()
	}
	if err != nil || sig == 0 {
		reply(conn, wire.NotFound, "")
		return
	}
	reply(conn, wire.OK, "")
}
