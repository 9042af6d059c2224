package attach

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// process is a run at the far end: it reads its input only when told to.
type process struct {
	out     chan mayfly.Output
	end     error
	read    chan struct{} // one write passes per value; closed: all
	done    chan struct{}
	once    sync.Once
	mu      sync.Mutex // guards the rest
	input   bytes.Buffer
	closed  bool
	signals []syscall.Signal
	rows    uint16
	cols    uint16
}

func newProcess() *process {
	return &process{out: make(chan mayfly.Output), end: io.EOF, read: make(chan struct{}), done: make(chan struct{})}
}

func (p *process) Recv() (mayfly.Output, error) {
	select {
	case o, ok := <-p.out:
		if !ok {
			return o, p.end
		}
		return o, nil
	case <-p.done:
		return mayfly.Output{}, net.ErrClosed
	}
}

func (p *process) Write(b []byte) (int, error) {
	select {
	case <-p.read:
	case <-p.done:
		return 0, net.ErrClosed
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.input.Write(b)
}

func (p *process) CloseWrite() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return nil
}

func (p *process) Resize(rows, cols uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rows, p.cols = rows, cols
	return nil
}

func (p *process) Signal(s syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.signals = append(p.signals, s)
	return nil
}

func (p *process) Close() error {
	p.once.Do(func() { close(p.done) })
	return nil
}

func (p *process) eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for range 500 {
		p.mu.Lock()
		ok := cond()
		p.mu.Unlock()
		if ok {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s did not happen within 5 s", what)
}

func explain(err error) *mayfly.Error {
	var e *mayfly.Error
	if errors.As(err, &e) {
		return e
	}
	return mayfly.Errorf(mayfly.Internal, "internal error")
}

// connect serves p and returns the client's end of it.
func connect(t *testing.T, ctx context.Context, p mayfly.Attachment) (mayfly.Attachment, net.Conn) {
	t.Helper()
	server, client := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		Serve(ctx, server, bufio.NewReader(server), p, explain)
	}()
	t.Cleanup(func() {
		client.Close()
		select {
		case <-done:
		case <-time.After(5 * time.Second):
			t.Error("Serve still runs 5 s after the client left")
		}
	})
	return New(client, bufio.NewReader(client)), client
}

func TestOutputArrivesInOrderWithItsTimeAndEnds(t *testing.T) {
	p := newProcess()
	a, _ := connect(t, t.Context(), p)
	big := bytes.Repeat([]byte("0123456789abcdef"), 10<<10) // over one frame
	at := time.Unix(1700000000, 123456789).UTC()
	go func() {
		p.out <- mayfly.Output{Stream: mayfly.Stdout, Time: at, Data: []byte("hello\x00\xff")}
		p.out <- mayfly.Output{Stream: mayfly.Stderr, Time: at, Data: big}
		close(p.out)
	}()
	o, err := a.Recv()
	if err != nil || o.Stream != mayfly.Stdout || string(o.Data) != "hello\x00\xff" || !o.Time.Equal(at) {
		t.Fatalf("Recv = %v %q %v, %v", o.Stream, o.Data, o.Time, err)
	}
	var got []byte
	for {
		o, err := a.Recv()
		if err == io.EOF {
			break
		}
		if err != nil || o.Stream != mayfly.Stderr {
			t.Fatalf("Recv = %v, %v", o.Stream, err)
		}
		got = append(got, o.Data...)
	}
	if !bytes.Equal(got, big) {
		t.Errorf("got %d bytes, want %d", len(got), len(big))
	}
	if _, err := a.Recv(); err != io.EOF {
		t.Errorf("Recv after the end = %v, want %v", err, io.EOF)
	}
	if _, err := a.Write([]byte("x")); err == nil {
		t.Error("Write after the end succeeded")
	}
}

func TestSignalPassesInputThatNobodyReads(t *testing.T) {
	p := newProcess()
	a, _ := connect(t, t.Context(), p)
	go func() {
		for {
			if _, err := a.Recv(); err != nil {
				return
			}
		}
	}()
	wrote := make(chan int, 1)
	go func() {
		n, _ := a.Write(make([]byte, 4*Window))
		wrote <- n
	}()
	// The writer must stand still at the end of its credit, not before.
	time.Sleep(50 * time.Millisecond)
	if err := a.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := a.Resize(40, 132); err != nil {
		t.Fatal(err)
	}
	p.eventually(t, "signal and resize", func() bool {
		return len(p.signals) == 1 && p.signals[0] == syscall.SIGTERM && p.rows == 40 && p.cols == 132
	})
	select {
	case n := <-wrote:
		t.Fatalf("Write returned %d before anybody read", n)
	default:
	}
	close(p.read)
	if n := <-wrote; n != 4*Window {
		t.Errorf("Write = %d, want %d", n, 4*Window)
	}
	a.CloseWrite()
	p.eventually(t, "end of input", func() bool { return p.closed && p.input.Len() == 4*Window })
}

func TestClientThatLeavesDoesNotEndTheInput(t *testing.T) {
	p := newProcess()
	close(p.read)
	a, conn := connect(t, t.Context(), p)
	if _, err := a.Write([]byte("half")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := readFrame(conn, nil); err != nil { // credit: the input was passed on
		t.Fatal(err)
	}
	a.Close()
	<-p.done
	time.Sleep(20 * time.Millisecond)
	p.eventually(t, "input", func() bool { return p.input.String() == "half" })
	if p.closed {
		t.Error("the process saw the end of its input")
	}
}

func TestServerTellsWhyItStops(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	a, _ := connect(t, ctx, newProcess())
	cancel(mayfly.Errorf(mayfly.Unavailable, "the server is stopping"))
	_, err := a.Recv()
	if mayfly.KindOf(err) != mayfly.Unavailable || err.Error() != "the server is stopping" {
		t.Errorf("Recv = %v, want the server is stopping", err)
	}
}

func TestRunErrorReachesTheClient(t *testing.T) {
	p := newProcess()
	p.end = mayfly.Errorf(mayfly.Exhausted, "disk full").Hint("make room")
	a, _ := connect(t, t.Context(), p)
	close(p.out)
	_, err := a.Recv()
	var e *mayfly.Error
	if !errors.As(err, &e) || e.Kind != mayfly.Exhausted || e.Fix != "make room" {
		t.Errorf("Recv = %#v, want exhausted with its hint", err)
	}
}

func TestBrokenConnectionIsNotTheEndOfTheRun(t *testing.T) {
	server, client := net.Pipe()
	a := New(client, bufio.NewReader(client))
	server.Close()
	if _, err := a.Recv(); mayfly.KindOf(err) != mayfly.Unavailable || errors.Is(err, io.EOF) {
		t.Errorf("Recv = %v, want kind %v and not EOF", err, mayfly.Unavailable)
	}
}

func TestBadClientFramesAreRefused(t *testing.T) {
	for name, raw := range map[string][]byte{
		"huge":         {byte(frameStdin), 0xff, 0xff, 0xff, 0xff},
		"unknown":      {99, 0, 0, 0, 0},
		"short resize": {byte(frameResize), 0, 0, 0, 1, 7},
		"signal 0":     {byte(frameSignal), 0, 0, 0, 1, 0},
		"signal 200":   {byte(frameSignal), 0, 0, 0, 1, 200},
		"output":       {byte(frameOutput), 0, 0, 0, 0},
	} {
		t.Run(name, func(t *testing.T) {
			a, conn := connect(t, t.Context(), newProcess())
			go conn.Write(raw)
			if _, err := a.Recv(); mayfly.KindOf(err) != mayfly.Invalid {
				t.Errorf("Recv = %v, want kind %v", err, mayfly.Invalid)
			}
		})
	}
}

func TestInputOverTheWindowIsRefused(t *testing.T) {
	a, conn := connect(t, t.Context(), newProcess())
	go func() {
		part := make([]byte, maxPayload)
		for range Window/maxPayload + 2 {
			if writeFrame(conn, frameStdin, part) != nil {
				return
			}
		}
	}()
	if _, err := a.Recv(); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("Recv = %v, want kind %v", err, mayfly.Invalid)
	}
}

func FuzzServerReadsFrames(f *testing.F) {
	var good bytes.Buffer
	writeFrame(&good, frameStdin, []byte("hi"))
	writeFrame(&good, frameResize, []byte{0, 24, 0, 80})
	writeFrame(&good, frameSignal, []byte{15})
	writeFrame(&good, frameCloseStdin)
	f.Add(good.Bytes())
	f.Add([]byte{16, 0, 1, 0, 0, 1})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		p := newProcess()
		s := &session{attachment: p}
		s.input.changed.L = &s.input.mu
		s.readFrames(bytes.NewReader(raw))
		if n := s.input.buf.Len(); n > Window || n > len(raw) {
			t.Errorf("queued %d bytes of %d", n, len(raw))
		}
	})
}

func FuzzClientReadsFrames(f *testing.F) {
	var good bytes.Buffer
	writeOutput(&good, mayfly.Output{Stream: mayfly.Stdout, Data: []byte("hi")})
	writeFrame(&good, frameCredit, []byte{0, 0, 0, 2})
	writeFrame(&good, frameError, []byte(`{"kind":"timeout","message":"m"}`))
	f.Add(good.Bytes())
	f.Add([]byte{1, 0, 0, 0, 9, 1, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Add([]byte{2, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		server, client := net.Pipe()
		defer server.Close()
		a := New(client, bufio.NewReader(bytes.NewReader(raw))).(*attachment)
		for range len(raw) + 2 {
			if _, err := a.Recv(); err != nil {
				break
			}
		}
		if a.last == nil || a.credit < 0 || a.credit > Window {
			t.Errorf("after %d bytes: error %v, credit %d", len(raw), a.last, a.credit)
		}
	})
}
