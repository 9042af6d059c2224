package agreement

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"sync"
)

// Test is what a program said about one of its tests.
type Test struct {
	Name   string
	Status string // "passed", "failed" or "skipped"
}

// maxLine bounds the lines that are looked at, maxTests how many tests are
// told apart.
const (
	maxLine  = 4 << 10
	maxTests = 20_000
)

// escapes are what terminals are coloured with.
var escapes = lazily("\x1b\\[[0-9;]*[A-Za-z]")

// lazily compiles a regular expression when it is first used, and not at the
// start of every program that links this package.
func lazily(expr string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(expr) })
}

// Tests finds the tests that a program speaks of: the lines of go test (with
// and without -json), pytest, TAP, cargo test, and jest and its like. A test
// that is spoken of twice has failed if it did once.
func Tests(output []byte) []Test {
	t := &tests{at: map[string]int{}}
	for line := range bytes.Lines(output) {
		if len(line) > maxLine {
			continue
		}
		s := escapes().ReplaceAllString(strings.TrimRight(string(line), "\r\n"), "")
		for _, read := range readers {
			if read(t, s) {
				break
			}
		}
	}
	return t.list
}

type tests struct {
	list []Test
	at   map[string]int // position in list, by name
	file string         // that jest is speaking of
}

func (t *tests) add(name, status string) {
	name = strings.TrimSpace(name)
	if i, ok := t.at[name]; ok {
		if status == "failed" {
			t.list[i].Status = status
		}
		return
	}
	if name == "" || len(t.list) == maxTests {
		return
	}
	t.at[name] = len(t.list)
	t.list = append(t.list, Test{name, status})
}

// statuses are the words of all programs for the three ways to end.
var statuses = map[string]string{
	"PASS": "passed", "pass": "passed", "ok": "passed", "PASSED": "passed", "XPASS": "passed", "✓": "passed", "√": "passed",
	"FAIL": "failed", "fail": "failed", "not ok": "failed", "FAILED": "failed", "ERROR": "failed", "✕": "failed", "×": "failed", "✗": "failed",
	"SKIP": "skipped", "skip": "skipped", "SKIPPED": "skipped", "XFAIL": "skipped", "ignored": "skipped", "○": "skipped", "↓": "skipped",
}

// readers know a format each; they report whether a line is one of it.
var readers = []func(t *tests, line string) bool{
	(*tests).goJSON,
	pattern(`^\s*--- (PASS|FAIL|SKIP): (.+?) \([0-9.]+s\)$`, 1, 2),
	pattern(`^(ok|FAIL)\s+([\w./-]+)\s+(?:\(cached\)|[0-9.]+s)`, 1, 2),
	pattern(`^test (.+?) \.\.\. (ok|FAILED|ignored)`, 2, 1),
	pattern(`^(\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b`, 2, 1),
	pattern(`^(FAILED|ERROR) (\S+::\S+)`, 1, 2),
	(*tests).tap,
	(*tests).jest,
}

// pattern makes a reader of a regular expression, two of whose groups are the
// status and the name.
func pattern(expr string, status, name int) func(*tests, string) bool {
	re := lazily(expr)
	return func(t *tests, line string) bool {
		m := re().FindStringSubmatch(line)
		if m != nil {
			t.add(m[name], statuses[m[status]])
		}
		return m != nil
	}
}

// goJSON reads what go test -json writes (go doc test2json).
func (t *tests) goJSON(line string) bool {
	if !strings.HasPrefix(line, "{") {
		return false
	}
	var event struct{ Action, Package, Test string }
	if json.Unmarshal([]byte(line), &event) != nil || event.Package == "" {
		return false
	}
	if status := statuses[event.Action]; status != "" && (status != "skipped" || event.Test != "") {
		t.add(strings.TrimSuffix(event.Package+" "+event.Test, " "), status)
	}
	return true
}

var tapLine = lazily(`^\s*(ok|not ok)\s+(\d+)\s*(?:- )?(.*)$`)

// tap reads the Test Anything Protocol, version 14.
func (t *tests) tap(line string) bool {
	m := tapLine().FindStringSubmatch(line)
	if m == nil {
		return false
	}
	name, directive, _ := strings.Cut(" "+m[3], " # ")
	if strings.TrimSpace(name) == "" {
		name = "test " + m[2]
	}
	status := statuses[m[1]]
	switch directive = strings.ToUpper(directive); {
	case strings.HasPrefix(directive, "SKIP"), strings.HasPrefix(directive, "TODO"):
		status = "skipped"
	}
	t.add(name, status)
	return true
}

var (
	jestFile = lazily(`^(PASS|FAIL)\s+(\S+\.[cm]?[jt]sx?)\b`)
	jestTest = lazily(`^\s+(✓|√|✕|×|✗|○|↓)\s+(?:skipped )?(.+?)(?: \([0-9.]+ ?m?s\))?$`)
)

// jest reads what jest and vitest write for people.
func (t *tests) jest(line string) bool {
	if m := jestFile().FindStringSubmatch(line); m != nil {
		t.file = m[2]
		t.add(m[2], statuses[m[1]])
		return true
	}
	if m := jestTest().FindStringSubmatch(line); m != nil {
		name := m[2]
		if t.file != "" {
			name = t.file + " › " + name
		}
		t.add(name, statuses[m[1]])
		return true
	}
	return false
}
