package diff

import (
	"bytes"
	"cmp"
	"context"
	"hash/maphash"
	"io"
	"slices"

	"mayfly.dev/mayfly"
)

// Bounds of the search for renames with changes. Beyond them, only files that
// kept their base name are looked at, and then none.
const (
	minSimilarity  = 50       // percent
	maxRenamePairs = 200_000  // compared with each other
	maxRenameFile  = 1 << 20  // bytes
	maxRenameBytes = 64 << 20 // read in all
)

// findRenames turns pairs of a removed and an added file with the same or
// similar content into renames. Links are none of them: a patch does not repeat
// the mode of what it renames, and git apply then does not see that a link
// makes room for a directory.
func (d *Diff) findRenames(ctx context.Context) error {
	var removed, added []*change
	for _, c := range d.changes {
		switch {
		case c.kind == mayfly.Removed && c.old.isRegular() && c.old.size > 0:
			removed = append(removed, c)
		case c.kind == mayfly.Added && c.new.isRegular() && c.new.size > 0:
			added = append(added, c)
		}
	}
	if len(removed) == 0 || len(added) == 0 {
		return nil
	}
	gone := map[*change]bool{}
	if err := d.exactRenames(ctx, removed, added, gone); err != nil {
		return err
	}
	left := func(c *change) bool { return gone[c] || c.from != "" || c.kind == mayfly.Renamed }
	removed, added = slices.DeleteFunc(removed, left), slices.DeleteFunc(added, left)
	if err := d.similarRenames(ctx, removed, added, gone); err != nil {
		return err
	}
	d.changes = slices.DeleteFunc(d.changes, func(c *change) bool { return gone[c] })
	return nil
}

// rename makes the added change a rename and marks the removed one.
func rename(removed, added *change, similarity int, gone map[*change]bool) {
	gone[removed] = true
	added.kind, added.from, added.old = mayfly.Renamed, removed.path, removed.old
	added.similarity, added.same = similarity, similarity == 100
}

type contentKey struct {
	size int64
	id   string
}

// exactRenames pairs files of the same content. Only files whose size occurs
// on both sides are read.
func (d *Diff) exactRenames(ctx context.Context, removed, added []*change, gone map[*change]bool) error {
	sizes := map[contentKey]bool{}
	for _, c := range added {
		sizes[contentKey{size: c.new.size}] = true
	}
	byContent := map[contentKey][]*change{}
	wanted := map[contentKey]bool{}
	for _, c := range removed {
		k := contentKey{size: c.old.size}
		if !sizes[k] {
			continue
		}
		wanted[k] = true
		var err error
		if k.id, err = d.from.id("sha256", c.path, c.old); err != nil {
			return err
		}
		byContent[k] = append(byContent[k], c)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	for _, c := range added {
		k := contentKey{size: c.new.size}
		if !wanted[k] {
			continue
		}
		var err error
		if k.id, err = d.to.id("sha256", c.path, c.new); err != nil {
			return err
		}
		if r := takeBest(byContent, k, base(c.path)); r != nil {
			rename(r, c, 100, gone)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// takeBest removes and returns a candidate, one of the given base name if
// there is one near.
func takeBest(m map[contentKey][]*change, k contentKey, name string) *change {
	const near = 64 // a thousand equal files need not be searched for each other
	list := m[k]
	if len(list) == 0 {
		return nil
	}
	i := slices.IndexFunc(list[:min(near, len(list))], func(c *change) bool { return base(c.path) == name })
	i = max(i, 0)
	c := list[i]
	list[i] = list[0]
	m[k] = list[1:]
	return c
}

// similarRenames pairs files of which at least minSimilarity percent is the
// same, the most similar first.
func (d *Diff) similarRenames(ctx context.Context, removed, added []*change, gone map[*change]bool) error {
	fit := func(n *node) bool { return n.size <= maxRenameFile }
	removed = slices.DeleteFunc(removed, func(c *change) bool { return !fit(c.old) })
	added = slices.DeleteFunc(added, func(c *change) bool { return !fit(c.new) })
	pairs := candidatePairs(removed, added)
	s := &similarities{d: d, seed: maphash.MakeSeed(), prints: map[*change]fingerprint{}}
	var good []pair
	for _, p := range pairs {
		if err := ctx.Err(); err != nil {
			return err
		}
		score, err := s.score(p)
		if err != nil {
			return err
		}
		if score >= minSimilarity {
			p.score = min(score, 99) // equal files have been paired before
			good = append(good, p)
		}
	}
	slices.SortStableFunc(good, func(a, b pair) int {
		return cmp.Or(b.score-a.score, sameBase(b)-sameBase(a), cmp.Compare(a.removed.path, b.removed.path),
			cmp.Compare(a.added.path, b.added.path))
	})
	for _, p := range good {
		if !gone[p.removed] && p.added.from == "" {
			rename(p.removed, p.added, p.score, gone)
		}
	}
	return nil
}

type pair struct {
	removed, added *change
	score          int
}

func sameBase(p pair) int {
	if base(p.removed.path) == base(p.added.path) {
		return 1
	}
	return 0
}

// candidatePairs lists the pairs whose sizes allow enough similarity: all of
// them, or those with the same base name when there would be too many.
func candidatePairs(removed, added []*change) []pair {
	var pairs []pair
	consider := func(r, a *change) {
		small, large := min(r.old.size, a.new.size), max(r.old.size, a.new.size)
		if small*100 >= large*minSimilarity && len(pairs) < maxRenamePairs {
			pairs = append(pairs, pair{removed: r, added: a})
		}
	}
	if len(removed)*len(added) <= maxRenamePairs {
		for _, r := range removed {
			for _, a := range added {
				consider(r, a)
			}
		}
		return pairs
	}
	byBase := map[string][]*change{}
	for _, r := range removed {
		byBase[base(r.path)] = append(byBase[base(r.path)], r)
	}
	for _, a := range added {
		const near = 16
		same := byBase[base(a.path)]
		for _, r := range same[:min(near, len(same))] {
			consider(r, a)
		}
	}
	return pairs
}

// fingerprint is a sorted multiset of chunks with the bytes that each covers.
type fingerprint []chunk

type chunk struct {
	hash  uint64
	bytes int64
}

// similarities computes scores and keeps fingerprints. The seed of the hash is
// random, so that nobody can make files that merely seem similar.
type similarities struct {
	d      *Diff
	seed   maphash.Seed
	prints map[*change]fingerprint
	read   int64
}

// score is how much of the larger file is in the smaller one, in percent.
func (s *similarities) score(p pair) (int, error) {
	a, err := s.print(s.d.from, p.removed, p.removed.old)
	if err != nil {
		return 0, err
	}
	b, err := s.print(s.d.to, p.added, p.added.new)
	if err != nil {
		return 0, err
	}
	common := int64(0)
	for i, j := 0, 0; i < len(a) && j < len(b); {
		switch {
		case a[i].hash < b[j].hash:
			i++
		case a[i].hash > b[j].hash:
			j++
		default:
			common += min(a[i].bytes, b[j].bytes)
			i, j = i+1, j+1
		}
	}
	return int(common * 100 / max(p.removed.old.size, p.added.new.size)), nil
}

// print makes the fingerprint of a file: of its lines, cut after 64 bytes.
func (s *similarities) print(t *tree, c *change, n *node) (fingerprint, error) {
	if f, ok := s.prints[c]; ok {
		return f, nil
	}
	if s.read += n.size; s.read > maxRenameBytes {
		s.prints[c] = nil
		return nil, nil
	}
	f, err := t.open(c.path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRenameFile))
	if err != nil {
		return nil, err
	}
	covered := map[uint64]int64{}
	for len(b) > 0 {
		k := min(len(b), 64)
		if i := bytes.IndexByte(b[:k], '\n'); i >= 0 {
			k = i + 1
		}
		covered[maphash.Bytes(s.seed, b[:k])] += int64(k)
		b = b[k:]
	}
	p := make(fingerprint, 0, len(covered))
	for h, k := range covered {
		p = append(p, chunk{h, k})
	}
	slices.SortFunc(p, func(a, b chunk) int { return cmp.Compare(a.hash, b.hash) })
	s.prints[c] = p
	return p, nil
}
