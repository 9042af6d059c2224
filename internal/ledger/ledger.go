// Package ledger is the append-only journal of events: the one place where
// facts are kept, and the source of everything that reports on them.
package ledger

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"mayfly.dev/mayfly"
)

// maxLine bounds one encoded event, in bytes.
const maxLine = 1 << 20

// Ledger appends events to segment files of JSON lines, each named after the
// Seq of its first event. It is safe for concurrent use by one process; the
// caller holds a lock that keeps other processes out.
type Ledger struct {
	dir          string
	segmentBytes int64

	mu       sync.Mutex // guards what follows
	file     *os.File   // the last segment
	size     int64      // of file, whole events only
	seq      uint64     // of the last event
	segments []uint64   // first Seq of each segment, ascending
	changed  chan struct{}
	broken   error // set when a write failed half-way and could not be undone
}

// Open opens the ledger in dir and makes it when there is none. A last line
// that a crash cut short was never acknowledged and is removed; any other
// damage is an error.
func Open(dir string) (*Ledger, error) {
	l := &Ledger{dir: dir, segmentBytes: 64 << 20, changed: make(chan struct{})}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.jsonl"))
	if err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	for _, name := range names {
		first, err := strconv.ParseUint(strings.TrimSuffix(filepath.Base(name), ".jsonl"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("open ledger: %s is not a segment", name)
		}
		l.segments = append(l.segments, first)
	}
	slices.Sort(l.segments)
	if len(l.segments) == 0 {
		return l, l.addSegment(1)
	}
	if err := l.openLast(); err != nil {
		return nil, fmt.Errorf("open ledger: %w", err)
	}
	return l, nil
}

func (l *Ledger) segmentPath(first uint64) string {
	return filepath.Join(l.dir, fmt.Sprintf("%020d.jsonl", first))
}

// addSegment starts a new file for events from seq first on.
func (l *Ledger) addSegment(first uint64) error {
	f, err := os.OpenFile(l.segmentPath(first), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("add segment: %w", err)
	}
	if err := syncDir(l.dir); err != nil {
		return errors.Join(fmt.Errorf("add segment: %w", err), f.Close())
	}
	if l.file != nil {
		l.file.Close() // every write to it was synced
	}
	l.file, l.size, l.seq = f, 0, first-1
	l.segments = append(l.segments, first)
	return nil
}

// openLast opens the last segment, checks it and cuts off an unfinished line.
func (l *Ledger) openLast() error {
	first := l.segments[len(l.segments)-1]
	f, err := os.OpenFile(l.segmentPath(first), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	l.seq = first - 1
	err = scan(f, func(e mayfly.Event, length int64) error {
		if e.Seq != l.seq+1 {
			return fmt.Errorf("%s: event %d follows event %d", f.Name(), e.Seq, l.seq)
		}
		l.seq, l.size = e.Seq, l.size+length
		return nil
	})
	if err == nil {
		err = f.Truncate(l.size)
	}
	if err != nil {
		f.Close()
		return err
	}
	l.file = f
	return nil
}

// scan calls yield for each whole line of r with the line's length in bytes.
// An unfinished last line is left out.
func scan(r io.Reader, yield func(e mayfly.Event, length int64) error) error {
	br := bufio.NewReaderSize(r, 256<<10)
	for {
		line, err := readLine(br)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		var e mayfly.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("damaged event: %w", err)
		}
		if err := yield(e, int64(len(line))); err != nil {
			return err
		}
	}
}

// readLine returns the next line with its newline, and io.EOF when there is
// no whole one.
func readLine(br *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := br.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			return line, nil
		}
		if err != bufio.ErrBufferFull {
			return nil, err
		}
		if len(line) > maxLine {
			return nil, fmt.Errorf("damaged event: longer than %d bytes", maxLine)
		}
	}
}

// Last returns the Seq of the last event, 0 when there is none.
func (l *Ledger) Last() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// Append writes events in order and returns when they are on disk. It numbers
// them: Seq is set in place. Either all of them are appended or, with an
// error, none.
func (l *Ledger) Append(ctx context.Context, events ...mayfly.Event) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(events) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.broken != nil {
		return fmt.Errorf("append to ledger: %w", l.broken)
	}
	if l.size >= l.segmentBytes {
		if err := l.addSegment(l.seq + 1); err != nil {
			return fmt.Errorf("append to ledger: %w", err)
		}
	}
	var buf bytes.Buffer
	for i := range events {
		events[i].Seq = l.seq + 1 + uint64(i)
		line, err := json.Marshal(events[i])
		if err != nil {
			return fmt.Errorf("append to ledger: event %s: %w", events[i].ID, err)
		}
		if len(line) >= maxLine {
			return fmt.Errorf("append to ledger: event %s: longer than %d bytes", events[i].ID, maxLine)
		}
		buf.Write(line)
		buf.WriteByte('\n')
	}
	_, err := l.file.WriteAt(buf.Bytes(), l.size)
	if err == nil {
		err = l.file.Sync()
	}
	if err != nil {
		if undo := l.file.Truncate(l.size); undo != nil {
			l.broken = errors.Join(err, undo)
		}
		return fmt.Errorf("append to ledger: %w", err)
	}
	l.size += int64(buf.Len())
	l.seq += uint64(len(events))
	close(l.changed)
	l.changed = make(chan struct{})
	return nil
}

// Read calls yield for each event with Seq > after in order. At the end it
// returns nil or, with follow, waits for more until ctx ends. An error of
// yield ends it and is returned.
func (l *Ledger) Read(ctx context.Context, after uint64, follow bool, yield func(mayfly.Event) error) error {
	for {
		l.mu.Lock()
		last, changed := l.seq, l.changed
		segments := slices.Clone(l.segments)
		l.mu.Unlock()
		if after < last {
			i, found := slices.BinarySearch(segments, after+1)
			if !found {
				i--
			}
			for ; i < len(segments) && segments[i] <= last; i++ {
				if err := l.readSegment(ctx, segments[i], &after, last, yield); err != nil {
					return err
				}
			}
		}
		if !follow {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// errEnough ends a scan that has yielded the last event asked for.
var errEnough = errors.New("enough")

func (l *Ledger) readSegment(ctx context.Context, first uint64, after *uint64, last uint64, yield func(mayfly.Event) error) error {
	f, err := os.Open(l.segmentPath(first))
	if err != nil {
		return fmt.Errorf("read ledger: %w", err)
	}
	defer f.Close()
	err = scan(f, func(e mayfly.Event, _ int64) error {
		if e.Seq <= *after {
			return nil
		}
		if e.Seq > last {
			return errEnough
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		*after = e.Seq
		return yield(e)
	})
	if err == errEnough {
		return nil
	}
	return err
}

// Tail calls yield for events from the last one backwards until it returns
// false.
func (l *Ledger) Tail(yield func(mayfly.Event) bool) error {
	l.mu.Lock()
	segments := slices.Clone(l.segments)
	last := l.seq
	l.mu.Unlock()
	for _, first := range slices.Backward(segments) {
		var events []mayfly.Event
		after := first - 1
		err := l.readSegment(context.Background(), first, &after, last, func(e mayfly.Event) error {
			events = append(events, e)
			return nil
		})
		if err != nil {
			return err
		}
		for _, e := range slices.Backward(events) {
			if !yield(e) {
				return nil
			}
		}
	}
	return nil
}

// Close closes the ledger; followers end when their contexts do.
func (l *Ledger) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.broken = os.ErrClosed
	return l.file.Close()
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}
