// Package examples holds what the demonstration needs to what it claims.
package examples

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"mayfly.dev/mayfly/internal/manifest"
)

// goTool runs the go command in dir.
func goTool(t *testing.T, dir string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=", "CGO_ENABLED=0")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// repair runs the example's agent on a fresh copy of the example.
func repair(t *testing.T, seed string) (source, transcript []byte) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "freebusy")
	if err := os.CopyFS(dir, os.DirFS("freebusy")); err != nil {
		t.Fatal(err)
	}
	if out, err := goTool(t, dir, "test", "."); err == nil || !strings.Contains(out, "--- FAIL") {
		t.Fatalf("the example's tests do not fail before the repair: %v\n%s", err, out)
	}
	fixer := filepath.Join(t.TempDir(), "fixer")
	if out, err := goTool(t, dir, "build", "-o", fixer, "./tools/fixer"); err != nil {
		t.Fatalf("build fixer: %v\n%s", err, out)
	}
	log := filepath.Join(t.TempDir(), "transcript.jsonl")
	cmd := exec.Command(fixer, "-transcript", log)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "MAYFLY_SEED="+seed, "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("fixer: %v\n%s", err, out)
	}
	if out, err := goTool(t, dir, "test", "-count=1", "./..."); err != nil {
		t.Fatalf("tests after the repair: %v\n%s", err, out)
	}
	source, err := os.ReadFile(filepath.Join(dir, "freebusy.go"))
	if err != nil {
		t.Fatal(err)
	}
	transcript, err = os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	return source, transcript
}

func TestFixerRepairsTheExampleAlikeForOneSeed(t *testing.T) {
	source, transcript := repair(t, "7")
	again, transcriptAgain := repair(t, "7")
	if !bytes.Equal(source, again) {
		t.Error("two repairs with one seed differ in the source")
	}
	if !bytes.Equal(transcript, transcriptAgain) {
		t.Error("two repairs with one seed differ in the transcript")
	}
	for line := range bytes.Lines(transcript) {
		var c struct{ Tool string }
		if err := json.Unmarshal(line, &c); err != nil || c.Tool == "" {
			t.Errorf("transcript line %q: tool = %q, error %v", line, c.Tool, err)
		}
	}
}

func TestDemonstrationEndsWithTwoEqualTrees(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("environments need root")
	}
	bin := t.TempDir()
	if out, err := goTool(t, ".", "build", "-o", bin+"/", "mayfly.dev/mayfly/cmd/mayfly", "mayfly.dev/mayfly/cmd/mayfly-guest"); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	dir := t.TempDir()
	cmd := exec.Command("./demo.sh", bin)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("demo: %v\n%s", err, out)
	}
	for _, want := range []string{
		"+\t\tif n := len(merged); n > 0 && s.Start <= merged[n-1].End {",
		"\n Eve    | 14:00-15:00\n(4 rows)", "\nDROP TABLE\n", "\nDid not find any relations.", "\nmayfly: rolled back in ",
		"all 12 tests pass", "\nok  \texample.com/freebusy", "\nidentical, byte for byte\n",
		"\nkeep ", "\nroll back ", "\nfork ",
	} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the demonstration lacks %q:\n%s", want, out)
		}
	}
	_, after, _ := strings.Cut(string(out), "rolled back in ")
	if !strings.Contains(after, " Eve    | 14:00-15:00\n(4 rows)") || !strings.Contains(after, "\nok  \texample.com/freebusy") {
		t.Errorf("the rollback did not bring rows and files back:\n%s", out)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 || strings.Contains(string(mounts), dir) {
		t.Errorf("the demonstration left something behind: %v", left)
	}
}

func TestManifestOfTheExampleIsValid(t *testing.T) {
	m, err := manifest.Load("freebusy")
	if err != nil {
		t.Fatal(err)
	}
	if m.Name != "freebusy" || len(m.Setup) == 0 {
		t.Errorf("got = %+v, want the example's name and its setup", m)
	}
}
