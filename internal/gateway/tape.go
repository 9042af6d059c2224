package gateway

import (
	"io"
	"sync"
	"time"

	"mayfly.dev/mayfly"
)

// tape is an answer on its way: one goroutine writes what it reads from the
// upstream, another passes it on, a chunk at a time and at its own pace. What
// is passed on stays for the recording, up to a limit; from there on the
// writer waits until its chunk was taken.
type tape struct {
	start time.Time
	now   func() time.Time
	limit int64

	mu      sync.Mutex // guards the rest
	body    []byte     // recorded
	chunks  []mayfly.Chunk
	passing []byte // behind the limit: the chunk that waits to be taken
	size    int64  // of everything
	err     error  // why there is no more; io.EOF at the end
	gone    bool   // nobody takes any more

	more  chan struct{} // there is something to take, or err is set
	taken chan struct{} // passing is free, or gone is set

	next, offset int // taken so far; the taker's own
	holds        bool
}

func newTape(start time.Time, now func() time.Time, limit int64) *tape {
	return &tape{start: start, now: now, limit: limit, more: make(chan struct{}, 1), taken: make(chan struct{}, 1)}
}

// Room for one read of an answer, in bytes. Events of streams are far smaller.
const (
	firstRoom = 8 << 10
	leastRoom = 4 << 10
)

// room returns where the next bytes can be read to: the end of the body, so
// that they need not be copied. The taker looks only at what was written.
func (t *tape) room() []byte {
	if cap(t.body)-len(t.body) < leastRoom {
		t.grow(max(2*cap(t.body), firstRoom))
	}
	return t.body[len(t.body):cap(t.body)]
}

// wrote takes p, which was read into the room, as one chunk. It is false when
// nobody takes any more.
func (t *tape) wrote(p []byte) bool {
	after := t.now().Sub(t.start)
	t.mu.Lock()
	kept := t.size == int64(len(t.body)) && t.size+int64(len(p)) <= t.limit
	t.size += int64(len(p))
	if kept {
		t.body = t.body[:len(t.body)+len(p)]
		t.chunks = append(t.chunks, mayfly.Chunk{Size: len(p), After: after})
	} else {
		t.passing = p
	}
	gone := t.gone
	t.mu.Unlock()
	signal(t.more)
	if kept || gone {
		return !gone
	}
	<-t.taken
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.gone
}

// write adds p as one chunk.
func (t *tape) write(p []byte) bool {
	if cap(t.body)-len(t.body) < len(p) {
		t.grow(max(2*cap(t.body), len(t.body)+len(p)))
	}
	n := copy(t.body[len(t.body):cap(t.body)], p)
	return t.wrote(t.body[len(t.body) : len(t.body)+n])
}

// grow moves the body. What was taken stays where it is.
func (t *tape) grow(size int) {
	grown := make([]byte, len(t.body), size)
	copy(grown, t.body)
	t.mu.Lock()
	t.body = grown
	t.mu.Unlock()
}

// end says that there is no more, and why: io.EOF when nothing is missing.
func (t *tape) end(err error) {
	t.mu.Lock()
	t.err = err
	t.mu.Unlock()
	signal(t.more)
}

// take waits for the next chunk, which is valid until the next call. At the
// end it returns what end was called with.
func (t *tape) take() ([]byte, error) {
	for {
		t.mu.Lock()
		if t.holds {
			t.holds, t.passing = false, nil
			signal(t.taken)
		}
		switch {
		case t.next < len(t.chunks):
			size := t.chunks[t.next].Size
			p := t.body[t.offset : t.offset+size]
			t.next, t.offset = t.next+1, t.offset+size
			t.mu.Unlock()
			return p, nil
		case t.passing != nil:
			t.holds = true
			p := t.passing
			t.mu.Unlock()
			return p, nil
		case t.err != nil:
			t.mu.Unlock()
			return nil, t.err
		}
		t.mu.Unlock()
		<-t.more
	}
}

// soon waits a moment for the first chunk, which then shares a packet with the
// header.
func (t *tape) soon(moment time.Duration) bool {
	if t.some() {
		return true
	}
	timer := time.NewTimer(moment)
	defer timer.Stop()
	select {
	case <-t.more:
	case <-timer.C:
	}
	return t.some()
}

// some reports whether take has something to return at once.
func (t *tape) some() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.next < len(t.chunks) || t.passing != nil || t.err != nil
}

// leave says that nobody takes any more.
func (t *tape) leave() {
	t.mu.Lock()
	t.gone = true
	t.mu.Unlock()
	signal(t.taken)
}

// recorded is what was kept, once both sides are done with the tape. whole is
// false when the limit was passed.
func (t *tape) recorded() (body []byte, chunks []mayfly.Chunk, whole bool) {
	return t.body, t.chunks, t.size == int64(len(t.body))
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// feed reads an upstream's body to its end. before sees each chunk first, and
// may change its bytes.
func (t *tape) feed(body io.Reader, before func([]byte)) {
	for {
		room := t.room()
		n, err := body.Read(room)
		if n > 0 {
			before(room[:n])
			if !t.wrote(room[:n]) {
				t.end(io.ErrClosedPipe)
				return
			}
		}
		if err != nil {
			t.end(err)
			return
		}
	}
}
