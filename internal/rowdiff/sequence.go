package rowdiff

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// SequenceChange is a sequence that stands elsewhere, or exists on one side
// alone.
type SequenceChange struct {
	Schema, Name string
	Old, New     *Sequence // nil where it does not exist
}

// Sequence is where a sequence stands. After a crash, and so in a clone of a
// running instance, it may be up to 32 values ahead of what was handed out.
type Sequence struct {
	Last   int64 `json:"last"`
	Called bool  `json:"called"` // Last has been handed out
}

// readSequences reads many sequences in one query.
func (s *side) readSequences(ctx context.Context) (map[name]Sequence, error) {
	byOID := map[uint32]name{}
	var parts []string
	for n, o := range s.sequences {
		byOID[o] = n
		parts = append(parts, fmt.Sprintf("SELECT %d, last_value, is_called FROM %s", o, n.sql()))
	}
	out := map[name]Sequence{}
	for chunk := range slices.Chunk(parts, 200) {
		err := s.query(ctx, strings.Join(chunk, " UNION ALL "), func(v [][]byte) error {
			last, err := strconv.ParseInt(string(v[1]), 10, 64)
			out[byOID[oid(v[0])]] = Sequence{last, v[2][0] == 't'}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (d *Diff) compareSequences(ctx context.Context) error {
	var at [2]map[name]Sequence
	for i, s := range d.sides() {
		var err error
		if at[i], err = s.readSequences(ctx); err != nil {
			return err
		}
	}
	d.from.at, d.to.at = at[0], at[1]
	for n, old := range at[0] {
		c := SequenceChange{Schema: n.schema, Name: n.table, Old: &old}
		if now, ok := at[1][n]; ok {
			c.New = &now
		}
		if c.New == nil || *c.New != old {
			d.Sequences = append(d.Sequences, c)
		}
	}
	for n, now := range at[1] {
		if _, ok := at[0][n]; !ok {
			d.Sequences = append(d.Sequences, SequenceChange{Schema: n.schema, Name: n.table, New: &now})
		}
	}
	slices.SortFunc(d.Sequences, func(a, b SequenceChange) int {
		return compareNames(name{a.Schema, a.Name}, name{b.Schema, b.Name})
	})
	return nil
}
