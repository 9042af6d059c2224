package control

import (
	"context"
	"errors"
	"fmt"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

// stepRollback puts the volume back to a snapshot, once what it replaces has
// been captured.
func (e *Engine) stepRollback(ctx context.Context, s *situation) (bool, error) {
	if s.env.Rollback == nil {
		return false, nil
	}
	var saved *snapshot
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		saved, err = get[snapshot](tx, kindSnapshot, s.env.Rollback.Saved)
		return err
	})
	if err != nil {
		return false, err
	}
	if saved.Failure != nil { // whoever asked reads the failure from the snapshot
		return true, e.change(ctx, s.env.ID, func(_ *store.Tx, env *environment) error {
			env.Rollback = nil
			return nil
		})
	}
	inPlace, err := e.inPlace(ctx, s.env)
	if err != nil {
		return false, err
	}
	if inPlace {
		return true, e.rollBackServices(ctx, s, saved)
	}
	return true, e.rollBack(ctx, s, saved)
}

// inPlace reports whether a rollback leaves the processes of an environment
// alone. Under gVisor it cannot: the sandbox would go on with the old files.
func (e *Engine) inPlace(ctx context.Context, env *environment) (bool, error) {
	_, ok := e.Driver.(driver.Servicer)
	if !ok || env.Rollback.Only != mayfly.DatabaseSide || env.Phase != mayfly.Ready || env.Handle.Isolation != mayfly.Native {
		return false, nil
	}
	seen, err := e.Driver.Inspect(ctx, env.Handle)
	if err != nil {
		return false, fmt.Errorf("inspect: %w", err)
	}
	return seen.Sandbox == driver.SandboxAlive, nil
}

// rollBack ends every process, and puts back all or one side.
func (e *Engine) rollBack(ctx context.Context, s *situation, saved *snapshot) error {
	env, wanted := s.env, *s.env.Rollback
	err := e.update(ctx, env.ID, func(tx *store.Tx) error { return e.condemnRuns(tx, env.ID, "the environment was rolled back") })
	if err != nil {
		return err
	}
	if err := e.stop(ctx, env); err != nil {
		return err
	}
	failure, err := e.restore(ctx, env)
	if err != nil {
		return err
	}
	exits := e.collectExits(ctx, s)
	return e.change(ctx, env.ID, func(tx *store.Tx, env *environment) error {
		runs, err := openOf[run](tx, kindRun, env.ID)
		if err != nil {
			return err
		}
		for _, r := range runs {
			if r.Phase == mayfly.RunPending {
				continue // asked for later: it starts on what was restored
			}
			exit, ok := exits[r.ID]
			if !r.Phase.Ended() {
				if err := e.endRun(tx, r, exit, ok); err != nil {
					return err
				}
			}
			r.Settled = true
			if err := put(tx, r); err != nil {
				return err
			}
		}
		env.Phase = mayfly.Pending
		return e.noteRolledBack(tx, env, saved, wanted, failure)
	})
}

// rollBackServices puts the data of services back while everything else runs.
func (e *Engine) rollBackServices(ctx context.Context, s *situation, saved *snapshot) error {
	env, wanted := s.env, *s.env.Rollback
	e.dismiss(env.ID)
	failure, err := e.restore(ctx, env)
	if err != nil {
		return err
	}
	err = e.serve(ctx, s)
	if errors.Is(err, errUnwanted) {
		return nil
	}
	if err != nil && failure == nil {
		failure = userError(e.Log, fmt.Errorf("start services: %w", err), "environment", env.ID)
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return e.change(ctx, env.ID, func(tx *store.Tx, env *environment) error {
		return e.noteRolledBack(tx, env, saved, wanted, failure)
	})
}

// restore puts the volume back. Whoever asked for one side alone, for which
// there is no room, say, hears of it; the whole is tried until it is done.
func (e *Engine) restore(ctx context.Context, env *environment) (*mayfly.Error, error) {
	err := e.Driver.Rollback(ctx, env.Handle, env.Spec, env.Rollback.To, env.Rollback.Only)
	if err == nil {
		return nil, nil
	}
	err = fmt.Errorf("roll back: %w", err)
	if env.Rollback.Only == "" || ctx.Err() != nil || errors.Is(err, context.Canceled) {
		return nil, err
	}
	return userError(e.Log, err, "environment", env.ID), nil
}

// noteRolledBack saves that a rollback is over.
func (e *Engine) noteRolledBack(tx *store.Tx, env *environment, saved *snapshot, wanted rollback, failure *mayfly.Error) error {
	env.Rollback = nil
	data := fields{"to": wanted.To, "saved": wanted.Saved}
	if wanted.Only != "" {
		data["only"] = wanted.Only
	}
	if failure == nil {
		return e.emit(tx, wanted.Actor, "environment.rolledback", env.ID, "", data)
	}
	saved.Failure = failure // whoever asked reads it there
	data["error"] = failure.Message
	return errors.Join(put(tx, saved), e.emit(tx, wanted.Actor, "rollback.failed", env.ID, "", data))
}
