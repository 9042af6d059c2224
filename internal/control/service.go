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
	states map[string]mayfly.ServiceStatus // by name; guarded by Engine.mu
	spare  spare                           // guarded by Engine.mu
	ctx    context.Context                 // ends with it
}

// setState notes how a service is, and why.
func (e *Engine) setState(a *attendance, service string, s mayfly.ServiceState, reason string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	a.states[service] = mayfly.ServiceStatus{Name: service, State: s, Reason: reason}
}

// servicesOf tells how the services of an environment are.
func (e *Engine) servicesOf(env *environment) []mayfly.ServiceStatus {
	e.mu.Lock()
	defer e.mu.Unlock()
	var list []mayfly.ServiceStatus
	for _, s := range env.Spec.Services {
		status := mayfly.ServiceStatus{Name: s.Name, State: mayfly.ServiceStopped}
		if a := e.attended[env.ID]; a != nil {
			status = a.states[s.Name]
			if a.spare.ready && s.Postgres != nil && s.Postgres.Spare {
				status.Spare = a.spare.number
			}
		}
		list = append(list, status)
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
// service has lived for serviceStable. One that ended serviceEnds times in a row
// before has failed.
const (
	servicePause    = 100 * time.Millisecond
	servicePauseMax = 30 * time.Second
	serviceStable   = 10 * time.Second
	serviceEnds     = 3
	servicePatience = 10 * time.Second // of a run, until the end of a service is noticed
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
	wanted, cancel := e.whileWanted(ctx, env.ID)
	defer cancel()
	processes := make([]string, len(env.Spec.Services))
	for i, service := range env.Spec.Services {
		process, err := d.StartService(wanted, env.Handle, env.Spec, service.Name)
		if err != nil && wanted.Err() != nil && ctx.Err() == nil {
			return errUnwanted
		}
		if err != nil {
			return fmt.Errorf("service %s: %w", service.Name, err)
		}
		processes[i] = process
	}
	if err := d.Admit(ctx, env.Handle, env.Spec, s.running(), env.ExpiresAt); err != nil {
		return err
	}
	e.attend(d, env, processes)
	return nil
}

// errUnwanted is why services are not started whose environment is to be
// deleted.
var errUnwanted = errors.New("the environment is to be deleted")

// whileWanted returns a context that ends when an environment is to be deleted:
// services may take long to become ready.
func (e *Engine) whileWanted(ctx context.Context, env string) (context.Context, func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := e.await(ctx, env, func(tx *store.Tx) (bool, error) {
			saved, err := get[environment](tx, kindEnvironment, env)
			return err == nil && saved.Goal == goalDeleted, err
		})
		if err == nil {
			cancel()
		}
	}()
	return ctx, func() { cancel(); <-done }
}

func (e *Engine) isAttended(env string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.attended[env] != nil
}

// attend has somebody watch each service. Those without a process are to be
// taken over or started.
func (e *Engine) attend(d driver.Servicer, env *environment, processes []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	ctx, cancel := context.WithCancel(e.ctx)
	a := &attendance{ctx: ctx, cancel: cancel, states: map[string]mayfly.ServiceStatus{}}
	e.attended[env.ID] = a
	for i, s := range env.Spec.Services {
		w := &serviceWatch{engine: e, driver: d, env: env, all: a, name: s.Name, process: processes[i], pause: servicePause}
		a.states[s.Name] = mayfly.ServiceStatus{Name: s.Name, State: mayfly.ServiceReady}
		if w.process == "" {
			a.states[s.Name] = mayfly.ServiceStatus{Name: s.Name, State: mayfly.ServiceRestarting}
		}
		a.done.Add(1)
		e.wg.Go(func() {
			defer a.done.Done()
			w.run(ctx)
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

// serviceWatch starts one service again whenever it ends.
type serviceWatch struct {
	engine  *Engine
	driver  driver.Servicer
	env     *environment
	all     *attendance
	name    string
	process string // "" while there is none

	pause time.Duration // before the next start
	ends  int           // in a row, soon after a start
}

// run returns when ctx ends, or the sandbox has.
func (w *serviceWatch) run(ctx context.Context) {
	for {
		if w.process == "" && !w.start(ctx) {
			return
		}
		began := time.Now()
		exit, err := w.engine.Driver.WaitProcess(ctx, w.env.Handle, w.process)
		if ctx.Err() != nil {
			return
		}
		if mayfly.KindOf(err) == mayfly.NotFound { // so has the sandbox
			w.engine.wake(w.env.ID)
			return
		}
		if w.ends++; time.Since(began) > serviceStable {
			w.ends, w.pause = 1, servicePause
		}
		w.process = ""
		w.ended(ctx, exit, err)
		if !w.rest(ctx) {
			return
		}
	}
}

// ended notes that the process of the service is no more.
func (w *serviceWatch) ended(ctx context.Context, exit driver.Exit, err error) {
	e := w.engine
	reason := cmp.Or(exit.Reason, fmt.Sprintf("it ended with status %d", exit.Code))
	if err != nil {
		reason = userError(e.Log, err, "environment", w.env.ID, "service", w.name).Message
	}
	e.setState(w.all, w.name, mayfly.ServiceRestarting, reason)
	e.noteService(ctx, w.env.ID, "service.ended", fields{"service": w.name, "exit_code": exit.Code, "reason": exit.Reason})
	if w.ends >= serviceEnds {
		w.failed(ctx, fmt.Sprintf("%s, %d times in a row", reason, w.ends))
	}
}

// failed notes that the service does not do. Runs may wait for it.
func (w *serviceWatch) failed(ctx context.Context, reason string) {
	reason = strings.Join(strings.Fields(reason), " ")
	w.engine.setState(w.all, w.name, mayfly.ServiceFailed, reason)
	w.engine.noteService(ctx, w.env.ID, "service.failed", fields{"service": w.name, "error": reason})
	w.engine.wake(w.env.ID)
}

// rest waits before the next start, longer each time.
func (w *serviceWatch) rest(ctx context.Context) bool {
	select {
	case <-time.After(w.pause):
	case <-ctx.Done():
	}
	w.pause = min(2*w.pause, servicePauseMax)
	return ctx.Err() == nil
}

// start tries until the service is ready.
func (w *serviceWatch) start(ctx context.Context) bool {
	e := w.engine
	for {
		process, err := w.driver.StartService(ctx, w.env.Handle, w.env.Spec, w.name)
		if ctx.Err() != nil {
			return false
		}
		if err == nil {
			w.process = process
			e.forgetSpare(w.all)
			e.setState(w.all, w.name, mayfly.ServiceReady, "")
			e.noteService(ctx, w.env.ID, "service.started", fields{"service": w.name})
			e.wake(w.env.ID) // to see who may use it
			return true
		}
		w.failed(ctx, userError(e.Log, err, "environment", w.env.ID, "service", w.name).Message)
		if !w.rest(ctx) {
			return false
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
// What runs already goes on without them.
func (e *Engine) stepServices(ctx context.Context, s *situation) (bool, error) {
	if len(s.env.Spec.Services) == 0 || s.env.Phase != mayfly.Ready {
		return false, nil
	}
	d, ok := e.Driver.(driver.Servicer)
	if !ok {
		return false, nil // they have never been there
	}
	if !e.isAttended(s.env.ID) {
		e.attend(d, s.env, make([]string, len(s.env.Spec.Services)))
		return false, nil
	}
	if waiting, failure := e.withoutServices(s.env, mayfly.ExecRun); waiting || failure != nil {
		return false, nil // whoever has them ready wakes the environment
	}
	if err := e.admit(ctx, s); err != nil {
		e.Log.Warn("see who may use services", "environment", s.env.ID, "error", err)
		s.by(e.Now().Add(doorRetry))
	}
	return false, ctx.Err()
}

// withoutServices tells whether a run has to wait for a service, or cannot start
// because one has failed. Whoever looks what is wrong with a service can do
// without it, but for a Postgres, in which every run has a login.
func (e *Engine) withoutServices(env *environment, kind mayfly.RunKind) (waiting bool, failure *mayfly.Error) {
	for i, s := range e.servicesOf(env) {
		if kind == mayfly.ExecRun && env.Spec.Services[i].Postgres == nil {
			continue
		}
		switch s.State {
		case mayfly.ServiceFailed:
			return false, mayfly.Errorf(mayfly.Unavailable, "the service %s has failed: %s", s.Name, s.Reason).
				Hint("see what it says: mayfly logs %s --service %s; or go back: mayfly rollback %s", env.Name, s.Name, env.Name)
		case mayfly.ServiceRestarting:
			waiting = true
		}
	}
	return waiting, nil
}

// admit lets what runs, and more, use the services of an environment, until its
// time ends.
func (e *Engine) admit(ctx context.Context, s *situation, more ...string) error {
	d, ok := e.Driver.(driver.Servicer)
	if !ok || len(s.env.Spec.Services) == 0 {
		return nil
	}
	return d.Admit(ctx, s.env.Handle, s.env.Spec, append(s.running(), more...), s.env.ExpiresAt)
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
	if errors.Is(cause, errUnwanted) {
		return nil // the next step removes it
	}
	if s.env.ReadyAt.IsZero() {
		return e.fail(ctx, s.env, "start environment", cause)
	}
	if err := e.stop(ctx, s.env); err != nil {
		return errors.Join(cause, err)
	}
	return e.failPendingRuns(ctx, s, cause)
}
