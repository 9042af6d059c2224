//go:build agents

package agents

import (
	"slices"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

// checkGraph holds the graph to being complete, and to what the script did.
func (r recorded) checkGraph(t *testing.T) {
	g := r.graph
	if len(g.Orphans) > 0 {
		t.Errorf("orphans: got = %q, want none", g.Orphans)
	}
	look, delegate, write, test, last := r.steps()
	if len(g.Steps) != last {
		t.Fatalf("steps: got = %d, want %d:\n%s", len(g.Steps), last, r.Mayfly("/", "graph", r.env))
	}
	r.checkActions(t)
	for _, s := range g.Steps {
		if s.Model == "" || s.System == "" || s.Tools == "" || s.Usage.Input == 0 || s.Usage.Output == 0 {
			t.Errorf("step %d lacks model, prompt, tools or usage: %+v", s.Number, s)
		}
		if s.Before == "" || s.After == "" || s.End.Before(s.Start) {
			t.Errorf("step %d lacks a snapshot or an end: %+v", s.Number, s)
		}
		want := 1
		if s.Number == test {
			want = 2 // the first was refused
		}
		if len(s.Exchanges) != want {
			t.Errorf("exchanges of step %d: got = %d, want %d", s.Number, len(s.Exchanges), want)
		}
		r.checkFiles(t, s, s.Number == write)
	}
	if n := len(r.actions(look)); n != 2 && !r.agent.Program || n != 1 && r.agent.Program {
		t.Errorf("actions at once in step %d: got = %d", look, n)
	}
	if delegate > 0 {
		r.checkSubagent(t, delegate)
	}
}

// actions are the tool calls of a step.
func (r recorded) actions(step int) []mayfly.Node {
	var list []mayfly.Node
	for _, n := range r.graph.Nodes {
		if n.Kind == mayfly.ActionNode && n.Step == step {
			list = append(list, n)
		}
	}
	return list
}

// checkActions looks for the result of every action.
func (r recorded) checkActions(t *testing.T) {
	t.Helper()
	results := map[string]mayfly.Node{}
	for _, n := range r.graph.Nodes {
		if n.Kind == mayfly.ResultNode {
			results[n.ID] = n
		}
	}
	actions := 0
	for _, n := range r.graph.Nodes {
		if n.Kind != mayfly.ActionNode {
			continue
		}
		actions++
		var found []mayfly.Node
		for _, e := range r.graph.Edges {
			if result, ok := results[e.To]; ok && e.From == n.ID && e.Kind == "returns" {
				found = append(found, result)
			}
		}
		if len(found) != 1 || found[0].Failed || n.Tool == "" || n.Input == "" {
			t.Errorf("step %d: action %+v has the results %+v", n.Step, n, found)
		}
	}
	want := map[bool]int{false: 5, true: 3}[r.agent.Program]
	if r.agent.Delegates {
		want += 2
	}
	if actions != want {
		t.Errorf("actions: got = %d, want %d", actions, want)
	}
}

// checkFiles holds the files of a step to those that it wrote.
func (r recorded) checkFiles(t *testing.T, s mayfly.Step, wrote bool) {
	t.Helper()
	var got []string
	for _, f := range s.Files {
		if strings.HasPrefix(f.Path, "workspace/") || strings.HasPrefix(f.Path, "/workspace/") || !strings.Contains(f.Path, "/") {
			got = append(got, strings.TrimPrefix(strings.TrimPrefix(f.Path, "/"), "workspace/"))
		}
	}
	slices.Sort(got)
	var want []string
	if wrote {
		want = []string{"add.sh", "notes.txt"}
	}
	if !slices.Equal(got, want) {
		t.Errorf("files of step %d: got = %q of %+v, want %q", s.Number, got, s.Files, want)
	}
}

// checkSubagent looks for the lane of the subagent, which the delegating
// action has started.
func (r recorded) checkSubagent(t *testing.T, step int) {
	t.Helper()
	if len(r.graph.Agents) != 2 {
		t.Fatalf("agents: got = %+v, want the main one and another", r.graph.Agents)
	}
	main, sub := r.graph.Agents[0], r.graph.Agents[1]
	actions := r.actions(step)
	if main.ID != "" || sub.ID == "" || len(actions) != 1 || sub.Parent != actions[0].ID {
		t.Errorf("agents: got = %+v, started by %+v", r.graph.Agents, actions)
	}
	for _, s := range r.graph.Steps {
		if inside := s.Number == step+1 || s.Number == step+2; (s.Agent == sub.ID) != inside {
			t.Errorf("step %d: agent = %q", s.Number, s.Agent)
		}
	}
}
