package control

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"slices"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

// The host ids of environments: each has a range of its own, of the size that
// user namespaces customarily have, above those that distributions hand out.
const (
	uidFirst = 0x1000_0000
	uidRange = 0x1_0000
	uidSlots = 0x4000
)

// CreateEnvironment implements mayfly.Environments.
func (e *Engine) CreateEnvironment(ctx context.Context, req mayfly.CreateEnvironment) (mayfly.Environment, error) {
	env, err := e.planEnvironment(ctx, req)
	if err != nil {
		return mayfly.Environment{}, err
	}
	if err := e.create(ctx, env, func(*store.Tx) error { return nil }); err != nil {
		return mayfly.Environment{}, err
	}
	created, err := e.awaitPhase(ctx, env.ID, func(env *environment) bool { return env.Phase == mayfly.Ready || env.Phase == mayfly.Paused })
	if ctx.Err() != nil {
		// Nobody has learnt of it: do not let it wait for its time to end.
		return created, errors.Join(err, e.setGoal(context.WithoutCancel(ctx), env.ID, goalDeleted, "its client went away"))
	}
	return created, err
}

// createWithRun saves a new environment and the run that it is for.
func (e *Engine) createWithRun(ctx context.Context, req mayfly.CreateEnvironment, r *run) error {
	env, err := e.planEnvironment(ctx, req)
	if err != nil {
		return err
	}
	r.Fresh = env.From == nil
	return e.create(ctx, env, func(tx *store.Tx) error {
		if err := e.attachRun(tx, env, r); err != nil {
			return err
		}
		return put(tx, env)
	})
}

// planEnvironment checks a request and fills in what it leaves open.
func (e *Engine) planEnvironment(ctx context.Context, req mayfly.CreateEnvironment) (*environment, error) {
	now := e.Now().UTC()
	env := &environment{
		Environment: mayfly.Environment{
			ID: mayfly.NewID("env", now), Name: req.Name, Owner: mayfly.Actor(ctx), Labels: req.Labels,
			Template: req.Template, Source: req.Source, From: req.From, Isolation: req.Isolation,
			Phase: mayfly.Pending, CreatedAt: now, Keep: req.Keep,
		},
		Goal: goalReady,
	}
	if env.Name == "" {
		env.Name = "mf-" + env.ID[len(env.ID)-8:]
	}
	if env.Isolation == "" {
		env.Isolation = mayfly.Native
	}
	if err := checkCreate(req, env); err != nil {
		return nil, err
	}
	env.Spec.Env = req.Env
	if req.From != nil {
		if err := e.planFork(ctx, env); err != nil {
			return nil, err
		}
	}
	lock, err := e.lockOf(ctx, env.Template)
	if err != nil {
		return nil, err
	}
	env.Commit, env.Exact = lock.Workspace.Commit, cmp.Or(req.Exact, env.Exact, lock.Exact)
	env.Named = slices.Sorted(maps.Keys(merged(lock.Env, env.Spec.Env)))
	env.Limits = effectiveLimits(req.Limits, lock.Limits)
	env.Spec.Template, env.Spec.Limits, env.Spec.Services = env.Template, env.Limits, lock.Services
	if len(lock.Services) > 0 && env.Isolation != mayfly.Native {
		return nil, mayfly.Errorf(mayfly.Unsupported, "services do not run under the isolation %s", env.Isolation).
			Hint("use the isolation %s, or remove services from mayfly.yaml", mayfly.Native)
	}
	ttl := firstOf(req.TTL, lock.TTL, mayfly.DefaultTTL)
	env.ExpiresAt = now.Add(ttl)
	env.IdleTimeout = firstOf(req.IdleTimeout, lock.Idle, mayfly.DefaultIdle)
	return env, nil
}

func checkCreate(req mayfly.CreateEnvironment, env *environment) error {
	if err := mayfly.CheckName(env.Name); err != nil {
		return err
	}
	for key, value := range req.Labels {
		if err := mayfly.CheckLabel(key, value); err != nil {
			return err
		}
	}
	if req.TTL != 0 {
		if err := mayfly.CheckTTL(req.TTL); err != nil {
			return err
		}
	}
	if req.IdleTimeout < 0 {
		return mayfly.Errorf(mayfly.Invalid, "bad idle timeout %v", req.IdleTimeout).Hint("use a positive duration such as 15m")
	}
	if env.Isolation != mayfly.Native && env.Isolation != mayfly.GVisor {
		return mayfly.Errorf(mayfly.Invalid, "unknown isolation %q", req.Isolation).Hint("use %q or %q", mayfly.Native, mayfly.GVisor)
	}
	if req.Exact != "" && req.Exact != mayfly.ExactEncrypted && req.Exact != mayfly.ExactNone {
		return mayfly.Errorf(mayfly.Invalid, "unknown kind of exact recording %q", req.Exact).
			Hint("use %q or %q", mayfly.ExactEncrypted, mayfly.ExactNone)
	}
	l := req.Limits
	if l.CPU < 0 || math.IsNaN(l.CPU) || l.CPU > 4096 || l.Memory < 0 || l.PIDs < 0 || l.Disk < 0 || l.Output < 0 {
		return mayfly.Errorf(mayfly.Invalid, "bad limits").Hint("limits are positive; leave one out for its default")
	}
	if req.From != nil && req.Template != "" {
		return mayfly.Errorf(mayfly.Invalid, "an environment comes from a template or from a snapshot, not from both")
	}
	if req.From == nil && req.Template == "" {
		return mayfly.Errorf(mayfly.Invalid, "no template").Hint("name the digest of a prepared one")
	}
	return checkEnv(req.Env)
}

// firstOf returns the first value that is not zero.
func firstOf(values ...time.Duration) time.Duration {
	for _, v := range values {
		if v != 0 {
			return v
		}
	}
	return 0
}

// effectiveLimits takes each limit from the request, the lock or the defaults.
func effectiveLimits(asked, locked mayfly.Limits) mayfly.Limits {
	pick := func(values ...int64) int64 {
		for _, v := range values {
			if v != 0 {
				return v
			}
		}
		return 0
	}
	d := mayfly.DefaultLimits
	l := mayfly.Limits{
		CPU:    asked.CPU,
		Memory: pick(asked.Memory, locked.Memory, d.Memory),
		PIDs:   pick(asked.PIDs, locked.PIDs, d.PIDs),
		Disk:   pick(asked.Disk, locked.Disk, d.Disk),
		Output: pick(asked.Output, locked.Output, d.Output),
	}
	if l.CPU == 0 {
		l.CPU = locked.CPU
	}
	if l.CPU == 0 {
		l.CPU = d.CPU
	}
	return l
}

// lockOf returns the lock of a prepared template.
func (e *Engine) lockOf(ctx context.Context, digest string) (mayfly.Lock, error) {
	t, err := e.Template(ctx, digest)
	return t.Lock, err
}

// planFork resolves the snapshot that a fork begins with; it takes one of a
// live environment when the request names none.
func (e *Engine) planFork(ctx context.Context, env *environment) error {
	from := *env.From
	if from.Snapshot == "" {
		snap, err := e.takeSnapshot(ctx, from.Environment, mayfly.ForkSnapshot, "")
		if err != nil {
			return err
		}
		from = mayfly.SnapshotRef{Environment: snap.Environment, Snapshot: snap.ID}
	}
	return e.Store.View(ctx, func(tx *store.Tx) error {
		parent, err := findEnvironment(tx, from.Environment)
		if err != nil {
			return err
		}
		if !parent.object().Open {
			return mayfly.Errorf(mayfly.Conflict, "environment %s is deleted", parent.Name)
		}
		snap, err := findSnapshot(tx, parent, from.Snapshot)
		if err != nil {
			return err
		}
		env.From = &mayfly.SnapshotRef{Environment: parent.ID, Snapshot: snap.ID}
		env.Template, env.Source = parent.Template, parent.Source
		env.Spec.From = env.From
		env.Exact = parent.Exact
		env.Spec.Env = merged(parent.Spec.Env, env.Spec.Env)
		return nil
	})
}

func merged(a, b map[string]string) map[string]string {
	if len(a) == 0 {
		return b
	}
	m := maps.Clone(a)
	maps.Copy(m, b)
	return m
}

// reserveIDs takes a range of host ids that no environment has.
func (e *Engine) reserveIDs() (base uint32, err error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for slot := range uint32(uidSlots) {
		if base := uidFirst + slot*uidRange; !e.uids[base] {
			e.uids[base] = true
			return base, nil
		}
	}
	return 0, mayfly.Errorf(mayfly.Exhausted, "%d environments exist", uidSlots).Hint("delete some: mayfly env list")
}

func (e *Engine) releaseIDs(base uint32) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.uids, base)
}

// create saves a new environment and, with it, what else do saves.
func (e *Engine) create(ctx context.Context, env *environment, do func(*store.Tx) error) error {
	base, err := e.reserveIDs()
	if err != nil {
		return err
	}
	env.Handle = driver.Handle{Environment: env.ID, Isolation: env.Isolation, UIDBase: base}
	p, ahead := e.Driver.(driver.Preparer)
	if ahead = ahead && len(e.slots) == 0; ahead { // with others it would only take turns
		p.Prepare(ctx, env.Handle, env.Spec)
	}
	err = e.update(ctx, env.ID, func(tx *store.Tx) error {
		if err := e.saveNew(tx, env); err != nil {
			return err
		}
		return do(tx)
	})
	if err != nil && ahead {
		if stop := e.Driver.Stop(context.WithoutCancel(ctx), env.Handle); stop != nil {
			return errors.Join(err, stop) // its ids stay taken
		}
	}
	if err != nil {
		e.releaseIDs(base)
	}
	return err
}

func (e *Engine) saveNew(tx *store.Tx, env *environment) error {
	err := put(tx, env)
	if errors.Is(err, store.ErrNameTaken) {
		return mayfly.Errorf(mayfly.Conflict, "an environment named %q exists", env.Name).
			Hint("take another name, or: mayfly env delete %s", env.Name)
	}
	if err != nil {
		return err
	}
	return e.emit(tx, env.Owner, "environment.requested", env.ID, "", fields{
		"name": env.Name, "template": env.Template, "from": env.From, "isolation": env.Isolation,
		"limits": env.Limits, "expires_at": env.ExpiresAt,
	})
}

// awaitPhase wakes the environment's worker and waits until it is as wanted.
func (e *Engine) awaitPhase(ctx context.Context, id string, wanted func(*environment) bool) (mayfly.Environment, error) {
	e.wake(id)
	var env *environment
	err := e.await(ctx, id, func(tx *store.Tx) (_ bool, err error) {
		if env, err = get[environment](tx, kindEnvironment, id); err != nil {
			return false, err
		}
		if wanted(env) {
			return true, nil
		}
		switch env.Phase {
		case mayfly.Failed:
			return false, env.Failure
		case mayfly.Deleted:
			return false, mayfly.Errorf(mayfly.Conflict, "environment %s was deleted meanwhile", env.Name)
		}
		return false, nil
	})
	if env == nil {
		return mayfly.Environment{}, err
	}
	return env.Environment, err
}

// Environment implements mayfly.Environments.
func (e *Engine) Environment(ctx context.Context, ref string) (mayfly.Environment, error) {
	var env *environment
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		env, err = findEnvironment(tx, ref)
		return err
	})
	if err != nil {
		return mayfly.Environment{}, err
	}
	found := env.Environment
	found.Services = e.servicesOf(env)
	return found, nil
}

// Environments implements mayfly.Environments.
func (e *Engine) Environments(ctx context.Context, f mayfly.EnvironmentFilter) ([]mayfly.Environment, error) {
	var records []*environment
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		if f.Deleted {
			records, err = decodeAll[environment](tx.List(kindEnvironment))
		} else {
			records, err = decodeAll[environment](tx.ListOpen(kindEnvironment))
		}
		return err
	})
	environments := make([]mayfly.Environment, 0, len(records))
next:
	for _, r := range records {
		for k, v := range f.Labels {
			if got, ok := r.Labels[k]; !ok || got != v {
				continue next
			}
		}
		found := r.Environment
		found.Services = e.servicesOf(r)
		environments = append(environments, found)
	}
	return environments, err
}

// PauseEnvironment implements mayfly.Environments.
func (e *Engine) PauseEnvironment(ctx context.Context, ref string) (mayfly.Environment, error) {
	return e.steer(ctx, ref, func(env *environment) error {
		env.Goal, env.Why = goalPaused, whyUser
		return nil
	}, func(env *environment) bool { return env.Phase == mayfly.Paused || env.Phase == mayfly.Stopped })
}

// ResumeEnvironment implements mayfly.Environments.
func (e *Engine) ResumeEnvironment(ctx context.Context, ref string) (mayfly.Environment, error) {
	return e.steer(ctx, ref, func(env *environment) error {
		if !e.Now().Before(env.ExpiresAt) {
			return mayfly.Errorf(mayfly.Conflict, "environment %s is paused: %s", env.Name, whyExpired).
				Hint("give it more time: mayfly env extend %s --ttl 1h", env.Name)
		}
		e.setReady(env)
		return nil
	}, func(env *environment) bool { return env.Phase == mayfly.Ready })
}

// setReady makes a paused or stopped environment come back.
func (e *Engine) setReady(env *environment) {
	env.Goal, env.Why = goalReady, ""
	if !env.IdleSince.IsZero() {
		env.IdleSince = e.Now().UTC() // else it would pause at once
	}
	if env.Phase == mayfly.Stopped {
		env.Phase = mayfly.Pending
	}
}

// ExtendEnvironment implements mayfly.Environments.
func (e *Engine) ExtendEnvironment(ctx context.Context, ref string, ttl time.Duration) (mayfly.Environment, error) {
	if err := mayfly.CheckTTL(ttl); err != nil {
		return mayfly.Environment{}, err
	}
	var id string
	err := e.withEnvironment(ctx, ref, func(tx *store.Tx, env *environment) error {
		id = env.ID
		env.ExpiresAt = e.Now().UTC().Add(ttl)
		if env.Goal == goalPaused && env.Why == whyExpired {
			e.setReady(env)
		}
		return e.emit(tx, mayfly.Actor(ctx), "environment.extended", env.ID, "", fields{"expires_at": env.ExpiresAt})
	})
	if err != nil {
		return mayfly.Environment{}, err
	}
	return e.Environment(ctx, id)
}

// DeleteEnvironment implements mayfly.Environments.
func (e *Engine) DeleteEnvironment(ctx context.Context, ref string) (mayfly.Environment, error) {
	env, err := e.Environment(ctx, ref)
	if err != nil || env.Phase == mayfly.Deleted || env.Phase == mayfly.Failed {
		return env, err
	}
	err = e.change(ctx, env.ID, func(tx *store.Tx, saved *environment) error {
		if saved.Goal == goalDeleted {
			return nil
		}
		saved.Goal, saved.Why = goalDeleted, whyUser
		return e.emit(tx, mayfly.Actor(ctx), "environment.delete", env.ID, "", nil)
	})
	if err != nil {
		return env, err
	}
	return e.awaitPhase(ctx, env.ID, func(env *environment) bool {
		return env.Phase == mayfly.Deleted || env.Phase == mayfly.Failed
	})
}

// steer changes what an open environment is meant to become and waits for it.
func (e *Engine) steer(ctx context.Context, ref string, change func(*environment) error, wanted func(*environment) bool) (mayfly.Environment, error) {
	var id string
	err := e.withEnvironment(ctx, ref, func(tx *store.Tx, env *environment) error {
		id = env.ID
		if err := change(env); err != nil {
			return err
		}
		return e.emit(tx, mayfly.Actor(ctx), "environment.goal", env.ID, "", fields{"goal": env.Goal})
	})
	if err != nil {
		return mayfly.Environment{}, err
	}
	return e.awaitPhase(ctx, id, wanted)
}

// userError is the error that a user sees: err's own when it is meant for
// users, else one that stands for a line in the log.
func userError(log *slog.Logger, err error, attributes ...any) *mayfly.Error {
	if kind := mayfly.KindOf(err); kind != mayfly.Internal {
		out := mayfly.Errorf(kind, "%s", err.Error())
		var e *mayfly.Error
		if errors.As(err, &e) {
			out.Fix = e.Fix
		}
		return out
	}
	id := mayfly.NewID("err", time.Now())
	log.Error("internal error", append([]any{"id", id, "error", err}, attributes...)...)
	out := mayfly.Errorf(mayfly.Internal, "internal error %s", id).Hint("the server's log has it under this id")
	out.ID = id
	return out
}

// Template implements mayfly.Templates.
func (e *Engine) Template(ctx context.Context, digest string) (mayfly.Template, error) {
	var t *template
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		t, err = get[template](tx, kindTemplate, digest)
		return err
	})
	if errors.Is(err, sql.ErrNoRows) {
		return mayfly.Template{}, mayfly.Errorf(mayfly.Missing, "template %q is not prepared", digest).
			Hint("upload it: mayfly run and mayfly env create do")
	}
	if err != nil {
		return mayfly.Template{}, fmt.Errorf("read template: %w", err)
	}
	return t.Template, nil
}
