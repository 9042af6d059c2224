package diff

import "strings"

// Quote writes a path the way git does: as it is, or in double quotes with
// escapes as in C when it holds a control character, a quote, a backslash, or
// a byte outside ASCII.
func Quote(p string) string {
	if !needsQuotes(p) {
		return p
	}
	return `"` + escape(p) + `"`
}

func needsQuotes(p string) bool {
	for i := range len(p) {
		if c := p[i]; c < 0x20 || c >= 0x7f || c == '"' || c == '\\' {
			return true
		}
	}
	return false
}

func escape(p string) string {
	const short = "abtnvfr" // for bytes 7 to 13
	var b strings.Builder
	for i := range len(p) {
		switch c := p[i]; {
		case c >= 7 && c <= 13:
			b.WriteByte('\\')
			b.WriteByte(short[c-7])
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c < 0x20 || c >= 0x7f:
			b.WriteByte('\\')
			b.WriteByte('0' + c>>6)
			b.WriteByte('0' + c>>3&7)
			b.WriteByte('0' + c&7)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}
