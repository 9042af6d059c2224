package diff

import (
	"fmt"
	"io"
	"unicode"
	"unicode/utf8"
)

// SafeWriter passes text on to a terminal and makes visible what would act on
// it: control characters but newline and tab (ESC becomes ^[), C1 controls,
// characters that reorder or hide text, and bytes that are no UTF-8.
//
// A character may be split between writes; Flush writes what is left of one.
type SafeWriter struct {
	w    io.Writer
	part []byte // an unfinished character
	out  []byte
}

// NewSafeWriter returns a SafeWriter on top of w.
func NewSafeWriter(w io.Writer) *SafeWriter { return &SafeWriter{w: w} }

func (s *SafeWriter) Write(p []byte) (int, error) {
	text := append(s.part, p...)
	s.out = s.out[:0]
	for len(text) > 0 {
		if !utf8.FullRune(text) {
			break
		}
		r, n := utf8.DecodeRune(text)
		s.out = appendVisible(s.out, r, text[:n])
		text = text[n:]
	}
	s.part = append([]byte(nil), text...)
	if _, err := s.w.Write(s.out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Flush writes the bytes of an unfinished character.
func (s *SafeWriter) Flush() error {
	s.out = s.out[:0]
	for _, c := range s.part {
		s.out = fmt.Appendf(s.out, `\x%02x`, c)
	}
	s.part = nil
	_, err := s.w.Write(s.out)
	return err
}

func appendVisible(out []byte, r rune, raw []byte) []byte {
	switch {
	case r == '\n' || r == '\t':
		return append(out, raw...)
	case r == utf8.RuneError && len(raw) == 1:
		return fmt.Appendf(out, `\x%02x`, raw[0])
	case r < 0x20:
		return append(out, '^', byte(r)+'@')
	case r == 0x7f:
		return append(out, '^', '?')
	case unicode.Is(unicode.Cc, r), unicode.Is(unicode.Cf, r), r == '\u2028', r == '\u2029':
		return fmt.Appendf(out, `\u%04x`, r)
	}
	return append(out, raw...)
}
