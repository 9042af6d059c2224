package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// copyReserve is what stays free on the file system of a pool of directories,
// in bytes.
const copyReserve = 256 << 20

// copyStore keeps trees as directories and copies them, sharing extents when
// it can.
type copyStore struct {
	dir    string
	shares bool // the file system can share extents between files
	step   func(string) error
	lock   *os.File // nil when that of another pool is held
}

func (s *copyStore) kind() Kind {
	if s.shares {
		return Reflink
	}
	return Plain
}

func (s *copyStore) admit() error { return admitDir(s.dir, copyReserve) }

func (s *copyStore) create(path string) error { return mkdir(path, 0o755) }

// clone copies beside dst and renames. What an error leaves is removed right
// away, because it may be what filled the disk.
func (s *copyStore) clone(ctx context.Context, src, dst string, _ bool, parts ...string) (err error) {
	tmp := hidden(dst)
	if err := s.purge(ctx, tmp); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.purge(context.WithoutCancel(ctx), tmp))
		}
	}()
	if err := mkdir(tmp, 0o755); err != nil {
		return err
	}
	for _, part := range parts {
		if err := s.step("copy " + part); err != nil {
			return err
		}
		if err := copyTree(ctx, filepath.Join(src, part), filepath.Join(tmp, part), s.shares, nil); err != nil {
			return err
		}
	}
	if err := s.step("publish copy"); err != nil {
		return err
	}
	return os.Rename(tmp, dst)
}

func (s *copyStore) seal(_ context.Context, src, dst string) error {
	err := withDir(src, func(fd int) error {
		if err := unix.Syncfs(fd); err != nil {
			return &fs.PathError{Op: "sync", Path: src, Err: err}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := os.Rename(src, dst); err != nil {
		return err
	}
	return withDir(filepath.Dir(dst), unix.Fsync)
}

// drop leaves it to the trash: a directory cannot vanish in one step.
func (s *copyStore) drop(string) (bool, error) { return false, nil }

func (s *copyStore) purge(ctx context.Context, path string) error {
	return remove(ctx, path, s.step, nil)
}

func (s *copyStore) enroll(string, string) error { return nil }

func (s *copyStore) settle() error { return nil }

func (s *copyStore) close() error {
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}
