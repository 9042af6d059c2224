package control

import (
	"context"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/store"
)

// Started saves, with an event, which programs were started in an environment;
// the arguments must be redacted. They belong to the agent's run that is open,
// and when several are, to none.
func (e *Engine) Started(ctx context.Context, env string, processes []mayfly.Process) error {
	return e.Store.Update(ctx, func(tx *store.Tx) error {
		tx.Derived()
		open, err := openOf[run](tx, kindRun, env)
		if err != nil {
			return err
		}
		var owner *run
		agents := 0
		for _, r := range open {
			if r.Kind == mayfly.AgentRun && r.Phase != mayfly.RunPending {
				owner = r
				agents++
			}
		}
		event := mayfly.Event{Type: "process.started", Actor: serverActor, Environment: env}
		if agents == 1 {
			event.Run, event.Step = owner.ID, owner.Steps
		}
		return e.emitEvent(tx, event, fields{"processes": processes})
	})
}
