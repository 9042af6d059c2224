// Package diff compares two directory trees and says what changed: as a list,
// as a patch in git's format, or as statistics. It also names a tree by a
// digest.
//
// The trees may have been written by anybody, and one of them may still be
// written to. Nothing outside the two roots is ever opened, links are data, no
// file is waited for, and memory and time are bounded: files beyond
// Options.MaxText are treated as binary and streamed, and lines are matched by
// an algorithm that gives up on the shortest answer before it becomes
// quadratic.
package diff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"mayfly.dev/mayfly"
)

// Options say how to compare. The zero value leaves .git directories out,
// finds renames, and treats files beyond 4 MiB as binary.
type Options struct {
	// Git compares .git directories, too.
	Git bool
	// MaxText is the size in bytes above which a file is treated as binary.
	MaxText int64
	// NoRenames reports a moved file as one removed and one added.
	NoRenames bool
	// ObjectFormat of the ids in patches: "sha1" (default) or "sha256". git
	// wants that of the repository for binary patches.
	ObjectFormat string
}

const defaultMaxText = 4 << 20

// Diff is the difference between two trees. It reads file contents again when
// it is written, so the roots must stay open until then.
type Diff struct {
	from, to *tree
	opts     Options
	changes  []*change
	buf      []byte // to compare contents with
}

// change is what became of one path.
type change struct {
	path, from string // from is the old path of a rename
	kind       mayfly.ChangeKind
	old, new   *node // nil when absent
	same       bool  // the contents are equal
	similarity int   // of a rename, in percent
	binary     bool
	ins, del   int // lines
}

func (c *change) oldPath() string {
	if c.from != "" {
		return c.from
	}
	return c.path
}

// Compare finds the real differences among paths, which are relative to the
// roots. A path that is a directory in one tree alone stands for everything
// below it; one that is a directory in both stands for itself. Nil paths mean
// everything. Owners and times do not count.
//
// Directories are reported when they are added or removed empty, or when their
// permissions differ; what is in an added or removed one implies it.
func Compare(ctx context.Context, from, to *os.Root, paths []string, o Options) (*Diff, error) {
	if o.MaxText <= 0 {
		o.MaxText = defaultMaxText
	}
	if o.ObjectFormat == "" {
		o.ObjectFormat = "sha1"
	}
	if o.ObjectFormat != "sha1" && o.ObjectFormat != "sha256" {
		return nil, mayfly.Errorf(mayfly.Invalid, "unknown object format %q", o.ObjectFormat).Hint("use sha1 or sha256")
	}
	d := &Diff{from: newTree(from, o.Git), to: newTree(to, o.Git), opts: o}
	defer d.release()
	all, err := d.expand(ctx, paths)
	if err != nil {
		return nil, err
	}
	for _, p := range all {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := d.decide(p); err != nil {
			return nil, err
		}
	}
	if !o.NoRenames {
		if err := d.findRenames(ctx); err != nil {
			return nil, err
		}
	}
	slices.SortStableFunc(d.changes, func(a, b *change) int { return strings.Compare(a.path, b.path) })
	for _, c := range d.changes {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		if err := d.count(c); err != nil {
			return nil, err
		}
	}
	return d, nil
}

func (d *Diff) release() {
	d.from.close()
	d.to.close()
}

// expand turns candidates into a sorted list of paths to look at.
func (d *Diff) expand(ctx context.Context, paths []string) ([]string, error) {
	set := map[string]bool{}
	add := func(p string, _ *node) error {
		set[p] = true
		return ctx.Err()
	}
	if paths == nil {
		for _, t := range []*tree{d.from, d.to} {
			if err := t.walk(".", add); err != nil {
				return nil, err
			}
		}
	}
	for _, p := range paths {
		if !fs.ValidPath(strings.ToValidUTF8(p, "?")) || strings.IndexByte(p, 0) >= 0 {
			return nil, mayfly.Errorf(mayfly.Invalid, "bad path %q to compare", p)
		}
		if p == "." || d.from.skips(p) {
			continue
		}
		set[p] = true
		if err := d.expandOne(p, add); err != nil {
			return nil, err
		}
	}
	all := make([]string, 0, len(set))
	for p := range set {
		all = append(all, p)
	}
	slices.Sort(all)
	return all, nil
}

func (d *Diff) expandOne(p string, add func(string, *node) error) error {
	old, err := d.from.lookup(p)
	if err != nil {
		return err
	}
	now, err := d.to.lookup(p)
	if err != nil {
		return err
	}
	if old.isDir() && !now.isDir() {
		return d.from.walk(p, add)
	}
	if now.isDir() && !old.isDir() {
		return d.to.walk(p, add)
	}
	return nil
}

// decide looks at one path in both trees and records what is different.
func (d *Diff) decide(p string) error {
	old, err := d.from.lookup(p)
	if err != nil {
		return err
	}
	now, err := d.to.lookup(p)
	if err != nil {
		return err
	}
	switch {
	case old == nil && now == nil:
		return nil
	case old.isDir() && now.isDir():
		if old.mode != now.mode {
			d.add(&change{path: p, kind: mayfly.Modified, old: old, new: now, same: true})
		}
		return nil
	case old.isDir() || now.isDir():
		return d.decideDirectory(p, old, now)
	case old == nil:
		d.add(&change{path: p, kind: mayfly.Added, new: now})
		return nil
	case now == nil:
		d.add(&change{path: p, kind: mayfly.Removed, old: old})
		return nil
	}
	c := &change{path: p, kind: mayfly.Modified, old: old, new: now}
	if c.same, err = d.equal(c); err != nil {
		return err
	}
	if !c.same || old.mode != now.mode {
		d.add(c)
	}
	return nil
}

// decideDirectory records a directory that one tree has and the other has not.
func (d *Diff) decideDirectory(p string, old, now *node) error {
	if old != nil && !old.isDir() {
		d.add(&change{path: p, kind: mayfly.Removed, old: old})
	}
	if old.isDir() {
		empty, err := d.from.isEmpty(p)
		if err != nil {
			return err
		}
		if empty {
			d.add(&change{path: p, kind: mayfly.Removed, old: old})
		}
	}
	if now.isDir() {
		empty, err := d.to.isEmpty(p)
		if err != nil {
			return err
		}
		if empty {
			d.add(&change{path: p, kind: mayfly.Added, new: now})
		}
	}
	if now != nil && !now.isDir() {
		d.add(&change{path: p, kind: mayfly.Added, new: now})
	}
	return nil
}

func (d *Diff) add(c *change) { d.changes = append(d.changes, c) }

// equal compares type and content of a path that is there in both trees.
func (d *Diff) equal(c *change) (bool, error) {
	if c.old.kind() != c.new.kind() {
		return false, nil
	}
	switch {
	case c.old.isLink():
		return c.old.target == c.new.target, nil
	case !c.old.isRegular():
		return c.old.device == c.new.device, nil
	case c.old.size != c.new.size:
		return false, nil
	}
	a, err := d.from.open(c.oldPath())
	if err != nil {
		return false, err
	}
	defer a.Close()
	b, err := d.to.open(c.path)
	if err != nil {
		return false, err
	}
	defer b.Close()
	if d.buf == nil {
		const size = 64 << 10
		d.buf = make([]byte, 2*size)
	}
	return equalReaders(a, b, d.buf)
}

// equalReaders compares two contents; each gets one half of buf.
func equalReaders(a, b io.Reader, buf []byte) (bool, error) {
	x, y := buf[:len(buf)/2], buf[len(buf)/2:]
	for {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, err
			}
		}
		if errA != nil || errB != nil {
			return true, nil
		}
	}
}

// count finds out whether a change is binary and how many lines it touches.
func (d *Diff) count(c *change) error {
	if c.same || c.old.isDir() || c.new.isDir() {
		return nil
	}
	old, now, err := d.texts(c)
	if err != nil || c.binary {
		return err
	}
	for _, e := range lineEdits(splitLines(old), splitLines(now)) {
		c.del += e.a1 - e.a0
		c.ins += e.b1 - e.b0
	}
	return nil
}

// texts reads both sides of a change, or sets c.binary.
func (d *Diff) texts(c *change) (old, now []byte, err error) {
	binaryOld, binaryNew := false, false
	if old, binaryOld, err = d.from.text(c.oldPath(), c.old, d.opts.MaxText); err != nil {
		return nil, nil, err
	}
	if now, binaryNew, err = d.to.text(c.path, c.new, d.opts.MaxText); err != nil {
		return nil, nil, err
	}
	c.binary = binaryOld || binaryNew
	return old, now, nil
}

// Changes lists what differs, sorted by path. A file that became something
// else is Modified; one that became a directory is Removed.
func (d *Diff) Changes() []mayfly.Change {
	list := make([]mayfly.Change, 0, len(d.changes))
	for _, c := range d.changes {
		m := mayfly.Change{Kind: c.kind, Path: c.path, From: c.from, Binary: c.binary, Inserted: c.ins, Deleted: c.del}
		if c.old != nil {
			m.OldMode, m.OldSize = c.old.mode, c.old.size
		}
		if c.new != nil {
			m.NewMode, m.NewSize = c.new.mode, c.new.size
		}
		list = append(list, m)
	}
	return list
}

// Notes are remarks on what a patch cannot say: directories, special files,
// and permissions other than execution.
func (d *Diff) Notes() []string {
	var notes []string
	for _, c := range d.changes {
		switch {
		case c.old.isDir() || c.new.isDir():
			notes = append(notes, "directory: "+Quote(c.path))
		case c.old != nil && !c.old.inPatch() || c.new != nil && !c.new.inPatch():
			notes = append(notes, "not a file or link: "+Quote(c.path))
		case c.same && c.kind == mayfly.Modified && c.old.gitMode() == c.new.gitMode():
			notes = append(notes, fmt.Sprintf("permissions %04o to %04o: %s", c.old.mode&0o7777, c.new.mode&0o7777, Quote(c.path)))
		}
	}
	return notes
}

// changedError says that a tree was not what it had been a moment before.
func changedError(p string) error {
	return mayfly.Errorf(mayfly.Conflict, "%s changed while it was compared", Quote(p)).
		Hint("pause the environment, or compare snapshots")
}

func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || isNotDirectory(err)
}

// base is the last part of a path.
func base(p string) string { return path.Base(p) }
