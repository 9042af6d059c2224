package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
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

// comparison collects candidates.
type comparison struct {
	ctx   context.Context
	found map[string]struct{}
	// history: the layers are states of one volume on btrfs, where every inode
	// of a snapshot keeps its number and its time of change.
	history bool
}

// place is one directory in all that is compared: in up to two layers that are
// read, of which the second is that of the other state, and in the merged view
// of either state.
type place struct {
	layer [2]int // descriptors; -1 where there is no such directory
	marks [2]marks
	side  [2]int // the state that the layer belongs to: the index of its view
	top   bool   // the layers are the topmost of their states
	view  [2]*viewDir
}

// viewDir is a directory of a merged view that is opened when it is needed.
type viewDir struct {
	parent *viewDir
	name   string
	opened bool
	fd     int // -1 when there is no such directory
}

func (v *viewDir) open() (int, error) {
	if v.opened {
		return v.fd, nil
	}
	parent, err := v.parent.open()
	if err == nil {
		v.fd, err = openDir(parent, v.name)
	}
	if err != nil && !isMissing(err) {
		return -1, err
	}
	v.opened = true
	return v.fd, nil
}

func (c *comparison) run(stacks, own [2][]string, prefix []string) error {
	var views [2]*viewDir
	for i, s := range stacks {
		views[i] = &viewDir{opened: true, fd: -1}
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
		views[i].fd = int(dir.Fd())
	}
	if len(own[0]) == 1 && len(own[1]) == 1 {
		at := place{side: [2]int{0, 1}, top: true, view: views}
		return c.layers(at, [2]string{own[0][0], own[1][0]}, prefix)
	}
	for side := range own {
		for i, layer := range own[side] {
			at := place{side: [2]int{side, 1 - side}, top: i == 0, view: views}
			if err := c.layers(at, [2]string{layer, ""}, prefix); err != nil {
				return err
			}
		}
	}
	return nil
}

// layers reads a layer that is not shared, or the two in which alone the
// states differ: what is the same in both says nothing.
func (c *comparison) layers(at place, dirs [2]string, prefix []string) (err error) {
	defer func() { closeAll(at.layer[:]) }()
	for i, dir := range dirs {
		at.layer[i] = -1
		if dir == "" {
			continue
		}
		at.layer[i], err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return &fs.PathError{Op: "open", Path: dir, Err: err}
		}
		if at.marks[i], err = readMarks(at.layer[i]); err != nil {
			return err
		}
	}
	if v := volumeOf(dirs[0]); v != "" && v == volumeOf(dirs[1]) {
		var st unix.Statfs_t
		if err := unix.Fstatfs(at.layer[0], &st); err != nil {
			return err
		}
		c.history = st.Type == unix.BTRFS_SUPER_MAGIC
	}
	return c.descend(at, prefix)
}

// descend goes to the prefix, and reads there.
func (c *comparison) descend(at place, prefix []string) error {
	if len(prefix) == 1 && prefix[0] == "" {
		prefix = nil
	}
	for i, name := range prefix {
		entries, err := c.lookup(at, name)
		if err != nil {
			return err
		}
		inner, plain, err := c.enter(at, name, entries)
		defer inner.close()
		if err != nil {
			return err
		}
		if !plain {
			return c.expandBelow(at, prefix[i:], entries)
		}
		at = inner
	}
	c.add(".")
	return c.dir(at, "", 0)
}

// expandBelow adds all that is at the path in the views, unless no layer has
// something on the way there.
func (c *comparison) expandBelow(at place, path []string, entries [2]entry) error {
	if !entries[0].exists && !entries[1].exists {
		return nil
	}
	for _, v := range at.view {
		var chain []*viewDir
		for _, name := range path[:len(path)-1] {
			v = &viewDir{parent: v, name: name}
			chain = append(chain, v)
		}
		fd, err := v.open()
		if err == nil {
			err = c.expand(fd, path[len(path)-1], ".", 0)
		}
		for _, v := range chain {
			v.close()
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// entry is a name in a layer.
type entry struct {
	exists   bool
	kind     fs.FileMode // type bits
	whiteout bool
}

// dir reads a directory whose layers are merged with what is below them at the
// same path.
func (c *comparison) dir(at place, path string, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	names, err := c.readLayers(at)
	if err != nil {
		return err
	}
	for name, entries := range names {
		if err := c.check(); err != nil {
			return err
		}
		if err := c.name(at, name, path+name, entries, depth); err != nil {
			return err
		}
	}
	return nil
}

// name compares what one name stands for.
func (c *comparison) name(at place, name, path string, entries [2]entry, depth int) error {
	inner, plain, err := c.enter(at, name, entries)
	defer inner.close()
	if err != nil {
		return err
	}
	both := entries[0].exists && entries[1].exists
	unchanged := both && c.unchanged(at, name, entries)
	if plain {
		if !unchanged {
			c.add(path)
		}
		return c.dir(inner, path+"/", depth+1)
	}
	if unchanged && !entries[0].kind.IsDir() {
		return nil
	}
	for i, side := range at.side {
		e := entries[i]
		switch {
		case at.top && e.whiteout:
			// gone from this state
		case at.top && e.exists && !e.kind.IsDir() && at.marks[i].opaque != "x":
			c.add(path)
		default:
			fd, err := at.view[side].open()
			if err != nil {
				return err
			}
			if err := c.expand(fd, name, path, depth); err != nil {
				return err
			}
		}
	}
	return nil
}

// readLayers lists the names in the layers of a place.
func (c *comparison) readLayers(at place) (map[string][2]entry, error) {
	names := map[string][2]entry{}
	for i, fd := range at.layer {
		if fd < 0 {
			continue
		}
		list, err := readEntries(fd)
		if err != nil {
			return nil, err
		}
		for _, d := range list {
			e := entry{exists: true, kind: d.Type()}
			if e.kind&fs.ModeCharDevice != 0 {
				var st unix.Stat_t
				if err := unix.Fstatat(fd, d.Name(), &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
					continue // it has just gone
				}
				e.whiteout = isWhiteout(&st)
			}
			pair := names[d.Name()]
			pair[i] = e
			names[d.Name()] = pair
		}
	}
	return names, nil
}

// readEntries lists a directory with the types of its entries.
func readEntries(fd int) ([]fs.DirEntry, error) {
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	dir := os.NewFile(uintptr(own), procPath(own)) // by which types that it does not hold are found
	defer dir.Close()
	return dir.ReadDir(-1)
}

// lookup finds one name in the layers of a place.
func (c *comparison) lookup(at place, name string) (entries [2]entry, err error) {
	for i, fd := range at.layer {
		if fd < 0 {
			continue
		}
		var st unix.Stat_t
		err := unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if isMissing(err) {
			continue
		} else if err != nil {
			return entries, err
		}
		entries[i] = entry{exists: true, whiteout: isWhiteout(&st)}
		if st.Mode&unix.S_IFMT == unix.S_IFDIR {
			entries[i].kind = fs.ModeDir
		}
	}
	return entries, nil
}

// enter opens the directory that name is in all layers that have the name, if
// it is plain: merged in both states with the directories of its own path, or
// equally with others.
func (c *comparison) enter(at place, name string, entries [2]entry) (inner place, plain bool, err error) {
	inner = at
	inner.layer = [2]int{-1, -1}
	inner.view = [2]*viewDir{{parent: at.view[0], name: name, fd: -1}, {parent: at.view[1], name: name, fd: -1}}
	n := 0
	for i, e := range entries {
		if !e.exists {
			continue
		}
		if !e.kind.IsDir() {
			return inner, false, nil
		}
		n++
		inner.layer[i], err = openDir(at.layer[i], name)
		if isMissing(err) {
			return inner, false, nil // it has just been replaced
		}
		if err == nil {
			inner.marks[i], err = readMarks(inner.layer[i])
		}
		if err != nil {
			return inner, false, err
		}
		plain = !inner.marks[i].barrier()
	}
	if n == 2 {
		plain = inner.marks[0] == inner.marks[1]
	}
	return inner, plain, nil
}

func (p *place) close() {
	closeAll(p.layer[:])
	for _, v := range p.view {
		v.close()
	}
}

func (v *viewDir) close() {
	if v.opened && v.fd >= 0 {
		unix.Close(v.fd)
	}
	v.opened, v.fd = true, -1
}

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

// unchanged reports whether what both layers have, of a directory without
// what is in it, is certainly the same. A volume has one history, whose states
// are more than the resolution of times apart (see btrfsStore.snapshot), so
// that an inode with the same time of change has not changed in between.
func (c *comparison) unchanged(at place, name string, entries [2]entry) bool {
	if entries[0].whiteout && entries[1].whiteout {
		return true
	}
	if !c.history || at.marks[0] != at.marks[1] {
		return false
	}
	var a, b unix.Stat_t
	if unix.Fstatat(at.layer[0], name, &a, unix.AT_SYMLINK_NOFOLLOW) != nil ||
		unix.Fstatat(at.layer[1], name, &b, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return false
	}
	return a.Ino == b.Ino && a.Ctim == b.Ctim && a.Mtim == b.Mtim && a.Size == b.Size &&
		a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid
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
