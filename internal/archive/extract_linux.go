package archive

import (
	"archive/tar"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// Extract unpacks a tar stream (v7, ustar, PAX or GNU, with long names and
// sparse files) below dir, which must exist and which nobody else changes
// meanwhile. Of several entries with one name the last wins; it replaces the
// former, be that a link or a directory. Modes, owners, times, hard links,
// symbolic links (their targets are data and may point anywhere) and
// attributes of the user namespace are kept; attributes that mean something to
// an overlay are refused, other attributes dropped. It stops at the end of the
// archive and leaves the rest of r unread.
//
// After an error the destination holds what was unpacked so far. Bad content
// gives an error of kind Invalid that names the entry; a limit, a full disk or
// a used-up quota one of kind Exhausted.
func Extract(ctx context.Context, r io.Reader, dir string, o Options) (Stats, error) {
	root, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return Stats{}, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(root)
	o.MaxBytes = cmp.Or(o.MaxBytes, DefaultMaxBytes)
	o.MaxFiles = cmp.Or(o.MaxFiles, DefaultMaxFiles)
	if o.MaxPath <= 0 || o.MaxPath > maxPath {
		o.MaxPath = maxPath
	}
	x := &extractor{o: o, tree: tree{root: root, follow: o.FollowParents, max: o.MaxPath}, dirs: map[string]*dirMeta{}, times: map[inode]time.Time{}, buf: make([]byte, 128<<10)}
	if o.Whiteouts {
		x.made = map[string]struct{}{}
	}
	x.in = &meter{ctx: ctx, r: r, x: x}
	err = x.all(ctx, x.in)
	return x.stats, noSpace(err)
}

// noSpace gives a full disk its kind.
func noSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return mayfly.Errorf(mayfly.Exhausted, "unpack the archive: %w", err).Hint("free some space, or raise the limit")
	}
	return err
}

type extractor struct {
	o     Options
	tree  tree
	stats Stats
	in    *meter
	dirs  map[string]*dirMeta // to be applied at the end, by path
	times map[inode]time.Time // of directories, before anything changed in them
	made  map[string]struct{} // paths of this stream, for whiteouts
	buf   []byte
}

// inode tells directories apart that have several paths, through links.
type inode struct{ dev, ino uint64 }

// dirMeta is what a directory gets once nothing changes in it any more.
type dirMeta struct {
	mode  uint32 // with owner, when set says so
	owner Owner
	set   bool
	mtime time.Time
}

// meter ends the reading when the context does, and when the stream holds
// much more than its entries account for: chains of extension headers, which
// the tar reader consumes by itself.
type meter struct {
	ctx context.Context
	r   io.Reader
	x   *extractor

	read  int64
	ended bool  // the stream ended before the archive did
	err   error // of the stream, other than its end
}

// blame tells errors in the archive from those of the stream that it comes
// through.
func (m *meter) blame(err error) error {
	if m.err != nil {
		return m.err
	}
	return mayfly.Errorf(mayfly.Invalid, "read the archive: %w", err).Hint("it is damaged, incomplete or not a tar archive")
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.next(p)
	if err != nil && err != io.EOF {
		m.err = err
	}
	return n, err
}

func (m *meter) next(p []byte) (int, error) {
	if err := m.ctx.Err(); err != nil {
		return 0, context.Cause(m.ctx)
	}
	if m.read > m.x.stats.Bytes+64<<20+int64(m.x.stats.Files)*(8<<10) {
		return 0, mayfly.Errorf(mayfly.Invalid, "the archive consists of headers for the most part").
			Hint("it is damaged or hostile; make it anew from a source that you trust")
	}
	n, err := m.r.Read(p)
	m.read += int64(n)
	m.ended = m.ended || n == 0 && err == io.EOF
	return n, err
}

func (x *extractor) all(ctx context.Context, m *meter) error {
	t := tar.NewReader(m)
	for {
		h, err := t.Next()
		if err == io.EOF && m.ended && !x.o.Unterminated {
			err = io.ErrUnexpectedEOF
		}
		if err == io.EOF {
			return x.finishDirs()
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) { // paths are judged below
			return m.blame(err)
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := x.entry(h, t); err != nil {
			return err
		}
	}
}

func (x *extractor) entry(h *tar.Header, content io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return x.count()
	}
	parts, err := x.split(h.Name)
	if err != nil {
		return err
	}
	if err := x.count(); err != nil {
		return err
	}
	if len(parts) == 0 {
		if h.Typeflag != tar.TypeDir {
			return entryError(h.Name, "the root of the archive is not a directory")
		}
		return x.directoryAt(h, nil)
	}
	if x.o.Whiteouts && strings.HasPrefix(parts[len(parts)-1], whiteoutPrefix) {
		return x.whiteout(h.Name, parts)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		return x.directoryAt(h, parts)
	case tar.TypeReg, tar.TypeGNUSparse, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo:
		return x.leaf(h, parts, content)
	case tar.TypeChar, tar.TypeBlock:
		if x.o.SkipDevices && parts[0] == "dev" {
			x.stats.Skipped++
			return nil
		}
		return entryError(h.Name, "it is a device node")
	}
	return entryError(h.Name, "it has the unknown type %q", h.Typeflag)
}

// count notes one more file.
func (x *extractor) count() error {
	if x.stats.Files++; x.stats.Files > x.o.MaxFiles {
		return limitError("files", int64(x.o.MaxFiles))
	}
	return nil
}

// split turns a name into the parts of a path below the destination.
func (x *extractor) split(name string) ([]string, error) {
	switch {
	case strings.HasPrefix(name, "/"):
		return nil, entryError(name, "its path is absolute")
	case strings.ContainsRune(name, 0):
		return nil, entryError(name, "its path contains NUL")
	case len(name) > x.o.MaxPath:
		return nil, entryError(name, "its path has %d bytes, more than %d", len(name), x.o.MaxPath)
	}
	var parts []string
	for part := range strings.SplitSeq(name, "/") {
		switch {
		case part == "" || part == ".":
		case part == "..":
			return nil, entryError(name, "its path contains ..")
		case len(part) > 255:
			return nil, entryError(name, "a part of its path has %d bytes, more than 255", len(part))
		default:
			parts = append(parts, part)
		}
	}
	return parts, nil
}

// parent opens the directory that an entry goes into, and makes what is
// missing of it.
func (x *extractor) parent(name string, parts []string) (int, error) {
	dir := parts[:len(parts)-1]
	fd, err := x.tree.open(dir)
	if errors.Is(err, unix.ENOENT) {
		fd, err = x.makeParents(name, dir)
	}
	if err != nil {
		return -1, pathError(name, err)
	}
	if err := x.rememberTime(dir, fd); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("unpack %.200q: %w", name, err)
	}
	return fd, nil
}

func (x *extractor) makeParents(name string, dir []string) (int, error) {
	fd, err := x.tree.open(nil)
	for i := range dir {
		if err != nil {
			return -1, err
		}
		var next int
		next, err = x.tree.open(dir[:i+1])
		if errors.Is(err, unix.ENOENT) {
			if err = x.makeImplicit(name, fd, dir[:i+1]); err == nil {
				next, err = x.tree.open(dir[:i+1])
			}
		}
		unix.Close(fd)
		fd = next
	}
	return fd, err
}

// makeImplicit makes a directory that the stream does not have an entry for
// (yet). Its time is the epoch, so that unpacking gives the same tree always.
func (x *extractor) makeImplicit(name string, parent int, parts []string) error {
	if err := x.count(); err != nil {
		return err
	}
	if err := x.rememberTime(parts[:len(parts)-1], parent); err != nil {
		return err
	}
	if err := unix.Mkdirat(parent, parts[len(parts)-1], 0o700); errors.Is(err, unix.EEXIST) {
		return entryError(name, "its path leads through a symbolic link to nowhere")
	} else if err != nil {
		return err
	}
	x.note(parts)
	meta := &dirMeta{mode: 0o755, set: true, mtime: time.Unix(0, 0)}
	if x.o.Owner != nil {
		meta.owner = *x.o.Owner
	}
	x.dirs[key(parts)] = meta
	return nil
}

// rememberTime keeps the time that a directory had before anything changed in
// it.
func (x *extractor) rememberTime(parts []string, fd int) error {
	k := key(parts)
	if x.dirs[k] != nil {
		return nil
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	id := inode{st.Dev, st.Ino}
	if _, ok := x.times[id]; !ok {
		x.times[id] = time.Unix(st.Mtim.Unix())
	}
	x.dirs[k] = &dirMeta{mtime: x.times[id]}
	return nil
}

// note records that a path is of this stream.
func (x *extractor) note(parts []string) {
	if x.made != nil {
		x.made[key(parts)] = struct{}{}
	}
}

// key is the path of parts; "." for none.
func key(parts []string) string { return cmp.Or(strings.Join(parts, "/"), ".") }

func (x *extractor) ownerOf(h *tar.Header) (Owner, error) {
	if x.o.Owner != nil {
		return *x.o.Owner, nil
	}
	if h.Uid < 0 || h.Uid > maxID || h.Gid < 0 || h.Gid > maxID {
		return Owner{}, entryError(h.Name, "its owner %d:%d is outside 0..%d", h.Uid, h.Gid, maxID)
	}
	return Owner{h.Uid, h.Gid}, nil
}

func (x *extractor) modeOf(h *tar.Header) uint32 {
	mode := uint32(h.Mode) & 0o7777
	if !x.o.Setuid {
		mode &^= 0o6000
	}
	return mode
}

// directoryAt makes a directory, or takes the one that is there.
func (x *extractor) directoryAt(h *tar.Header, parts []string) error {
	owner, err := x.ownerOf(h)
	if err != nil {
		return err
	}
	if len(parts) > 0 {
		if err := x.mkdir(h, parts); err != nil {
			return err
		}
	}
	attrs, err := x.attributes(h)
	if err != nil {
		return err
	}
	if len(attrs) > 0 {
		if err := x.setDirAttributes(h.Name, parts, attrs); err != nil {
			return err
		}
	}
	x.note(parts)
	x.dirs[key(parts)] = &dirMeta{mode: x.modeOf(h), owner: owner, set: true, mtime: clamp(h.ModTime)}
	return nil
}

func (x *extractor) mkdir(h *tar.Header, parts []string) error {
	parent, err := x.parent(h.Name, parts)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	base := parts[len(parts)-1]
	err = unix.Mkdirat(parent, base, 0o700)
	if errors.Is(err, unix.EEXIST) {
		var st unix.Stat_t
		if err = unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err == nil && st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if err = x.replace(parent, parts); err == nil {
				err = unix.Mkdirat(parent, base, 0o700)
			}
		}
	}
	return pathError(h.Name, err)
}

func (x *extractor) setDirAttributes(name string, parts []string, attrs map[string]string) error {
	fd, err := x.tree.openFile(parts, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return pathError(name, err)
	}
	defer unix.Close(fd)
	return setAttributes(name, fd, attrs)
}

// replace removes what is at a path, to make room for another entry.
func (x *extractor) replace(parent int, parts []string) error {
	delete(x.dirs, key(parts))
	delete(x.made, key(parts))
	_, err := removeAll(parent, parts[len(parts)-1])
	return err
}

// leaf makes anything but a directory.
func (x *extractor) leaf(h *tar.Header, parts []string, content io.Reader) error {
	owner, err := x.ownerOf(h)
	if err != nil {
		return err
	}
	parent, err := x.parent(h.Name, parts)
	if err != nil {
		return err
	}
	defer unix.Close(parent)
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeGNUSparse:
		err = x.regular(h, parent, parts, owner, content)
	case tar.TypeSymlink:
		err = x.symlink(h, parent, parts, owner)
	case tar.TypeLink:
		err = x.hardlink(h, parent, parts)
	case tar.TypeFifo:
		err = x.fifo(h, parent, parts, owner)
	}
	if err == nil {
		x.note(parts)
	}
	return pathError(h.Name, err)
}

// create calls make, and once more after making room.
func (x *extractor) create(parent int, parts []string, make func(base string) error) error {
	base := parts[len(parts)-1]
	err := make(base)
	if errors.Is(err, unix.EEXIST) {
		if err = x.replace(parent, parts); err == nil {
			err = make(base)
		}
	}
	return err
}

func (x *extractor) regular(h *tar.Header, parent int, parts []string, owner Owner, content io.Reader) error {
	if h.Size < 0 || h.Size > x.o.MaxBytes-x.stats.Bytes {
		return limitError("bytes", x.o.MaxBytes)
	}
	x.stats.Bytes += h.Size
	attrs, err := x.attributes(h)
	if err != nil {
		return err
	}
	fd := -1
	err = x.create(parent, parts, func(base string) (err error) {
		fd, err = unix.Openat(parent, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
		return err
	})
	if err != nil {
		return err
	}
	f := os.NewFile(uintptr(fd), h.Name)
	defer f.Close()
	if err := x.write(f, content, h.Size); err != nil {
		return err
	}
	if err := unix.Fchown(fd, owner.UID, owner.GID); err != nil {
		return err
	}
	if err := unix.Fchmod(fd, x.modeOf(h)); err != nil { // after chown, which clears set-id bits
		return err
	}
	if err := setAttributes(h.Name, fd, attrs); err != nil {
		return err
	}
	return setTimes(parent, parts[len(parts)-1], h.ModTime)
}

// write copies the content and leaves holes where a whole buffer is zero.
func (x *extractor) write(f *os.File, content io.Reader, size int64) error {
	hole := false
	for done := int64(0); done < size; {
		n, err := io.ReadFull(content, x.buf[:min(int64(len(x.buf)), size-done)])
		if err != nil {
			return x.in.blame(err)
		}
		if hole = zero(x.buf[:n]); !hole {
			_, err = f.WriteAt(x.buf[:n], done)
		}
		if err != nil {
			return err
		}
		done += int64(n)
	}
	if hole {
		return f.Truncate(size)
	}
	return nil
}

// zero reports whether a buffer of at least one page is all zero.
func zero(b []byte) bool {
	return len(b) >= 4096 && b[0] == 0 && bytes.Equal(b[:len(b)-1], b[1:])
}

func (x *extractor) symlink(h *tar.Header, parent int, parts []string, owner Owner) error {
	if h.Linkname == "" || len(h.Linkname) > maxPath || strings.ContainsRune(h.Linkname, 0) {
		return entryError(h.Name, "its target has %d bytes, instead of 1 to %d", len(h.Linkname), maxPath)
	}
	if _, err := x.attributes(h); err != nil {
		return err
	}
	if err := x.create(parent, parts, func(base string) error { return unix.Symlinkat(h.Linkname, parent, base) }); err != nil {
		return err
	}
	base := parts[len(parts)-1]
	if err := unix.Fchownat(parent, base, owner.UID, owner.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	return setTimes(parent, base, h.ModTime)
}

// hardlink links to an entry that is there already. Mode, owner and times are
// those of that entry.
func (x *extractor) hardlink(h *tar.Header, parent int, parts []string) error {
	target, err := x.split(h.Linkname)
	if err != nil || len(target) == 0 {
		return entryError(h.Name, "it is a hard link to %.200q, which is not a path inside", h.Linkname)
	}
	dir, err := x.tree.open(target[:len(target)-1])
	if err != nil {
		return entryError(h.Name, "it is a hard link to %.200q: %w", h.Linkname, pathError(h.Linkname, err))
	}
	defer unix.Close(dir)
	var old, new unix.Stat_t
	base := target[len(target)-1]
	if err := unix.Fstatat(dir, base, &old, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return entryError(h.Name, "it is a hard link to %.200q, which is not there: %w", h.Linkname, err)
	}
	if t := old.Mode & unix.S_IFMT; t != unix.S_IFREG && t != unix.S_IFLNK && t != unix.S_IFIFO {
		return entryError(h.Name, "it is a hard link to %.200q, which is not a file", h.Linkname)
	}
	if unix.Fstatat(parent, parts[len(parts)-1], &new, unix.AT_SYMLINK_NOFOLLOW) == nil && new.Ino == old.Ino && new.Dev == old.Dev {
		return nil // to itself
	}
	return x.create(parent, parts, func(name string) error { return unix.Linkat(dir, base, parent, name, 0) })
}

func (x *extractor) fifo(h *tar.Header, parent int, parts []string, owner Owner) error {
	if !x.o.FIFOs {
		return entryError(h.Name, "it is a named pipe")
	}
	if _, err := x.attributes(h); err != nil {
		return err
	}
	base := parts[len(parts)-1]
	if err := x.create(parent, parts, func(base string) error { return unix.Mkfifoat(parent, base, 0o600) }); err != nil {
		return err
	}
	if err := unix.Fchownat(parent, base, owner.UID, owner.GID, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := unix.Fchmodat(parent, base, x.modeOf(h)&0o777, 0); err != nil {
		return err
	}
	return setTimes(parent, base, h.ModTime)
}

// finishDirs gives directories their modes, owners and times, now that
// nothing is put into them any more: first back those that they had, then
// those that the stream asks for.
func (x *extractor) finishDirs() error {
	paths := slices.Sorted(maps.Keys(x.dirs))
	for _, set := range []bool{false, true} {
		for _, path := range slices.Backward(paths) { // children first
			if x.dirs[path].set != set {
				continue
			}
			if err := x.finishDir(path, x.dirs[path]); err != nil {
				return fmt.Errorf("unpack %.200q: %w", path, err)
			}
		}
	}
	return nil
}

func (x *extractor) finishDir(path string, meta *dirMeta) error {
	flags := unix.O_RDONLY | unix.O_DIRECTORY
	if meta.set { // meant for this directory, and not for one that a link put in its place names
		flags |= unix.O_NOFOLLOW
	}
	fd, err := x.tree.openFile(strings.Split(path, "/"), flags)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil // removed or replaced later in the stream
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if meta.set {
		if err := unix.Fchown(fd, meta.owner.UID, meta.owner.GID); err != nil {
			return err
		}
		if err := unix.Fchmod(fd, meta.mode); err != nil {
			return err
		}
	}
	at := unix.NsecToTimespec(meta.mtime.UnixNano())
	return unix.UtimesNanoAt(fd, "", []unix.Timespec{at, at}, unix.AT_EMPTY_PATH)
}

// setTimes sets both times of a file that is not followed.
func setTimes(parent int, base string, t time.Time) error {
	at := unix.NsecToTimespec(clamp(t).UnixNano())
	return unix.UtimesNanoAt(parent, base, []unix.Timespec{at, at}, unix.AT_SYMLINK_NOFOLLOW)
}
