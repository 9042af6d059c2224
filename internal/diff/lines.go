package diff

import (
	"bytes"
	"slices"
	"sort"

	"github.com/aymanbagabas/go-udiff/lcs"
)

// edit replaces lines a0 to a1 of the old text by lines b0 to b1 of the new.
type edit struct{ a0, a1, b0, b1 int }

// splitLines cuts a text after each newline; only the last line may lack one.
func splitLines(b []byte) [][]byte {
	lines := make([][]byte, 0, bytes.Count(b, []byte("\n"))+1)
	for len(b) > 0 {
		n := bytes.IndexByte(b, '\n') + 1
		if n == 0 {
			n = len(b)
		}
		lines = append(lines, b[:n:n])
		b = b[n:]
	}
	return lines
}

// lineEdits finds edits, in order, that turn a into b.
//
// Lines that occur once on either side anchor the comparison, and what lies
// between anchors is compared by Myers' algorithm with a bound on the number
// of differences, after which it settles for a longer answer. Both are linear
// in the number of lines but for a sort, and are nested a fixed number of
// times, so that no input takes quadratic time.
func lineEdits(a, b [][]byte) []edit {
	d := &matcher{}
	ids := make(map[string]rune, len(a))
	d.a, d.b = intern(ids, a), intern(ids, b)
	d.seen = make([]occurrence, len(ids))
	d.region(0, len(a), 0, len(b), maxRounds)
	return join(d.edits)
}

// intern numbers lines, so that comparing two of them takes constant time.
func intern(ids map[string]rune, lines [][]byte) []rune {
	out := make([]rune, len(lines))
	for i, l := range lines {
		id, ok := ids[string(l)]
		if !ok {
			id = rune(len(ids))
			ids[string(l)] = id
		}
		out[i] = id
	}
	return out
}

// maxRounds is how often a region is divided further.
const maxRounds = 6

type matcher struct {
	a, b  []rune
	seen  []occurrence // by line, zero between uses
	edits []edit
}

// occurrence counts a line within a region.
type occurrence struct{ inA, inB, atA, atB int32 }

// region compares a[a0:a1] with b[b0:b1].
func (d *matcher) region(a0, a1, b0, b1, rounds int) {
	for a0 < a1 && b0 < b1 && d.a[a0] == d.b[b0] {
		a0, b0 = a0+1, b0+1
	}
	for a0 < a1 && b0 < b1 && d.a[a1-1] == d.b[b1-1] {
		a1, b1 = a1-1, b1-1
	}
	if a0 == a1 && b0 == b1 {
		return
	}
	if a0 == a1 || b0 == b1 || rounds == 0 {
		d.edits = append(d.edits, edit{a0, a1, b0, b1})
		return
	}
	if anchors := d.anchors(a0, a1, b0, b1); len(anchors) > 0 {
		for _, at := range anchors {
			d.region(a0, int(at.atA), b0, int(at.atB), rounds-1)
			a0, b0 = int(at.atA)+1, int(at.atB)+1
		}
		d.region(a0, a1, b0, b1, rounds-1)
		return
	}
	d.myers(a0, a1, b0, b1, rounds)
}

// myers divides a region without anchors.
func (d *matcher) myers(a0, a1, b0, b1, rounds int) {
	parts := lcs.DiffRunes(d.a[a0:a1], d.b[b0:b1])
	if !d.valid(parts, a0, a1, b0, b1) {
		d.edits = append(d.edits, edit{a0, a1, b0, b1})
		return
	}
	for _, p := range parts {
		e := edit{a0 + p.Start, a0 + p.End, b0 + p.ReplStart, b0 + p.ReplEnd}
		if e == (edit{a0, a1, b0, b1}) {
			d.edits = append(d.edits, e)
			continue
		}
		d.region(e.a0, e.a1, e.b0, e.b1, rounds-1)
	}
}

// valid checks that what the parts leave out is equal, so that a wrong answer
// can make a patch longer but not wrong.
func (d *matcher) valid(parts []lcs.Diff, a0, a1, b0, b1 int) bool {
	i, j := a0, b0
	for _, p := range append(parts[:len(parts):len(parts)], lcs.Diff{Start: a1 - a0, End: a1 - a0, ReplStart: b1 - b0, ReplEnd: b1 - b0}) {
		start, end, toStart, toEnd := a0+p.Start, a0+p.End, b0+p.ReplStart, b0+p.ReplEnd
		if start < i || end < start || end > a1 || toStart < j || toEnd < toStart || toEnd > b1 {
			return false
		}
		if !slices.Equal(d.a[i:start], d.b[j:toStart]) {
			return false
		}
		i, j = end, toEnd
	}
	return true
}

// anchors finds the lines that occur once in either side of the region, and of
// them the most that are in the same order in both (Cohen's patience diff).
func (d *matcher) anchors(a0, a1, b0, b1 int) []occurrence {
	for i := a0; i < a1; i++ {
		o := &d.seen[d.a[i]]
		o.inA, o.atA = o.inA+1, int32(i)
	}
	for j := b0; j < b1; j++ {
		o := &d.seen[d.b[j]]
		o.inB, o.atB = o.inB+1, int32(j)
	}
	var unique []occurrence
	for i := a0; i < a1; i++ {
		if o := d.seen[d.a[i]]; o.inA == 1 && o.inB == 1 {
			unique = append(unique, o)
		}
	}
	for i := a0; i < a1; i++ {
		d.seen[d.a[i]] = occurrence{}
	}
	for j := b0; j < b1; j++ {
		d.seen[d.b[j]] = occurrence{}
	}
	return increasing(unique)
}

// increasing is the longest subsequence of o in which atB increases.
func increasing(o []occurrence) []occurrence {
	if len(o) == 0 {
		return nil
	}
	var piles []int // index in o of the top of each pile
	before := make([]int, len(o))
	for i := range o {
		p := sort.Search(len(piles), func(p int) bool { return o[piles[p]].atB >= o[i].atB })
		before[i] = -1
		if p > 0 {
			before[i] = piles[p-1]
		}
		if p == len(piles) {
			piles = append(piles, i)
		} else {
			piles[p] = i
		}
	}
	result := make([]occurrence, len(piles))
	for i, k := len(piles)-1, piles[len(piles)-1]; i >= 0; i, k = i-1, before[k] {
		result[i] = o[k]
	}
	return result
}

// join makes one of edits that touch.
func join(edits []edit) []edit {
	var out []edit
	for _, e := range edits {
		if n := len(out); n > 0 && out[n-1].a1 == e.a0 && out[n-1].b1 == e.b0 {
			out[n-1].a1, out[n-1].b1 = e.a1, e.b1
			continue
		}
		out = append(out, e)
	}
	return out
}
