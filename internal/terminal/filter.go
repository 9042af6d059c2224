// Package terminal keeps a person's terminal safe and in order: it filters
// what comes from inside environments, and switches raw mode on and off.
package terminal

import (
	"io"
	"unicode/utf8"
)

// Filter passes text on to a terminal: printable characters, tabs, line ends,
// carriage returns, backspaces and colours (SGR, ECMA-48 section 8.3.117).
// Everything else that a terminal would obey is left out: cursor movement,
// titles, clipboard, device reports, character sets, and also direction
// overrides, which make text look like another. Bytes that are not UTF-8
// become U+FFFD.
type Filter struct {
	w       io.Writer
	state   state
	seq     []byte // of the escape sequence being read, after ESC [
	hold    []byte // an incomplete UTF-8 sequence
	skipped int    // bytes of the string being skipped
	colour  bool   // colours are on
	out     []byte
}

type state byte

const (
	text        state = iota
	escape            // after ESC
	intermedial       // after ESC and an intermediate byte: one final byte follows
	control           // after ESC [
	str               // in a string that ST, BEL or a line end closes
	strEscape         // after ESC in such a string
)

// NewFilter returns a filter in front of w.
func NewFilter(w io.Writer) *Filter { return &Filter{w: w} }

// maxSGR bounds a colour sequence, maxString what a string can hide, in bytes.
const (
	maxSGR    = 64
	maxString = 4096
)

func (f *Filter) Write(p []byte) (int, error) {
	f.out = f.out[:0]
	data := p
	if len(f.hold) > 0 {
		data = append(f.hold, p...)
		f.hold = nil
	}
	for len(data) > 0 {
		r, n := utf8.DecodeRune(data)
		if r == utf8.RuneError && n == 1 && !utf8.FullRune(data) {
			f.hold = append([]byte(nil), data...)
			break
		}
		f.rune(r, data[:n])
		data = data[n:]
	}
	if len(f.out) > 0 {
		if _, err := f.w.Write(f.out); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// Close ends colours that were left on. It does not close the writer.
func (f *Filter) Close() error {
	f.out = f.out[:0]
	if len(f.hold) > 0 {
		f.out = utf8.AppendRune(f.out, utf8.RuneError)
		f.hold = nil
	}
	if f.colour {
		f.out = append(f.out, "\x1b[0m"...)
		f.colour = false
	}
	f.state = text
	_, err := f.w.Write(f.out)
	return err
}

const (
	esc = 0x1b
	bel = 0x07
	can = 0x18
	sub = 0x1a
)

func (f *Filter) rune(r rune, raw []byte) {
	if r == can || r == sub { // abort any sequence, show nothing
		f.state = text
		return
	}
	switch f.state {
	case text:
		f.text(r, raw)
	case escape:
		f.escape(r, raw)
	case intermedial:
		f.state = text
		if r == esc {
			f.state = escape
		} else if r >= 0x80 || r == '\n' {
			f.text(r, raw)
		}
	case control:
		f.control(r, raw)
	case str, strEscape:
		f.str(r, raw)
	}
}

func (f *Filter) text(r rune, raw []byte) {
	switch {
	case r == esc:
		f.state = escape
	case r == '\n', r == '\t', r == '\r', r == '\b':
		f.out = append(f.out, raw...)
	case r < ' ', r == 0x7f:
	case r == 0x9b: // CSI as one character
		f.state, f.seq = control, f.seq[:0]
	case r == 0x90, r == 0x98, r == 0x9d, r == 0x9e, r == 0x9f: // DCS, SOS, OSC, PM, APC
		f.state, f.skipped = str, 0
	case r >= 0x80 && r < 0xa0:
	case misleading(r):
	case r == utf8.RuneError:
		f.out = utf8.AppendRune(f.out, r)
	default:
		f.out = append(f.out, raw...)
	}
}

// misleading reports whether r changes the order in which text is shown:
// Unicode's bidirectional embeddings, overrides and isolates.
func misleading(r rune) bool {
	return r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069
}

func (f *Filter) escape(r rune, raw []byte) {
	switch {
	case r == esc:
	case r == '[':
		f.state, f.seq = control, f.seq[:0]
	case r == ']', r == 'P', r == 'X', r == '^', r == '_':
		f.state, f.skipped = str, 0
	case r >= 0x20 && r <= 0x2f:
		f.state = intermedial
	default:
		f.state = text
		if r < 0x20 || r >= 0x7f {
			f.text(r, raw) // no sequence begins like this
		}
	}
}

func (f *Filter) control(r rune, raw []byte) {
	switch {
	case r == 'm' && sgr(f.seq):
		f.out = append(append(append(f.out, "\x1b["...), f.seq...), 'm')
		f.colour = !resets(f.seq)
		f.state = text
	case r >= 0x40 && r <= 0x7e:
		f.state = text
	case r >= 0x20 && r <= 0x3f && len(f.seq) < maxSGR:
		f.seq = append(f.seq, byte(r))
	case r >= 0x20 && r <= 0x3f:
	case r == esc:
		f.state = escape
	default:
		f.state = text
		f.text(r, raw)
	}
}

// sgr reports whether the parameters are those of colours and styles.
func sgr(seq []byte) bool {
	if len(seq) >= maxSGR {
		return false
	}
	for _, b := range seq {
		if (b < '0' || b > '9') && b != ';' && b != ':' {
			return false
		}
	}
	return true
}

func resets(seq []byte) bool {
	for _, b := range seq {
		if b != '0' {
			return false
		}
	}
	return true
}

func (f *Filter) str(r rune, raw []byte) {
	f.skipped += len(raw)
	switch {
	case r == bel, r == 0x9c, f.state == strEscape && r == '\\':
		f.state = text
	case r == '\n', f.skipped > maxString: // nobody closes it: it must not hide the rest
		f.state = text
		f.text(r, raw)
	case f.state == strEscape && r == '[':
		f.state, f.seq = control, f.seq[:0]
	case r == esc:
		f.state = strEscape
	default:
		f.state = str
	}
}

// Safe returns s without anything that a terminal would obey.
func Safe(s string) string {
	var b []byte
	for _, r := range s {
		if r < ' ' || r >= 0x7f && r < 0xa0 || misleading(r) {
			r = utf8.RuneError
		}
		b = utf8.AppendRune(b, r)
	}
	return string(b)
}
