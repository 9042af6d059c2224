package redact

import "slices"

// automaton finds many words in one pass, letters in any case (Aho, Corasick,
// "Efficient string matching", 1975), as one table of transitions.
type automaton struct {
	class   [256]uint8 // bytes that no word has are in class 0
	classes int
	next    []uint32 // by state*classes + class: the next state's row, hit set when a word ends
	words   [][]word // by state
}

// word is a word that ends, and who wants to know.
type word struct{ length, id int }

const hit = 1 << 31

func fold(c byte) byte {
	if c >= 'A' && c <= 'Z' {
		return c | 0x20
	}
	return c
}

// newAutomaton makes one that finds words[i] for id i.
func newAutomaton(words []string) *automaton {
	a := &automaton{classes: 1}
	for _, w := range words {
		for i := range len(w) {
			if c := fold(w[i]); a.class[c] == 0 {
				a.class[c] = uint8(a.classes)
				a.classes++
			}
		}
	}
	for c := 'A'; c <= 'Z'; c++ {
		a.class[c] = a.class[c|0x20]
	}
	a.build(words)
	return a
}

func (a *automaton) build(words []string) {
	trie := [][]int32{make([]int32, a.classes)}
	a.words = [][]word{nil}
	for id, w := range words {
		state := int32(0)
		for i := range len(w) {
			c := a.class[fold(w[i])]
			if trie[state][c] == 0 {
				trie[state][c] = int32(len(trie))
				trie = append(trie, make([]int32, a.classes))
				a.words = append(a.words, nil)
			}
			state = trie[state][c]
		}
		a.words[state] = append(a.words[state], word{len(w), id})
	}
	a.link(trie)
	a.next = make([]uint32, len(trie)*a.classes)
	for s, row := range trie {
		for c, t := range row {
			v := uint32(t) * uint32(a.classes)
			if len(a.words[t]) > 0 {
				v |= hit
			}
			a.next[s*a.classes+c] = v
		}
	}
}

// link makes a trie's missing transitions lead to where the longest suffix is.
func (a *automaton) link(trie [][]int32) {
	suffix := make([]int32, len(trie))
	queue := []int32{}
	for _, t := range trie[0] {
		if t != 0 {
			queue = append(queue, t)
		}
	}
	for len(queue) > 0 {
		s := queue[0]
		queue = queue[1:]
		a.words[s] = slices.Concat(a.words[s], a.words[suffix[s]])
		for c, t := range trie[s] {
			if t == 0 {
				trie[s][c] = trie[suffix[s]][c]
				continue
			}
			suffix[t] = trie[suffix[s]][c]
			queue = append(queue, t)
		}
	}
}

// find calls yield with each word that ends in text and where it begins.
func (a *automaton) find(text []byte, yield func(id, start int)) {
	row := uint32(0)
	for i, c := range text {
		v := a.next[row+uint32(a.class[c])]
		row = v &^ hit
		if v&hit != 0 {
			for _, w := range a.words[int(row)/a.classes] {
				yield(w.id, i+1-w.length)
			}
		}
	}
}
