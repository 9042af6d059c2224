package main

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/guest/wire"
)

// follower is an attachment that wants to know of output.
type follower struct {
	wake chan struct{} // holds one token when there is news
}

// wake tells every follower that more is recorded. It never blocks.
func (r *run) wake() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for f := range r.followers {
		select {
		case f.wake <- struct{}{}:
		default:
		}
	}
}

func (r *run) follow() *follower {
	f := &follower{wake: make(chan struct{}, 1)}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.followers[f] = struct{}{}
	return f
}

func (r *run) unfollow(f *follower) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.followers, f)
}

// attach serves an attachment until the run ends or the other side goes away.
func (w *warden) attach(conn *os.File, id string) {
	r := w.known(id)
	if r == nil {
		dir, err := w.recorded(id)
		if err != nil {
			reply(conn, wire.NotFound, "")
			return
		}
		dir.Close()
		reply(conn, wire.OK, "")
		conn.Write([]byte{wire.Ended})
		return
	}
	<-r.started
	f := r.follow()
	defer r.unfollow(f)
	reply(conn, wire.OK, "")
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		w.listen(conn, r)
	}()
	for {
		b := wire.Wake
		select {
		case <-f.wake:
		case <-r.ended:
			b = wire.Ended
		case <-gone:
			return
		}
		if _, err := conn.Write([]byte{b}); err != nil || b == wire.Ended {
			return
		}
	}
}

// inputs is how many pieces of input wait for a process that does not read;
// only then do signals that come after them wait, too.
const inputs = 16

// listen carries out an attachment's messages.
func (w *warden) listen(conn *os.File, r *run) {
	queue := make(chan []byte, inputs)
	defer close(queue)
	go r.feed(queue)
	for {
		kind, payload, err := wire.ReadMessage(conn)
		if err != nil {
			return
		}
		switch {
		case kind == wire.Input && len(payload) > 0:
			queue <- payload
		case kind == wire.CloseInput:
			queue <- nil
		case kind == wire.Resize && len(payload) == 4:
			r.resize(binary.LittleEndian.Uint16(payload), binary.LittleEndian.Uint16(payload[2:]))
		case kind == wire.Signal && len(payload) == 4:
			if sig := unix.Signal(binary.LittleEndian.Uint32(payload)); sig >= 1 && sig <= 64 {
				w.send(r, sig)
			}
		}
	}
}

// feed writes to the run's standard input; nil closes it.
func (r *run) feed(queue <-chan []byte) {
	for b := range queue {
		if b == nil {
			r.closeInput(true)
			continue
		}
		r.inputMu.Lock()
		f := r.input
		r.inputMu.Unlock()
		if f != nil {
			f.Write(b)
		}
	}
}
