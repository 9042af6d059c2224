// Package control is the engine: it looks at what is saved and what is there,
// and moves one towards the other.
//
// Requests only save what is wanted. Step does the work, one move at a time,
// each of which may be repeated, so that a crash between any two lines is
// repaired by the next step.
package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

// Ledger is where events go for good.
type Ledger interface {
	Append(ctx context.Context, events ...mayfly.Event) error
	Last() uint64
	Read(ctx context.Context, after uint64, follow bool, yield func(mayfly.Event) error) error
	Tail(yield func(mayfly.Event) bool) error
}

// Options are the parts and settings of an Engine.
type Options struct {
	Store  *store.Store
	Ledger Ledger
	Driver driver.Driver
	Log    *slog.Logger
	Info   mayfly.Info      // reported as it is, but for the counts
	Now    func() time.Time // default time.Now

	Doors     Doors                                                // nil: environments have none
	Port      int                                                  // of the doors
	TokenKey  []byte                                               // of the runs' tokens
	Variables func(port int, token string) map[string]string       // by which agents find the door
	Recorder  Recorder                                             // nil: nothing is kept of what passes
	Draw      func(context.Context, History) (mayfly.Graph, error) // makes the decision graph of a run

	KillGrace   time.Duration // between SIGTERM and SIGKILL; default 5 s
	Concurrency int           // environments being made or removed at once; default 8
}

// Engine implements mayfly.Service.
type Engine struct {
	Options
	ctx    context.Context // of the workers
	cancel context.CancelFunc
	wg     sync.WaitGroup
	slots  chan struct{} // held while making or removing an environment

	comparing chan struct{} // held while comparing databases

	effects effects

	drain     sync.Mutex // held while events move to the ledger; guards the next two
	forwarded int64      // number of the last event that the ledger has
	trimmed   int64      // number of the last event that the outbox has let go

	mu       sync.Mutex               // guards what follows
	closed   bool                     //
	workers  map[string]*worker       // by environment
	changed  map[string]chan struct{} // by environment: closed when its state changes
	waiting  map[string]bool          // runs whose exit somebody waits for
	readers  map[string]int           // by run: attachments that have not seen the end; once there was one, the key stays
	builds   map[string]bool          // templates being prepared
	uids     map[uint32]bool          // first ids of the ranges in use
	doors    map[string]bool          // environments whose door is open
	attended map[string]*attendance   // by environment: its services, once all are ready
	refused  map[string]refusals      // by environment
	hidden   map[string]words         // by run: what must not be written of those that have not started
	kept     map[string]bool          // runs whose recording has begun
}

var _ mayfly.Service = (*Engine)(nil)

// New makes an engine, removes what nobody has a record of, and takes up the
// work where the last one left it.
func New(ctx context.Context, o Options) (*Engine, error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.KillGrace == 0 {
		o.KillGrace = 5 * time.Second
	}
	if o.Concurrency == 0 {
		o.Concurrency = 8
	}
	e := &Engine{
		Options:   o,
		slots:     make(chan struct{}, o.Concurrency),
		comparing: make(chan struct{}, rowsAtOnce),
		workers:   map[string]*worker{},
		changed:   map[string]chan struct{}{},
		waiting:   map[string]bool{},
		readers:   map[string]int{},
		builds:    map[string]bool{},
		uids:      map[uint32]bool{},
		doors:     map[string]bool{},
		attended:  map[string]*attendance{},
		refused:   map[string]refusals{},
		kept:      map[string]bool{},
		hidden:    map[string]words{},
	}
	e.ctx, e.cancel = context.WithCancel(context.WithoutCancel(ctx))
	if err := e.recover(ctx); err != nil {
		e.cancel()
		return nil, fmt.Errorf("recover: %w", err)
	}
	if err := e.drainEvents(ctx); err != nil { // what the last engine left
		return nil, errors.Join(err, e.Close())
	}
	e.wg.Go(e.forwardEvents)
	return e, nil
}

// recover reconciles the outbox with the ledger and the machine with the
// store, and wakes every open environment.
func (e *Engine) recover(ctx context.Context) error {
	if err := e.trimOutbox(ctx); err != nil {
		return err
	}
	var open []*environment
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		open, err = decodeAll[environment](tx.ListOpen(kindEnvironment))
		return err
	})
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, env := range open {
		known[env.ID] = true
		e.uids[env.Handle.UIDBase] = true
	}
	err = e.Store.Update(ctx, func(tx *store.Tx) error {
		return errors.Join(e.endExchanges(tx, "", serverStopped), discardHeld(tx, open))
	})
	if err != nil {
		return err
	}
	handles, err := e.Driver.List(ctx)
	if err != nil {
		return fmt.Errorf("list what is there: %w", err)
	}
	for _, h := range handles {
		if known[h.Environment] {
			continue
		}
		e.Log.Warn("removing an environment without a record", "environment", h.Environment)
		if err := e.Driver.Destroy(ctx, h); err != nil {
			return fmt.Errorf("remove orphan %s: %w", h.Environment, err)
		}
	}
	for _, env := range open {
		e.wake(env.ID)
	}
	return nil
}

// Close stops the engine and returns when its workers have. Environments live
// on; the next engine takes them up.
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.cancel()
	e.wg.Wait()
	if err := e.drainEvents(context.Background()); err != nil {
		return err
	}
	e.drain.Lock()
	defer e.drain.Unlock()
	return e.trim(context.Background())
}

// Busy reports whether there is anything to look after; when it cannot tell,
// there is.
func (e *Engine) Busy() bool {
	e.mu.Lock()
	building := len(e.builds) > 0
	e.mu.Unlock()
	info, err := e.Info(e.ctx)
	return building || err != nil || info.Environments > 0
}

// Info implements mayfly.Service.
func (e *Engine) Info(ctx context.Context) (mayfly.Info, error) {
	info := e.Options.Info
	err := e.Store.View(ctx, func(tx *store.Tx) error {
		open, err := tx.ListOpen(kindEnvironment)
		info.Environments = len(open)
		return err
	})
	return info, err
}

// worker steps one environment.
type worker struct{ poke chan struct{} }

// wake makes sure that the environment is stepped soon.
func (e *Engine) wake(env string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return
	}
	w := e.workers[env]
	if w == nil {
		w = &worker{poke: make(chan struct{}, 1)}
		e.workers[env] = w
		e.wg.Go(func() { e.work(env, w) })
	}
	select {
	case w.poke <- struct{}{}:
	default: // it is going to look anyway
	}
}

// work steps an environment whenever it is poked or a deadline passes, until
// the environment is closed.
func (e *Engine) work(env string, w *worker) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	backoff := 10 * time.Millisecond
	for {
		select {
		case <-w.poke:
		case <-timer.C:
		case <-e.ctx.Done():
			return
		}
		again, err := e.Step(e.ctx, env)
		switch {
		case e.ctx.Err() != nil:
			return
		case err != nil:
			e.Log.Error("step", "environment", env, "error", err, "retry", backoff)
			timer.Reset(backoff)
			backoff = min(backoff*2, 30*time.Second)
		case again.IsZero():
			if e.retire(env, w) {
				return
			}
			timer.Reset(time.Hour)
		default:
			backoff = 10 * time.Millisecond
			timer.Reset(max(0, again.Sub(e.Now())))
		}
	}
}

// retire ends a worker unless it has been poked again.
func (e *Engine) retire(env string, w *worker) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(w.poke) > 0 {
		return false
	}
	delete(e.workers, env)
	return true
}

// update saves a change of one environment, wakes its worker, and tells
// whoever waits for it.
func (e *Engine) update(ctx context.Context, env string, do func(*store.Tx) error) error {
	if err := e.Store.Update(ctx, do); err != nil {
		return err
	}
	e.mu.Lock()
	if c := e.changed[env]; c != nil {
		close(c)
		delete(e.changed, env)
	}
	e.mu.Unlock()
	return nil
}

// await returns when done, called with a view of the state, says so. It is
// called again after every change of the environment.
func (e *Engine) await(ctx context.Context, env string, done func(*store.Tx) (bool, error)) error {
	for {
		e.mu.Lock()
		c := e.changed[env]
		if c == nil {
			c = make(chan struct{})
			e.changed[env] = c
		}
		e.mu.Unlock()
		var ok bool
		err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
			ok, err = done(tx)
			return err
		})
		if err != nil || ok {
			return err
		}
		select {
		case <-c:
		case <-ctx.Done():
			return ctx.Err()
		case <-e.ctx.Done():
			return errStopping()
		}
	}
}

// emit adds an event about an environment to a transaction.
func (e *Engine) emit(tx *store.Tx, actor, kind, env, run string, data any) error {
	return e.emitEvent(tx, mayfly.Event{Type: kind, Actor: actor, Environment: env, Run: run}, data)
}

// emitEvent adds an event to a transaction, with the time and data.
func (e *Engine) emitEvent(tx *store.Tx, event mayfly.Event, data any) error {
	event.Time = e.Now().UTC()
	if data != nil {
		text, err := json.Marshal(data)
		if err != nil {
			return fmt.Errorf("emit %s: %w", event.Type, err)
		}
		event.Data = text
	}
	return tx.Emit(event)
}

// fields is the data of an event.
type fields map[string]any

// serverActor is who acts when no person does.
const serverActor = "mayfly"

// trimOutbox forgets the events that reached the ledger before the last engine
// ended.
func (e *Engine) trimOutbox(ctx context.Context) error {
	e.drain.Lock()
	defer e.drain.Unlock()
	err := e.Ledger.Tail(func(event mayfly.Event) bool {
		n, ok := store.EventNumber(event.ID)
		e.forwarded = n
		return !ok
	})
	if err != nil {
		return err
	}
	return e.trim(ctx)
}

// trim lets the outbox go of what the ledger has. The caller holds drain.
func (e *Engine) trim(ctx context.Context) error {
	if e.trimmed == e.forwarded {
		return nil
	}
	if err := e.Store.Sent(ctx, e.forwarded); err != nil {
		return err
	}
	e.trimmed = e.forwarded
	return nil
}

const (
	// forwardDelay lets events gather: each append waits for the disk, and
	// they are safe in the outbox.
	forwardDelay = 25 * time.Millisecond
	// trimAt is how many events the ledger has that the outbox keeps.
	trimAt = 500
)

// forwardEvents moves events from the outbox to the ledger as they come.
func (e *Engine) forwardEvents() {
	for {
		select {
		case <-e.Store.Committed():
		case <-e.ctx.Done():
			return
		}
		for delay := forwardDelay; ; delay = time.Second {
			select {
			case <-time.After(delay):
			case <-e.ctx.Done():
				return // Close drains
			}
			err := e.drainEvents(e.ctx)
			if err == nil {
				break
			}
			if e.ctx.Err() == nil {
				e.Log.Error("forward events", "error", err)
			}
		}
	}
}

// drainEvents returns when every event committed so far is in the ledger. An
// event in the outbox whose number the ledger has seen is not appended again,
// also after a crash.
func (e *Engine) drainEvents(ctx context.Context) error {
	e.drain.Lock()
	defer e.drain.Unlock()
	for {
		events, last, err := e.Store.Outgoing(ctx, e.forwarded, 1000)
		if err != nil {
			return err
		}
		if len(events) == 0 {
			break
		}
		if err := e.Ledger.Append(ctx, events...); err != nil {
			return err
		}
		e.forwarded = last
	}
	if e.forwarded-e.trimmed < trimAt {
		return nil
	}
	return e.trim(ctx)
}

// Events implements mayfly.Events.
func (e *Engine) Events(ctx context.Context, f mayfly.EventFilter, yield func(mayfly.Event) error) error {
	if f.Environment != "" {
		err := e.Store.View(ctx, func(tx *store.Tx) error {
			env, err := findEnvironment(tx, f.Environment)
			if err == nil {
				f.Environment = env.ID
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	if err := e.drainEvents(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(e.ctx, cancel)()
	err := e.Ledger.Read(ctx, f.After, f.Follow, func(event mayfly.Event) error {
		if f.Environment != "" && event.Environment != f.Environment || f.Run != "" && event.Run != f.Run {
			return nil
		}
		return yield(event)
	})
	if errors.Is(err, context.Canceled) && e.ctx.Err() != nil {
		return errStopping()
	}
	return err
}
