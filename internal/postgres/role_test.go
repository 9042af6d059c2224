//go:build linux

package postgres

import (
	"context"
	"crypto/rand"
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"mayfly.dev/mayfly"
)

func itoa(n int) string { return strconv.Itoa(n) }

func TestLoginActsAsTheOwnerAndIsNoSuperuser(t *testing.T) {
	r := start(t, instance(t, copyOf(t, baseline(t))))
	conn := granted(t, r)
	for sql, want := range map[string]string{
		"SELECT current_user":                    "app",
		"SELECT current_setting('is_superuser')": "off",
		"CREATE TABLE mine (a int); SELECT tableowner FROM pg_tables WHERE tablename = 'mine'":                                "app",
		"ALTER TABLE customer ADD COLUMN more int; SELECT count(*) FROM customer":                                             "1000",
		"DROP VIEW names; DROP FUNCTION twice; ALTER TYPE mood ADD VALUE 'odd'; ALTER SEQUENCE ticket RESTART; SELECT 'done'": "done",
		"CREATE EXTENSION pg_trgm; SELECT similarity('abc', 'abc')":                                                           "1",
	} {
		if got := scalar(t, conn, sql); got != want {
			t.Errorf("%s = %q, want %q", sql, got, want)
		}
	}
	must(t, execute(t.Context(), conn, "CREATE DATABASE test_shop"))
	must(t, execute(t.Context(), conn, "DROP DATABASE test_shop"))
	must(t, execute(t.Context(), conn, "DROP SCHEMA public CASCADE"))
}

func TestOwnerDropsTheDatabaseOfANewServer(t *testing.T) {
	r := start(t, instance(t, copyOf(t, baseline(t))))
	l := Login{Name: "run-drops", Password: "p", Owner: "app"}
	must(t, r.Grant(t.Context(), l)) // over a connection to the database
	conn, err := login(t.Context(), r.Instance, l.Name, l.Password, "postgres")
	must(t, err)
	defer conn.Close(context.Background())
	for _, sql := range []string{"DROP DATABASE shop", "CREATE DATABASE shop", "ALTER DATABASE shop RENAME TO other"} {
		must(t, execute(t.Context(), conn, sql))
		must(t, r.Checkpoint(t.Context()))
	}
	must(t, r.Revoke(t.Context(), l.Name, "app"))
}

func TestPasswordsAndNamesWithOddCharactersWork(t *testing.T) {
	o := options(t, nil)
	o.Database, o.Role = `Sh"op';--`, `Own"er 'x`
	o.SQL = []string{file(t, "s.sql", "CREATE TABLE t (a int);")}
	i := instance(t, prepare(t, o))
	i.Database = o.Database
	r := start(t, i)
	for n, password := range []string{`'; DROP ROLE mayfly; --`, `back\slash\'`, "tab\tnew\nline", `p@ss:w/o?r#d%20&=`, "pässwörd 🔑", `"`, strings.Repeat("0123456789abcdef", 3), strings.Repeat("long", 200), " leading and trailing "} {
		l := Login{Name: `run"` + itoa(n) + ` '\x`, Password: password, Until: time.Now().Add(time.Hour), Owner: o.Role}
		must(t, r.Grant(t.Context(), l))
		conn, err := login(t.Context(), r.Instance, l.Name, password, o.Database)
		if err != nil {
			t.Errorf("password %q: %v", password, err)
			continue
		}
		if got := scalar(t, conn, "SELECT current_user || current_database()"); got != o.Role+o.Database {
			t.Errorf("got = %q", got)
		}
		conn.Close(t.Context())
		if conn, err := login(t.Context(), r.Instance, l.Name, password+"x", o.Database); err == nil {
			t.Errorf("password %q with one character more is taken", password)
			conn.Close(t.Context())
		}
		must(t, r.Revoke(t.Context(), l.Name, o.Role))
	}
}

func TestLoginDoesNotOutliveItsTime(t *testing.T) {
	r := start(t, instance(t, copyOf(t, baseline(t))))
	l := Login{Name: "late", Password: "p", Until: time.Now().Add(-time.Second), Owner: "app"}
	must(t, r.Grant(t.Context(), l))
	if conn, err := login(t.Context(), r.Instance, l.Name, l.Password, "shop"); err == nil {
		conn.Close(t.Context())
		t.Error("logged in after the password's time")
	}
	l.Until = time.Now().Add(time.Hour)
	must(t, r.Grant(t.Context(), l)) // again, with more time
	conn, err := login(t.Context(), r.Instance, l.Name, l.Password, "shop")
	must(t, err)
	conn.Close(t.Context())
}

func TestRevokeEndsSessionsAndKeepsWhatTheyMade(t *testing.T) {
	r := start(t, instance(t, copyOf(t, baseline(t))))
	l := Login{Name: "gone", Password: rand.Text(), Until: time.Now().Add(time.Hour), Owner: "app"}
	must(t, r.Grant(t.Context(), l))
	open := func() *pgconn.PgConn {
		conn, err := login(t.Context(), r.Instance, l.Name, l.Password, "shop")
		must(t, err)
		t.Cleanup(func() { conn.Close(context.Background()) })
		return conn
	}
	busy, idle := open(), open()
	must(t, execute(t.Context(), idle, "RESET ROLE; SET ROLE NONE; CREATE TEMP TABLE x (a int)"))
	must(t, execute(t.Context(), idle, "SET ROLE app; GRANT CREATE ON SCHEMA public TO gone; SET ROLE NONE; CREATE TABLE own (a int); INSERT INTO own VALUES (5)"))
	must(t, execute(t.Context(), idle, "ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC"))
	must(t, execute(t.Context(), idle, "SET ROLE app"))
	must(t, execute(t.Context(), idle, "CREATE DATABASE further"))
	must(t, execute(t.Context(), idle, "ALTER DATABASE further OWNER TO app"))
	must(t, execute(t.Context(), idle, "GRANT CONNECT ON DATABASE further TO gone"))
	must(t, execute(t.Context(), idle, "ALTER DATABASE further ALLOW_CONNECTIONS false"))
	ended := make(chan error, 1)
	go func() { ended <- execute(context.Background(), busy, "SELECT pg_sleep(600)") }()
	must(t, execute(t.Context(), idle, "BEGIN; LOCK TABLE customer IN ACCESS EXCLUSIVE MODE"))
	must(t, r.Revoke(t.Context(), l.Name, l.Owner))
	if err := <-ended; err == nil {
		t.Error("a session survived")
	}
	if err := execute(t.Context(), idle, "SELECT 1"); err == nil {
		t.Error("an idle session survived")
	}
	if conn, err := login(t.Context(), r.Instance, l.Name, l.Password, "shop"); err == nil {
		conn.Close(t.Context())
		t.Error("logged in after the end")
	}
	for sql, want := range map[string]string{
		"SELECT count(*) FROM pg_roles WHERE rolname = 'gone'":     "0",
		"SELECT tableowner FROM pg_tables WHERE tablename = 'own'": "app",
		"SELECT a FROM own": "5",
		"SELECT count(*) FROM pg_stat_activity WHERE usename = 'gone'": "0",
		"SELECT count(*) FROM customer":                                "1000",
	} {
		if got := query(t, r, sql); got != want {
			t.Errorf("%s = %q, want %q", sql, got, want)
		}
	}
	must(t, r.Revoke(t.Context(), l.Name, l.Owner)) // again
}

// Each statement would reach beyond the database, or keep others out of it.
var attacks = map[string]string{
	"run a program":               "COPY customer FROM PROGRAM 'id'",
	"write through a program":     "COPY customer TO PROGRAM 'cat > /tmp/x'",
	"read a file":                 "SELECT pg_read_file('/etc/passwd')",
	"read a binary file":          "SELECT pg_read_binary_file('PG_VERSION')",
	"list a directory":            "SELECT pg_ls_dir('/')",
	"stat a file":                 "SELECT pg_stat_file('PG_VERSION')",
	"copy from a file":            "COPY customer FROM '/etc/passwd'",
	"copy to a file":              "COPY customer TO '/tmp/x'",
	"load a library":              "LOAD '/tmp/evil.so'",
	"load a library of ours":      "LOAD 'auto_explain'",
	"C function":                  "CREATE FUNCTION e() RETURNS int LANGUAGE c AS '/tmp/evil.so'",
	"internal function":           "CREATE FUNCTION e() RETURNS int LANGUAGE internal AS 'pg_read_file'",
	"untrusted language":          "CREATE LANGUAGE evil HANDLER plpgsql_call_handler",
	"untrusted extension":         "CREATE EXTENSION file_fdw",
	"another untrusted one":       "CREATE EXTENSION adminpack",
	"import a large object":       "SELECT lo_import('/etc/passwd')",
	"export a large object":       "SELECT lo_export(1, '/tmp/x')",
	"become the superuser":        "SET ROLE mayfly",
	"become its session":          "SET SESSION AUTHORIZATION mayfly",
	"make a superuser":            "CREATE ROLE evil SUPERUSER",
	"make a role":                 "CREATE ROLE evil",
	"change the superuser":        "ALTER ROLE mayfly PASSWORD 'x'",
	"be in a server role":         "GRANT pg_execute_server_program TO app",
	"read passwords":              "SELECT rolpassword FROM pg_authid",
	"ALTER SYSTEM":                "ALTER SYSTEM SET archive_command = 'id'",
	"reload":                      "SELECT pg_reload_conf()",
	"preload":                     "SET session_preload_libraries = 'auto_explain'",
	"preload in the database":     "ALTER DATABASE shop SET session_preload_libraries = 'auto_explain'",
	"replica triggers":            "SET session_replication_role = replica",
	"event trigger":               "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION pg_catalog.suppress_redundant_updates_trigger()",
	"end the superuser's session": "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'mayfly'",
	"subscription":                "CREATE SUBSCRIPTION s CONNECTION 'host=127.0.0.1' PUBLICATION p",
	"replication slot":            "SELECT pg_create_physical_replication_slot('s')",
	"tablespace":                  "CREATE TABLESPACE t LOCATION '/tmp'",
	"prepared transaction":        "BEGIN; CREATE TABLE p (a int); PREPARE TRANSACTION 'p'",
	"catalog":                     "UPDATE pg_catalog.pg_authid SET rolsuper = true",
	"trusted language":            "UPDATE pg_catalog.pg_language SET lanpltrusted = true",
}

// codes are those of refusals that are not about privileges.
var codes = map[string]string{"prepared transaction": "55000"}

func TestAttacksFromALoginAreRefused(t *testing.T) {
	r := start(t, instance(t, copyOf(t, baseline(t))))
	admin, err := r.Connect(t.Context(), r.Database)
	must(t, err)
	defer admin.Close(t.Context())
	conn := granted(t, r)
	for name, sql := range attacks {
		for _, as := range []string{"SET ROLE app", "SET ROLE NONE"} {
			must(t, execute(t.Context(), conn, as))
			var refused *pgconn.PgError
			if err := execute(t.Context(), conn, sql); !errors.As(err, &refused) || refused.Code != "42501" && refused.Code != codes[name] {
				t.Errorf("%s: %s after %s: error = %v, want a refusal", name, sql, as, err)
			}
			must(t, execute(t.Context(), conn, "ROLLBACK"))
		}
	}
	for _, database := range []string{"template1", "template0"} {
		l := Login{Name: "elsewhere", Password: "p", Until: time.Now().Add(time.Hour), Owner: "app"}
		must(t, r.Grant(t.Context(), l))
		if conn, err := login(t.Context(), r.Instance, l.Name, l.Password, database); err == nil {
			conn.Close(t.Context())
			t.Errorf("connected to %s", database)
		}
	}
	if got := scalar(t, admin, "SELECT 'alive'"); got != "alive" {
		t.Errorf("the superuser's session = %q", got)
	}
}

func TestSuperuserNeedsItsSecret(t *testing.T) {
	r := start(t, instance(t, copyOf(t, baseline(t))))
	for _, password := range []string{"", "mayfly", secret + "x"} {
		if conn, err := login(t.Context(), r.Instance, Admin, password, "shop"); err == nil {
			conn.Close(t.Context())
			t.Errorf("logged in with the password %q", password)
		}
	}
	info, err := os.Stat(r.Data.Host)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("mode of the data directory = %v, %v, want 0700", info.Mode(), err)
	}
}

// What a user has set, hidden and closed does not reach the administrator.
func TestAdministrationSurvivesAHostileOwner(t *testing.T) {
	r := start(t, instance(t, copyOf(t, baseline(t))))
	l := Login{Name: "hostile", Password: "p", Until: time.Now().Add(time.Hour), Owner: "app"}
	must(t, r.Grant(t.Context(), l))
	conn, err := login(t.Context(), r.Instance, l.Name, l.Password, "shop")
	must(t, err)
	for _, sql := range []string{
		"ALTER DATABASE shop SET search_path = evil, pg_catalog",
		"ALTER DATABASE shop SET role = 'app'",
		"ALTER DATABASE shop SET default_transaction_read_only = on",
		"ALTER DATABASE shop SET statement_timeout = 1",
		"ALTER DATABASE shop SET lock_timeout = 1",
		"ALTER DATABASE shop SET client_encoding = 'SQL_ASCII'",
		"ALTER DATABASE shop SET local_preload_libraries = 'missing'",
		"CREATE SCHEMA evil",
		"CREATE FUNCTION evil.steal() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'ALTER ROLE app SUPERUSER'; RETURN true; END $$",
		"CREATE FUNCTION evil.pg_terminate_backend(int) RETURNS boolean LANGUAGE sql AS 'SELECT evil.steal()'",
		"CREATE FUNCTION evil.eq(name, text) RETURNS boolean LANGUAGE sql AS 'SELECT evil.steal()'",
		"CREATE OPERATOR evil.= (LEFTARG = name, RIGHTARG = text, FUNCTION = evil.eq)",
		"CREATE VIEW evil.pg_roles AS SELECT 'x'::name AS rolname, evil.steal()",
		"ALTER DATABASE shop CONNECTION LIMIT 0",
	} {
		if err := execute(t.Context(), conn, sql); err != nil {
			t.Logf("%s: %v", sql, err) // refused is well, too
		}
	}
	must(t, r.Checkpoint(t.Context()))
	must(t, r.Grant(t.Context(), Login{Name: "next", Password: "p", Until: time.Now().Add(time.Hour), Owner: "app"}))
	must(t, r.Revoke(t.Context(), "hostile", "app"))
	must(t, r.Revoke(t.Context(), "next", "app"))
	admin, err := r.Connect(t.Context(), "shop")
	must(t, err)
	defer admin.Close(t.Context())
	if got := scalar(t, admin, "SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper"); got != Admin {
		t.Errorf("superusers = %q, want %q alone", got, Admin)
	}
}

func TestExhaustedConnectionsLeaveTheAdministratorOne(t *testing.T) {
	i := instance(t, copyOf(t, baseline(t)))
	i.Settings = map[string]string{"max_connections": "10"}
	r := start(t, i)
	l := Login{Name: "greedy", Password: "p", Until: time.Now().Add(time.Hour), Owner: "app"}
	must(t, r.Grant(t.Context(), l))
	full := false
	for range 12 {
		conn, err := login(t.Context(), r.Instance, l.Name, l.Password, "shop")
		if err != nil {
			full = true
			break
		}
		t.Cleanup(func() { conn.Close(context.Background()) })
	}
	if !full {
		t.Fatal("connections are not exhausted: this tests nothing")
	}
	must(t, r.Checkpoint(t.Context()))
	must(t, r.Revoke(t.Context(), "greedy", "app"))
}

func TestReservedNamesAreRefused(t *testing.T) {
	r := Running{}
	for _, name := range []string{"", Admin, "pg_monitor", "public", "none", strings.Repeat("x", 64), "a\x00b"} {
		if err := r.Grant(t.Context(), Login{Name: name, Password: "p"}); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("role %q: error = %v, want invalid", name, err)
		}
	}
}
