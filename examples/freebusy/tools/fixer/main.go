// Command fixer is a small autonomous agent: it repairs a Go package until its
// tests pass.
//
// It acts only through tool calls (see tools.go) and decides by what they
// return. It runs the tests, traces which statements each test executes,
// suspects those that failing tests share and passing tests avoid, edits one
// expression there, and runs the tests again: what helps stays, what does not
// is taken back. No network, no model; the same seed gives the same calls.
package main

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
)

func main() {
	dir := flag.String("C", ".", "directory of the package to repair")
	transcript := flag.String("transcript", os.ExpandEnv("$HOME/transcript.jsonl"), "file for the tool calls, a JSON object a line")
	budget := flag.Int("calls", 200, "most tool calls to make")
	flag.Parse()
	seed, _ := strconv.ParseUint(os.Getenv("MAYFLY_SEED"), 10, 64)

	out, err := os.Create(*transcript)
	if err != nil {
		fmt.Fprintln(os.Stderr, "fixer:", err)
		os.Exit(1)
	}
	a := &agent{
		tools:  &tools{dir: *dir, log: out, budget: *budget},
		random: rand.New(rand.NewPCG(seed, 0)),
	}
	fixed, err := a.repair()
	if closeErr := out.Close(); err == nil {
		err = closeErr
	}
	switch {
	case err != nil:
		fmt.Fprintln(os.Stderr, "fixer:", err)
		os.Exit(1)
	case !fixed:
		fmt.Println("\nNo edit that I know makes the tests pass.")
		os.Exit(1)
	}
}

// agent decides which tool to call next.
type agent struct {
	tools  *tools
	random *rand.Rand
}

// repair works until every test passes; false means that it ran out of ideas.
func (a *agent) repair() (bool, error) {
	state, err := a.tools.runTests()
	if err != nil {
		return false, err
	}
	for len(state.Failed) > 0 {
		better, err := a.improve(state)
		if err != nil || better == nil {
			return false, err
		}
		state = *better
	}
	return true, nil
}

// improve finds one edit that makes more tests pass and none fail. It returns
// nil when there is none.
func (a *agent) improve(now testResult) (*testResult, error) {
	trace, err := a.tools.traceTests(slices.Concat(now.Failed, now.Passed))
	if err != nil {
		return nil, err
	}
	ideas, err := a.ideas(trace, now.Failed)
	if err != nil {
		return nil, err
	}
	for _, e := range ideas {
		if err := a.tools.editFile(e); err != nil {
			return nil, err
		}
		got, err := a.tools.runTests()
		if err != nil {
			return nil, err
		}
		if got.Broken == "" && len(got.Failed) < len(now.Failed) && containsAll(now.Failed, got.Failed) {
			return &got, nil
		}
		if err := a.tools.editFile(e.inverse()); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// ideas are the edits worth trying, the most promising first: suspicious
// places and common mistakes. The seed decides between equals.
func (a *agent) ideas(trace traceResult, failed []string) ([]edit, error) {
	suspicion := suspect(trace, failed)
	var all []edit
	for _, file := range filesOf(trace) {
		source, err := a.tools.readFile(file)
		if err != nil {
			return nil, err
		}
		edits, err := mutations(file, source)
		if err != nil {
			return nil, err
		}
		all = append(all, edits...)
	}
	a.random.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	score := func(e edit) float64 { return suspicion.at(e.File, e.Line, e.Column) / float64(e.rarity) }
	all = slices.DeleteFunc(all, func(e edit) bool { return score(e) == 0 })
	slices.SortStableFunc(all, func(x, y edit) int { return cmp.Compare(score(y), score(x)) })
	return all, nil
}

func containsAll(set, of []string) bool {
	return !slices.ContainsFunc(of, func(s string) bool { return !slices.Contains(set, s) })
}

func filesOf(trace traceResult) []string {
	var files []string
	for _, blocks := range trace.Executed {
		for _, b := range blocks {
			if !slices.Contains(files, b.File) {
				files = append(files, b.File)
			}
		}
	}
	slices.Sort(files)
	return files
}

func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// clip shortens s to n columns.
func clip(s string, n int) string {
	s = strings.TrimSpace(s)
	if len(s) > n {
		return s[:n-3] + "..."
	}
	return s
}
