package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

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
// directories below Root, with its tablespaces. Where the file system can, the
// copies share blocks with it.
type DirectoryCloner struct {
	Directory string
	Inputs    string // that Directory is relative to and that no link leads out of; empty: a path of this machine
	Root      string
}

// Clone implements Cloner.
func (c DirectoryCloner) Clone(ctx context.Context, name string) (Source, error) {
	dir, err := c.path(name)
	if err != nil {
		return Source{}, err
	}
	if exists(dir) {
		return Source{Directory: dir, Name: c.Directory}, nil
	}
	next := filepath.Join(c.Root, "."+name+".new")
	err = os.RemoveAll(next)
	if err == nil {
		err = c.copy(ctx, next)
	}
	if err == nil {
		err = os.Rename(filepath.Join(next, "data"), dir)
	}
	return Source{Directory: dir, Name: c.Directory}, errors.Join(err, os.RemoveAll(next))
}

// copy makes the copy in a directory of its own. A server that was started
// meanwhile has written to what was copied.
func (c DirectoryCloner) copy(ctx context.Context, work string) error {
	in, err := openInputs(c.Inputs)
	if err != nil {
		return err
	}
	defer in.close()
	from, err := in.openRoot(c.Directory)
	if err != nil {
		return mayfly.Errorf(mayfly.Invalid, "open data directory: %w", err).Hint("correct the path in the manifest")
	}
	defer from.Close()
	p := &preparation{work: work, Options: Options{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}}
	err = c.idle(from)
	if err == nil {
		err = os.MkdirAll(p.data(), 0o700)
	}
	if err == nil {
		err = p.copyAll(ctx, in, c.Directory)
	}
	if err == nil {
		err = c.idle(from)
	}
	return err
}

func (c DirectoryCloner) idle(dir *os.Root) error {
	if inUse(dir) {
		return mayfly.Errorf(mayfly.Conflict, "a server uses the data directory %s", c.Directory).
			Hint("stop it, or name the server as the source")
	}
	return nil
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

// clone has the Cloner make the source.
func (p *preparation) clone(ctx context.Context) (err error) {
	if p.Cloner != nil {
		p.Source, err = p.Cloner.Clone(ctx, p.cloneName())
	}
	return err
}

func (p *preparation) removeClone(ctx context.Context) error {
	if p.Cloner == nil {
		return nil
	}
	return p.Cloner.Remove(context.WithoutCancel(ctx), p.cloneName())
}

func (p *preparation) cloneName() string { return filepath.Base(p.Dir) + "-clone" }

// emptyDirs are directories of PGDATA that may have nothing in them, and that
// git and some archives therefore leave out.
var emptyDirs = []string{"pg_commit_ts", "pg_dynshmem", "pg_logical/mappings", "pg_logical/snapshots", "pg_notify", "pg_replslot", "pg_serial",
	"pg_snapshots", "pg_stat", "pg_stat_tmp", "pg_subtrans", "pg_tblspc", "pg_twophase", "pg_wal/archive_status"}

// takeDirectory makes the source's directory the baseline's.
func (p *preparation) takeDirectory() error {
	root, err := os.OpenRoot(p.Source.Directory)
	if err != nil {
		return mayfly.Errorf(mayfly.Invalid, "open data directory: %w", err)
	}
	defer root.Close()
	if err := checkMajor(root, cmp.Or(p.Source.Name, p.Source.Directory), p.Install); err != nil {
		return err
	}
	for _, name := range emptyDirs {
		if err := root.MkdirAll(name, 0o700); err != nil {
			return err
		}
	}
	if err := os.Remove(p.data()); err != nil {
		return err
	}
	if err := os.Rename(p.Source.Directory, p.data()); err != nil {
		return err
	}
	if err := errors.Join(os.Chmod(p.data(), 0o700), giveTo(p.data(), p.UID, p.GID)); err != nil {
		return err
	}
	return p.relinkTablespaces()
}

// copyAll copies a data directory with its tablespaces.
func (p *preparation) copyAll(ctx context.Context, in inputs, from string) error {
	if err := p.copyTree(ctx, in, from, "."); err != nil {
		return fmt.Errorf("copy data directory: %w", err)
	}
	links, err := in.readDir(filepath.Join(from, "pg_tblspc"))
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	for _, l := range links {
		if l.Type() == fs.ModeSymlink && err == nil {
			err = p.copyTree(ctx, in, filepath.Join(from, "pg_tblspc", l.Name()), tablespacesDir+"/"+l.Name())
		}
	}
	if err != nil {
		return fmt.Errorf("copy tablespaces: %w", err)
	}
	return nil
}

// inUse reports whether a process works in the directory, as every process of
// Postgres does in its own, whatever it is called there.
func inUse(dir *os.Root) bool {
	here, err := dir.Stat(".")
	if err != nil {
		return false
	}
	processes, _ := filepath.Glob("/proc/[0-9]*/cwd")
	for _, p := range processes {
		if there, err := os.Stat(p); err == nil && os.SameFile(here, there) {
			return true
		}
	}
	return false
}

// copyTree copies directories and regular files; pg_wal may be a link, others
// stay links.
func (p *preparation) copyTree(ctx context.Context, in inputs, from, to string) error {
	src, err := in.openRoot(from) // follows a link to a tablespace
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenRoot(p.data())
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := p.makeDir(dst, filepath.Dir(to)); err != nil {
		return err
	}
	return fs.WalkDir(src.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		target := filepath.Join(to, name)
		switch d.Type() {
		case fs.ModeDir:
			if name == tablespacesDir { // copied by the links that lead there
				return fs.SkipDir
			}
			return p.makeDir(dst, target)
		case fs.ModeSymlink:
			if name == "pg_wal" {
				return p.copyTree(ctx, in, filepath.Join(from, name), "pg_wal")
			}
			if filepath.Dir(name) == "pg_tblspc" {
				return dst.Symlink("/", target) // made to lead somewhere in the end
			}
			return nil
		case 0:
			if name == "postmaster.pid" {
				return nil
			}
			return p.copyFile(src, dst, name, target)
		}
		return nil
	})
}

func (p *preparation) makeDir(dst *os.Root, name string) error {
	if err := dst.MkdirAll(name, 0o700); err != nil {
		return err
	}
	return dst.Lchown(name, int(p.UID), int(p.GID))
}

func (p *preparation) copyFile(src, dst *os.Root, name, target string) error {
	in, err := src.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := dst.OpenFile(target, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Chown(int(p.UID), int(p.GID)), out.Close())
}
