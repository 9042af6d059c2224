package control

import (
	"context"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/store"
)

// Started saves, with an event, which programs were started in an environment;
// the arguments must be redacted. They belong to the agent's run that was under
// way, and when several were, to none.
func (e *Engine) Started(ctx context.Context, env string, processes []mayfly.Process) error {
	return e.Store.Update(ctx, func(tx *store.Tx) error {
		tx.Derived()
		objects, err := tx.ListOf(kindRun, env)
		runs, err := decodeAll[run](objects[max(0, len(objects)-recentRuns):], err)
		if err != nil {
			return err
		}
		for len(processes) > 0 {
			owner, n := ownerAt(runs, processes[0].Time), 1
			for n < len(processes) && ownerAt(runs, processes[n].Time) == owner {
				n++
			}
			event := mayfly.Event{Type: "process.started", Actor: serverActor, Environment: env}
			if owner != nil {
				event.Run, event.Step = owner.ID, owner.Steps
			}
			if err := e.emitEvent(tx, event, fields{"processes": processes[:n]}); err != nil {
				return err
			}
			processes = processes[n:]
		}
		return nil
	})
}

// recentRuns is how many runs back an owner is looked for: word of a process
// comes a moment after it, when its run may have ended.
const recentRuns = 32

// ownerAt is the agent's run that was under way at a time; nil when none was,
// or several.
func ownerAt(runs []*run, t time.Time) (owner *run) {
	for _, r := range runs {
		if r.Kind != mayfly.AgentRun || r.Phase == mayfly.RunPending || t.Before(r.CreatedAt) ||
			!r.EndedAt.IsZero() && t.After(r.EndedAt) {
			continue
		}
		if owner != nil {
			return nil
		}
		owner = r
	}
	return owner
}
