package rowdiff

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"mayfly.dev/mayfly"
)

// relations is what a state's catalog says about its tables.
type relations struct {
	tables    map[name]*relation
	byOID     map[uint32]*relation
	sequences map[name]uint32 // oid
	large     *relation       // pg_largeobject
	blockSize int
	segment   int // blocks of a file
}

// name of a relation.
type name struct{ schema, table string }

func (n name) sql() string { return ident(n.schema) + "." + ident(n.table) }

// relation is a table that has rows of its own: plain, a partition, or a
// materialized view.
type relation struct {
	name
	oid       uint32
	kind      byte // 'r' or 'm'
	unlogged  bool
	populated bool   // a materialized view that can be read
	file      string // in the data directory; changes when the table is rewritten
	rows      int64  // the planner's estimate
	columns   []*column
	key       []string // columns that identify a row; nil without
	unique    []string // columns of unique and exclusion constraints
	anyUniq   bool     // one of these is partial or has expressions: it may hang on any column
	triggers  []toggle // fire even in replica mode
}

// toggle is a trigger or a rule and how it was enabled.
type toggle struct{ kind, name, mode string }

type column struct {
	name      string
	typ       string // with modifiers, as SQL
	base      uint32 // oid of the type below domains
	varlena   bool
	generated bool
	identity  bool   // GENERATED ALWAYS AS IDENTITY
	missing   string // what rows older than the column show
	fast      bool   // missing is set
}

func (r *relation) column(name string) *column {
	for _, c := range r.columns {
		if c.name == name {
			return c
		}
	}
	return nil
}

const relationQuery = `SELECT c.oid, n.nspname, c.relname, c.relkind, c.relpersistence, pg_relation_filepath(c.oid), c.reltuples::bigint, c.relispopulated
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = 'pg_catalog.pg_largeobject'::regclass OR c.relkind IN ('r', 'm', 'S') AND c.relpersistence <> 't'
	AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'`

func (s *side) readCatalog(ctx context.Context) error {
	s.tables, s.byOID, s.sequences = map[name]*relation{}, map[uint32]*relation{}, map[name]uint32{}
	err := s.query(ctx, relationQuery, func(v [][]byte) error {
		r := &relation{name: name{string(v[1]), string(v[2])}, oid: oid(v[0]), kind: v[3][0],
			unlogged: v[4][0] == 'u', file: string(v[5]), populated: v[7][0] == 't'}
		r.rows, _ = strconv.ParseInt(string(v[6]), 10, 64)
		switch {
		case r.kind == 'S':
			s.sequences[r.name] = r.oid
			return nil
		case r.schema == "pg_catalog":
			s.large = r
		default:
			s.tables[r.name] = r
		}
		s.byOID[r.oid] = r
		return nil
	})
	for _, read := range []func(context.Context) error{s.readColumns, s.readKeys, s.readTriggers} {
		if err == nil {
			err = read(ctx)
		}
	}
	return err
}

// readColumns also reads the size of pages and files. typbasetype is followed
// through domains over domains.
func (s *side) readColumns(ctx context.Context) error {
	s.blockSize, s.segment = 8192, 131072
	err := s.query(ctx, `SELECT name, setting FROM pg_settings WHERE name IN ('block_size', 'segment_size')`, func(v [][]byte) error {
		n, err := strconv.Atoi(string(v[1]))
		if string(v[0]) == "block_size" {
			s.blockSize = n
		} else {
			s.segment = n
		}
		return err
	})
	if err != nil {
		return err
	}
	return s.query(ctx, `WITH RECURSIVE base(oid, base) AS (
		SELECT oid, oid FROM pg_type WHERE typtype <> 'd'
		UNION ALL SELECT t.oid, b.base FROM pg_type t JOIN base b ON t.typbasetype = b.oid AND t.typtype = 'd')
	SELECT a.attrelid, a.attname, format_type(a.atttypid, a.atttypmod), b.base, a.attlen, a.attgenerated, a.attidentity,
		a.atthasmissing, array_to_string(a.attmissingval, '')
	FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN base b ON b.oid = a.atttypid
	WHERE a.attnum > 0 AND NOT a.attisdropped AND c.relkind IN ('r', 'm') ORDER BY a.attrelid, a.attnum`, func(v [][]byte) error {
		r := s.byOID[oid(v[0])]
		if r == nil || string(v[5]) == "v" { // a virtual column has no value of its own
			return nil
		}
		c := &column{name: string(v[1]), typ: string(v[2]), base: oid(v[3]), varlena: v[4][0] == '-',
			generated: len(v[5]) > 0, identity: string(v[6]) == "a", fast: v[7][0] == 't', missing: string(v[8])}
		r.columns = append(r.columns, c)
		return nil
	})
}

// readKeys takes the primary key, or the first index that serves as one: not
// partial, no expressions, no column that may be null.
func (s *side) readKeys(ctx context.Context) error {
	return s.query(ctx, `SELECT i.indrelid, a.attname, i.indisprimary, i.indisexclusion,
		i.indpred IS NOT NULL OR i.indexprs IS NOT NULL OR (SELECT bool_or(k = 0) FROM unnest(i.indkey) k), i.indexrelid,
		i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL AND NOT EXISTS (
			SELECT FROM unnest(i.indkey[0:i.indnkeyatts - 1]) k LEFT JOIN pg_attribute n ON n.attrelid = i.indrelid AND n.attnum = k
			WHERE NOT coalesce(n.attnotnull, false))
	FROM pg_index i JOIN LATERAL unnest(i.indkey) WITH ORDINALITY k(num, place) ON k.place <= i.indnkeyatts
	LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.num
	WHERE i.indisunique OR i.indisexclusion
	ORDER BY i.indrelid, i.indisprimary DESC, i.indexrelid, k.place`, func() func([][]byte) error {
		keys := map[uint32]uint32{} // index that became the key, by table
		return func(v [][]byte) error {
			r := s.byOID[oid(v[0])]
			if r == nil {
				return nil
			}
			if v[4][0] == 't' {
				r.anyUniq = true
			}
			if v[1] == nil {
				return nil
			}
			r.unique = append(r.unique, string(v[1]))
			if k, taken := keys[r.oid]; v[6][0] == 't' && (!taken || k == oid(v[5])) {
				keys[r.oid] = oid(v[5])
				r.key = append(r.key, string(v[1]))
			}
			return nil
		}
	}())
}

// readTriggers reads triggers and rules that session_replication_role does not
// stop.
func (s *side) readTriggers(ctx context.Context) error {
	return s.query(ctx, `SELECT tgrelid, 'TRIGGER', tgname, tgenabled FROM pg_trigger WHERE tgenabled IN ('A', 'R') AND NOT tgisinternal
	UNION ALL SELECT ev_class, 'RULE', rulename, ev_enabled FROM pg_rewrite WHERE ev_enabled IN ('A', 'R') ORDER BY 1, 2, 3`,
		func(v [][]byte) error {
			if r := s.byOID[oid(v[0])]; r != nil {
				mode := map[byte]string{'A': "ALWAYS", 'R': "REPLICA"}[v[3][0]]
				r.triggers = append(r.triggers, toggle{string(v[1]), string(v[2]), mode})
			}
			return nil
		})
}

// checkUnmoved reports a table that was rewritten or dropped while it was
// compared: TRUNCATE and the like do not wait for who reads an older state.
// pg_class shows the file as of the transaction's instant, the function that
// of now.
func (s *side) checkUnmoved(ctx context.Context) error {
	return s.query(ctx, `SELECT c.oid::regclass FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'm') AND c.relfilenode <> 0 AND c.relfilenode IS DISTINCT FROM pg_relation_filenode(c.oid)
			AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'`, func(v [][]byte) error {
		return mayfly.Errorf(mayfly.Conflict, "table %s was rewritten or dropped while it was compared", printable(string(v[0]), 200)).
			Hint("try again when nothing changes the schema, or compare snapshots")
	})
}

func oid(v []byte) uint32 {
	n, _ := strconv.ParseUint(string(v), 10, 32)
	return uint32(n)
}

func compareNames(a, b name) int {
	if c := strings.Compare(a.schema, b.schema); c != 0 {
		return c
	}
	return strings.Compare(a.table, b.table)
}

// count counts the rows of a table, unless it has more than some bytes.
func (s *side) count(ctx context.Context, r *relation, most int64) (n int64, ok bool, err error) {
	small := fmt.Sprintf("(SELECT pg_relation_size(%d) <= %d)", r.oid, most)
	sql := fmt.Sprintf("SELECT count(*), %s FROM ONLY %s WHERE %[1]s", small, r.sql())
	err = s.query(ctx, sql, func(v [][]byte) error {
		ok = string(v[1]) == "t"
		n, err = strconv.ParseInt(string(v[0]), 10, 64)
		return err
	})
	return n, ok, err
}
