package modelapi

import (
	"strconv"
	"strings"
	"unicode/utf8"
)

// Difference finds the first place where two normalised requests differ: its
// JSON pointer (RFC 6901), and what each has there, shortened around the
// place. "(nothing)" is what is absent.
func Difference(recorded, replayed []byte) (pointer, left, right string, equal bool) {
	a, errA := parseValue(recorded)
	b, errB := parseValue(replayed)
	if errA != nil || errB != nil {
		left, right = around(string(recorded), string(replayed))
		return "", left, right, left == right && string(recorded) == string(replayed)
	}
	return difference("", a, b)
}

func difference(at string, a, b value) (pointer, left, right string, equal bool) {
	if a.kind != b.kind {
		return at, shorten(show(a), 0), shorten(show(b), 0), false
	}
	switch a.kind {
	case object:
		return differentMember(at, a, b)
	case array:
		for i := range max(len(a.items), len(b.items)) {
			var x, y value
			if i < len(a.items) {
				x = a.items[i]
			}
			if i < len(b.items) {
				y = b.items[i]
			}
			if p, l, r, same := difference(at+"/"+strconv.Itoa(i), x, y); !same {
				return p, l, r, false
			}
		}
	default:
		if a.str != b.str {
			left, right = around(a.str, b.str)
			return at, left, right, false
		}
	}
	return "", "", "", true
}

// differentMember walks the members of both, in the order of the first and
// then what only the second has.
func differentMember(at string, a, b value) (pointer, left, right string, equal bool) {
	index := make(map[string]value, len(b.members))
	for _, m := range b.members {
		index[m.name] = m.v
	}
	known := make(map[string]bool, len(a.members))
	for _, m := range a.members {
		known[m.name] = true
		if p, l, r, same := difference(at+"/"+escapePointer(m.name), m.v, index[m.name]); !same {
			return p, l, r, false
		}
	}
	for _, m := range b.members {
		if !known[m.name] {
			return difference(at+"/"+escapePointer(m.name), value{}, m.v)
		}
	}
	return "", "", "", true
}

func escapePointer(name string) string {
	return strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}

func show(v value) string {
	if v.kind == absent {
		return "(nothing)"
	}
	if v.kind == text {
		return v.str
	}
	return string(v.raw)
}

// shown is how many bytes of a side are shown around a difference.
const shown = 160

// around shortens two texts around the first place where they differ.
func around(a, b string) (string, string) {
	at := common([]byte(a), []byte(b))
	return shorten(a, at), shorten(b, at)
}

// shorten keeps what is around a place.
func shorten(s string, at int) string {
	from, to := max(0, at-shown/4), min(len(s), at+shown)
	for from > 0 && !utf8.RuneStart(s[from]) {
		from--
	}
	for to < len(s) && !utf8.RuneStart(s[to]) {
		to++
	}
	out := s[from:to]
	if from > 0 {
		out = "…" + out
	}
	if to < len(s) {
		out += "…"
	}
	return out
}
