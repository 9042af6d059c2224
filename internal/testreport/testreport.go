// Command testreport runs "go test -json" with its arguments, shows a line per
// package and the output of what failed, and ends with the numbers of passed,
// failed and skipped tests. With CI=true a skipped test is a failure: what is
// never run there is never run.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	os.Exit(run(os.Args[1:], os.Getenv("CI") == "true"))
}

func run(args []string, strict bool) int {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		return 1
	}
	// An interrupt reaches the tests through the terminal; wait for their
	// cleaning up.
	signal.Ignore(syscall.SIGINT)
	if err := cmd.Start(); err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		return 1
	}
	r := newReport(os.Stdout)
	readErr := r.read(out)
	waitErr := cmd.Wait()
	r.summary()
	return r.status(strict, errors.Join(readErr, waitErr))
}

// event is one line of test2json (see "go doc test2json").
type event struct {
	Action     string
	Package    string
	ImportPath string // of build output
	Test       string
	Elapsed    float64 // seconds
	Output     string
}

// report gathers the events of one go test.
type report struct {
	w                       io.Writer
	passed, failed, skipped int
	output                  map[string][]string // of tests and packages that have not passed yet
	skips                   []string
	slow                    []timing
	started                 time.Time
}

type timing struct {
	name    string
	elapsed float64
}

func newReport(w io.Writer) *report {
	return &report{w: w, output: map[string][]string{}, started: time.Now()}
}

func (r *report) read(in io.Reader) error {
	lines := bufio.NewReader(in)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			var e event
			if json.Unmarshal(line, &e) != nil {
				fmt.Fprintf(r.w, "%s", line)
			} else {
				r.add(e)
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read test output: %w", err)
		}
	}
}

func (r *report) add(e event) {
	key := e.Package + " " + e.Test
	switch e.Action {
	case "output":
		r.output[key] = append(r.output[key], e.Output)
	case "build-output":
		fmt.Fprint(r.w, e.Output)
	case "pass":
		r.ended(e, key)
	case "skip":
		// A package without test files "skips" too; that is no test.
		if e.Test != "" {
			r.skipped++
			r.skips = append(r.skips, name(e)+reason(r.output[key]))
		}
		delete(r.output, key)
	case "fail":
		r.show(e, key)
	}
}

// ended counts a test that passed, or closes a package that did.
func (r *report) ended(e event, key string) {
	if e.Test != "" {
		r.passed++
		r.slow = append(r.slow, timing{name(e), e.Elapsed})
	} else {
		cached := ""
		if strings.Contains(strings.Join(r.output[key], ""), "(cached)") {
			cached = " (cached)"
		}
		fmt.Fprintf(r.w, "ok    %6.1fs  %s%s\n", e.Elapsed, short(e.Package), cached)
	}
	delete(r.output, key)
}

func (r *report) show(e event, key string) {
	if e.Test != "" {
		r.failed++
	} else if e.Elapsed == 0 && len(r.output[key]) == 0 {
		// The package did not build; its output has been shown.
		r.failed++
	}
	for _, line := range r.output[key] {
		fmt.Fprint(r.w, line)
	}
	if e.Test == "" {
		fmt.Fprintf(r.w, "FAIL  %6.1fs  %s\n", e.Elapsed, short(e.Package))
	}
	delete(r.output, key)
}

// summary prints what needs attention, then one line of numbers.
func (r *report) summary() {
	fmt.Fprintln(r.w)
	for _, s := range r.skips {
		fmt.Fprintf(r.w, "skipped: %s\n", s)
	}
	slices.SortFunc(r.slow, func(a, b timing) int { return cmp.Compare(b.elapsed, a.elapsed) })
	for _, t := range r.slow[:min(5, len(r.slow))] {
		if t.elapsed >= 5 {
			fmt.Fprintf(r.w, "slow: %5.1fs %s\n", t.elapsed, t.name)
		}
	}
	fmt.Fprintf(r.w, "took %s\n", time.Since(r.started).Round(time.Second))
	fmt.Fprintf(r.w, "%d passed, %d failed, %d skipped\n", r.passed, r.failed, r.skipped)
}

// status is the exit status: 0 only when tests ran, all passed, and, when
// strict, none was skipped.
func (r *report) status(strict bool, err error) int {
	switch {
	case err != nil || r.failed > 0:
		if r.failed == 0 {
			fmt.Fprintln(os.Stderr, "testreport:", err)
		}
		return 1
	case strict && r.skipped > 0:
		fmt.Fprintln(os.Stderr, "testreport: CI=true and tests were skipped")
		return 1
	case r.passed == 0:
		fmt.Fprintln(os.Stderr, "testreport: no test ran")
		return 1
	}
	return 0
}

func name(e event) string { return short(e.Package) + "." + e.Test }

// short is a package path without the module's.
func short(pkg string) string {
	return strings.TrimPrefix(strings.TrimPrefix(pkg, "mayfly.dev/mayfly"), "/")
}

// reason finds what a test said when it skipped: the last line that is not one
// of the framework's.
func reason(lines []string) string {
	for _, l := range slices.Backward(lines) {
		l = strings.TrimSpace(l)
		if l != "" && !strings.HasPrefix(l, "---") && !strings.HasPrefix(l, "===") {
			return ": " + l
		}
	}
	return ""
}
