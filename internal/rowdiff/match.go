package rowdiff

import (
	"cmp"
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// span is a range of places, the end not included.
type span struct{ begin, end tid }

// blockSpan is a range of whole blocks.
func blockSpan(begin, end uint32) span { return span{tid(begin) << 16, tid(end) << 16} }

// sum is a SHA-256, shortened to half: still far from where two rows meet by
// chance or on purpose.
type sum [16]byte

// found is a row as the comparison sees it.
type found struct {
	at       tid
	key, row sum
}

// maxPass bounds the rows of one side that are held at a time.
var maxPass int64 = 2 << 20

// match finds the rows that differ within the ranges; nil ranges mean the
// whole table.
func (d *Diff) match(ctx context.Context, t *Table, ranges []span) ([]rowChange, error) {
	passes := int64(1)
	if ranges == nil {
		for _, r := range []*relation{t.from, t.to} {
			if r != nil {
				passes = max(passes, 1+r.rows/maxPass)
			}
		}
	} else {
		n := int64(0)
		for _, s := range ranges {
			n += int64(s.end>>16-s.begin>>16) + 1
		}
		passes = 1 + n*100/maxPass // rows of a page, roughly
	}
	passes = min(passes, 256)
	var out []rowChange
	for p := range passes {
		changes, err := d.matchPass(ctx, t, ranges, byte(p), int(passes))
		if err != nil {
			return nil, err
		}
		out = append(out, changes...)
	}
	slices.SortFunc(out, func(a, b rowChange) int {
		return cmp.Or(cmp.Compare(a.op, b.op), cmp.Compare(a.from, b.from), cmp.Compare(a.to, b.to))
	})
	return out, nil
}

// matchPass compares the rows whose key falls into one of several parts.
// Both sides are read at the same time: one fills the table of rows while the
// other one waits at its first batch.
func (d *Diff) matchPass(ctx context.Context, t *Table, ranges []span, part byte, parts int) ([]rowChange, error) {
	g, ctx := errgroup.WithContext(ctx)
	news := make(chan []found, 4)
	g.Go(func() error {
		defer close(news)
		if t.to == nil {
			return nil
		}
		return scan(ctx, d.to, t, false, ranges, func(batch []found) error {
			select {
			case news <- batch:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	})
	m := matcher{keyed: len(t.Key) > 0, old: map[sum][]found{}}
	mine := func(f found) bool { return parts == 1 || int(f.key[15])%parts == int(part) }
	g.Go(func() error {
		if t.from != nil {
			err := scan(ctx, d.from, t, true, ranges, func(batch []found) error {
				for _, f := range batch {
					if mine(f) {
						m.old[f.key] = append(m.old[f.key], f)
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
		for batch := range news {
			for _, f := range batch {
				if mine(f) {
					m.take(f)
				}
			}
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	return m.rest(), nil
}

// matcher cancels rows of the new state against those of the old one.
type matcher struct {
	keyed   bool
	old     map[sum][]found
	changes []rowChange
}

func (m *matcher) take(f found) {
	olds := m.old[f.key]
	if len(olds) == 0 {
		m.changes = append(m.changes, rowChange{op: Insert, to: f.at})
		return
	}
	o := olds[len(olds)-1]
	if len(olds) == 1 {
		delete(m.old, f.key)
	} else {
		m.old[f.key] = olds[:len(olds)-1]
	}
	if o.row != f.row {
		m.changes = append(m.changes, rowChange{op: Update, from: o.at, to: f.at})
	}
}

func (m *matcher) rest() []rowChange {
	for _, olds := range m.old {
		for _, o := range olds {
			m.changes = append(m.changes, rowChange{op: Delete, from: o.at})
		}
	}
	return m.changes
}

// batchRows is how many rows are handed on at a time, spansPerQuery how many
// ranges one query has.
const (
	batchRows     = 1024
	spansPerQuery = 2000
)

// scan reads the digests of a side's rows. Without a key the row's digest is
// its key.
func scan(ctx context.Context, s *side, t *Table, old bool, ranges []span, each func([]found) error) error {
	r := t.to
	if old {
		r = t.from
	}
	list := "ctid, " + t.digest(old)
	if len(t.Key) > 0 {
		list += ", " + t.keyDigest()
	}
	if ranges == nil {
		return scanQuery(ctx, s, fmt.Sprintf("SELECT %s FROM ONLY %s", list, r.sql()), each)
	}
	for part := range slices.Chunk(ranges, spansPerQuery) {
		sql := fmt.Sprintf(`SELECT x.* FROM unnest($1::tid[], $2::tid[]) span(a, b),
			LATERAL (SELECT %s FROM ONLY %s WHERE ctid >= span.a AND ctid < span.b OFFSET 0) x`, list, r.sql())
		begin, end := tidArrays(part)
		if err := scanQuery(ctx, s, sql, each, begin, end); err != nil {
			return err
		}
	}
	return nil
}

func tidArrays(spans []span) (begin, end string) {
	var a, b []string
	for _, s := range spans {
		a = append(a, `"`+s.begin.text()+`"`)
		b = append(b, `"`+s.end.text()+`"`)
	}
	return "{" + strings.Join(a, ",") + "}", "{" + strings.Join(b, ",") + "}"
}

func scanQuery(ctx context.Context, s *side, sql string, each func([]found) error, args ...string) error {
	batch := make([]found, 0, batchRows)
	err := s.read(ctx, sql, []int16{1}, func(v [][]byte) error {
		f, err := readFound(v)
		if err != nil {
			return err
		}
		if batch = append(batch, f); len(batch) < batchRows {
			return nil
		}
		full := batch
		batch = make([]found, 0, batchRows)
		return each(full)
	}, args...)
	if err == nil && len(batch) > 0 {
		err = each(batch)
	}
	return err
}

// readFound reads a ctid and one or two digests in binary format.
func readFound(v [][]byte) (f found, err error) {
	if len(v) < 2 || len(v[0]) != 6 || len(v[1]) != 32 || len(v) > 2 && len(v[2]) != 32 {
		return f, fmt.Errorf("unexpected answer to a comparison")
	}
	f.at = tid(binary.BigEndian.Uint32(v[0]))<<16 | tid(binary.BigEndian.Uint16(v[0][4:]))
	copy(f.row[:], v[1])
	f.key = f.row
	if len(v) > 2 {
		copy(f.key[:], v[2])
	}
	return f, nil
}
