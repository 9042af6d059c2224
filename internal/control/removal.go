package control

import (
	"context"
	"errors"
	"fmt"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

// stepRemoval is the finalizer: the record closes when everything is gone.
func (e *Engine) stepRemoval(ctx context.Context, s *situation) (bool, error) {
	env := s.env
	if env.Goal != goalDeleted {
		return false, nil
	}
	if env.Phase != mayfly.Deleting {
		return true, e.change(ctx, env.ID, e.noteDeleting)
	}
	if e.unread(s) {
		return false, nil
	}
	release, err := e.slot(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	if err := e.stop(ctx, env); err != nil {
		return false, err
	}
	exits := e.collectExits(ctx, s)
	for _, r := range s.runs {
		if r.Remove {
			e.hashTree(ctx, s, r.ID, "")
		}
	}
	e.lastEffects(ctx, s)
	if err := e.Driver.Destroy(ctx, env.Handle); err != nil {
		return false, fmt.Errorf("destroy: %w", err)
	}
	e.forgetReaders(s)
	err = e.change(ctx, env.ID, func(tx *store.Tx, env *environment) error {
		tx.Derived()
		return e.closeEnvironment(tx, s, env, exits)
	})
	if err == nil {
		e.releaseIDs(env.Handle.UIDBase)
	}
	return true, err
}

// stop closes the door of an environment and ends its processes.
func (e *Engine) stop(ctx context.Context, env *environment) error {
	e.dismiss(env.ID)
	if err := e.closeDoor(env.ID); err != nil {
		return fmt.Errorf("close the gateway: %w", err)
	}
	if err := e.Driver.Stop(ctx, env.Handle); err != nil {
		return fmt.Errorf("stop: %w", err)
	}
	return nil
}

// noteDeleting saves that an environment is about to be removed.
func (e *Engine) noteDeleting(tx *store.Tx, env *environment) error {
	env.Phase, env.Reason = mayfly.Deleting, env.Why
	if err := e.condemnRuns(tx, env.ID, deletedBecause(env)); err != nil {
		return err
	}
	return e.emit(tx, serverActor, "environment.deleting", env.ID, "", fields{"reason": env.Why})
}

func deletedBecause(env *environment) string { return "the environment was deleted: " + env.Why }

// condemnRuns notes why the running runs of an environment are going to end.
func (e *Engine) condemnRuns(tx *store.Tx, env, why string) error {
	runs, err := openOf[run](tx, kindRun, env)
	for _, r := range runs {
		if r.Kill == "" && r.Phase == mayfly.RunRunning {
			r.Kill = why
			err = errors.Join(err, put(tx, r))
		}
	}
	return err
}

// collectExits reads the exit records of runs whose sandbox has been stopped.
func (e *Engine) collectExits(ctx context.Context, s *situation) map[string]driver.Exit {
	exits := map[string]driver.Exit{}
	for _, r := range s.runs {
		if r.Phase != mayfly.RunRunning {
			continue
		}
		if exit, err := e.Driver.WaitProcess(ctx, s.env.Handle, r.ID); err == nil {
			exits[r.ID] = exit
		}
	}
	return exits
}

// closeEnvironment closes all that belongs to an environment that is gone.
func (e *Engine) closeEnvironment(tx *store.Tx, s *situation, env *environment, exits map[string]driver.Exit) error {
	runs, err := openOf[run](tx, kindRun, env.ID)
	if err != nil {
		return err
	}
	for _, r := range runs {
		if !r.Phase.Ended() {
			if r.Kill == "" {
				r.Kill = deletedBecause(env)
			}
			exit, ok := exits[r.ID]
			if err := e.endRun(tx, r, exit, ok); err != nil {
				return err
			}
		}
		r.Settled, r.Tree = true, s.trees[r.ID]
		if err := put(tx, r); err != nil {
			return err
		}
	}
	snapshots, err := tx.ListOf(kindSnapshot, env.ID)
	if err != nil {
		return err
	}
	for _, o := range snapshots {
		if err := tx.Delete(kindSnapshot, o.ID); err != nil {
			return err
		}
	}
	if err := e.endExchanges(tx, env.ID, "the environment was deleted"); err != nil {
		return err
	}
	env.Phase, env.DeletedAt, env.Rollback = mayfly.Deleted, e.Now().UTC(), nil
	if env.Failure != nil {
		env.Phase, env.Reason = mayfly.Failed, env.Failure.Message
		return e.emit(tx, serverActor, "environment.failed", env.ID, "", env.Failure)
	}
	return e.emit(tx, serverActor, "environment.deleted", env.ID, "", fields{"reason": env.Why})
}
