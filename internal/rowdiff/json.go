package rowdiff

import (
	"bufio"
	"context"
	"encoding/hex"
	"encoding/json"
	"io"
	"unicode/utf8"
)

// The names in these types are part of the interface.

type jsonDiff struct {
	Schema       []jsonSchema   `json:"schema"`
	Sequences    []jsonSequence `json:"sequences"`
	LargeObjects []jsonLarge    `json:"large_objects"`
}

type jsonSchema struct {
	Op     string `json:"op"` // create, drop, alter
	Kind   string `json:"kind"`
	Schema string `json:"schema,omitempty"`
	Name   string `json:"name"`
	Old    string `json:"old,omitempty"` // SQL
	New    string `json:"new,omitempty"`
}

type jsonSequence struct {
	Schema string    `json:"schema"`
	Name   string    `json:"name"`
	Old    *Sequence `json:"old"`
	New    *Sequence `json:"new"`
}

type jsonLarge struct {
	OID      uint32 `json:"oid"`
	OldSize  int64  `json:"old_size"` // -1 where it does not exist
	NewSize  int64  `json:"new_size"`
	OldOwner string `json:"old_owner,omitempty"`
	NewOwner string `json:"new_owner,omitempty"`
	Pages    int    `json:"pages"` // that differ, of 2048 bytes
}

type jsonTable struct {
	Schema     string   `json:"schema"`
	Name       string   `json:"name"`
	Status     Status   `json:"status"` // changed, created, dropped
	Unlogged   bool     `json:"unlogged,omitempty"`
	Derived    bool     `json:"derived,omitempty"` // a materialized view
	Key        []string `json:"key"`
	Columns    []string `json:"columns"`
	Inserted   int64    `json:"inserted"`
	Deleted    int64    `json:"deleted"`
	Updated    int64    `json:"updated"`
	RowsBefore *int64   `json:"rows_before,omitempty"`
	RowsAfter  *int64   `json:"rows_after,omitempty"`
}

type jsonRow struct {
	Op  string               `json:"op"` // insert, delete, update
	Key map[string]jsonValue `json:"key,omitempty"`
	Old map[string]jsonValue `json:"old,omitempty"`
	New map[string]jsonValue `json:"new,omitempty"`
}

// jsonValue is null, the text of the value, or an object: {"redacted":true},
// {"size":n,"sha256":"…"} of a large value, {"hex":"…"} of text that is not
// UTF-8.
type jsonValue Value

func (v jsonValue) MarshalJSON() ([]byte, error) {
	switch {
	case v.Redacted:
		return []byte(`{"redacted":true}`), nil
	case v.Null:
		return []byte("null"), nil
	case v.Large:
		return json.Marshal(map[string]any{"size": v.Size, "sha256": v.SHA256})
	case !utf8.ValidString(v.Text):
		return json.Marshal(map[string]string{"hex": hex.EncodeToString([]byte(v.Text))})
	}
	return json.Marshal(v.Text)
}

func jsonFields(fs []Field) map[string]jsonValue {
	m := map[string]jsonValue{}
	for _, f := range fs {
		m[f.Column] = jsonValue(f.Value)
	}
	return m
}

// JSON writes the whole difference as one object: tables with their rows,
// then schema, sequences and large_objects. Rows are streamed.
func (d *Diff) JSON(ctx context.Context, w io.Writer) error {
	out := bufio.NewWriterSize(w, 64<<10)
	out.WriteString(`{"tables":[`)
	for i, t := range d.Tables {
		if i > 0 {
			out.WriteByte(',')
		}
		if err := d.tableJSON(ctx, out, t); err != nil {
			return err
		}
	}
	rest := jsonDiff{[]jsonSchema{}, []jsonSequence{}, []jsonLarge{}}
	for _, c := range d.Schema {
		rest.Schema = append(rest.Schema, jsonSchema(c))
	}
	for _, s := range d.Sequences {
		rest.Sequences = append(rest.Sequences, jsonSequence(s))
	}
	for _, l := range d.LargeObjects {
		rest.LargeObjects = append(rest.LargeObjects, jsonLarge(l))
	}
	b, err := json.Marshal(rest)
	if err != nil {
		return err
	}
	out.WriteString("],")
	out.Write(b[1:])
	out.WriteByte('\n')
	return out.Flush()
}

func (d *Diff) tableJSON(ctx context.Context, out *bufio.Writer, t *Table) error {
	j := jsonTable{Schema: t.Schema, Name: t.Name, Status: t.Status, Unlogged: t.Unlogged, Derived: t.Derived,
		Key: append([]string{}, t.Key...), Columns: append([]string{}, t.Columns...),
		Inserted: t.Inserted, Deleted: t.Deleted, Updated: t.Updated}
	if t.RowsBefore >= 0 {
		j.RowsBefore, j.RowsAfter = &t.RowsBefore, &t.RowsAfter
	}
	b, err := json.Marshal(j)
	if err != nil {
		return err
	}
	out.Write(b[:len(b)-1])
	out.WriteString(`,"rows":[`)
	first := true
	for r, err := range d.Rows(ctx, t) {
		if err != nil {
			return err
		}
		b, err := json.Marshal(jsonRow{r.Op.String(), jsonFields(r.Key), jsonFields(r.Old), jsonFields(r.New)})
		if err != nil {
			return err
		}
		if !first {
			out.WriteByte(',')
		}
		first = false
		out.Write(b)
	}
	_, err = out.WriteString("]}")
	return err
}
