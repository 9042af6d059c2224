//go:build linux

package escape

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"text/tabwriter"

	"mayfly.dev/mayfly/internal/guest"
	"mayfly.dev/mayfly/internal/sandbox"
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

func TestEveryDoorIsShut(t *testing.T) {
	w := newWorld(t)
	iso := newIsolation(t)
	a := w.newEnvironment(t, iso.runtime, "a", 0x10000000, nil)
	b := w.newEnvironment(t, iso.runtime, "b", 0x10010000, nil)
	w.occupy(t, b)
	for _, d := range doors {
		t.Run(d.row(), func(t *testing.T) {
			outside := w.outside(t, d)
			inside := a.try(t, d.tty, append(w.expand(d.args+" "+d.in), d.name))
			report.add(iso.name, d.row(), d.inside(iso, inside), d.outside(outside))
			if inside.Open && !(iso.emulate && d.emulated != "") {
				t.Errorf("open inside: %s", inside.Detail)
			}
			if !outside.Open && !d.absent(outside) {
				t.Errorf("the control found it shut outside, too: %s", outside.Detail)
			}
		})
	}
}

// occupy gives the environment beside the one under test a file and a
// process to look for.
func (w *world) occupy(t *testing.T, b *environment) {
	t.Helper()
	w.neighbour = b
	w.vars["marker-b"] = "neighbour-" + rand.Text()
	w.vars["file-b"] = "/workspace/secret-b"
	w.vars["file-b-host"] = filepath.Join(b.spec.Upper, "workspace/secret-b")
	script := `printf %s "$0" >/workspace/secret-b; chmod 644 /workspace/secret-b; setsid /probe/probe -marker "$0" -count 600 sleep >/dev/null 2>&1 &`
	if _, exit, err := b.run(t.Context(), guest.Command{Argv: []string{"/bin/sh", "-c", script, w.vars["marker-b"]}}); err != nil || exit.Code != 0 {
		t.Fatalf("set the neighbour up: exit %+v, %v", exit, err)
	}
}

func (d door) inside(iso isolation, r result) string {
	switch {
	case !r.Open:
		return "shut"
	case iso.emulate && d.emulated != "":
		return "contained: " + d.emulated
	}
	return "OPEN: " + r.Detail
}

func (d door) outside(r result) string {
	switch {
	case r.Open:
		return "open"
	case d.absent(r):
		return "not in this kernel: " + r.Detail
	}
	return "SHUT: " + r.Detail
}

// TestDoorsStayShutFromNestedUserNamespaces tries again as root of user,
// mount, network, process and ipc namespaces made inside, where an environment
// allows them.
func TestDoorsStayShutFromNestedUserNamespaces(t *testing.T) {
	w := newWorld(t)
	iso := newIsolation(t)
	a := w.newEnvironment(t, iso.runtime, "nested", 0x10000000, func(s *sandbox.Spec) { s.Nested = true })
	if r := a.try(t, false, []string{"-userns", "-pidns", "mount-in-own-namespace"}); !r.Open {
		t.Errorf("a user namespace inside is of no use: %s", r.Detail)
	}
	b := w.newEnvironment(t, iso.runtime, "nested-b", 0x10010000, nil)
	w.occupy(t, b)
	for _, d := range doors {
		if !d.nested {
			continue
		}
		t.Run(d.row(), func(t *testing.T) {
			inside := a.try(t, d.tty, append(append([]string{"-userns"}, w.expand(d.args+" "+d.in)...), d.name))
			report.add(iso.name+", nested", d.row(), d.inside(iso, inside), "as above")
			if inside.Open && !(iso.emulate && d.emulated != "") {
				t.Errorf("open inside: %s", inside.Detail)
			}
		})
	}
}
