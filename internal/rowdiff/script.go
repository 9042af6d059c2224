package rowdiff

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
)

// scripter writes one script: it makes dst's state of src's.
type scripter struct {
	*Diff
	ctx     context.Context
	w       *bufio.Writer
	src     *side
	dst     *side
	reverse bool
	plan    plan
}

const scriptBegin = `BEGIN;
SET LOCAL client_min_messages = warning;
SET LOCAL standard_conforming_strings = on;
SET LOCAL check_function_bodies = off;
DO $mayfly$ BEGIN
	PERFORM pg_catalog.set_config('session_replication_role', 'replica', true);
EXCEPTION WHEN insufficient_privilege THEN NULL; -- the owner of the tables may not
END $mayfly$;
`

// scriptTables are for counts of rows, pieces of large values, digests, and
// statements that undo unguard.
// The one with the constraint is where the script notices that the state is
// not the one that it is for.
const scriptTables = `CREATE TEMPORARY TABLE mayfly_seen (what text, rows bigint, expected bigint,
	CONSTRAINT this_is_the_expected_state CHECK (rows = expected)) ON COMMIT DROP;
CREATE TEMPORARY TABLE mayfly_piece (col int, n int, t text, b bytea) ON COMMIT DROP;
CREATE TEMPORARY TABLE mayfly_gone (digest bytea, n bigint) ON COMMIT DROP;
CREATE TEMPORARY TABLE mayfly_again (sql text) ON COMMIT DROP;
`

// unguard does for the owner of tables what session_replication_role does for
// a superuser: no trigger, rule or foreign key acts while rows change. Foreign
// keys are made again afterwards, which checks them.
const unguard = `DO $mayfly$ DECLARE
	changed oid[] := ARRAY[%s]::regclass[]::oid[];
	c record;
BEGIN
	IF current_setting('session_replication_role') = 'replica' THEN RETURN; END IF;
	FOR c IN
		SELECT format('ALTER TABLE %%s DROP CONSTRAINT %%I', conrelid::regclass, conname) AS undo,
			format('ALTER TABLE %%s ADD CONSTRAINT %%I %%s', conrelid::regclass, conname, pg_get_constraintdef(oid)) ||
			coalesce(format('; COMMENT ON CONSTRAINT %%I ON %%s IS %%L', conname, conrelid::regclass, obj_description(oid, 'pg_constraint')), '') AS redo
		FROM pg_constraint WHERE contype = 'f' AND conparentid = 0 AND EXISTS (SELECT FROM unnest(changed) t WHERE
			t IN (conrelid, confrelid) OR EXISTS (SELECT FROM pg_partition_ancestors(t) a WHERE a.relid IN (conrelid, confrelid)))
		UNION ALL SELECT format('ALTER TABLE %%s DISABLE TRIGGER %%I', tgrelid::regclass, tgname),
			format('ALTER TABLE %%s ENABLE TRIGGER %%I', tgrelid::regclass, tgname)
		FROM pg_trigger WHERE NOT tgisinternal AND tgenabled = 'O' AND tgrelid = ANY(changed)
		UNION ALL SELECT format('ALTER TABLE %%s DISABLE RULE %%I', ev_class::regclass, rulename),
			format('ALTER TABLE %%s ENABLE RULE %%I', ev_class::regclass, rulename)
		FROM pg_rewrite WHERE ev_type <> '1' AND ev_enabled = 'O' AND ev_class = ANY(changed)
	LOOP
		EXECUTE c.undo;
		INSERT INTO pg_temp.mayfly_again VALUES (c.redo);
	END LOOP;
END $mayfly$;
`

const guard = `DO $mayfly$ DECLARE redo text;
BEGIN
	FOR redo IN SELECT sql FROM pg_temp.mayfly_again LOOP EXECUTE redo; END LOOP;
END $mayfly$;
`

func (d *Diff) script(ctx context.Context, w io.Writer, src, dst *side, reverse bool) error {
	s := &scripter{Diff: d, ctx: ctx, w: bufio.NewWriterSize(w, 64<<10), src: src, dst: dst, reverse: reverse, plan: newPlan(src, dst)}
	if err := s.write(); err != nil {
		return err
	}
	return s.w.Flush()
}

func (s *scripter) write() error {
	s.checkPossible()
	if len(s.plan.impossible) > 0 {
		s.refuse()
		return nil
	}
	fmt.Fprint(s.w, scriptBegin, session, "SET LOCAL search_path = pg_catalog, pg_temp;\n", scriptTables)
	for _, sql := range s.plan.before {
		fmt.Fprint(s.w, sql)
	}
	s.unguard()
	triggers, err := s.rows()
	if err != nil {
		return err
	}
	for _, l := range s.LargeObjects {
		if err := largeScript(s.ctx, s.w, s.src, s.dst, l, s.reverse); err != nil {
			return err
		}
	}
	fmt.Fprint(s.w, "SET CONSTRAINTS ALL IMMEDIATE;\n", guard)
	for _, sql := range s.plan.after {
		fmt.Fprint(s.w, sql)
	}
	fmt.Fprint(s.w, triggers)
	s.sequences()
	s.refresh()
	_, err = fmt.Fprint(s.w, "COMMIT;\n")
	return err
}

// unguard is for the tables whose rows change.
func (s *scripter) unguard() {
	var names [][]byte
	for _, t := range s.Tables {
		src, dst := s.ends(t)
		if !t.Derived && src != nil && dst != nil && !s.plan.fresh[dst.name] {
			names = append(names, []byte(dst.sql()))
		}
	}
	fmt.Fprintf(s.w, unguard, join(names, literal))
}

// refuse writes a script that fails and says why.
func (s *scripter) refuse() {
	fmt.Fprint(s.w, "-- This script does nothing: the difference cannot be written as SQL.\n")
	for _, why := range s.plan.impossible {
		fmt.Fprintf(s.w, "--   %s\n", printable(why, 200))
	}
	fmt.Fprintf(s.w, "DO $mayfly$ BEGIN RAISE EXCEPTION 'mayfly: cannot script this difference; see the comments'; END $mayfly$;\n")
}

// checkPossible adds what the rows make impossible.
func (s *scripter) checkPossible() {
	for _, t := range s.Tables {
		_, dst := s.ends(t)
		for _, c := range t.Columns {
			if s.redacted(t, c) && dst != nil && !t.Derived {
				s.plan.impossible = append(s.plan.impossible, fmt.Sprintf("table %s changed and has the redacted column %s", dst.sql(), ident(c)))
			}
		}
		made := dst != nil && s.plan.fresh[dst.name]
		if src, _ := s.ends(t); !t.Derived && dst != nil && src == nil && !made {
			s.plan.impossible = append(s.plan.impossible, fmt.Sprintf("table %s belongs to an extension", dst.sql()))
		}
	}
}

func (s *scripter) ends(t *Table) (src, dst *relation) {
	if s.reverse {
		return t.to, t.from
	}
	return t.from, t.to
}

// rows writes what happens to rows: deletes everywhere, then updates, then
// inserts, so that no unique value is there twice. It returns what switches
// triggers on again.
func (s *scripter) rows() (after string, err error) {
	var work []*change
	for _, t := range s.Tables {
		src, dst := s.ends(t)
		if t.Derived || src == nil || dst == nil || s.plan.fresh[dst.name] {
			continue
		}
		c := &change{scripter: s, t: t, srcRel: src, dstRel: dst}
		after += c.triggers()
		work = append(work, c)
	}
	for _, step := range []func(*change) error{(*change).deletes, (*change).updates, (*change).inserts} {
		for _, c := range work {
			if err := step(c); err != nil {
				return "", fmt.Errorf("write %s: %w", printable(c.dstRel.sql(), 200), err)
			}
		}
	}
	fresh := slices.SortedFunc(maps.Keys(s.plan.fresh), compareNames)
	for _, n := range fresh {
		if r := s.dst.tables[n]; r != nil && r.kind == 'r' {
			if err := s.fill(r); err != nil {
				return "", fmt.Errorf("write %s: %w", printable(n.sql(), 200), err)
			}
		}
	}
	return after, nil
}

// fill writes all rows of a table that is made anew.
func (s *scripter) fill(r *relation) error {
	t := newTable(nil, r)
	for _, c := range t.Columns {
		if s.redacted(t, c) {
			fmt.Fprintf(s.w, "DO $mayfly$ BEGIN RAISE EXCEPTION 'mayfly: a table that is made anew has a redacted column'; END $mayfly$;\n")
			return nil
		}
	}
	c := &change{scripter: s, t: t, dstRel: r}
	var tids []tid
	err := s.dst.query(s.ctx, "SELECT ctid FROM ONLY "+r.sql(), func(v [][]byte) error {
		at, err := parseTID(string(v[0]))
		tids = append(tids, at)
		return err
	})
	if err != nil {
		return err
	}
	return c.insert(tids)
}

// sequences sets those that stand elsewhere, and all of them when some were
// made anew.
func (s *scripter) sequences() {
	set := map[name]bool{}
	for _, c := range s.Sequences {
		set[name{c.Schema, c.Name}] = true
	}
	for _, n := range slices.SortedFunc(maps.Keys(s.dst.at), compareNames) {
		if at := s.dst.at[n]; set[n] || s.plan.sequences {
			sql := literal([]byte(n.sql()))
			fmt.Fprintf(s.w, "INSERT INTO pg_temp.mayfly_seen SELECT %s, pg_catalog.setval(%[1]s, %d, %t), %[2]d;\n", sql, at.Last, at.Called)
		}
	}
}

// refresh fills materialized views again. What they show then follows from
// their query.
func (s *scripter) refresh() {
	stale := maps.Clone(s.plan.fresh)
	for _, t := range s.Tables {
		if t.Derived {
			stale[name{t.Schema, t.Name}] = true
		}
	}
	for _, o := range s.dst.objects { // a view on another one comes after it
		r := s.dst.tables[name{o.schema, o.tag}]
		if o.kind != "MATERIALIZED VIEW" || r == nil || !stale[r.name] {
			continue
		}
		without := ""
		if !r.populated {
			without = " WITH NO DATA"
		}
		fmt.Fprintf(s.w, "REFRESH MATERIALIZED VIEW %s%s;\n", r.sql(), without)
	}
}

func join[T any](items []T, f func(T) string) string {
	var out []string
	for _, i := range items {
		out = append(out, f(i))
	}
	return strings.Join(out, ", ")
}
