package local

import (
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// Each tries to get out of the database, to stay in it, or to break it for what
// comes later. fails says that the last command has to be refused.
var databaseAttacks = map[string]struct {
	script string
	fails  bool
}{
	"C function":                       {`psql -c "CREATE FUNCTION f() RETURNS int LANGUAGE c AS '/tmp/x.so', 'f'"`, true},
	"preloaded library":                {`psql -c "ALTER ROLE CURRENT_USER SET session_preload_libraries = '/tmp/x.so'"`, true},
	"import of a file":                 {`psql -c "SELECT lo_import('/etc/passwd')"`, true},
	"copy from a file":                 {`psql -c "COPY customer FROM '/etc/passwd'"`, true},
	"ALTER SYSTEM":                     {`psql -c "ALTER SYSTEM SET archive_command = 'id'"`, true},
	"session of the admin":             {`psql -c "SET SESSION AUTHORIZATION mayfly"`, true},
	"role of another run":              {`psql -c "CREATE ROLE \"run-00000000000000000\" LOGIN PASSWORD 'x'"`, true},
	"slot":                             {`psql -c "SELECT pg_create_physical_replication_slot('s')"`, true},
	"replication":                      {`psql "replication=true" -c "IDENTIFY_SYSTEM"`, true},
	"event trigger":                    {`psql -c "CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION suppress_redundant_updates_trigger()"`, true},
	"end of other processes":           {`test "$(psql -Atc "SELECT bool_or(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE usename = 'mayfly' OR usename IS NULL")" = t`, true},
	"socket of another environment":    {`ls /var/lib/mayfly/pool/envs/*/live/db/.db/.s.PGSQL.5432 || ls /proc/1/root/var/lib/mayfly/pool`, true},
	"connections closed to all":        {`psql -c "ALTER DATABASE shop CONNECTION LIMIT 0"; psql -d shop -c "ALTER DATABASE shop ALLOW_CONNECTIONS false"; true`, false},
	"settings of the database":         {`psql -c "ALTER DATABASE shop SET search_path = evil" -c "ALTER DATABASE shop SET statement_timeout = 1" -c "ALTER DATABASE shop SET role = 'owner'"; true`, false},
	"names before those of the system": {`psql -c "CREATE SCHEMA evil" -c "CREATE FUNCTION evil.starts_with(text, text) RETURNS boolean LANGUAGE plpgsql SECURITY DEFINER AS \$\$ BEGIN EXECUTE 'ALTER ROLE owner SUPERUSER'; RETURN true; END \$\$" -c "ALTER DATABASE shop SET search_path = evil, pg_catalog"; true`, false},
	"disk filled by temporary files":   {`psql -c "SET work_mem = '64kB'" -c "SELECT count(*) FROM (SELECT md5(a::text || b) x FROM generate_series(1, 10000) a, generate_series(1, 10000) b ORDER BY x) t"`, true},
	"disk filled by a table":           {`psql -c "CREATE TABLE big AS SELECT repeat(md5(a::text || b), 30) x FROM generate_series(1, 10000) a, generate_series(1, 10000) b"`, true},
}

func TestAttacksOnTheDatabaseAreContained(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	l, err := templateOf(t, d, shop, shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	p.s.Limits.Disk = 256 << 20
	p.snapshot("before")
	p.rollback("before") // starts it with the limit
	for name, a := range databaseAttacks {
		t.Run(name, func(t *testing.T) {
			q := *p
			q.TB = t
			run := q.begin("(" + a.script + ") >/tmp/said 2>&1; s=$?; tail -c 600 /tmp/said; exit $s")
			exit, err := d.WaitProcess(t.Context(), q.h, run)
			if err != nil {
				t.Fatal(err)
			}
			q.runs = nil // a full disk ends the server, and the rollback what is left
			said, code := d.output(q.h, run), exit.Code
			t.Log(said)
			if a.fails == (code == 0) {
				t.Errorf("got = %q (status %d), refused = %v wanted", said, code, a.fails)
			}
			q.snapshot(mayfly.NewID("snap", time.Now())) // stays: that of a full disk fills it for good
			q.rollback("before")
			q.want("psql -Atc 'SELECT count(*) FROM customer' -c \"SELECT string_agg(rolname, ' ') FROM pg_roles WHERE rolsuper\"", "100\nmayfly")
		})
	}
}
