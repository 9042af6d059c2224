package volume

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// partName is where entries of a live state's other directories are made. It is
// in the same subvolume, and outside of all that a sandbox mounts.
const partName = ".part"

func (p *pool) RollbackUpper(ctx context.Context, env, snapshot string) error {
	return p.do(ctx, "roll back files of volume", []string{env, snapshot}, func() error {
		return p.replaceLive(ctx, env, snapshot, func(next string) error {
			// What stays is the smaller side: it is copied into the clone of the
			// other.
			db := filepath.Join(next, dbName)
			if err := p.step("drop old databases"); err != nil {
				return err
			}
			if err := p.purge(ctx, db); err != nil {
				return err
			}
			if err := p.step("copy databases"); err != nil {
				return err
			}
			return copyTree(ctx, filepath.Join(p.live(env), dbName), db, p.kind() != Plain)
		}, upperName)
	})
}

func (p *pool) RollbackDB(ctx context.Context, env, snapshot string) error {
	return p.do(ctx, "roll back databases of volume", []string{env, snapshot}, func() error {
		src := p.snapshot(env, snapshot)
		if err := wantSnapshot(src, env, snapshot); err != nil {
			return err
		}
		if err := p.dropPart(ctx, env); err != nil {
			return err
		}
		part, live := filepath.Join(p.live(env), partName), filepath.Join(p.live(env), dbName)
		if err := p.step("copy databases"); err != nil {
			return err
		}
		err := copyTree(ctx, filepath.Join(src, dbName), part, p.kind() != Plain)
		if err == nil {
			err = p.exchangeEntries(part, live)
		}
		if err != nil {
			return errors.Join(err, p.dropPart(context.WithoutCancel(ctx), env))
		}
		return p.dropPart(ctx, env)
	})
}

// dropPart removes what RollbackDB made or took out.
func (p *pool) dropPart(ctx context.Context, env string) error {
	part := filepath.Join(p.live(env), partName)
	if !isDir(part) {
		return nil
	}
	if err := p.step("drop databases"); err != nil {
		return err
	}
	return p.purge(ctx, part)
}

// exchangeEntries gives live the entries of part, and part those of live.
func (p *pool) exchangeEntries(part, live string) error {
	there, err := names(live)
	if err != nil {
		return err
	}
	wanted, err := names(part)
	if err != nil {
		return err
	}
	for name := range wanted {
		flags := uint(unix.RENAME_NOREPLACE)
		if there[name] {
			flags = unix.RENAME_EXCHANGE
		}
		if err := p.move(filepath.Join(part, name), filepath.Join(live, name), flags); err != nil {
			return err
		}
	}
	for name := range there {
		if !wanted[name] {
			if err := p.move(filepath.Join(live, name), filepath.Join(part, name), unix.RENAME_NOREPLACE); err != nil {
				return err
			}
		}
	}
	return nil
}

func (p *pool) move(from, to string, flags uint) error {
	if err := p.step("exchange " + filepath.Base(to)); err != nil {
		return err
	}
	if err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, flags); err != nil {
		return &os.LinkError{Op: "exchange", Old: from, New: to, Err: err}
	}
	return nil
}

func names(dir string) (map[string]bool, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	found := map[string]bool{}
	for _, e := range entries {
		found[e.Name()] = true
	}
	return found, err
}
