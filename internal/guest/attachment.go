package guest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/guest/record"
	"mayfly.dev/mayfly/internal/guest/wire"
)

// Attach streams a run's output from its beginning and passes on input. host
// is the environment's host directory. With follow false, the attachment ends
// at what is recorded now and takes no input. The context bounds the making
// of the attachment, which owns conn from then on; when the guest goes away,
// the attachment ends after what it recorded.
func Attach(ctx context.Context, conn net.Conn, host, run string, follow bool) (mayfly.Attachment, error) {
	if _, err := request(ctx, conn, wire.Request{Op: wire.OpAttach, Run: run}); err != nil {
		conn.Close()
		return nil, fmt.Errorf("attach to run %s: %w", run, err)
	}
	if !follow {
		conn.Close()
		return OpenLog(host, run)
	}
	a, err := openLog(host, run)
	if err != nil {
		conn.Close()
		return nil, err
	}
	a.conn = conn
	a.listening.Go(a.listen)
	return a, nil
}

// OpenLog replays what is recorded of a run, also after its guest is gone.
// Input to it fails.
func OpenLog(host, run string) (mayfly.Attachment, error) {
	a, err := openLog(host, run)
	if err != nil {
		return nil, err
	}
	close(a.ended)
	return a, nil
}

// attachment reads a run's log from the host directory. The connection to the
// guest carries no output, only the news of it, so that nobody's slowness
// holds up a run.
type attachment struct {
	run       string
	conn      net.Conn      // nil for a replay
	wake      chan struct{} // holds one token when more may be recorded
	ended     chan struct{} // closed when nothing more will be
	closed    chan struct{} // closed by Close
	closing   sync.Once
	listening sync.WaitGroup

	reading sync.Mutex // guards log
	log     *record.Reader
	writing sync.Mutex // keeps messages whole
}

func openLog(host, run string) (*attachment, error) {
	if !wire.ValidRun(run) {
		return nil, mayfly.Errorf(mayfly.Invalid, "bad run id %q", run)
	}
	dir, err := record.OpenRun(host, run)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", notExist(run, err))
	}
	return &attachment{
		run:    run,
		wake:   make(chan struct{}, 1),
		ended:  make(chan struct{}),
		closed: make(chan struct{}),
		log:    record.NewReader(dir),
	}, nil
}

// listen turns the guest's bytes into wake-ups, until the run ends or the
// guest does.
func (a *attachment) listen() {
	defer close(a.ended)
	var b [64]byte
	for {
		n, err := a.conn.Read(b[:])
		if err != nil || slices.Contains(b[:n], wire.Ended) {
			return
		}
		select {
		case a.wake <- struct{}{}:
		default:
		}
	}
}

func (a *attachment) Recv() (mayfly.Output, error) {
	for {
		ended := a.hasEnded() // before reading: what is not there then will never be
		f, err := a.next()
		if err == nil {
			return mayfly.Output{Stream: mayfly.Stream(f.Stream), Time: time.Unix(0, f.Time).UTC(), Data: f.Data}, nil
		}
		if err != io.EOF {
			return mayfly.Output{}, fmt.Errorf("read log of run %s: %w", a.run, err)
		}
		if ended {
			return mayfly.Output{}, io.EOF
		}
		select {
		case <-a.wake:
		case <-a.ended:
		case <-a.closed:
			return mayfly.Output{}, net.ErrClosed
		}
	}
}

func (a *attachment) next() (record.Frame, error) {
	a.reading.Lock()
	defer a.reading.Unlock()
	select {
	case <-a.closed:
		return record.Frame{}, net.ErrClosed
	default:
	}
	f, err := a.log.Next()
	f.Data = slices.Clone(f.Data)
	return f, err
}

func (a *attachment) hasEnded() bool {
	select {
	case <-a.ended:
		return true
	default:
		return false
	}
}

func (a *attachment) Write(p []byte) (int, error) {
	for sent := 0; ; {
		piece := p[sent:min(len(p), sent+wire.MaxMessage)]
		if len(piece) == 0 {
			return sent, nil
		}
		if err := a.send(wire.Input, piece); err != nil {
			return sent, err
		}
		sent += len(piece)
	}
}

func (a *attachment) CloseWrite() error { return a.send(wire.CloseInput, nil) }

func (a *attachment) Resize(rows, cols uint16) error {
	b := binary.LittleEndian.AppendUint16(nil, rows)
	return a.send(wire.Resize, binary.LittleEndian.AppendUint16(b, cols))
}

func (a *attachment) Signal(sig syscall.Signal) error {
	return a.send(wire.Signal, binary.LittleEndian.AppendUint32(nil, uint32(sig)))
}

// send sends a message; to a run that has ended, it fails with
// io.ErrClosedPipe.
func (a *attachment) send(kind byte, payload []byte) error {
	if a.conn == nil || a.hasEnded() {
		return fmt.Errorf("run %s: %w", a.run, io.ErrClosedPipe)
	}
	a.writing.Lock()
	defer a.writing.Unlock()
	_, err := a.conn.Write(wire.AppendMessage(nil, kind, payload))
	if errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) {
		err = io.ErrClosedPipe
	}
	if err != nil {
		return fmt.Errorf("run %s: %w", a.run, err)
	}
	return nil
}

func (a *attachment) Close() error {
	var err error
	a.closing.Do(func() {
		close(a.closed)
		if a.conn != nil {
			a.conn.Close()
		}
		a.listening.Wait()
		a.reading.Lock()
		defer a.reading.Unlock()
		err = a.log.Close()
	})
	return err
}
