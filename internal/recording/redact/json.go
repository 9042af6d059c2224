package redact

import (
	"bytes"
	"crypto/sha256"
	"strconv"
	"strings"
	"sync"
)

// blocks cuts a valid JSON body between the members of its object, and between
// the elements of the arrays in it: what a conversation repeats is a block.
func blocks(body []byte) []piece {
	var list []piece
	depth, start := 0, 0
	var open [2]byte // brackets of the outer two levels
	for i := 0; i < len(body); i++ {
		switch c := body[i]; c {
		case '"':
			i = stringEnd(body, i)
		case '{', '[':
			if depth < len(open) {
				open[depth] = c
			}
			depth++
		case '}', ']':
			depth--
		case ',':
			if depth == 1 || depth == 2 && open[1] == '[' {
				list = append(list, piece{start, i + 1})
				start = i + 1
			}
		}
	}
	return append(list, piece{start, len(body)})
}

// stringEnd is where the string that begins at a quote ends: at its last
// quote, or at the last byte.
func stringEnd(b []byte, at int) int {
	for i := at + 1; i < len(b); i++ {
		n := bytes.IndexByte(b[i:], '"')
		if n < 0 {
			return len(b) - 1
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
	return len(b) - 1
}

// assemble finds texts that lie in pieces in several events: strings at the
// same place of each. Those of one index are joined, and, since not every API
// says which piece belongs to what, those of all.
func assemble(body []byte, valid bool) [][]piece {
	var events []piece
	if valid {
		events = elements(body)
	} else {
		events = lines(body)
	}
	if len(events) < 2 {
		return nil
	}
	places, indexed := map[string][]piece{}, map[string][]piece{}
	var order, indexedOrder []string
	for _, e := range events {
		list, ids := leaves(body, e)
		for _, l := range list {
			if places[l.path] == nil {
				order = append(order, l.path)
			}
			places[l.path] = append(places[l.path], l.piece)
			key := l.path + "\x00" + ids
			if indexed[key] == nil {
				indexedOrder = append(indexedOrder, key)
			}
			indexed[key] = append(indexed[key], l.piece)
		}
	}
	var out [][]piece
	for _, p := range order {
		if len(places[p]) > 1 {
			out = append(out, places[p])
		}
	}
	for _, key := range indexedOrder {
		path, _, _ := strings.Cut(key, "\x00")
		if n := len(indexed[key]); n > 1 && n < len(places[path]) {
			out = append(out, indexed[key])
		}
	}
	return out
}

// elements are those of a body that is an array of objects.
func elements(body []byte) []piece {
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	if len(trimmed) < 2 || trimmed[0] != '[' || bytes.TrimLeft(trimmed[1:], " \t\r\n")[0] != '{' {
		return nil
	}
	list := blocks(body)
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

// leaf is the inside of a string, and the way to it.
type leaf struct {
	path string
	piece
}

// ids are the members that say which text a piece belongs to.
var ids = map[string]bool{"index": true, "output_index": true, "content_index": true, "summary_index": true, "item_id": true}

// leaves lists the strings of an event, which need not be valid, and what it
// says about where they belong. Names are no strings.
func leaves(body []byte, event piece) (list []leaf, where string) {
	var path []string
	text := body[:event.end]
	for i := event.start; i < event.end; i++ {
		switch c := text[i]; c {
		case '{', '[':
			if len(path) > 64 {
				return list, where
			}
			path = append(path, "0")
		case '}', ']':
			if len(path) > 0 {
				path = path[:len(path)-1]
			}
		case ',':
			if k := len(path) - 1; k >= 0 {
				if n, err := strconv.Atoi(path[k]); err == nil {
					path[k] = strconv.Itoa(n + 1)
				}
			}
		case '"':
			end := stringEnd(text, i)
			inside := piece{min(i+1, end), end}
			next := bytes.TrimLeft(text[end+1:], " \t\r\n")
			isName := len(next) > 0 && next[0] == ':'
			name := string(text[inside.start:inside.end])
			switch {
			case isName && len(path) > 0:
				path[len(path)-1] = name
				if ids[name] {
					where += scalar(next)
				} else if name == "type" && len(path) == 1 {
					where += scalar(next)
				}
			case !isName && inside.end > inside.start:
				list = append(list, leaf{strings.Join(path, "/"), inside})
			}
			i = end
		}
	}
	return list, where
}

// scalar is the text of a value after its colon.
func scalar(b []byte) string {
	end := bytes.IndexAny(b, ",}")
	if end < 0 {
		end = len(b)
	}
	return string(b[:min(end, 80)])
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
