package graph

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"time"

	"mayfly.dev/mayfly"
)

// TreeOptions say how a graph is drawn for people.
type TreeOptions struct {
	Color bool
	Width int // columns; 80 when 0
}

// Tree draws a graph for people: the steps, what was asked and said, the
// actions with their results, and subagents below the action that started
// them. Nothing in it makes a terminal do anything but show colours.
func Tree(w io.Writer, g mayfly.Graph, o TreeOptions) error {
	if o.Width == 0 {
		o.Width = 80
	}
	t := tree{w: bufio.NewWriter(w), x: indexOf(&g), o: o, drawn: map[string]bool{}}
	t.head()
	t.lane("", "")
	for i := range g.Agents {
		// Those whose start was not seen.
		if a := &g.Agents[i]; !t.drawn[a.ID] {
			t.print("", paint{bold, "agent " + line(name(a))})
			t.lane(a.ID, "  ")
		}
	}
	t.foot()
	return t.w.Flush()
}

type tree struct {
	w     *bufio.Writer
	x     *index
	o     TreeOptions
	drawn map[string]bool // agents
}

// paint is a text in a colour (SGR).
type paint struct{ colour, text string }

const (
	plain  = ""
	bold   = "1"
	dim    = "2"
	red    = "31"
	green  = "32"
	yellow = "33"
	blue   = "34"
)

// print writes one line, shortened to the width.
func (t *tree) print(indent string, parts ...paint) {
	left := t.o.Width - width(indent)
	t.paint(paint{dim, indent})
	for _, p := range parts {
		s := fit(p.text, max(1, left))
		if left <= 0 {
			break
		}
		t.paint(paint{p.colour, s})
		left -= width(s)
	}
	t.w.WriteByte('\n')
}

func (t *tree) paint(p paint) {
	if p.text == "" {
		return
	}
	if t.o.Color && p.colour != plain {
		fmt.Fprintf(t.w, "\x1b[%sm%s\x1b[0m", p.colour, p.text)
		return
	}
	t.w.WriteString(p.text)
}

// spread writes a line with something at its right end.
func (t *tree) spread(indent string, left []paint, right paint) {
	room := max(8, t.o.Width-width(indent)-width(right.text)-2)
	used := 0
	for i := range left {
		left[i].text = fit(left[i].text, max(1, room-used))
		used += width(left[i].text)
	}
	if right.text == "" {
		t.print(indent, left...)
		return
	}
	gap := strings.Repeat(" ", max(2, t.o.Width-width(indent)-used-width(right.text)))
	t.print(indent, append(left, paint{plain, gap}, right)...)
}

func (t *tree) head() {
	g := t.x.g
	facts := []string{plural(len(g.Steps), "step")}
	if n := len(g.Agents); n > 1 {
		facts = append(facts, plural(n, "agent"))
	}
	if s := usage(g.Usage); s != "" {
		facts = append(facts, s)
	}
	t.print("", paint{bold, line(g.Run)}, paint{plain, " · " + strings.Join(facts, " · ")})
}

// usage is what a model said that it used.
func usage(u mayfly.TokenUsage) string {
	if u == (mayfly.TokenUsage{}) {
		return ""
	}
	in := count(u.Input) + " in"
	if u.CacheRead > 0 {
		in += " (" + count(u.CacheRead) + " cached)"
	}
	return in + ", " + count(u.Output) + " out"
}

// lane draws the steps of an agent.
func (t *tree) lane(agent, indent string) {
	t.drawn[agent] = true
	for _, s := range t.x.steps[agent] {
		t.step(s, indent)
	}
	for _, n := range t.x.side[agent] {
		t.print(indent, paint{dim, "    ~ " + line(n.Tool+"  "+n.Text)})
	}
}

func (t *tree) step(s *mayfly.Step, indent string) {
	var facts []string
	if s.Model != "" {
		facts = append(facts, line(s.Model))
	}
	if n := len(s.Exchanges); n > 1 {
		facts = append(facts, fmt.Sprintf("%d tries", n))
	}
	if d := s.End.Sub(s.Start); !s.End.IsZero() && !s.Start.IsZero() {
		facts = append(facts, duration(d))
	}
	right := ""
	if s.Usage != (mayfly.TokenUsage{}) {
		right = count(s.Usage.Input) + " in, " + count(s.Usage.Output) + " out"
	}
	t.spread(indent, []paint{{bold, fmt.Sprintf("%3d ", s.Number)}, {dim, strings.Join(facts, " · ")}}, paint{dim, right})
	in := indent + "    "
	for _, n := range t.x.ofStep[s.Number] {
		if n.Agent != s.Agent {
			continue
		}
		switch n.Kind {
		case mayfly.PromptNode:
			t.print(in, paint{blue, "› "}, paint{plain, line(n.Text)})
		case mayfly.CompactNode:
			t.print(in, paint{yellow, "≡ summary  "}, paint{plain, line(n.Text)})
		case mayfly.OutputNode:
			t.output(n, in)
		}
	}
	actions := t.x.of(s.Number, mayfly.ActionNode)
	for i, n := range actions {
		t.action(n, in, i == len(actions)-1)
	}
	t.effects(s, in)
}

func (t *tree) output(n *mayfly.Node, indent string) {
	switch {
	case n.Failed:
		t.print(indent, paint{red, "✗ " + line(n.Text)})
	case n.Text != "":
		t.print(indent, paint{green, "‹ "}, paint{plain, line(n.Text)})
	case n.Thinking != "":
		t.print(indent, paint{dim, "‹ (thinks) " + line(n.Thinking)})
	}
}

func duration(d time.Duration) string {
	if d < 0 {
		d = 0
	}
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return d.Round(time.Second).String()
}

func (t *tree) action(n *mayfly.Node, indent string, last bool) {
	branch, below := "├ ", "│ "
	if last {
		branch, below = "└ ", "  "
	}
	right := paint{yellow, "no result"}
	switch r := t.x.results[n.ID]; {
	case r == nil:
	case r.Refused:
		right = paint{yellow, "refused"}
	case r.Failed:
		right = paint{red, "✗ " + size(len(r.Text))}
	default:
		right = paint{green, "✓ " + size(len(r.Text))}
	}
	t.spread(indent+branch, []paint{{bold, line(n.Tool)}, {plain, "  " + short(n.Input)}}, right)
	for _, a := range t.x.lanes[n.ID] {
		if t.drawn[a.ID] || a.ID == n.Agent {
			continue
		}
		t.print(indent+below, paint{bold, "agent " + line(name(a))})
		t.lane(a.ID, indent+below)
	}
}

// effects draws what a step changed, started and reached.
func (t *tree) effects(s *mayfly.Step, indent string) {
	const most = 3
	if n := len(s.Files); n > 0 {
		var list []string
		for _, c := range s.Files[:min(n, most)] {
			list = append(list, change(c))
		}
		t.print(indent, paint{yellow, "± " + plural(n, "file")}, paint{plain, "  " + strings.Join(list, ", ") + more(n-most)})
	}
	if n := len(s.Reached); n > 0 {
		t.print(indent, paint{yellow, "↗ "}, paint{plain, line(strings.Join(s.Reached[:min(n, most)], ", ")) + more(n-most)})
	}
	if n := len(s.Processes); n > 0 {
		t.print(indent, paint{dim, "⚙ " + processes(n)})
	}
}

func processes(n int) string {
	if n == 1 {
		return "1 process"
	}
	return fmt.Sprintf("%d processes", n)
}

func more(n int) string {
	if n > 0 {
		return fmt.Sprintf(" and %d more", n)
	}
	return ""
}

// change is a changed file in few words.
func change(c mayfly.Change) string {
	s := line(c.Path)
	if c.From != "" {
		s = line(c.From) + " → " + s
	}
	switch c.Kind {
	case mayfly.Added:
		s += " new"
	case mayfly.Removed:
		s += " removed"
	}
	if c.Inserted > 0 || c.Deleted > 0 {
		s += fmt.Sprintf(" +%d −%d", c.Inserted, c.Deleted)
	}
	return s
}

// foot names what has no other half.
func (t *tree) foot() {
	for _, id := range t.x.g.Orphans {
		n := t.x.nodes[id]
		if n == nil {
			continue
		}
		what := "a call without a result"
		if n.Kind == mayfly.ResultNode {
			what = "a result without a call"
		}
		t.print("", paint{yellow, fmt.Sprintf("! step %d: %s: %s", n.Step, what, line(n.Tool+" "+n.Call))})
	}
}
