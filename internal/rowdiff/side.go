package rowdiff

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"mayfly.dev/mayfly"
)

// side is one of the two states: a connection in a transaction that sees one
// instant, and what was read there.
type side struct {
	conn     Conn
	dir      *os.Root
	version  int // server_version_num
	system   string
	snapshot string // for pg_dump to see the same instant
	nextXID  uint64
	relations
	at      map[name]Sequence
	objects []*object
}

// session makes values the same text everywhere and keeps what belongs to
// users of the database out of name resolution.
const session = `SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL datestyle = 'ISO, YMD'; SET LOCAL intervalstyle = 'postgres'; SET LOCAL timezone = 'UTC';
SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'; SET LOCAL lc_monetary = 'C';
SET LOCAL xmloption = 'content'; SET LOCAL row_security = off; SET LOCAL synchronize_seqscans = off; SET LOCAL max_parallel_workers_per_gather = 0;
SET LOCAL client_encoding = 'UTF8'; SET LOCAL quote_all_identifiers = off; SET LOCAL jit = off;
SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = '30s'; SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL standard_conforming_strings = on; SET LOCAL array_nulls = on;
`

// restrict keeps views of users from being expanded, by the versions that can.
const restrict = `SELECT pg_catalog.set_config(name, 'view, foreign-table', true) FROM pg_catalog.pg_settings
	WHERE name = 'restrict_nonsystem_relation_kind';
`

func (s *side) begin(ctx context.Context) error {
	_, err := s.conn.PgConn().Exec(ctx, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;\n"+session+restrict).ReadAll()
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	return s.query(ctx, `SELECT current_setting('server_version_num'), system_identifier, pg_export_snapshot(),
		pg_snapshot_xmax(pg_current_snapshot()) FROM pg_control_system()`, func(v [][]byte) error {
		s.version, _ = strconv.Atoi(string(v[0]))
		s.system, s.snapshot = string(v[1]), string(v[2])
		s.nextXID, err = strconv.ParseUint(string(v[3]), 10, 64)
		return err
	})
}

// query calls each with the values of every row as text; they are valid
// during the call.
func (s *side) query(ctx context.Context, sql string, each func(v [][]byte) error, args ...string) error {
	return s.read(ctx, sql, nil, each, args...)
}

// read is query with formats of the results: 0 for text, 1 for binary.
func (s *side) read(ctx context.Context, sql string, formats []int16, each func(v [][]byte) error, args ...string) error {
	params := make([][]byte, len(args))
	for i, a := range args {
		params[i] = []byte(a)
	}
	r := s.conn.PgConn().ExecParams(ctx, sql, params, nil, nil, formats)
	if err := readAll(r, each); err != nil {
		return fmt.Errorf("query %.60q: %w", strings.Join(strings.Fields(sql), " "), err)
	}
	return nil
}

func readAll(r *pgconn.ResultReader, each func(v [][]byte) error) error {
	var err error
	for err == nil && r.NextRow() {
		err = each(r.Values())
	}
	if _, closeErr := r.Close(); err == nil {
		err = closeErr
	}
	return err
}

// dump reads the objects of the schema.
func (s *side) dump(ctx context.Context, run func(context.Context, Conn, ...string) ([]byte, error)) error {
	out, err := run(ctx, s.conn, "--format=custom", "--schema-only", "--compress=0", "--snapshot="+s.snapshot,
		"--lock-wait-timeout=30000", "--encoding=UTF8")
	if err != nil {
		return err
	}
	s.objects, err = parseArchive(out)
	return err
}

// pgDump runs the pg_dump of this machine that is as old as the instance or
// newer.
func pgDump(ctx context.Context, c Conn, args ...string) ([]byte, error) {
	program, err := findPgDump(c.PgConn().ParameterStatus("server_version"))
	if err != nil {
		return nil, err
	}
	conf := c.Config()
	cmd := exec.CommandContext(ctx, program, append(args, "--no-password")...)
	cmd.Env = []string{"PGHOST=" + conf.Host, "PGPORT=" + strconv.Itoa(int(conf.Port)), "PGUSER=" + conf.User,
		"PGPASSWORD=" + conf.Password, "PGDATABASE=" + conf.Database, "LC_ALL=C", "PATH=" + os.Getenv("PATH")}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("pg_dump: %w: %s", err, printable(stderr.String(), 1000))
	}
	return out, nil
}

func findPgDump(version string) (string, error) {
	end := strings.IndexFunc(version, func(r rune) bool { return r < '0' || r > '9' })
	if end < 0 {
		end = len(version)
	}
	major, _ := strconv.Atoi(version[:end])
	for v := major; v < major+5; v++ {
		name := filepath.Join("/usr/lib/postgresql", strconv.Itoa(v), "bin/pg_dump")
		if _, err := os.Stat(name); err == nil {
			return name, nil
		}
	}
	if name, err := exec.LookPath("pg_dump"); err == nil {
		return name, nil
	}
	return "", mayfly.Errorf(mayfly.Unsupported, "no pg_dump for Postgres %d on this machine", major).
		Hint("install the package postgresql-client-%d", major)
}
