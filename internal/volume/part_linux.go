package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
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
		if err := p.step("copy databases"); err != nil {
			return err
		}
		err := p.restore(ctx, src, p.live(env), dbName)
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

// restore makes a directory of a live state what it is in a snapshot.
func (p *pool) restore(ctx context.Context, snapshot, live, name string) error {
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
				r := &restorer{from: from, to: to, part: part, step: p.step, taken: taken,
					copier: copier{ctx: ctx, top: part, links: map[uint64]string{}, share: p.kind() != Plain}}
				var reading sync.WaitGroup
				defer reading.Wait()
				reading.Go(func() { readInodes(ctx, from, 0) })
				if err := r.compare(from, to, ".", 0); err != nil {
					return fmt.Errorf("copy %s: %w", name, err)
				}
				return r.apply()
			})
		})
	})
}
