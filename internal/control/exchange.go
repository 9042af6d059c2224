package control

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"slices"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/store"
)

// serverStopped is how exchanges ended that a crash cut off.
const serverStopped = "the server stopped"

// Begin numbers an exchange (Number, Step) and saves its start with an event.
// boundary asks for a snapshot of the environment, which is on disk when Begin
// returns. retry is the number of the exchange of the run that this one
// repeats, which gives it that one's step. Environments that are not at work,
// and exchanges that differ from the model that their run is locked to, are
// refused.
func (e *Engine) Begin(ctx context.Context, x *mayfly.Exchange, boundary bool, retry int) error {
	var snap *snapshot
	var refusal error
	err := e.update(ctx, x.Environment, func(tx *store.Tx) error {
		env, r, err := e.mayBegin(tx, x)
		if err != nil {
			return err
		}
		if refusal, err = e.checkModel(tx, r, x, boundary); err != nil || refusal != nil {
			return err
		}
		r.number(x, boundary, retry)
		if x.ID == "" {
			x.ID = mayfly.NewID("x", e.Now())
		}
		if boundary {
			snap = e.newSnapshot(env, mayfly.StepSnapshot, r.ID)
			snap.Step, snap.Ends = x.Step, r.Began
			r.Began = &began{x.Step, snap.ID}
			if err := errors.Join(put(tx, snap), put(tx, env)); err != nil {
				return err
			}
		}
		if err := errors.Join(put(tx, r), put(tx, &exchange{*x})); err != nil {
			return err
		}
		return e.emitExchange(tx, "exchange.started", *x, x.Request)
	})
	if err != nil || refusal != nil || snap == nil {
		return errors.Join(err, refusal)
	}
	e.wake(x.Environment)
	if err := e.awaitBoundary(ctx, snap); err != nil {
		x.Error = "no snapshot could be taken: " + err.Error()
		return errors.Join(err, e.End(context.WithoutCancel(ctx), *x))
	}
	return nil
}

// mayBegin returns the environment and the run of an exchange, if they are at
// work.
func (e *Engine) mayBegin(tx *store.Tx, x *mayfly.Exchange) (*environment, *run, error) {
	env, err := get[environment](tx, kindEnvironment, x.Environment)
	if err != nil {
		return nil, nil, err
	}
	r, err := get[run](tx, kindRun, x.Run)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case !env.atWork():
		return nil, nil, mayfly.Errorf(mayfly.Conflict, "environment %s is not at work", env.Name)
	case r.Environment != env.ID || r.Phase.Ended() || r.Kill != "":
		return nil, nil, mayfly.Errorf(mayfly.Conflict, "run %s has ended", r.ID)
	}
	return env, r, nil
}

// atWork reports whether what runs in the environment may go on.
func (e *environment) atWork() bool {
	return e.Phase == mayfly.Ready && e.Goal == goalReady && e.Rollback == nil
}

// maxRecent bounds how far back a retry may reach.
const maxRecent = 64

// number gives an exchange its place in the run.
func (r *run) number(x *mayfly.Exchange, boundary bool, retry int) {
	r.Exchanges++
	x.Number, x.Step = r.Exchanges, r.stepOf(retry)
	if boundary {
		r.Steps++
		x.Step = r.Steps
	}
	r.Recent = append(r.Recent, x.Step)
	r.Recent = r.Recent[max(0, len(r.Recent)-maxRecent):]
}

// stepOf is the step of one of the last exchanges, 0 for others.
func (r *run) stepOf(number int) int {
	// Counted without the exchange that is being numbered.
	if i := len(r.Recent) - (r.Exchanges - number); number > 0 && i >= 0 && i < len(r.Recent) {
		return r.Recent[i]
	}
	return 0
}

// awaitBoundary waits for the snapshot with which a step begins, unless the
// environment stops working before.
func (e *Engine) awaitBoundary(ctx context.Context, snap *snapshot) error {
	return e.await(ctx, snap.Environment, func(tx *store.Tx) (bool, error) {
		saved, err := get[snapshot](tx, kindSnapshot, snap.ID)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			return false, mayfly.Errorf(mayfly.Conflict, "the environment was deleted meanwhile")
		case err != nil:
			return false, err
		case saved.Failure != nil:
			return false, saved.Failure
		case saved.Ready:
			return true, nil
		}
		env, err := get[environment](tx, kindEnvironment, snap.Environment)
		if err == nil && env.Goal == goalDeleted {
			err = mayfly.Errorf(mayfly.Conflict, "environment %s is being deleted", env.Name)
		}
		return false, err
	})
}

// End saves the end of an exchange with an event. Ending one twice does
// nothing.
func (e *Engine) End(ctx context.Context, x mayfly.Exchange) error {
	busy := false
	err := e.update(ctx, x.Environment, func(tx *store.Tx) error {
		if _, err := tx.Get(kindExchange, x.ID); errors.Is(err, sql.ErrNoRows) {
			return nil
		} else if err != nil {
			return err
		}
		if err := e.endExchange(tx, x); err != nil {
			return err
		}
		env, err := get[environment](tx, kindEnvironment, x.Environment)
		if err != nil || env.IdleSince.IsZero() || !env.object().Open {
			return err
		}
		busy, env.IdleSince = true, e.Now().UTC()
		return put(tx, env)
	})
	if busy {
		e.wake(x.Environment)
	}
	return err
}

// endExchange closes an exchange that is open.
func (e *Engine) endExchange(tx *store.Tx, x mayfly.Exchange) error {
	if err := tx.Delete(kindExchange, x.ID); err != nil {
		return err
	}
	if x.End.IsZero() {
		x.End = e.Now().UTC()
	}
	r, err := get[run](tx, kindRun, x.Run)
	if err != nil {
		return err
	}
	r.Tokens = sum(r.Tokens, x.Usage)
	if err := put(tx, r); err != nil {
		return err
	}
	return e.emitExchange(tx, "exchange.ended", x, x.Answer)
}

func sum(a, b mayfly.TokenUsage) mayfly.TokenUsage {
	return mayfly.TokenUsage{
		Input: a.Input + b.Input, Output: a.Output + b.Output, CacheRead: a.CacheRead + b.CacheRead,
		CacheWrite: a.CacheWrite + b.CacheWrite, Reasoning: a.Reasoning + b.Reasoning,
	}
}

func (e *Engine) emitExchange(tx *store.Tx, kind string, x mayfly.Exchange, content string) error {
	return e.emitEvent(tx, mayfly.Event{
		Type: kind, Actor: serverActor, Environment: x.Environment, Run: x.Run, Step: x.Step, Content: content,
	}, x)
}

// endExchanges closes the exchanges of an environment, of all when env is
// empty, that nobody is going to end.
func (e *Engine) endExchanges(tx *store.Tx, env, why string) error {
	open, err := decodeAll[exchange](tx.ListOpen(kindExchange))
	if err != nil {
		return err
	}
	for _, x := range open {
		if env != "" && x.Environment != env {
			continue
		}
		x.Error = why
		if err := e.endExchange(tx, x.Exchange); err != nil {
			return err
		}
	}
	return nil
}

// Report saves something that an agent said about itself.
func (e *Engine) Report(ctx context.Context, env, run, kind, content string) error {
	return e.Store.Update(ctx, func(tx *store.Tx) error {
		_, r, err := e.mayBegin(tx, &mayfly.Exchange{Environment: env, Run: run})
		if err != nil {
			return err
		}
		return e.emitEvent(tx, mayfly.Event{
			Type: "agent." + kind, Actor: serverActor, Environment: env, Run: r.ID, Step: r.Steps, Content: content,
		}, nil)
	})
}

// Diverged saves a divergence of a replay with an event; when stop is set the
// run is ended.
func (e *Engine) Diverged(ctx context.Context, id string, d mayfly.Divergence, stop bool) error {
	var env string
	err := e.Store.Update(ctx, func(tx *store.Tx) error {
		r, err := get[run](tx, kindRun, id)
		if err != nil {
			return err
		}
		env = r.Environment
		r.Divergences++
		if stop && r.Kill == "" && !r.Phase.Ended() {
			r.Kill = fmt.Sprintf("it diverged from its recording at exchange %d", d.Number)
		}
		if err := put(tx, r); err != nil {
			return err
		}
		return e.emitEvent(tx, mayfly.Event{
			Type: "run.diverged", Actor: serverActor, Environment: env, Run: r.ID, Step: d.Step,
		}, d)
	})
	if err == nil && stop {
		e.wake(env)
	}
	return err
}

// Exchanges implements mayfly.Recordings.
func (e *Engine) Exchanges(ctx context.Context, id string) ([]mayfly.Exchange, error) {
	r, err := e.Run(ctx, id)
	if err != nil {
		return nil, err
	}
	events, err := e.history(ctx, r)
	if err != nil {
		return nil, err
	}
	return exchangesIn(events)
}

// exchangesIn reads the exchanges from the events of a run, in order of
// arrival, each as its last event has it.
func exchangesIn(events []mayfly.Event) ([]mayfly.Exchange, error) {
	list := []mayfly.Exchange{}
	at := map[string]int{}
	for _, event := range events {
		if event.Type != "exchange.started" && event.Type != "exchange.ended" {
			continue
		}
		x, err := eventData[mayfly.Exchange](event)
		if err != nil {
			return nil, err
		}
		if i, ok := at[x.ID]; ok {
			list[i] = x
			continue
		}
		at[x.ID] = len(list)
		list = append(list, x)
	}
	slices.SortStableFunc(list, func(a, b mayfly.Exchange) int { return a.Number - b.Number })
	return list, nil
}
