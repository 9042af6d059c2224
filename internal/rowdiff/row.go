package rowdiff

import (
	"context"
	"encoding/hex"
	"fmt"
	"iter"
	"slices"
	"strconv"
	"strings"
)

// Row is a row that differs.
type Row struct {
	Op  Op
	Key []Field // of a table with a key: in the old state, or of an inserted row
	Old []Field // all columns of a deleted row, the changed ones of an updated one
	New []Field
}

// Field is the value of a column.
type Field struct {
	Column string
	Value
}

// Value is the text that the type's output function gives, or for a large
// value its size and digest.
type Value struct {
	Null     bool
	Text     string
	Large    bool
	Size     int64 // bytes of the text, or of the bytea, of a large value
	SHA256   string
	Redacted bool
}

// record is a row of one side, its values in the order of the columns.
type record []Value

// rowsPerQuery bounds the rows that are held for writing.
const rowsPerQuery = 64

// Rows reads the rows of a table that differ: inserted ones, deleted ones,
// then updated ones. An error ends the sequence. Only one sequence may be
// read at a time.
func (d *Diff) Rows(ctx context.Context, t *Table) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		for chunk := range slices.Chunk(t.changes, rowsPerQuery) {
			rows, err := d.fetch(ctx, t, chunk)
			if err != nil {
				yield(Row{}, err)
				return
			}
			for _, r := range rows {
				if !yield(d.redact(t, r), nil) {
					return
				}
			}
		}
	}
}

// fetch reads both states of some rows.
func (d *Diff) fetch(ctx context.Context, t *Table, changes []rowChange) ([]Row, error) {
	olds, err := d.from.records(ctx, t.from, changes, true, d.opts.MaxValue)
	if err != nil {
		return nil, err
	}
	news, err := d.to.records(ctx, t.to, changes, false, d.opts.MaxValue)
	if err != nil {
		return nil, err
	}
	var out []Row
	for _, c := range changes {
		r := Row{Op: c.op}
		if c.op != Insert {
			r.Old = fields(t.from, olds[c.from])
		}
		if c.op != Delete {
			r.New = fields(t.to, news[c.to])
		}
		r.Key = keyOf(t, append(slices.Clone(r.Old), r.New...))
		if c.op == Update {
			r.Old, r.New = t.changedFields(r.Old, r.New)
		}
		out = append(out, r)
	}
	return out, nil
}

func fields(r *relation, values record) []Field {
	var out []Field
	for i, v := range values {
		out = append(out, Field{r.columns[i].name, v})
	}
	return out
}

// keyOf picks the key, from the old state first.
func keyOf(t *Table, all []Field) []Field {
	var out []Field
	for _, k := range t.Key {
		if i := slices.IndexFunc(all, func(f Field) bool { return f.Column == k }); i >= 0 {
			out = append(out, all[i])
		}
	}
	return out
}

// changedFields leaves out what is equal, and what a column shows that the
// other state lacks.
func (t *Table) changedFields(old, now []Field) (a, b []Field) {
	find := func(fs []Field, name string) *Field {
		if i := slices.IndexFunc(fs, func(f Field) bool { return f.Column == name }); i >= 0 {
			return &fs[i]
		}
		return nil
	}
	for _, c := range t.aligned {
		x, y := find(old, c.name), find(now, c.name)
		if x != nil && y != nil && x.Value == y.Value {
			continue
		}
		if x == nil && y.Value == shown(c.to) || y == nil && x.Value == shown(c.from) {
			continue
		}
		if x != nil {
			a = append(a, *x)
		}
		if y != nil {
			b = append(b, *y)
		}
	}
	return a, b
}

// shown is the value of a column in rows that are older than it.
func shown(c *column) Value {
	if c.fast {
		return Value{Text: c.missing}
	}
	return Value{Null: true}
}

func (d *Diff) redact(t *Table, r Row) Row {
	for _, fs := range [][]Field{r.Key, r.Old, r.New} {
		for i, f := range fs {
			if d.redacted(t, f.Column) {
				fs[i].Value = Value{Redacted: true}
			}
		}
	}
	return r
}

// records reads rows by their places.
func (s *side) records(ctx context.Context, r *relation, changes []rowChange, old bool, limit int) (map[tid]record, error) {
	var tids []tid
	for _, c := range changes {
		if old && c.op != Insert {
			tids = append(tids, c.from)
		}
		if !old && c.op != Delete {
			tids = append(tids, c.to)
		}
	}
	if len(tids) == 0 {
		return nil, nil
	}
	out := map[tid]record{}
	sql := fmt.Sprintf("SELECT %s FROM ONLY %s WHERE ctid = ANY($1::tid[])", selectList(r, limit), r.sql())
	err := s.query(ctx, sql, func(v [][]byte) error {
		at, err := parseTID(string(v[0]))
		out[at] = readRecord(r, v[1:])
		return err
	}, tidArray(tids))
	if err == nil && len(out) != len(tids) {
		err = fmt.Errorf("rows of %s vanished", printable(r.sql(), 200))
	}
	if err == nil {
		err = s.measure(ctx, r, out)
	}
	return out, err
}

// selectList is the place, then each column; one of variable length is
// followed by its size, and is null when that is too large.
func selectList(r *relation, limit int) string {
	parts := []string{"ctid"}
	for _, c := range r.columns {
		id := ident(c.name)
		if c.varlena {
			size := "pg_column_size"
			if c.base == textOID || c.base == varcharOID || c.base == byteaOID {
				size = "octet_length" // before compression
			}
			id = fmt.Sprintf("CASE WHEN %s(%s) <= %d THEN %[2]s END, %[1]s(%[2]s)", size, id, limit)
		}
		parts = append(parts, id)
	}
	return strings.Join(parts, ", ")
}

func readRecord(r *relation, v [][]byte) record {
	out := make(record, len(r.columns))
	for i, c := range r.columns {
		out[i] = Value{Null: v[0] == nil, Text: string(v[0])}
		v = v[1:]
		if c.varlena {
			if out[i].Null && v[0] != nil {
				out[i] = Value{Large: true}
			}
			v = v[1:]
		}
	}
	return out
}

// measure reads the sizes and digests of large values.
func (s *side) measure(ctx context.Context, r *relation, rows map[tid]record) error {
	for at, row := range rows {
		for i := range row {
			if !row[i].Large {
				continue
			}
			c := r.columns[i]
			size, bytes := c.sizeAndBytes()
			err := s.query(ctx, fmt.Sprintf("SELECT %s, sha256(%s) FROM ONLY %s WHERE ctid = $1", size, bytes, r.sql()), func(v [][]byte) (err error) {
				row[i].Size, err = strconv.ParseInt(string(v[0]), 10, 64)
				row[i].SHA256 = strings.TrimPrefix(string(v[1]), `\x`)
				return err
			}, at.text())
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// sizeAndBytes are expressions for the size of a value and for its bytes.
func (c *column) sizeAndBytes() (size, bytes string) {
	id := ident(c.name)
	switch c.base {
	case byteaOID:
		return "octet_length(" + id + ")", id
	case textOID, varcharOID:
		return "octet_length(" + id + ")", "textsend(" + id + ")"
	}
	text := "format('%s', " + id + ")"
	return "octet_length(" + text + ")", "textsend(" + text + ")"
}

// piece is how many bytes or characters of a large value are read at a time.
const piece = 16 << 20

// pieces reads a large value, as text, or as the hexadecimal digits of a
// bytea.
func (s *side) pieces(ctx context.Context, r *relation, c *column, at tid, each func(text []byte) error) error {
	id := ident(c.name)
	expression := "format('%s', " + id + ")"
	if c.base == byteaOID || c.base == textOID || c.base == varcharOID {
		expression = id
	}
	for from := 1; ; from += piece {
		n := 0
		sql := fmt.Sprintf("SELECT substring(%s, %d, %d) FROM ONLY %s WHERE ctid = $1", expression, from, piece, r.sql())
		format := int16(0)
		if c.base == byteaOID {
			format = 1
		}
		err := s.read(ctx, sql, []int16{format}, func(v [][]byte) error {
			if n = len(v[0]); n == 0 {
				return nil
			}
			if c.base == byteaOID {
				return each([]byte(hex.EncodeToString(v[0])))
			}
			return each(v[0])
		}, at.text())
		if err != nil || n == 0 {
			return err
		}
	}
}

func tidArray(tids []tid) string {
	var b strings.Builder
	for i, t := range tids {
		fmt.Fprintf(&b, "%c\"%s\"", "{,"[min(i, 1)], t.text())
	}
	return b.String() + "}"
}

func parseTID(s string) (tid, error) {
	block, place, ok := strings.Cut(strings.Trim(s, "()"), ",")
	b, err1 := strconv.ParseUint(block, 10, 32)
	p, err2 := strconv.ParseUint(place, 10, 16)
	if !ok || err1 != nil || err2 != nil {
		return 0, fmt.Errorf("bad ctid %.40q", s)
	}
	return tid(b<<16 | p), nil
}
