package wire

import "encoding/binary"

// AppendString appends a string with its length.
func AppendString(b []byte, s string) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// AppendStrings appends a list of strings with their number.
func AppendStrings(b []byte, list []string) []byte {
	b = binary.LittleEndian.AppendUint32(b, uint32(len(list)))
	for _, s := range list {
		b = AppendString(b, s)
	}
	return b
}

// Parser takes a message apart. After the first value that is not there, all
// others are zero and Done reports false, so that one check at the end is
// enough.
type Parser struct {
	b   []byte
	bad bool
}

// NewParser returns a parser of b, which it does not copy.
func NewParser(b []byte) *Parser { return &Parser{b: b} }

// Done reports whether everything was there and nothing is left.
func (p *Parser) Done() bool { return !p.bad && len(p.b) == 0 }

func (p *Parser) take(n uint32) []byte {
	if p.bad || uint64(n) > uint64(len(p.b)) {
		p.bad = true
		return nil
	}
	taken := p.b[:n]
	p.b = p.b[n:]
	return taken
}

// Byte takes one byte.
func (p *Parser) Byte() byte {
	if b := p.take(1); b != nil {
		return b[0]
	}
	return 0
}

// Uint16 takes two bytes.
func (p *Parser) Uint16() uint16 {
	if b := p.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

// Uint32 takes four bytes.
func (p *Parser) Uint32() uint32 {
	if b := p.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

// Uint64 takes eight bytes.
func (p *Parser) Uint64() uint64 {
	if b := p.take(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

// String takes a string with its length.
func (p *Parser) String() string { return string(p.take(p.Uint32())) }

// Strings takes a list of strings. Every string needs four bytes at least, so
// that a list cannot claim more memory than a small multiple of its message.
func (p *Parser) Strings() []string {
	n := p.Uint32()
	if p.bad || uint64(n)*4 > uint64(len(p.b)) {
		p.bad = true
		return nil
	}
	list := make([]string, 0, n)
	for range n {
		list = append(list, p.String())
	}
	return list
}
