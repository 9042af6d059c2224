package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/terminal"
)

// runOutcome says in a few words how a run is or ended.
func runOutcome(r mayfly.Run) string {
	switch r.Phase {
	case mayfly.RunExited:
		outcome := fmt.Sprintf("exited with status %d", r.ExitCode)
		if r.Reason != "" {
			outcome += " (" + r.Reason + ")"
		}
		return outcome
	case mayfly.RunTimedOut:
		return "reached its timeout"
	case mayfly.RunKilled:
		if r.Reason != "" {
			return "was ended: " + r.Reason
		}
		return "was ended"
	case mayfly.RunFailed:
		return "could not be started"
	}
	return string(r.Phase)
}

// changed is what a run did to the files of the workspace.
type changed struct {
	files, inserted, deleted int
	first                    []mayfly.Change
}

// shownChanges is how many paths a summary names.
const shownChanges = 5

func (a *app) changes(ctx context.Context, r mayfly.Run) (changed, error) {
	body, err := a.svc().Diff(ctx, mayfly.DiffRequest{Environment: r.Environment, From: r.Baseline, To: r.Final, Format: "json"})
	if err != nil {
		return changed{}, err
	}
	defer body.Close()
	return countChanges(body)
}

// countChanges reads a list of changes without keeping it.
func countChanges(r io.Reader) (changed, error) {
	var sum changed
	d := json.NewDecoder(r)
	if _, err := d.Token(); err != nil {
		return sum, err
	}
	for d.More() {
		var c mayfly.Change
		if err := d.Decode(&c); err != nil {
			return sum, err
		}
		sum.files++
		sum.inserted += c.Inserted
		sum.deleted += c.Deleted
		if len(sum.first) < shownChanges {
			sum.first = append(sum.first, c)
		}
	}
	_, err := d.Token()
	return sum, err
}

// summarize says on standard error how a run ended, what it changed, and what
// can be done now. It never fails: the run is over, whatever this finds.
func (a *app) summarize(ctx context.Context, r mayfly.Run) {
	person := onTerminal(os.Stderr)
	if r.Remove {
		if person || r.Reason != "" {
			fmt.Fprintf(os.Stderr, "mayfly: %s after %s; environment deleted\n", terminal.Safe(runOutcome(r)), duration(r))
		}
		return
	}
	e, err := a.svc().Environment(ctx, r.Environment)
	if err != nil {
		return
	}
	outcome := fmt.Sprintf("mayfly: %s %s after %s", e.Name, runOutcome(r), duration(r))
	fmt.Fprintln(os.Stderr, terminal.Safe(outcome))
	if e.Phase == mayfly.Deleted || e.Phase == mayfly.Deleting {
		return
	}
	if r.Final != "" && r.Baseline != "" {
		sum, err := a.changes(ctx, r)
		if err == nil {
			writeChanges(os.Stderr, sum)
		}
	}
	if person {
		a.writeChoices(os.Stderr, e)
	}
}

func writeChanges(w io.Writer, sum changed) {
	if sum.files == 0 {
		fmt.Fprintln(w, "  no files changed")
		return
	}
	fmt.Fprintf(w, "  %s changed (+%d -%d)\n", plural(sum.files, "file"), sum.inserted, sum.deleted)
	for _, c := range sum.first {
		fmt.Fprintf(w, "    %s %s\n", mark(c.Kind), shorten(terminal.Safe(c.Path), 70))
	}
	if more := sum.files - len(sum.first); more > 0 {
		fmt.Fprintf(w, "    … and %d more\n", more)
	}
}

// mark is git's letter for a kind of change.
func mark(k mayfly.ChangeKind) string {
	switch k {
	case mayfly.Added:
		return "A"
	case mayfly.Removed:
		return "D"
	case mayfly.Renamed:
		return "R"
	}
	return "M"
}

func (a *app) writeChoices(w io.Writer, e mayfly.Environment) {
	end := "deleted"
	if e.Keep {
		end = "paused"
	}
	fmt.Fprintf(w, "\n  The environment is there for %s, then it is %s.\n", left(e.ExpiresAt), end)
	for _, c := range []struct{ what, command string }{
		{"see", "diff " + e.Name},
		{"keep", "apply " + e.Name + " --branch " + branchName(e)},
		{"roll back", "rollback " + e.Name},
		{"fork", "fork " + e.Name},
		{"forget", "env delete " + e.Name},
	} {
		fmt.Fprintf(w, "    %-10s %s\n", c.what, a.self(strings.TrimSpace(c.command)))
	}
}
