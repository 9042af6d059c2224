package control

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

// killTimeout is why a run is ended that took longer than it may.
const killTimeout = "its timeout passed"

// maxCommand bounds a command's arguments and environment, in bytes.
const maxCommand = 1 << 20

// StartRun implements mayfly.Runs.
func (e *Engine) StartRun(ctx context.Context, req mayfly.StartRun) (mayfly.Run, error) {
	if req.Replay != nil {
		if err := e.planReplay(ctx, &req); err != nil {
			return mayfly.Run{}, err
		}
	}
	if err := checkStartRun(&req); err != nil {
		return mayfly.Run{}, err
	}
	now := e.Now().UTC()
	r := &run{
		Run: mayfly.Run{
			ID: mayfly.NewID("run", now), Kind: req.Kind, Command: req.Command, Dir: req.Dir, TTY: req.TTY,
			Timeout: req.Timeout, Actor: mayfly.Actor(ctx), Phase: mayfly.RunPending, Remove: req.Remove, CreatedAt: now,
			Replay: req.Replay,
		},
		Attach: req.Attach,
		Process: driver.Process{
			Command: req.Command, Env: req.Env, Dir: req.Dir, TTY: req.TTY, Rows: req.Rows, Cols: req.Cols, Stdin: req.Stdin,
		},
	}
	if err := e.pinModel(ctx, r, req.Model, req.Locked); err != nil {
		return mayfly.Run{}, err
	}
	var err error
	if req.Create != nil {
		err = e.createWithRun(ctx, *req.Create, r)
	} else {
		err = e.addRun(ctx, req.Environment, r)
	}
	if err != nil {
		return mayfly.Run{}, err
	}
	return e.awaitRun(ctx, r, func(r *run) bool { return r.Phase != mayfly.RunPending })
}

func checkStartRun(req *mayfly.StartRun) error {
	if len(req.Command) == 0 || req.Command[0] == "" {
		return mayfly.Errorf(mayfly.Invalid, "no command").Hint("write it after two dashes: mayfly run -- COMMAND")
	}
	if (req.Environment == "") == (req.Create == nil) {
		return mayfly.Errorf(mayfly.Invalid, "a run needs either an existing environment or one to create")
	}
	switch req.Kind {
	case "":
		req.Kind = mayfly.AgentRun
	case mayfly.AgentRun, mayfly.ExecRun:
	default:
		return mayfly.Errorf(mayfly.Invalid, "unknown kind of run %q", req.Kind).Hint("use %q or %q", mayfly.AgentRun, mayfly.ExecRun)
	}
	if req.Timeout < 0 || req.Timeout > mayfly.MaxTTL {
		return mayfly.Errorf(mayfly.Invalid, "bad timeout %v", req.Timeout).Hint("use 0 for none, or up to %v", mayfly.MaxTTL)
	}
	if req.Dir != "" && !strings.HasPrefix(req.Dir, "/") {
		return mayfly.Errorf(mayfly.Invalid, "bad directory %q", req.Dir).Hint("use an absolute path inside the environment")
	}
	size := len(req.Dir)
	for _, arg := range req.Command {
		size += len(arg)
		if strings.ContainsRune(arg, 0) {
			return mayfly.Errorf(mayfly.Invalid, "an argument of the command contains a NUL byte")
		}
	}
	for k, v := range req.Env {
		size += len(k) + len(v)
	}
	if size > maxCommand {
		return mayfly.Errorf(mayfly.Invalid, "the command and its variables have %d bytes", size).
			Hint("at most %d fit; pass long input in a file", maxCommand)
	}
	return checkEnv(req.Env)
}

// checkEnv refuses variables that no process can have.
func checkEnv(env map[string]string) error {
	for _, k := range slices.Sorted(maps.Keys(env)) {
		if k == "" || strings.ContainsAny(k, "=\x00") || strings.ContainsRune(env[k], 0) {
			return mayfly.Errorf(mayfly.Invalid, "bad environment variable %q", k).Hint("names have no '=', and neither names nor values a NUL byte")
		}
	}
	return nil
}

// addRun saves a run in an environment that exists.
func (e *Engine) addRun(ctx context.Context, ref string, r *run) error {
	return e.withEnvironment(ctx, ref, func(tx *store.Tx, env *environment) error {
		switch {
		case env.Goal == goalPaused && env.Why == whyExpired:
			return mayfly.Errorf(mayfly.Conflict, "environment %s is paused: %s", env.Name, env.Why).
				Hint("give it more time: mayfly env extend %s --ttl 1h", env.Name)
		case env.Goal == goalPaused && env.Why != whyIdle:
			return mayfly.Errorf(mayfly.Conflict, "environment %s is paused", env.Name).Hint("mayfly env resume %s", env.Name)
		}
		env.Goal, env.Why = goalReady, ""
		return e.attachRun(tx, env, r)
	})
}

// attachRun saves a new run of env, with the snapshot to take before it.
func (e *Engine) attachRun(tx *store.Tx, env *environment, r *run) error {
	r.Environment = env.ID
	r.Process.Run = r.ID
	r.Process.Output = env.Limits.Output
	r.After = e.Ledger.Last()
	env.IdleSince = time.Time{}
	if r.Kind == mayfly.AgentRun {
		snap, err := e.requestSnapshot(tx, env, mayfly.BaselineSnapshot, r.ID, "")
		if err != nil {
			return err
		}
		r.Baseline = snap.ID
	}
	if err := e.hide(e.ctx, env, r); err != nil {
		return err
	}
	if err := put(tx, r); err != nil {
		return err
	}
	return e.emit(tx, r.Actor, "run.requested", env.ID, r.ID, fields{"command": r.Command, "kind": r.Kind})
}

// Run implements mayfly.Runs.
func (e *Engine) Run(ctx context.Context, id string) (mayfly.Run, error) {
	var r *run
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		r, err = findRun(tx, id)
		return err
	})
	if err != nil {
		return mayfly.Run{}, err
	}
	return r.Run, nil
}

// Runs implements mayfly.Runs.
func (e *Engine) Runs(ctx context.Context, f mayfly.RunFilter) ([]mayfly.Run, error) {
	var records []*run
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		if f.Environment == "" {
			records, err = decodeAll[run](tx.List(kindRun))
			return err
		}
		env, err := findEnvironment(tx, f.Environment)
		if err == nil {
			records, err = decodeAll[run](tx.ListOf(kindRun, env.ID))
		}
		return err
	})
	runs := make([]mayfly.Run, 0, len(records))
	for _, r := range records {
		runs = append(runs, r.Run)
	}
	return runs, err
}

// WaitRun implements mayfly.Runs.
func (e *Engine) WaitRun(ctx context.Context, id string) (mayfly.Run, error) {
	var r *run
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		r, err = findRun(tx, id)
		return err
	})
	if err != nil {
		return mayfly.Run{}, err
	}
	return e.awaitRun(ctx, r, func(r *run) bool { return r.Settled })
}

// awaitRun wakes the worker of the run's environment and waits until the
// saved run is as wanted, or its environment could not be made.
func (e *Engine) awaitRun(ctx context.Context, r *run, wanted func(*run) bool) (mayfly.Run, error) {
	e.wake(r.Environment)
	err := e.await(ctx, r.Environment, func(tx *store.Tx) (bool, error) {
		saved, err := get[run](tx, kindRun, r.ID)
		if err != nil {
			return false, err
		}
		r = saved
		if wanted(r) && (r.Phase.Ended() || r.Phase == mayfly.RunRunning) {
			env, err := get[environment](tx, kindEnvironment, r.Environment)
			if err == nil && env.Failure != nil && r.StartedAt.IsZero() {
				return false, env.Failure
			}
			return true, err
		}
		return false, nil
	})
	return r.Run, err
}

// KillRun implements mayfly.Runs.
func (e *Engine) KillRun(ctx context.Context, id string) (mayfly.Run, error) {
	r, err := e.Run(ctx, id)
	if err != nil {
		return r, err
	}
	err = e.update(ctx, r.Environment, func(tx *store.Tx) error {
		saved, err := get[run](tx, kindRun, r.ID)
		if err != nil || saved.Phase.Ended() || saved.Kill != "" {
			return err
		}
		env, err := get[environment](tx, kindEnvironment, r.Environment)
		if err != nil {
			return err
		}
		if env.Phase == mayfly.Paused {
			return mayfly.Errorf(mayfly.Conflict, "environment %s is paused", env.Name).
				Hint("mayfly env resume %s, or end everything: mayfly env delete %s", env.Name, env.Name)
		}
		saved.Kill = "ended by " + mayfly.Actor(ctx)
		if err := put(tx, saved); err != nil {
			return err
		}
		return e.emit(tx, mayfly.Actor(ctx), "run.kill", r.Environment, r.ID, nil)
	})
	if err != nil {
		return r, err
	}
	e.wake(r.Environment)
	return e.WaitRun(ctx, r.ID)
}

// AttachRun implements mayfly.Runs.
func (e *Engine) AttachRun(ctx context.Context, id string, follow bool) (mayfly.Attachment, error) {
	var r *run
	var env *environment
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		if r, err = findRun(tx, id); err != nil {
			return err
		}
		env, err = get[environment](tx, kindEnvironment, r.Environment)
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case !env.object().Open:
		return nil, mayfly.Errorf(mayfly.NotFound, "the output of run %s is gone with its environment", r.ID)
	case r.Phase == mayfly.RunPending || r.Phase == mayfly.RunFailed && r.StartedAt.IsZero():
		return nil, mayfly.Errorf(mayfly.Conflict, "run %s has not started", r.ID)
	}
	a, err := e.Driver.Attach(ctx, env.Handle, r.ID, follow && !r.Phase.Ended())
	if err != nil {
		return nil, err
	}
	return e.hold(r, a), nil
}

// stepRuns starts what waits, and sees to what runs.
func (e *Engine) stepRuns(ctx context.Context, s *situation) (bool, error) {
	for _, r := range s.runs {
		switch {
		case r.Phase == mayfly.RunPending && r.Kill != "":
			e.started(r.ID)
			return true, e.changeRun(ctx, r, func(tx *store.Tx, env *environment, r *run) error {
				return e.finishRun(tx, env, r, driver.Exit{}, false)
			})
		case r.Phase == mayfly.RunPending && s.env.Phase == mayfly.Ready && s.env.Goal == goalReady:
			if moved, err := e.startRun(ctx, s, r); moved || err != nil {
				return moved, err
			}
		case r.Phase == mayfly.RunRunning:
			e.watch(s.env, r)
			if s.env.Phase == mayfly.Paused {
				continue // nobody inside can take a signal
			}
			if moved, err := e.stepKill(ctx, s, r); moved || err != nil {
				return moved, err
			}
		}
	}
	return false, nil
}

// changeRun applies do to the saved run and its environment.
func (e *Engine) changeRun(ctx context.Context, r *run, do func(*store.Tx, *environment, *run) error) error {
	return e.change(ctx, r.Environment, func(tx *store.Tx, env *environment) error {
		saved, err := get[run](tx, kindRun, r.ID)
		if err != nil {
			return err
		}
		return do(tx, env, saved)
	})
}

// startRun starts a run, unless it has to wait for a service that is about to
// be ready.
func (e *Engine) startRun(ctx context.Context, s *situation, r *run) (moved bool, err error) {
	failure, err := e.baselineFailure(ctx, r)
	if err != nil {
		return false, err
	}
	if failure == nil {
		var waiting bool
		if waiting, failure = e.withoutServices(s.env, r.Kind); waiting && failure == nil {
			return false, nil
		}
	}
	started := e.Now().UTC()
	if failure == nil {
		p, err := e.process(r)
		if err == nil {
			err = e.admit(ctx, s, r.ID)
		}
		if err == nil {
			err = e.Driver.StartProcess(ctx, s.env.Handle, s.env.Spec, e.agentVariables(s.env, p))
		}
		if ctx.Err() != nil {
			return false, ctx.Err()
		}
		if mayfly.KindOf(err) == mayfly.Unavailable && started.Before(r.CreatedAt.Add(servicePatience)) {
			s.by(started.Add(servicePause)) // a service has ended, which is about to be noticed
			return false, nil
		}
		if err != nil {
			failure = userError(e.Log, fmt.Errorf("start command: %w", err), "run", r.ID)
		}
	}
	err = e.changeRun(ctx, r, func(tx *store.Tx, env *environment, r *run) error {
		if failure != nil {
			return e.giveUp(tx, env, r, failure)
		}
		tx.Derived()
		r.Phase, r.StartedAt = mayfly.RunRunning, started
		if err := put(tx, r); err != nil {
			return err
		}
		return e.emit(tx, serverActor, "run.started", r.Environment, r.ID, nil)
	})
	if err == nil {
		e.started(r.ID)
	}
	return true, err
}

// giveUp closes a run that could not be started, and what was there for it.
func (e *Engine) giveUp(tx *store.Tx, env *environment, r *run, failure *mayfly.Error) error {
	env.IdleSince = e.Now().UTC()
	if err := e.failRun(tx, r, failure); err != nil {
		return err
	}
	return e.removeAfter(tx, env, r)
}

// baselineFailure says why the snapshot before a run could not be taken.
func (e *Engine) baselineFailure(ctx context.Context, r *run) (failure *mayfly.Error, err error) {
	if r.Baseline == "" {
		return nil, nil
	}
	err = e.Store.View(ctx, func(tx *store.Tx) error {
		snap, err := get[snapshot](tx, kindSnapshot, r.Baseline)
		if err == nil {
			failure = snap.Failure
		}
		return err
	})
	return failure, err
}

// failRun closes a run that could not be started.
func (e *Engine) failRun(tx *store.Tx, r *run, failure *mayfly.Error) error {
	r.Phase, r.Reason, r.EndedAt, r.Settled = mayfly.RunFailed, failure.Message, e.Now().UTC(), true
	r.ExitCode = failure.Kind.ExitStatus()
	if err := put(tx, r); err != nil {
		return err
	}
	return e.emit(tx, serverActor, "run.failed", r.Environment, r.ID, failure)
}

// stepKill ends a run that is to end: SIGTERM first, SIGKILL after the grace.
func (e *Engine) stepKill(ctx context.Context, s *situation, r *run) (bool, error) {
	now := e.Now()
	if r.Kill == "" {
		if r.Timeout <= 0 {
			return false, nil
		}
		if due := r.StartedAt.Add(r.Timeout); now.Before(due) {
			s.by(due)
			return false, nil
		}
		return true, e.changeRun(ctx, r, func(tx *store.Tx, _ *environment, r *run) error {
			if r.Phase.Ended() || r.Kill != "" {
				return nil
			}
			r.Kill = killTimeout
			if err := put(tx, r); err != nil {
				return err
			}
			return e.emit(tx, serverActor, "run.kill", r.Environment, r.ID, fields{"reason": killTimeout})
		})
	}
	signal := syscall.SIGTERM
	if !r.KillAt.IsZero() {
		if now.Before(r.KillAt) {
			s.by(r.KillAt)
			return false, nil
		}
		signal = syscall.SIGKILL
	}
	if err := e.Driver.SignalProcess(ctx, s.env.Handle, r.ID, int(signal)); err != nil {
		return false, fmt.Errorf("end run: %w", err)
	}
	return true, e.changeRun(ctx, r, func(tx *store.Tx, _ *environment, r *run) error {
		r.KillAt = e.Now().Add(e.KillGrace)
		return put(tx, r)
	})
}

// watch has somebody wait for the exit of a running run.
func (e *Engine) watch(env *environment, r *run) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed || e.waiting[r.ID] {
		return
	}
	e.waiting[r.ID] = true
	e.wg.Go(func() {
		defer func() {
			e.mu.Lock()
			delete(e.waiting, r.ID)
			e.mu.Unlock()
			e.wake(r.Environment)
		}()
		exit, err := e.Driver.WaitProcess(e.ctx, env.Handle, r.ID)
		gone := mayfly.KindOf(err) == mayfly.NotFound
		if err != nil && !gone {
			if e.ctx.Err() == nil {
				e.Log.Error("wait for run", "run", r.ID, "error", err)
				select { // the next step waits again
				case <-time.After(time.Second):
				case <-e.ctx.Done():
				}
			}
			return
		}
		if !gone {
			e.dismissRun(e.ctx, env, r.ID)
		}
		err = e.changeRun(e.ctx, r, func(tx *store.Tx, env *environment, r *run) error {
			if r.Phase.Ended() {
				return nil
			}
			return e.finishRun(tx, env, r, exit, !gone)
		})
		if err != nil && e.ctx.Err() == nil {
			e.Log.Error("save the end of a run", "run", r.ID, "error", err)
		}
	})
}

// finishRun saves that a run has ended, and asks for what comes after it: the
// final snapshot, the removal of the environment, its idle time.
func (e *Engine) finishRun(tx *store.Tx, env *environment, r *run, exit driver.Exit, known bool) error {
	if err := e.endRun(tx, r, exit, known); err != nil {
		return err
	}
	others := false
	open, err := openOf[run](tx, kindRun, env.ID)
	for _, o := range open {
		others = others || o.ID != r.ID && !o.Phase.Ended()
	}
	if err != nil {
		return err
	}
	if !others {
		env.IdleSince = e.Now().UTC()
	}
	if err := e.removeAfter(tx, env, r); err != nil {
		return err
	}
	switch {
	case env.Goal == goalDeleted && r.Remove: // settled when the environment is gone
	case env.Goal == goalDeleted || env.Rollback != nil || r.Kind != mayfly.AgentRun || r.StartedAt.IsZero():
		r.Settled = true
	default:
		snap := e.newSnapshot(env, mayfly.FinalSnapshot, r.ID)
		r.Final, snap.Ends = snap.ID, r.Began
		if err := put(tx, snap); err != nil {
			return err
		}
	}
	return put(tx, r)
}

// removeAfter lets the environment go with the run if the run asked for that.
func (e *Engine) removeAfter(tx *store.Tx, env *environment, r *run) error {
	if !r.Remove || env.Goal == goalDeleted {
		return nil
	}
	env.Goal, env.Why = goalDeleted, whyRemove
	return e.noteDeleting(tx, env)
}

// endRun saves how a run ended; known is false when nothing recorded it.
func (e *Engine) endRun(tx *store.Tx, r *run, exit driver.Exit, known bool) error {
	r.EndedAt = e.Now().UTC()
	r.ExitCode, r.Usage, r.Reason = exit.Code, exit.Usage, exit.Reason
	switch {
	case r.Kill == killTimeout:
		r.Phase, r.Reason = mayfly.RunTimedOut, r.Kill
	case r.Kill != "":
		r.Phase, r.Reason = mayfly.RunKilled, r.Kill
	case !known:
		r.Phase, r.Reason = mayfly.RunKilled, "the processes of its environment ended"
	case exit.Reason != "" && (exit.Code == 126 || exit.Code == 127):
		r.Phase = mayfly.RunFailed
	default:
		r.Phase = mayfly.RunExited
	}
	if !known {
		r.ExitCode = 128 + int(syscall.SIGKILL)
	}
	e.endRecording(r.ID)
	if err := put(tx, r); err != nil {
		return err
	}
	return e.emit(tx, serverActor, "run.exited", r.Environment, r.ID, fields{
		"phase": r.Phase, "exit_code": r.ExitCode, "reason": r.Reason, "usage": r.Usage,
	})
}

// withEnvironment applies do to an open environment found by ref, saves it
// and wakes its worker.
func (e *Engine) withEnvironment(ctx context.Context, ref string, do func(*store.Tx, *environment) error) error {
	var id string
	err := e.Store.View(ctx, func(tx *store.Tx) error {
		env, err := findEnvironment(tx, ref)
		if err == nil {
			id = env.ID
		}
		return err
	})
	if err != nil {
		return err
	}
	err = e.change(ctx, id, func(tx *store.Tx, env *environment) error {
		if !env.object().Open || env.Goal == goalDeleted {
			return mayfly.Errorf(mayfly.Conflict, "environment %s is deleted", env.Name)
		}
		return do(tx, env)
	})
	if err == nil {
		e.wake(id)
	}
	return err
}
