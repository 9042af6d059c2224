package archive

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// tree opens paths below a directory and nowhere else.
type tree struct {
	root   int  // O_PATH
	follow bool // symbolic links, as if root were /
	max    int  // bytes of a path after following links
}

// open opens a directory with O_PATH.
func (t tree) open(parts []string) (int, error) {
	return t.openFile(parts, unix.O_PATH|unix.O_DIRECTORY)
}

func (t tree) openFile(parts []string, flags int) (int, error) {
	path := key(parts)
	fd, err := t.openat2(path, flags, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS)
	if !t.follow || !errors.Is(err, unix.ELOOP) {
		return fd, err
	}
	if fd, err = t.openat2(path, flags, unix.RESOLVE_IN_ROOT); err != nil {
		return -1, err
	}
	// Links to the deepest directory so far could nest directories without
	// end, deeper than anything could remove again.
	if real, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil || len(real) > t.max {
		unix.Close(fd)
		return -1, unix.ENAMETOOLONG
	}
	return fd, nil
}

func (t tree) openat2(path string, flags int, resolve uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   uint64(flags | unix.O_CLOEXEC),
		Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	for range 100 {
		fd, err := unix.Openat2(t.root, path, &how)
		// EAGAIN: something was renamed somewhere while .. in a link was resolved.
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
	return -1, unix.EAGAIN
}

// pathError explains errors of opening and making an entry. Errors that are
// explained already stay as they are.
func pathError(name string, err error) error {
	var known *mayfly.Error
	switch {
	case err == nil, errors.As(err, &known):
		return err
	case errors.Is(err, unix.ELOOP):
		return entryError(name, "its path leads through a symbolic link")
	case errors.Is(err, unix.ENOTDIR):
		return entryError(name, "its path leads through a file that is not a directory")
	case errors.Is(err, unix.ENAMETOOLONG):
		return entryError(name, "its path is too long")
	case errors.Is(err, unix.EXDEV):
		return entryError(name, "its path leads out of the destination")
	case errors.Is(err, unix.EMLINK):
		return entryError(name, "it has too many hard links")
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("unpack: openat2 (Linux 5.6): %w", errors.ErrUnsupported)
	}
	return fmt.Errorf("unpack %.200q: %w", name, err)
}

// removeAll removes a file or a whole directory. A missing one is no error.
func removeAll(parent int, base string) (removed bool, err error) {
	err = unix.Unlinkat(parent, base, 0)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return err == nil, nil
	}
	if !errors.Is(err, unix.EISDIR) && !errors.Is(err, unix.EPERM) {
		return false, err
	}
	if err := removeChildren(parent, base, func(string) bool { return false }); err != nil {
		return false, err
	}
	return true, unix.Unlinkat(parent, base, unix.AT_REMOVEDIR)
}

// removeChildren removes what is in a directory except the names that keep
// wants.
func removeChildren(parent int, base string, keep func(name string) bool) error {
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), base)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if keep(name) {
			continue
		}
		if _, err := removeAll(fd, name); err != nil {
			return err
		}
	}
	return nil
}

// whiteoutPrefix marks what a layer removes; opaque everything that lower
// layers have in a directory. Other names with the double prefix are records
// of aufs.
const (
	whiteoutPrefix = ".wh."
	metaPrefix     = ".wh..wh."
	opaque         = ".wh..wh..opq"
)

// whiteout applies one whiteout to what lower layers left, never to what this
// layer brought, in whichever order the two come.
func (x *extractor) whiteout(name string, parts []string) error {
	base := parts[len(parts)-1]
	dir := parts[:len(parts)-1]
	if base != opaque && strings.HasPrefix(base, metaPrefix) {
		return nil
	}
	parent, err := x.tree.open(dir)
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	if err != nil {
		return pathError(name, err)
	}
	defer unix.Close(parent)
	if err := x.rememberTime(dir, parent); err != nil {
		return pathError(name, err)
	}
	if base == opaque {
		return pathError(name, x.hideChildren(parent, ".", dir))
	}
	hidden := strings.TrimPrefix(base, whiteoutPrefix)
	if hidden == "" || hidden == "." || hidden == ".." {
		return entryError(name, "it is a whiteout of %q", hidden)
	}
	return pathError(name, x.hide(parent, append(dir[:len(dir):len(dir)], hidden)))
}

// hide removes a path unless this layer made it; of a directory that this
// layer made too, it removes what is older.
func (x *extractor) hide(parent int, parts []string) error {
	base := parts[len(parts)-1]
	if _, ok := x.made[key(parts)]; !ok {
		delete(x.dirs, key(parts))
		removed, err := removeAll(parent, base)
		if removed {
			x.stats.Removed++
		}
		return err
	}
	var st unix.Stat_t
	if err := unix.Fstatat(parent, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	return x.hideChildren(parent, base, parts)
}

// hideChildren hides what is in a directory. parts is the directory's path.
func (x *extractor) hideChildren(parent int, base string, parts []string) error {
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(fd), base)
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := x.hide(fd, append(parts[:len(parts):len(parts)], name)); err != nil {
			return err
		}
	}
	return nil
}
