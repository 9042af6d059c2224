//go:build linux

package postgres

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"mayfly.dev/mayfly"
)

func TestBaselineIsStoppedTrimmedAndWithoutRemains(t *testing.T) {
	dir := baseline(t)
	for _, name := range []string{"postmaster.pid", "postmaster.opts", "postgresql.auto.conf.tmp"} {
		if exists(filepath.Join(dir, name)) {
			t.Errorf("%s is in the baseline", name)
		}
	}
	segments, err := filepath.Glob(filepath.Join(dir, "pg_wal", "0*"))
	must(t, err)
	if len(segments) != 1 {
		t.Errorf("segments of the log = %q, want one", segments)
	}
	beside, err := os.ReadDir(filepath.Dir(dir))
	must(t, err)
	if len(beside) != 1 {
		t.Errorf("beside the baseline = %v, want nothing", beside)
	}
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if info, _ := d.Info(); err == nil && info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		return err
	}))
}

func TestFailingSQLNamesFileLineAndStatementAndLeavesNothing(t *testing.T) {
	o := options(t, nil)
	o.SQL = []string{
		file(t, "001_good.sql", "CREATE TABLE t (a int);\n"),
		file(t, "002_bad.sql", "INSERT INTO t VALUES (1);\n-- a comment\n\nINSERT INTO t\n  VALUES ('not a number');\nINSERT INTO t VALUES (2);\n"),
	}
	err := prepareIn(t.Context(), o)
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range []string{"002_bad.sql:4:", "not a number", "INSERT INTO t\n  VALUES", "invalid input syntax"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("error = %v, want %q in it", err, part)
		}
	}
	if mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("kind = %v, want invalid", mayfly.KindOf(err))
	}
	left, err := os.ReadDir(filepath.Dir(o.Dir))
	if err != nil || len(left) > 0 {
		t.Errorf("left = %v, %v, want nothing", left, err)
	}
}

func TestWhatMaskingOverwritesIsInNoFile(t *testing.T) {
	const marker = "Zq7secretmarker"
	o := options(t, nil)
	o.SQL = []string{file(t, "data.sql", `CREATE TABLE person (id int PRIMARY KEY, email text);
		CREATE INDEX ON person (email);
		INSERT INTO person SELECT n, '`+marker+`' || n % 10 FROM generate_series(1, 5000) n; ANALYZE person;`)}
	o.Masking = []string{file(t, "mask.sql", "UPDATE person SET email = 'masked' || id;")}
	dir := prepare(t, o)
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte(marker)) {
			t.Errorf("%s has a value that was masked", strings.TrimPrefix(path, dir))
		}
		return err
	}))
	r := start(t, instance(t, dir))
	if got := query(t, r, "SELECT count(*) FROM person WHERE email LIKE 'masked%'"); got != "5000" {
		t.Errorf("masked rows = %s, want 5000", got)
	}
}

// awkward is a database with much of what dumps hold.
const awkward = `
CREATE ROLE clerk NOLOGIN; CREATE ROLE "Odd ""Röle" NOLOGIN;
CREATE SCHEMA "My Schema";
CREATE TABLE "My Schema"."Tänzer" (id serial PRIMARY KEY, note text, big bytea, at timestamptz DEFAULT now());
INSERT INTO "My Schema"."Tänzer" (note) VALUES (E'line one\n\\connect elsewhere\nALTER TABLE x OWNER TO y;\nCOPY t FROM stdin;\n\\.\ntab\there'), ('two'), (NULL);
ALTER TABLE "My Schema"."Tänzer" OWNER TO clerk;
GRANT SELECT ON "My Schema"."Tänzer" TO "Odd ""Röle";
CREATE TABLE secret (id int, who name DEFAULT current_user);
ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON secret FOR SELECT TO clerk, "Odd ""Röle"
  USING (who = current_user
    OR true);
CREATE FUNCTION f() RETURNS text LANGUAGE plpgsql AS $body$
BEGIN
  -- it's a comment
  RETURN 'ALTER TABLE a OWNER TO b;
ALTER TABLE c OWNER TO d;';
END $body$;
CREATE FUNCTION g(n int) RETURNS int LANGUAGE sql BEGIN ATOMIC
  SELECT n + 1;
END;
CREATE UNLOGGED TABLE scratch (a int); INSERT INTO scratch VALUES (1);
CREATE EXTENSION postgres_fdw;
CREATE SERVER other FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host 'production.example.com');
CREATE USER MAPPING FOR clerk SERVER other OPTIONS (user 'u', password 'hunter2');
CREATE FUNCTION audit() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN END';
CREATE EVENT TRIGGER audit ON ddl_command_end EXECUTE FUNCTION audit();
ALTER EVENT TRIGGER audit ENABLE ALWAYS;
SELECT lo_from_bytea(4711, 'large');
CREATE AGGREGATE total(int) (SFUNC = int4pl, STYPE = int);
CREATE DOMAIN email AS text CHECK (VALUE LIKE '%@%');
CREATE TYPE pair AS (a int, b email);
CREATE OPERATOR ### (LEFTARG = int, RIGHTARG = int, FUNCTION = int4pl);
CREATE TABLE part (k int, v text) PARTITION BY RANGE (k);
CREATE TABLE part_1 PARTITION OF part FOR VALUES FROM (0) TO (100);
INSERT INTO part VALUES (1, 'one');
CREATE MATERIALIZED VIEW mv AS SELECT * FROM part;
ALTER DEFAULT PRIVILEGES FOR ROLE clerk IN SCHEMA public GRANT SELECT ON TABLES TO "Odd ""Röle";
CREATE SUBSCRIPTION sub CONNECTION 'host=production.example.com' PUBLICATION p WITH (connect = false);
`

// source is a running server with a database as others have them: its
// superuser is called postgres, and it logs in without a password.
func source(t *testing.T) Running {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "source")
	o := Options{Install: installed(t), Database: "shop", UID: testUID, GID: testUID, Inside: "/db",
		Workshop: newWorkshop(Dir{Host: filepath.Dir(dir), Inside: "/db"})}
	must(t, os.MkdirAll(filepath.Join(dir, "socket"), 0o755))
	must(t, os.MkdirAll(filepath.Join(dir, "data"), 0o700))
	for _, d := range []string{"socket", "data"} {
		must(t, os.Chown(filepath.Join(dir, d), testUID, testUID))
	}
	p := &preparation{Options: o, work: dir}
	must(t, os.Mkdir(filepath.Join(dir, "input"), 0o755))
	must(t, p.copyTree(t.Context(), inputs{}, cluster(t, "postgres"), "."))
	i := Instance{Install: o.Install, Database: "postgres", Secret: secret, NoSync: true,
		Data: Dir{Host: p.data(), Inside: p.inside("data")}, Socket: Dir{Host: filepath.Join(dir, "socket"), Inside: p.inside("socket")}}
	process, err := o.Workshop.Launch(t.Context(), Command{Argv: append(i.arguments(), "-c", "max_prepared_transactions=5",
		"-c", "wal_level=logical", "-c", "allow_in_place_tablespaces=on"), Env: environment(), Dir: p.inside("data")})
	must(t, err)
	r := Running{Instance: i, Process: process}
	t.Cleanup(func() { r.Kill(t.Context()) })
	must(t, r.whileAlive(t.Context(), r.awaitStatus))
	r.Database = "shop"
	for _, sql := range []string{"CREATE DATABASE shop", "CREATE DATABASE billing"} {
		asPostgres(t, r, "postgres", sql)
	}
	return r
}

func asPostgres(t *testing.T, r Running, database, sql string) string {
	t.Helper()
	conn, err := login(t.Context(), r.Instance, "postgres", "", database)
	must(t, err)
	defer conn.Close(t.Context())
	return scalar(t, conn, sql)
}

// dumped runs pg_dump on a source.
func dumped(t *testing.T, r Running, args ...string) []byte {
	t.Helper()
	cmd := exec.Command(r.Install.program("pg_dump"), append([]string{"-h", filepath.Dir(r.Path()), "-U", "postgres", "shop"}, args...)...)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("pg_dump: %v: %s", err, &errors)
	}
	return out
}

func TestEverySourceGivesTheSameBaseline(t *testing.T) {
	src := source(t)
	script := file(t, "awkward.sql", awkward)
	cmd := exec.Command(src.Install.program("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", filepath.Dir(src.Path()), "-U", "postgres", "-f", script, "shop")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("psql: %v: %s", err, out)
	}
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, b, 0o600))
		return path
	}
	directory := filepath.Join(dir, "directory")
	dumped(t, src, "-Fd", "-f", directory)
	encoder, err := zstd.NewWriter(nil)
	must(t, err)
	var zipped bytes.Buffer
	z := gzip.NewWriter(&zipped)
	z.Write(dumped(t, src))
	must(t, z.Close())
	server := Server{Host: filepath.Dir(src.Path()), Port: "5432", User: "postgres", Database: "shop"}
	for _, c := range []struct {
		name   string
		source Source
	}{
		{"plain", Source{Dump: write("plain.sql.gz", zipped.Bytes())}},
		{"inserts", Source{Dump: write("inserts.sql", dumped(t, src, "--inserts", "-C", "-c"))}},
		{"custom", Source{Dump: write("custom.zst", encoder.EncodeAll(dumped(t, src, "-Fc"), nil))}},
		{"tar", Source{Dump: write("tar", dumped(t, src, "-Ft"))}},
		{"directory", Source{Dump: directory}},
		{"server", Source{Server: &server}},
		{"backup", Source{Server: &server, Physical: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var log bytes.Buffer
			o := options(t, &log)
			o.Source = c.source
			checkAwkward(t, start(t, instance(t, prepare(t, o))), c.source, log.String())
		})
	}
	t.Run("data directory", func(t *testing.T) {
		must(t, src.Kill(t.Context())) // as after a crash
		var log bytes.Buffer
		o := options(t, &log)
		o.Cloner = cloner(&o, src.Data.Host)
		checkAwkward(t, start(t, instance(t, prepare(t, o))), Source{Directory: src.Data.Host}, log.String())
	})
}

// checkAwkward holds a baseline of the awkward database to its content and to
// what must have been switched off.
func checkAwkward(t *testing.T, r Running, source Source, log string) {
	t.Helper()
	conn, err := r.Connect(t.Context(), r.Database)
	must(t, err)
	defer conn.Close(t.Context())
	for sql, want := range map[string]string{
		`SELECT md5(note) FROM "My Schema"."Tänzer" WHERE id = 1`: "",
		`SELECT count(*) FROM "My Schema"."Tänzer"`:               "3",
		`SELECT f()`:   "ALTER TABLE a OWNER TO b;\nALTER TABLE c OWNER TO d;",
		`SELECT g(41)`: "42",
		`SELECT total(n) FROM generate_series(1, 4) n`: "10",
		`SELECT 40 ### 2`:                                                 "42",
		`SELECT v FROM mv`:                                                "one",
		`SELECT convert_from(lo_get(4711), 'UTF8')`:                       "large",
		`SELECT count(*) FROM pg_user_mappings`:                           "0",
		`SELECT count(*) FROM pg_subscription`:                            "0",
		`SELECT string_agg(evtenabled::text, '') FROM pg_event_trigger`:   "O",
		`SELECT string_agg(polroles::regrole[]::text, '') FROM pg_policy`: `{clerk,"\"Odd \"\"Röle\""}`,
		`SELECT string_agg(DISTINCT pg_get_userbyid(relowner), ' ') FROM pg_class WHERE relnamespace IN ('public'::regnamespace, '"My Schema"'::regnamespace)`: "app",
		`SELECT string_agg(DISTINCT pg_get_userbyid(typowner), ' ') FROM pg_type WHERE typname IN ('pair', 'email', '_email')`:                                 "app",
		`SELECT string_agg(DISTINCT pg_get_userbyid(proowner), ' ') FROM pg_proc WHERE proname IN ('f', 'g', 'total', 'audit')`:                                "app",
		`SELECT pg_get_userbyid(lomowner) FROM pg_largeobject_metadata`:                                                                                        "app",
		`SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'shop'`:                                                                               "app",
		`SELECT string_agg(rolname, ' ' ORDER BY rolname) FROM pg_roles WHERE rolsuper`:                                                                        "mayfly",
		`SELECT string_agg(datname, ' ' ORDER BY datname) FROM pg_database`:                                                                                    "postgres shop template0 template1",
		`SELECT count(*) FROM pg_authid WHERE rolname <> 'mayfly' AND rolpassword IS NOT NULL`:                                                                 "0",
		`SELECT count(*) FROM pg_replication_slots`:                                                                                                            "0",
	} {
		got := ask(t, conn, sql)
		if strings.HasPrefix(sql, "SELECT md5") {
			want = ask(t, conn, `SELECT md5(E'line one\n\\connect elsewhere\nALTER TABLE x OWNER TO y;\nCOPY t FROM stdin;\n\\.\ntab\there')`)
		}
		if got != want {
			t.Errorf("%s = %q, want %q", sql, got, want)
		}
	}
	said := []string{"table public.scratch is unlogged", "subscription sub is not", "foreign server other is switched off"}
	if source.physical() {
		said = append(said, `the superuser "postgres"`, `database "billing" is not`)
	} else {
		said = append(said, "the role clerk does not exist", `the role "Odd ""Röle" does not exist`, "what belonged to the role clerk")
	}
	for _, part := range said {
		if !strings.Contains(log, part) {
			t.Errorf("log has no %q:\n%s", part, log)
		}
	}
	if strings.Contains(log, "hunter2") {
		t.Errorf("the log has a password:\n%s", log)
	}
}

func TestSourcesThatCannotBeUsedSayWhy(t *testing.T) {
	in := installed(t)
	cluster := file(t, "all.sql", "--\n-- PostgreSQL database cluster dump\n--\n")
	newer := file(t, "newer.sql", "--\n-- PostgreSQL database dump\n--\n\n-- Dumped from database version 17.2\n-- Dumped by pg_dump version 17.2\n")
	wrong := t.TempDir()
	must(t, os.WriteFile(filepath.Join(wrong, "PG_VERSION"), []byte("13\n"), 0o600))
	prepared := copyOf(t, baseline(t))
	must(t, os.WriteFile(filepath.Join(prepared, "pg_twophase", "000002F1"), []byte("x"), 0o600))
	used := start(t, instance(t, copyOf(t, baseline(t)))).Data.Host
	for _, c := range []struct {
		name   string
		change func(*Options)
		kind   mayfly.Kind
		parts  []string
	}{
		{"cluster dump", func(o *Options) { o.Source.Dump = cluster }, mayfly.Invalid, []string{"whole cluster"}},
		{"newer dump", func(o *Options) { o.Source.Dump = newer }, mayfly.Invalid, []string{"17", fmt.Sprint(in.Major)}},
		{"damaged archive", func(o *Options) { o.Source.Dump = file(t, "damaged", "PGDMP\x01\x0e\x00\x04\x08\x01garbage") }, mayfly.Invalid, nil},
		{"cut gzip", func(o *Options) { o.Source.Dump = file(t, "cut.gz", "\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03abc") }, "", []string{"cut.gz"}},
		{"missing", func(o *Options) { o.Source.Dump = "/nonexistent/dump" }, mayfly.Invalid, []string{"/nonexistent/dump"}},
		{"wrong major", func(o *Options) { o.Cloner = cloner(o, wrong) }, mayfly.Invalid, []string{"13", fmt.Sprint(in.Major)}},
		{"no data directory", func(o *Options) { o.Cloner = cloner(o, t.TempDir()) }, mayfly.Invalid, []string{"PG_VERSION"}},
		{"prepared transactions", func(o *Options) { o.Cloner = cloner(o, prepared) }, mayfly.Conflict, []string{"prepared transactions"}},
		{"in use", func(o *Options) { o.Cloner = cloner(o, used) }, mayfly.Conflict, []string{"uses the data directory"}},
		{"no such database", func(o *Options) { o.Cloner = cloner(o, baseline(t)); o.Database = "absent" }, mayfly.Invalid, []string{"absent", "shop"}},
		{"unreachable", func(o *Options) {
			o.Source.Server = &Server{Host: "127.0.0.1", Port: "1", User: "u", Password: "hunter2", Database: "d"}
		}, mayfly.Unavailable, []string{"127.0.0.1:1"}},
		{"missing extension", func(o *Options) { o.Extensions = []string{"vector"} }, mayfly.Unsupported, []string{"vector"}},
		{"missing extension in SQL", func(o *Options) { o.SQL = []string{file(t, "e.sql", "CREATE EXTENSION vector;")} }, mayfly.Unsupported, []string{"vector"}},
		{"psql command", func(o *Options) { o.SQL = []string{file(t, "c.sql", "\n\\frobnicate\n")} }, mayfly.Invalid, []string{"c.sql:2"}},
		{"setting", func(o *Options) { o.Settings = map[string]string{"archive_command": "curl"} }, mayfly.Invalid, []string{"archive_command"}},
		{"two sources", func(o *Options) { o.Source = Source{Dump: cluster, Directory: wrong} }, mayfly.Invalid, []string{"one source"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := options(t, nil)
			c.change(&o)
			err := prepareIn(t.Context(), o)
			if err == nil {
				t.Fatal("no error")
			}
			if c.kind != "" && mayfly.KindOf(err) != c.kind {
				t.Errorf("kind of %v = %v, want %v", err, mayfly.KindOf(err), c.kind)
			}
			for _, part := range append(c.parts, "") {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("error = %v, want %q in it", err, part)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Errorf("error = %v has the password", err)
			}
			if left, _ := os.ReadDir(filepath.Dir(o.Dir)); len(left) > 0 {
				t.Errorf("left = %v, want nothing", left)
			}
		})
	}
}
