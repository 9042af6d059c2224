package main

import (
	"encoding/json"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// TestSectionsMeasure runs the program itself, with little. The workloads on
// files have a test beside them.
func TestSectionsMeasure(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("environments need root")
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin+"/", "mayfly.dev/mayfly/cmd/mayfly", "mayfly.dev/mayfly/cmd/mayfly-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	output := filepath.Join(t.TempDir(), "results.json")
	tiny := sizes{rounds: 2, few: 1, burst: 3, small: 100, large: 200, idle: 3, baseIdle: 2, database: 8, huge: 16, clones: 2, seconds: 1}
	if err := run(t.Context(), bin, "start|run|burst|volume|idle|replay|database", output, tiny); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(output)
	if err != nil {
		t.Fatal(err)
	}
	var results []Result
	if err := json.Unmarshal(b, &results); err != nil {
		t.Fatal(err)
	}
	seen := map[string]Result{}
	for _, r := range results {
		seen[r.Name+" against "+r.BaselineName] = r
	}
	for _, name := range []string{
		"create, cold, until ready against bwrap", "create, cold, until ready against runc run",
		"mayfly run --rm -- true against bwrap", "burst of 3: create, p99 against bwrap",
		"snapshot, 100 files against cp -a", "rollback, 200 files against on 100 files",
		"fork, 100 files against cp -a", "diff of 50 files, 200 files against diff -rq",
		"delete, 100 files against rm -rf", "idle x3: memory, PSS against bwrap",
		"clone 8 MB to SELECT, p50 against cp -a", "clone 8 MB to SELECT, p50 against pg_dump, pg_restore", "clone 16 MB to SELECT against of 8 MB",
		"rollback, files and 8 MB against CREATE DATABASE TEMPLATE", "rollback of 8 MB alone against CREATE DATABASE TEMPLATE", "2 clones at once, all against one",
		"replay of 2 steps against recorded run",
		"idle instance, PSS against plain", "pgbench inside against plain",
	} {
		if r := seen[name]; r.Value <= 0 || r.Baseline <= 0 {
			t.Errorf("%s: got = %+v, want a value and a baseline", name, r)
		}
	}
}

func TestQuantilesAreNearestRank(t *testing.T) {
	var s samples
	for i := 100; i >= 1; i-- {
		s = append(s, float64(i))
	}
	if got := s.quantile(0.99); got != 99 {
		t.Errorf("p99 of 1..100: got = %v, want 99", got)
	}
	if got := s.median(); got != 50.5 {
		t.Errorf("median of 1..100: got = %v, want 50.5", got)
	}
	if got := (samples{7}).quantile(0.99); got != 7 {
		t.Errorf("p99 of one sample: got = %v, want 7", got)
	}
	if got := (samples{}).median(); !math.IsNaN(got) {
		t.Errorf("median of nothing: got = %v, want NaN", got)
	}
}

func TestGoalsDecideOK(t *testing.T) {
	r := samples{4, 5, 6}.result("x", "ms").against("b", 2)
	if r.Ratio != 2.5 || !r.OK {
		t.Errorf("got ratio = %v, ok = %v, want 2.5 and ok without a goal", r.Ratio, r.OK)
	}
	if got := r.atMost(5); !got.OK || got.Goal != "<= 5 ms" {
		t.Errorf("got = %+v, want ok at the limit", got)
	}
	if got := r.ratioAtMost(2); got.OK {
		t.Errorf("got = %+v, want a miss", got)
	}
}

func TestRowsStayWithin80ColumnsUnlessTheyMiss(t *testing.T) {
	r := Result{Name: strings.Repeat("name ", 10), Unit: "ms", Value: 123456, P99: 99999.5, Baseline: 12345.6,
		BaselineName: "something long", Ratio: 12.25, Goal: "<= 1x", OK: true}
	var b strings.Builder
	writeHeader(&b)
	writeRow(&b, r)
	for line := range strings.Lines(b.String()) {
		if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > 80 {
			t.Errorf("line of %d columns: %q", n, line)
		}
	}
	r.OK = false
	b.Reset()
	writeRow(&b, r)
	if !strings.Contains(b.String(), "MISS <= 1x") {
		t.Errorf("got = %q, want it to tell the miss", b.String())
	}
}

func TestJSONHasTheDocumentedFields(t *testing.T) {
	path := filepath.Join(t.TempDir(), "out.json")
	if err := writeJSON(path, []Result{{Name: "n", Unit: "ms", Value: 1, P99: 2, Baseline: 3, BaselineName: "b", Ratio: 4, Goal: "g", OK: true}}); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got []map[string]any
	if err := json.Unmarshal(b, &got); err != nil || len(got) != 1 {
		t.Fatalf("got = %s, %v; want an array of one", b, err)
	}
	for _, name := range []string{"name", "unit", "value", "p99", "baseline", "baseline_name", "ratio", "goal", "ok"} {
		if _, ok := got[0][name]; !ok {
			t.Errorf("field %q is missing in %s", name, b)
		}
	}
}

func TestDescendantsFindChildrenOfChildren(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 60 & wait")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	for range 1000 {
		below, err := descendants(cmd.Process.Pid)
		if err != nil {
			t.Fatal(err)
		}
		if len(below) == 1 {
			child, err := os.FindProcess(below[0])
			if err == nil {
				child.Kill()
			}
			return
		}
	}
	t.Error("the sleeping child was not found")
}

func TestFilledTreesHaveTheirNumberOfFiles(t *testing.T) {
	dir := t.TempDir()
	if err := fill(dir, 250); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "d*", "f*.txt"))
	if err != nil || len(files) != 250 {
		t.Errorf("got = %d files, %v; want 250", len(files), err)
	}
}
