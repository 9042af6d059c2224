package main

import (
	"errors"
	"os"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/guest/record"
	"mayfly.dev/mayfly/internal/guest/wire"
)

// grace is how long the end of a run waits for output of processes that it
// leaves behind.
const grace = 100 * time.Millisecond

// pipeBytes is the most that a pipe or a terminal can hold.
const pipeBytes = 1 << 20

// disk has a place for each goroutine that may wait for the disk. Each keeps a
// thread, and a runtime that may not make the thread it needs, because the
// commands use up all tasks, ends the guest.
var disk = make(chan struct{}, 8)

func onDisk(f func()) {
	disk <- struct{}{}
	defer func() { <-disk }()
	f()
}

// run is a command and what remains of it.
type run struct {
	id      string
	started chan struct{} // closed when the command is started, or cannot be
	dead    chan struct{} // closed when its command is reaped
	ended   chan struct{} // closed when its end is recorded
	refused error         // why nothing could be recorded of it; set before started

	// Set before started, constant from then on.
	pid     int
	tty     *os.File   // master of its terminal
	outputs []*os.File // what it writes arrives here
	readers sync.WaitGroup
	log     *record.Log
	dir     int
	begun   int64
	killed  int64 // processes killed for memory before it began

	exit record.Exit // set before ended

	inputMu sync.Mutex
	input   *os.File // its standard input; nil when that is closed

	mu        sync.Mutex
	reaped    bool // guarded by warden.mu: its pid may mean another process
	followers map[*follower]struct{}
}

func newRun(id string) *run {
	return &run{id: id, dir: -1, started: make(chan struct{}), dead: make(chan struct{}), ended: make(chan struct{}), followers: map[*follower]struct{}{}}
}

// begin claims the run's directory and starts its command. One that cannot be
// started ends at once.
func (w *warden) begin(r *run, q wire.Request) {
	defer close(r.started)
	var claimed bool
	var err error
	onDisk(func() { claimed, err = w.claim(r, q.Output) })
	if err != nil || !claimed {
		r.refused = failed("record run", err)
		w.mu.Lock()
		delete(w.runs, r.id)
		w.mu.Unlock()
		close(r.ended)
		return
	}
	s, err := openStreams(q)
	if err == nil {
		r.begun, r.killed = time.Now().UnixNano(), kills(w.kills)
		w.onMain(func() { err = w.spawn(r, q, s) })
		s.closeTheirs()
	}
	if err != nil {
		s.closeOurs()
		code, reason := explain(q, err)
		r.exit = record.Exit{Run: r.id, Code: code, Reason: reason, Started: time.Now().UnixNano(), Ended: time.Now().UnixNano()}
		w.conclude(r)
		return
	}
	r.tty, r.input, r.outputs = s.tty, s.input, s.outputs
	for i, f := range s.outputs {
		r.readers.Go(func() { r.copy(f, s.streams[i]) })
	}
}

// claim makes the run's directory. It reports false when somebody did before.
func (w *warden) claim(r *run, output int64) (bool, error) {
	err := unix.Mkdirat(w.dir, r.id, 0o700)
	if err == unix.EEXIST {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	r.dir, err = unix.Openat(w.dir, r.id, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		r.log, err = record.NewLog(r.dir, output)
	}
	if err != nil {
		if r.dir >= 0 {
			unix.Close(r.dir)
		}
		unix.Unlinkat(w.dir, r.id, unix.AT_REMOVEDIR)
	}
	return err == nil, err
}

// copy records what arrives, until nobody can write any more or the run is
// over; what comes later is read and forgotten, so that a process left behind
// does not stand still.
func (r *run) copy(f *os.File, stream byte) {
	buf := make([]byte, 32<<10)
	for {
		n, err := f.Read(buf)
		if n > 0 {
			r.write(stream, buf[:n])
		}
		if err == nil {
			continue
		}
		if f == r.tty && errors.Is(err, unix.EIO) && r.lives() {
			// Nobody has the terminal open now. Closing it would hang up on a
			// command that is about to end, or to open it again.
			continue
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			r.rest(f, stream, buf)
			f.SetReadDeadline(time.Time{})
			go discard(f)
			return
		}
		f.Close()
		return
	}
}

// lives waits a moment for the end of the command, and reports whether it
// was there when that began.
func (r *run) lives() bool {
	select {
	case <-r.dead:
		return false
	default:
	}
	select {
	case <-r.dead:
	case <-time.After(10 * time.Millisecond):
	}
	return true
}

func (r *run) write(stream byte, b []byte) {
	onDisk(func() { r.log.Write(stream, time.Now().UnixNano(), b) })
	r.wake()
}

// rest records what was written before the run's end and not yet read: at
// most what a pipe can hold.
func (r *run) rest(f *os.File, stream byte, buf []byte) {
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	raw.Control(func(fd uintptr) {
		for left := pipeBytes; left > 0; {
			n, err := unix.Read(int(fd), buf)
			if err != nil || n == 0 {
				return
			}
			r.write(stream, buf[:n])
			left -= n
		}
	})
}

// discard reads f to its end. The log must not grow after the run.
func discard(f *os.File) {
	defer f.Close()
	buf := make([]byte, 4<<10)
	for {
		if _, err := f.Read(buf); err != nil {
			return
		}
	}
}

// reap waits for children, its own and those that lost their parents.
func (w *warden) reap() {
	for {
		var info unix.Siginfo
		err := unix.Waitid(unix.P_ALL, 0, &info, unix.WEXITED|unix.WNOWAIT, nil)
		w.mu.Lock()
		switch err {
		case nil:
			w.bury(pidOf(&info))
		case unix.ECHILD:
			if len(w.pids) == 0 {
				w.alive.Wait()
			}
		}
		w.mu.Unlock()
	}
}

// pidOf returns si_pid, the first field after the header of struct siginfo.
func pidOf(info *unix.Siginfo) int {
	return int(*(*int32)(unsafe.Add(unsafe.Pointer(info), 16)))
}

// bury takes a zombie away. The guest is locked, so that a process cannot get
// its number before the run is told.
func (w *warden) bury(pid int) {
	var status unix.WaitStatus
	var usage unix.Rusage
	if p, err := unix.Wait4(pid, &status, unix.WNOHANG, &usage); p != pid || err != nil {
		return
	}
	r := w.pids[pid]
	if r == nil {
		return
	}
	delete(w.pids, pid)
	r.reaped = true
	close(r.dead)
	r.exit = record.Exit{
		Run: r.id, Code: code(status), Started: r.begun, Ended: time.Now().UnixNano(),
		UserCPU: usage.Utime.Nano(), SystemCPU: usage.Stime.Nano(), MaxRSS: usage.Maxrss << 10,
	}
	go w.finish(r)
}

// code is the exit status as a shell reports it.
func code(s unix.WaitStatus) int {
	if s.Signaled() {
		return 128 + int(s.Signal())
	}
	return s.ExitStatus()
}

// finish waits for the last output and records the end.
func (w *warden) finish(r *run) {
	<-r.started
	deadline := time.Now().Add(grace)
	for _, f := range r.outputs {
		f.SetReadDeadline(deadline)
	}
	r.readers.Wait()
	r.closeInput(false)
	r.exit.OOM = kills(w.kills) > r.killed
	w.conclude(r)
}

// conclude records the end of a run and then tells everybody.
func (w *warden) conclude(r *run) {
	var err error
	onDisk(func() {
		r.log.Close()
		err = record.WriteExit(r.dir, r.exit)
		unix.Close(r.dir)
	})
	if err == nil {
		// The record speaks for the run from now on.
		w.mu.Lock()
		delete(w.runs, r.id)
		w.mu.Unlock()
	}
	close(r.ended)
}

// await returns true when the run has ended, false when the other side has
// gone away first.
func (r *run) await(conn *os.File) bool {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		conn.Read(make([]byte, 1))
	}()
	select {
	case <-r.ended:
		return r.refused == nil
	case <-gone:
		return false
	}
}

// ending reports whether a signal is meant for everything that a run started,
// not only for what it has in the foreground.
func ending(sig unix.Signal) bool {
	switch sig {
	case unix.SIGKILL, unix.SIGTERM, unix.SIGHUP, unix.SIGSTOP, unix.SIGCONT:
		return true
	}
	return false
}

// send sends a signal to a run's session or foreground process group, unless
// the run has ended.
func (w *warden) send(r *run, sig unix.Signal) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if r.pid == 0 || r.reaped {
		return
	}
	group := r.pid
	if r.tty != nil && !ending(sig) {
		if raw, err := r.tty.SyscallConn(); err == nil {
			raw.Control(func(fd uintptr) {
				if front, err := unix.IoctlGetInt(int(fd), unix.TIOCGPGRP); err == nil && front > 1 {
					group = front
				}
			})
		}
	}
	if ending(sig) {
		for _, pid := range session(r.pid) {
			unix.Kill(pid, sig)
		}
	}
	unix.Kill(-group, sig)
}

// closeInput ends the standard input of the run. A terminal's is ended by the
// character for it, unless the terminal goes away, too.
func (r *run) closeInput(typed bool) {
	r.inputMu.Lock()
	f := r.input
	if !typed || r.tty == nil {
		r.input = nil
	}
	r.inputMu.Unlock()
	switch {
	case f == nil:
	case r.tty == nil:
		f.Close()
	case typed:
		f.Write([]byte{eof})
	}
}

// eof is what ends the input of a terminal in its usual mode.
const eof = 4

// resize sets the size of the run's terminal.
func (r *run) resize(rows, cols uint16) {
	if r.tty == nil {
		return
	}
	if raw, err := r.tty.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols})
		})
	}
}
