package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

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
			if err := p.dropSpares(ctx, env); err != nil {
				return err
			}
			return copyTree(ctx, filepath.Join(p.live(env), dbName), db, p.kind() != Plain, nil)
		}, upperName)
	})
}

func (p *pool) RollbackDB(ctx context.Context, env, snapshot string, except ...string) error {
	return p.do(ctx, "roll back databases of volume", []string{env, snapshot}, func() error {
		src := p.snapshot(env, snapshot)
		if err := wantSnapshot(src, env, snapshot); err != nil {
			return err
		}
		if err := p.dropPart(ctx, env); err != nil {
			return err
		}
		if err := p.step("copy databases"); err != nil {
			return err
		}
		err := p.restore(ctx, src, p.live(env), dbName, except)
		if err != nil {
			return errors.Join(err, p.dropPart(context.WithoutCancel(ctx), env))
		}
		return p.dropPart(ctx, env)
	})
}

func (p *pool) ReadAheadDB(ctx context.Context, env, snapshot string) {
	_ = p.do(ctx, "read ahead databases of volume", []string{env, snapshot}, func() error {
		var reading sync.WaitGroup
		defer reading.Wait()
		for _, tree := range []string{p.snapshot(env, snapshot), p.live(env)} {
			reading.Go(func() {
				_ = withDir(filepath.Join(tree, dbName), func(dir int) error { readInodes(ctx, dir, 0); return nil })
			})
		}
		return nil
	})
}

// A spare directory is what another of a live state's data directories may be
// exchanged for. It lies beside that, under a name that no service has.
const sparePrefix = ".spare-"

func (p *pool) SpareDB(env, name string) string {
	return filepath.Join(p.live(env), dbName, sparePrefix+name)
}

func (p *pool) CopyDB(ctx context.Context, env, snapshot, name string, owner uint32) error {
	return p.do(ctx, "copy database of volume", []string{env, snapshot, name}, func() error {
		src := p.snapshot(env, snapshot)
		if err := wantSnapshot(src, env, snapshot); err != nil {
			return err
		}
		if err := p.admit(); err != nil {
			return err
		}
		spare := p.SpareDB(env, name)
		if err := p.purge(ctx, spare); err != nil {
			return err
		}
		if err := p.step("copy spare database"); err != nil {
			return err
		}
		return copyTree(ctx, filepath.Join(src, dbName, name), spare, p.kind() != Plain, &owner)
	})
}

func (p *pool) ExchangeDB(ctx context.Context, env, name string) error {
	return p.do(ctx, "exchange database of volume", []string{env, name}, func() error {
		spare, current := p.SpareDB(env, name), filepath.Join(p.live(env), dbName, name)
		if err := unix.Renameat2(unix.AT_FDCWD, spare, unix.AT_FDCWD, current, unix.RENAME_EXCHANGE); err != nil {
			return &os.LinkError{Op: "exchange", Old: spare, New: current, Err: err}
		}
		return nil
	})
}

// dropSpares removes the spare directories of a live state.
func (p *pool) dropSpares(ctx context.Context, env string) error {
	db := filepath.Join(p.live(env), dbName)
	entries, err := os.ReadDir(db)
	for _, e := range entries {
		if err == nil && strings.HasPrefix(e.Name(), sparePrefix) {
			err = p.purge(ctx, filepath.Join(db, e.Name()))
		}
	}
	return err
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

// restore makes a directory of a live state what it is in a snapshot.
func (p *pool) restore(ctx context.Context, snapshot, live, name string, except []string) error {
	part := filepath.Join(live, partName)
	if err := os.Mkdir(part, 0o700); err != nil {
		return err
	}
	return withDir(filepath.Join(snapshot, name), func(from int) error {
		return withDir(filepath.Join(live, name), func(to int) error {
			return withDir(part, func(part int) error {
				taken, err := snapshotTime(from)
				if err != nil {
					return err
				}
				r := &restorer{from: from, to: to, part: part, step: p.step, taken: taken, except: except,
					copier: copier{ctx: ctx, top: part, links: map[uint64]string{}, share: p.kind() != Plain}}
				if err := r.compare(from, to, ".", 0); err != nil {
					return fmt.Errorf("copy %s: %w", name, err)
				}
				return r.apply()
			})
		})
	})
}
