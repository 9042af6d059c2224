package rowdiff

import (
	"bytes"
	"strings"
	"testing"
)

func summaryOf(t testing.TB, d *Diff) string {
	t.Helper()
	var b bytes.Buffer
	if err := d.Summary(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// change makes a database with some SQL, and another one from it with more.
func (in *instance) pair(t testing.TB, setup, change string) (from, to string) {
	t.Helper()
	from = in.database(t, "template1")
	c := in.connect(t, from)
	execSQL(t, c, setup)
	c.Close(t.Context())
	to = in.database(t, from)
	c = in.connect(t, to)
	for _, s := range strings.Split(change, "\n;;\n") {
		execSQL(t, c, s)
	}
	c.Close(t.Context())
	return from, to
}

func TestCompareFindsEveryKindOfRowChange(t *testing.T) {
	in := sharedInstance(t)
	from, to := in.pair(t, `CREATE TABLE t (id int PRIMARY KEY, name text, n int);
		INSERT INTO t SELECT g, 'row ' || g, g FROM generate_series(1, 1000) g;
		CREATE TABLE same (a int); INSERT INTO same SELECT generate_series(1, 10)`,
		`INSERT INTO t VALUES (2000, 'new', NULL); DELETE FROM t WHERE id = 7; UPDATE t SET name = 'changed' WHERE id = 500;
		UPDATE t SET n = n WHERE id = 9`)
	for mode, o := range map[string]Options{"rows": {}, "files": in.dirs()} {
		t.Run(mode, func(t *testing.T) {
			d := in.roundTrip(t, from, to, o)
			if len(d.Tables) != 1 {
				t.Fatalf("tables = %d, want 1", len(d.Tables))
			}
			got := d.Tables[0]
			if got.Inserted != 1 || got.Deleted != 1 || got.Updated != 1 {
				t.Errorf("inserted, deleted, updated = %d, %d, %d, want 1 each", got.Inserted, got.Deleted, got.Updated)
			}
		})
	}
	d := in.compareDBs(t, from, to, in.dirs())
	want := `t: 1 inserted, 1 deleted, 1 updated
  + id=2000, name=new, n=null
  - id=7, name=row 7, n=7
  ~ id=500  name: row 500 → changed
`
	if got := summaryOf(t, d); got != want {
		t.Errorf("summary = %s\nwant %s", got, want)
	}
}

// Who writes to a large object while another removes it leaves pages of an
// object that is not there.
func TestPagesOfRemovedLargeObjectsAreNoObject(t *testing.T) {
	in := sharedInstance(t)
	from, to := in.pair(t, `SELECT lo_from_bytea(4711, decode(repeat('ab', 3000), 'hex')), lo_from_bytea(4712, decode(repeat('cd', 9000), 'hex'));
		DELETE FROM pg_largeobject_metadata WHERE oid = 4711`,
		`UPDATE pg_largeobject SET data = '\x01' WHERE loid = 4711 AND pageno = 1; DELETE FROM pg_largeobject_metadata WHERE oid = 4712;
		UPDATE pg_largeobject SET pageno = 9 WHERE loid = 4712 AND pageno = 0`)
	d := in.roundTrip(t, from, to, in.dirs())
	if len(d.LargeObjects) != 1 || d.LargeObjects[0].OID != 4712 || d.LargeObjects[0].NewSize != -1 {
		t.Errorf("got = %+v, want that one is gone", d.LargeObjects)
	}
}
