//go:build agents

package agents

import (
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

// report is what mayfly replay --json prints.
type report struct {
	Same        bool                `json:"same"`
	Upstream    int                 `json:"upstream"`
	Recorded    mayfly.Run          `json:"recorded"`
	Replayed    mayfly.Run          `json:"replayed"`
	Divergences []mayfly.Divergence `json:"divergences"`
}

// replay replays the run; more are flags, and another command behind "--".
func (r recorded) replay(t *testing.T, more ...string) report {
	t.Helper()
	out, err := r.Try("/", append([]string{"replay", r.graph.Run, "--rm", "--json"}, more...)...)
	var exit *exec.ExitError
	if err != nil && (!errors.As(err, &exit) || exit.ExitCode() != mayfly.Diverged.ExitStatus()) {
		t.Fatal(err)
	}
	var got report
	if jsonErr := json.Unmarshal([]byte(out), &got); jsonErr != nil {
		t.Fatalf("%v: %s, %v", jsonErr, out, err)
	}
	if got.Same != (err == nil) {
		t.Errorf("same = %v, and the status says %v", got.Same, err)
	}
	if asked := r.Model.Taken(); got.Upstream != 0 || len(asked) != 0 {
		t.Errorf("upstream: got = %d calls, the model saw %d, want none", got.Upstream, len(asked))
	}
	return got
}

func (r recorded) checkReplay(t *testing.T) {
	got := r.replay(t)
	if !got.Same || len(got.Divergences) != 0 || got.Replayed.ExitCode != 0 {
		t.Errorf("got = %+v, want the same", got)
	}
	if got.Replayed.Steps != len(r.graph.Steps) {
		t.Errorf("steps: got = %d, want %d", got.Replayed.Steps, len(r.graph.Steps))
	}
}

// checkContinue goes on after a difference: the recorded answers come to the
// end, and the report has the difference all the same.
func (r recorded) checkContinue(t *testing.T) {
	command := append([]string{"sh", "-c", `touch /var/tmp/planted; exec "$@"`, "sh"}, r.agent.Start(r.prompt)...)
	got := r.replay(t, append([]string{"--on-divergence", "continue", "--"}, command...)...)
	if got.Same || len(got.Divergences) == 0 || got.Divergences[0].Step != 2 {
		t.Errorf("got = %+v, want a difference in step 2", got.Divergences)
	}
	if got.Replayed.Steps != len(r.graph.Steps) || got.Replayed.Tree != got.Recorded.Tree {
		t.Errorf("got = %d steps and the tree %s, want %d and %s", got.Replayed.Steps, got.Replayed.Tree, len(r.graph.Steps), got.Recorded.Tree)
	}
}

// checkChanges plants a change before each of some replays, and looks for it
// in the report.
func (r recorded) checkChanges(t *testing.T) {
	changed := func(script string) []string {
		return append([]string{"sh", "-c", script + `; exec "$@"`, "sh"}, r.agent.Start(r.prompt)...)
	}
	for name, c := range map[string]struct {
		command            []string
		step               int
		recorded, replayed string
	}{
		"file":      {changed("sed -i s/easy/hard/ node_modules/fact"), 2, "easy", "hard"},
		"prompt":    {r.agent.Start("Make the test fail."), 1, "test pass", "test fail"},
		"result":    {changed("touch /var/tmp/planted"), 2, "", "planted"},
		"parameter": {r.agent.Start(r.prompt, r.agent.Parameter...), 1, r.agent.Was, r.agent.Is},
	} {
		t.Run(name, func(t *testing.T) {
			got := r.For(t).replay(t, append([]string{"--"}, c.command...)...)
			if got.Same || len(got.Divergences) == 0 {
				t.Fatalf("got = %+v, want a divergence", got)
			}
			d := got.Divergences[0]
			if r.agent.Aside && d.Step == 0 && c.step == 1 {
				d.Step = 1 // the prompt was asked aside before
			}
			if d.Step != c.step || d.Kind != "request" || d.Path == "" {
				t.Errorf("got = %+v, want one of the request of step %d", d, c.step)
			}
			if !strings.Contains(d.Recorded, c.recorded) || !strings.Contains(d.Replayed, c.replayed) || d.Recorded == d.Replayed {
				t.Errorf("sides: got = %q and %q, want %q and %q", d.Recorded, d.Replayed, c.recorded, c.replayed)
			}
		})
	}
}

// checkForks forks from every step, and compares the files with those that
// the step has left.
func (r recorded) checkForks(t *testing.T) {
	_, _, write, _, last := r.steps()
	hashes := map[int]string{}
	for step := 0; step <= last; step++ {
		name := fmt.Sprintf("fork-%d", step)
		r.Mayfly("/", "fork", r.graph.Run, "--step", fmt.Sprint(step), "--name", name)
		hashes[step] = r.hash(name)
		if want := r.hash(r.env, "--snapshot", r.after(t, step)); hashes[step] != want {
			t.Errorf("files of a fork from step %d: got = %s, want %s", step, hashes[step], want)
		}
		out := r.Mayfly("/", "exec", name, "--", "sh", "-c", "cat add.sh 2>/dev/null; true")
		want := ""
		if step >= write {
			want = "echo $(($1 + $2))\n"
		}
		if out != want {
			t.Errorf("add.sh after step %d: got = %q, want %q", step, out, want)
		}
		r.Mayfly("/", "env", "delete", name)
	}
	if hashes[1] != hashes[write-1] || hashes[write-1] == hashes[write] || hashes[write] != hashes[last] {
		t.Errorf("hashes: got = %v, want a change in step %d", hashes, write)
	}
}

// after is the snapshot with what a step has left; step 0 means what was there
// before the run.
func (r recorded) after(t *testing.T, step int) string {
	t.Helper()
	if step > 0 {
		return r.graph.Steps[step-1].After
	}
	var list []mayfly.Snapshot
	r.JSON(&list, "snapshot", "list", r.env, "--json")
	for _, s := range list {
		if s.Kind == mayfly.BaselineSnapshot && s.Run == r.graph.Run {
			return s.ID
		}
	}
	t.Fatalf("no baseline in %+v", list)
	return ""
}

func (r recorded) hash(env string, more ...string) string {
	return strings.TrimSpace(r.Mayfly("/", append([]string{"hash", env}, more...)...))
}

// checkRollback rolls back to the state before the agent wrote, and on to the
// one after: later steps are not lost.
func (r recorded) checkRollback(t *testing.T) {
	_, _, write, _, last := r.steps()
	for _, step := range []int{write - 1, 0, write, last} {
		r.Mayfly("/", "rollback", r.graph.Run, "--step", fmt.Sprint(step))
		if got, want := r.hash(r.env), r.hash(r.env, "--snapshot", r.after(t, step)); got != want {
			t.Errorf("files after a rollback to step %d: got = %s, want %s", step, got, want)
		}
		var g mayfly.Graph
		r.JSON(&g, "graph", r.graph.Run, "--json")
		if len(g.Steps) != last {
			t.Errorf("steps after a rollback to step %d: got = %d, want %d", step, len(g.Steps), last)
		}
	}
}
