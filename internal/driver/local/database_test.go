package local

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/volume"
)

const shop = `
  db:
    postgres: 15
    database: shop
    baseline:
      sql: [schema.sql, "migrations/*.sql"]
    extensions: [pgcrypto]
    settings: {work_mem: 8MB}
`

var shopFiles = map[string]string{
	"schema.sql":       "CREATE TABLE customer (id int PRIMARY KEY, name text);\nINSERT INTO customer SELECT n, 'c' || n FROM generate_series(1, 100) n;\n",
	"migrations/1.sql": "ALTER TABLE customer ADD email text;\n",
}

// needPostgres skips a test where Postgres is missing.
func needPostgres(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes mounts, namespaces and cgroups")
	}
	if found, _ := filepath.Glob("/usr/lib/postgresql/15/bin/postgres"); found == nil {
		t.Skip("needs Postgres: apt-get install postgresql-15")
	}
}

// keyed is open with a key for passwords.
func keyed(t testing.TB) *Driver {
	t.Helper()
	d := open(t, volume.Btrfs)
	d.key = []byte("a key of the tests, never anywhere else")
	return d
}

func TestDatabaseFollowsSnapshotRollbackAndFork(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	l, err := templateOf(t, d, shop, shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	p.want("psql -Atc 'SELECT count(*), count(email) FROM customer; SHOW work_mem'", "100|0\n8MB")
	p.want(`psql -At "$DATABASE_URL" -c 'SELECT current_database(), left(session_user, 4), current_user, rolsuper FROM pg_roles WHERE rolname = session_user'`, "shop|run-|owner|f")
	p.want("psql -qAtc 'CREATE TABLE mine (n int); DROP TABLE mine' && psql -Atc \"SELECT length(crypt('x', gen_salt('bf')))\"", "60")
	p.want("psql -h /var/lib/mayfly-db/.db -Atc 'SELECT 1'", "1")
	p.snapshot("one")
	p.want("psql -qc 'DROP TABLE customer' && rm schema.sql && echo gone", "gone")
	p.snapshot("two")
	p.rollback("one")
	p.want("psql -Atc 'SELECT count(*) FROM customer'; ls schema.sql", "100\nschema.sql")
	fork := enter(t, d, l, &mayfly.SnapshotRef{Environment: p.h.Environment, Snapshot: "one"})
	fork.want("psql -qAtc \"DELETE FROM customer WHERE id > 10\" -c 'SELECT count(*) FROM customer'", "10")
	p.want("psql -Atc 'SELECT count(*) FROM customer'", "100")
	other := enter(t, d, l, nil)
	other.want("psql -Atc 'SELECT count(*) FROM customer'", "100")
}

func TestDatabaseIsTakenOverAndRecovers(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	l, err := templateOf(t, d, shop, shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	first, err := d.StartService(t.Context(), p.h, p.s, "db")
	if err != nil {
		t.Fatal(err)
	}
	again, err := d.StartService(t.Context(), p.h, p.s, "db")
	if again != first || err != nil {
		t.Errorf("got = %s %v, want the process %s", again, err, first)
	}
	p.want("psql -qAtc 'UPDATE customer SET email = name' -c 'SELECT count(email) FROM customer'", "100")
	if err := d.SignalProcess(t.Context(), p.h, first, 9); err != nil {
		t.Fatal(err)
	}
	if _, err := d.WaitProcess(t.Context(), p.h, first); err != nil {
		t.Fatal(err)
	}
	if again, err = d.StartService(t.Context(), p.h, p.s, "db"); err != nil || again == first {
		t.Fatalf("got = %s %v, want another process", again, err)
	}
	p.want("psql -Atc 'SELECT count(email) FROM customer'", "100")
}

func TestAgentHasNoWayOutOfTheDatabase(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	l, err := templateOf(t, d, shop, shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	for _, try := range []string{
		`psql -c "COPY customer TO PROGRAM 'id'"`, `psql -c "SELECT pg_read_file('/etc/passwd')"`, `psql -c "CREATE EXTENSION file_fdw"`,
		`psql -c "ALTER ROLE CURRENT_USER SUPERUSER"`, `psql -c "SET ROLE mayfly"`, `psql -c "LOAD '/tmp/x.so'"`, "psql -U mayfly -c 'SELECT 1'",
		"psql -h /var/lib/mayfly-db/.db -U mayfly -c 'SELECT 1'", "ls /var/lib/mayfly-db/db", "pkill -9 postgres", "touch /var/lib/mayfly-db/.db/x",
	} {
		if said, code := p.sh(try + " 2>&1"); code == 0 {
			t.Errorf("%s: got = %q, want a refusal", try, said)
		}
	}
	p.want("psql -Atc 'SELECT count(*) FROM customer'", "100")
}

func TestBaselineThatFailsLeavesNothing(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	broken := map[string]string{"schema.sql": "CREATE TABLE a (n int);\n\nINSERT INTO b\nVALUES (1);\n", "migrations/1.sql": "SELECT 1;\n"}
	for name, c := range map[string]struct {
		services string
		files    map[string]string
		want     []string
	}{
		"statement": {shop, broken, []string{"schema.sql:3", `relation "b" does not exist`, "INSERT INTO b"}},
		"version":   {strings.Replace(shop, "postgres: 15", "postgres: 14", 1), shopFiles, []string{"14", "15"}},
		"extension": {strings.Replace(shop, "pgcrypto", "postgis", 1), shopFiles, []string{`"postgis"`, "apt-get install postgresql-15-postgis-3"}},
		"setting":   {strings.Replace(shop, "work_mem: 8MB", "archive_command: x", 1), shopFiles, []string{"archive_command"}},
	} {
		l, err := templateOf(t, d, c.services, c.files)
		var e *mayfly.Error
		if !errors.As(err, &e) || e.Kind == mayfly.Internal || e.Fix == "" {
			t.Errorf("%s: got = %v, want an error with a hint", name, err)
			continue
		}
		for _, part := range c.want {
			if !strings.Contains(err.Error()+" "+e.Fix, part) {
				t.Errorf("%s: got = %q, hint %q, want %q", name, err, e.Fix, part)
			}
		}
		if there, err := d.HasTemplate(t.Context(), l.Template); there || err != nil {
			t.Errorf("%s: the template is there (%v)", name, err)
		}
	}
	if volumes, err := d.pool.Volumes(t.Context()); len(volumes) > 0 || err != nil {
		t.Errorf("left: %v %v", volumes, err)
	}
}

// The data alone goes back, and what runs keeps its connection string.
func TestDatabaseAloneIsRolledBackUnderALiveRun(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	l, err := templateOf(t, d, shop, shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	p.snapshot("one")
	p.want("psql -qc 'DROP TABLE customer' && echo two > f", "")
	run := p.begin("psql -Atc 'SELECT to_regclass($$customer$$) IS NULL'; touch asked; until [ -e go ]; do sleep 0.01; done; psql -Atc 'SELECT count(*) FROM customer'; cat f")
	p.want("until [ -e asked ]; do sleep 0.01; done", "")
	p.snapshot("two")
	began := time.Now()
	if err := d.Rollback(t.Context(), p.h, p.s, "one", mayfly.DatabaseSide); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped and put back in %v", time.Since(began))
	p.start()
	t.Logf("rolled back in %v", time.Since(began))
	p.want("touch go", "")
	if said, code := p.end(run); said != "t\n100\ntwo" || code != 0 {
		t.Errorf("got = %q (status %d), want the old rows and the new file", said, code)
	}
	if err := errors.Join(d.Stop(t.Context(), p.h), d.Rollback(t.Context(), p.h, p.s, "one", mayfly.FilesSide)); err != nil {
		t.Fatal(err)
	}
	p.start()
	p.want("ls f 2>/dev/null; psql -Atc 'SELECT count(*) FROM customer'", "100")
	if err := errors.Join(d.Stop(t.Context(), p.h), d.Rollback(t.Context(), p.h, p.s, "two", "")); err != nil {
		t.Fatal(err)
	}
	p.start()
	p.want("cat f; psql -Atc 'SELECT to_regclass($$customer$$) IS NULL'", "two\nt")
}
