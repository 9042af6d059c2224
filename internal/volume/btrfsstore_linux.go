package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// poolReserve is what stays free in a pool, in bytes, for the work that takes
// things away: btrfs needs room to delete.
const poolReserve = 128 << 20

// btrfsStore keeps trees as subvolumes.
type btrfsStore struct {
	dir   string
	step  func(string) error
	image *image // that the pool lies on; nil on a native btrfs
	lock  *os.File

	stop chan struct{} // ends the upkeep
	done sync.WaitGroup
}

// limitedStore is a btrfsStore with quotas.
type limitedStore struct {
	*btrfsStore
	quota *quota
}

// start begins the upkeep: growing the image ahead of its writers, and
// calling settle, which finds out what can be removed by now.
func (s *btrfsStore) start(settle func() error) {
	s.stop = make(chan struct{})
	s.done.Add(1)
	go func() {
		defer s.done.Done()
		tick := time.NewTicker(500 * time.Millisecond)
		defer tick.Stop()
		for n := 1; ; n++ {
			select {
			case <-s.stop:
				return
			case <-tick.C:
			}
			// An error shows again in admit, where somebody reads it.
			if s.image != nil {
				_ = s.image.upkeep()
			}
			if n%20 == 0 {
				_ = settle()
			}
		}
	}()
}

func (s *btrfsStore) kind() Kind { return Btrfs }

func (s *btrfsStore) admit() error {
	if s.image != nil {
		if err := s.image.admit(); err != nil {
			return err
		}
	}
	return admitDir(s.dir, poolReserve)
}

// admitDir fails when the file system of dir has less than reserve bytes free
// or has become read-only.
func admitDir(dir string, reserve uint64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if st.Flags&unix.ST_RDONLY != 0 {
		return mayfly.Errorf(mayfly.Unavailable, "the file system of %s is read-only", dir).
			Hint("see the kernel's log (dmesg), then mount it again")
	}
	if free := st.Bavail * uint64(st.Bsize); free < reserve {
		return full(dir, free, reserve)
	}
	if st.Files > 0 && st.Ffree < 1000 {
		return mayfly.Errorf(mayfly.Exhausted, "the file system of %s has only %d inodes left", dir, st.Ffree).
			Hint("delete files or environments")
	}
	return nil
}

func full(dir string, free, reserve uint64) error {
	return mayfly.Errorf(mayfly.Exhausted, "the file system of %s has only %d MiB free, less than the %d MiB that stay in reserve",
		dir, free>>20, reserve>>20).Hint("free space there, or delete environments")
}

func (s *btrfsStore) create(path string) error { return createSubvolume(path) }

func (s *btrfsStore) clone(_ context.Context, src, dst string, snapshot bool, parts ...string) error {
	if !snapshot {
		return snapshotSubvolume(src, dst, false, 0)
	}
	if blank(src, parts) {
		return s.blank(dst, parts, func(string) error { return nil })
	}
	return s.snapshot(src, dst, 0)
}

func (s *limitedStore) clone(_ context.Context, src, dst string, snapshot bool, parts ...string) error {
	if !snapshot {
		return snapshotSubvolume(src, dst, false, 0)
	}
	if blank(src, parts) {
		return s.blank(dst, parts, func(tree string) error { return s.quota.enroll(volumeOf(filepath.Join(dst, upperName)), tree) })
	}
	group, err := s.quota.group(filepath.Dir(filepath.Dir(dst)))
	if err != nil {
		return err
	}
	return s.snapshot(src, dst, group)
}

// blank makes the snapshot of a tree in which nothing has been written yet,
// such as a new environment's. A new tree is the same and needs no commit,
// which is most of what a snapshot costs. It is on disk with the next commit,
// as the volume itself is.
func (s *btrfsStore) blank(dst string, parts []string, enroll func(tree string) error) error {
	next := hidden(dst)
	if _, err := s.drop(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err // what a crash left
	}
	if err := s.create(next); err != nil {
		return err
	}
	for _, name := range parts {
		if err := mkdir(filepath.Join(next, name), 0o755); err != nil {
			return err
		}
	}
	if err := enroll(next); err != nil {
		return err
	}
	return os.Rename(next, dst)
}

// blank reports whether the parts of a tree are as Create makes them.
func blank(tree string, parts []string) bool {
	for _, name := range parts {
		path := filepath.Join(tree, name)
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil || st.Mode != unix.S_IFDIR|0o755 || st.Uid != 0 || st.Gid != 0 {
			return false
		}
		if n, err := unix.Llistxattr(path, nil); n > 0 || err != nil {
			return false
		}
		if entries, err := os.ReadDir(path); len(entries) > 0 || err != nil {
			return false
		}
	}
	return true
}

// snapshot returns only when changes get a later time than those before it,
// which is what comparing states of a volume relies on. Usually they do by
// then: the clock of a file system ticks every few milliseconds.
func (s *btrfsStore) snapshot(src, dst string, group uint64) error {
	before, err := fileTime()
	if err != nil {
		return err
	}
	if err := snapshotSubvolume(src, dst, true, group); err != nil {
		return err
	}
	for now := before; now == before; time.Sleep(100 * time.Microsecond) {
		if now, err = fileTime(); err != nil || now != before {
			break
		}
	}
	return err
}

// fileTime is the time that a file would get if it were changed now.
func fileTime() (unix.Timespec, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_REALTIME_COARSE, &ts)
	return ts, err
}

// seal takes a read-only snapshot, which is the only way to put a tree on
// disk together with its name.
func (s *btrfsStore) seal(_ context.Context, src, dst string) error {
	return snapshotSubvolume(src, dst, true, 0)
}

func (s *btrfsStore) drop(path string) (bool, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return false, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Ino != firstInode || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return false, nil
	}
	return true, withDir(filepath.Dir(path), func(fd int) error {
		if err := destroySubvolume(fd, filepath.Base(path)); err != nil {
			return &fs.PathError{Op: "delete subvolume", Path: path, Err: err}
		}
		return nil
	})
}

func (s *limitedStore) drop(path string) (bool, error) {
	defer s.quota.stale.Store(true)
	return s.btrfsStore.drop(path)
}

func (s *btrfsStore) purge(ctx context.Context, path string) error {
	return remove(ctx, path, s.step, destroySubvolume)
}

func (s *limitedStore) purge(ctx context.Context, path string) error {
	defer s.quota.stale.Store(true)
	return s.btrfsStore.purge(ctx, path)
}

func (s *btrfsStore) enroll(string, string) error { return nil }

func (s *limitedStore) enroll(envDir, tree string) error { return s.quota.enroll(envDir, tree) }

func (s *btrfsStore) settle() error { return nil }

func (s *limitedStore) settle() error {
	_, err := s.quota.sweep()
	return err
}

func (s *limitedStore) createGroup(envDir string) error        { return s.quota.create(envDir) }
func (s *limitedStore) limit(envDir string, bytes int64) error { return s.quota.limit(envDir, bytes) }
func (s *limitedStore) limitOf(envDir string) (int64, error)   { return s.quota.limitOf(envDir) }
func (s *limitedStore) used(envDir string) (int64, error)      { return s.quota.used(envDir) }
func (s *btrfsStore) close() error                             { return s.shut(s.settle) }
func (s *limitedStore) close() error                           { return s.shut(s.settle) }

// abandon unmounts an image, and gives up the lock.
func (s *btrfsStore) abandon() error {
	if s.image != nil {
		return s.image.unmount()
	}
	return s.lock.Close()
}

// shut ends the upkeep and, on an image, unmounts it; when that fails the
// upkeep goes on.
func (s *btrfsStore) shut(settle func() error) error {
	close(s.stop)
	s.done.Wait()
	if err := s.abandon(); err != nil {
		s.start(settle)
		return err
	}
	return nil
}
