package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

// Why an environment is paused or deleted.
const (
	whyIdle    = "idle"
	whyExpired = "its time to live ended"
	whyRemove  = "its run ended (--rm)"
	whyUser    = "on request"
)

// situation is what is saved of one environment when a step begins.
type situation struct {
	env       *environment
	runs      []*run            // open ones, oldest first
	snapshots []*snapshot       // open ones, oldest first
	taken     []*snapshot       // of those, on disk now and not yet saved as such
	trees     map[string]string // by run: hashes of final workspaces, not yet saved
	next      time.Time         // the nearest deadline; zero for none
}

// by makes sure that the environment is stepped at t.
func (s *situation) by(t time.Time) {
	if s.next.IsZero() || t.Before(s.next) {
		s.next = t
	}
}

// running are the runs that have begun.
func (s *situation) running() []string {
	var ids []string
	for _, r := range s.runs {
		if r.Phase == mayfly.RunRunning {
			ids = append(ids, r.ID)
		}
	}
	return ids
}

func (s *situation) pendingRun() bool {
	for _, r := range s.runs {
		if r.Phase == mayfly.RunPending {
			return true
		}
	}
	return false
}

// Step moves one environment one move towards what is saved, and says when it
// wants to be called again; never, with the zero time, unless something
// changes. It may be called at any time and any number of times, by one
// caller per environment.
func (e *Engine) Step(ctx context.Context, id string) (again time.Time, err error) {
	s, err := e.look(ctx, id)
	if errors.Is(err, sql.ErrNoRows) {
		return time.Time{}, nil
	}
	if err != nil || !s.env.object().Open {
		return time.Time{}, err
	}
	moves := []func(context.Context, *situation) (moved bool, err error){
		e.stepDeadlines, e.stepRemoval, e.stepVolume, e.stepSnapshots, e.stepRollback, e.stepSandbox, e.stepServices, e.stepDoor, e.stepRuns, e.stepDiscards, e.stepSpare,
	}
	for _, move := range moves {
		if moved, err := move(ctx, s); moved || err != nil {
			return e.Now(), err
		}
	}
	return s.next, nil
}

func (e *Engine) look(ctx context.Context, id string) (*situation, error) {
	s := &situation{}
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		if s.env, err = get[environment](tx, kindEnvironment, id); err != nil {
			return err
		}
		if s.runs, err = openOf[run](tx, kindRun, id); err != nil {
			return err
		}
		s.snapshots, err = openOf[snapshot](tx, kindSnapshot, id)
		return err
	})
	return s, err
}

// openOf returns the records of an environment that are not done with.
func openOf[T any](tx *store.Tx, kind store.Kind, env string) ([]*T, error) {
	return decodeAll[T](tx.ListOpenOf(kind, env))
}

// change applies do to the saved environment, which may be newer than the one
// that the step began with.
func (e *Engine) change(ctx context.Context, id string, do func(*store.Tx, *environment) error) error {
	return e.update(ctx, id, func(tx *store.Tx) error {
		env, err := get[environment](tx, kindEnvironment, id)
		if err != nil {
			return err
		}
		if err := do(tx, env); err != nil {
			return err
		}
		return put(tx, env)
	})
}

// stepDeadlines turns deadlines that have passed into goals.
func (e *Engine) stepDeadlines(ctx context.Context, s *situation) (bool, error) {
	env, now := s.env, e.Now()
	if env.Goal == goalDeleted {
		return false, nil
	}
	if now.Before(env.ExpiresAt) {
		s.by(env.ExpiresAt)
		return e.stepIdle(ctx, s)
	}
	end := env.ExpiresAt.Add(expiryGrace(env))
	switch {
	case env.Goal != goalPaused && (env.Keep || now.Before(end)):
		return true, e.setGoal(ctx, env.ID, goalPaused, whyExpired)
	case env.Keep:
		return false, nil
	case !now.Before(end):
		return true, e.setGoal(ctx, env.ID, goalDeleted, whyExpired)
	}
	s.by(end)
	return false, nil
}

// expiryGrace is how long an expired environment stands paused before it is
// deleted, so that a person can still extend it.
func expiryGrace(env *environment) time.Duration {
	return min(5*time.Minute, env.ExpiresAt.Sub(env.CreatedAt)/10)
}

// stepIdle pauses an environment in which nothing has run for long.
func (e *Engine) stepIdle(ctx context.Context, s *situation) (bool, error) {
	env := s.env
	if env.IdleSince.IsZero() || env.IdleTimeout <= 0 || env.Goal != goalReady || env.Phase != mayfly.Ready {
		return false, nil
	}
	if due := env.IdleSince.Add(env.IdleTimeout); e.Now().Before(due) {
		s.by(due)
		return false, nil
	}
	return true, e.change(ctx, env.ID, func(tx *store.Tx, env *environment) error {
		if env.IdleSince.IsZero() || env.Goal != goalReady { // a run has come meanwhile
			return nil
		}
		calls, err := tx.ListOpenOf(kindExchange, env.ID)
		if len(calls) > 0 { // a model works for it; look again later
			env.IdleSince = e.Now().UTC()
			return err
		}
		env.Goal, env.Why = goalPaused, whyIdle
		return err
	})
}

func (e *Engine) setGoal(ctx context.Context, id string, g goal, why string) error {
	return e.change(ctx, id, func(_ *store.Tx, env *environment) error {
		if env.Goal != goalDeleted {
			env.Goal, env.Why = g, why
		}
		return nil
	})
}

// slot waits for a place among those who make or remove an environment.
func (e *Engine) slot(ctx context.Context) (release func(), err error) {
	select {
	case e.slots <- struct{}{}:
		return func() { <-e.slots }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fail gives an environment up that could not be made.
func (e *Engine) fail(ctx context.Context, env *environment, doing string, cause error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	failure := userError(e.Log, fmt.Errorf("%s: %w", doing, cause), "environment", env.ID)
	return e.change(ctx, env.ID, func(_ *store.Tx, env *environment) error {
		env.Failure, env.Goal, env.Why = failure, goalDeleted, failure.Message
		return nil
	})
}

// stepVolume makes the volume of a new environment.
func (e *Engine) stepVolume(ctx context.Context, s *situation) (bool, error) {
	env := s.env
	if env.Phase != mayfly.Pending {
		return false, nil
	}
	release, err := e.slot(ctx)
	if err != nil {
		return false, err
	}
	defer release()
	if err := e.Driver.Create(ctx, env.Handle, env.Spec); err != nil {
		return true, e.fail(ctx, env, "create environment", err)
	}
	return false, nil // not saved: creating what exists does nothing, and a commit costs more
}

// stepSnapshots takes the snapshots that are asked for. Those of an environment
// that is about to start are saved together with its start.
func (e *Engine) stepSnapshots(ctx context.Context, s *situation) (bool, error) {
	for _, snap := range s.snapshots {
		if snap.Discard != "" {
			continue
		}
		pause, err := e.Driver.Snapshot(ctx, s.env.Handle, snap.ID, snap.Kind == mayfly.RollbackSnapshot)
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		snap.Ready, snap.Pause = err == nil, pause
		if err != nil {
			snap.Failure = userError(e.Log, fmt.Errorf("take snapshot: %w", err), "environment", s.env.ID)
		}
		s.taken = append(s.taken, snap)
		if snap.Kind == mayfly.FinalSnapshot && snap.Ready {
			e.hashTree(ctx, s, snap.Run, snap.ID)
		}
	}
	if len(s.taken) == 0 || s.env.Phase == mayfly.Pending && s.env.Rollback == nil {
		return false, nil
	}
	err := e.update(ctx, s.env.ID, func(tx *store.Tx) error {
		tx.Derived() // one that is on disk is found there
		return e.saveTaken(tx, s)
	})
	if err == nil {
		e.noteEffects(s)
	}
	return true, err
}

// hashTree computes the hash of what a run that asked models left in the
// workspace, so that runs can be compared when their files are gone.
func (e *Engine) hashTree(ctx context.Context, s *situation, run, snapshot string) {
	for _, r := range s.runs {
		if r.ID != run || r.Exchanges == 0 {
			continue
		}
		tree, err := e.Driver.Hash(ctx, s.env.Handle, s.env.Spec, snapshot, "")
		if err != nil {
			e.Log.Warn("hash the workspace after a run", "run", run, "error", err)
			return
		}
		if s.trees == nil {
			s.trees = map[string]string{}
		}
		s.trees[run] = tree
	}
}

// saveTaken saves what became of the snapshots of this step.
func (e *Engine) saveTaken(tx *store.Tx, s *situation) error {
	for _, snap := range s.taken {
		saved, err := get[snapshot](tx, kindSnapshot, snap.ID)
		if err != nil {
			return err
		}
		snap.Discard = saved.Discard // what held it may have let go meanwhile
		if err := put(tx, snap); err != nil {
			return err
		}
		if err := e.settleFinal(tx, s, snap); err != nil {
			return err
		}
		kind, data := "snapshot.created", fields{"snapshot": snap.ID, "number": snap.Number, "kind": snap.Kind, "step": snap.Step}
		if snap.Failure != nil {
			kind, data["error"] = "snapshot.failed", snap.Failure.Message
		} else {
			data["pause_ns"] = snap.Pause.Nanoseconds()
		}
		if err := e.emit(tx, serverActor, kind, s.env.ID, snap.Run, data); err != nil {
			return err
		}
	}
	return nil
}

// settleFinal closes the run whose last snapshot this is.
func (e *Engine) settleFinal(tx *store.Tx, s *situation, snap *snapshot) error {
	if snap.Kind != mayfly.FinalSnapshot {
		return nil
	}
	r, err := get[run](tx, kindRun, snap.Run)
	if err != nil {
		return err
	}
	r.Settled, r.Tree = true, s.trees[r.ID]
	if snap.Failure != nil {
		r.Final = ""
	}
	return put(tx, r)
}

// stepSandbox starts, pauses and resumes the sandbox, and notices its end.
func (e *Engine) stepSandbox(ctx context.Context, s *situation) (bool, error) {
	env := s.env
	seen, err := e.Driver.Inspect(ctx, env.Handle)
	if err != nil {
		return false, fmt.Errorf("inspect: %w", err)
	}
	there := seen.Sandbox == driver.SandboxAlive || seen.Sandbox == driver.SandboxFrozen
	switch {
	case !there && (env.Phase == mayfly.Ready || env.Phase == mayfly.Paused):
		return true, e.noteStopped(ctx, s)
	case env.Phase == mayfly.Pending && seen.Sandbox != driver.SandboxFrozen:
		// Also when something is there: a crash may have left it half-started,
		// and starting what is whole does nothing.
		return true, e.startSandbox(ctx, s)
	case !there && s.pendingRun() && env.Goal == goalReady:
		return true, e.startSandbox(ctx, s)
	case !there:
		return false, nil
	case env.Goal == goalPaused && env.Phase != mayfly.Paused:
		return true, e.pause(ctx, env)
	case env.Goal == goalReady && (env.Phase != mayfly.Ready || seen.Sandbox == driver.SandboxFrozen):
		return true, e.resume(ctx, s, seen.Sandbox)
	}
	return false, nil
}

func (e *Engine) startSandbox(ctx context.Context, s *situation) error {
	e.dismiss(s.env.ID)
	if err := e.closeDoor(s.env.ID); err != nil { // of a sandbox that is gone
		return err
	}
	release, err := e.slot(ctx)
	if err != nil {
		return err
	}
	err = e.Driver.Start(ctx, s.env.Handle, s.env.Spec)
	release() // services may take minutes
	if err != nil {
		if s.env.ReadyAt.IsZero() {
			return e.fail(ctx, s.env, "start environment", err)
		}
		return e.failPendingRuns(ctx, s, err)
	}
	if err := e.serve(ctx, s); err != nil {
		return e.failServices(ctx, s, err)
	}
	return e.noteReady(ctx, s, "environment.ready")
}

// noteReady saves that the sandbox is up.
func (e *Engine) noteReady(ctx context.Context, s *situation, event string) error {
	id := s.env.ID
	return e.change(ctx, id, func(tx *store.Tx, env *environment) error {
		tx.Derived()
		if err := e.saveTaken(tx, s); err != nil {
			return err
		}
		now := e.Now().UTC()
		env.Phase, env.Reason = mayfly.Ready, ""
		if env.ReadyAt.IsZero() {
			env.ReadyAt = now
		}
		runs, err := openOf[run](tx, kindRun, id)
		if err != nil {
			return err
		}
		if env.IdleSince = now; len(runs) > 0 {
			env.IdleSince = time.Time{}
		}
		return e.emit(tx, serverActor, event, id, "", nil)
	})
}

// failPendingRuns gives up the runs that wait for a sandbox which cannot be
// started again; the volume stays as it is.
func (e *Engine) failPendingRuns(ctx context.Context, s *situation, cause error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	failure := userError(e.Log, fmt.Errorf("start environment: %w", cause), "environment", s.env.ID)
	return e.change(ctx, s.env.ID, func(tx *store.Tx, env *environment) error {
		if err := e.saveTaken(tx, s); err != nil {
			return err
		}
		env.Phase, env.Reason = mayfly.Stopped, failure.Message
		for _, r := range s.runs {
			if r.Phase == mayfly.RunPending {
				if err := e.failRun(tx, r, failure); err != nil {
					return err
				}
			}
		}
		return e.emit(tx, serverActor, "environment.stopped", env.ID, "", fields{"error": failure.Message})
	})
}

// noteStopped saves that the sandbox ended by itself, after cleaning up.
func (e *Engine) noteStopped(ctx context.Context, s *situation) error {
	if err := e.stop(ctx, s.env); err != nil {
		return fmt.Errorf("clean up: %w", err)
	}
	exits := e.collectExits(ctx, s)
	return e.change(ctx, s.env.ID, func(tx *store.Tx, env *environment) error {
		runs, err := openOf[run](tx, kindRun, env.ID)
		if err != nil {
			return err
		}
		for _, r := range runs {
			if r.Phase != mayfly.RunRunning {
				continue
			}
			exit, ok := exits[r.ID]
			if err := e.finishRun(tx, env, r, exit, ok); err != nil {
				return err
			}
		}
		env.Phase, env.Reason = mayfly.Stopped, "its first process ended"
		return e.emit(tx, serverActor, "environment.stopped", env.ID, "", fields{"reason": env.Reason})
	})
}

func (e *Engine) pause(ctx context.Context, env *environment) error {
	if p, ok := e.Driver.(driver.Pauser); ok {
		if err := p.Pause(ctx, env.Handle); err != nil {
			return fmt.Errorf("pause: %w", err)
		}
	}
	return e.change(ctx, env.ID, func(tx *store.Tx, env *environment) error {
		env.Phase, env.Reason = mayfly.Paused, env.Why
		return e.emit(tx, serverActor, "environment.paused", env.ID, "", fields{"reason": env.Why})
	})
}

// resume thaws the sandbox; it also finishes a snapshot or a start that a
// crash interrupted.
func (e *Engine) resume(ctx context.Context, s *situation, seen driver.SandboxState) error {
	env := s.env
	if p, ok := e.Driver.(driver.Pauser); ok && seen == driver.SandboxFrozen {
		if err := p.Resume(ctx, env.Handle); err != nil {
			return fmt.Errorf("resume: %w", err)
		}
	}
	switch env.Phase {
	case mayfly.Ready:
		return nil
	case mayfly.Paused:
		return e.noteReady(ctx, s, "environment.resumed")
	}
	if err := e.serve(ctx, s); err != nil {
		return e.failServices(ctx, s, err)
	}
	return e.noteReady(ctx, s, "environment.ready")
}
