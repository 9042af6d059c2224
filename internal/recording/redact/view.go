package redact

import (
	"bytes"
	"sort"
	"unicode/utf16"
	"unicode/utf8"
)

// maxLevels is how often escapes within escapes are undone.
const maxLevels = 4

// view is a text made from another one, and the way back.
type view struct {
	text   []byte
	origin func(start, end int) []piece // in the body
}

// piece is a stretch of a body.
type piece struct{ start, end int }

// plain is a part of a body as it is.
func plain(body []byte, start, end int) view {
	return view{body[start:end], func(a, b int) []piece { return []piece{{start + a, start + b}} }}
}

// joined is parts of a body one after the other.
func joined(body []byte, parts []piece) view {
	size := 0
	for _, p := range parts {
		size += p.end - p.start
	}
	text, ends := make([]byte, 0, size), make([]int, len(parts))
	for i, p := range parts {
		text = append(text, body[p.start:p.end]...)
		ends[i] = len(text)
	}
	return view{text, func(a, b int) (list []piece) {
		for i := sort.SearchInts(ends, a+1); i < len(parts) && a < b; i++ {
			begin := ends[i] - (parts[i].end - parts[i].start)
			stop := min(b, ends[i])
			if a < stop {
				list = append(list, piece{parts[i].start + a - begin, parts[i].start + stop - begin})
			}
			a = max(a, stop)
		}
		return list
	}}
}

// escape is a sequence of a text and what it stands for in the next one.
type escape struct {
	from, to         int // where they begin
	fromSize, toSize uint8
}

// undone is v with its escapes undone; false when it has none. With percent
// set they are those of URLs, else those of JSON. What is no escape is kept.
func (v view) undone(percent bool) (view, bool) {
	mark, read := byte('\\'), backslash
	if percent {
		mark, read = '%', percentage
	}
	first := bytes.IndexByte(v.text, mark)
	if first < 0 {
		return v, false
	}
	out := append(make([]byte, 0, len(v.text)), v.text[:first]...)
	var list []escape
	for i := first; i < len(v.text); {
		if v.text[i] != mark {
			n := bytes.IndexByte(v.text[i:], mark)
			if n < 0 {
				n = len(v.text) - i
			}
			out = append(out, v.text[i:i+n]...)
			i += n
			continue
		}
		r, n := read(v.text[i:])
		if n == 0 {
			out = append(out, mark)
			i++
			continue
		}
		to := len(out)
		if percent {
			out = append(out, byte(r))
		} else {
			out = utf8.AppendRune(out, r)
		}
		list = append(list, escape{i, to, uint8(n), uint8(len(out) - to)})
		i += n
	}
	if len(list) == 0 {
		return v, false
	}
	return view{out, func(a, b int) []piece { return v.origin(before(list, a), behind(list, b)) }}, true
}

// before is where the character at a place of the new text begins in the old.
func before(list []escape, at int) int {
	i := sort.Search(len(list), func(i int) bool { return list[i].to > at }) - 1
	if i < 0 {
		return at
	}
	e := list[i]
	if at < e.to+int(e.toSize) {
		return e.from
	}
	return at - e.to - int(e.toSize) + e.from + int(e.fromSize)
}

// behind is where the character before a place of the new text ends in the old.
func behind(list []escape, at int) int {
	i := sort.Search(len(list), func(i int) bool { return list[i].to >= at }) - 1
	if i < 0 {
		return at
	}
	e := list[i]
	if at <= e.to+int(e.toSize) {
		return e.from + int(e.fromSize)
	}
	return at - e.to - int(e.toSize) + e.from + int(e.fromSize)
}

var simple = [256]byte{'"': '"', '\\': '\\', '/': '/', 'b': '\b', 'f': '\f', 'n': '\n', 'r': '\r', 't': '\t'}

// backslash reads an escape of JSON: what it is, and its length; 0 for others.
func backslash(b []byte) (rune, int) {
	if len(b) < 2 {
		return 0, 0
	}
	if c := simple[b[1]]; c != 0 {
		return rune(c), 2
	}
	r, ok := unicode(b)
	if !ok {
		return 0, 0
	}
	if utf16.IsSurrogate(r) {
		if low, ok := unicode(b[6:]); ok && utf16.DecodeRune(r, low) != utf8.RuneError {
			return utf16.DecodeRune(r, low), 12
		}
		return utf8.RuneError, 6
	}
	return r, 6
}

// unicode reads \uXXXX.
func unicode(b []byte) (r rune, ok bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	for _, c := range b[2:6] {
		d, ok := hexDigit(c)
		if !ok {
			return 0, false
		}
		r = r<<4 | d
	}
	return r, true
}

// percentage reads %XX.
func percentage(b []byte) (rune, int) {
	if len(b) < 3 {
		return 0, 0
	}
	high, ok1 := hexDigit(b[1])
	low, ok2 := hexDigit(b[2])
	if !ok1 || !ok2 {
		return 0, 0
	}
	return high<<4 | low, 3
}

func hexDigit(c byte) (rune, bool) {
	switch {
	case isDigit(c):
		return rune(c - '0'), true
	case c|0x20 >= 'a' && c|0x20 <= 'f':
		return rune(c|0x20-'a') + 10, true
	}
	return 0, false
}
