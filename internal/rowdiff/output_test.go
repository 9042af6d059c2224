package rowdiff

import (
	"bytes"
	"encoding/json"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"mayfly.dev/mayfly"
)

func jsonOf(t testing.TB, d *Diff) string {
	t.Helper()
	var b bytes.Buffer
	if err := d.JSON(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	if !json.Valid(b.Bytes()) {
		t.Fatalf("not JSON: %.500s", b.String())
	}
	return b.String()
}

func TestRedactedColumnsAreNowhere(t *testing.T) {
	in := sharedInstance(t)
	from, to := in.pair(t, "CREATE TABLE person (id int PRIMARY KEY, email text, note text); INSERT INTO person VALUES (1, 'old@secret', 'a')",
		"UPDATE person SET email = 'new@secret', note = 'b'; INSERT INTO person VALUES (2, 'third@secret', 'c')")
	d := in.compareDBs(t, from, to, Options{Redact: []Rule{{Table: "pers*", Column: "email"}}, CountedBytes: 1 << 20})
	all := summaryOf(t, d) + jsonOf(t, d) + forward(t, d) + reverse(t, d)
	if strings.Contains(all, "@secret") {
		t.Errorf("a redacted value is shown:\n%s", all)
	}
	want := `{"op":"update","key":{"id":"1"},"old":{"email":{"redacted":true},"note":"a"},"new":{"email":{"redacted":true},"note":"b"}}`
	if !strings.Contains(all, want) || !strings.Contains(all, `"rows_before":1,"rows_after":2`) {
		t.Errorf("output = %s\nwant %s", all, want)
	}
	if out := in.psql(t, in.database(t, "template1"), forward(t, d)); !strings.Contains(out, "cannot script") {
		t.Errorf("the script says %q, want that it cannot be", out)
	}
	_, err := compare(t.Context(), d.from.conn, d.to.conn, Options{Redact: []Rule{{Column: "["}}})
	if mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("error of a bad rule = %v, want kind invalid", err)
	}
}

// psql runs a script as a person would, and returns what it says.
func (in *instance) psql(t testing.TB, db, script string) string {
	t.Helper()
	cmd := exec.Command(bin+"psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", in.dir, "-U", "postgres", "-d", db)
	cmd.Stdin = strings.NewReader(script)
	out, _ := cmd.CombinedOutput()
	return string(out)
}

func TestScriptForPsqlFailsOnAnotherState(t *testing.T) {
	in := sharedInstance(t)
	from, to := in.pair(t, `CREATE TABLE t (id int PRIMARY KEY, a text); INSERT INTO t VALUES (1, E'\\x :v \n'), (2, 'b')`,
		`UPDATE t SET a = E'\\. :id $$ ''q'' \n\\q' WHERE id = 1; DELETE FROM t WHERE id = 2; SELECT lo_from_bytea(4711, '\x00ff')`)
	d := in.compareDBs(t, from, to, in.dirs())
	script := forward(t, d)
	hangUp(d)
	db := in.database(t, from)
	if out := in.psql(t, db, script); out != "" {
		t.Errorf("psql says %q, want nothing", out)
	}
	if got, want := in.state(t, db), in.state(t, to); got != want {
		t.Errorf("the script makes another state: %s", firstDifference(got, want))
	}
	if out := in.psql(t, db, script); !strings.Contains(out, "this_is_the_expected_state") {
		t.Errorf("applied again: %q, want a failure", out)
	}
	if got, want := in.state(t, db), in.state(t, to); got != want {
		t.Errorf("a script that failed changed something: %s", firstDifference(got, want))
	}
}

func TestSummaryIsSafeOnATerminal(t *testing.T) {
	in := sharedInstance(t)
	from, to := in.pair(t, "CREATE TABLE \"e\x1b[2Jvil\u202e\" (\"c\r\" text)",
		"INSERT INTO \"e\x1b[2Jvil\u202e\" VALUES (E'\\x1b]0;title\\x07' || repeat('wide ☃', 100))\n;;\nCOMMENT ON TABLE \"e\x1b[2Jvil\u202e\" IS 'x'")
	got := summaryOf(t, in.compareDBs(t, from, to, in.dirs()))
	for line := range strings.Lines(got) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > summaryWidth {
			t.Errorf("line of %d characters: %s", n, line)
		}
	}
	if strings.ContainsAny(got, "\x1b\x07\r\u202e") || !strings.Contains(got, `\u001b`) {
		t.Errorf("summary = %q, want escapes", got)
	}
}

// Casts that a user of the database defines are not for who compares it.
func TestNothingOfTheDatabaseIsRun(t *testing.T) {
	in := sharedInstance(t)
	from, to := in.pair(t, `CREATE TYPE e AS ENUM ('a', 'b'); CREATE TABLE log (x text); CREATE TABLE t (id int, v e);
		CREATE FUNCTION boom(e) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''run''; END';
		CREATE FUNCTION boom(t) RETURNS text LANGUAGE plpgsql AS 'BEGIN RAISE EXCEPTION ''run''; END';
		CREATE CAST (e AS text) WITH FUNCTION boom(e) AS IMPLICIT; CREATE CAST (t AS text) WITH FUNCTION boom(t) AS IMPLICIT;
		CREATE FUNCTION public.format(text, VARIADIC "any") RETURNS text LANGUAGE internal AS 'text_format_nv';
		ALTER TABLE t ENABLE ROW LEVEL SECURITY; ALTER TABLE t FORCE ROW LEVEL SECURITY;
		INSERT INTO t VALUES (1, 'a')`, "UPDATE t SET v = 'b'")
	for _, o := range []Options{{}, in.dirs()} {
		if d := in.compareDBs(t, from, to, o); len(d.Tables) != 1 || d.Tables[0].Changed() != 2 || !strings.Contains(jsonOf(t, d), `"v":"b"`) {
			t.Errorf("summary = %s", summaryOf(t, d))
		}
	}
}

// Large values are read in pieces: MAYFLY_VALUE_MB has their size, 20 if not
// set.
func TestLargeValuesGoThroughScripts(t *testing.T) {
	in := sharedInstance(t)
	size := number("MAYFLY_VALUE_MB", 6) << 20
	sized := strings.NewReplacer("SIZE", strconv.Itoa(size)).Replace
	from, to := in.pair(t, "CREATE TABLE big (id int PRIMARY KEY, t text, b bytea, j jsonb, k text); INSERT INTO big VALUES (1, 'small', 'x', '{}', 'k'), (2, 'two', 'y', '1', 'k')",
		sized(`UPDATE big SET t = repeat('it''s ü ', SIZE / 8) || 'end' WHERE id = 1; UPDATE big SET b = decode(repeat('00ff27', SIZE / 3), 'hex') WHERE id = 2;
		INSERT INTO big VALUES (3, 'x', NULL, jsonb_build_object('long', repeat('y\"', SIZE / 20)), repeat('z', SIZE / 4))`))
	o := in.dirs()
	o.MaxValue = 4096
	d := in.compareDBs(t, from, to, o)
	if got := jsonOf(t, d); len(got) > 10000 || !strings.Contains(got, `"t":{"sha256":`) {
		t.Errorf("JSON has %d bytes: %.300s, want sizes and digests", len(got), got)
	}
	script := forward(t, d)
	hangUp(d)
	db := in.database(t, from)
	execSQL(t, in.connect(t, db), script)
	again := in.compareDBs(t, db, to, Options{})
	if !again.Empty() {
		t.Errorf("differences are left: %s", summaryOf(t, again))
	}
}
