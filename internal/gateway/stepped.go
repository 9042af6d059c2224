package gateway

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"time"
)

// dialers connect to upstreams such that the chunks of HTTP/1.1 stay apart:
// net/http joins those that wait in its buffer.
func dialers(config *tls.Config) (plain, encrypted func(ctx context.Context, network, address string) (net.Conn, error)) {
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	plain = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := dialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		return newStepped(c), nil
	}
	if config = config.Clone(); config == nil {
		config = &tls.Config{}
	}
	config.NextProtos = []string{"h2", "http/1.1"}
	tlsDialer := &tls.Dialer{NetDialer: dialer, Config: config}
	encrypted = func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
		defer cancel()
		c, err := tlsDialer.DialContext(ctx, network, address)
		if err != nil {
			return nil, err
		}
		if c.(*tls.Conn).ConnectionState().NegotiatedProtocol == "h2" {
			return c, nil // net/http looks for the type
		}
		return newStepped(c), nil
	}
	return plain, encrypted
}

// stepped is a connection whose reads do not go beyond the end of an HTTP
// chunk. It only decides how much a read returns: were it wrong about where
// chunks end, the bytes would still be the same.
type stepped struct {
	net.Conn
	in    *bufio.Reader
	steps steps
}

func newStepped(c net.Conn) *stepped {
	return &stepped{Conn: c, in: bufio.NewReaderSize(c, 4<<10)}
}

func (s *stepped) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if _, err := s.in.Peek(1); err != nil {
		return 0, err
	}
	waiting, _ := s.in.Peek(min(len(p), s.in.Buffered()))
	return s.in.Read(p[:s.steps.next(waiting)])
}

// steps follows the stream of HTTP/1.1 answers.
type steps struct {
	state stepState
	left  int64 // of a chunk's data and the line end behind it
	size  int64 // of a chunk, as far as it has been read
	line  int   // bytes in the current line of a header
}

type stepState int

const (
	inHeader stepState = iota // or in anything that is not chunked
	inSize
	inExtension
	inData
)

// maxChunk is more than any chunk has, in bytes: what looks larger is none.
const maxChunk = 1 << 40

// next is how many of the waiting bytes one read returns, at least one: up to
// the end of a header, or of a chunk.
func (s *steps) next(p []byte) int {
	for i := 0; i < len(p); i++ {
		switch c := p[i]; s.state {
		case inHeader:
			if s.header(c) {
				return i + 1
			}
		case inSize, inExtension:
			s.sizeLine(c)
		case inData:
			n := min(s.left, int64(len(p)-i))
			s.left -= n
			i += int(n) - 1
			if s.left == 0 {
				s.state, s.size = inSize, 0
				return i + 1
			}
		}
	}
	return len(p)
}

// header follows lines, and reports whether an empty one ends. What comes then
// is taken for a chunk; if it has no size, it is none.
func (s *steps) header(c byte) bool {
	switch c {
	case '\r':
	case '\n':
		if s.line == 0 {
			s.state, s.size = inSize, 0
			return true
		}
		s.line = 0
	default:
		s.line++
	}
	return false
}

func (s *steps) sizeLine(c byte) {
	digit := int64(-1)
	switch {
	case c >= '0' && c <= '9':
		digit = int64(c - '0')
	case c >= 'a' && c <= 'f':
		digit = int64(c-'a') + 10
	case c >= 'A' && c <= 'F':
		digit = int64(c-'A') + 10
	}
	switch {
	case c == '\n' && s.size > 0:
		s.state, s.left = inData, s.size+2
	case c == '\n':
		s.state, s.line = inHeader, 0 // the last chunk: trailers, then the next header
	case s.state == inExtension || c == '\r':
	case c == ';' || c == ' ' || c == '\t':
		s.state = inExtension
	case digit < 0 || s.size > maxChunk:
		s.state, s.line = inHeader, 1
	default:
		s.size = s.size<<4 | digit
	}
}
