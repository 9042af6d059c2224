package control

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"slices"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

const (
	// rowsTimeout bounds how long databases are compared, until the last byte
	// is read.
	rowsTimeout = 10 * time.Minute
	// rowsAtOnce is how many comparisons run at the same time: each has two
	// instances.
	rowsAtOnce = 2
)

// heldSnapshot is the kind of snapshots that hold a live state for a
// comparison. Nobody else sees them.
const heldSnapshot mayfly.SnapshotKind = "held"

// DiffRows implements mayfly.Snapshots.
func (e *Engine) DiffRows(ctx context.Context, r mayfly.RowsRequest) (io.ReadCloser, error) {
	env, err := e.readable(ctx, r.Environment, &r.From, &r.To)
	if err != nil {
		return nil, err
	}
	d, ok := e.Driver.(driver.RowDiffer)
	if !ok {
		return nil, mayfly.Errorf(mayfly.Unsupported, "databases cannot be compared here")
	}
	if !slices.ContainsFunc(env.Spec.Services, func(s mayfly.LockedService) bool { return s.Postgres != nil }) {
		return nil, mayfly.Errorf(mayfly.Invalid, "environment %s has no Postgres whose rows could be compared", env.Name).
			Hint("for files: mayfly diff %s; for a database, give mayfly.yaml a service with postgres", env.Name)
	}
	slow := mayfly.Errorf(mayfly.Timeout, "comparing the databases took longer than %v", rowsTimeout).
		Hint("compare states that are nearer to each other, such as those of one step: --step N")
	ctx, cancel := context.WithTimeoutCause(ctx, rowsTimeout, slow)
	c := &comparison{engine: e, driver: d, env: env, request: r, ctx: ctx, cancel: cancel, begun: make(chan error)}
	if !e.start(c.run) {
		cancel()
		return nil, errStopping()
	}
	if err := <-c.begun; err != nil {
		return nil, err
	}
	return c, nil
}

func errStopping() error {
	return mayfly.Errorf(mayfly.Unavailable, "the server is stopping").Hint("try again: it is started on demand")
}

// start runs f beside everything else, unless the engine is closing, which
// waits for it.
func (e *Engine) start(f func()) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.closed {
		e.wg.Go(f)
	}
	return !e.closed
}

// comparison is a comparison of databases. The end of its context removes what
// was made for it, behind the back of whoever has read it.
type comparison struct {
	engine  *Engine
	driver  driver.RowDiffer
	env     *environment
	request mayfly.RowsRequest
	ctx     context.Context
	cancel  context.CancelFunc
	begun   chan error
	body    io.ReadCloser
	undo    []func() // in the reverse order
}

// Read says why the comparison ended, when it did before its time.
func (c *comparison) Read(p []byte) (int, error) {
	n, err := c.body.Read(p)
	if err != nil && err != io.EOF {
		err = c.cause(err)
	}
	return n, err
}

func (c *comparison) cause(err error) error {
	switch {
	case c.engine.ctx.Err() != nil:
		return errStopping()
	case c.ctx.Err() != nil:
		return context.Cause(c.ctx)
	}
	return err
}

func (c *comparison) Close() error {
	c.cancel()
	return nil
}

func (c *comparison) run() {
	defer context.AfterFunc(c.engine.ctx, c.cancel)()
	err := c.begin()
	if err != nil {
		c.begun <- c.cause(err) // before its context ends
	} else {
		c.begun <- nil
		<-c.ctx.Done()
		c.body.Close()
	}
	c.cancel()
	for _, f := range slices.Backward(c.undo) {
		f()
	}
}

func (c *comparison) begin() (err error) {
	e := c.engine
	select {
	case e.comparing <- struct{}{}:
		c.undo = append(c.undo, func() { <-e.comparing })
	case <-c.ctx.Done():
		return c.ctx.Err()
	}
	if c.request.To == "" {
		held, err := e.requestHeld(c.ctx, c.env.ID)
		if err != nil {
			return err
		}
		c.undo = append(c.undo, func() { e.letGo(c.env.ID, held) })
		if _, err := e.awaitSnapshot(c.ctx, held); err != nil {
			return err
		}
		c.request.To = held.ID
	}
	var places [2]driver.Handle
	for i := range places {
		if places[i], err = c.place(); err != nil {
			return err
		}
	}
	c.body, err = c.driver.DiffRows(c.ctx, c.env.Handle, c.env.Spec, c.request, places)
	return err
}

// place reserves what an instance needs. After a crash nobody has a record of
// it, and so it is removed.
func (c *comparison) place() (driver.Handle, error) {
	e := c.engine
	base, err := e.reserveIDs()
	if err != nil {
		return driver.Handle{}, err
	}
	h := driver.Handle{Environment: mayfly.NewID("cmp", e.Now()), Isolation: c.env.Isolation, UIDBase: base}
	c.undo = append(c.undo, func() {
		for {
			err := e.Driver.Destroy(context.WithoutCancel(e.ctx), h)
			if err == nil {
				e.releaseIDs(base)
				return
			}
			e.Log.Error("remove what compared databases", "environment", h.Environment, "error", err)
			select {
			case <-time.After(time.Second):
			case <-e.ctx.Done():
				return // the next engine does it
			}
		}
	})
	return h, nil
}

// requestHeld asks for a snapshot of the live state for a comparison.
func (e *Engine) requestHeld(ctx context.Context, env string) (held *snapshot, err error) {
	err = e.withEnvironment(ctx, env, func(tx *store.Tx, env *environment) error {
		now := e.Now().UTC()
		held = &snapshot{Snapshot: mayfly.Snapshot{
			ID: mayfly.NewID("snap", now), Environment: env.ID, Kind: heldSnapshot, CreatedAt: now,
		}}
		return put(tx, held)
	})
	return held, err
}

// letGo has a snapshot removed that was held.
func (e *Engine) letGo(env string, held *snapshot) {
	err := e.change(context.WithoutCancel(e.ctx), env, func(tx *store.Tx, env *environment) error {
		if !env.object().Open {
			return nil // it went with its environment
		}
		saved, err := get[snapshot](tx, kindSnapshot, held.ID)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		return discard(tx, saved, serverActor)
	})
	if err != nil {
		e.Log.Error("remove the snapshot of a comparison", "environment", env, "snapshot", held.ID, "error", err)
	}
	e.wake(env)
}

// discardHeld has all removed that comparisons of an earlier engine held.
func discardHeld(tx *store.Tx, open []*environment) error {
	for _, env := range open {
		all, err := decodeAll[snapshot](tx.ListOf(kindSnapshot, env.ID))
		for _, s := range all {
			if s.Kind == heldSnapshot {
				err = errors.Join(err, discard(tx, s, serverActor))
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}
