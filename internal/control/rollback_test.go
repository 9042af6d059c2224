package control

import (
	"testing"

	"mayfly.dev/mayfly"
)

func TestRollbackOfOneSideSaysWhatItCannot(t *testing.T) {
	e, m := start(t)
	r := wait(t, e, startRun(t, e, create(), "", "write", "a", "1"))
	m.driver.Write(r.Environment, "db/x", "1")
	snap, err := e.CreateSnapshot(t.Context(), r.Environment, "")
	if err != nil {
		t.Fatal(err)
	}
	m.driver.Write(r.Environment, "a", "2")
	m.driver.Write(r.Environment, "db/x", "2")
	for _, side := range []mayfly.Side{mayfly.DatabaseSide, "rows"} {
		if _, err := e.Rollback(t.Context(), r.Environment, snap.ID, side); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%s of an environment without services: got = %v, want kind %s", side, err, mayfly.Invalid)
		}
	}
	if _, err := e.Rollback(t.Context(), r.Environment, snap.ID, mayfly.FilesSide); err != nil {
		t.Fatal(err)
	}
	if a, x := m.driver.Read(r.Environment, "a"), m.driver.Read(r.Environment, "db/x"); a != "1" || x != "2" {
		t.Errorf("got = %q %q, want the old file and the new data", a, x)
	}
}
