package graph

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// clean takes out of a text everything that a terminal would obey: escape
// sequences, control characters but line ends and tabs, and marks that change
// the direction of writing. Bytes that are not UTF-8 become U+FFFD.
func clean(s string) string {
	var out strings.Builder
	out.Grow(len(s))
	for len(s) > 0 {
		r, n := utf8.DecodeRuneInString(s)
		switch {
		case r == 0x1b || r == 0x9b || r == 0x9d || r == 0x90:
			n = sequence(s, r, n)
		case r == '\n' || r == '\t':
			out.WriteRune(r)
		case r == '\r':
			if !strings.HasPrefix(s[1:], "\n") {
				out.WriteByte('\n')
			}
		case unicode.IsControl(r) || obeyed(r):
		default:
			out.WriteRune(r)
		}
		s = s[n:]
	}
	return out.String()
}

// obeyed reports marks that order text or hide in it.
func obeyed(r rune) bool {
	return r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 || r == 0x200e || r == 0x200f || r == 0x061c ||
		r == 0x2028 || r == 0x2029 || r == 0xfeff || r >= 0xe0000 && r <= 0xe007f
}

// sequence is the length of the escape sequence (ECMA-48) that s begins with.
func sequence(s string, first rune, n int) int {
	kind := byte(0)
	if first == 0x1b {
		if n == len(s) {
			return n
		}
		kind = s[n]
		n++
	} else {
		kind = byte(first - 0x40)
	}
	switch kind {
	case '[':
		for n < len(s) && s[n] >= 0x20 && s[n] <= 0x3f {
			n++
		}
		if n < len(s) && s[n] >= 0x40 && s[n] <= 0x7e {
			n++
		}
		return n
	case ']', 'P', 'X', '^', '_':
		for i := n; i < len(s) && i < n+1024; i++ {
			switch {
			case s[i] == 7:
				return i + 1
			case s[i] == 0x1b && i+1 < len(s) && s[i+1] == '\\':
				return i + 2
			case s[i] == '\n':
				return i
			}
		}
		return n
	}
	if kind >= utf8.RuneSelf || kind == '\n' {
		return n - 1
	}
	for kind >= 0x20 && kind <= 0x2f && n < len(s) && s[n] < utf8.RuneSelf {
		kind = s[n]
		n++
	}
	return n
}

// line is a text in one line, of which nobody shows more than the beginning.
func line(s string) string {
	return strings.Join(strings.Fields(clean(s[:min(len(s), 4096)])), " ")
}

// width is how many columns a text without line ends takes.
func width(s string) int {
	n := 0
	for _, r := range s {
		n += columns(r)
	}
	return n
}

func columns(r rune) int {
	switch {
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case r >= 0x1100 && (r <= 0x115f || r >= 0x2e80 && r <= 0xa4cf || r >= 0xac00 && r <= 0xd7a3 || r >= 0xf900 && r <= 0xfaff ||
		r >= 0xfe30 && r <= 0xfe6f || r >= 0xff00 && r <= 0xff60 || r >= 0xffe0 && r <= 0xffe6 || r >= 0x1f300 && r <= 0x1faff || r >= 0x20000 && r <= 0x3fffd):
		return 2
	}
	return 1
}

// fit shortens a line to so many columns.
func fit(s string, most int) string {
	if width(s) <= most {
		return s
	}
	n := 0
	for i, r := range s {
		if n += columns(r); n > most-1 {
			return strings.TrimRight(s[:i], " ") + "…"
		}
	}
	return s
}

// count is a number of tokens, for people.
func count(n int64) string {
	switch {
	case n < 1000:
		return strconv.FormatInt(n, 10)
	case n < 99_950:
		return fmt.Sprintf("%.1fk", float64(n)/1000)
	case n < 999_500:
		return fmt.Sprintf("%.0fk", float64(n)/1000)
	}
	return fmt.Sprintf("%.1fM", float64(n)/1e6)
}

// size is a number of bytes, for people.
func size(n int) string {
	if n < 1000 {
		return fmt.Sprintf("%d B", n)
	}
	if n < 999_950 {
		return fmt.Sprintf("%.1f kB", float64(n)/1e3)
	}
	return fmt.Sprintf("%.1f MB", float64(n)/1e6)
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}

// telling are the arguments of tools that say most, best first.
var telling = []string{
	"command", "cmd", "file_path", "filePath", "absolute_path", "path", "dir_path", "pattern", "query", "url",
	"description", "prompt", "message", "name",
}

// short is the input of an action in one line: of JSON objects, the argument
// that says most.
func short(input string) string {
	var o map[string]any
	if json.Unmarshal([]byte(input), &o) != nil {
		return line(input)
	}
	for _, name := range telling {
		switch v := o[name].(type) {
		case string:
			if v != "" {
				return line(v)
			}
		case []any:
			var words []string
			for _, w := range v {
				words = append(words, fmt.Sprint(w))
			}
			return line(strings.Join(words, " "))
		}
	}
	if len(o) == 0 {
		return ""
	}
	return line(unescaped.Replace(input))
}
