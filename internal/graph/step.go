package graph

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"

	"mayfly.dev/mayfly"
)

// StepText writes one step whole: what was asked, what the model thought and
// said, each action with its result, and the effects. The error is NotFound
// when there is no such step.
func StepText(w io.Writer, g mayfly.Graph, number int, o TreeOptions) error {
	x := indexOf(&g)
	var s *mayfly.Step
	for i := range g.Steps {
		if g.Steps[i].Number == number {
			s = &g.Steps[i]
		}
	}
	if s == nil {
		return mayfly.Errorf(mayfly.NotFound, "run %s has no step %d", line(g.Run), number).
			Hint("list its steps with: mayfly graph %s", line(g.Run))
	}
	if o.Width == 0 {
		o.Width = 80
	}
	t := stepText{tree: tree{w: bufio.NewWriter(w), x: x, o: o}, s: s}
	t.head()
	t.say()
	for _, n := range x.of(number, mayfly.ActionNode) {
		t.action(n)
	}
	t.effects()
	return t.w.Flush()
}

type stepText struct {
	tree
	s *mayfly.Step
}

func (t *stepText) fact(name, value string) {
	if value != "" {
		t.paint(paint{dim, fmt.Sprintf("%-11s", name)})
		t.w.WriteString(line(value) + "\n")
	}
}

func (t *stepText) head() {
	s := t.s
	t.paint(paint{bold, fmt.Sprintf("step %d", s.Number)})
	t.w.WriteString(" of " + line(t.x.g.Run) + "\n")
	t.fact("agent", s.Agent)
	t.fact("model", s.Model)
	t.fact("parameters", parameters(s.Parameter))
	t.fact("system", s.System)
	t.fact("tools", s.Tools)
	t.fact("usage", usage(s.Usage))
	if !s.Start.IsZero() && !s.End.IsZero() {
		took := duration(s.End.Sub(s.Start))
		if !s.FirstByte.IsZero() {
			took += ", first byte after " + duration(s.FirstByte.Sub(s.Start))
		}
		if !s.Done.IsZero() {
			took += ", actions " + duration(s.Done.Sub(s.End))
		}
		t.fact("time", took)
	}
	t.fact("exchanges", strings.Join(s.Exchanges, " "))
	t.fact("before", s.Before)
	t.fact("after", s.After)
}

func parameters(p mayfly.Parameters) string {
	var list []string
	float := func(name string, v *float64) {
		if v != nil {
			list = append(list, name+" "+strconv.FormatFloat(*v, 'g', -1, 64))
		}
	}
	whole := func(name string, v *int64) {
		if v != nil {
			list = append(list, fmt.Sprintf("%s %d", name, *v))
		}
	}
	float("temperature", p.Temperature)
	float("top_p", p.TopP)
	whole("top_k", p.TopK)
	whole("max_tokens", p.MaxTokens)
	whole("seed", p.Seed)
	if p.Reasoning != "" {
		list = append(list, "reasoning "+p.Reasoning)
	}
	return strings.Join(list, ", ")
}

// block writes a text below a title.
func (t *stepText) block(colour, title, text string) {
	t.w.WriteByte('\n')
	t.paint(paint{colour, title})
	t.w.WriteByte('\n')
	for l := range strings.Lines(strings.TrimRight(clean(text), "\n")) {
		t.w.WriteString("  " + strings.TrimRight(l, "\n") + "\n")
	}
}

func (t *stepText) say() {
	for _, n := range t.x.ofStep[t.s.Number] {
		switch n.Kind {
		case mayfly.PromptNode:
			t.block(blue, "prompt", n.Text)
		case mayfly.CompactNode:
			t.block(yellow, "summary", n.Text)
		case mayfly.OutputNode:
			if n.Thinking != "" {
				t.block(dim, "thinking", n.Thinking)
			}
			if n.Failed {
				t.block(red, "failed", n.Text)
			} else if n.Text != "" {
				t.block(green, "output", n.Text)
			}
		}
	}
}

func (t *stepText) action(n *mayfly.Node) {
	title := "action " + line(n.Tool)
	if n.Call != "" {
		title += " " + line(n.Call)
	}
	if len(n.Sources) > 0 {
		title += " (" + line(strings.Join(n.Sources, ", ")) + ")"
	}
	t.block(bold, title, pretty(n.Input))
	for _, a := range t.x.lanes[n.ID] {
		t.fact("  started", "agent "+name(a))
	}
	r := t.x.results[n.ID]
	switch {
	case r == nil:
		t.block(yellow, "no result", "")
	case r.Refused:
		t.block(yellow, "refused", r.Text)
	case r.Failed:
		t.block(red, "failed, "+size(len(r.Text)), r.Text)
	default:
		t.block(green, "result, "+size(len(r.Text)), r.Text)
	}
}

// pretty indents JSON, with the characters that some encoders escape for HTML
// as they are, and leaves everything else.
func pretty(s string) string {
	var b bytes.Buffer
	if !strings.HasPrefix(s, "{") || json.Indent(&b, []byte(s), "", "  ") != nil {
		return s
	}
	return unescaped.Replace(b.String())
}

// unescaped leaves a backslash, and what it escapes, alone.
var unescaped = strings.NewReplacer(`\\`, `\\`, `\u003c`, "<", `\u003e`, ">", `\u0026`, "&")

func (t *stepText) effects() {
	var files, started []string
	for _, c := range t.s.Files {
		files = append(files, change(c))
	}
	for _, p := range t.s.Processes {
		started = append(started, fmt.Sprintf("%d %s", p.PID, line(strings.Join(p.Command, " "))))
	}
	for _, e := range []struct {
		title string
		list  []string
	}{{plural(len(files), "file"), files}, {processes(len(started)), started}, {"reached", t.s.Reached}} {
		if len(e.list) > 0 {
			t.block(yellow, e.title, strings.Join(e.list, "\n"))
		}
	}
}
