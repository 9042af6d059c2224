package diff

import (
	"bufio"
	"fmt"
	"io"

	"mayfly.dev/mayfly"
)

// contextLines is how many unchanged lines surround a change.
const contextLines = 3

// WritePatch writes the difference in git's extended format, for git apply and
// tools like it: binary contents in full, names quoted as git does, renames as
// such. What git cannot hold is left out; Notes names it. A tree that changed
// since it was compared gives an error of kind mayfly.Conflict or a patch that
// is true of the changed files.
func (d *Diff) WritePatch(w io.Writer) error {
	defer d.release()
	p := &patch{d: d, w: bufio.NewWriterSize(w, 64<<10)}
	for _, c := range d.changes {
		if err := p.change(c); err != nil {
			return err
		}
	}
	return p.w.Flush()
}

type patch struct {
	d *Diff
	w *bufio.Writer
}

// change writes the sections of one change: one, or two when the type changed.
func (p *patch) change(c *change) error {
	old, now := c.old, c.new
	if !old.inPatch() {
		old = nil
	}
	if !now.inPatch() {
		now = nil
	}
	switch {
	case old == nil && now == nil:
		return nil
	case old != nil && now != nil && old.kind() != now.kind():
		if err := p.section(&change{path: c.path, kind: mayfly.Removed, old: old}); err != nil {
			return err
		}
		return p.section(&change{path: c.path, kind: mayfly.Added, new: now})
	case c.same && c.from == "" && old.gitMode() == now.gitMode():
		return nil // permissions that git does not record
	}
	return p.section(&change{
		path: c.path, from: c.from, kind: c.kind, old: old, new: now, same: c.same, similarity: c.similarity,
	})
}

func (p *patch) section(c *change) error {
	fmt.Fprintf(p.w, "diff --git %s %s\n", Quote("a/"+c.oldPath()), Quote("b/"+c.path))
	modes := ""
	switch {
	case c.old == nil:
		fmt.Fprintf(p.w, "new file mode %06o\n", c.new.gitMode())
	case c.new == nil:
		fmt.Fprintf(p.w, "deleted file mode %06o\n", c.old.gitMode())
	case c.old.gitMode() != c.new.gitMode():
		fmt.Fprintf(p.w, "old mode %06o\nnew mode %06o\n", c.old.gitMode(), c.new.gitMode())
	default:
		modes = fmt.Sprintf(" %06o", c.new.gitMode())
	}
	if c.from != "" {
		fmt.Fprintf(p.w, "similarity index %d%%\nrename from %s\nrename to %s\n", c.similarity, Quote(c.from), Quote(c.path))
	}
	if c.same {
		return nil
	}
	old, now, err := p.d.texts(c)
	if err != nil {
		return err
	}
	if c.binary {
		return p.binary(c, modes)
	}
	p.text(c, old, now, modes)
	return nil
}

// text writes the index line and the hunks.
func (p *patch) text(c *change, old, now []byte, modes string) {
	format := p.d.opts.ObjectFormat
	oldID, newID := zeroID(format), zeroID(format)
	oldName, newName := "/dev/null", "/dev/null"
	if c.old != nil {
		oldID, oldName = blobID(format, old), fileName("a/"+c.oldPath())
	}
	if c.new != nil {
		newID, newName = blobID(format, now), fileName("b/"+c.path)
	}
	if oldID == newID {
		return // the file changed back since it was compared
	}
	fmt.Fprintf(p.w, "index %s..%s%s\n", oldID, newID, modes)
	if len(old) == 0 && len(now) == 0 {
		return // an empty file comes or goes
	}
	fmt.Fprintf(p.w, "--- %s\n+++ %s\n", oldName, newName)
	p.hunks(splitLines(old), splitLines(now))
}

// fileName is a name in a --- or +++ line, where a space would end it unless a
// tab follows.
func fileName(name string) string {
	q := Quote(name)
	if q != name {
		return q
	}
	for i := range len(name) {
		if name[i] == ' ' {
			return name + "\t"
		}
	}
	return name
}

// hunks writes the edits with their context; edits whose contexts meet share
// a hunk.
func (p *patch) hunks(a, b [][]byte) {
	edits := lineEdits(a, b)
	for len(edits) > 0 {
		n := 1
		for n < len(edits) && edits[n].a0-edits[n-1].a1 <= 2*contextLines {
			n++
		}
		p.hunk(a, b, edits[:n])
		edits = edits[n:]
	}
}

func (p *patch) hunk(a, b [][]byte, edits []edit) {
	first, last := edits[0], edits[len(edits)-1]
	before := min(contextLines, first.a0)
	after := min(contextLines, len(a)-last.a1)
	a0, a1 := first.a0-before, last.a1+after
	b0, b1 := first.b0-before, last.b1+after
	fmt.Fprintf(p.w, "@@ -%s +%s @@\n", lineRange(a0, a1), lineRange(b0, b1))
	at := a0
	for _, e := range edits {
		p.lines(' ', a[at:e.a0])
		p.lines('-', a[e.a0:e.a1])
		p.lines('+', b[e.b0:e.b1])
		at = e.a1
	}
	p.lines(' ', a[at:a1])
}

func lineRange(start, end int) string {
	switch end - start {
	case 0:
		return fmt.Sprintf("%d,0", start)
	case 1:
		return fmt.Sprint(start + 1)
	}
	return fmt.Sprintf("%d,%d", start+1, end-start)
}

func (p *patch) lines(mark byte, lines [][]byte) {
	for _, l := range lines {
		p.w.WriteByte(mark)
		p.w.Write(l)
		if l[len(l)-1] != '\n' {
			p.w.WriteString("\n\\ No newline at end of file\n")
		}
	}
}
