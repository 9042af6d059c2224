package modelapi

import (
	"slices"
	"strings"
)

// keywords finds which of some short words a text has, in one pass over it.
type keywords struct {
	list  []string
	begin [256][]int      // words by their first byte
	pairs [1 << 10]uint64 // bits: two bytes that a word begins with
}

// mostWords is how many words there may be.
const mostWords = 128

// wordSet is a set of words.
type wordSet [mostWords / 64]uint64

func (s wordSet) meets(o wordSet) bool { return s[0]&o[0]|s[1]&o[1] != 0 }

// set is the set of these words, which are added if they are new. None of
// them is empty.
func (w *keywords) set(list []string) (s wordSet) {
	for _, word := range list {
		i := slices.Index(w.list, word)
		if i < 0 {
			i = len(w.list)
			w.add(word)
		}
		s[i/64] |= 1 << (i % 64)
	}
	return s
}

func (w *keywords) add(word string) {
	first := word[0]
	w.begin[first] = append(w.begin[first], len(w.list))
	w.list = append(w.list, word)
	for second := range 256 {
		if len(word) == 1 || int(word[1]) == second {
			w.pairs[int(first)<<2|second>>6] |= 1 << (second & 63)
		}
	}
}

// in is the set of those words that the text has.
func (w *keywords) in(text string) (s wordSet) {
	for i := range len(text) {
		first, second := text[i], byte(0)
		if i+1 < len(text) {
			second = text[i+1]
		}
		if w.pairs[int(first)<<2|int(second)>>6]&(1<<(second&63)) == 0 {
			continue
		}
		for _, k := range w.begin[first] {
			if strings.HasPrefix(text[i:], w.list[k]) {
				s[k/64] |= 1 << (k % 64)
			}
		}
	}
	return s
}
