package graph

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	"mayfly.dev/mayfly"
)

// labelLength is how much of a text a drawn node shows, in columns.
const labelLength = 60

// label is what a drawn node says, in lines.
func label(n mayfly.Node) []string {
	first := string(n.Kind)
	if n.Step > 0 {
		first = fmt.Sprintf("%d %s", n.Step, n.Kind)
	}
	if n.Tool != "" {
		first += " " + fit(line(n.Tool), labelLength)
	}
	switch {
	case n.Refused:
		first += " (refused)"
	case n.Failed:
		first += " (failed)"
	}
	text := n.Text
	if n.Kind == mayfly.ActionNode {
		text = short(n.Input)
	}
	if text = fit(line(text), labelLength); text == "" {
		return []string{first}
	}
	return []string{first, text}
}

// names gives each node a name that every format takes; the first of nodes
// with the same id counts.
func names(g *mayfly.Graph) map[string]string {
	m := make(map[string]string, len(g.Nodes))
	for i, n := range g.Nodes {
		if _, ok := m[n.ID]; !ok {
			m[n.ID] = fmt.Sprintf("n%d", i+1)
		}
	}
	return m
}

var dotShapes = map[mayfly.NodeKind]string{
	mayfly.PromptNode: "note", mayfly.OutputNode: "box", mayfly.ActionNode: "cds", mayfly.ResultNode: "ellipse",
	mayfly.SideNode: "component", mayfly.CompactNode: "folder",
}

// DOT draws a graph in the language of Graphviz.
func DOT(w io.Writer, g mayfly.Graph) error {
	b := bufio.NewWriter(w)
	fmt.Fprintf(b, "digraph %s {\n\trankdir=TB;\n\tnode [fontname=\"monospace\" fontsize=10];\n", dotQuote(g.Run))
	id := names(&g)
	for i, a := range lanesOf(&g) {
		fmt.Fprintf(b, "\tsubgraph cluster_%d {\n\t\tlabel=%s;\n", i, dotQuote(line(name(&a))))
		for j, n := range g.Nodes {
			if n.Agent != a.ID || id[n.ID] != fmt.Sprintf("n%d", j+1) {
				continue
			}
			shape := dotShapes[n.Kind]
			if shape == "" {
				shape = "box"
			}
			fmt.Fprintf(b, "\t\t%s [shape=%s label=%s%s];\n", id[n.ID], shape, dotQuote(label(n)...), dotColour(n))
		}
		b.WriteString("\t}\n")
	}
	for _, e := range g.Edges {
		if from, to := id[e.From], id[e.To]; from != "" && to != "" {
			fmt.Fprintf(b, "\t%s -> %s [label=%s%s];\n", from, to, dotQuote(line(e.Kind)), dotStyle(e.Kind))
		}
	}
	b.WriteString("}\n")
	return b.Flush()
}

func dotColour(n mayfly.Node) string {
	if n.Failed || n.Refused {
		return " color=red"
	}
	return ""
}

func dotStyle(kind string) string {
	switch kind {
	case "retries", "summarises":
		return " style=dashed constraint=false"
	case "spawns":
		return " style=bold"
	}
	return ""
}

// lanesOf are the agents, and those that only nodes name.
func lanesOf(g *mayfly.Graph) []mayfly.AgentLane {
	known := map[string]bool{}
	var list []mayfly.AgentLane
	add := func(a mayfly.AgentLane) {
		if !known[a.ID] {
			known[a.ID] = true
			list = append(list, a)
		}
	}
	for _, a := range g.Agents {
		add(a)
	}
	for _, n := range g.Nodes {
		add(mayfly.AgentLane{ID: n.Agent})
	}
	return list
}

// dotQuote writes lines as a quoted string of DOT.
func dotQuote(lines ...string) string {
	var out strings.Builder
	out.WriteByte('"')
	for i, s := range lines {
		if i > 0 {
			out.WriteString(`\n`)
		}
		for _, r := range line(s) {
			if r == '"' || r == '\\' {
				out.WriteByte('\\')
			}
			out.WriteRune(r)
		}
	}
	out.WriteByte('"')
	return out.String()
}

var mermaidShapes = map[mayfly.NodeKind][2]string{
	mayfly.PromptNode: {"[/", "/]"}, mayfly.OutputNode: {"[", "]"}, mayfly.ActionNode: {"[[", "]]"}, mayfly.ResultNode: {"([", "])"},
	mayfly.SideNode: {"{{", "}}"}, mayfly.CompactNode: {"[(", ")]"},
}

// Mermaid draws a graph as a flowchart of Mermaid.
func Mermaid(w io.Writer, g mayfly.Graph) error {
	b := bufio.NewWriter(w)
	b.WriteString("flowchart TD\n")
	id := names(&g)
	for i, a := range lanesOf(&g) {
		title := line(name(&a))
		if title == "" {
			title = "agent"
		}
		fmt.Fprintf(b, "  subgraph lane%d[%s]\n", i, mermaidQuote(title))
		for j, n := range g.Nodes {
			if n.Agent != a.ID || id[n.ID] != fmt.Sprintf("n%d", j+1) {
				continue
			}
			shape, ok := mermaidShapes[n.Kind]
			if !ok {
				shape = [2]string{"[", "]"}
			}
			fmt.Fprintf(b, "    %s%s%s%s\n", id[n.ID], shape[0], mermaidQuote(label(n)...), shape[1])
		}
		b.WriteString("  end\n")
	}
	for _, e := range g.Edges {
		if from, to := id[e.From], id[e.To]; from != "" && to != "" {
			arrow := "-->"
			if e.Kind == "retries" || e.Kind == "summarises" {
				arrow = "-.->"
			}
			fmt.Fprintf(b, "  %s %s|%s| %s\n", from, arrow, mermaidQuote(e.Kind), to)
		}
	}
	return b.Flush()
}

// mermaidQuote writes lines as a quoted text of Mermaid, in which everything
// but letters, digits and harmless marks is an entity code.
func mermaidQuote(lines ...string) string {
	var out strings.Builder
	out.WriteByte('"')
	for i, s := range lines {
		if i > 0 {
			out.WriteString("<br/>")
		}
		for _, r := range line(s) {
			if r < 0x80 && strings.ContainsRune("\"#;&<>`\\[](){}|%'*_~$^=-/", r) {
				fmt.Fprintf(&out, "#%d;", r)
				continue
			}
			out.WriteRune(r)
		}
	}
	out.WriteByte('"')
	return out.String()
}
