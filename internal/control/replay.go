package control

import (
	"context"
	"maps"
	"strconv"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/store"
)

// planReplay fills what a request for a replay leaves open with what the
// recorded run had, and has it begin where that began.
func (e *Engine) planReplay(ctx context.Context, req *mayfly.StartRun) error {
	switch req.Replay.OnDivergence {
	case "":
		req.Replay.OnDivergence = mayfly.StopOnDivergence
	case mayfly.StopOnDivergence, mayfly.ContinueOnDivergence, mayfly.LiveOnDivergence:
	default:
		return mayfly.Errorf(mayfly.Invalid, "unknown behaviour at a divergence: %q", req.Replay.OnDivergence).
			Hint("use %s, %s or %s", mayfly.StopOnDivergence, mayfly.ContinueOnDivergence, mayfly.LiveOnDivergence)
	}
	return e.Store.View(ctx, func(tx *store.Tx) error {
		r, err := findRun(tx, req.Replay.Run)
		if err != nil {
			return err
		}
		replay := *req.Replay
		replay.Run = r.ID
		req.Replay = &replay
		if r.Exchanges == 0 {
			return mayfly.Errorf(mayfly.Conflict, "run %s has asked no model: there is nothing to replay", r.ID).
				Hint("run its command again instead: mayfly run -- COMMAND")
		}
		if err := e.fillFrom(req, r); err != nil {
			return err
		}
		if req.Environment != "" {
			return nil
		}
		if req.Create == nil {
			req.Create = &mayfly.CreateEnvironment{}
		}
		if req.Create.From != nil || req.Create.Template != "" {
			return nil
		}
		env, err := get[environment](tx, kindEnvironment, r.Environment)
		if err != nil {
			return err
		}
		return beginAt(tx, req, r, env)
	})
}

func (e *Engine) fillFrom(req *mayfly.StartRun, r *run) error {
	given, err := e.words(r)
	if err != nil && len(req.Command) == 0 {
		return err
	}
	if len(req.Command) == 0 {
		req.Command = given.Command
		req.Stdin, req.TTY = false, false
	}
	if req.Dir == "" {
		req.Dir = r.Dir
	}
	if req.Timeout == 0 {
		req.Timeout = r.Timeout
	}
	req.Env = merged(given.Env, req.Env)
	if req.Model == "" {
		req.Model = r.Model
	}
	return nil
}

// beginAt has a replay begin at the snapshot that the recorded run began with,
// or after one of its steps; or with its template, when that is the same and
// the snapshot is gone.
func beginAt(tx *store.Tx, req *mayfly.StartRun, r *run, env *environment) error {
	c := req.Create
	c.Env = merged(env.Spec.Env, c.Env)
	c.Limits, c.Exact = env.Limits, env.Exact
	if c.Isolation == "" {
		c.Isolation = env.Isolation
	}
	if c.Source == "" {
		c.Source = env.Source
	}
	c.Labels = maps.Clone(merged(env.Labels, c.Labels))
	if env.object().Open {
		snap, err := snapshotAfter(tx, r, req.Replay.FromStep)
		if err == nil {
			c.From = &mayfly.SnapshotRef{Environment: env.ID, Snapshot: snap.ID}
		}
		return err
	}
	if !r.Fresh || req.Replay.FromStep > 0 {
		return mayfly.Errorf(mayfly.Conflict, "environment %s is deleted, and the snapshot that the replay would begin with is gone", env.Name).
			Hint("keep environments whose runs you want to replay from a snapshot: mayfly run --keep")
	}
	c.Template = env.Template
	return nil
}

// snapshotAfter finds the snapshot that has what a step of a run left.
func snapshotAfter(tx *store.Tx, r *run, step int) (mayfly.Snapshot, error) {
	records, err := decodeAll[snapshot](tx.ListOf(kindSnapshot, r.Environment))
	if err != nil {
		return mayfly.Snapshot{}, err
	}
	if step == 0 {
		for _, s := range records {
			if s.ID == r.Baseline && s.taken() {
				return s.Snapshot, s.Present()
			}
		}
		return mayfly.Snapshot{}, mayfly.Errorf(mayfly.Conflict, "run %s began with no snapshot", r.ID).
			Hint("only what mayfly run started can be replayed from its beginning")
	}
	list := make([]mayfly.Snapshot, 0, len(records))
	for _, s := range records {
		if s.taken() {
			list = append(list, s.Snapshot)
		}
	}
	return mayfly.AfterStep(list, r.ID, step)
}

// pinModel notes which entry of the registry a run is meant to use.
func (e *Engine) pinModel(ctx context.Context, r *run, ref string, locked bool) error {
	if ref == "" {
		return nil
	}
	return e.Store.View(ctx, func(tx *store.Tx) error {
		m, err := findModel(tx, ref)
		if err != nil {
			return err
		}
		r.Pinned, r.Locked, r.Model = &m.Model, locked, m.Name+"@"+strconv.Itoa(m.Version)
		return nil
	})
}
