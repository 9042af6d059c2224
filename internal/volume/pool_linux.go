package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// store keeps the trees of a pool: as btrfs subvolumes, or as directories.
type store interface {
	kind() Kind
	// admit fails with mayfly.Exhausted when there is no room to begin
	// something new.
	admit() error
	// create makes an empty tree at path, which does not exist.
	create(path string) error
	// clone makes dst a copy of the tree src; dst is complete or not there. Of
	// the entries of src at least parts are copied. A snapshot is read-only and
	// counts for the environment of dst.
	clone(ctx context.Context, src, dst string, snapshot bool, parts ...string) error
	// seal turns the tree src into the read-only tree dst, which is on disk
	// when it returns.
	seal(ctx context.Context, src, dst string) error
	// drop removes the tree at path in one step and reports whether it could.
	drop(path string) (bool, error)
	// purge deletes path and everything below it.
	purge(ctx context.Context, path string) error
	// enroll charges a tree to the environment whose directory it lies in.
	enroll(envDir, tree string) error
	// settle waits for nothing: it removes what has become removable since.
	settle() error
	// close releases the pool's directory, or fails and leaves it usable.
	close() error
}

// pool implements Pool on a store. Whatever it makes, it makes under a hidden
// name and then renames, so that an interrupted operation is repeated from its
// beginning.
type pool struct {
	layout
	store
	below *pool                   // keeps the layers, when they cannot lie here; see layerPool
	fault func(step string) error // of tests: fails instead of the named step

	open   sync.RWMutex // held for reading during every operation
	closed bool         // guarded by open

	mu     sync.Mutex
	builds map[string]*build // by layer; guarded by mu
	trashN int               // guarded by mu
}

// build is the making of a layer that several callers may wait for.
type build struct {
	done chan struct{}
	err  error // valid after done
}

func (p *pool) Kind() Kind { return p.kind() }

func (p *pool) Live(env string) Tree {
	return Tree{Upper: filepath.Join(p.live(env), upperName), Work: filepath.Join(p.live(env), workName),
		DB: filepath.Join(p.live(env), dbName)}
}

func (p *pool) At(env, snapshot string) Tree {
	dir := p.snapshot(env, snapshot)
	return Tree{Upper: filepath.Join(dir, upperName), DB: filepath.Join(dir, dbName)}
}

func (p *pool) Host(env string) string { return filepath.Join(p.env(env), hostName) }

// do runs one operation: it checks the names, keeps the pool open meanwhile
// and says what was being done when it fails.
func (p *pool) do(ctx context.Context, what string, names []string, fn func() error) error {
	if err := checkNames(names...); err != nil {
		return err
	}
	p.open.RLock()
	defer p.open.RUnlock()
	err := ctx.Err()
	if err == nil && p.closed {
		err = fs.ErrClosed
	}
	if err == nil {
		err = fn()
	}
	if err == nil {
		return nil
	}
	what += " " + strings.Join(names, " ")
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return mayfly.Errorf(mayfly.Exhausted, "%s: %w", what, err).
			Hint("free space on the file system of %s, or delete environments", p.dir)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// step is a point at which a test may let the pool crash.
func (p *pool) step(name string) error {
	if p.fault == nil {
		return nil
	}
	return p.fault(name)
}

func (p *pool) Create(ctx context.Context, env string) error {
	return p.do(ctx, "create volume", []string{env}, func() error {
		return p.make(ctx, env, func(next string) error {
			if err := p.step("create tree"); err != nil {
				return err
			}
			if err := p.create(next); err != nil {
				return err
			}
			for _, name := range []string{upperName, dbName} {
				if err := p.step("make " + name); err != nil {
					return err
				}
				if err := mkdir(filepath.Join(next, name), 0o755); err != nil {
					return err
				}
			}
			return nil
		})
	})
}

func (p *pool) Fork(ctx context.Context, env, fromEnv, fromSnapshot string) error {
	return p.do(ctx, "fork volume", []string{env, fromEnv, fromSnapshot}, func() error {
		src := p.snapshot(fromEnv, fromSnapshot)
		if !isDir(p.live(env)) {
			if err := wantSnapshot(src, fromEnv, fromSnapshot); err != nil {
				return err
			}
		}
		return p.make(ctx, env, func(next string) error {
			if err := p.step("fork clone"); err != nil {
				return err
			}
			if err := p.clone(ctx, src, next, false, upperName, dbName); err != nil {
				return err
			}
			return p.inheritLimit(fromEnv, env)
		})
	})
}

// inheritLimit gives a fork the limit of its origin, so that there is no
// moment without one.
func (p *pool) inheritLimit(from, to string) error {
	l, ok := p.store.(envLimiter)
	if !ok {
		return nil
	}
	bytes, err := l.limitOf(p.env(from))
	if err != nil || bytes == 0 {
		return err
	}
	if err := p.step("fork limit"); err != nil {
		return err
	}
	return l.limit(p.env(to), bytes)
}

// make brings a volume into being: fill makes its tree at next.
func (p *pool) make(ctx context.Context, env string, fill func(next string) error) error {
	if err := p.mkdirs(env); err != nil {
		return err
	}
	if isDir(p.live(env)) {
		return nil
	}
	if err := p.admit(); err != nil {
		return err
	}
	next := p.next(env)
	if err := p.discard(ctx, next); err != nil {
		return err
	}
	if err := fill(next); err != nil {
		return err
	}
	if err := p.prepare(ctx, env, next); err != nil {
		return err
	}
	if err := p.step("publish volume"); err != nil {
		return err
	}
	return os.Rename(next, p.live(env))
}

// mkdirs makes the directories of an environment and its quota group.
func (p *pool) mkdirs(env string) error {
	if err := p.step("make directories"); err != nil {
		return err
	}
	for _, dir := range []string{p.env(env), p.snapshots(env), p.Host(env)} {
		if err := mkdir(dir, 0o755); err != nil {
			return err
		}
		if err := p.step("made " + filepath.Base(dir)); err != nil {
			return err
		}
	}
	if l, ok := p.store.(envLimiter); ok {
		if err := p.step("make quota group"); err != nil {
			return err
		}
		return l.createGroup(p.env(env))
	}
	return nil
}

// prepare makes a tree fit to be live: with an empty work directory, because
// an overlay refuses one that a volatile overlay has used, and charged to its
// environment. The charge comes last: an environment that has reached its
// limit could not make the work directory.
func (p *pool) prepare(ctx context.Context, env, tree string) error {
	work := filepath.Join(tree, workName)
	if err := p.step("empty work directory"); err != nil {
		return err
	}
	if err := p.purge(ctx, work); err != nil {
		return err
	}
	if err := p.step("make work"); err != nil {
		return err
	}
	if err := mkdir(work, 0o755); err != nil {
		return err
	}
	if err := p.step("enroll tree"); err != nil {
		return err
	}
	return p.enroll(p.env(env), tree)
}

func (p *pool) Snapshot(ctx context.Context, env, snapshot string) error {
	return p.do(ctx, "snapshot volume", []string{env, snapshot}, func() error {
		dst := p.snapshot(env, snapshot)
		if isDir(dst) {
			return nil
		}
		if err := p.wantVolume(env); err != nil {
			return err
		}
		if err := p.admit(); err != nil {
			return err
		}
		if err := p.step("snapshot clone"); err != nil {
			return err
		}
		return p.clone(ctx, p.live(env), dst, true, upperName, dbName)
	})
}

func (p *pool) Rollback(ctx context.Context, env, snapshot string) error {
	return p.do(ctx, "roll back volume", []string{env, snapshot}, func() error {
		return p.replaceLive(ctx, env, snapshot, func(string) error { return nil }, upperName, dbName)
	})
}

// replaceLive makes parts of a snapshot, which edit may change and add to, the
// live state of a volume.
func (p *pool) replaceLive(ctx context.Context, env, snapshot string, edit func(next string) error, parts ...string) error {
	src, next := p.snapshot(env, snapshot), p.next(env)
	if err := wantSnapshot(src, env, snapshot); err != nil {
		return err
	}
	if err := p.discard(ctx, next); err != nil {
		return err
	}
	if err := p.step("rollback clone"); err != nil {
		return err
	}
	if err := p.clone(ctx, src, next, false, parts...); err != nil {
		return err
	}
	if err := edit(next); err != nil {
		return err
	}
	if err := p.prepare(ctx, env, next); err != nil {
		return err
	}
	if err := p.step("rollback exchange"); err != nil {
		return err
	}
	err := unix.Renameat2(unix.AT_FDCWD, next, unix.AT_FDCWD, p.live(env), unix.RENAME_EXCHANGE)
	if err != nil {
		return &os.LinkError{Op: "exchange", Old: next, New: p.live(env), Err: err}
	}
	return p.discard(ctx, next)
}

func (p *pool) RemoveSnapshot(ctx context.Context, env, snapshot string) error {
	return p.do(ctx, "remove snapshot", []string{env, snapshot}, func() error {
		return p.discard(ctx, p.snapshot(env, snapshot))
	})
}

func (p *pool) Destroy(ctx context.Context, env string) error {
	return p.do(ctx, "destroy volume", []string{env}, func() error {
		if err := p.discard(ctx, p.env(env)); err != nil {
			return err
		}
		// What an interrupted call has left.
		return p.emptyTrash(ctx, env+".")
	})
}

// discard removes path at once from where it is and then from the disk. A
// missing path is not an error.
func (p *pool) discard(ctx context.Context, path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := p.step("drop"); err != nil {
		return err
	}
	if done, err := p.drop(path); done || err != nil {
		return err
	}
	trash, err := p.trashFor(path)
	if err != nil {
		return err
	}
	if err := p.step("move to trash"); err != nil {
		return err
	}
	if err := os.Rename(path, trash); errors.Is(err, unix.ENOSPC) {
		return p.discardInPlace(ctx, path)
	} else if err != nil {
		return err
	}
	if err := p.step("purge"); err != nil {
		return err
	}
	return p.purge(ctx, trash)
}

// discardInPlace deletes without the room that a rename needs. Recover
// finishes what it leaves: a volume without its live state is none.
func (p *pool) discardInPlace(ctx context.Context, path string) error {
	for _, dir := range []string{filepath.Join(path, liveName), path} {
		if err := p.step("purge in place"); err != nil {
			return err
		}
		if err := p.purge(ctx, dir); err != nil {
			return err
		}
	}
	return nil
}

// trashFor is a name in the trash that nothing has.
func (p *pool) trashFor(path string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for {
		p.trashN++
		trash := filepath.Join(p.trash(), fmt.Sprintf("%s.%d", filepath.Base(path), p.trashN))
		if _, err := os.Lstat(trash); errors.Is(err, fs.ErrNotExist) {
			return trash, nil
		} else if err != nil {
			return "", err
		}
	}
}

// emptyTrash purges what is in the trash and begins with prefix.
func (p *pool) emptyTrash(ctx context.Context, prefix string) error {
	entries, err := os.ReadDir(p.trash())
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), prefix) {
			continue
		}
		if err := p.step("empty trash"); err != nil {
			return err
		}
		if err := p.purge(ctx, filepath.Join(p.trash(), e.Name())); err != nil {
			return err
		}
	}
	return nil
}

func (p *pool) Volumes(ctx context.Context) (names []string, err error) {
	err = p.do(ctx, "list volumes", nil, func() error {
		names, err = list(p.envs())
		return err
	})
	return names, err
}

func (p *pool) SnapshotsOf(ctx context.Context, env string) (names []string, err error) {
	err = p.do(ctx, "list snapshots", []string{env}, func() error {
		names, err = list(p.snapshots(env))
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	return names, err
}

// list names the complete entries of a directory, in order.
func list(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		if checkNames(e.Name()) == nil {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	return names, nil
}

func (p *pool) Recover(ctx context.Context) error {
	if p.below != nil {
		if err := p.below.Recover(ctx); err != nil {
			return err
		}
	}
	return p.do(ctx, "recover pool", nil, func() error {
		if err := p.removeHidden(ctx, p.layers()); err != nil {
			return err
		}
		envs, err := list(p.envs())
		if err != nil {
			return err
		}
		for _, env := range envs {
			if err := p.recoverVolume(ctx, env); err != nil {
				return fmt.Errorf("%s: %w", env, err)
			}
		}
		if err := p.emptyTrash(ctx, ""); err != nil {
			return err
		}
		return p.settle()
	})
}

// recoverVolume removes what is half-made of a volume, and the volume when it
// never came into being.
func (p *pool) recoverVolume(ctx context.Context, env string) error {
	if !isDir(p.live(env)) {
		return p.discard(ctx, p.env(env))
	}
	for _, dir := range []string{p.env(env), p.snapshots(env)} {
		if err := p.removeHidden(ctx, dir); err != nil {
			return err
		}
	}
	if err := p.dropPart(ctx, env); err != nil {
		return err
	}
	return p.mkdirs(env)
}

// removeHidden discards the half-made entries of a directory.
func (p *pool) removeHidden(ctx context.Context, dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			if err := p.discard(ctx, filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pool) Close() error {
	if !p.open.TryLock() {
		return mayfly.Errorf(mayfly.Conflict, "close pool %s: an operation is under way", p.dir)
	}
	defer p.open.Unlock()
	if p.closed {
		return nil
	}
	if err := p.store.close(); err != nil {
		return fmt.Errorf("close pool: %w", err)
	}
	p.closed = true
	if p.below != nil {
		return p.below.Close()
	}
	return nil
}

// wantVolume fails when the environment has no volume.
func (p *pool) wantVolume(env string) error {
	if !isDir(p.live(env)) {
		return mayfly.Errorf(mayfly.NotFound, "environment %s has no volume", env)
	}
	return nil
}

// wantSnapshot fails when dir, a snapshot's, is not there.
func wantSnapshot(dir, env, snapshot string) error {
	if !isDir(dir) {
		return mayfly.Errorf(mayfly.NotFound, "environment %s has no snapshot %s on disk", env, snapshot).
			Hint("list them with: mayfly snapshot list %s", env)
	}
	return nil
}

func isDir(path string) bool {
	st, err := os.Lstat(path)
	return err == nil && st.IsDir()
}

// mkdir makes a directory with exactly the given mode, or leaves the one that
// is there.
func mkdir(path string, mode fs.FileMode) error {
	if err := os.Mkdir(path, mode); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	return os.Chmod(path, mode)
}
