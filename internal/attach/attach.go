// Package attach carries an attachment to a run over one connection, as
// frames in both directions: the protocol mayfly-attach/1.
//
// A frame is a type byte, the payload's length as a big-endian uint32, and the
// payload. The server sends output, credit, and last an end or an error; the
// client sends standard input within its credit, close, resize and signal.
// Credit keeps the server reading: however much input a process leaves
// unread, a signal still gets through.
package attach

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
)

// Protocol is the token of the HTTP Upgrade header.
const Protocol = "mayfly-attach/1"

// Window is how many bytes of standard input a client may send before the
// server has passed them on.
const Window = 256 << 10

// maxPayload bounds a frame's payload in bytes.
const maxPayload = 64 << 10

type frameType byte

const (
	frameOutput     frameType = 1  // stream byte, int64 nanoseconds since 1970, data
	frameEnd        frameType = 2  // everything was sent
	frameError      frameType = 3  // a mayfly.Error as JSON: why it stops here
	frameCredit     frameType = 4  // uint32: bytes of input that were passed on
	frameStdin      frameType = 16 // data
	frameCloseStdin frameType = 17
	frameResize     frameType = 18 // uint16 rows, uint16 columns
	frameSignal     frameType = 19 // one byte
)

type frame struct {
	typ     frameType
	payload []byte // valid until the next read
}

// readFrame reads one frame into buf, growing it as needed. At a clean end of
// the stream it returns io.EOF.
func readFrame(r io.Reader, buf []byte) (frame, []byte, error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return frame{}, buf, err
	}
	n := binary.BigEndian.Uint32(head[1:])
	if n > maxPayload {
		return frame{}, buf, fmt.Errorf("frame of %d bytes is over the limit of %d", n, maxPayload)
	}
	if int(n) > cap(buf) {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return frame{}, buf, err
	}
	return frame{frameType(head[0]), buf}, buf, nil
}

// writeFrame writes one frame whose payload consists of parts.
func writeFrame(w io.Writer, typ frameType, parts ...[]byte) error {
	n := 0
	for _, p := range parts {
		n += len(p)
	}
	b := make([]byte, 5, 5+n)
	b[0] = byte(typ)
	binary.BigEndian.PutUint32(b[1:], uint32(n))
	for _, p := range parts {
		b = append(b, p...)
	}
	_, err := w.Write(b)
	return err
}

const outputHead = 9

func writeOutput(w io.Writer, o mayfly.Output) error {
	data := o.Data
	for {
		part := data[:min(len(data), maxPayload-outputHead)]
		var head [outputHead]byte
		head[0] = byte(o.Stream)
		binary.BigEndian.PutUint64(head[1:], uint64(o.Time.UnixNano()))
		if err := writeFrame(w, frameOutput, head[:], part); err != nil {
			return err
		}
		if data = data[len(part):]; len(data) == 0 {
			return nil
		}
	}
}

func parseOutput(p []byte) (mayfly.Output, error) {
	if len(p) < outputHead {
		return mayfly.Output{}, fmt.Errorf("output frame of %d bytes", len(p))
	}
	s := mayfly.Stream(p[0])
	if s != mayfly.Stdout && s != mayfly.Stderr && s != mayfly.Notice {
		return mayfly.Output{}, fmt.Errorf("output of unknown stream %d", s)
	}
	return mayfly.Output{
		Stream: s,
		Time:   time.Unix(0, int64(binary.BigEndian.Uint64(p[1:]))).UTC(),
		Data:   append([]byte(nil), p[outputHead:]...),
	}, nil
}

func parseCredit(p []byte) (int, error) {
	if len(p) != 4 {
		return 0, fmt.Errorf("credit frame of %d bytes", len(p))
	}
	n := binary.BigEndian.Uint32(p)
	if n > Window {
		return 0, fmt.Errorf("credit of %d bytes is over the window of %d", n, Window)
	}
	return int(n), nil
}

func parseResize(p []byte) (rows, cols uint16, err error) {
	if len(p) != 4 {
		return 0, 0, fmt.Errorf("resize frame of %d bytes", len(p))
	}
	return binary.BigEndian.Uint16(p), binary.BigEndian.Uint16(p[2:]), nil
}

// maxSignal is the highest real-time signal of Linux; see signal(7).
const maxSignal = 64

func parseSignal(p []byte) (syscall.Signal, error) {
	if len(p) != 1 || p[0] < 1 || p[0] > maxSignal {
		return 0, fmt.Errorf("bad signal frame % x", p)
	}
	return syscall.Signal(p[0]), nil
}

func parseError(p []byte) error {
	var e mayfly.Error
	if err := json.Unmarshal(p, &e); err != nil || e.Kind == "" {
		return mayfly.Errorf(mayfly.Internal, "the server sent a bad error frame")
	}
	return &e
}
