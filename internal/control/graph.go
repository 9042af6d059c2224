package control

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

// Recorder keeps what passes the doors.
type Recorder interface {
	// Begin says what becomes of what is taken out of a run's recording; it
	// comes before the run's first content, and may be repeated.
	Begin(ctx context.Context, run string, exact mayfly.ExactRecording) error
	// Redact returns text without what must not be written.
	Redact(text string) string
	// Seal encrypts what was taken out, under the run's key; the result is
	// empty when nothing is to be kept. Unseal undoes it while the key exists.
	Seal(run string, text []byte) ([]byte, error)
	Unseal(run string, sealed []byte) ([]byte, error)
	// Content returns the redacted content of a digest.
	Content(ctx context.Context, digest string) (mayfly.Content, error)
	// Ended says that nothing more is coming of a run.
	Ended(run string)
	// Forget makes what was taken out of a run's recording unreadable for
	// ever.
	Forget(ctx context.Context, run string) error
}

// History is what the decision graph of a run is drawn from.
type History struct {
	Run       mayfly.Run
	Events    []mayfly.Event // about the run, in order
	Exchanges []mayfly.Exchange
	Snapshots []mayfly.Snapshot       // of the run, also of an environment that is gone
	Files     map[int][]mayfly.Change // changed by steps, as far as that was found out
	Content   func(ctx context.Context, digest string) (mayfly.Content, error)
	Changes   func(ctx context.Context, from, to string) ([]mayfly.Change, error)
}

// beginRecording makes sure that the recorder knows the run.
func (e *Engine) beginRecording(ctx context.Context, r *run) error {
	if e.Recorder == nil {
		return nil
	}
	e.mu.Lock()
	known := e.kept[r.ID]
	e.mu.Unlock()
	if known {
		return nil
	}
	var env *environment
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		env, err = get[environment](tx, kindEnvironment, r.Environment)
		return err
	})
	if err != nil {
		return err
	}
	if err := e.Recorder.Begin(ctx, r.ID, env.Exact); err != nil {
		return fmt.Errorf("begin the recording of %s: %w", r.ID, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.kept[r.ID] = true
	return nil
}

// endRecording lets go of what is kept in memory for a run.
func (e *Engine) endRecording(run string) {
	if e.Recorder == nil {
		return
	}
	e.mu.Lock()
	delete(e.kept, run)
	e.mu.Unlock()
	e.Recorder.Ended(run)
}

// history returns the events about a run.
func (e *Engine) history(ctx context.Context, r mayfly.Run) ([]mayfly.Event, error) {
	var saved *run
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		saved, err = get[run](tx, kindRun, r.ID)
		return err
	})
	if err != nil {
		return nil, err
	}
	var events []mayfly.Event
	err = e.Events(ctx, mayfly.EventFilter{Run: r.ID, After: saved.After}, func(event mayfly.Event) error {
		events = append(events, event)
		return nil
	})
	return events, err
}

func eventData[T any](event mayfly.Event) (v T, err error) {
	if err := json.Unmarshal(event.Data, &v); err != nil {
		return v, fmt.Errorf("read event %d: %w", event.Seq, err)
	}
	return v, nil
}

// Graph implements mayfly.Recordings.
func (e *Engine) Graph(ctx context.Context, id string) (mayfly.Graph, error) {
	r, err := e.Run(ctx, id)
	if err != nil {
		return mayfly.Graph{}, err
	}
	if e.Draw == nil || e.Recorder == nil {
		return mayfly.Graph{}, mayfly.Errorf(mayfly.Unsupported, "this server records nothing")
	}
	h := History{Run: r, Content: e.Recorder.Content}
	if h.Events, err = e.history(ctx, r); err != nil {
		return mayfly.Graph{}, err
	}
	if h.Exchanges, err = exchangesIn(h.Events); err != nil {
		return mayfly.Graph{}, err
	}
	if h.Snapshots, err = snapshotsIn(h.Events); err != nil {
		return mayfly.Graph{}, err
	}
	if h.Files, err = filesIn(h.Events); err != nil {
		return mayfly.Graph{}, err
	}
	h.Changes, err = e.changes(ctx, r)
	if err != nil {
		return mayfly.Graph{}, err
	}
	return e.Draw(ctx, h)
}

// snapshotsIn reads the snapshots of a run from its events.
func snapshotsIn(events []mayfly.Event) (list []mayfly.Snapshot, err error) {
	for _, event := range events {
		if event.Type != "snapshot.created" {
			continue
		}
		data, err := eventData[struct {
			Snapshot string
			Number   int
			Kind     mayfly.SnapshotKind
			Step     int
		}](event)
		if err != nil {
			return nil, err
		}
		list = append(list, mayfly.Snapshot{
			ID: data.Snapshot, Environment: event.Environment, Number: data.Number, Kind: data.Kind,
			Run: event.Run, Step: data.Step, Ready: true, CreatedAt: event.Time,
		})
	}
	return list, nil
}

// maxChanges and maxPaths bound how many paths of one step a graph names, and
// their bytes.
const (
	maxChanges = 500
	maxPaths   = 256 << 10
)

// changes returns a function that compares two snapshots of the run's
// environment; while they exist, and nothing of them when they are gone.
func (e *Engine) changes(ctx context.Context, r mayfly.Run) (func(context.Context, string, string) ([]mayfly.Change, error), error) {
	var env *environment
	gone := map[string]bool{}
	err := e.Store.View(ctx, func(tx *store.Tx) (err error) {
		if env, err = get[environment](tx, kindEnvironment, r.Environment); err != nil {
			return err
		}
		all, err := decodeAll[snapshot](tx.ListOf(kindSnapshot, env.ID))
		for _, s := range all {
			gone[s.ID] = !s.DeletedAt.IsZero() || s.Discard != ""
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, from, to string) ([]mayfly.Change, error) {
		if !env.object().Open || gone[from] || gone[to] {
			return nil, nil
		}
		return e.compare(ctx, env.Handle, env.Spec, from, to)
	}, nil
}

// compare lists what differs between two snapshots.
func (e *Engine) compare(ctx context.Context, h driver.Handle, s driver.Spec, from, to string) ([]mayfly.Change, error) {
	body, err := e.Driver.Diff(ctx, h, s, mayfly.DiffRequest{Environment: h.Environment, From: from, To: to, Format: "json"})
	if err != nil {
		return nil, err
	}
	defer body.Close()
	d := json.NewDecoder(body)
	if _, err := d.Token(); err != nil {
		return nil, fmt.Errorf("read changes: %w", err)
	}
	list := []mayfly.Change{}
	for size := 0; d.More() && len(list) < maxChanges && size < maxPaths; {
		var c mayfly.Change
		if err := d.Decode(&c); err != nil {
			return nil, fmt.Errorf("read changes: %w", err)
		}
		size += len(c.Path) + len(c.From)
		list = append(list, c)
	}
	return list, nil
}

// ForgetExact implements mayfly.Recordings.
func (e *Engine) ForgetExact(ctx context.Context, id string) (mayfly.Run, error) {
	r, err := e.Run(ctx, id)
	switch {
	case err != nil:
		return r, err
	case e.Recorder == nil:
		return r, mayfly.Errorf(mayfly.Unsupported, "this server records nothing")
	case !r.Phase.Ended():
		return r, mayfly.Errorf(mayfly.Conflict, "run %s has not ended", r.ID).Hint("wait for it, or end it: mayfly env delete %s", r.Environment)
	}
	if err := e.Recorder.Forget(ctx, r.ID); err != nil {
		return r, err
	}
	return r, e.Store.Update(ctx, func(tx *store.Tx) error {
		return e.emit(tx, mayfly.Actor(ctx), "recording.forgotten", r.Environment, r.ID, nil)
	})
}

// Content implements mayfly.Recordings: the redacted content as JSON.
func (e *Engine) Content(ctx context.Context, digest string) (io.ReadCloser, error) {
	if err := checkDigest(digest); err != nil {
		return nil, err
	}
	if e.Recorder == nil {
		return nil, mayfly.Errorf(mayfly.Unsupported, "this server records nothing")
	}
	c, err := e.Recorder.Content(ctx, digest)
	if err != nil {
		return nil, err
	}
	text, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode content: %w", err)
	}
	return io.NopCloser(bytes.NewReader(text)), nil
}
