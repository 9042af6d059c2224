package redact

import (
	"bytes"
	"crypto/sha256"
	"hash/maphash"
	"sync"
)

// blocks cuts a JSON body between the members of its object, and between the
// elements of the arrays in it: what a conversation repeats is a block. It is
// false for what is not JSON at first sight: one value, its brackets in pairs,
// nothing but numbers and words outside strings.
func blocks(body []byte) (list []piece, ok bool) {
	var open []byte
	start, done := 0, false
	for i := 0; i < len(body); i++ {
		c := body[i]
		if space[c] {
			continue
		}
		if done || !outside[c] || len(open) > maxDepth {
			return nil, false
		}
		switch c {
		case '"':
			if i = stringEnd(body, i); i < 0 {
				return nil, false
			}
		case '{', '[':
			open = append(open, c)
		case '}', ']':
			k := len(open) - 1
			if k < 0 || open[k] != c-2 {
				return nil, false
			}
			open, done = open[:k], k == 0
		case ',':
			if len(open) == 1 || len(open) == 2 && open[1] == '[' {
				list = append(list, piece{start, i + 1})
				start = i + 1
			}
		}
	}
	return append(list, piece{start, len(body)}), done
}

// maxDepth is how deep brackets may be in each other.
const maxDepth = 10_000

// space and outside are the bytes that JSON has between values, and those that
// it has outside strings.
var space, outside = set(" \t\r\n"), set(`{}[]:,"0123456789+-.eEtrufalsn`)

func set(chars string) (table [256]bool) {
	for _, c := range []byte(chars) {
		table[c] = true
	}
	return table
}

// stringEnd is where the string that begins at a quote has its last one; -1
// when it has none.
func stringEnd(b []byte, at int) int {
	for i := at + 1; i < len(b); i++ {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return -1
		}
		i += n
		slashes := 0
		for j := i - 1; j > at && b[j] == '\\'; j-- {
			slashes++
		}
		if slashes%2 == 0 {
			return i
		}
	}
	return -1
}

// assemble finds texts that lie in pieces in several events: strings at the
// same place of each. Those of one index are joined, and, since not every API
// says which piece belongs to what, those of all. rest is what is in no event.
func assemble(body []byte, valid bool) (texts [][]piece, rest []piece) {
	var events []piece
	if valid {
		events = elements(body)
	} else {
		events = lines(body)
	}
	if len(events) < 2 {
		return nil, []piece{{0, len(body)}}
	}
	places, indexed := groups{}, groups{}
	var paths []uint64 // of indexed.lists
	var w walk
	end := 0
	for _, e := range events {
		w.leaves(body, e)
		for _, l := range w.list {
			places.add(l.path, l.piece)
			indexed.add(mix(l.path, hash(w.ids)), l.piece)
			if len(indexed.lists) > len(paths) {
				paths = append(paths, l.path)
			}
		}
		rest = append(rest, piece{end, e.start})
		end = e.end
	}
	rest = append(rest, piece{end, len(body)})
	texts = places.lists
	for i, list := range indexed.lists {
		if len(list) < len(places.lists[places.index[paths[i]]]) {
			texts = append(texts, list)
		}
	}
	return texts, rest
}

// groups are pieces by the hash of a name, in the order of first appearance.
// What has the same hash by chance is joined, too: that does no harm.
type groups struct {
	index map[uint64]int
	lists [][]piece
}

func (g *groups) add(name uint64, p piece) {
	i, ok := g.index[name]
	if !ok {
		if g.index == nil {
			g.index = map[uint64]int{}
		}
		i = len(g.lists)
		g.index[name] = i
		g.lists = append(g.lists, nil)
	}
	g.lists[i] = append(g.lists[i], p)
}

var seed = maphash.MakeSeed()

func hash(b []byte) uint64 { return maphash.Bytes(seed, b) }

func mix(a, b uint64) uint64 { return maphash.Comparable(seed, [2]uint64{a, b}) }

// elements are those of a body that is an array of objects.
func elements(body []byte) []piece {
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	if len(trimmed) < 2 || trimmed[0] != '[' || bytes.TrimLeft(trimmed[1:], " \t\r\n")[0] != '{' {
		return nil
	}
	list, _ := blocks(body)
	list[0].start += len(body) - len(trimmed) + 1
	return list
}

// lines are the objects that lines of a body hold, after "data:" or alone. An
// event whose data has several lines is one piece: newlines are no part of
// strings, so that the lines between do no harm.
func lines(body []byte) []piece {
	var list []piece
	wasData := false
	for start := 0; start < len(body); {
		end := start + bytes.IndexAny(body[start:], "\r\n")
		if end < start {
			end = len(body)
		}
		line := body[start:end]
		data, isData := bytes.CutPrefix(bytes.TrimLeft(line, "\ufeff"), []byte("data:"))
		text := bytes.TrimLeft(data, " \t")
		switch {
		case isData && wasData:
			list[len(list)-1].end = end
		case len(text) > 0 && (isData || text[0] == '{' || text[0] == '['):
			list = append(list, piece{end - len(text), end})
			wasData = isData
		default:
			wasData = false
		}
		if start = end + 1; end+1 < len(body) && body[end] == '\r' && body[end+1] == '\n' {
			start++
		}
	}
	return list
}

// walk goes through the strings of an event, which need not be valid.
type walk struct {
	list  []leaf
	ids   []byte // what the event says about where its pieces belong
	stack []step
}

// leaf is the inside of a string, and a hash of the way to it.
type leaf struct {
	path uint64
	piece
}

// step is a member of an object, by name, or an element of an array.
type step struct {
	above uint64 // hash of the way to the object or array
	name  uint64 // hash of the name, or the number of the element
}

func (s step) path() uint64 { return mix(s.above, s.name) }

// belongs are the members that say which text a piece belongs to.
var belongs = map[string]bool{"index": true, "output_index": true, "content_index": true, "summary_index": true, "item_id": true}

// maxPath is how deep the strings of events are looked for.
const maxPath = 64

// leaves lists the strings of an event. Names are no strings.
func (w *walk) leaves(body []byte, event piece) {
	w.list, w.ids, w.stack = w.list[:0], w.ids[:0], w.stack[:0]
	text := body[:event.end]
	for i := event.start; i < event.end; i++ {
		k := len(w.stack) - 1
		switch text[i] {
		case '{', '[':
			if k < maxPath {
				w.stack = append(w.stack, step{above: w.path()})
			}
		case '}', ']':
			w.stack = w.stack[:max(0, k)]
		case ',':
			if k >= 0 {
				w.stack[k].name++
			}
		case '"':
			end := stringEnd(text, i)
			if end < 0 {
				end = len(text)
			}
			w.text(text, piece{i + 1, end}, k)
			i = end
		}
	}
}

// text notes a string, or the name of a member.
func (w *walk) text(body []byte, inside piece, k int) {
	next := bytes.TrimLeft(body[min(inside.end+1, len(body)):], " \t\r\n")
	value := body[inside.start:inside.end]
	if k >= 0 && len(next) > 0 && next[0] == ':' {
		w.stack[k].name = hash(value)
		if len(w.ids) < 1000 && (belongs[string(value)] || k == 0 && string(value) == "type") {
			w.ids = append(w.ids, scalar(next)...)
		}
		return
	}
	if len(value) == 0 {
		return
	}
	w.list = append(w.list, leaf{w.path(), inside})
}

// path is the hash of the way to where the walk is.
func (w *walk) path() uint64 {
	if k := len(w.stack) - 1; k >= 0 {
		return w.stack[k].path()
	}
	return 0
}

// scalar is the text of a value after its colon.
func scalar(b []byte) []byte {
	b = b[:min(len(b), 80)]
	if end := bytes.IndexAny(b, ",}"); end >= 0 {
		b = b[:end]
	}
	return b
}

// quoteNumbers puts the markers of what is a number of JSON in quotes, so that
// what was JSON remains it.
func quoteNumbers(body []byte, spans []Span, valid bool) {
	at, inString := 0, false
	for k := range spans {
		s := &spans[k]
		if c := body[s.Start]; s.Marker == "" || !isDigit(c) && c != '-' {
			continue
		}
		for ; at < s.Start; at++ {
			switch body[at] {
			case '\\':
				if inString {
					at++
				}
			case '"':
				inString = !inString
			case '\n':
				inString = inString && valid
			}
		}
		if !inString && (valid || bare(body, *s)) {
			s.Marker = `"` + s.Marker + `"`
		}
	}
}

// bare reports whether a span stands where JSON has a value.
func bare(body []byte, s Span) bool {
	before := bytes.TrimRight(body[:s.Start], " \t")
	behind := bytes.TrimLeft(body[s.End:], " \t")
	return len(before) > 0 && len(behind) > 0 &&
		bytes.IndexByte([]byte(":[,"), before[len(before)-1]) >= 0 && bytes.IndexByte([]byte(",]}"), behind[0]) >= 0
}

// blockCache remembers what is in blocks: those of the newer half, and those
// of the older half until the newer one is full.
type blockCache struct {
	mu       sync.Mutex // guards what follows
	new, old map[blockKey][]Span
}

type blockKey [16]byte

// cacheHalf is how many blocks each half has.
const cacheHalf = 1 << 15

func keyOf(text []byte) blockKey {
	sum := sha256.Sum256(text)
	return blockKey(sum[:])
}

func (c *blockCache) get(k blockKey) ([]Span, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if list, ok := c.new[k]; ok {
		return list, true
	}
	list, ok := c.old[k]
	if ok {
		c.add(k, list)
	}
	return list, ok
}

func (c *blockCache) put(k blockKey, list []Span) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.add(k, list)
}

func (c *blockCache) add(k blockKey, list []Span) {
	if c.new == nil || len(c.new) >= cacheHalf {
		c.new, c.old = map[blockKey][]Span{}, c.new
	}
	c.new[k] = list
}
