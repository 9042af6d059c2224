package pack

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// file is what a pack needs of the operating system.
type file interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Truncate(size int64) error
	Close() error
}

// place is where a frame begins.
type place struct {
	file   int32 // index in files.list
	offset int64
}

// files are the packs of a directory. Frames are appended to the last one.
type files struct {
	dir   string
	limit int64 // a pack of this size is the last of its name
	open  func(name string, flag int) (file, error)

	mu     sync.Mutex // guards what follows; held while a frame is appended
	list   []file
	names  []int
	size   int64 // of the last pack
	count  int64 // bytes ever appended by this process
	broken error // set when a write failed and could not be undone

	syncing sync.Mutex // held while the disk is waited for
	synced  int64      // of count; guarded by syncing
}

func openOS(name string, flag int) (file, error) { return os.OpenFile(name, flag, 0o600) }

func (f *files) path(n int) string { return filepath.Join(f.dir, fmt.Sprintf("%08d.pack", n)) }

// openAll opens the packs that there are.
func (f *files) openAll() error {
	names, err := filepath.Glob(filepath.Join(f.dir, "*.pack"))
	if err != nil {
		return err
	}
	for _, name := range names {
		n, err := strconv.Atoi(strings.TrimSuffix(filepath.Base(name), ".pack"))
		if err != nil {
			return fmt.Errorf("%s is not a pack", name)
		}
		f.names = append(f.names, n)
	}
	slices.Sort(f.names)
	for _, n := range f.names {
		h, err := f.open(f.path(n), os.O_RDWR)
		if err != nil {
			return errors.Join(err, f.close())
		}
		f.list = append(f.list, h)
	}
	return nil
}

// add starts a pack. What the one before has is on disk then.
func (f *files) add() error {
	n := 1
	if len(f.names) > 0 {
		n = f.names[len(f.names)-1] + 1
		if err := f.list[len(f.list)-1].Sync(); err != nil {
			f.broken = err
			return err
		}
	}
	h, err := f.open(f.path(n), os.O_RDWR|os.O_CREATE|os.O_EXCL)
	if err != nil {
		return err
	}
	if err := syncDir(f.dir); err != nil {
		return errors.Join(err, h.Close(), os.Remove(f.path(n)))
	}
	f.list, f.names, f.size = append(f.list, h), append(f.names, n), 0
	return nil
}

// append writes frames at the end of the last pack and returns where they
// begin. The caller holds mu. They are on disk when sync says so.
func (f *files) append(frames []byte) (place, error) {
	if f.broken != nil {
		return place{}, f.broken
	}
	if len(f.list) == 0 || f.size > 0 && f.size+int64(len(frames)) > f.limit {
		if err := f.add(); err != nil {
			return place{}, err
		}
	}
	last := f.list[len(f.list)-1]
	if _, err := last.WriteAt(frames, f.size); err != nil {
		if undo := last.Truncate(f.size); undo != nil {
			f.broken = errors.Join(err, undo)
		}
		return place{}, err
	}
	at := place{int32(len(f.list) - 1), f.size}
	f.size += int64(len(frames))
	f.count += int64(len(frames))
	return at, nil
}

// sync returns when what was appended up to count is on disk. Whoever waits
// meanwhile is served by the same call to the system.
func (f *files) sync(count int64) error {
	f.syncing.Lock()
	defer f.syncing.Unlock()
	if f.synced >= count {
		return nil
	}
	last, upTo, err := f.end()
	if err != nil {
		return err
	}
	if err := last.Sync(); err != nil {
		f.mu.Lock()
		f.broken = err // what is on disk is not known any more
		f.mu.Unlock()
		return err
	}
	f.synced = upTo
	return nil
}

// end is the last pack and how much was appended so far.
func (f *files) end() (file, int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return nil, 0, f.broken
	}
	return f.list[len(f.list)-1], f.count, nil
}

func (f *files) at(i int32) (file, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if int(i) >= len(f.list) {
		return nil, os.ErrClosed
	}
	return f.list[i], nil
}

func (f *files) close() error {
	var errs []error
	for _, h := range f.list {
		errs = append(errs, h.Close())
	}
	f.list = nil
	f.broken = errors.Join(f.broken, os.ErrClosed)
	return errors.Join(errs...)
}

// syncDir makes the names in dir durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
