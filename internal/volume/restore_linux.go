package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// restorer makes a tree what it is in a snapshot, in two passes: the first
// copies what differs beside the tree, the second exchanges it. Nobody writes
// to the tree meanwhile. Most files of a database are those of its snapshot,
// and copying thousands of them takes longer than all the rest.
type restorer struct {
	copier
	from, to, part int // the snapshot, the tree, and where copies wait
	taken          time.Time
	step           func(string) error
	except         []string // entries at the top that stay as they are
	changed        []changedDir
}

// changedDir is a directory of the tree with entries that are to be exchanged
// with those of the same name in a directory below part.
type changedDir struct {
	path, part string
	exchange   []string // both are there
	add        []string // only the snapshot has them
	remove     []string // only the tree has them
}

// compare copies what the directory from has and to has not.
func (r *restorer) compare(from, to int, path string, depth int) error {
	if depth > maxDepth {
		return errTooDeep
	}
	d := changedDir{path: path, part: strconv.Itoa(len(r.changed))}
	r.changed = append(r.changed, d)
	at := len(r.changed) - 1
	holder := -1
	defer func() {
		if holder >= 0 {
			unix.Close(holder)
		}
	}()
	there := map[string]bool{}
	err := readNames(from, func(name string) error {
		there[name] = true
		if err := r.ctx.Err(); err != nil {
			return err
		}
		if depth == 0 && r.stays(name) {
			return nil
		}
		var old, now unix.Stat_t
		if err := unix.Fstatat(from, name, &old, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
		err := unix.Fstatat(to, name, &now, unix.AT_SYMLINK_NOFOLLOW)
		missing := errors.Is(err, unix.ENOENT)
		switch {
		case err != nil && !missing:
			return err
		case !missing && isDirectory(&old) && isDirectory(&now):
			return r.descend(from, to, name, path, depth)
		case !missing && r.same(&old, &now):
			return nil
		case missing:
			d.add = append(d.add, name)
		default:
			d.exchange = append(d.exchange, name)
		}
		if holder < 0 {
			if holder, err = makeDir(r.part, d.part); err != nil {
				return err
			}
		}
		return r.entry(from, holder, name, d.part+"/"+name, depth)
	})
	if err == nil {
		err = readNames(to, func(name string) error {
			if !there[name] && !(depth == 0 && r.stays(name)) {
				d.remove = append(d.remove, name)
			}
			return nil
		})
	}
	r.changed[at] = d
	return err
}

func (r *restorer) stays(name string) bool {
	return strings.HasPrefix(name, sparePrefix) || slices.Contains(r.except, name)
}

// readInodes has the kernel read the inodes of a tree.
func readInodes(ctx context.Context, dir, depth int) {
	_ = readNames(dir, func(name string) error {
		var st unix.Stat_t
		err := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW)
		if err != nil || ctx.Err() != nil || depth == maxDepth {
			return errors.Join(err, ctx.Err())
		}
		if !isDirectory(&st) {
			return nil
		}
		below, err := openDir(dir, name)
		if err != nil {
			return err
		}
		defer unix.Close(below)
		readInodes(ctx, below, depth+1)
		return nil
	})
}

func isDirectory(st *unix.Stat_t) bool { return st.Mode&unix.S_IFMT == unix.S_IFDIR }

func (r *restorer) descend(from, to int, name, path string, depth int) error {
	src, err := openDir(from, name)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path + "/" + name, Err: err}
	}
	defer unix.Close(src)
	dst, err := openDir(to, name)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path + "/" + name, Err: err}
	}
	defer unix.Close(dst)
	return r.compare(src, dst, path+"/"+name, depth+1)
}

// tick is more than the resolution of the times of files.
const tick = time.Second

// same reports whether a file has not been touched since the snapshot: it is
// the same inode, the time of whose last change nobody can set. One that was
// changed just before the snapshot may have been changed again in the same
// tick of the clock.
func (r *restorer) same(old, now *unix.Stat_t) bool {
	return old.Ino == now.Ino && old.Ctim == now.Ctim && old.Mode == now.Mode && old.Size == now.Size &&
		time.Unix(old.Ctim.Unix()).Add(tick).Before(r.taken)
}

func makeDir(parent int, name string) (int, error) {
	if err := unix.Mkdirat(parent, name, 0o700); err != nil {
		return -1, err
	}
	return openDir(parent, name)
}

// apply exchanges what was copied. Directories come before those below them.
func (r *restorer) apply() error {
	for _, d := range r.changed {
		if err := r.exchange(d); err != nil {
			return fmt.Errorf("exchange entries of %s: %w", d.path, err)
		}
	}
	return nil
}

func (r *restorer) exchange(d changedDir) error {
	from, err := openBelow(r.from, d.path)
	if err != nil {
		return err
	}
	defer unix.Close(from)
	to, err := openBelow(r.to, d.path)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if len(d.exchange)+len(d.add)+len(d.remove) > 0 {
		if err := r.rename(d, to); err != nil {
			return err
		}
	}
	var old, now unix.Stat_t
	if err := errors.Join(unix.Fstat(from, &old), unix.Fstat(to, &now)); err != nil {
		return err
	}
	if r.same(&old, &now) {
		return nil
	}
	return r.attributes(from, to, &old)
}

func (r *restorer) rename(d changedDir, to int) error {
	if len(d.exchange)+len(d.add) == 0 {
		if err := unix.Mkdirat(r.part, d.part, 0o700); err != nil {
			return err
		}
	}
	part, err := openDir(r.part, d.part)
	if err != nil {
		return err
	}
	defer unix.Close(part)
	move := func(names []string, from, to int, flags uint) error {
		for _, name := range names {
			if err := r.step("exchange " + name); err != nil {
				return err
			}
			if err := unix.Renameat2(from, name, to, name, flags); err != nil {
				return &fs.PathError{Op: "rename", Path: name, Err: err}
			}
		}
		return nil
	}
	err = move(d.exchange, part, to, unix.RENAME_EXCHANGE)
	if err == nil {
		err = move(d.add, part, to, unix.RENAME_NOREPLACE)
	}
	if err == nil {
		err = move(d.remove, to, part, unix.RENAME_NOREPLACE)
	}
	return err
}

// openBelow opens a directory without following a link.
func openBelow(dir int, path string) (int, error) {
	return unix.Openat2(dir, path, &unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	})
}

// snapshotTime is when the subvolume that an open directory lies in came into
// being. Where there are no subvolumes it is the zero time: there, snapshots
// are copies, and share no inode with anything.
func snapshotTime(fd int) (time.Time, error) {
	var a struct { // btrfs_ioctl_get_subvol_info_args of linux/btrfs.h
		_     [392]byte
		otime struct {
			sec  uint64
			nsec uint32
			_    uint32
		}
		_ [96]byte
	}
	err := ioctl(fd, iocSubvolInfo, unsafe.Pointer(&a))
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EOPNOTSUPP) {
		return time.Time{}, nil
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("look up the snapshot's time: %w", err)
	}
	return time.Unix(int64(a.otime.sec), int64(a.otime.nsec)), nil
}
