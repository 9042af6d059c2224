package rowdiff

import (
	"fmt"
	"slices"
	"strings"
)

// change writes the changed rows of one table.
type change struct {
	*scripter
	t              *Table
	srcRel, dstRel *relation
}

// triggers writes what switches off the triggers and rules that
// session_replication_role leaves on, and returns what switches them on again:
// those of the new state that were there before.
func (c *change) triggers() (after string) {
	for _, g := range c.srcRel.triggers {
		key := objectKey(g.kind, c.srcRel.schema, c.srcRel.table+" "+g.name)
		if !slices.Contains(c.dstRel.triggers, g) || c.plan.dropped[key] {
			continue
		}
		alter := "ALTER TABLE " + c.dstRel.sql() + " "
		fmt.Fprintf(c.w, "%sDISABLE %s %s;\n", alter, g.kind, ident(g.name))
		after += fmt.Sprintf("%sENABLE %s %s %s;\n", alter, g.mode, g.kind, ident(g.name))
	}
	return after
}

// ends of a change in the direction of the script.
func (c *change) places(r rowChange) (op Op, src, dst tid) {
	if !c.reverse {
		return r.op, r.from, r.to
	}
	return [...]Op{0, Delete, Insert, Update}[r.op], r.to, r.from
}

// rewrites tells whether an update is written as a delete and an insert:
// where a unique value changes, which another row may still have, and where
// UPDATE may not set the column.
func (c *change) rewrites() (func(column string) bool, bool) {
	unique := append(slices.Clone(c.srcRel.unique), c.dstRel.unique...)
	return func(column string) bool {
		for _, r := range []*relation{c.srcRel, c.dstRel} {
			if col := r.column(column); col != nil && col.identity {
				return true
			}
		}
		return slices.Contains(unique, column)
	}, c.srcRel.anyUniq || c.dstRel.anyUniq
}

// split tells for some changes which are deletes, updates and inserts.
type splitChanges struct {
	gone    []tid // of src
	come    []tid // of dst
	updates []rowUpdate
}

type rowUpdate struct {
	at     tid // of dst
	key    []Field
	fields []Field
}

func (c *change) split(chunk []rowChange) (out splitChanges, err error) {
	rows, err := c.fetch(c.ctx, c.t, chunk)
	if err != nil {
		return out, err
	}
	must, any := c.rewrites()
	for i, r := range chunk {
		op, src, dst := c.places(r)
		set := rows[i].New
		if c.reverse {
			set = rows[i].Old
		}
		switch {
		case op == Delete:
			out.gone = append(out.gone, src)
		case op == Insert:
			out.come = append(out.come, dst)
		case len(set) == 0: // only columns differ that dst does not have
		case any || slices.ContainsFunc(set, func(f Field) bool { return must(f.Column) }):
			out.gone, out.come = append(out.gone, src), append(out.come, dst)
		default:
			out.updates = append(out.updates, rowUpdate{dst, rows[i].Key, set})
		}
	}
	return out, nil
}

func (c *change) each(f func(splitChanges) error) error {
	for chunk := range slices.Chunk(c.t.changes, rowsPerQuery) {
		s, err := c.split(chunk)
		if err == nil {
			err = f(s)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (c *change) deletes() error {
	if len(c.t.Key) == 0 {
		return c.deleteByDigest()
	}
	return c.each(func(s splitChanges) error {
		if len(s.gone) == 0 {
			return nil
		}
		keys, err := c.keys(s.gone)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.w, "WITH gone AS (DELETE FROM ONLY %s WHERE (%s) IN (%s) RETURNING 1)%s",
			c.dstRel.sql(), join(c.t.Key, ident), strings.Join(keys, ", "), c.expect("gone", len(keys)))
		return nil
	})
}

// expect notes how many rows a statement found.
func (c *change) expect(cte string, n int) string {
	return fmt.Sprintf("\n\tINSERT INTO pg_temp.mayfly_seen SELECT %s, count(*), %d FROM %s;\n",
		literal([]byte(c.dstRel.sql())), n, cte)
}

// keys reads the keys of rows of src, as SQL.
func (c *change) keys(tids []tid) ([]string, error) {
	var out []string
	sql := fmt.Sprintf("SELECT %s FROM ONLY %s WHERE ctid = ANY($1::tid[])", join(c.t.Key, ident), c.srcRel.sql())
	err := c.src.query(c.ctx, sql, func(v [][]byte) error {
		out = append(out, "("+join(v, literal)+")")
		return nil
	}, tidArray(tids))
	return out, err
}

// deleteByDigest removes rows of a table without a key: of equal ones as many
// as are to go.
func (c *change) deleteByDigest() error {
	digest := c.t.digest(c.src == c.from)
	total := 0
	for chunk := range slices.Chunk(c.t.changes, 1000) {
		var tids []tid
		for _, r := range chunk {
			if op, src, _ := c.places(r); op == Delete {
				tids = append(tids, src)
			}
		}
		if len(tids) == 0 {
			continue
		}
		total += len(tids)
		var values []string
		sql := fmt.Sprintf("SELECT d, count(*) FROM (SELECT %s AS d FROM ONLY %s WHERE ctid = ANY($1::tid[])) x GROUP BY d", digest, c.srcRel.sql())
		err := c.src.query(c.ctx, sql, func(v [][]byte) error {
			values = append(values, fmt.Sprintf("('%s', %s)", v[0], v[1]))
			return nil
		}, tidArray(tids))
		if err != nil {
			return err
		}
		fmt.Fprintf(c.w, "INSERT INTO pg_temp.mayfly_gone VALUES %s;\n", strings.Join(values, ", "))
	}
	if total == 0 {
		return nil
	}
	fmt.Fprintf(c.w, `WITH gone AS (DELETE FROM ONLY %s WHERE ctid IN (SELECT y.ctid FROM (
	SELECT x.ctid, x.d, row_number() OVER (PARTITION BY x.d) AS r FROM (SELECT ctid, %s AS d FROM ONLY %[1]s) x) y
	JOIN (SELECT digest, sum(n) AS n FROM pg_temp.mayfly_gone GROUP BY digest) g ON g.digest = y.d WHERE y.r <= g.n) RETURNING 1)%[3]s
DELETE FROM pg_temp.mayfly_gone;
`, c.dstRel.sql(), digest, c.expect("gone", total))
	return nil
}

func (c *change) updates() error {
	return c.each(func(s splitChanges) error {
		for _, u := range s.updates {
			if err := c.update(u); err != nil {
				return err
			}
		}
		return nil
	})
}

func (c *change) update(u rowUpdate) error {
	var sets, where []string
	for _, f := range u.fields {
		col := c.dstRel.column(f.Column)
		if col.generated {
			continue
		}
		v, err := c.value(col, u.at, f.Value)
		if err != nil {
			return err
		}
		sets = append(sets, ident(f.Column)+" = "+v)
	}
	if len(sets) == 0 {
		return nil
	}
	for _, k := range u.key {
		where = append(where, ident(k.Column)+" = "+literal([]byte(k.Text)))
	}
	fmt.Fprintf(c.w, "WITH new AS (UPDATE ONLY %s SET %s WHERE %s RETURNING 1)%s",
		c.dstRel.sql(), strings.Join(sets, ", "), strings.Join(where, " AND "), c.expect("new", 1))
	return nil
}

// value is SQL for a value. A large one is first written to a table, piece by
// piece.
func (c *change) value(col *column, at tid, v Value) (string, error) {
	switch {
	case v.Null:
		return "NULL", nil
	case !v.Large:
		return literal([]byte(v.Text)), nil
	}
	place := slices.Index(c.dstRel.columns, col)
	fmt.Fprintf(c.w, "DELETE FROM pg_temp.mayfly_piece WHERE col = %d;\n", place)
	n := 0
	err := c.dst.pieces(c.ctx, c.dstRel, col, at, func(text []byte) error {
		n++
		value := literal(text) + ", NULL"
		if col.base == byteaOID {
			value = `NULL, '\x` + string(text) + "'"
		}
		_, err := fmt.Fprintf(c.w, "INSERT INTO pg_temp.mayfly_piece VALUES (%d, %d, %s);\n", place, n, value)
		return err
	})
	what, empty := "t", "''"
	if col.base == byteaOID {
		what, empty = "b", "''::bytea"
	}
	return fmt.Sprintf("(SELECT string_agg(%s, %s ORDER BY n) FROM pg_temp.mayfly_piece WHERE col = %d)::%s", what, empty, place, col.typ), err
}

func (c *change) inserts() error {
	return c.each(func(s splitChanges) error { return c.insert(s.come) })
}

// insert writes rows of dst: many to a statement, those with large values
// alone.
func (c *change) insert(tids []tid) error {
	for chunk := range slices.Chunk(tids, rowsPerQuery) {
		var changes []rowChange
		for _, t := range chunk {
			changes = append(changes, rowChange{op: Insert, to: t})
		}
		rows, err := c.dst.records(c.ctx, c.dstRel, changes, false, c.opts.MaxValue)
		if err != nil {
			return err
		}
		if err := c.insertRecords(chunk, rows); err != nil {
			return err
		}
	}
	return nil
}

func (c *change) insertRecords(tids []tid, rows map[tid]record) error {
	var cols []string
	for _, col := range c.dstRel.columns {
		if !col.generated {
			cols = append(cols, ident(col.name))
		}
	}
	if len(cols) == 0 {
		fmt.Fprint(c.w, strings.Repeat("INSERT INTO "+c.dstRel.sql()+" DEFAULT VALUES;\n", len(tids)))
		return nil
	}
	head := "INSERT INTO " + c.dstRel.sql() + " (" + strings.Join(cols, ", ") + ") OVERRIDING SYSTEM VALUE VALUES\n"
	var small []string
	for _, at := range tids {
		row := rows[at]
		var values []string
		for i, col := range c.dstRel.columns {
			if col.generated {
				continue
			}
			v, err := c.value(col, at, row[i])
			if err != nil {
				return err
			}
			values = append(values, v)
		}
		tuple := "(" + strings.Join(values, ", ") + ")"
		if slices.ContainsFunc(row, func(v Value) bool { return v.Large }) {
			fmt.Fprint(c.w, head, tuple, ";\n")
		} else {
			small = append(small, tuple)
		}
	}
	if len(small) > 0 {
		fmt.Fprint(c.w, head, strings.Join(small, ",\n"), ";\n")
	}
	return nil
}
