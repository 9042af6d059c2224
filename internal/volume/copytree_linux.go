package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// maxDepth bounds the nesting of directories that a copy or a comparison goes
// into: more than any path that fits a system call has in practice, and few
// enough for the descriptors of a process.
const maxDepth = 1024

var errTooDeep = mayfly.Errorf(mayfly.Exhausted, "directories are nested more than %d deep", maxDepth).
	Hint("delete the nested directories and try again")

// copier copies a tree with everything that an overlay's upper directory can
// hold: holes, hard links, owners, modes, times, extended attributes of every
// namespace, whiteouts and other special files. It follows no symbolic link.
type copier struct {
	ctx   context.Context
	top   int // the destination
	links map[uint64]string
	share bool
	owner *uint32 // of every entry; nil: as in the source
	buf   []byte
}

// copyTree makes dst, which does not exist, a copy of the directory src. With
// share it makes files share their extents where the file system can. The
// entries of the copy belong to owner, nil for those of the source.
func copyTree(ctx context.Context, src, dst string, share bool, owner *uint32) error {
	if err := os.Mkdir(dst, 0o700); err != nil {
		return err
	}
	return withDir(src, func(from int) error {
		return withDir(dst, func(to int) error {
			c := &copier{ctx: ctx, top: to, links: map[uint64]string{}, share: share, owner: owner}
			if err := c.dir(from, to, "", 0); err != nil {
				return fmt.Errorf("copy %s: %w", src, err)
			}
			return nil
		})
	})
}

// dir copies the entries and then the attributes of an open directory, whose
// path from the top is path.
func (c *copier) dir(from, to int, path string, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return err
	}
	err := readNames(from, func(name string) error {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		if err := c.entry(from, to, name, path+name, depth); err != nil {
			var inner *fs.PathError
			if errors.As(err, &inner) || errors.Is(err, errTooDeep) || errors.Is(err, context.Canceled) {
				return err
			}
			return &fs.PathError{Op: "copy", Path: path + name, Err: err}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.attributes(from, to, &st)
}

func (c *copier) entry(from, to int, name, path string, depth int) error {
	var st unix.Stat_t
	if err := unix.Fstatat(from, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	kind := st.Mode & unix.S_IFMT
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		if done, err := c.link(to, name, path, st.Ino); done || err != nil {
			return err
		}
	}
	switch kind {
	case unix.S_IFDIR:
		return c.subdir(from, to, name, path+"/", depth)
	case unix.S_IFREG:
		return c.file(from, to, name, &st)
	case unix.S_IFLNK:
		target, err := readlinkat(from, name)
		if err == nil {
			err = unix.Symlinkat(target, to, name)
		}
		if err != nil {
			return err
		}
	default: // devices (whiteouts are character device 0:0), pipes, sockets
		if err := unix.Mknodat(to, name, kind|0o600, int(st.Rdev)); err != nil {
			return err
		}
	}
	return c.unopened(from, to, name, &st)
}

// link makes name another link to the copy of the same inode, when there is
// one already.
func (c *copier) link(to int, name, path string, ino uint64) (bool, error) {
	first, seen := c.links[ino]
	if !seen {
		if len(path) < unix.PathMax-1 {
			c.links[ino] = path
		}
		return false, nil
	}
	return true, unix.Linkat(c.top, first, to, name, 0)
}

func (c *copier) subdir(from, to int, name, path string, depth int) error {
	if err := unix.Mkdirat(to, name, 0o700); err != nil {
		return err
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	src, err := unix.Openat(from, name, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := unix.Openat(to, name, flags, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return c.dir(src, dst, path, depth+1)
}

func (c *copier) file(from, to int, name string, st *unix.Stat_t) error {
	src, err := unix.Openat(from, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := unix.Openat(to, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	if err := c.content(src, dst, st.Size); err != nil {
		return err
	}
	return c.attributes(src, dst, st)
}

func (c *copier) content(src, dst int, size int64) error {
	if size == 0 {
		return nil
	}
	if c.share {
		err := unix.IoctlFileClone(dst, src)
		if err == nil || !cannotShare(err) {
			return err
		}
	}
	if err := unix.Ftruncate(dst, size); err != nil {
		return err
	}
	for at := int64(0); at < size; {
		begin, err := unix.Seek(src, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // a hole up to the end
		} else if err != nil {
			return err
		}
		end, err := unix.Seek(src, begin, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := c.extent(src, dst, begin, min(end, size)); err != nil {
			return err
		}
		at = end
	}
	return nil
}

func cannotShare(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EINVAL) ||
		errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.ENOSYS)
}

// extent copies the bytes from begin to end.
func (c *copier) extent(src, dst int, begin, end int64) error {
	const chunk = 64 << 20
	for begin < end {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		in, out := begin, begin
		n, err := unix.CopyFileRange(src, &in, dst, &out, int(min(end-begin, chunk)), 0)
		if cannotShare(err) {
			return c.readWrite(src, dst, begin, end)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return nil // the file became shorter
		}
		begin += int64(n)
	}
	return nil
}

func (c *copier) readWrite(src, dst int, begin, end int64) error {
	if c.buf == nil {
		c.buf = make([]byte, 1<<20)
	}
	for begin < end {
		n, err := unix.Pread(src, c.buf[:min(end-begin, int64(len(c.buf)))], begin)
		if err != nil || n == 0 {
			return err
		}
		for b := c.buf[:n]; len(b) > 0; {
			w, err := unix.Pwrite(dst, b, begin)
			if err != nil {
				return err
			}
			b, begin = b[w:], begin+int64(w)
		}
	}
	return nil
}

// owners are the user and the group of the copy of an entry.
func (c *copier) owners(st *unix.Stat_t) (uid, gid int) {
	if c.owner != nil {
		return int(*c.owner), int(*c.owner)
	}
	return int(st.Uid), int(st.Gid)
}

// attributes copies owner, mode, extended attributes and times between open
// files. The order matters: a change of owner clears set-id bits and
// capabilities, everything but times sets times.
func (c *copier) attributes(from, to int, st *unix.Stat_t) error {
	uid, gid := c.owners(st)
	if err := unix.Fchown(to, uid, gid); err != nil {
		return err
	}
	if err := copyXattrs(procPath(from), procPath(to)); err != nil {
		return err
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, procPath(to), []unix.Timespec{st.Atim, st.Mtim}, 0)
}

// unopened does the same for what cannot or must not be opened.
func (c *copier) unopened(from, to int, name string, st *unix.Stat_t) error {
	uid, gid := c.owners(st)
	if err := unix.Fchownat(to, name, uid, gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFLNK {
		if err := unix.Fchmodat(to, name, st.Mode&0o7777, 0); err != nil {
			return err
		}
	}
	if !isWhiteout(st) {
		if err := c.unopenedXattrs(from, to, name); err != nil {
			return err
		}
	}
	return unix.UtimesNanoAt(to, name, []unix.Timespec{st.Atim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

func (c *copier) unopenedXattrs(from, to int, name string) error {
	src, err := unix.Openat(from, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	dst, err := unix.Openat(to, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(dst)
	return copyXattrs(procPath(src), procPath(dst))
}

// copyXattrs copies every extended attribute. The paths are links of /proc, so
// that they work for descriptors that only name a file.
func copyXattrs(from, to string) error {
	names, err := listXattrs(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		value, err := getXattr(from, name)
		if errors.Is(err, unix.ENODATA) {
			continue
		} else if err != nil {
			return fmt.Errorf("attribute %q: %w", name, err)
		}
		if err := unix.Setxattr(to, name, value, 0); err != nil {
			return fmt.Errorf("attribute %q: %w", name, err)
		}
	}
	return nil
}

func listXattrs(path string) ([]string, error) {
	n, err := unix.Listxattr(path, nil)
	for err == nil && n > 0 {
		buf := make([]byte, n)
		n, err = unix.Listxattr(path, buf)
		if errors.Is(err, unix.ERANGE) { // grew meanwhile
			n, err = unix.Listxattr(path, nil)
			continue
		}
		if err == nil {
			return strings.FieldsFunc(string(buf[:n]), func(r rune) bool { return r == 0 }), nil
		}
	}
	if errors.Is(err, unix.EOPNOTSUPP) {
		err = nil
	}
	return nil, err
}

func getXattr(path, name string) ([]byte, error) {
	for {
		n, err := unix.Getxattr(path, name, nil)
		if err != nil {
			return nil, err
		}
		buf := make([]byte, n+1)
		n, err = unix.Getxattr(path, name, buf)
		if errors.Is(err, unix.ERANGE) {
			continue
		} else if err != nil {
			return nil, err
		}
		return buf[:n], nil
	}
}

// isWhiteout reports whether st is what an overlay puts where something of a
// lower layer was deleted.
func isWhiteout(st *unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

func procPath(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }

func readlinkat(dirfd int, name string) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(dirfd, name, buf)
	if err != nil {
		return "", err
	}
	return string(buf[:n]), nil
}

// readNames calls fn with every name in the open directory, in the order of
// the directory.
func readNames(fd int, fn func(name string) error) error {
	own, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(own), ".")
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(1024)
		for _, name := range names {
			if err := fn(name); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}
