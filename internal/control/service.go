package control

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

// attendance is who starts the services of an environment again when they end.
type attendance struct {
	cancel context.CancelFunc
	done   sync.WaitGroup
	states map[string]mayfly.ServiceState // by name; guarded by Engine.mu
}

// setState notes how a service is.
func (e *Engine) setState(a *attendance, service string, s mayfly.ServiceState) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a.states[service] = s
}

// servicesOf tells how the services of an environment are.
func (e *Engine) servicesOf(env *environment) []mayfly.ServiceStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []mayfly.ServiceStatus
	for _, s := range env.Spec.Services {
		state := mayfly.ServiceStopped
		if a := e.attended[env.ID]; a != nil {
			state = a.states[s.Name]
		}
		list = append(list, mayfly.ServiceStatus{Name: s.Name, State: state})
	}
	return list
}

// AttachService implements mayfly.Environments.
func (e *Engine) AttachService(ctx context.Context, ref, service string, follow bool) (mayfly.Attachment, error) {
	var env *environment
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		env, err = findEnvironment(tx, ref)
		return err
	})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, s := range env.Spec.Services {
		names = append(names, s.Name)
	}
	d, ok := e.Driver.(driver.Servicer)
	switch {
	case !slices.Contains(names, service):
		return nil, mayfly.Errorf(mayfly.NotFound, "environment %s has no service %.40q", env.Name, service).
			Hint("it has %s", cmp.Or(strings.Join(names, ", "), "none"))
	case !env.object().Open:
		return nil, mayfly.Errorf(mayfly.NotFound, "what the service %s wrote is gone with its environment", service)
	case !ok:
		return nil, mayfly.Errorf(mayfly.Unsupported, "services cannot run here")
	}
	return d.AttachService(ctx, env.Handle, env.Spec, service, follow)
}

// The pause before a service that ended is started again: it doubles until the
// service has lived for serviceStable.
const (
	servicePause    = 100 * time.Millisecond
	servicePauseMax = 30 * time.Second
	serviceStable   = 10 * time.Second
)

// serve starts the services of an environment whose sandbox runs and returns
// when all are ready. Those that run already are taken over.
func (e *Engine) serve(ctx context.Context, s *situation) error {
	env := s.env
	if len(env.Spec.Services) == 0 || e.isAttended(env.ID) {
		return nil
	}
	d, ok := e.Driver.(driver.Servicer)
	if !ok {
		return mayfly.Errorf(mayfly.Unsupported, "services cannot run here")
	}
	processes := make([]string, len(env.Spec.Services))
	for i, service := range env.Spec.Services {
		process, err := d.StartService(ctx, env.Handle, env.Spec, service.Name)
		if err != nil {
			return fmt.Errorf("service %s: %w", service.Name, err)
		}
		processes[i] = process
	}
	if err := d.Admit(ctx, env.Handle, env.Spec, s.running()); err != nil {
		return err
	}
	e.attend(d, env, processes)
	return nil
}

func (e *Engine) isAttended(env string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.attended[env] != nil
}

// attend has somebody watch each service.
func (e *Engine) attend(d driver.Servicer, env *environment, processes []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	ctx, cancel := context.WithCancel(e.ctx)
	a := &attendance{cancel: cancel, states: map[string]mayfly.ServiceState{}}
	e.attended[env.ID] = a
	for i, s := range env.Spec.Services {
		a.done.Add(1)
		a.states[s.Name] = mayfly.ServiceReady
		e.wg.Go(func() {
			defer a.done.Done()
			e.restart(ctx, d, env, a, s.Name, processes[i])
		})
	}
}

// dismiss ends the watch over the services of an environment; it comes before
// their sandbox is stopped.
func (e *Engine) dismiss(env string) {
	e.mu.Lock()
	a := e.attended[env]
	delete(e.attended, env)
	e.mu.Unlock()
	if a != nil {
		a.cancel()
		a.done.Wait()
	}
}

// restart starts a service again whenever it ends.
func (e *Engine) restart(ctx context.Context, d driver.Servicer, env *environment, a *attendance, name, process string) {
	pause := servicePause
	for {
		began := time.Now()
		exit, err := e.Driver.WaitProcess(ctx, env.Handle, process)
		if ctx.Err() != nil {
			return
		}
		if mayfly.KindOf(err) == mayfly.NotFound { // so has the sandbox
			e.wake(env.ID)
			return
		}
		e.setState(a, name, mayfly.ServiceRestarting)
		if err != nil {
			e.Log.Error("wait for a service", "environment", env.ID, "service", name, "error", err)
		} else {
			e.noteService(ctx, env.ID, "service.ended", fields{"service": name, "exit_code": exit.Code, "reason": exit.Reason})
		}
		if time.Since(began) > serviceStable {
			pause = servicePause
		}
		for {
			select {
			case <-time.After(pause):
			case <-ctx.Done():
				return
			}
			pause = min(2*pause, servicePauseMax)
			started, err := d.StartService(ctx, env.Handle, env.Spec, name)
			if ctx.Err() != nil {
				return
			}
			if err == nil {
				process = started
				e.setState(a, name, mayfly.ServiceReady)
				e.noteService(ctx, env.ID, "service.started", fields{"service": name})
				e.wake(env.ID) // to see who may use it
				break
			}
			e.setState(a, name, mayfly.ServiceFailed)
			failure := userError(e.Log, err, "environment", env.ID, "service", name)
			e.noteService(ctx, env.ID, "service.failed", fields{"service": name, "error": failure.Message})
		}
	}
}

func (e *Engine) noteService(ctx context.Context, env, kind string, data fields) {
	err := e.Store.Update(ctx, func(tx *store.Tx) error { return e.emit(tx, serverActor, kind, env, "", data) })
	if err != nil && ctx.Err() == nil {
		e.Log.Error("save an event of a service", "environment", env, "error", err)
	}
}

// stepServices takes over the services of an environment that an earlier
// engine has started, and sees to it that nobody but what runs can use them.
// Without them no run of an agent starts; what runs already goes on.
func (e *Engine) stepServices(ctx context.Context, s *situation) (bool, error) {
	if len(s.env.Spec.Services) == 0 || s.env.Phase != mayfly.Ready {
		return false, nil
	}
	if e.isAttended(s.env.ID) {
		if err := e.admit(ctx, s); err != nil {
			e.Log.Warn("see who may use services", "environment", s.env.ID, "error", err)
			s.by(e.Now().Add(doorRetry))
		}
		return false, ctx.Err()
	}
	err := e.serve(ctx, s)
	if err == nil || ctx.Err() != nil {
		return false, ctx.Err()
	}
	failure := userError(e.Log, fmt.Errorf("start services: %w", err), "environment", s.env.ID)
	s.by(e.Now().Add(doorRetry))
	return e.failAgents(ctx, s, failure)
}

// admit lets what runs, and more, use the services of an environment.
func (e *Engine) admit(ctx context.Context, s *situation, more ...string) error {
	d, ok := e.Driver.(driver.Servicer)
	if !ok || len(s.env.Spec.Services) == 0 {
		return nil
	}
	return d.Admit(ctx, s.env.Handle, s.env.Spec, append(s.running(), more...))
}

// dismissRun ends what a run that has ended had of services, before its end is
// saved. What fails here the next step does.
func (e *Engine) dismissRun(ctx context.Context, env *environment, run string) {
	d, ok := e.Driver.(driver.Servicer)
	if !ok || len(env.Spec.Services) == 0 {
		return
	}
	if err := d.Dismiss(ctx, env.Handle, env.Spec, run); err != nil && ctx.Err() == nil {
		e.Log.Warn("take services from a run that has ended", "run", run, "error", err)
	}
}

// failServices gives an environment up whose services do not start: a new one
// for good, another until somebody needs it again.
func (e *Engine) failServices(ctx context.Context, s *situation, cause error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if s.env.ReadyAt.IsZero() {
		return e.fail(ctx, s.env, "start environment", cause)
	}
	if err := e.stop(ctx, s.env); err != nil {
		return errors.Join(cause, err)
	}
	return e.failPendingRuns(ctx, s, cause)
}
