package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// MaxCandidates bounds the result of Candidates.
const MaxCandidates = 5_000_000

// Candidates returns the paths that may differ between two states of an
// overlay: the merged view of the upper directory from over fromLower, and
// that of to over toLower, topmost first. An empty from or to stands for the
// lower layers alone. The paths are below prefix and relative to it ("." is
// prefix itself), in ascending order, arbitrary bytes. Every path that differs
// is among them, also below directories that were moved, replaced or deleted;
// some that do not differ may be.
//
// Its cost follows the size of the layers that the two do not share: those are
// read, with their whiteouts, opaque directories and redirects, the others are
// only consulted below such a mark. Between states of one volume on btrfs,
// what has not changed since it was in both of them is left out.
//
// More than MaxCandidates, or directories nested too deeply, give an error of
// kind mayfly.Exhausted.
func Candidates(ctx context.Context, from, to string, fromLower, toLower []string, prefix string) ([]string, error) {
	c := &comparison{ctx: ctx, found: map[string]struct{}{}}
	stacks := [2][]string{stack(from, fromLower), stack(to, toLower)}
	own := [2][]string{}
	own[0], own[1] = withoutShared(stacks[0], stacks[1])
	if len(own[0])+len(own[1]) == 0 {
		return nil, nil
	}
	err := c.run(stacks, own, strings.Split(filepath.Clean("/" + prefix)[1:], "/"))
	if err != nil {
		return nil, fmt.Errorf("compare %s and %s: %w", name(from), name(to), err)
	}
	paths := make([]string, 0, len(c.found))
	for p := range c.found {
		paths = append(paths, p)
	}
	slices.Sort(paths)
	return paths, nil
}

func name(upper string) string {
	if upper == "" {
		return "the layers below"
	}
	return upper
}

func stack(upper string, lower []string) []string {
	if upper == "" {
		return lower
	}
	return append([]string{upper}, lower...)
}

// withoutShared cuts the layers off that are at the bottom of both.
func withoutShared(a, b []string) (ownA, ownB []string) {
	for len(a) > 0 && len(b) > 0 && a[len(a)-1] == b[len(b)-1] {
		a, b = a[:len(a)-1], b[:len(b)-1]
	}
	return a, b
}

// comparison collects candidates. At each place it has open directories of the
// layer that it reads, of that layer's peer and of both merged views, any of
// the last three -1 when there is no such directory.
type comparison struct {
	ctx   context.Context
	found map[string]struct{}
	same  bool // layer and peer are states of one volume on btrfs
	items searchArgs
}

// place is one directory in all that are compared.
type place struct {
	layer, peer int
	view        [2]int
}

func (c *comparison) run(stacks, own [2][]string, prefix []string) error {
	var at place
	for i, s := range stacks {
		at.view[i] = -1
		if len(s) == 0 {
			continue
		}
		v, err := OpenView(c.ctx, s)
		if err != nil {
			return err
		}
		defer v.Close()
		dir, err := v.Root().Open(".")
		if err != nil {
			return err
		}
		defer dir.Close()
		at.view[i] = int(dir.Fd())
	}
	for i := range own {
		for _, layer := range own[i] {
			peer := ""
			if len(own[0]) == 1 && len(own[1]) == 1 {
				peer = own[1-i][0]
			}
			if err := c.layer(at, layer, peer, prefix); err != nil {
				return err
			}
		}
	}
	return nil
}

// layer reads one layer that is not shared. With a peer, the one layer in
// which the other state differs, what is the same in both says nothing.
func (c *comparison) layer(at place, layer, peer string, prefix []string) error {
	return withDir(layer, func(fd int) error {
		at.layer, at.peer = fd, -1
		if peer == "" {
			return c.descend(at, prefix)
		}
		return withDir(peer, func(fd int) (err error) {
			at.peer = fd
			if c.same, err = sameVolume(layer, peer, at); err != nil {
				return err
			}
			return c.descend(at, prefix)
		})
	})
}

// sameVolume reports whether unchanged inodes can be told by btrfs, which
// presupposes that the two have one history: each snapshot ends a transaction
// of the file system, so an inode with the same last transaction is the same.
func sameVolume(layer, peer string, at place) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Fstatfs(at.layer, &st); err != nil {
		return false, err
	}
	if v := volumeOf(layer); st.Type != unix.BTRFS_SUPER_MAGIC || v == "" || v != volumeOf(peer) {
		return false, nil
	}
	mine, err := readMarks(at.layer)
	if err != nil {
		return false, err
	}
	theirs, err := readMarks(at.peer)
	if err != nil || mine != theirs {
		return false, err
	}
	// Inodes of the live state may have changed in memory only.
	return true, unix.Syncfs(at.layer)
}

// descend goes to the prefix, and reads there.
func (c *comparison) descend(at place, prefix []string) error {
	if len(prefix) == 1 && prefix[0] == "" {
		prefix = nil
	}
	var open []int
	defer func() { closeAll(open) }()
	for i, name := range prefix {
		var st unix.Stat_t
		err := unix.Fstatat(at.layer, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if isMissing(err) {
			return nil
		} else if err != nil {
			return err
		}
		inner, plain, err := c.enter(at, name, &st)
		open = append(open, inner.fds()...)
		if err != nil {
			return err
		}
		if !plain {
			return c.expandBelow(at.view, prefix[i:])
		}
		at = inner
	}
	c.add(".")
	return c.dir(at, "", 0)
}

// expandBelow adds all that is at the path in the views.
func (c *comparison) expandBelow(view [2]int, path []string) error {
	for _, fd := range view {
		if fd < 0 {
			continue
		}
		parent, open := fd, []int(nil)
		var err error
		for _, name := range path[:len(path)-1] {
			if parent, err = openDir(parent, name); err != nil {
				break
			}
			open = append(open, parent)
		}
		if err == nil {
			err = c.expand(parent, path[len(path)-1], ".", 0)
		}
		closeAll(open)
		if err != nil && !isMissing(err) {
			return err
		}
	}
	return nil
}

// dir reads a directory of the layer that is merged with what the layers below
// it have at the same path.
func (c *comparison) dir(at place, path string, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	return readNames(at.layer, func(name string) error {
		if err := c.check(); err != nil {
			return err
		}
		var st unix.Stat_t
		err := unix.Fstatat(at.layer, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if isMissing(err) {
			return nil
		} else if err != nil {
			return err
		}
		inner, plain, err := c.enter(at, name, &st)
		defer closeAll(inner.fds())
		if err != nil {
			return err
		}
		unchanged := c.unchanged(at, name, &st)
		if plain {
			if !unchanged {
				c.add(path + name)
			}
			return c.dir(inner, path+name+"/", depth+1)
		}
		if unchanged && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			return nil
		}
		for _, fd := range at.view {
			if err := c.expand(fd, name, path+name, depth); err != nil {
				return err
			}
		}
		return nil
	})
}

// enter opens the directory name everywhere, when the layer's is plain: one
// that is merged with the directories of its path below it, as the peer's is.
func (c *comparison) enter(at place, name string, st *unix.Stat_t) (place, bool, error) {
	inner := place{layer: -1, peer: -1, view: [2]int{-1, -1}}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return inner, false, nil
	}
	var err error
	if inner.layer, err = openDir(at.layer, name); err != nil {
		if isMissing(err) {
			return inner, false, nil // it has just been replaced
		}
		return inner, false, err
	}
	if at.peer >= 0 {
		if inner.peer, err = openDir(at.peer, name); err != nil && !isMissing(err) {
			return inner, false, err
		}
	}
	mine, err := readMarks(inner.layer)
	if err != nil {
		return inner, false, err
	}
	if inner.peer < 0 {
		if mine.barrier() {
			return inner, false, nil
		}
	} else if theirs, err := readMarks(inner.peer); err != nil || mine != theirs {
		return inner, false, err
	}
	for i, fd := range at.view {
		if inner.view[i], err = openDir(fd, name); err != nil && !isMissing(err) {
			return inner, false, err
		}
	}
	return inner, true, nil
}

func (p place) fds() []int { return []int{p.layer, p.peer, p.view[0], p.view[1]} }

// marks are what an overlay notes on a directory of an upper layer.
type marks struct {
	opaque   string // "y": hides what is below it; "x": holds whiteouts that are regular files
	redirect string // merged with the directories at this path
}

// barrier reports whether the directory is not merged with those at its path.
func (m marks) barrier() bool { return m.opaque == "y" || m.redirect != "" }

func readMarks(fd int) (m marks, err error) {
	for name, value := range map[string]*string{
		"trusted.overlay.opaque":   &m.opaque,
		"trusted.overlay.redirect": &m.redirect,
	} {
		b, err := getXattr(procPath(fd), name)
		if err != nil && !isMissing(err) {
			return m, err
		}
		*value = string(b)
	}
	return m, nil
}

// unchanged reports whether the entry, of a directory without what is in it,
// is certainly the same in layer and peer.
func (c *comparison) unchanged(at place, name string, st *unix.Stat_t) bool {
	if at.peer < 0 {
		return false
	}
	var other unix.Stat_t
	if unix.Fstatat(at.peer, name, &other, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	if isWhiteout(st) && isWhiteout(&other) {
		return true
	}
	if !c.same || st.Ino != other.Ino || st.Size != other.Size || st.Mode != other.Mode ||
		st.Mtim != other.Mtim || st.Ctim != other.Ctim || st.Uid != other.Uid || st.Gid != other.Gid {
		return false
	}
	mine, err := c.items.inode(at.layer, st.Ino)
	if err != nil {
		return false
	}
	theirs, err := c.items.inode(at.peer, st.Ino)
	return err == nil && mine == theirs
}

// expand adds name in the directory of a view, which may be -1, and all that
// is below it.
func (c *comparison) expand(dirfd int, name, path string, depth int) error {
	if dirfd < 0 {
		return nil
	}
	if depth > maxDepth {
		return errTooDeep
	}
	if err := c.check(); err != nil {
		return err
	}
	var st unix.Stat_t
	err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	if isMissing(err) || err == nil && isWhiteout(&st) {
		return nil
	} else if err != nil {
		return err
	}
	c.add(path)
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil
	}
	fd, err := openDir(dirfd, name)
	if isMissing(err) {
		return nil
	} else if err != nil {
		return err
	}
	defer unix.Close(fd)
	below := path + "/"
	if path == "." {
		below = ""
	}
	return readNames(fd, func(name string) error { return c.expand(fd, name, below+name, depth+1) })
}

func (c *comparison) add(path string) { c.found[path] = struct{}{} }

// check bounds the time and the memory that a tree can cost.
func (c *comparison) check() error {
	if len(c.found) > MaxCandidates {
		return mayfly.Errorf(mayfly.Exhausted, "more than %d paths may differ", MaxCandidates).
			Hint("compare a smaller directory")
	}
	return c.ctx.Err()
}

// openDir opens a directory that is no symbolic link; parent may be -1.
func openDir(parent int, name string) (int, error) {
	if parent < 0 {
		return -1, fs.ErrNotExist
	}
	return unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
}

// isMissing reports whether err says that there is no such file, directory or
// attribute.
func isMissing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) ||
		errors.Is(err, unix.ENODATA) || errors.Is(err, unix.EOPNOTSUPP)
}

func closeAll(fds []int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
