package diff

import (
	"bufio"
	"compress/zlib"
	"fmt"
	"io"
)

// binary writes both contents in full, so that the patch can be taken back.
func (p *patch) binary(c *change, modes string) error {
	format := p.d.opts.ObjectFormat
	oldID, newID := zeroID(format), zeroID(format)
	var err error
	if c.old != nil {
		if oldID, err = p.d.from.id(format, c.oldPath(), c.old); err != nil {
			return err
		}
	}
	if c.new != nil {
		if newID, err = p.d.to.id(format, c.path, c.new); err != nil {
			return err
		}
	}
	if oldID == newID {
		return nil // the file changed back since it was compared
	}
	fmt.Fprintf(p.w, "index %s..%s%s\nGIT binary patch\n", oldID, newID, modes)
	if err := p.literal(p.d.to, c.path, c.new); err != nil {
		return err
	}
	return p.literal(p.d.from, c.oldPath(), c.old)
}

// literal writes one content: its size, then its zlib stream in base 85, then
// an empty line.
func (p *patch) literal(t *tree, name string, n *node) error {
	var in io.Reader = &io.LimitedReader{}
	size := int64(0)
	if n != nil {
		size = n.size
		f, err := t.open(name)
		if err != nil {
			return err
		}
		defer f.Close()
		in = io.LimitReader(f, size)
	}
	fmt.Fprintf(p.w, "literal %d\n", size)
	lines := &base85Lines{w: p.w}
	z := zlib.NewWriter(lines)
	m, err := io.Copy(z, in)
	if err != nil {
		return fmt.Errorf("read %s: %w", Quote(name), err)
	}
	if m != size {
		return changedError(name)
	}
	if err := z.Close(); err != nil {
		return err
	}
	lines.flush()
	_, err = p.w.WriteString("\n")
	return err
}

// base85Lines writes lines of up to 52 bytes in git's base 85: a letter for
// the number of bytes (A to Z for 1 to 26, a to z for 27 to 52), then five
// characters for every four bytes, the last ones padded with zeros.
type base85Lines struct {
	w   *bufio.Writer
	buf [52]byte
	n   int
}

const base85Alphabet = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"

// Write keeps its errors in the buffered writer.
func (l *base85Lines) Write(p []byte) (int, error) {
	total := len(p)
	for len(p) > 0 {
		k := copy(l.buf[l.n:], p)
		l.n, p = l.n+k, p[k:]
		if l.n == len(l.buf) {
			l.flush()
		}
	}
	return total, nil
}

func (l *base85Lines) flush() {
	if l.n == 0 {
		return
	}
	length := byte('A' + l.n - 1)
	if l.n > 26 {
		length = byte('a' + l.n - 27)
	}
	l.w.WriteByte(length)
	clear(l.buf[l.n:])
	for i := 0; i < l.n; i += 4 {
		v := uint32(l.buf[i])<<24 | uint32(l.buf[i+1])<<16 | uint32(l.buf[i+2])<<8 | uint32(l.buf[i+3])
		var five [5]byte
		for k := 4; k >= 0; k-- {
			five[k] = base85Alphabet[v%85]
			v /= 85
		}
		l.w.Write(five[:])
	}
	l.w.WriteByte('\n')
	l.n = 0
}
