package rowdiff

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// Table is a table with rows that differ, or that exists on one side alone.
type Table struct {
	Schema, Name string
	Status       Status
	Unlogged     bool // empty in clones of an instance that was not shut down
	Derived      bool // a materialized view
	Key          []string
	Columns      []string // of both states
	Inserted     int64
	Deleted      int64
	Updated      int64
	// RowsBefore and RowsAfter are -1 unless Options.Counts asked for them.
	RowsBefore, RowsAfter int64

	from, to *relation
	aligned  []aligned
	changes  []rowChange
}

// Status says what became of a table.
type Status string

const (
	Changed Status = "changed"
	Created Status = "created"
	Dropped Status = "dropped"
)

// Changed is the number of rows that differ.
func (t *Table) Changed() int64 { return t.Inserted + t.Deleted + t.Updated }

// aligned is a column as both states have it; nil where one does not.
type aligned struct {
	name     string
	from, to *column
}

// rowChange is a row that differs, by where it lies on each side.
type rowChange struct {
	op       Op
	from, to tid
}

// Op says what became of a row.
type Op byte

const (
	Insert Op = iota + 1
	Delete
	Update
)

func (o Op) String() string { return [...]string{"", "insert", "delete", "update"}[o] }

// tid is a ctid: the block above 16 bits of position.
type tid uint64

func (t tid) text() string { return fmt.Sprintf("(%d,%d)", t>>16, t&0xffff) }

func newTable(from, to *relation) *Table {
	t := &Table{from: from, to: to, Status: Changed, RowsBefore: -1, RowsAfter: -1}
	r := to
	switch {
	case from == nil:
		t.Status = Created
	case to == nil:
		t.Status, r = Dropped, from
	}
	t.Schema, t.Name, t.Unlogged, t.Derived = r.schema, r.table, r.unlogged, r.kind == 'm'
	t.align()
	t.Key = t.sharedKey()
	return t
}

// align lists the columns of the old state in their order, then the added
// ones.
func (t *Table) align() {
	if t.from != nil {
		for _, c := range t.from.columns {
			a := aligned{name: c.name, from: c}
			if t.to != nil {
				a.to = t.to.column(c.name)
			}
			t.aligned = append(t.aligned, a)
		}
	}
	if t.to != nil {
		for _, c := range t.to.columns {
			if t.from == nil || t.from.column(c.name) == nil {
				t.aligned = append(t.aligned, aligned{name: c.name, to: c})
			}
		}
	}
	for _, a := range t.aligned {
		t.Columns = append(t.Columns, a.name)
	}
}

// sharedKey is the key that both states have in columns of the same types.
func (t *Table) sharedKey() []string {
	if t.from == nil || t.to == nil {
		r := t.from
		if r == nil {
			r = t.to
		}
		return r.key
	}
	if !slices.Equal(t.from.key, t.to.key) {
		return nil
	}
	for _, k := range t.from.key {
		f, g := t.from.column(k), t.to.column(k)
		if f == nil || g == nil || f.typ != g.typ || f.base != g.base {
			return nil
		}
	}
	return t.from.key
}

// sameShape reports whether rows in pages that did not change are equal: no
// column was dropped or has another type, and added ones show a constant.
func (t *Table) sameShape() bool {
	for _, a := range t.aligned {
		if a.to == nil || a.from != nil && a.from.typ != a.to.typ || a.from == nil && a.to.generated {
			return false
		}
	}
	return true
}

// compared tells whether rows are compared by the column: a generated one that
// exists on one side alone follows from the others.
func (a aligned) compared() bool {
	if a.from == nil {
		return !a.to.generated
	}
	return a.to != nil || !a.from.generated
}

// side of an aligned column, and the other one.
func (a aligned) of(old bool) (mine, other *column) {
	if old {
		return a.from, a.to
	}
	return a.to, a.from
}

const (
	textOID    = 25
	varcharOID = 1043
	byteaOID   = 17
)

// maxFormat is the size in bytes above which a text or bytea is put into a
// row's digest as a digest of its own.
const maxFormat = 1 << 20

// digest is the expression for the SHA-256 of a row. It is the same for equal
// rows on both sides: a column that the side lacks counts as the constant
// that adding it would show.
func (t *Table) digest(old bool) string {
	var parts []string
	for _, a := range t.aligned {
		if !a.compared() {
			continue
		}
		mine, other := a.of(old)
		switch {
		case mine == nil:
			parts = append(parts, "format('%L', "+constant(other)+")")
		case other != nil && other.base != mine.base:
			parts = append(parts, "format('%L', "+ident(a.name)+")")
		default:
			parts = append(parts, valueText(a.name, mine))
		}
	}
	return sha(parts)
}

// constant is what a column shows in rows that are older than it.
func constant(c *column) string {
	if c.fast {
		return literal([]byte(c.missing)) + "::text"
	}
	return "NULL::text"
}

// valueText is an expression for the text of a value, unambiguous beside
// others. format calls the type's output function, and no cast.
func valueText(name string, c *column) string {
	id := ident(name)
	switch c.base {
	case textOID, varcharOID:
		return fmt.Sprintf("CASE WHEN octet_length(%s) > %d THEN encode(sha256(textsend(%[1]s)), 'hex') ELSE format('%%L', %[1]s) END", id, maxFormat)
	case byteaOID:
		return fmt.Sprintf("CASE WHEN octet_length(%s) > %d THEN encode(sha256(%[1]s), 'hex') ELSE format('%%L', %[1]s) END", id, maxFormat)
	}
	return "format('%L', " + id + ")"
}

func sha(parts []string) string {
	if len(parts) == 0 {
		return "sha256('')"
	}
	return "sha256(textsend(" + strings.Join(parts, " || ',' || ") + "))"
}

// keyDigest is the expression for the SHA-256 of a row's key.
func (t *Table) keyDigest() string {
	var parts []string
	for _, k := range t.Key {
		parts = append(parts, "format('%L', "+ident(k)+")")
	}
	return sha(parts)
}

// compareTables compares every table that either side has.
func (d *Diff) compareTables(ctx context.Context, b *blocks) error {
	var names []name
	for _, s := range d.sides() {
		for n := range s.tables {
			names = append(names, n)
		}
	}
	slices.SortFunc(names, compareNames)
	for _, n := range slices.Compact(names) {
		t := newTable(d.from.tables[n], d.to.tables[n])
		if err := d.compareTable(ctx, b, t); err != nil {
			return fmt.Errorf("compare %s: %w", printable(n.sql(), 200), err)
		}
		if t.Changed() == 0 && t.Status == Changed {
			continue
		}
		if err := d.countRows(ctx, t); err != nil {
			return err
		}
		d.Tables = append(d.Tables, t)
	}
	return nil
}

func (d *Diff) compareTable(ctx context.Context, b *blocks, t *Table) error {
	ranges, err := b.changed(ctx, t)
	if err != nil || ranges != nil && len(ranges) == 0 {
		return err
	}
	if t.changes, err = d.match(ctx, t, ranges); err != nil {
		return err
	}
	for _, c := range t.changes {
		switch c.op {
		case Insert:
			t.Inserted++
		case Delete:
			t.Deleted++
		case Update:
			t.Updated++
		}
	}
	return nil
}

// countRows counts the old rows; how many there are now follows.
func (d *Diff) countRows(ctx context.Context, t *Table) error {
	if d.opts.CountedBytes == 0 {
		return nil
	}
	before := int64(0)
	if t.from != nil {
		n, ok, err := d.from.count(ctx, t.from, d.opts.CountedBytes)
		if err != nil || !ok {
			return err
		}
		before = n
	}
	t.RowsBefore, t.RowsAfter = before, before+t.Inserted-t.Deleted
	return nil
}
