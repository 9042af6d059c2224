package rowdiff

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// ident quotes an identifier.
func ident(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// literal quotes a string for standard_conforming_strings.
func literal(b []byte) string { return "'" + strings.ReplaceAll(string(b), "'", "''") + "'" }

// printable makes text from a database safe on a terminal: whatever is not
// printable, line ends and direction overrides included, is written as an
// escape, and what is longer than width characters is cut.
func printable(s string, width int) string {
	var b strings.Builder
	n := 0
	for len(s) > 0 {
		r, size := utf8.DecodeRuneInString(s)
		piece := s[:size]
		switch {
		case r == utf8.RuneError && size == 1:
			piece = fmt.Sprintf(`\x%02x`, s[0])
		case r == '\n':
			piece = `\n`
		case r == '\t':
			piece = `\t`
		case !unicode.IsPrint(r):
			piece = fmt.Sprintf(`\u%04x`, r)
		}
		if n += utf8.RuneCountInString(piece); n > width-1 && len(s) > size || n > width {
			return b.String() + "…"
		}
		b.WriteString(piece)
		s = s[size:]
	}
	return b.String()
}
