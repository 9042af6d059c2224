package rowdiff

import (
	"context"
	"path/filepath"
	"testing"

	"mayfly.dev/mayfly"
)

// ownInstance is one that a test may clone.
func ownInstance(t testing.TB) *instance {
	t.Helper()
	needPostgres(t)
	dir := filepath.Join(tempDir(t), "d")
	if err := initdb(dir); err != nil {
		t.Fatal(err)
	}
	in, err := start(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(in.stop)
	return in
}

func compareInstances(t testing.TB, from, to *instance, o Options) *Diff {
	t.Helper()
	d, err := compare(t.Context(), from.connect(t, "postgres"), to.connect(t, "postgres"), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.Close)
	return d
}

// A transaction that is open when the clone is made leaves pages that are
// equal on both sides, and rows that are not.
func TestTransactionOpenAtTheCloneIsFound(t *testing.T) {
	in := ownInstance(t)
	c := in.connect(t, "postgres")
	execSQL(t, c, "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT g, 'x' FROM generate_series(1, 5000) g; CREATE TABLE other AS SELECT generate_series(1, 5000)")
	execSQL(t, c, "VACUUM FREEZE t")
	execSQL(t, c, "VACUUM FREEZE other")
	open := in.connect(t, "postgres")
	execSQL(t, open, "BEGIN; INSERT INTO t VALUES (9001, 'late'); SAVEPOINT s; DELETE FROM t WHERE id = 77; RELEASE s; UPDATE t SET a = 'y' WHERE id = 4000")
	old := in.clone(t)
	execSQL(t, open, "COMMIT")

	d := compareInstances(t, old, in, Options{FromDir: old.root, ToDir: in.root})
	if len(d.Tables) != 1 || d.Tables[0].Inserted != 1 || d.Tables[0].Deleted != 1 || d.Tables[0].Updated != 1 {
		t.Fatalf("summary = %swant one row inserted, one deleted, one updated in t", summaryOf(t, d))
	}
	// The other way round, as after a rollback.
	back := compareInstances(t, in, old, Options{FromDir: in.root, ToDir: old.root})
	if len(back.Tables) != 1 || back.Tables[0].Changed() != 3 {
		t.Errorf("summary of the reverse = %s", summaryOf(t, back))
	}
}

func TestOnlyChangedTuplesAreRead(t *testing.T) {
	in := ownInstance(t)
	c := in.connect(t, "postgres")
	execSQL(t, c, "CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t SELECT g, repeat('x', 500) FROM generate_series(1, 5000) g; CREATE TABLE quiet AS SELECT 1 AS a")
	old := in.clone(t)
	execSQL(t, c, "UPDATE t SET a = 'y' WHERE id = 2500")
	d := compareInstances(t, old, in, Options{FromDir: old.root, ToDir: in.root})
	if len(d.Tables) != 1 || d.Tables[0].Updated != 1 || d.Tables[0].Changed() != 1 {
		t.Fatalf("summary = %s", summaryOf(t, d))
	}
	b, err := d.newBlocks(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	table := newTable(d.from.tables[name{"public", "t"}], d.to.tables[name{"public", "t"}])
	spans, err := b.changed(t.Context(), table)
	if err != nil {
		t.Fatal(err)
	}
	places := tid(0)
	for _, s := range spans {
		places += s.end - s.begin
	}
	if places == 0 || places > 32 {
		t.Errorf("places to look at = %d, want 1 to 32 of some 5000", places)
	}

	t.Run("wrong directory", func(t *testing.T) {
		_, err := compare(t.Context(), old.connect(t, "postgres"), in.connect(t, "postgres"), Options{FromDir: in.root, ToDir: old.root})
		if mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("error = %v, want one of kind invalid", err)
		}
	})
	t.Run("rewritten meanwhile", func(t *testing.T) {
		truncate := func(ctx context.Context, c Conn, args ...string) ([]byte, error) {
			if c.Config().Host == in.dir {
				execSQL(t, in.connect(t, "postgres"), "TRUNCATE quiet")
			}
			return noObjects(ctx, nil)
		}
		_, err := compare(t.Context(), old.connect(t, "postgres"), in.connect(t, "postgres"),
			Options{FromDir: old.root, ToDir: in.root, Dump: truncate})
		if mayfly.KindOf(err) != mayfly.Conflict {
			t.Errorf("error = %v, want one of kind conflict", err)
		}
	})
}
