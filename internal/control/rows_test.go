package control

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/driver/drivertest"
	"mayfly.dev/mayfly/internal/store"
)

// comparer makes an environment in each place before it answers or fails.
type comparer struct {
	*drivertest.Memory
	err error
}

func (c *comparer) DiffRows(ctx context.Context, h driver.Handle, s driver.Spec, r mayfly.RowsRequest, places [2]driver.Handle) (io.ReadCloser, error) {
	for _, p := range places {
		if err := c.Create(ctx, p, driver.Spec{Template: s.Template, From: &mayfly.SnapshotRef{Environment: h.Environment, Snapshot: r.To}}); err != nil {
			return nil, err
		}
	}
	return io.NopCloser(strings.NewReader("no changes\n")), c.err
}

func TestComparisonLeavesNothingAndSaysWhyItFailed(t *testing.T) {
	e, m := start(t)
	c := &comparer{Memory: m.driver}
	e.Driver = c
	env, err := e.CreateEnvironment(t.Context(), *create())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := e.DiffRows(t.Context(), mayfly.RowsRequest{Environment: env.ID}); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("without a database: got = %v, want an error of kind %s", err, mayfly.Invalid)
	}
	err = e.change(t.Context(), env.ID, func(_ *store.Tx, env *environment) error {
		env.Spec.Services = []mayfly.LockedService{{Name: "db", Postgres: &mayfly.LockedPostgres{}}}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, fails := range []bool{false, true, false, true} {
		if c.err = nil; fails {
			c.err = mayfly.Errorf(mayfly.Conflict, "it is gone")
		}
		body, err := e.DiffRows(t.Context(), mayfly.RowsRequest{Environment: env.ID})
		if fails != (mayfly.KindOf(err) == mayfly.Conflict) || fails != (err != nil) {
			t.Fatalf("got = %v, want a failure: %v", err, fails)
		}
		if !fails {
			text, err := io.ReadAll(body)
			if string(text) != "no changes\n" || err != nil {
				t.Errorf("got = %q, %v", text, err)
			}
			body.Close()
		}
		m.awaitOne(env.ID)
	}
}

// awaitOne waits until the environment is all that is there, and has no
// snapshot.
func (m *machine) awaitOne(env string) {
	m.t.Helper()
	for range 500 {
		handles, err := m.driver.List(context.Background())
		if err != nil {
			m.t.Fatal(err)
		}
		held := 0
		err = m.store.View(context.Background(), func(tx *store.Tx) error {
			list, err := tx.ListOf(kindSnapshot, env)
			held = len(list)
			return err
		})
		if err != nil {
			m.t.Fatal(err)
		}
		if len(handles) == 1 && held == 0 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	m.t.Error("something of a comparison is left")
}
