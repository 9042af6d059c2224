package main

import (
	"math"
	"slices"
)

// block is a run of statements that are executed together, in lines and
// columns from 1, as in a Go coverage profile.
type block struct {
	File      string `json:"file"`
	StartLine int    `json:"start_line"`
	StartCol  int    `json:"start_col"`
	EndLine   int    `json:"end_line"`
	EndCol    int    `json:"end_col"`
}

func (b block) contains(line, col int) bool {
	after := line > b.StartLine || line == b.StartLine && col >= b.StartCol
	before := line < b.EndLine || line == b.EndLine && col < b.EndCol
	return after && before
}

// suspicions tell how likely each block holds the mistake, 0 to 1.
type suspicions map[block]float64

// suspect ranks blocks by the Ochiai coefficient: executed by many failing
// tests and few passing ones is suspicious (Abreu, Zoeteweij, van Gemund: On
// the Accuracy of Spectrum-based Fault Localization, 2007).
func suspect(trace traceResult, failed []string) suspicions {
	type counts struct{ failing, passing int }
	seen := map[block]*counts{}
	for test, blocks := range trace.Executed {
		for _, b := range blocks {
			if seen[b] == nil {
				seen[b] = &counts{}
			}
			if slices.Contains(failed, test) {
				seen[b].failing++
			} else {
				seen[b].passing++
			}
		}
	}
	s := suspicions{}
	for b, n := range seen {
		if n.failing > 0 {
			s[b] = float64(n.failing) / math.Sqrt(float64(len(failed)*(n.failing+n.passing)))
		}
	}
	return s
}

// at is the suspicion of a place: that of the innermost block around it, which
// is the one that starts last.
func (s suspicions) at(file string, line, col int) float64 {
	var innermost block
	for b := range s {
		if b.File == file && b.contains(line, col) &&
			(b.StartLine > innermost.StartLine || b.StartLine == innermost.StartLine && b.StartCol > innermost.StartCol) {
			innermost = b
		}
	}
	return s[innermost]
}
