package volume

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// removeDepth is how many directories remove holds open at once. Who can make
// directories can nest them deeper than there are descriptors, so what lies
// deeper is moved up and removed from there.
const removeDepth = 64

// remover deletes a tree. It follows no symbolic link.
type remover struct {
	ctx   context.Context
	top   int      // directory that the tree lies in
	name  string   // of the tree
	queue []string // names in top to remove
	moved int      // directories moved up so far
	step  func(string) error
	// subvolume deletes a btrfs subvolume; nil where there are none.
	subvolume func(dirfd int, name string) error
}

// remove deletes path and everything below it; a missing path is not an error.
func remove(ctx context.Context, path string, step func(string) error, subvolume func(dirfd int, name string) error) error {
	err := withDir(filepath.Dir(path), func(fd int) error {
		name := filepath.Base(path)
		r := &remover{ctx: ctx, top: fd, name: name, queue: []string{name}, step: step, subvolume: subvolume}
		for len(r.queue) > 0 {
			name, r.queue = r.queue[0], r.queue[1:]
			if err := r.entry(fd, name, 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

func (r *remover) entry(dirfd int, name string, depth int) error {
	var st unix.Stat_t
	err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case err != nil:
		return err
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return ignoreMissing(unix.Unlinkat(dirfd, name, 0))
	}
	if err := r.step("remove " + name); err != nil {
		return err
	}
	switch {
	case st.Ino == firstInode && r.subvolume != nil:
		return r.subvolume(dirfd, name)
	case depth == removeDepth:
		return r.moveUp(dirfd, name)
	}
	if err := r.children(dirfd, name, depth); err != nil {
		return err
	}
	return ignoreMissing(unix.Unlinkat(dirfd, name, unix.AT_REMOVEDIR))
}

func (r *remover) children(dirfd int, name string, depth int) error {
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return ignoreMissing(err)
	}
	dir := os.NewFile(uintptr(fd), name)
	defer dir.Close()
	for {
		if err := r.ctx.Err(); err != nil {
			return err
		}
		names, err := dir.Readdirnames(1024)
		for _, n := range names {
			if err := r.entry(fd, n, depth+1); err != nil {
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

// moveUp puts a directory beside the tree that it lies deep in.
func (r *remover) moveUp(dirfd int, name string) error {
	for {
		r.moved++
		up := fmt.Sprintf("%s.%d", r.name, r.moved)
		err := unix.Renameat2(dirfd, name, r.top, up, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if err == nil {
			r.queue = append(r.queue, up)
		}
		return err
	}
}

func ignoreMissing(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}
