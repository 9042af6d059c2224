package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"mayfly.dev/mayfly"
)

// times of the operations on one volume, in milliseconds.
type volumeTimes struct {
	snapshot, pause, rollback, fork, diff, remove samples
	copy, compare, erase                          samples // baselines
}

// volumes measures snapshot, rollback, fork, diff and delete on a small and a
// large workspace. Only diff may depend on the size.
func (b *bench) volumes(ctx context.Context) error {
	small, err := b.volume(ctx, b.small, b.few*2)
	if err != nil {
		return err
	}
	large, err := b.volume(ctx, b.large, b.few)
	if err != nil {
		return err
	}
	size := func(n int) string {
		if n >= 1000 {
			return fmt.Sprintf("%dk files", n/1000)
		}
		return fmt.Sprintf("%d files", n)
	}
	for _, o := range []struct {
		name         string
		small, large samples
		base         samples
		baseName     string
		bound        bool
	}{
		{"snapshot", small.snapshot, large.snapshot, small.copy, "cp -a", true},
		{"snapshot pause", small.pause, large.pause, nil, "", true},
		{"rollback", small.rollback, large.rollback, small.copy, "cp -a", true},
		{"fork", small.fork, large.fork, small.copy, "cp -a", true},
		{"diff of 50 files", small.diff, large.diff, small.compare, "diff -rq", false},
		{"delete", small.remove, large.remove, small.erase, "rm -rf", true},
	} {
		r := o.small.result(o.name+", "+size(b.small), "ms")
		if o.base != nil {
			r = r.against(o.baseName, o.base.median())
		}
		b.report(r)
		r = o.large.result(o.name+", "+size(b.large), "ms")
		if o.bound {
			// Twice leaves room for the noise of a busy machine.
			r = r.against("on "+size(b.small), o.small.median()).ratioAtMost(2)
		} else {
			r = r.against(o.baseName, large.compare.median()).ratioAtMost(1)
		}
		b.report(r)
	}
	return nil
}

// volume measures one workspace of n files.
func (b *bench) volume(ctx context.Context, n, rounds int) (*volumeTimes, error) {
	dir, err := b.repository(ctx, fmt.Sprintf("files-%d", n), n)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	e, err := b.environment(ctx, dir)
	if err != nil {
		return nil, err
	}
	t := &volumeTimes{}
	for i := range rounds {
		if err := b.volumeRound(ctx, e, i, t); err != nil {
			return nil, err
		}
	}
	if err := timed(&t.remove, func() error { _, err := b.DeleteEnvironment(ctx, e.ID); return err }); err != nil {
		return nil, err
	}
	return t, b.copies(ctx, dir, max(1, rounds/4), t)
}

// volumeRound changes files, then takes a snapshot, forks it, compares with
// it, changes more and goes back to it.
func (b *bench) volumeRound(ctx context.Context, e mayfly.Environment, round int, t *volumeTimes) error {
	if _, err := b.exec(ctx, e.ID, "/workspace/work", "touch", "50", fmt.Sprint(round)); err != nil {
		return err
	}
	var snap mayfly.Snapshot
	if err := timed(&t.snapshot, func() (err error) {
		snap, err = b.CreateSnapshot(ctx, e.ID, "bench")
		return err
	}); err != nil {
		return err
	}
	t.pause = append(t.pause, milliseconds(snap.Pause))
	if err := timed(&t.diff, func() error { return b.readDiff(ctx, e.ID) }); err != nil {
		return err
	}
	var fork mayfly.Environment
	if err := timed(&t.fork, func() (err error) {
		fork, err = b.CreateEnvironment(ctx, mayfly.CreateEnvironment{
			From: &mayfly.SnapshotRef{Environment: e.ID, Snapshot: snap.ID},
		})
		return err
	}); err != nil {
		return err
	}
	if err := timed(&t.remove, func() error { _, err := b.DeleteEnvironment(ctx, fork.ID); return err }); err != nil {
		return err
	}
	if _, err := b.exec(ctx, e.ID, "/workspace/work", "touch", "50", fmt.Sprint(round+1000)); err != nil {
		return err
	}
	return timed(&t.rollback, func() error { _, err := b.Rollback(ctx, e.ID, snap.ID, ""); return err })
}

func (b *bench) readDiff(ctx context.Context, env string) error {
	r, err := b.Diff(ctx, mayfly.DiffRequest{Environment: env, Format: "patch"})
	if err != nil {
		return err
	}
	defer r.Close()
	n, err := io.Copy(io.Discard, r)
	if err == nil && n == 0 {
		err = fmt.Errorf("the diff of %s is empty", env)
	}
	return err
}

// copies measures what one does without copy-on-write.
func (b *bench) copies(ctx context.Context, dir string, rounds int, t *volumeTimes) error {
	copied := filepath.Join(b.dir, "copy")
	for range rounds {
		if err := timed(&t.copy, func() error { return exec.CommandContext(ctx, "cp", "-a", dir, copied).Run() }); err != nil {
			return err
		}
		if err := timed(&t.compare, func() error { return exec.CommandContext(ctx, "diff", "-rq", dir, copied).Run() }); err != nil {
			return err
		}
		if err := timed(&t.erase, func() error { return exec.CommandContext(ctx, "rm", "-rf", copied).Run() }); err != nil {
			return err
		}
	}
	return nil
}

// timed adds how long f took to s.
func timed(s *samples, f func() error) error {
	start := time.Now()
	err := f()
	*s = append(*s, milliseconds(time.Since(start)))
	return err
}
