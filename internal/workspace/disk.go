package workspace

import (
	"bytes"
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"runtime"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"mayfly.dev/mayfly"
)

// disk reads files below one directory without ever leaving it.
type disk struct {
	root   *os.Root
	format string
	dir    string // the directory that sub is, so that neighbours need no walk
	sub    *os.Root
	buf    []byte
}

func openDisk(dir, format string) (*disk, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open workspace: %w", err)
	}
	return &disk{root: root, format: format, buf: make([]byte, 128<<10)}, nil
}

func (d *disk) Close() {
	if d.sub != nil {
		d.sub.Close()
	}
	d.root.Close()
}

// at returns the directory that holds name and the last part of name.
func (d *disk) at(name string) (*os.Root, string, error) {
	dir, base := path.Split(name)
	if dir == "" {
		return d.root, base, nil
	}
	if d.sub != nil && d.dir == dir {
		return d.sub, base, nil
	}
	sub, err := d.root.OpenRoot(dir)
	if err != nil {
		return nil, "", err
	}
	if d.sub != nil {
		d.sub.Close()
	}
	d.dir, d.sub = dir, sub
	return sub, base, nil
}

// open opens a regular file, and nothing else: not the target of a link, and
// without waiting for a FIFO's other end.
func (d *disk) open(name string) (*os.File, fs.FileInfo, error) {
	dir, base, err := d.at(name)
	if err != nil {
		return nil, nil, err
	}
	f, err := dir.OpenFile(base, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = errChanged
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, st, nil
}

func (d *disk) lstat(name string) (fs.FileInfo, error) {
	dir, base, err := d.at(name)
	if err != nil {
		return nil, err
	}
	return dir.Lstat(base)
}

func (d *disk) readlink(name string) (string, error) {
	dir, base, err := d.at(name)
	if err != nil {
		return "", err
	}
	return dir.Readlink(base)
}

// errChanged says that a file was not the same for as long as it was read.
var errChanged = errors.New("changed while it was read")

const (
	readAttempts = 4
	readPause    = 15 * time.Millisecond
)

// stable repeats read while the file changes under it.
func stable(ctx context.Context, name string, read func() error) error {
	for try := 1; ; try++ {
		err := read()
		if err == nil || !errors.Is(err, errChanged) {
			return readError(name, err)
		}
		if try == readAttempts {
			return mayfly.Errorf(mayfly.Conflict, "%s changes while it is read", visible(name)).
				Hint("stop what writes it, or list it in .gitignore, and try again")
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Duration(try) * readPause):
		}
	}
}

// readError explains why a file cannot be read.
func readError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return mayfly.Errorf(mayfly.Invalid, "workspace: no permission to read %s", visible(name)).
			Hint("make it readable, or list it in .gitignore")
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ELOOP), errors.Is(err, syscall.ENOTDIR):
		return mayfly.Errorf(mayfly.Conflict, "%s vanished while the workspace was read", visible(name)).
			Hint("stop what writes to the directory and try again")
	}
	return fmt.Errorf("read %s: %w", visible(name), err)
}

func newHash(format string) hash.Hash {
	if format == "sha256" {
		return sha256.New()
	}
	return sha1.New() //nolint:gosec // git's object names, not ours to choose
}

// newBlobHash begins the object id of a blob of the given size.
func newBlobHash(format string, size int64) hash.Hash {
	h := newHash(format)
	h.Write([]byte("blob " + strconv.FormatInt(size, 10) + "\x00"))
	return h
}

func blobID(format string, content []byte) string {
	h := newBlobHash(format, int64(len(content)))
	h.Write(content)
	return hex.EncodeToString(h.Sum(nil))
}

// identify reads what is at name: its mode and blob id. The mode is 0 when
// there is nothing that a workspace can hold: special tells a FIFO, socket or
// device from nothing at all. head receives up to 200 bytes of the content.
func (d *disk) identify(ctx context.Context, name string) (id identity, err error) {
	err = stable(ctx, name, func() error {
		id = identity{}
		st, err := d.lstat(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
			return nil
		}
		if err != nil {
			return err
		}
		switch {
		case st.Mode().IsRegular():
			return d.identifyFile(name, &id)
		case st.Mode()&fs.ModeSymlink != 0:
			to, err := d.readlink(name)
			if err != nil {
				return changedIfGone(err)
			}
			id.mode, id.id, id.head = modeLink, blobID(d.format, []byte(to)), []byte(to)
		case !st.IsDir():
			id.special = true
		}
		return nil
	})
	return id, err
}

// identity is what identify finds.
type identity struct {
	mode    uint32
	id      string
	head    []byte // beginning of a file, target of a link
	special bool
}

const headSize = 200

func (d *disk) identifyFile(name string, id *identity) error {
	f, before, err := d.open(name)
	if err != nil {
		return changedIfGone(err)
	}
	defer f.Close()
	h := newBlobHash(d.format, before.Size())
	head := &prefix{}
	n, err := io.CopyBuffer(io.MultiWriter(h, head), onlyReader{io.LimitReader(f, before.Size()+1)}, d.buf)
	if err != nil {
		return err
	}
	after, err := f.Stat()
	if err != nil {
		return err
	}
	if n != before.Size() || !sameState(before, after) {
		return errChanged
	}
	id.mode, id.id, id.head = regularMode(after), hex.EncodeToString(h.Sum(nil)), head.b
	return nil
}

// onlyReader hides the other methods of a reader, so that io.CopyBuffer uses
// its buffer.
type onlyReader struct{ io.Reader }

// prefix keeps the first headSize bytes.
type prefix struct{ b []byte }

func (p *prefix) Write(b []byte) (int, error) {
	if room := headSize - len(p.b); room > 0 {
		p.b = append(p.b, b[:min(room, len(b))]...)
	}
	return len(b), nil
}

// changedIfGone makes a file that was there a moment ago count as changed.
func changedIfGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO) {
		return errChanged
	}
	return err
}

func sameState(a, b fs.FileInfo) bool {
	return a.Size() == b.Size() && a.ModTime().Equal(b.ModTime()) && a.Mode() == b.Mode()
}

func regularMode(st fs.FileInfo) uint32 {
	if st.Mode()&0o100 != 0 {
		return modeExecutable
	}
	return modeFile
}

// identifyAll identifies many paths with a few workers and calls found for
// each, one at a time, in any order.
func identifyAll(ctx context.Context, dir, format string, paths []string, found func(i int, id identity)) error {
	const batch = 64
	var mu sync.Mutex // guards found
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(min(max(runtime.GOMAXPROCS(0), 2), 8))
	for start := 0; start < len(paths); start += batch {
		if ctx.Err() != nil {
			break
		}
		g.Go(func() error {
			d, err := openDisk(dir, format)
			if err != nil {
				return err
			}
			defer d.Close()
			for i := start; i < min(start+batch, len(paths)); i++ {
				id, err := d.identify(ctx, paths[i])
				if err != nil {
					return err
				}
				mu.Lock()
				found(i, id)
				mu.Unlock()
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// content is the content of one file of the workspace.
type content struct {
	size int64
	// copyTo writes the content and then says whether it was the content that
	// the digest names.
	copyTo func(w io.Writer) error
}

// smallFile is the size up to which a file is read and checked before any of
// it is passed on, so that a change can be waited out.
const smallFile = 1 << 20

// read gives the content of f from disk.
func (d *disk) read(ctx context.Context, f file) (content, error) {
	if f.mode == modeLink {
		return d.readTarget(ctx, f)
	}
	st, err := d.lstat(f.path)
	if err != nil {
		return content{}, readError(f.path, err)
	}
	if st.Size() > smallFile {
		return d.readLarge(f)
	}
	var b []byte
	err = stable(ctx, f.path, func() error {
		in, st, err := d.open(f.path)
		if err != nil {
			return changedIfGone(err)
		}
		defer in.Close()
		if st.Size() > smallFile {
			return errChanged
		}
		if b, err = io.ReadAll(io.LimitReader(in, smallFile+1)); err != nil {
			return err
		}
		return d.check(f, b)
	})
	return memory(b), err
}

func (d *disk) check(f file, b []byte) error {
	if blobID(d.format, b) != f.id {
		return errChanged
	}
	return nil
}

func memory(b []byte) content {
	return content{size: int64(len(b)), copyTo: func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	}}
}

func (d *disk) readTarget(ctx context.Context, f file) (content, error) {
	var b []byte
	err := stable(ctx, f.path, func() error {
		to, err := d.readlink(f.path)
		if errors.Is(err, syscall.EINVAL) {
			return errChanged // no longer a link
		}
		if err != nil {
			return changedIfGone(err)
		}
		b = []byte(to)
		return d.check(f, b)
	})
	return memory(b), err
}

// readLarge streams a file. What it wrote cannot be taken back, so a change is
// final.
func (d *disk) readLarge(f file) (content, error) {
	in, st, err := d.open(f.path)
	if err != nil {
		return content{}, readError(f.path, err)
	}
	return content{size: st.Size(), copyTo: func(w io.Writer) error {
		defer in.Close()
		h := newBlobHash(d.format, st.Size())
		n, err := io.CopyBuffer(io.MultiWriter(w, h), onlyReader{io.LimitReader(in, st.Size())}, d.buf)
		if err != nil {
			return err
		}
		if n != st.Size() || !bytes.Equal(h.Sum(nil), unhex(f.id)) {
			return mayfly.Errorf(mayfly.Conflict, "%s changed while it was read", visible(f.path)).
				Hint("stop what writes it, or list it in .gitignore, and try again")
		}
		return nil
	}}, nil
}

func unhex(id string) []byte {
	b, _ := hex.DecodeString(id) // ids are checked when they are parsed
	return b
}
