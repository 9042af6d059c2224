package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/store"
)

// requestSnapshot saves a snapshot to be taken by the next step.
func (e *Engine) requestSnapshot(tx *store.Tx, env *environment, kind mayfly.SnapshotKind, run, label string) (*snapshot, error) {
	snap := e.newSnapshot(env, kind, run)
	snap.Label = label
	return snap, put(tx, snap)
}

func (e *Engine) newSnapshot(env *environment, kind mayfly.SnapshotKind, run string) *snapshot {
	env.Snapshots++
	now := e.Now().UTC()
	return &snapshot{Snapshot: mayfly.Snapshot{
		ID: mayfly.NewID("snap", now), Environment: env.ID, Number: env.Snapshots,
		Kind: kind, Run: run, CreatedAt: now,
	}}
}

// takeSnapshot requests a snapshot and waits for it.
func (e *Engine) takeSnapshot(ctx context.Context, ref string, kind mayfly.SnapshotKind, label string) (mayfly.Snapshot, error) {
	var snap *snapshot
	err := e.withEnvironment(ctx, ref, func(tx *store.Tx, env *environment) (err error) {
		snap, err = e.requestSnapshot(tx, env, kind, "", label)
		return err
	})
	if err != nil {
		return mayfly.Snapshot{}, err
	}
	return e.awaitSnapshot(ctx, snap)
}

func (e *Engine) awaitSnapshot(ctx context.Context, snap *snapshot) (mayfly.Snapshot, error) {
	err := e.await(ctx, snap.Environment, func(tx *store.Tx) (bool, error) {
		env, err := get[environment](tx, kindEnvironment, snap.Environment)
		if err != nil {
			return false, err
		}
		if !env.object().Open {
			return false, mayfly.Errorf(mayfly.Conflict, "environment %s was deleted meanwhile", env.Name)
		}
		saved, err := get[snapshot](tx, kindSnapshot, snap.ID)
		if err != nil {
			return false, err
		}
		if snap = saved; snap.Failure != nil {
			return false, snap.Failure
		}
		return snap.Ready, nil
	})
	return snap.Snapshot, err
}

// maxLabel bounds the label of a snapshot, in bytes.
const maxLabel = 200

// CreateSnapshot implements mayfly.Snapshots.
func (e *Engine) CreateSnapshot(ctx context.Context, env, label string) (mayfly.Snapshot, error) {
	if len(label) > maxLabel {
		return mayfly.Snapshot{}, mayfly.Errorf(mayfly.Invalid, "the label has %d bytes", len(label)).Hint("at most %d", maxLabel)
	}
	return e.takeSnapshot(ctx, env, mayfly.ManualSnapshot, label)
}

// Snapshots implements mayfly.Snapshots.
func (e *Engine) Snapshots(ctx context.Context, ref string) ([]mayfly.Snapshot, error) {
	snapshots := []mayfly.Snapshot{}
	err := e.Store.View(ctx, func(tx *store.Tx) error {
		env, err := findEnvironment(tx, ref)
		if err != nil {
			return err
		}
		records, err := decodeAll[snapshot](tx.ListOf(kindSnapshot, env.ID))
		for _, r := range records {
			if r.taken() && r.Kind != heldSnapshot {
				snapshots = append(snapshots, r.Snapshot)
			}
		}
		return err
	})
	return snapshots, err
}

// DeleteSnapshot implements mayfly.Snapshots.
func (e *Engine) DeleteSnapshot(ctx context.Context, ref, which string) (mayfly.Snapshot, error) {
	var snap *snapshot
	err := e.withEnvironment(ctx, ref, func(tx *store.Tx, env *environment) (err error) {
		if snap, err = findSnapshot(tx, env, which); err != nil {
			return err
		}
		if err := checkUnused(tx, env, snap); err != nil {
			return err
		}
		return discard(tx, snap, mayfly.Actor(ctx))
	})
	if err != nil {
		return mayfly.Snapshot{}, err
	}
	err = e.await(ctx, snap.Environment, func(tx *store.Tx) (bool, error) {
		saved, err := get[snapshot](tx, kindSnapshot, snap.ID)
		if errors.Is(err, sql.ErrNoRows) { // its environment was deleted meanwhile
			return true, nil
		}
		if err == nil {
			snap = saved
		}
		return err == nil && !snap.DeletedAt.IsZero(), err
	})
	return snap.Snapshot, err
}

// discard has a snapshot removed by the next step.
func discard(tx *store.Tx, snap *snapshot, actor string) error {
	snap.Discard = actor
	return put(tx, snap)
}

// checkUnused refuses to delete a snapshot that something is about to need.
func checkUnused(tx *store.Tx, env *environment, snap *snapshot) error {
	if env.Rollback != nil && env.Rollback.To == snap.ID {
		return mayfly.Errorf(mayfly.Conflict, "environment %s is being rolled back to snapshot %d", env.Name, snap.Number).
			Hint("try again when that is done")
	}
	runs, err := openOf[run](tx, kindRun, env.ID)
	if err != nil {
		return err
	}
	for _, r := range runs {
		if r.ID == snap.Run {
			return mayfly.Errorf(mayfly.Conflict, "snapshot %d belongs to run %s, which has not ended", snap.Number, r.ID).
				Hint("wait for it: mayfly logs -f %s", r.ID)
		}
	}
	open, err := decodeAll[environment](tx.ListOpen(kindEnvironment))
	for _, o := range open {
		if o.Phase == mayfly.Pending && o.Spec.From != nil && o.Spec.From.Snapshot == snap.ID {
			return mayfly.Errorf(mayfly.Conflict, "environment %s is being made from snapshot %d", o.Name, snap.Number).
				Hint("try again when that is done")
		}
	}
	return err
}

// stepDiscards removes the snapshots that are not wanted any more.
func (e *Engine) stepDiscards(ctx context.Context, s *situation) (bool, error) {
	var gone []*snapshot
	for _, snap := range s.snapshots {
		if snap.Discard == "" {
			continue
		}
		if gone == nil {
			e.effects.await(s.env.ID) // it may be being compared
		}
		if err := e.Driver.RemoveSnapshot(ctx, s.env.Handle, snap.ID); err != nil {
			return false, fmt.Errorf("delete snapshot: %w", err)
		}
		gone = append(gone, snap)
	}
	if len(gone) == 0 {
		return false, nil
	}
	return true, e.update(ctx, s.env.ID, func(tx *store.Tx) error {
		tx.Derived() // one that is gone can be removed again
		for _, snap := range gone {
			if err := e.noteDiscarded(tx, snap); err != nil {
				return err
			}
		}
		return nil
	})
}

// noteDiscarded saves that a snapshot is gone. Its record stays, since the
// steps of a run are told by what was taken between them.
func (e *Engine) noteDiscarded(tx *store.Tx, snap *snapshot) error {
	save := put
	if snap.Kind == heldSnapshot {
		save = func(tx *store.Tx, _ record) error { return tx.Delete(kindSnapshot, snap.ID) }
	}
	snap.Ready, snap.DeletedAt = false, e.Now().UTC()
	if err := save(tx, snap); err != nil {
		return err
	}
	return e.emit(tx, snap.Discard, "snapshot.deleted", snap.Environment, snap.Run,
		fields{"snapshot": snap.ID, "number": snap.Number, "kind": snap.Kind})
}

// Rollback implements mayfly.Snapshots.
func (e *Engine) Rollback(ctx context.Context, ref, to string, only mayfly.Side) (mayfly.Snapshot, error) {
	var saved *snapshot
	err := e.withEnvironment(ctx, ref, func(tx *store.Tx, env *environment) error {
		if err := checkSide(env, only); err != nil {
			return err
		}
		target, err := rollbackTarget(tx, env, to)
		if err != nil {
			return err
		}
		if env.Rollback != nil {
			if env.Rollback.To != target.ID || env.Rollback.Only != only {
				return mayfly.Errorf(mayfly.Conflict, "environment %s is being rolled back to another snapshot", env.Name).
					Hint("try again when that is done")
			}
			saved, err = get[snapshot](tx, kindSnapshot, env.Rollback.Saved)
			return err // the same request, made again after a crash: wait with it
		}
		if saved, err = e.requestSnapshot(tx, env, mayfly.RollbackSnapshot, "", ""); err != nil {
			return err
		}
		env.Rollback = &rollback{To: target.ID, Saved: saved.ID, Only: only, Actor: mayfly.Actor(ctx)}
		return nil
	})
	if err != nil {
		return mayfly.Snapshot{}, err
	}
	if _, err := e.awaitSnapshot(ctx, saved); err != nil {
		return mayfly.Snapshot{}, err
	}
	_, err = e.awaitPhase(ctx, saved.Environment, func(env *environment) bool {
		return env.Rollback == nil && env.Phase != mayfly.Pending
	})
	if err != nil {
		return mayfly.Snapshot{}, err
	}
	return e.awaitSnapshot(ctx, saved)
}

// checkSide refuses to roll back a side that is not there, or not to be had now.
func checkSide(env *environment, only mayfly.Side) error {
	switch only {
	case "", mayfly.FilesSide:
		return nil
	case mayfly.DatabaseSide:
	default:
		return mayfly.Errorf(mayfly.Invalid, "unknown side %q to roll back", only).
			Hint("use %q or %q, or neither for everything", mayfly.FilesSide, mayfly.DatabaseSide)
	}
	if len(env.Spec.Services) == 0 {
		return mayfly.Errorf(mayfly.Invalid, "environment %s has no services whose data could be rolled back", env.Name).
			Hint("roll everything back: mayfly rollback %s", env.Name)
	}
	if env.Phase == mayfly.Paused {
		return mayfly.Errorf(mayfly.Conflict, "environment %s is paused", env.Name).Hint("mayfly env resume %s", env.Name)
	}
	return nil
}

// rollbackTarget is the snapshot that a rollback restores: the one asked for,
// or the baseline of the last run.
func rollbackTarget(tx *store.Tx, env *environment, ref string) (*snapshot, error) {
	if ref != "" {
		return findSnapshot(tx, env, ref)
	}
	runs, err := decodeAll[run](tx.ListOf(kindRun, env.ID))
	if err != nil {
		return nil, err
	}
	for i := len(runs) - 1; i >= 0; i-- {
		if runs[i].Baseline != "" {
			return findSnapshot(tx, env, runs[i].Baseline)
		}
	}
	return nil, mayfly.Errorf(mayfly.Invalid, "environment %s has had no run to roll back", env.Name).
		Hint("name a snapshot; list them with: mayfly snapshot list %s", env.Name)
}

// Diff implements mayfly.Snapshots.
func (e *Engine) Diff(ctx context.Context, r mayfly.DiffRequest) (io.ReadCloser, error) {
	env, err := e.readable(ctx, r.Environment, &r.From, &r.To)
	if err != nil {
		return nil, err
	}
	return e.Driver.Diff(ctx, env.Handle, env.Spec, r)
}

// Hash implements mayfly.Snapshots.
func (e *Engine) Hash(ctx context.Context, ref, snap, path string) (string, error) {
	env, err := e.readable(ctx, ref, &snap)
	if err != nil {
		return "", err
	}
	return e.Driver.Hash(ctx, env.Handle, env.Spec, snap, path)
}

// readable finds an open environment and replaces the references to its
// snapshots by their ids.
func (e *Engine) readable(ctx context.Context, ref string, snapshots ...*string) (env *environment, err error) {
	err = e.Store.View(ctx, func(tx *store.Tx) error {
		if env, err = findEnvironment(tx, ref); err != nil {
			return err
		}
		if !env.object().Open {
			return mayfly.Errorf(mayfly.Conflict, "environment %s is deleted, and its files with it", env.Name)
		}
		for _, s := range snapshots {
			if *s == "" {
				continue
			}
			found, err := findSnapshot(tx, env, *s)
			if err != nil {
				return err
			}
			*s = found.ID
		}
		return nil
	})
	return env, err
}
