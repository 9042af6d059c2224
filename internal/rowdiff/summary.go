package rowdiff

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"strings"
)

// What a summary shows of each part before it says how much more there is.
const (
	summaryRows    = 10
	summaryObjects = 40
	summaryWidth   = 80
)

// Summary writes the difference for a person, in lines of up to 80
// characters: what happened to each table with its first rows, then the
// schema, sequences and large objects.
func (d *Diff) Summary(ctx context.Context, w io.Writer) error {
	out := &summary{bufio.NewWriter(w)}
	if d.Empty() && len(d.Tables) == 0 {
		out.line("no changes")
		return out.Flush()
	}
	for _, t := range d.Tables {
		if err := d.summarise(ctx, out, t); err != nil {
			return err
		}
	}
	summaryList(out, "schema", d.Schema, schemaLine)
	summaryList(out, "sequences", d.Sequences, sequenceLine)
	summaryList(out, "large objects", d.LargeObjects, largeLine)
	return out.Flush()
}

type summary struct{ *bufio.Writer }

// line writes a line, cut at the width; what comes from the database must be
// printable already.
func (s *summary) line(format string, args ...any) {
	s.WriteString(printable(fmt.Sprintf(format, args...), summaryWidth) + "\n")
}

// shortName leaves out the schema public and quotes that a name does not need.
func shortName(schema, table string) string {
	if schema != "public" {
		table = schema + "." + table
	}
	return printable(table, 40)
}

func (d *Diff) summarise(ctx context.Context, out *summary, t *Table) error {
	var facts []string
	if t.Status != Changed {
		facts = append(facts, string(t.Status))
	}
	for _, n := range []struct {
		n    int64
		what string
	}{{t.Inserted, "inserted"}, {t.Deleted, "deleted"}, {t.Updated, "updated"}} {
		if n.n > 0 {
			facts = append(facts, fmt.Sprintf("%d %s", n.n, n.what))
		}
	}
	if t.RowsBefore >= 0 {
		facts = append(facts, fmt.Sprintf("%d rows before, %d after", t.RowsBefore, t.RowsAfter))
	}
	if t.Unlogged {
		facts = append(facts, "unlogged")
	}
	if t.Derived {
		facts = append(facts, "materialized view")
	}
	out.line("%s: %s", shortName(t.Schema, t.Name), strings.Join(facts, ", "))
	n := 0
	for r, err := range d.Rows(ctx, t) {
		if err != nil {
			return err
		}
		if n++; n > summaryRows {
			out.line("  … and %d more", t.Changed()-summaryRows)
			break
		}
		out.line("  %s", rowLine(r))
	}
	return nil
}

// rowLine is a row in one line: + inserted, - deleted, ~ updated.
func rowLine(r Row) string {
	switch r.Op {
	case Insert:
		return "+ " + fieldList(r.New)
	case Delete:
		return "- " + fieldList(r.Old)
	}
	olds := map[string]Value{}
	for _, f := range r.Old {
		olds[f.Column] = f.Value
	}
	var parts []string
	for _, f := range r.New {
		parts = append(parts, printable(f.Column, 30)+": "+showValue(olds[f.Column])+" → "+showValue(f.Value))
		delete(olds, f.Column)
	}
	for _, f := range r.Old {
		if v, lost := olds[f.Column]; lost {
			parts = append(parts, printable(f.Column, 30)+": "+showValue(v)+" is lost")
		}
	}
	return "~ " + fieldList(r.Key) + "  " + strings.Join(parts, ", ")
}

func fieldList(fs []Field) string {
	return join(fs, func(f Field) string { return printable(f.Column, 30) + "=" + showValue(f.Value) })
}

func showValue(v Value) string {
	switch {
	case v.Redacted:
		return "(redacted)"
	case v.Null:
		return "null"
	case v.Large:
		return fmt.Sprintf("(%d bytes, sha256 %.12s)", v.Size, v.SHA256)
	}
	return printable(v.Text, 40)
}

func summaryList[T any](out *summary, title string, items []T, line func(T) string) {
	if len(items) == 0 {
		return
	}
	out.line("%s:", title)
	for i, item := range items {
		if i == summaryObjects {
			out.line("  … and %d more", len(items)-i)
			return
		}
		out.line("  %s", line(item))
	}
}

func schemaLine(c SchemaChange) string {
	sign := map[string]string{"create": "+", "drop": "-", "alter": "~"}[c.Op]
	return sign + " " + strings.ToLower(printable(c.Kind, 30)) + " " + shortName(c.Schema, c.Name)
}

func sequenceLine(c SequenceChange) string {
	show := func(s *Sequence) string {
		switch {
		case s == nil:
			return "absent"
		case !s.Called:
			return fmt.Sprintf("%d is next", s.Last)
		}
		return fmt.Sprint(s.Last)
	}
	return shortName(c.Schema, c.Name) + ": " + show(c.Old) + " → " + show(c.New)
}

func largeLine(l LargeObject) string {
	switch {
	case l.OldSize < 0:
		return fmt.Sprintf("+ %d (%d bytes)", l.OID, l.NewSize)
	case l.NewSize < 0:
		return fmt.Sprintf("- %d (%d bytes)", l.OID, l.OldSize)
	}
	return fmt.Sprintf("~ %d (%d → %d bytes, %d pages)", l.OID, l.OldSize, l.NewSize, l.Pages)
}
