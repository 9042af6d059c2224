package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// tools are all that the agent can do. Each call is shown and written to the
// transcript with its input and output.
type tools struct {
	dir    string
	log    io.Writer
	budget int // calls
	calls  int
}

// call is one line of the transcript.
type call struct {
	Call   int    `json:"call"`
	Tool   string `json:"tool"`
	Input  any    `json:"input"`
	Output any    `json:"output"`
}

func (t *tools) record(tool string, input, output any, remark string) error {
	t.calls++
	if t.calls > t.budget {
		return fmt.Errorf("the budget of %d tool calls is used up", t.budget)
	}
	line, err := json.Marshal(call{t.calls, tool, input, output})
	if err != nil {
		return fmt.Errorf("encode tool call: %w", err)
	}
	if _, err := t.log.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("write transcript: %w", err)
	}
	fmt.Printf("%4d  %-11s %s\n", t.calls, tool, clip(remark, 61))
	return nil
}

// testResult is what a run of the tests showed.
type testResult struct {
	Passed []string `json:"passed"`
	Failed []string `json:"failed"`
	Broken string   `json:"broken,omitempty"` // the compiler's complaint
	Output string   `json:"output"`           // of the tests, without times
}

var duration = regexp.MustCompile(`\b\d+\.\d+s\b`)

// runTests runs all tests of the package.
func (t *tools) runTests() (testResult, error) {
	args := []string{"test", "-json", "-count=1", "-vet=off", "-timeout=10s", "."}
	cmd := exec.Command("go", args...)
	cmd.Dir = t.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		return testResult{}, fmt.Errorf("run tests: %w", err)
	}
	r := parseTests(out)
	if len(r.Passed)+len(r.Failed) == 0 {
		r.Broken += stderr.String()
	}
	return r, t.record("run_tests", args, r, r.String())
}

func parseTests(out []byte) testResult {
	r := testResult{Passed: []string{}, Failed: []string{}}
	var text strings.Builder
	lines := bufio.NewScanner(bytes.NewReader(out))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct{ Action, Test, Output string }
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			continue
		}
		switch {
		case e.Action == "build-output":
			r.Broken += e.Output
		case e.Action == "output":
			text.WriteString(duration.ReplaceAllString(e.Output, "0.00s"))
		case e.Action == "pass" && e.Test != "":
			r.Passed = append(r.Passed, e.Test)
		case e.Action == "fail" && e.Test != "":
			r.Failed = append(r.Failed, e.Test)
		case e.Action == "fail" && len(r.Failed) == 0 && r.Broken == "":
			r.Broken = "the test program ended early"
		}
	}
	slices.Sort(r.Passed)
	slices.Sort(r.Failed)
	r.Output = text.String()
	return r
}

func (r testResult) String() string {
	switch n := len(r.Passed) + len(r.Failed); {
	case r.Broken != "":
		return "does not build"
	case len(r.Failed) == 0:
		return fmt.Sprintf("all %s pass", plural(n, "test"))
	default:
		return fmt.Sprintf("%d of %d fail: %s", len(r.Failed), n, strings.Join(r.Failed, ", "))
	}
}

// traceResult tells which blocks each test executes.
type traceResult struct {
	Executed map[string][]block `json:"executed"`
}

// traceTests runs each test by itself and records what it executes.
func (t *tools) traceTests(tests []string) (traceResult, error) {
	r := traceResult{Executed: map[string][]block{}}
	scratch, err := os.MkdirTemp("", "fixer-")
	if err != nil {
		return r, fmt.Errorf("trace tests: %w", err)
	}
	defer os.RemoveAll(scratch)
	program := filepath.Join(scratch, "program")
	build := exec.Command("go", "test", "-c", "-cover", "-vet=off", "-o", program, ".")
	build.Dir = t.dir
	if out, err := build.CombinedOutput(); err != nil {
		return r, fmt.Errorf("build tests: %w: %s", err, out)
	}
	for _, test := range tests {
		profile := filepath.Join(scratch, "profile")
		cmd := exec.Command(program, "-test.run", "^"+test+"$", "-test.coverprofile", profile)
		cmd.Dir = t.dir
		// Failing is what some of them do; the profile is written all the same.
		cmd.Run()
		text, err := os.ReadFile(profile)
		if err != nil {
			return r, fmt.Errorf("trace %s: %w", test, err)
		}
		r.Executed[test] = parseProfile(string(text))
	}
	return r, t.record("trace_tests", tests, r, plural(len(tests), "test")+" one by one")
}

// parseProfile reads the executed blocks of a coverage profile.
func parseProfile(text string) []block {
	var blocks []block
	for line := range strings.Lines(text) {
		path, rest, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		b := block{File: filepath.Base(path)}
		var statements, count int
		n, _ := fmt.Sscanf(rest, "%d.%d,%d.%d %d %d", &b.StartLine, &b.StartCol, &b.EndLine, &b.EndCol, &statements, &count)
		if n == 6 && count > 0 {
			blocks = append(blocks, b)
		}
	}
	return blocks
}

// readFile reads a file of the package.
func (t *tools) readFile(name string) (string, error) {
	text, err := os.ReadFile(filepath.Join(t.dir, name))
	if err != nil {
		return "", fmt.Errorf("read file: %w", err)
	}
	remark := fmt.Sprintf("%s, %s", name, plural(bytes.Count(text, []byte("\n")), "line"))
	return string(text), t.record("read_file", map[string]string{"file": name}, string(text), remark)
}

// editFile makes an edit; the old text must be where the edit says.
func (t *tools) editFile(e edit) error {
	path := filepath.Join(t.dir, e.File)
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("edit file: %w", err)
	}
	lines := strings.SplitAfter(string(text), "\n")
	if e.Line > len(lines) {
		return fmt.Errorf("edit %s: no line %d", e.File, e.Line)
	}
	line := lines[e.Line-1]
	if e.Column > len(line) || !strings.HasPrefix(line[e.Column-1:], e.Old) {
		return fmt.Errorf("edit %s:%d:%d: %q is not there", e.File, e.Line, e.Column, e.Old)
	}
	line = line[:e.Column-1] + e.New + line[e.Column-1+len(e.Old):]
	lines[e.Line-1] = line
	if err := os.WriteFile(path, []byte(strings.Join(lines, "")), 0o644); err != nil {
		return fmt.Errorf("edit file: %w", err)
	}
	remark := fmt.Sprintf("line %d, %q for %q: %s", e.Line, e.New, e.Old, around(line, e))
	if e.undo {
		remark = fmt.Sprintf("line %d, taken back", e.Line)
	}
	return t.record("edit_file", e, "ok", remark)
}

// around is the part of a line that an edit is about.
func around(line string, e edit) string {
	from := max(0, e.Column-1-16)
	if i := strings.LastIndexByte(line[:e.Column-1], ' '); from > 0 && i > from {
		from += strings.IndexByte(line[from:], ' ')
	}
	return strings.TrimSpace(line[from:min(len(line), e.Column-1+len(e.New)+18)])
}
