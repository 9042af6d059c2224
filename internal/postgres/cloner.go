package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"mayfly.dev/mayfly"
)

// Cloner makes disposable copies of a database that something else manages: a
// data directory, a volume of a cluster, an instance of a cloud. A baseline
// is prepared from the copy, so that the original serves nobody but its users.
type Cloner interface {
	// Clone returns when the copy is there, and what Prepare reads it by. The
	// caller has saved the name before. Asked again after a crash, it finds
	// the copy of that name or makes it anew.
	Clone(ctx context.Context, name string) (Source, error)
	// Remove removes the copy. Removing a missing one is not an error.
	Remove(ctx context.Context, name string) error
}

// DirectoryCloner copies a data directory that no server uses into
// directories below Root. Where the file system can, the copies share blocks
// with it.
type DirectoryCloner struct {
	Directory string
	Root      string
}

// Clone implements Cloner.
func (c DirectoryCloner) Clone(ctx context.Context, name string) (Source, error) {
	dir, err := c.path(name)
	if err != nil {
		return Source{}, err
	}
	if exists(dir) {
		return Source{Directory: dir}, nil
	}
	from, err := os.OpenRoot(c.Directory)
	if err != nil {
		return Source{}, fmt.Errorf("clone data directory: %w", err)
	}
	defer from.Close()
	if inUse(from) {
		return Source{}, mayfly.Errorf(mayfly.Conflict, "a server uses the data directory %s", c.Directory).Hint("stop it first")
	}
	next := filepath.Join(c.Root, "."+name+".new", "data")
	if err := c.copy(ctx, next); err != nil {
		return Source{}, errors.Join(fmt.Errorf("clone data directory: %w", err), os.RemoveAll(filepath.Dir(next)))
	}
	return Source{Directory: dir}, errors.Join(os.Rename(next, dir), os.RemoveAll(filepath.Dir(next)))
}

func (c DirectoryCloner) copy(ctx context.Context, dst string) error {
	if err := os.RemoveAll(filepath.Dir(dst)); err != nil {
		return err
	}
	if err := os.MkdirAll(dst, 0o700); err != nil {
		return err
	}
	p := &preparation{work: filepath.Dir(dst), Options: Options{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}}
	return p.copyAll(ctx, inputs{}, c.Directory)
}

// Remove implements Cloner.
func (c DirectoryCloner) Remove(_ context.Context, name string) error {
	dir, err := c.path(name)
	if err != nil {
		return err
	}
	return errors.Join(os.RemoveAll(dir), os.RemoveAll(filepath.Join(c.Root, "."+name+".new")))
}

func (c DirectoryCloner) path(name string) (string, error) {
	if !fs.ValidPath(name) || strings.ContainsRune(name, '/') || strings.HasPrefix(name, ".") {
		return "", mayfly.Errorf(mayfly.Invalid, "bad name %.80q of a clone", name)
	}
	return filepath.Join(c.Root, name), nil
}
