package graph

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/modelapi"
)

var update = flag.Bool("update", false, "write the golden files")

// sample is a run with everything that can be drawn.
func sample(t testing.TB) mayfly.Graph {
	s := newTape()
	api := modelapi.Messages
	step := 0
	ask := func(agent string, history []modelapi.Turn, blocks ...modelapi.Block) []modelapi.Turn {
		step++
		s.exchange(api, agent, step, requestBody(api, history), answerBody(api, true, blocks))
		return append(history, model(blocks...))
	}
	main := []modelapi.Turn{user(say("The tests of the parser fail since the last change. Find out why, and repair it."))}
	s.exchange(api, "", 1, requestBody(api, main), "").Status = 529
	s.exchange(api, "", 0, requestBody(api, main), answerBody(api, false, []modelapi.Block{say("Repair the parser")}))
	main = ask("", main, think("First the tests."), say("I run the tests, and have somebody look at the history."),
		call("c1", "Bash", `{"command":"go test ./internal/parser/... -run TestDeeplyNested -count=1 -v","description":"Run tests"}`),
		call("c2", "Agent", `{"prompt":"What changed?","subagent_type":"Explore"}`), call("c3", "Bash", `{"command":"rm -rf /"}`))
	sub := ask("sub-1", []modelapi.Turn{user(say("What changed?"))}, call("s1", "Bash", `{"command":"git log --oneline"}`))
	ask("sub-1", append(sub, user(result("s1", "Bash", "abc fix"))), say("Only the \x1b[31mlexer\x1b[0m."))
	no := result("c3", "Bash", "The user doesn't want to proceed with this tool use.")
	no.Failed = true
	failed := result("c1", "Bash", strings.Repeat("--- FAIL: TestDeeplyNested\n", 80))
	failed.Failed = true
	main = ask("", append(main, user(failed, no, result("c2", "Agent", "Only the lexer."))), say("Found it: 字符 were counted as bytes."),
		call("c4", "Edit", `{"file_path":"internal/parser/lexer.go","old_string":"len(s)","new_string":"utf8.RuneCountInString(s)"}`))
	ask("", append(main, user(result("c4", "Edit", "ok"))), call("c5", "Bash", `{"command":"go test ./..."}`))
	g := s.build(t)
	g.Run = "run-7f3a"
	g.Steps[3].Files = []mayfly.Change{
		{Kind: mayfly.Modified, Path: "internal/parser/lexer.go", Inserted: 1, Deleted: 1},
		{Kind: mayfly.Added, Path: "internal/parser/testdata/deep.txt", Inserted: 12},
	}
	g.Steps[3].Processes = []mayfly.Process{{PID: 4711, Command: []string{"go", "vet", "./..."}, Time: time.Unix(1, 0)}}
	g.Steps[3].Reached = []string{"proxy.example:443"}
	return g
}

// golden compares with a file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s: got =\n%s\nwant =\n%s", name, got, want)
	}
}

func TestDrawings(t *testing.T) {
	g := sample(t)
	for name, draw := range map[string]func(b *bytes.Buffer) error{
		"tree.txt":      func(b *bytes.Buffer) error { return Tree(b, g, TreeOptions{}) },
		"graph.dot":     func(b *bytes.Buffer) error { return DOT(b, g) },
		"graph.mmd":     func(b *bytes.Buffer) error { return Mermaid(b, g) },
		"step.txt":      func(b *bytes.Buffer) error { return StepText(b, g, 4, TreeOptions{}) },
		"step-main.txt": func(b *bytes.Buffer) error { return StepText(b, g, 1, TreeOptions{}) },
	} {
		var b bytes.Buffer
		if err := draw(&b); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.String())
	}
	var b bytes.Buffer
	if err := StepText(&b, g, 99, TreeOptions{}); mayfly.KindOf(err) != mayfly.NotFound {
		t.Errorf("step 99: got = %v, want not found", err)
	}
}

var colours = regexp.MustCompile(`\x1b\[[0-9]*m`)

func TestColourOnlyAddsColour(t *testing.T) {
	g := sample(t)
	var with, without bytes.Buffer
	if err := Tree(&with, g, TreeOptions{Color: true}); err != nil {
		t.Fatal(err)
	}
	if err := Tree(&without, g, TreeOptions{}); err != nil {
		t.Fatal(err)
	}
	if got := colours.ReplaceAllString(with.String(), ""); got != without.String() || with.Len() == without.Len() {
		t.Errorf("got =\n%s\nwant =\n%s", got, without.String())
	}
}

func TestCleanTakesOutWhatTerminalsObey(t *testing.T) {
	for in, want := range map[string]string{
		"a\x1b[31mred\x1b[0m b":          "ared b",
		"\x1b]0;title\x07x":              "x",
		"\x1b]8;;http://x\x1b\\link":     "link",
		"\x1b]52;c;AAAA\nnext":           "\nnext",
		"a\u202eb\u2066c":                "abc",
		"a\x00\x07\x08b\u0085c\x7f":      "abc",
		"a\xff":                          "a\uFFFD",
		"one\r\ntwo\rthree":              "one\ntwo\nthree",
		"\u009b31mx":                     "x",
		"\x1b(Bx\x1bcy\x1b":              "xy",
		"tab\tand ünïcode 😂 字":           "tab\tand ünïcode 😂 字",
		"\x1bPq#0\x1b\\after":            "after",
		"\x1b[" + strings.Repeat("1", 5): "",
	} {
		if got := clean(in); got != want {
			t.Errorf("%q: got = %q, want %q", in, got, want)
		}
	}
}

// hostile puts a text wherever a graph has one.
func hostile(s string) mayfly.Graph {
	node := func(id string, kind mayfly.NodeKind) mayfly.Node {
		return mayfly.Node{ID: id, Kind: kind, Step: 1, Agent: s, Text: s, Thinking: s, Tool: s, Call: s, Input: s, Failed: true, Sources: []string{s}}
	}
	return mayfly.Graph{
		Run: s, Agents: []mayfly.AgentLane{{ID: s, Name: s, Parent: "a"}, {ID: "other", Name: s, Parent: s}},
		Steps: []mayfly.Step{{
			Number: 1, Agent: s, Exchanges: []string{s, s}, Model: s, System: s, Before: s, Reached: []string{s},
			Files: []mayfly.Change{{Kind: mayfly.Renamed, Path: s, From: s}}, Processes: []mayfly.Process{{Command: []string{s}}},
			Parameter: mayfly.Parameters{Reasoning: s},
		}},
		Nodes: []mayfly.Node{node("p", mayfly.PromptNode), node("o", mayfly.OutputNode), node("a", mayfly.ActionNode),
			node("r", mayfly.ResultNode), node("s", mayfly.SideNode), node(s, mayfly.CompactNode), node("x", mayfly.NodeKind(s))},
		Edges:   []mayfly.Edge{{From: "a", To: "r", Kind: "returns"}, {From: s, To: "o", Kind: s}, {From: "o", To: "o", Kind: "next"}, {From: "gone", To: s}},
		Orphans: []string{s, "a", "r"},
	}
}

var (
	dotLine = regexp.MustCompile(`^(digraph "S" \{|\trankdir=TB;|\tnode \[fontname="S" fontsize=10\];|\t\}|\}|` +
		`\tsubgraph cluster_[0-9]+ \{|\t\tlabel="S";|\t\tn[0-9]+ \[shape=[a-z]+ label="S"( color=red)?\];|\tn[0-9]+ -> n[0-9]+ \[label="S"( style=[a-z]+( constraint=false)?)?\];)$`)
	dotString   = regexp.MustCompile(`"(?:[^"\\]|\\.)*"`)
	mermaidLine = regexp.MustCompile(`^(flowchart TD|  subgraph lane[0-9]+\["[^"<>\[\]]*"\]|  end|    n[0-9]+(\[\[?|\[/|\[\(|\(\[|\{\{)"[^"\[\](){}|]*"(\]\]?|/\]|\)\]|\]\)|\}\})|  n[0-9]+ -\.?->?\|"[^"|]*"\| n[0-9]+|  n[0-9]+ -->\|"[^"|]*"\| n[0-9]+)$`)
)

func FuzzDrawings(f *testing.F) {
	for _, s := range []string{"", "plain", "\"\\\n\x1b[2J", "]]\" --> n1; click n1 \"javascript:x\"", "字😂\u202e", "{\"command\":[1,\"\\u001b]0;x\"]}", "a", "other", "<b>#quot;</b>", "\\"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		g := hostile(s)
		var b bytes.Buffer
		if err := Tree(&b, g, TreeOptions{}); err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(b.String()) {
			if l = strings.TrimSuffix(l, "\n"); width(l) > 80 {
				t.Fatalf("%d columns: %q", width(l), l)
			}
		}
		if err := StepText(&b, g, 1, TreeOptions{}); err != nil {
			t.Fatal(err)
		}
		if got := b.String(); got != clean(got) || strings.ContainsRune(got, 0x1b) {
			t.Fatalf("a terminal would obey %q", got)
		}
		b.Reset()
		if err := DOT(&b, g); err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(b.String()) {
			if l = dotString.ReplaceAllString(strings.TrimSuffix(l, "\n"), `"S"`); !dotLine.MatchString(l) {
				t.Fatalf("DOT: %q", l)
			}
		}
		b.Reset()
		if err := Mermaid(&b, g); err != nil {
			t.Fatal(err)
		}
		for l := range strings.Lines(b.String()) {
			if !mermaidLine.MatchString(strings.TrimSuffix(l, "\n")) {
				t.Fatalf("Mermaid: %q", l)
			}
		}
	})
}

func TestInputsReadAsTheyWereMeant(t *testing.T) {
	for in, want := range map[string]string{
		`{"command":"a \u003e b \u0026\u0026 c"}`: "{\n  \"command\": \"a > b && c\"\n}",
		`{"literal":"\\u003e"}`:                   "{\n  \"literal\": \"\\\\u003e\"\n}",
		`\u003e`:                                  `\u003e`,
	} {
		if got := pretty(in); got != want {
			t.Errorf("pretty(%s) = %s, want %s", in, got, want)
		}
	}
	if got := short(`{"x":"a \u003c b"}`); got != `{"x":"a < b"}` {
		t.Errorf("got = %s, want the character", got)
	}
}
