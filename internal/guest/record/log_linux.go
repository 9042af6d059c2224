package record

import (
	"sync"

	"golang.org/x/sys/unix"
)

// segments is how many segments a log's bytes are spread over.
const segments = 8

// Bounds of a log's size in bytes.
const (
	minLog     = 256 << 10
	defaultLog = 64 << 20
	maxLog     = 1 << 40
)

// Log writes the output of one run. Of a run that writes more than its limit,
// the first segment and the last ones remain.
type Log struct {
	dir     int // owned by the caller
	limit   int64
	segment int64 // bytes at which a segment is full

	mu      sync.Mutex // guards everything below
	fd      int        // current segment, -1 after Close
	size    int64      // of the current segment
	number  uint64     // of the current segment
	oldest  uint64     // of the segments after the first
	kept    int64      // bytes in full segments
	sizes   []int64    // of full segments from oldest on
	payload uint64     // bytes written to all segments
	buf     []byte
	err     error // the first that occurred; output is discarded from then on
}

// NewLog begins a log in the directory dir that keeps about limit bytes.
func NewLog(dir int, limit int64) (*Log, error) {
	if limit <= 0 {
		limit = defaultLog
	}
	limit = min(max(limit, minLog), maxLog)
	l := &Log{dir: dir, limit: limit, segment: limit / segments, fd: -1, oldest: 1}
	return l, l.open()
}

// open begins the current segment.
func (l *Log) open() error {
	fd, err := unix.Openat(l.dir, segmentName(l.number), unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	l.fd = fd
	l.buf = appendSegmentHeader(l.buf[:0], l.number, l.payload)
	l.size = int64(len(l.buf))
	return writeAll(fd, l.buf)
}

// Write appends data as frames of the given stream and time. It never fails
// for the caller's sake: a run goes on when its log cannot.
func (l *Log) Write(stream byte, now int64, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for len(data) > 0 && l.fd >= 0 && l.err == nil {
		piece := data[:min(len(data), MaxPayload)]
		data = data[len(piece):]
		l.err = l.append(Frame{Stream: stream, Time: now, Data: piece})
	}
}

func (l *Log) append(f Frame) error {
	if l.size >= l.segment {
		if err := l.rotate(); err != nil {
			return err
		}
	}
	l.buf = AppendFrame(l.buf[:0], f)
	if err := writeAll(l.fd, l.buf); err != nil {
		return err
	}
	l.size += int64(len(l.buf))
	l.payload += uint64(len(f.Data))
	return nil
}

// rotate begins the next segment and drops as many as that needs. The next
// one is there before the old one goes, so that a reader always finds its way.
func (l *Log) rotate() error {
	unix.Close(l.fd)
	l.fd = -1
	l.kept += l.size
	if l.number > 0 {
		l.sizes = append(l.sizes, l.size)
	}
	l.number++
	if err := l.open(); err != nil {
		return err
	}
	for l.kept+l.segment > l.limit && len(l.sizes) > 0 {
		if err := unix.Unlinkat(l.dir, segmentName(l.oldest), 0); err != nil {
			return err
		}
		l.kept -= l.sizes[0]
		l.sizes = l.sizes[1:]
		l.oldest++
	}
	return nil
}

// Close ends the log; later writes are discarded. It returns the first error
// that occurred.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fd >= 0 {
		unix.Close(l.fd)
		l.fd = -1
	}
	return l.err
}

// writeAll writes b, however often it takes.
func writeAll(fd int, b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}
