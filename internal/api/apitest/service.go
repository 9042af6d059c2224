// Package apitest has a mayfly.Service in memory, for tests of what stands in
// front of one. It obeys the contract of the root package: references,
// phases, snapshots of a small file tree, events without gaps. Its commands
// are Go functions. Knobs make it fail.
package apitest

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"mayfly.dev/mayfly"
)

// Service implements mayfly.Service.
type Service struct {
	Programs map[string]Program // by the first word of a command
	Now      func() time.Time

	mu        sync.Mutex // guards the rest
	changed   *sync.Cond // something of the rest changed
	fail      map[string]error
	calls     []Call
	envs      []*environment
	runs      []*run
	snapshots []*snapshot
	templates map[string]*template
	images    map[string]int // bytes by digest
	events    []mayfly.Event
	recorded  map[string]recorded // by run
	contents  map[string]mayfly.Content
	models    []mayfly.Model
}

// Call is a method call that the service has seen.
type Call struct {
	Method string
	Actor  string
}

// Files is a tree: contents by path.
type Files map[string]string

type environment struct {
	mayfly.Environment
	files Files
}

type snapshot struct {
	mayfly.Snapshot
	files Files
}

type template struct {
	mayfly.Template
	files Files
}

var _ mayfly.Service = (*Service)(nil)

// New makes an empty service with the programs of Programs.
func New() *Service {
	s := &Service{
		Programs:  maps.Clone(Programs),
		Now:       time.Now,
		fail:      map[string]error{},
		templates: map[string]*template{},
		images:    map[string]int{},
		recorded:  map[string]recorded{},
		contents:  map[string]mayfly.Content{},
	}
	s.changed = sync.NewCond(&s.mu)
	return s
}

// FailWith makes every call of the named method return err; nil heals it.
func (s *Service) FailWith(method string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail[method] = err
}

// Calls returns the method calls so far.
func (s *Service) Calls() []Call {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.calls)
}

// AddTemplate makes a prepared template of the given files, and returns its
// digest.
func (s *Service) AddTemplate(name string, files Files) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := mayfly.Lock{Version: 1, Name: name, Template: Digest(name)}
	s.templates[l.Template] = &template{mayfly.Template{Digest: l.Template, Lock: l, CreatedAt: s.Now()}, files}
	return l.Template
}

// enter notes the call and locks the service; the caller unlocks it when the
// error is nil.
func (s *Service) enter(ctx context.Context, method string) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s.mu.Lock()
	s.calls = append(s.calls, Call{method, mayfly.Actor(ctx)})
	if err := s.fail[method]; err != nil {
		s.mu.Unlock()
		return err
	}
	return nil
}

// await waits for cond with the service locked.
func (s *Service) await(ctx context.Context, cond func() bool) error {
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.changed.Broadcast()
	})
	defer stop()
	for !cond() {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		s.changed.Wait()
	}
	return nil
}

func (s *Service) emit(ctx context.Context, typ, env, run string) {
	now := s.Now()
	s.events = append(s.events, mayfly.Event{
		Seq: uint64(len(s.events) + 1), ID: mayfly.NewID("event", now), Time: now, Type: typ,
		Actor: mayfly.Actor(ctx), Environment: env, Run: run,
	})
	s.changed.Broadcast()
}

// find resolves a reference.
func (s *Service) find(ref string) (*environment, error) {
	if r := s.run(ref); r != nil {
		ref = r.Environment
	}
	var found []*environment
	for _, e := range s.envs {
		if e.ID == ref || e.Name == ref && e.Phase != mayfly.Deleted {
			return e, nil
		}
		if len(ref) > len("env-") && strings.HasPrefix(e.ID, ref) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return nil, mayfly.Errorf(mayfly.NotFound, "no environment %q", ref).Hint("list them with: mayfly env list")
	}
	return nil, mayfly.Errorf(mayfly.Invalid, "%q is the beginning of %d ids", ref, len(found))
}

// live resolves a reference to an environment that is not deleted.
func (s *Service) live(ref string) (*environment, error) {
	e, err := s.find(ref)
	if err == nil && e.Phase == mayfly.Deleted {
		return nil, mayfly.Errorf(mayfly.Conflict, "environment %s is deleted", e.Name)
	}
	return e, err
}

func (s *Service) CreateEnvironment(ctx context.Context, r mayfly.CreateEnvironment) (mayfly.Environment, error) {
	if err := s.enter(ctx, "CreateEnvironment"); err != nil {
		return mayfly.Environment{}, err
	}
	defer s.mu.Unlock()
	e, err := s.create(ctx, r)
	if err != nil {
		return mayfly.Environment{}, err
	}
	return e.Environment, nil
}

func (s *Service) create(ctx context.Context, r mayfly.CreateEnvironment) (*environment, error) {
	now := s.Now()
	if r.TTL == 0 {
		r.TTL = mayfly.DefaultTTL
	}
	if r.IdleTimeout == 0 {
		r.IdleTimeout = mayfly.DefaultIdle
	}
	if r.Name == "" {
		r.Name = fmt.Sprintf("test-%d", len(s.envs)+1)
	}
	if r.Isolation == "" {
		r.Isolation = mayfly.Native
	}
	if err := check(r); err != nil {
		return nil, err
	}
	for _, e := range s.envs {
		if e.Name == r.Name && e.Phase != mayfly.Deleted {
			return nil, mayfly.Errorf(mayfly.Conflict, "there is an environment %q already", r.Name)
		}
	}
	e := &environment{Environment: mayfly.Environment{
		ID: mayfly.NewID("env", now), Name: r.Name, Owner: mayfly.Actor(ctx), Labels: r.Labels, Template: r.Template,
		Source: r.Source, From: r.From, Isolation: r.Isolation, Limits: r.Limits, Phase: mayfly.Ready,
		CreatedAt: now, ReadyAt: now, ExpiresAt: now.Add(r.TTL), IdleTimeout: r.IdleTimeout, IdleSince: now, Keep: r.Keep,
	}}
	switch t := s.templates[r.Template]; {
	case r.From != nil:
		from, err := s.origin(ctx, r.From)
		if err != nil {
			return nil, err
		}
		e.From, e.files = &mayfly.SnapshotRef{Environment: from.Environment, Snapshot: from.ID}, maps.Clone(from.files)
	case t == nil:
		return nil, mayfly.Errorf(mayfly.Missing, "template %s is not here", r.Template).Hint("upload it")
	default:
		e.files, e.Commit = maps.Clone(t.files), t.Lock.Workspace.Commit
	}
	s.envs = append(s.envs, e)
	s.emit(ctx, "environment.created", e.ID, "")
	return e, nil
}

func check(r mayfly.CreateEnvironment) error {
	if err := mayfly.CheckName(r.Name); err != nil {
		return err
	}
	for k, v := range r.Labels {
		if err := mayfly.CheckLabel(k, v); err != nil {
			return err
		}
	}
	if (r.From == nil) == (r.Template == "") {
		return mayfly.Errorf(mayfly.Invalid, "exactly one of template and from is needed")
	}
	return mayfly.CheckTTL(r.TTL)
}

func (s *Service) origin(ctx context.Context, from *mayfly.SnapshotRef) (*snapshot, error) {
	e, err := s.live(from.Environment)
	if err != nil {
		return nil, err
	}
	if from.Snapshot == "" {
		return s.take(ctx, e, mayfly.ForkSnapshot, "", ""), nil
	}
	return s.snapshotOf(e, from.Snapshot)
}

func (s *Service) Environment(ctx context.Context, ref string) (mayfly.Environment, error) {
	return s.change(ctx, "Environment", ref, s.find, func(*environment) error { return nil })
}

func (s *Service) Environments(ctx context.Context, f mayfly.EnvironmentFilter) ([]mayfly.Environment, error) {
	if err := s.enter(ctx, "Environments"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var list []mayfly.Environment
	for _, e := range s.envs {
		if e.Phase == mayfly.Deleted && !f.Deleted {
			continue
		}
		ok := true
		for k, v := range f.Labels {
			ok = ok && e.Labels[k] == v
		}
		if ok {
			list = append(list, e.Environment)
		}
	}
	return list, nil
}

func (s *Service) PauseEnvironment(ctx context.Context, ref string) (mayfly.Environment, error) {
	return s.change(ctx, "PauseEnvironment", ref, s.live, func(e *environment) error {
		e.Phase, e.Reason = mayfly.Paused, "paused by "+mayfly.Actor(ctx)
		s.emit(ctx, "environment.paused", e.ID, "")
		return nil
	})
}

func (s *Service) ResumeEnvironment(ctx context.Context, ref string) (mayfly.Environment, error) {
	return s.change(ctx, "ResumeEnvironment", ref, s.live, func(e *environment) error {
		e.Phase, e.Reason = mayfly.Ready, ""
		s.emit(ctx, "environment.resumed", e.ID, "")
		return nil
	})
}

func (s *Service) ExtendEnvironment(ctx context.Context, ref string, ttl time.Duration) (mayfly.Environment, error) {
	return s.change(ctx, "ExtendEnvironment", ref, s.live, func(e *environment) error {
		if err := mayfly.CheckTTL(ttl); err != nil {
			return err
		}
		e.ExpiresAt = s.Now().Add(ttl)
		return nil
	})
}

func (s *Service) DeleteEnvironment(ctx context.Context, ref string) (mayfly.Environment, error) {
	return s.change(ctx, "DeleteEnvironment", ref, s.find, func(e *environment) error {
		s.remove(ctx, e)
		return nil
	})
}

func (s *Service) remove(ctx context.Context, e *environment) {
	if e.Phase == mayfly.Deleted {
		return
	}
	for _, r := range s.runs {
		if r.Environment == e.ID && !r.Phase.Ended() {
			r.kill()
		}
	}
	e.Phase, e.DeletedAt, e.files = mayfly.Deleted, s.Now(), nil
	s.emit(ctx, "environment.deleted", e.ID, "")
}

func (s *Service) change(ctx context.Context, method, ref string, find func(string) (*environment, error), do func(*environment) error) (mayfly.Environment, error) {
	if err := s.enter(ctx, method); err != nil {
		return mayfly.Environment{}, err
	}
	defer s.mu.Unlock()
	e, err := find(ref)
	if err == nil {
		err = do(e)
	}
	if err != nil {
		return mayfly.Environment{}, err
	}
	return e.Environment, nil
}

func (s *Service) Info(ctx context.Context) (mayfly.Info, error) {
	if err := s.enter(ctx, "Info"); err != nil {
		return mayfly.Info{}, err
	}
	defer s.mu.Unlock()
	return mayfly.Info{Version: "test", Installation: "memory", State: "/nowhere", PID: 1, Volume: "plain", Environments: len(s.envs)}, nil
}

func (s *Service) Events(ctx context.Context, f mayfly.EventFilter, yield func(mayfly.Event) error) error {
	if err := s.enter(ctx, "Events"); err != nil {
		return err
	}
	defer s.mu.Unlock()
	if f.Environment != "" {
		e, err := s.find(f.Environment)
		if err != nil {
			return err
		}
		f.Environment = e.ID
	}
	for next := int(f.After); ; next++ {
		if f.Follow {
			if err := s.await(ctx, func() bool { return next < len(s.events) }); err != nil {
				return err
			}
		} else if next >= len(s.events) {
			return nil
		}
		e := s.events[next]
		if f.Environment != "" && e.Environment != f.Environment || f.Run != "" && e.Run != f.Run {
			continue
		}
		s.mu.Unlock()
		err := yield(e)
		s.mu.Lock()
		if err != nil {
			return err
		}
	}
}
