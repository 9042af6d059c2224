package diff

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"

	"mayfly.dev/mayfly"
)

// Types and permission bits as in st_mode; the same numbers on every system.
const (
	typeMask   = 0o170000
	typeSocket = 0o140000
	typeLink   = 0o120000
	typeFile   = 0o100000
	typeBlock  = 0o060000
	typeDir    = 0o040000
	typeChar   = 0o020000
	typeFIFO   = 0o010000
)

// node is what is at a path.
type node struct {
	mode   uint32
	size   int64
	target string // of a link
	device uint64 // of a device
}

func (n *node) kind() uint32 {
	if n == nil {
		return 0
	}
	return n.mode & typeMask
}

func (n *node) isDir() bool     { return n.kind() == typeDir }
func (n *node) isLink() bool    { return n.kind() == typeLink }
func (n *node) isRegular() bool { return n.kind() == typeFile }

// inPatch reports whether git can hold it.
func (n *node) inPatch() bool { return n.isRegular() || n.isLink() }

// gitMode is the mode that git records.
func (n *node) gitMode() uint32 {
	switch {
	case n.isLink():
		return 0o120000
	case n != nil && n.mode&0o100 != 0:
		return 0o100755
	}
	return 0o100644
}

func newNode(st fs.FileInfo) *node {
	m := st.Mode()
	n := &node{mode: uint32(m.Perm())}
	for bit, flag := range map[uint32]fs.FileMode{0o4000: fs.ModeSetuid, 0o2000: fs.ModeSetgid, 0o1000: fs.ModeSticky} {
		if m&flag != 0 {
			n.mode |= bit
		}
	}
	switch {
	case m.IsRegular():
		n.mode |= typeFile
		n.size = st.Size()
	case m&fs.ModeSymlink != 0:
		n.mode = typeLink | 0o777
		n.size = st.Size()
	case m.IsDir():
		n.mode |= typeDir
	case m&fs.ModeNamedPipe != 0:
		n.mode |= typeFIFO
	case m&fs.ModeSocket != 0:
		n.mode |= typeSocket
	case m&fs.ModeCharDevice != 0:
		n.mode |= typeChar
	default:
		n.mode |= typeBlock
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && n.mode&typeMask != typeFile {
		n.device = uint64(sys.Rdev) //nolint:unconvert // not 64 bits everywhere
	}
	return n
}

// tree reads one of the compared trees. Links are never followed: os.Root
// would follow those that stay inside, so every parent is looked at first.
type tree struct {
	root *os.Root
	git  bool            // .git directories are part of it
	dirs map[string]bool // paths known to be real directories, or known not to
	sub  *os.Root        // the directory that was used last, as its neighbours follow
	name string          // of sub
}

// at returns the directory that holds p, and p's last part.
func (t *tree) at(p string) (*os.Root, string, error) {
	dir, last := path.Split(p)
	if dir == "" {
		return t.root, last, nil
	}
	if t.sub != nil && t.name == dir {
		return t.sub, last, nil
	}
	sub, err := t.root.OpenRoot(dir)
	if err != nil {
		return nil, "", err
	}
	t.close()
	t.sub, t.name = sub, dir
	return sub, last, nil
}

// close releases the directory that was used last.
func (t *tree) close() {
	if t.sub != nil {
		t.sub.Close()
		t.sub = nil
	}
}

func newTree(root *os.Root, git bool) *tree {
	return &tree{root: root, git: git, dirs: map[string]bool{".": true}}
}

// maxPath is the longest path that is looked at, in bytes: no tool could open
// a longer one.
const maxPath = 4096

// maxKnownDirs bounds the memory for known directories.
const maxKnownDirs = 1 << 20

// skips reports whether p is or lies in a .git that is left out.
func (t *tree) skips(p string) bool {
	if t.git {
		return false
	}
	return p == ".git" || strings.HasPrefix(p, ".git/") || strings.Contains(p, "/.git/") || strings.HasSuffix(p, "/.git")
}

func isNotDirectory(err error) bool { return errors.Is(err, syscall.ENOTDIR) }

// isDirectory reports whether p is a directory without a link on the way.
func (t *tree) isDirectory(p string) (bool, error) {
	if is, known := t.dirs[p]; known {
		return is, nil
	}
	if len(p) > maxPath {
		return false, tooDeep(p)
	}
	parent, err := t.isDirectory(path.Dir(p))
	if err != nil {
		return false, err
	}
	is := false
	if parent {
		st, err := t.root.Lstat(p)
		if err != nil && !missing(err) {
			return false, fmt.Errorf("look at %s: %w", Quote(p), err)
		}
		is = err == nil && st.IsDir()
	}
	if len(t.dirs) < maxKnownDirs {
		t.dirs[p] = is
	}
	return is, nil
}

func tooDeep(p string) error {
	return mayfly.Errorf(mayfly.Exhausted, "%s… is nested too deep: its path has more than %d bytes", Quote(p[:60]), maxPath).
		Hint("remove the directory, or compare a smaller part")
}

// lookup says what is at p; nil when there is nothing.
func (t *tree) lookup(p string) (*node, error) {
	if ok, err := t.isDirectory(path.Dir(p)); !ok || err != nil {
		return nil, err
	}
	dir, last, err := t.at(p)
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", Quote(p), err)
	}
	st, err := dir.Lstat(last)
	if missing(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look at %s: %w", Quote(p), err)
	}
	n := newNode(st)
	if n.isLink() {
		if n.target, err = dir.Readlink(last); err != nil {
			return nil, changedError(p)
		}
		n.size = int64(len(n.target))
	}
	return n, nil
}

// open opens the regular file at p.
func (t *tree) open(p string) (*os.File, error) {
	dir, last, err := t.at(p)
	var f *os.File
	if err == nil {
		f, err = dir.OpenFile(last, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	}
	if missing(err) || errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO) {
		return nil, changedError(p)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", Quote(p), err)
	}
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, changedError(p)
	}
	return f, nil
}

// text returns the content of a file or the target of a link; binary is set,
// and the content not returned, when it is not fit to be shown by lines.
func (t *tree) text(p string, n *node, limit int64) (b []byte, binary bool, err error) {
	switch {
	case n == nil:
		return nil, false, nil
	case n.isLink():
		return []byte(n.target), false, nil
	case !n.isRegular():
		return nil, false, nil
	case n.size > limit:
		return nil, true, nil
	}
	f, err := t.open(p)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	if b, err = io.ReadAll(io.LimitReader(f, n.size+1)); err != nil {
		return nil, false, fmt.Errorf("read %s: %w", Quote(p), err)
	}
	if int64(len(b)) != n.size {
		return nil, false, changedError(p)
	}
	if isBinary(b) {
		return nil, true, nil
	}
	return b, false, nil
}

// maxLines is how many lines a file may have to be compared by lines.
const maxLines = 500_000

// isBinary applies git's rule, a NUL in the first 8000 bytes, and a bound on
// the number of lines.
func isBinary(b []byte) bool {
	return bytes.IndexByte(b[:min(len(b), 8000)], 0) >= 0 || bytes.Count(b, []byte("\n")) > maxLines
}

// children lists a directory, sorted by name.
func (t *tree) children(dir string) ([]string, []*node, error) {
	sub, err := t.root.OpenRoot(dir)
	if missing(err) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, fmt.Errorf("list %s: %w", Quote(dir), err)
	}
	defer sub.Close()
	f, err := sub.Open(".")
	if err != nil {
		return nil, nil, fmt.Errorf("list %s: %w", Quote(dir), err)
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return nil, nil, fmt.Errorf("list %s: %w", Quote(dir), err)
	}
	slices.Sort(names)
	kept := names[:0]
	var nodes []*node
	for _, name := range names {
		if t.skips(name) {
			continue
		}
		st, err := sub.Lstat(name)
		if missing(err) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("look at %s: %w", Quote(path.Join(dir, name)), err)
		}
		kept, nodes = append(kept, name), append(nodes, newNode(st))
	}
	return kept, nodes, nil
}

// walk calls visit for everything below dir: what is in a directory comes
// right after it, names in the order of their bytes. The target of links is
// not filled in.
func (t *tree) walk(dir string, visit func(p string, n *node) error) error {
	names, nodes, err := t.children(dir)
	if err != nil {
		return err
	}
	for i, name := range names {
		p := name
		if dir != "." {
			p = dir + "/" + name
		}
		if len(p) > maxPath {
			return tooDeep(p)
		}
		if err := visit(p, nodes[i]); err != nil {
			return err
		}
		if nodes[i].isDir() {
			t.dirs[p] = true
			if err := t.walk(p, visit); err != nil {
				return err
			}
		}
	}
	return nil
}

// isEmpty reports whether nothing but directories is below p.
func (t *tree) isEmpty(p string) (bool, error) {
	names, _, err := t.children(p)
	return len(names) == 0, err
}
