package modelapi

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"mayfly.dev/mayfly"
)

// maxDepth is how deep arrays and objects may lie in each other.
const maxDepth = 1000

// kind of a JSON value.
type kind byte

const (
	absent kind = iota
	null
	boolean
	number
	text
	array
	object
)

// value is a parsed JSON value. The zero value is an absent one, on which all
// questions are answered with nothing.
type value struct {
	kind    kind
	str     string // of text, decoded; of number and boolean, as written
	raw     []byte // as written
	items   []value
	members []member
}

type member struct {
	name string
	v    value
}

// get is the member of that name.
func (v value) get(name string) value {
	for i := range v.members {
		if v.members[i].name == name {
			return v.members[i].v
		}
	}
	return value{}
}

// at follows names into objects.
func (v value) at(names ...string) value {
	for _, n := range names {
		v = v.get(n)
	}
	return v
}

// text is the value of a string; "" for everything else.
func (v value) text() string {
	if v.kind == text {
		return v.str
	}
	return ""
}

func (v value) is(s string) bool { return v.kind == text && v.str == s }

func (v value) bool() bool { return v.kind == boolean && v.str == "true" }

// int is the value of a number cut to its whole part, saturated; 0 for
// everything else.
func (v value) int() int64 {
	if v.kind != number {
		return 0
	}
	if n, err := strconv.ParseInt(v.str, 10, 64); err == nil {
		return n
	}
	f, _ := strconv.ParseFloat(v.str, 64)
	return int64(max(-1<<62, min(f, 1<<62)))
}

func (v value) intPointer() *int64 {
	if v.kind != number {
		return nil
	}
	n := v.int()
	return &n
}

func (v value) floatPointer() *float64 {
	if v.kind != number {
		return nil
	}
	f, err := strconv.ParseFloat(v.str, 64)
	if err != nil {
		return nil
	}
	return &f
}

// parser reads JSON (RFC 8259) in one pass. Names that an object has twice are
// an error, since readers disagree about them; bytes that are not UTF-8 become
// U+FFFD.
type parser struct {
	in      []byte
	pos     int
	depth   int
	scratch []byte   // for a string that is being decoded
	items   []value  // of arrays that have not ended
	members []member // of objects that have not ended
	room    []member // of objects that have ended
	seen    []string // short strings, most of which repeat
}

// parseValue reads one JSON value with nothing but space around it.
func parseValue(in []byte) (value, error) { return new(parser).whole(in) }

// whole reads one JSON value with nothing but space around it. The value that
// the parser read before is valid no longer.
func (p *parser) whole(in []byte) (value, error) {
	p.in, p.pos, p.depth = in, 0, 0
	p.items, p.members, p.room = p.items[:0], p.members[:0], p.room[:0]
	v, err := p.value()
	if err != nil {
		return value{}, err
	}
	if p.space(); p.pos < len(in) {
		return value{}, p.errorf("more after the value")
	}
	return v, nil
}

func (p *parser) errorf(format string, args ...any) error {
	return mayfly.Errorf(mayfly.Invalid, "JSON at byte %d: %s", p.pos, fmt.Sprintf(format, args...))
}

func (p *parser) space() {
	for p.pos < len(p.in) {
		switch p.in[p.pos] {
		case ' ', '\t', '\r', '\n':
			p.pos++
		default:
			return
		}
	}
}

// peek is the next byte that is no space; 0 at the end.
func (p *parser) peek() byte {
	p.space()
	if p.pos < len(p.in) {
		return p.in[p.pos]
	}
	return 0
}

func (p *parser) value() (value, error) {
	c := p.peek()
	start := p.pos
	v, err := p.valueOf(c)
	v.raw = p.in[start:p.pos]
	return v, err
}

func (p *parser) valueOf(c byte) (value, error) {
	switch {
	case c == '{':
		return p.object()
	case c == '[':
		return p.array()
	case c == '"':
		s, err := p.short()
		return value{kind: text, str: s}, err
	case c == '-' || c >= '0' && c <= '9':
		return p.number()
	}
	for _, w := range words {
		if bytes.HasPrefix(p.in[p.pos:], []byte(w.name)) {
			p.pos += len(w.name)
			return value{kind: w.kind, str: w.name}, nil
		}
	}
	if p.pos == len(p.in) {
		return value{}, p.errorf("it ends too early")
	}
	return value{}, p.errorf("unexpected %q", c)
}

var words = [...]struct {
	name string
	kind kind
}{{"true", boolean}, {"false", boolean}, {"null", null}}

func (p *parser) enter() error {
	p.pos++
	if p.depth++; p.depth > maxDepth {
		return p.errorf("nested more than %d deep", maxDepth)
	}
	return nil
}

// more is called after an element: it is true when another follows.
func (p *parser) more(end byte) (bool, error) {
	switch c := p.peek(); c {
	case ',':
		p.pos++
		return true, nil
	case end:
		p.pos++
		p.depth--
		return false, nil
	}
	return false, p.errorf("expected a comma or %q", end)
}

func (p *parser) array() (value, error) {
	v := value{kind: array}
	if err := p.enter(); err != nil {
		return v, err
	}
	if p.peek() == ']' {
		p.pos++
		p.depth--
		return v, nil
	}
	start := len(p.items)
	for {
		item, err := p.value()
		if err != nil {
			return v, err
		}
		p.items = append(p.items, item)
		if more, err := p.more(']'); err != nil {
			return v, err
		} else if !more {
			break
		}
	}
	v.items, p.items = slices.Clone(p.items[start:]), p.items[:start]
	return v, nil
}

// ended moves the members of an object out of the way.
func (p *parser) ended(list []member) []member {
	n := len(p.room)
	if cap(p.room)-n < len(list) {
		n, p.room = 0, make([]member, 0, max(len(list), min(2*cap(p.room), 256), 8))
	}
	p.room = append(p.room, list...)
	return p.room[n:len(p.room):len(p.room)]
}

func (p *parser) object() (value, error) {
	v := value{kind: object}
	if err := p.enter(); err != nil {
		return v, err
	}
	if p.peek() == '}' {
		p.pos++
		p.depth--
		return v, nil
	}
	start := len(p.members)
	for {
		name, err := p.name()
		if err != nil {
			return v, err
		}
		item, err := p.value()
		if err != nil {
			return v, err
		}
		p.members = append(p.members, member{name, item})
		if more, err := p.more('}'); err != nil {
			return v, err
		} else if !more {
			break
		}
	}
	v.members, p.members = p.ended(p.members[start:]), p.members[:start]
	return v, p.once(v.members)
}

// name reads a member's name and the colon.
func (p *parser) name() (string, error) {
	if p.peek() != '"' {
		return "", p.errorf("expected a name")
	}
	name, err := p.short()
	if err != nil {
		return "", err
	}
	if p.peek() != ':' {
		return "", p.errorf("expected a colon")
	}
	p.pos++
	return name, nil
}

// short reads a string that is probably short and was seen before.
func (p *parser) short() (string, error) {
	rest := p.in[p.pos+1:]
	n := bytes.IndexByte(rest[:min(len(rest), 64)], '"')
	if n <= 0 {
		return p.text()
	}
	if p.seen == nil {
		p.seen = newSeen()
	}
	at := &p.seen[(n*31^int(rest[0])*7^int(rest[n-1]))%len(p.seen)]
	if *at == string(rest[:n]) {
		p.pos += n + 2
		return *at, nil
	}
	s, err := p.text()
	if err == nil && s == string(rest[:n]) { // no escapes, nothing invalid
		*at = s
	}
	return s, err
}

func newSeen() []string { return make([]string, 128) }

// once checks that no name is there twice.
func (p *parser) once(list []member) error {
	if len(list) <= 8 {
		for i := range list {
			for j := range i {
				if list[i].name == list[j].name {
					return p.errorf("%q is there twice", list[i].name)
				}
			}
		}
		return nil
	}
	seen := make(map[string]bool, len(list))
	for _, m := range list {
		if seen[m.name] {
			return p.errorf("%q is there twice", m.name)
		}
		seen[m.name] = true
	}
	return nil
}

func (p *parser) digits() int {
	start := p.pos
	for p.pos < len(p.in) && p.in[p.pos] >= '0' && p.in[p.pos] <= '9' {
		p.pos++
	}
	return p.pos - start
}

func (p *parser) number() (value, error) {
	start := p.pos
	if p.in[p.pos] == '-' {
		p.pos++
	}
	first := p.pos
	if n := p.digits(); n == 0 || n > 1 && p.in[first] == '0' {
		return value{}, p.errorf("not a number")
	}
	if p.pos < len(p.in) && p.in[p.pos] == '.' {
		p.pos++
		if p.digits() == 0 {
			return value{}, p.errorf("not a number")
		}
	}
	if p.pos < len(p.in) && p.in[p.pos]|0x20 == 'e' {
		p.pos++
		if p.pos < len(p.in) && (p.in[p.pos] == '+' || p.in[p.pos] == '-') {
			p.pos++
		}
		if p.digits() == 0 {
			return value{}, p.errorf("not a number")
		}
	}
	return value{kind: number, str: string(p.in[start:p.pos])}, nil
}

// text reads a string and decodes it.
func (p *parser) text() (string, error) {
	p.pos++
	start := p.pos
	if err := p.plain(); err != nil {
		return "", err
	}
	if p.in[p.pos] == '\\' {
		return p.escaped(start)
	}
	p.pos++
	return valid(p.in[start : p.pos-1]), nil
}

// valid copies a string; bytes of it that are not UTF-8 become U+FFFD.
func valid(s []byte) string {
	if !utf8.Valid(s) {
		s = bytes.ToValidUTF8(s, []byte("\uFFFD"))
	}
	return string(s)
}

// Every byte of a word is looked at at once. Where a byte of x is zero, the
// lowest bit set in (x-ones)&^x&highs is in the first of them.
const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// special marks the first byte of a word that is a quote, a backslash or a
// control character; what is marked behind it means nothing.
func special(w uint64) uint64 {
	quote, backslash := w^ones*'"', w^ones*'\\'
	return ((quote-ones)&^quote | (backslash-ones)&^backslash | (w-ones*0x20)&^w) & highs
}

// plain moves to the next quote or escape of a string.
func (p *parser) plain() error {
	rest := p.in[p.pos:]
	n := 0
	for ; n+8 <= len(rest); n += 8 {
		if mark := special(binary.LittleEndian.Uint64(rest[n:])); mark != 0 {
			n += bits.TrailingZeros64(mark) / 8
			break
		}
	}
	for n < len(rest) && rest[n] >= 0x20 && rest[n] != '"' && rest[n] != '\\' {
		n++
	}
	p.pos += n
	switch {
	case n == len(rest):
		return p.errorf("a string does not end")
	case rest[n] < 0x20:
		return p.errorf("a control character in a string")
	}
	return nil
}

// escaped goes on with a string that began at start, from its first escape.
func (p *parser) escaped(start int) (string, error) {
	out := append(p.scratch[:0], p.in[start:p.pos]...)
	for p.in[p.pos] != '"' {
		r, err := p.escape()
		if err != nil {
			return "", err
		}
		out = utf8.AppendRune(out, r)
		from := p.pos
		if err := p.plain(); err != nil {
			return "", err
		}
		out = append(out, p.in[from:p.pos]...)
	}
	p.pos++
	p.scratch = out
	return valid(out), nil
}

const escapes = `"\/bfnrt`
const escaped = "\"\\/\b\f\n\r\t"

func (p *parser) escape() (rune, error) {
	p.pos++
	if p.pos == len(p.in) {
		return 0, p.errorf("a string does not end")
	}
	if i := strings.IndexByte(escapes, p.in[p.pos]); i >= 0 {
		p.pos++
		return rune(escaped[i]), nil
	}
	high, ok := p.hex(p.pos)
	if !ok {
		return 0, p.errorf("an unknown escape")
	}
	p.pos += 5
	if !utf16.IsSurrogate(high) {
		return high, nil
	}
	if p.pos < len(p.in) && p.in[p.pos] == '\\' {
		if low, ok := p.hex(p.pos + 1); ok && utf16.DecodeRune(high, low) != utf8.RuneError {
			p.pos += 6
			return utf16.DecodeRune(high, low), nil
		}
	}
	return utf8.RuneError, nil
}

// hex reads uXXXX at pos.
func (p *parser) hex(pos int) (rune, bool) {
	if pos+5 > len(p.in) || p.in[pos] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(p.in[pos+1:pos+5]), 16, 32)
	return rune(n), err == nil
}
