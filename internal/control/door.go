package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

// Doors answers what the processes of environments ask for.
type Doors interface {
	// Open answers on l for the environment, and owns l from now on.
	Open(env string, l net.Listener) error
	// Close stops that, cuts what is passing, and returns when all of it is
	// recorded. Closing what is not open does nothing.
	Close(env string) error
}

// doorRetry is the pause between attempts to open a door.
const doorRetry = 5 * time.Second

// stepDoor opens the door of an environment whose sandbox is up. Without it no
// run of an agent starts; what runs already goes on.
func (e *Engine) stepDoor(ctx context.Context, s *situation) (bool, error) {
	l, ok := e.Driver.(driver.Listener)
	if !ok || e.Doors == nil || s.env.Phase != mayfly.Ready || e.isOpen(s.env.ID) {
		return false, nil
	}
	err := e.openDoor(ctx, l, s.env)
	if err == nil || ctx.Err() != nil {
		return false, ctx.Err()
	}
	failure := userError(e.Log, fmt.Errorf("open the gateway: %w", err), "environment", s.env.ID)
	s.by(e.Now().Add(doorRetry))
	return e.failAgents(ctx, s, failure)
}

func (e *Engine) isOpen(env string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.doors[env]
}

func (e *Engine) setOpen(env string, open bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if open {
		e.doors[env] = true
	} else {
		delete(e.doors, env)
		delete(e.refused, env)
	}
}

func (e *Engine) openDoor(ctx context.Context, l driver.Listener, env *environment) error {
	if err := e.Doors.Close(env.ID); err != nil { // half-opened before
		return err
	}
	listener, err := l.Listen(ctx, env.Handle, e.Port)
	if err != nil {
		return err
	}
	if err := e.Doors.Open(env.ID, listener); err != nil {
		return err
	}
	e.setOpen(env.ID, true)
	return nil
}

// closeDoor comes before a sandbox is stopped.
func (e *Engine) closeDoor(env string) error {
	if e.Doors == nil {
		return nil
	}
	e.setOpen(env, false)
	return e.Doors.Close(env)
}

// failAgents gives up the runs of agents that wait for the door.
func (e *Engine) failAgents(ctx context.Context, s *situation, failure *mayfly.Error) (failed bool, err error) {
	for _, r := range s.runs {
		if r.Phase != mayfly.RunPending || r.Kind != mayfly.AgentRun {
			continue
		}
		failed = true
		err = errors.Join(err, e.changeRun(ctx, r, func(tx *store.Tx, env *environment, r *run) error {
			return e.giveUp(tx, env, r, failure)
		}))
	}
	return failed, err
}

// agentVariables adds to the variables of a process how it reaches models,
// unless somebody chose otherwise.
func (e *Engine) agentVariables(env *environment, p driver.Process) driver.Process {
	if e.Variables == nil || e.Doors == nil {
		return p
	}
	vars := maps.Clone(e.Variables(e.Port, e.token(env.ID, p.Run)))
	for _, name := range env.Named {
		delete(vars, name)
	}
	maps.Copy(vars, p.Env)
	p.Env = vars
	return p
}
