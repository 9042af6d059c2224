package doctor

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestTableStaysWithin80ColumnsExceptCommands(t *testing.T) {
	findings := []Finding{
		{Name: "overlay", Status: Missing, Required: true, Detail: strings.Repeat("some words ", 30),
			Needs: strings.Repeat("für alles ", 20), Error: strings.Repeat("invalid argument ", 9), Fix: strings.Repeat("modprobe overlay;", 9)},
		{Name: "git", Status: OK, Detail: "git version 2"},
	}
	var out strings.Builder
	if err := WriteText(&out, findings); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(out.String()) {
		line = strings.TrimSuffix(line, "\n")
		if n := utf8.RuneCountInString(line); n > 80 && !strings.Contains(line, "fix:") {
			t.Errorf("line of %d columns: %q", n, line)
		}
	}
	if want := "repaired: overlay\n"; !strings.HasSuffix(out.String(), want) {
		t.Errorf("got = %q, want it to end in %q", out.String(), want)
	}
	if !strings.Contains(out.String(), findings[0].Fix) {
		t.Error("the command is broken or missing")
	}
}

func TestUsableMeansNothingRequiredIsMissing(t *testing.T) {
	for _, c := range []struct {
		f    Finding
		want bool
	}{
		{Finding{Status: OK, Required: true}, true},
		{Finding{Status: Degraded, Required: true}, true},
		{Finding{Status: Missing}, true},
		{Finding{Status: Missing, Required: true}, false},
	} {
		if got := Usable([]Finding{c.f}); got != c.want {
			t.Errorf("Usable(%+v) = %v, want %v", c.f, got, c.want)
		}
	}
}

func TestCheckOfAStateDirectoryThatDoesNotExist(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "yet")
	for _, f := range Check(t.Context(), dir) {
		if f.Detail == "" || f.Needs == "" {
			t.Errorf("%s: empty detail or purpose: %+v", f.Name, f)
		}
		if f.Status != OK && f.Status != Degraded && f.Status != Missing {
			t.Errorf("%s: status = %q", f.Name, f.Status)
		}
	}
	if _, err := os.Stat(filepath.Dir(dir)); !os.IsNotExist(err) {
		t.Errorf("the state directory was made: %v", err)
	}
}

func TestCheckAfterTheContextEndsStillAnswers(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := len(Check(ctx, t.TempDir())); got != len(probes) {
		t.Errorf("got = %d findings, want %d", got, len(probes))
	}
}

func TestFindingsHaveStableFieldNames(t *testing.T) {
	b, err := json.Marshal(Finding{Name: "n", Status: OK, Detail: "d", Needs: "x", Fix: "f", Required: true, Took: 1, Error: "e"})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"name":"n","status":"ok","detail":"d","needs":"x","fix":"f","required":true,"took_us":1,"error":"e"}`
	if string(b) != want {
		t.Errorf("got = %s, want %s", b, want)
	}
}
