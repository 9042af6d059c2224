package attach

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"mayfly.dev/mayfly"
)

// lastWords is how long the server tries to tell a client why it stops.
const lastWords = time.Second

// Serve connects a to the client at the other end of conn, whose first bytes
// are in r, until the run's output ends, the client leaves, or ctx ends. It
// closes both. What explain makes of an error is what the client is told.
func Serve(ctx context.Context, conn net.Conn, r *bufio.Reader, a mayfly.Attachment, explain func(error) *mayfly.Error) {
	s := &session{conn: conn, attachment: a}
	s.input.changed.L = &s.input.mu
	var wg sync.WaitGroup
	var broken error // of the client's frames; read after wg.Wait or after Recv fails
	clientGone := make(chan struct{})
	// Closing the attachment is what wakes a Recv or a Write that waits.
	stop := context.AfterFunc(ctx, func() {
		conn.SetWriteDeadline(time.Now().Add(lastWords))
		a.Close()
	})
	wg.Go(func() {
		broken = s.readFrames(r)
		close(clientGone)
		s.input.abandon()
		a.Close()
	})
	wg.Go(s.passInput)

	err := s.sendOutput()
	conn.SetWriteDeadline(time.Now().Add(lastWords))
	select {
	case <-clientGone:
		if broken != nil {
			s.sendError(mayfly.Errorf(mayfly.Invalid, "bad attachment stream: %w", broken))
		}
	default:
		switch {
		case err == nil:
			s.send(frameEnd)
		case ctx.Err() != nil:
			s.sendError(explain(context.Cause(ctx)))
		default:
			s.sendError(explain(err))
		}
	}
	stop()
	conn.Close()
	a.Close()
	wg.Wait()
}

type session struct {
	conn       net.Conn
	attachment mayfly.Attachment
	mu         sync.Mutex // one writer on conn at a time
	input      inputQueue
}

func (s *session) send(typ frameType, parts ...[]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return writeFrame(s.conn, typ, parts...)
}

func (s *session) sendError(e *mayfly.Error) {
	b, err := json.Marshal(e)
	if err != nil || len(b) > maxPayload {
		b = []byte(`{"kind":"internal","message":"internal error"}`)
	}
	s.send(frameError, b)
}

func (s *session) sendOutput() error {
	for {
		o, err := s.attachment.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		s.mu.Lock()
		err = writeOutput(s.conn, o)
		s.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

// readFrames obeys the client until it leaves, and returns what was wrong
// with a frame.
func (s *session) readFrames(r io.Reader) error {
	var f frame
	var buf []byte
	var err error
	for {
		if f, buf, err = readFrame(r, buf); err != nil {
			var oe *net.OpError
			if err == io.EOF || err == io.ErrUnexpectedEOF || errors.As(err, &oe) {
				return nil
			}
			return err
		}
		if err = s.obey(f); err != nil {
			return err
		}
	}
}

// obey does what a frame asks for. That the run is over by now is not an
// error: its end is on the way to the client.
func (s *session) obey(f frame) error {
	switch f.typ {
	case frameStdin:
		return s.input.push(f.payload)
	case frameCloseStdin:
		s.input.close()
	case frameResize:
		rows, cols, err := parseResize(f.payload)
		if err != nil {
			return err
		}
		s.attachment.Resize(rows, cols)
	case frameSignal:
		sig, err := parseSignal(f.payload)
		if err != nil {
			return err
		}
		s.attachment.Signal(sig)
	default:
		return fmt.Errorf("unknown frame type %d", f.typ)
	}
	return nil
}

// passInput hands input to the process in its own time, and lets the client
// send as much again. A process that has closed its input loses the rest.
func (s *session) passInput() {
	closed := false
	for {
		data, ok := s.input.pop()
		if !ok {
			break
		}
		if !closed {
			_, err := s.attachment.Write(data)
			closed = err != nil
		}
		var n [4]byte
		binary.BigEndian.PutUint32(n[:], uint32(len(data)))
		if s.send(frameCredit, n[:]) != nil {
			return
		}
	}
	if s.input.complete() {
		s.attachment.CloseWrite()
	}
}

// inputQueue holds at most a window of input.
type inputQueue struct {
	mu      sync.Mutex // guards the rest
	changed sync.Cond
	buf     bytes.Buffer
	closed  bool // the client said that this was all
	gone    bool // the client left without a word: the process may get more from another
}

func (q *inputQueue) push(data []byte) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return errors.New("input after its end")
	}
	if q.buf.Len()+len(data) > Window {
		return fmt.Errorf("input is over the window of %d bytes", Window)
	}
	q.buf.Write(data)
	q.changed.Signal()
	return nil
}

func (q *inputQueue) close() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.closed = true
	q.changed.Signal()
}

// abandon drops what is queued.
func (q *inputQueue) abandon() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gone = true
	q.changed.Signal()
}

func (q *inputQueue) complete() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.closed && q.buf.Len() == 0
}

// pop waits for input; false means that there will be no more.
func (q *inputQueue) pop() ([]byte, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for q.buf.Len() == 0 || q.gone {
		if q.closed || q.gone {
			return nil, false
		}
		q.changed.Wait()
	}
	return append([]byte(nil), q.buf.Next(32<<10)...), true
}
