package rowdiff

import "strings"

// The functions here read SQL as pg_dump writes it: they know strings, quoted
// names, dollar quotes, comments and brackets, and nothing of grammar.

// token returns where the token that begins at i ends. Text in quotes is one
// token, and so is a word; an unclosed quote reaches to the end.
func token(s string, i int) int {
	switch c := s[i]; {
	case c == '\'':
		return quoteEnd(s, i, i > 0 && (s[i-1] == 'E' || s[i-1] == 'e') && (i == 1 || !wordByte(s[i-2])))
	case c == '"':
		return quoteEnd(s, i, false)
	case c == '$':
		return dollarEnd(s, i)
	case strings.HasPrefix(s[i:], "--"):
		if n := strings.IndexByte(s[i:], '\n'); n >= 0 {
			return i + n
		}
		return len(s)
	case wordByte(c):
		for i < len(s) && wordByte(s[i]) && (s[i] != '$') {
			i++
		}
		return i
	}
	return i + 1
}

func wordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= 0x80
}

func quoteEnd(s string, i int, backslash bool) int {
	q := s[i]
	for i++; i < len(s); i++ {
		switch {
		case backslash && s[i] == '\\':
			i++
		case s[i] == q && i+1 < len(s) && s[i+1] == q:
			i++
		case s[i] == q:
			return i + 1
		}
	}
	return len(s)
}

func dollarEnd(s string, i int) int {
	n := 1
	for i+n < len(s) && wordByte(s[i+n]) {
		n++
	}
	if i+n >= len(s) || s[i+n] != '$' {
		return i + 1
	}
	tag := s[i : i+n+1]
	if end := strings.Index(s[i+len(tag):], tag); end >= 0 {
		return i + end + 2*len(tag)
	}
	return len(s)
}

// walk calls f with the tokens outside brackets, and with the brackets that
// open and close there, until f returns false.
func walk(s string, f func(begin, end int) bool) {
	depth := 0
	for i := 0; i < len(s); {
		end := token(s, i)
		switch s[i] {
		case ')', ']':
			depth--
		}
		if depth <= 0 && !f(i, end) {
			return
		}
		switch s[i] {
		case '(', '[':
			depth++
		}
		i = end
	}
}

// split cuts s at a separator outside quotes and brackets.
func split(s string, sep byte) []string {
	var out []string
	at := 0
	walk(s, func(begin, end int) bool {
		if s[begin] == sep {
			out = append(out, s[at:begin])
			at = end
		}
		return true
	})
	return append(out, s[at:])
}

// keyword finds a word outside quotes and brackets; -1 without.
func keyword(s, word string) int {
	found := -1
	walk(s, func(begin, end int) bool {
		if s[begin:end] == word {
			found = begin
		}
		return found < 0
	})
	return found
}
