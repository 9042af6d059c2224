package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// Open opens the pool at o.Dir, which it makes when it is missing. Without a
// Kind it takes the best that there is: a btrfs in a sparse image, pool.img
// beside the directory; copies that share extents; full copies. A pool that
// exists keeps its kind. With the kind Btrfs, a directory that lies on one is
// used without an image; overlays of such a pool show inode numbers that are
// not unique (see layerPool).
//
// With a Kind that this machine cannot provide, the error wraps
// errors.ErrUnsupported and names the feature and the command that installs
// it. A pool that another process has open is an error of kind Conflict, and
// a disk too full for an image one of kind Exhausted.
//
// Closing is not needed for what was written to be found again: after a crash
// Open finds the image where it is still mounted or attached.
func Open(ctx context.Context, o Options) (Pool, error) {
	p, err := open(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("open pool %s: %w", o.Dir, err)
	}
	return p, nil
}

func open(ctx context.Context, o Options) (Pool, error) {
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return nil, err
	}
	if o.Dir == "" {
		return nil, mayfly.Errorf(mayfly.Invalid, "no directory given")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return nil, err
	}
	p := &pool{layout: layout{dir}, fault: o.fault, builds: map[string]*build{}}
	kind, err := choose(dir, o.Kind)
	if err != nil {
		return nil, err
	}
	if kind == Btrfs || kind == "" {
		pool, err := openBtrfs(ctx, p, o)
		if err == nil || kind == Btrfs || !errors.Is(err, errors.ErrUnsupported) {
			return pool, err
		}
		if _, found := os.Lstat(imagePath(dir)); found == nil {
			return nil, err // falling back would hide what is in the image
		}
		kind = Plain
		if probeReflink(dir) {
			kind = Reflink
		}
	}
	return openCopies(p, kind)
}

// choose settles the kind as far as the directory does: empty means btrfs if
// possible.
func choose(dir string, asked Kind) (Kind, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return "", &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	holdsCopies := st.Type != unix.BTRFS_SUPER_MAGIC && isDir(filepath.Join(dir, envsDir))
	switch asked {
	case "":
		if holdsCopies && probeReflink(dir) {
			return Reflink, nil
		} else if holdsCopies {
			return Plain, nil
		}
	case Btrfs:
		if holdsCopies {
			return "", mayfly.Errorf(mayfly.Conflict, "%s holds a pool of plain directories, which an image would hide", dir).
				Hint("move it away, or use another state directory with --state")
		}
	case Reflink:
		if !probeReflink(dir) {
			return "", unsupported("the file system of "+dir+" cannot share extents between files", "mkfs.xfs on a partition of its own, mounted at the state directory", nil)
		}
	case Plain:
	default:
		return "", mayfly.Errorf(mayfly.Invalid, "%q is not a kind of pool", asked).
			Hint("one of: %s, %s, %s", Btrfs, Reflink, Plain)
	}
	return asked, nil
}

// probeReflink reports whether files in dir can share extents.
func probeReflink(dir string) bool {
	var files [2]*os.File
	for i := range files {
		f, err := os.CreateTemp(dir, ".probe")
		if err != nil {
			return false
		}
		defer f.Close()
		defer os.Remove(f.Name())
		files[i] = f
	}
	if _, err := files[0].Write(make([]byte, 4096)); err != nil {
		return false
	}
	return unix.IoctlFileClone(int(files[1].Fd()), int(files[0].Fd())) == nil
}

func openBtrfs(ctx context.Context, p *pool, o Options) (Pool, error) {
	s := &btrfsStore{dir: p.dir, step: p.step}
	if native, err := onNativeBtrfs(p.dir); err != nil {
		return nil, err
	} else if native && o.Kind == Btrfs {
		if s.lock, err = lockDir(p.dir); err != nil {
			return nil, err
		}
	} else {
		now := o.Now
		if now == nil {
			now = time.Now
		}
		im, err := openImage(ctx, p.dir, o.ImageSize, now, p.step)
		if err != nil {
			return nil, err
		}
		s.image, s.lock = im, im.file
	}
	if s.image != nil {
		below := &pool{layout: layout{layersPath(p.dir)}, fault: o.fault, builds: map[string]*build{}}
		below.store = &copyStore{dir: below.dir, step: below.step} // the image's lock is for both
		err := os.MkdirAll(below.dir, 0o700)
		if err == nil {
			err = below.makeDirs()
		}
		if err != nil {
			return nil, errors.Join(err, s.abandon())
		}
		p.below = below
	}
	// An image is ours to set up; a file system of somebody else's is taken as
	// it is, because quotas concern all of it.
	q, err := openQuota(p.dir, s.image != nil)
	if err == nil {
		err = p.makeDirs()
	}
	if err != nil {
		return nil, errors.Join(err, s.abandon())
	}
	if q == nil {
		p.store = s
		s.start(p.store.settle)
		return p, nil
	}
	limited := &limitedStore{s, q}
	p.store = limited
	s.start(p.store.settle)
	return limitedPool{p, limited}, nil
}

// onNativeBtrfs reports whether dir lies on a btrfs that is not the pool's own
// image.
func onNativeBtrfs(dir string) (bool, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return false, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Type != unix.BTRFS_SUPER_MAGIC {
		return false, nil
	}
	file, err := os.Open(imagePath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	} else if err != nil {
		return false, err
	}
	defer file.Close()
	return !(&image{dir: dir, file: file}).mounted(), nil
}

func openCopies(p *pool, kind Kind) (Pool, error) {
	s := &copyStore{dir: p.dir, shares: kind == Reflink, step: p.step}
	var err error
	if s.lock, err = lockDir(p.dir); err != nil {
		return nil, err
	}
	p.store = s
	if err := p.makeDirs(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return p, nil
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := lock(f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// makeDirs makes what every pool has.
func (p *pool) makeDirs() error {
	if err := os.Chmod(p.dir, 0o700); err != nil {
		return err
	}
	for _, dir := range []string{p.layers(), p.envs(), p.trash()} {
		if err := mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	return nil
}
