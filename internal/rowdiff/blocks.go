package rowdiff

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sync/errgroup"

	"mayfly.dev/mayfly"
)

// blocks finds the pages of a table that may hold rows that differ.
type blocks struct {
	d      *Diff
	clones bool // of one instance
	files  bool // both directories are at hand
	log    *commitLog
}

func (d *Diff) newBlocks(ctx context.Context) (*blocks, error) {
	b := &blocks{d: d, clones: d.from.system == d.to.system && d.from.blockSize == d.to.blockSize && d.from.segment == d.to.segment}
	b.files = b.clones && d.from.dir != nil && d.to.dir != nil
	if !b.files {
		return b, nil
	}
	if err := both(ctx, d, (*side).checkpoint); err != nil {
		return nil, err
	}
	var err error
	b.log, err = readCommitLog(d.from.dir, d.to.dir, d.from.blockSize, uint32(min(d.from.nextXID, d.to.nextXID)))
	return b, err
}

// checkpoint brings what the transaction sees into the files, and makes sure
// that these are the files of this instance: its control file names the
// checkpoint. Others may checkpoint the instance at any time, too.
func (s *side) checkpoint(ctx context.Context) error {
	var before, want, after uint64
	for range 3 {
		err := s.query(ctx, "CHECKPOINT", nil)
		if err == nil {
			before, err = controlCheckpoint(s.dir)
		}
		if err == nil {
			err = s.query(ctx, "SELECT checkpoint_lsn - '0/0' FROM pg_control_checkpoint()", func(v [][]byte) (err error) {
				want, err = strconv.ParseUint(string(v[0]), 10, 64)
				return err
			})
		}
		if err == nil {
			after, err = controlCheckpoint(s.dir)
		}
		if err != nil || want == before || want == after {
			return err
		}
	}
	return mayfly.Errorf(mayfly.Invalid, "the directory %s is not that of the connected instance: its checkpoint is at %X, not %X",
		printable(s.dir.Name(), 200), after, want)
}

// controlCheckpoint reads the position of the last checkpoint, which is at
// offset 32 of ControlFileData in every version since 9.6.
func controlCheckpoint(dir *os.Root) (uint64, error) {
	f, err := openData(dir, "global/pg_control")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var b [40]byte
	if _, err := io.ReadFull(f, b[:]); err != nil {
		return 0, fmt.Errorf("read pg_control: %w", err)
	}
	return binary.NativeEndian.Uint64(b[32:]), nil
}

// openData opens a regular file of a data directory, wherever its owner made
// the name point.
func openData(dir *os.Root, name string) (*os.File, error) {
	f, err := dir.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	return f, nil
}

// changed returns the ranges of blocks that may differ. Nil means all of
// them, on both sides; empty means none.
func (b *blocks) changed(ctx context.Context, t *Table) ([]span, error) {
	if t.from == nil || t.to == nil || !b.clones || t.from.oid != t.to.oid || path.Base(t.from.file) != path.Base(t.to.file) || !t.sameShape() {
		return nil, nil
	}
	if b.files && !t.from.unlogged && !t.to.unlogged { // CHECKPOINT leaves those in memory
		spans, err := b.compareFiles(ctx, [2]string{t.from.file, t.to.file})
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errEscape) {
			return spans, err
		}
	}
	return b.compareRows(ctx, t)
}

// errEscape is a file that is reached by a link, such as one in a tablespace:
// the directory does not tell where it lies.
var errEscape = errors.New("not in the data directory")

// compareFiles compares the segments of a table's file.
func (b *blocks) compareFiles(ctx context.Context, names [2]string) ([]span, error) {
	if !strings.HasPrefix(names[0], "base/") || !strings.HasPrefix(names[1], "base/") {
		return nil, errEscape
	}
	out := []span{}
	for n := 0; ; n++ {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		segment := names
		if n > 0 {
			segment[0] += "." + strconv.Itoa(n)
			segment[1] += "." + strconv.Itoa(n)
		}
		spans, more, err := b.compareSegment(segment)
		if err != nil {
			return nil, err
		}
		first := tid(n*b.d.from.segment) << 16
		for _, s := range spans {
			out = appendSpan(out, span{first + s.begin, first + s.end})
		}
		if !more {
			return out, nil
		}
	}
}

// compareSegment reports more unless the segment is missing on both sides.
func (b *blocks) compareSegment(names [2]string) (spans []span, more bool, err error) {
	var files [2]*os.File
	for i, s := range b.d.sides() {
		f, err := openData(s.dir, names[i])
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, false, err
		}
		if f != nil {
			defer f.Close()
			more = true
		}
		files[i] = f
	}
	if !more {
		return nil, false, nil
	}
	var suspect func([]byte) bool
	if len(b.log.disputed) > 0 {
		suspect = func(page []byte) bool { return hasDisputed(page, b.log.disputed) }
	}
	spans, err = b.log.compareFiles(files[0], files[1], b.d.from.blockSize, suspect)
	return spans, true, err
}

// compareFiles finds the blocks that differ or that suspect finds fault with.
// A nil file is an empty one.
func (l *commitLog) compareFiles(a, b *os.File, blockSize int, suspect func([]byte) bool) ([]span, error) {
	sizes := [2]int64{}
	for i, f := range []*os.File{a, b} {
		if f == nil {
			continue
		}
		info, err := f.Stat()
		if err != nil {
			return nil, err
		}
		sizes[i] = info.Size() / int64(blockSize)
	}
	common := min(sizes[0], sizes[1])
	spans := []span{}
	if common > 0 {
		todo := []extent{{0, common * int64(blockSize)}}
		if suspect == nil {
			todo = unshared(a, b, common*int64(blockSize), int64(blockSize))
		}
		for _, e := range todo {
			found, err := l.compareRange(a, b, e, blockSize, suspect)
			if err != nil {
				return nil, err
			}
			for _, s := range found {
				spans = appendSpan(spans, s)
			}
		}
	}
	if longer := max(sizes[0], sizes[1]); longer > common {
		spans = appendSpan(spans, blockSpan(uint32(common), uint32(longer)))
	}
	return spans, nil
}

// compareRange reads a range of both files, each half of it in a goroutine of
// its own when it is long.
func (l *commitLog) compareRange(a, b *os.File, e extent, blockSize int, suspect func([]byte) bool) ([]span, error) {
	const long = 16 << 20
	if e.end-e.begin < long {
		return l.comparePages(a, b, e, blockSize, suspect)
	}
	middle := (e.begin + e.end) / 2 / int64(blockSize) * int64(blockSize)
	var halves [2][]span
	var g errgroup.Group
	for i, half := range []extent{{e.begin, middle}, {middle, e.end}} {
		g.Go(func() (err error) {
			halves[i], err = l.comparePages(a, b, half, blockSize, suspect)
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	for _, s := range halves[1] {
		halves[0] = appendSpan(halves[0], s)
	}
	return halves[0], nil
}

func (l *commitLog) comparePages(a, b *os.File, e extent, blockSize int, suspect func([]byte) bool) ([]span, error) {
	chunk := min(int64(256<<10/blockSize*blockSize), e.end-e.begin)
	x, y := make([]byte, chunk), make([]byte, chunk)
	var spans []span
	for at := e.begin; at < e.end; {
		n := min(chunk, e.end-at)
		for _, r := range []struct {
			f *os.File
			b []byte
		}{{a, x[:n]}, {b, y[:n]}} {
			if _, err := io.ReadFull(io.NewSectionReader(r.f, at, n), r.b); err != nil {
				return nil, fmt.Errorf("read %s: %w", r.f.Name(), err)
			}
		}
		if suspect != nil || !bytes.Equal(x[:n], y[:n]) {
			for i := 0; i < int(n); i += blockSize {
				old, now := x[i:i+blockSize], y[i:i+blockSize]
				block := uint32((at + int64(i)) / int64(blockSize))
				if suspect != nil && (suspect(old) || suspect(now)) {
					spans = appendSpan(spans, blockSpan(block, block+1))
				} else if !bytes.Equal(old, now) {
					spans = l.tupleSpans(spans, old, now, block)
				}
			}
		}
		at += n
	}
	return spans, nil
}

// appendSpan joins a span with the last one where they meet.
func appendSpan(spans []span, s span) []span {
	if n := len(spans); n > 0 && spans[n-1].end >= s.begin {
		spans[n-1].end = max(spans[n-1].end, s.end)
		return spans
	}
	return append(spans, s)
}

// compareRows finds the changed blocks over the connections: both sides send
// the digests of their rows in the order in which they lie.
func (b *blocks) compareRows(ctx context.Context, t *Table) ([]span, error) {
	g, ctx := errgroup.WithContext(ctx)
	var rows [2]chan []found
	for i, s := range b.d.sides() {
		rows[i] = make(chan []found, 4)
		g.Go(func() error {
			defer close(rows[i])
			return scan(ctx, s, t, i == 0, nil, func(batch []found) error {
				select {
				case rows[i] <- batch:
					return nil
				case <-ctx.Done():
					return ctx.Err()
				}
			})
		})
	}
	spans := []span{}
	g.Go(func() error {
		spans = mismatches(rows[0], rows[1])
		return nil
	})
	err := g.Wait()
	return spans, err
}

// mismatches merges two lists of rows that are in the order of their places.
func mismatches(olds, news <-chan []found) []span {
	spans := []span{}
	differ := func(f found) { spans = appendSpan(spans, span{f.at, f.at + 1}) }
	var a, b []found
	for {
		a, b = fill(a, olds), fill(b, news)
		switch {
		case len(a) == 0 && len(b) == 0:
			return spans
		case len(b) == 0 || len(a) > 0 && a[0].at < b[0].at:
			differ(a[0])
			a = a[1:]
		case len(a) == 0 || b[0].at < a[0].at:
			differ(b[0])
			b = b[1:]
		default:
			if a[0] != b[0] {
				differ(a[0])
			}
			a, b = a[1:], b[1:]
		}
	}
}

func fill(rows []found, from <-chan []found) []found {
	if len(rows) == 0 {
		rows = <-from
	}
	return rows
}
