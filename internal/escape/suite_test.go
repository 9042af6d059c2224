//go:build linux

package escape

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"text/tabwriter"
)

// TestControlsFindEveryDoorOpen shows that the probes work: outside, each
// finds its door open, but for those that this kernel was built without.
func TestControlsFindEveryDoorOpen(t *testing.T) {
	w := newWorld(t)
	// Nothing is of another environment yet: its places are outside, too.
	w.vars["file-b-host"], w.vars["marker-b"] = w.vars["secret"], w.vars["marker"]
	for _, d := range doors {
		t.Run(d.row(), func(t *testing.T) {
			r := w.outside(t, d)
			if !r.Open && !d.absent(r) {
				t.Errorf("shut outside, too: %s", r.Detail)
			}
		})
	}
}

func (d door) row() string {
	if d.as != "" {
		return d.as
	}
	return d.name
}

// absent reports whether the control found no door because the kernel has no
// such thing.
func (d door) absent(outside result) bool {
	return d.lacking != "" && strings.Contains(outside.Detail, d.lacking)
}

// table collects what was found and shows it at the end: in the file that
// MAYFLY_ESCAPE_TABLE names, and on standard output.
type table struct{ rows [][4]string }

var report table

func (r *table) add(suite, row, inside, outside string) {
	r.rows = append(r.rows, [4]string{suite, row, inside, outside})
}

func (r *table) print() {
	if len(r.rows) == 0 {
		return
	}
	var text strings.Builder
	w := tabwriter.NewWriter(&text, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "isolation\tdoor\tinside\toutside (control)")
	for _, row := range r.rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", row[0], row[1], row[2], row[3])
	}
	w.Flush()
	fmt.Print(text.String())
	if f := os.Getenv("MAYFLY_ESCAPE_TABLE"); f != "" {
		if err := os.WriteFile(f, []byte(text.String()), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

func TestMain(m *testing.M) {
	code := m.Run()
	report.print()
	os.Exit(code)
}
