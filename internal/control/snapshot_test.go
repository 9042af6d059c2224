package control

import (
	"testing"

	"mayfly.dev/mayfly"
)

func TestDeletedSnapshotIsGoneAndItsPlaceIsKept(t *testing.T) {
	e, _ := start(t)
	r := wait(t, e, startRun(t, e, create(), "", "write", "a", "1"))
	before := list(t, e, r.Environment)
	gone, err := e.DeleteSnapshot(t.Context(), r.Environment, "1")
	if err != nil || gone.DeletedAt.IsZero() || gone.Ready {
		t.Fatalf("got = %+v, %v, want one that is deleted", gone, err)
	}
	after := list(t, e, r.Environment)
	if len(after) != len(before) || !after[0].DeletedAt.Equal(gone.DeletedAt) {
		t.Errorf("got = %+v, want as many as before, the first deleted", after)
	}
	if _, err := mayfly.AfterStep(after, r.ID, 0); mayfly.KindOf(err) != mayfly.NotFound {
		t.Errorf("step 0: got = %v, want %s", err, mayfly.NotFound)
	}
	for name, use := range map[string]func() error{
		"delete":   func() error { _, err := e.DeleteSnapshot(t.Context(), r.Environment, "1"); return err },
		"rollback": func() error { _, err := e.Rollback(t.Context(), r.Environment, "1", ""); return err },
		"rollback of the run": func() error {
			_, err := e.Rollback(t.Context(), r.Environment, "", "")
			return err
		},
		"fork": func() error {
			_, err := e.CreateEnvironment(t.Context(), mayfly.CreateEnvironment{
				From: &mayfly.SnapshotRef{Environment: r.Environment, Snapshot: gone.ID}})
			return err
		},
		"hash": func() error { _, err := e.Hash(t.Context(), r.Environment, "1", ""); return err },
	} {
		if err := use(); mayfly.KindOf(err) != mayfly.NotFound {
			t.Errorf("%s: got = %v, want %s", name, err, mayfly.NotFound)
		}
	}
	if _, err := e.Graph(t.Context(), r.ID); err != nil {
		t.Errorf("graph: %v", err)
	}
	deleted := 0
	err = e.Events(t.Context(), mayfly.EventFilter{Environment: r.Environment}, func(event mayfly.Event) error {
		if event.Type == "snapshot.deleted" && event.Actor == mayfly.Actor(t.Context()) {
			deleted++
		}
		return nil
	})
	if err != nil || deleted != 1 {
		t.Errorf("got = %d events, %v, want 1", deleted, err)
	}
}

func list(t *testing.T, e *Engine, env string) []mayfly.Snapshot {
	t.Helper()
	all, err := e.Snapshots(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestSnapshotOfARunThatGoesOnIsNotDeleted(t *testing.T) {
	e, _ := start(t)
	r := startRun(t, e, create(), "", "sleep")
	if _, err := e.DeleteSnapshot(t.Context(), r.Environment, "1"); mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("got = %v, want %s", err, mayfly.Conflict)
	}
}
