package rowdiff

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
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
