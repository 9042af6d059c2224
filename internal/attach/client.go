package attach

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"sync"
	"syscall"

	"mayfly.dev/mayfly"
)

// inputPart is how much input goes into one frame, in bytes.
const inputPart = 32 << 10

// New is the client's end of conn, whose first bytes are in r. Recv must go on
// being called for Write to make progress; otherwise all methods may be called
// at the same time.
func New(conn net.Conn, r *bufio.Reader) mayfly.Attachment {
	c := &attachment{conn: conn, r: r, credit: Window}
	c.changed.L = &c.mu
	return c
}

type attachment struct {
	conn net.Conn
	r    *bufio.Reader
	buf  []byte
	last error // what Recv returns from now on; only Recv touches it

	wmu sync.Mutex // one writer on conn at a time

	mu      sync.Mutex // guards the rest
	changed sync.Cond
	credit  int
	over    bool
}

func (c *attachment) Recv() (mayfly.Output, error) {
	for c.last == nil {
		var f frame
		if f, c.buf, c.last = readFrame(c.r, c.buf); c.last != nil {
			c.last = mayfly.Errorf(mayfly.Unavailable, "the connection to the server broke: %w", noEOF(c.last))
			break
		}
		switch f.typ {
		case frameOutput:
			o, err := parseOutput(f.payload)
			if err == nil {
				return o, nil
			}
			c.last = mayfly.Errorf(mayfly.Internal, "bad attachment stream: %w", err)
		case frameCredit:
			n, err := parseCredit(f.payload)
			if err != nil {
				c.last = mayfly.Errorf(mayfly.Internal, "bad attachment stream: %w", err)
			}
			c.addCredit(n)
		case frameEnd:
			c.last = io.EOF
		case frameError:
			c.last = parseError(f.payload)
		default:
			c.last = mayfly.Errorf(mayfly.Internal, "bad attachment stream: unknown frame type %d", f.typ)
		}
	}
	c.end()
	return mayfly.Output{}, c.last
}

// noEOF keeps a broken connection from looking like the run's end.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (c *attachment) addCredit(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.credit = min(c.credit+n, Window)
	c.changed.Broadcast()
}

func (c *attachment) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.over = true
	c.changed.Broadcast()
}

func (c *attachment) Write(p []byte) (int, error) {
	sent := 0
	for sent < len(p) {
		n, err := c.takeCredit(min(len(p)-sent, inputPart))
		if err != nil {
			return sent, err
		}
		if err := c.send(frameStdin, p[sent:sent+n]); err != nil {
			return sent, err
		}
		sent += n
	}
	return sent, nil
}

// takeCredit waits until some of n bytes may be sent and says how many.
func (c *attachment) takeCredit(n int) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.credit == 0 && !c.over {
		c.changed.Wait()
	}
	if c.over {
		return 0, io.ErrClosedPipe
	}
	n = min(n, c.credit)
	c.credit -= n
	return n, nil
}

func (c *attachment) CloseWrite() error { return c.send(frameCloseStdin) }

func (c *attachment) Resize(rows, cols uint16) error {
	var b [4]byte
	binary.BigEndian.PutUint16(b[:], rows)
	binary.BigEndian.PutUint16(b[2:], cols)
	return c.send(frameResize, b[:])
}

func (c *attachment) Signal(sig syscall.Signal) error {
	if sig < 1 || sig > maxSignal {
		return mayfly.Errorf(mayfly.Invalid, "bad signal %d", int(sig))
	}
	return c.send(frameSignal, []byte{byte(sig)})
}

func (c *attachment) send(typ frameType, parts ...[]byte) error {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	return writeFrame(c.conn, typ, parts...)
}

func (c *attachment) Close() error {
	c.end()
	return c.conn.Close()
}
