// Package record is what a guest leaves on disk of a run: its output in
// segments of frames, and an exit record.
//
//	runs/<run>/00000000.log   the first segment, always kept
//	runs/<run>/0000002a.log   …the last ones; those between are dropped
//	runs/<run>/exit.json
//
// A segment is a header and frames; a frame is a header and a payload, all
// little-endian:
//
//	segment: "mayflog1", u64 number, u64 payload bytes in all segments before
//	frame:   u8 stream, 3 zero bytes, u32 length, i64 unix nanoseconds, payload
//
// The writer runs inside the environment and is trusted by nobody: readers
// bound every size, follow no links and open regular files only.
package record

import (
	"encoding/binary"
	"errors"
)

// Sizes of the format.
const (
	MaxPayload    = 64 << 10
	frameHeader   = 16
	segmentHeader = 24
	maxFrame      = frameHeader + MaxPayload
)

const magic = "mayflog1"

// Streams a frame can belong to; the values are those of mayfly.Stream.
const (
	Stdout byte = 1
	Stderr byte = 2
	Notice byte = 3
)

// ErrCorrupt says that a log does not keep to the format.
var ErrCorrupt = errors.New("corrupt log")

// Frame is one piece of output.
type Frame struct {
	Stream byte
	Time   int64 // unix nanoseconds
	Data   []byte
}

// AppendFrame appends a frame of at most MaxPayload bytes of data.
func AppendFrame(b []byte, f Frame) []byte {
	b = append(b, f.Stream, 0, 0, 0)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.Data)))
	b = binary.LittleEndian.AppendUint64(b, uint64(f.Time))
	return append(b, f.Data...)
}

// ParseFrame takes the first frame off b, without copying. n is the number of
// bytes that it takes, 0 when b holds only a part of it.
func ParseFrame(b []byte) (f Frame, n int, err error) {
	if len(b) < frameHeader {
		return Frame{}, 0, nil
	}
	size := binary.LittleEndian.Uint32(b[4:])
	if b[0] < Stdout || b[0] > Notice || b[1]|b[2]|b[3] != 0 || size > MaxPayload {
		return Frame{}, 0, ErrCorrupt
	}
	n = frameHeader + int(size)
	if len(b) < n {
		return Frame{}, 0, nil
	}
	return Frame{Stream: b[0], Time: int64(binary.LittleEndian.Uint64(b[8:])), Data: b[frameHeader:n]}, n, nil
}

// appendSegmentHeader appends the header of the given segment.
func appendSegmentHeader(b []byte, number, before uint64) []byte {
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint64(b, number)
	return binary.LittleEndian.AppendUint64(b, before)
}

// parseSegmentHeader returns the number of payload bytes before the segment.
func parseSegmentHeader(b []byte, number uint64) (before uint64, err error) {
	if len(b) < segmentHeader || string(b[:8]) != magic || binary.LittleEndian.Uint64(b[8:]) != number {
		return 0, ErrCorrupt
	}
	return binary.LittleEndian.Uint64(b[16:]), nil
}

// segmentName is the file name of a segment.
func segmentName(number uint64) string {
	const digits = "0123456789abcdef"
	var b [8]byte
	for i := range b {
		b[len(b)-1-i] = digits[number>>(4*i)&15]
	}
	return string(b[:]) + ".log"
}

// segmentNumber is the inverse of segmentName.
func segmentNumber(name string) (number uint64, ok bool) {
	if len(name) != 12 || name[8:] != ".log" {
		return 0, false
	}
	for i := range 8 {
		c := name[i]
		switch {
		case c >= '0' && c <= '9':
			number = number<<4 | uint64(c-'0')
		case c >= 'a' && c <= 'f':
			number = number<<4 | uint64(c-'a'+10)
		default:
			return 0, false
		}
	}
	return number, true
}
