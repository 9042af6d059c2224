package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/cgroup"
	"mayfly.dev/mayfly/internal/control"
	"mayfly.dev/mayfly/internal/monitor"
)

// watcher tells the engine which programs are started in the environments
// whose doors are open. Loading what sees them takes a part of a second: until
// then, and where the kernel does not allow it, nothing is told.
type watcher struct {
	control.Doors
	groups *cgroup.Tree
	redact func(text string) string
	log    *slog.Logger

	mu      sync.Mutex // guards what follows
	monitor *monitor.Monitor
	open    map[string]bool // environments
}

// Open implements control.Doors.
func (w *watcher) Open(env string, l net.Listener) error {
	w.mu.Lock()
	w.open[env] = true
	err := w.watch(env)
	w.mu.Unlock()
	if err != nil {
		w.log.Warn("processes are not watched", "environment", env, "error", err)
	}
	return w.Doors.Open(env, l)
}

// Close implements control.Doors.
func (w *watcher) Close(env string) error {
	w.mu.Lock()
	delete(w.open, env)
	var err error
	if w.monitor != nil {
		err = w.monitor.Unwatch(env)
	}
	w.mu.Unlock()
	return errors.Join(w.Doors.Close(env), err)
}

// watch has the monitor tell of an environment. The caller holds mu.
func (w *watcher) watch(env string) error {
	if w.monitor == nil {
		return nil
	}
	dir, err := w.groups.Directory(env)
	if err != nil || dir == nil {
		return err
	}
	defer dir.Close()
	return w.monitor.Watch(env, dir.Name())
}

// start loads the monitor and takes up the environments that are there.
func (w *watcher) start() (*monitor.Monitor, error) {
	m, err := monitor.Open(monitor.Options{})
	if err != nil {
		return nil, err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.monitor = m
	for env := range w.open {
		if err := w.watch(env); err != nil {
			w.log.Warn("processes are not watched", "environment", env, "error", err)
		}
	}
	return m, nil
}

// run watches until ctx ends.
func (w *watcher) run(ctx context.Context, e *control.Engine) {
	m, err := w.start()
	if err != nil {
		w.log.Warn("processes in environments are not watched", "error", err)
		return
	}
	starts := make(chan monitor.Exec, 1024)
	var wg sync.WaitGroup
	wg.Go(func() { w.save(ctx, e, starts) })
	err = m.Run(ctx, func(x monitor.Exec) { starts <- x })
	close(starts)
	wg.Wait()
	w.mu.Lock()
	w.monitor = nil
	w.mu.Unlock()
	if err = errors.Join(err, m.Close()); err != nil && ctx.Err() == nil {
		w.log.Error("processes are not watched any more", "error", err)
	}
}

const (
	// gatherFor is how long starts of programs gather before they are saved.
	gatherFor = 50 * time.Millisecond
	// maxGathered bounds how many of an environment are one event.
	maxGathered = 100
)

// save gathers starts of programs and saves those of an environment together.
func (w *watcher) save(ctx context.Context, e *control.Engine, starts <-chan monitor.Exec) {
	gathered := map[string][]mayfly.Process{}
	flush := func() {
		for env, processes := range gathered {
			if err := e.Started(context.WithoutCancel(ctx), env, processes); err != nil {
				w.log.Error("starts of programs are not saved", "environment", env, "error", err)
			}
		}
		clear(gathered)
	}
	var due <-chan time.Time // nil while there is nothing to save
	for {
		select {
		case x, ok := <-starts:
			if !ok {
				flush()
				return
			}
			if due == nil {
				due = time.After(gatherFor)
			}
			gathered[x.Environment] = append(gathered[x.Environment], w.process(x))
			if len(gathered[x.Environment]) < maxGathered {
				continue
			}
		case <-due:
		}
		flush()
		due = nil
	}
}

// process is what is kept of a start: the arguments may hold secrets.
func (w *watcher) process(x monitor.Exec) mayfly.Process {
	p := mayfly.Process{Time: x.Time, PID: x.PID, Parent: x.Parent}
	for _, arg := range x.Args {
		p.Command = append(p.Command, w.redact(arg))
	}
	if len(x.Args) == 0 {
		p.Command = []string{x.Command}
	}
	if x.Truncated {
		p.Command = append(p.Command, fmt.Sprintf("[cut after %d]", len(x.Args)))
	}
	return p
}
