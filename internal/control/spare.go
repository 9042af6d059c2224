package control

import (
	"context"
	"slices"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

// spare is what is kept ready of the databases of an environment for the
// rollback that is most likely asked for.
type spare struct {
	snapshot string // that it is of; empty: there is none
	number   int    // of the snapshot
	making   bool
	ready    bool
}

// stepSpare has spares made of the snapshot that a rollback goes to when none is
// named.
func (e *Engine) stepSpare(ctx context.Context, s *situation) (bool, error) {
	env := s.env
	d, ok := e.Driver.(driver.Sparer)
	wants := slices.ContainsFunc(env.Spec.Services, func(l mayfly.LockedService) bool { return l.Postgres != nil && l.Postgres.Spare })
	if !ok || !wants || env.Phase != mayfly.Ready || env.Goal != goalReady || env.Rollback != nil {
		return false, nil
	}
	var target *snapshot
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		target, err = rollbackTarget(tx, env, "")
		return err
	})
	if kind := mayfly.KindOf(err); kind == mayfly.Invalid || kind == mayfly.NotFound {
		return false, nil // nothing to roll back to
	}
	if err != nil {
		return false, err
	}
	if waiting, failure := e.withoutServices(env, mayfly.AgentRun); waiting || failure != nil {
		return false, nil // whoever has them ready wakes the environment
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	a := e.attended[env.ID]
	if a == nil || e.closed || a.spare.making || a.spare.snapshot == target.ID {
		return false, nil
	}
	a.spare = spare{snapshot: target.ID, number: target.Number, making: true}
	a.done.Add(1)
	e.wg.Go(func() {
		defer a.done.Done()
		e.makeSpare(d, env, a, target)
	})
	return false, nil
}

// spareDelay keeps the making of spares out of the way of what a run begins
// with, and of those who connect again after a rollback.
const spareDelay = 500 * time.Millisecond

// makeSpare has the spares made, and tells what became of it.
func (e *Engine) makeSpare(d driver.Sparer, env *environment, a *attendance, target *snapshot) {
	select {
	case <-time.After(spareDelay):
	case <-a.ctx.Done():
		return
	}
	err := d.Spare(a.ctx, env.Handle, env.Spec, target.ID)
	if a.ctx.Err() != nil {
		return
	}
	e.mu.Lock()
	current := a.spare.snapshot == target.ID && a.spare.making
	if current {
		a.spare.making, a.spare.ready = false, err == nil
	}
	e.mu.Unlock()
	if !current {
		return // a service was started anew meanwhile
	}
	kind, data := "spare.ready", fields{"snapshot": target.ID, "number": target.Number}
	if err != nil { // not tried again until there is another to make
		kind, data["error"] = "spare.failed", userError(e.Log, err, "environment", env.ID).Message
	}
	e.noteService(a.ctx, env.ID, kind, data)
	e.wake(env.ID)
}

// forgetSpare comes after the start of a service, which ends spares.
func (e *Engine) forgetSpare(a *attendance) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a.spare = spare{}
}
