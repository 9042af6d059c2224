// Package agreement compares runs that should have gone alike: what the agents
// did, what came of it, which files it left, and what their tests said.
package agreement

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"mayfly.dev/mayfly"
)

// Outcome is what of a run is compared. What is empty in all runs is not.
type Outcome struct {
	Run    mayfly.Run
	Graph  mayfly.Graph
	Tree   string            // hash of the final workspace
	Files  map[string]string // what the run did to each file, as a digest: see Files
	Output []byte            // what it wrote, for the tests that it speaks of
}

// Difference is a thing that the runs disagree about.
type Difference struct {
	Kind   string  `json:"kind"`           // "status", "steps", "action", "result", "tree", "file" or "test"
	Name   string  `json:"name,omitempty"` // of the file or test, or where in the graph
	Step   int     `json:"step,omitempty"`
	Values []Value `json:"values"` // the most frequent first
}

// Value is what some of the runs have.
type Value struct {
	Value string `json:"value"` // shortened; empty: nothing
	Runs  []int  `json:"runs"`  // 1, 2, … in the order of the runs
}

// fact is one thing that can be compared.
type fact struct {
	kind, name string
	step       int
	value      string
}

// key tells facts of different things apart.
type key struct{ kind, name string }

// Compare lists what the runs disagree about, in the order in which it
// happened.
func Compare(runs []Outcome) []Difference {
	var order []key
	steps := map[key]int{}
	values := map[key][]string{}
	for i, o := range runs {
		for _, f := range o.facts() {
			k := key{f.kind, f.name}
			if values[k] == nil {
				values[k] = make([]string, len(runs))
				steps[k] = f.step
				order = append(order, k)
			}
			values[k][i] = f.value
		}
	}
	var all []Difference
	for _, k := range order {
		if groups := group(values[k]); len(groups) > 1 {
			all = append(all, Difference{k.kind, k.name, steps[k], groups})
		}
	}
	slices.SortStableFunc(all, func(a, b Difference) int { return rank(a) - rank(b) })
	return all
}

// rank puts what happened in a run before what it left.
func rank(d Difference) int {
	if d.Kind == "action" || d.Kind == "result" {
		return d.Step
	}
	return 1 << 30
}

// group collects equal values, the most frequent first.
func group(values []string) []Value {
	var groups []Value
	for i, v := range values {
		at := slices.IndexFunc(groups, func(g Value) bool { return g.Value == v })
		if at < 0 {
			at = len(groups)
			groups = append(groups, Value{Value: v})
		}
		groups[at].Runs = append(groups[at].Runs, i+1)
	}
	slices.SortStableFunc(groups, func(a, b Value) int { return len(b.Runs) - len(a.Runs) })
	texts := make([]string, len(groups))
	for i, g := range groups {
		texts[i] = g.Value
	}
	same := common(texts)
	for i := range groups {
		groups[i].Value = Shorten(groups[i].Value, same)
	}
	return groups
}

// common is the length of what all texts begin with, in bytes.
func common(texts []string) int {
	n := len(texts[0])
	for _, t := range texts[1:] {
		n = min(n, len(t))
		for i := range n {
			if t[i] != texts[0][i] {
				n = i
				break
			}
		}
	}
	return n
}

// shown is how much of a value is shown, and before how much of what differs.
const (
	shown  = 160
	before = 40
)

// Shorten cuts a text to the part around position at.
func Shorten(s string, at int) string {
	head, tail := "", ""
	if at > before && len(s) > shown {
		s, head = s[min(at-before, len(s)):], "…"
	}
	if len(s) > shown {
		s, tail = s[:shown], "…"
	}
	return head + strings.ToValidUTF8(s, "") + tail
}

func (o Outcome) facts() []fact {
	all := o.conduct()
	status := fmt.Sprint(o.Run.ExitCode)
	if o.Run.Phase != mayfly.RunExited {
		status = strings.TrimSpace(string(o.Run.Phase) + " " + o.Run.Reason)
	}
	all = append(all, fact{"status", "", 0, status}, fact{"steps", "", 0, fmt.Sprint(len(o.Graph.Steps))})
	for _, t := range Tests(o.Output) {
		all = append(all, fact{"test", t.Name, 0, t.Status})
	}
	if o.Tree != "" {
		all = append(all, fact{"tree", "", 0, o.Tree})
	}
	for _, name := range sortedKeys(o.Files) {
		all = append(all, fact{"file", name, 0, o.Files[name]})
	}
	return all
}

// conduct is what the agents did, and what came of it.
func (o Outcome) conduct() []fact {
	var all []fact
	results := map[string]mayfly.Node{}
	for _, e := range o.Graph.Edges {
		if e.Kind == "returns" {
			results[e.From] = mayfly.Node{ID: e.To}
		}
	}
	nodes := map[string]mayfly.Node{}
	for _, n := range o.Graph.Nodes {
		nodes[n.ID] = n
	}
	lanes := laneNames(o.Graph)
	turn := map[int]int{} // of its agent, by step
	turns := map[string]int{}
	for _, step := range o.Graph.Steps {
		turns[step.Agent]++
		turn[step.Number] = turns[step.Agent]
	}
	place := map[int]int{} // actions so far, by step
	for _, n := range o.Graph.Nodes {
		if n.Kind != mayfly.ActionNode {
			continue
		}
		place[n.Step]++
		name := fmt.Sprintf("%sturn %d, action %d", lanes[n.Agent], turn[n.Step], place[n.Step])
		all = append(all, fact{"action", name, n.Step, strings.TrimSpace(n.Tool + " " + n.Input)})
		if r, ok := results[n.ID]; ok {
			r = nodes[r.ID]
			all = append(all, fact{"result", name, n.Step, steady(r)})
		}
	}
	return all
}

// laneNames names the agents of a graph by who started them, in which order:
// their ids and the steps in between differ from run to run.
func laneNames(g mayfly.Graph) map[string]string {
	place := map[string]int{} // of nodes
	agent := map[string]string{}
	for i, n := range g.Nodes {
		place[n.ID], agent[n.ID] = i, n.Agent
	}
	lanes := slices.Clone(g.Agents)
	slices.SortStableFunc(lanes, func(a, b mayfly.AgentLane) int { return place[a.Parent] - place[b.Parent] })
	names := map[string]string{"": ""}
	count := map[string]int{}
	for _, l := range lanes {
		if l.ID == "" {
			continue
		}
		kind := names[agent[l.Parent]] + cmp.Or(l.Name, "subagent")
		count[kind]++
		names[l.ID] = fmt.Sprintf("%s %d, ", kind, count[kind])
	}
	return names
}

// took matches how long something took, which differs from run to run.
var took = lazily(`\b\d+(\.\d+)?\s?(ns|µs|us|ms|s|sec|seconds)\b`)

// steady is the text of a result without what differs in each run.
func steady(n mayfly.Node) string {
	text := took().ReplaceAllString(n.Text, "#s")
	if n.Failed {
		text = "failed: " + text
	}
	return text
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
