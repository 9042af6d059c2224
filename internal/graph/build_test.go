package graph

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/modelapi"
)

var apis = []string{modelapi.Messages, modelapi.Responses, modelapi.Chat, modelapi.Stream}

// tape is a recording in memory.
type tape struct {
	Input
	contents map[string]mayfly.Content
	clock    time.Time
}

func newTape() *tape {
	t := &tape{contents: map[string]mayfly.Content{}, clock: time.Unix(1700000000, 0).UTC()}
	t.Content = func(digest string) (mayfly.Content, error) {
		c, ok := t.contents[digest]
		if !ok {
			return c, mayfly.Errorf(mayfly.NotFound, "no content %s", digest)
		}
		return c, nil
	}
	return t
}

func (t *tape) keep(body string, header ...string) string {
	c := mayfly.Content{Header: map[string][]string{}, Body: []byte(body)}
	for i := 0; i+1 < len(header); i += 2 {
		c.Header[header[i]] = []string{header[i+1]}
	}
	sum := sha256.Sum256([]byte(body + strings.Join(header, "\x00")))
	digest := fmt.Sprintf("sha256:%x", sum)
	t.contents[digest] = c
	return digest
}

func (t *tape) tick() time.Time {
	t.clock = t.clock.Add(time.Second)
	return t.clock
}

// exchange records one. An empty answer is one that never came.
func (t *tape) exchange(api, agent string, step int, request, answer string, header ...string) *mayfly.Exchange {
	x := mayfly.Exchange{
		ID: fmt.Sprintf("x%d", len(t.Exchanges)+1), Number: len(t.Exchanges) + 1, Step: step, API: api, Agent: agent,
		Request: t.keep(request, header...), Start: t.tick(), Status: 200,
	}
	if answer != "" {
		x.Answer, x.End = t.keep(answer), t.tick()
	}
	t.Exchanges = append(t.Exchanges, x)
	return &t.Exchanges[len(t.Exchanges)-1]
}

func (t *tape) build(tb testing.TB) mayfly.Graph {
	tb.Helper()
	g, err := Build("run", t.Input)
	if err != nil {
		tb.Fatal(err)
	}
	return g
}

func user(blocks ...modelapi.Block) modelapi.Turn { return modelapi.Turn{Role: "user", Blocks: blocks} }
func model(blocks ...modelapi.Block) modelapi.Turn {
	return modelapi.Turn{Role: "assistant", Blocks: blocks}
}
func say(s string) modelapi.Block   { return modelapi.Block{Kind: modelapi.TextBlock, Text: s} }
func think(s string) modelapi.Block { return modelapi.Block{Kind: modelapi.ThinkingBlock, Text: s} }
func call(id, tool, input string) modelapi.Block {
	return modelapi.Block{Kind: modelapi.CallBlock, ID: id, Name: tool, Input: input}
}
func result(id, tool, text string) modelapi.Block {
	return modelapi.Block{Kind: modelapi.ResultBlock, ID: id, Name: tool, Text: text}
}

// lines describes a graph without the ids of its nodes.
func lines(g mayfly.Graph) []string {
	name := map[string]string{}
	var list []string
	for _, n := range g.Nodes {
		s := fmt.Sprintf("%s %d %q", n.Kind, n.Step, n.Agent)
		for _, part := range []string{n.Text, n.Thinking, n.Tool, n.Call, n.Input} {
			s += fmt.Sprintf(" %q", part)
		}
		if n.Failed {
			s += " failed"
		}
		if n.Refused {
			s += " refused"
		}
		name[n.ID] = s
		list = append(list, s)
	}
	for _, e := range g.Edges {
		list = append(list, fmt.Sprintf("%s -%s-> %s", name[e.From], e.Kind, name[e.To]))
	}
	for _, o := range g.Orphans {
		list = append(list, "orphan "+name[o])
	}
	for _, a := range g.Agents {
		list = append(list, fmt.Sprintf("agent %q %q %s", a.ID, a.Name, name[a.Parent]))
	}
	for _, s := range g.Steps {
		list = append(list, fmt.Sprintf("step %d %q %q", s.Number, s.Agent, s.Exchanges))
	}
	slices.Sort(list)
	return list
}

// story makes up a run, keeps it on a tape, and draws the graph that should
// come out.
type story struct {
	*tape
	random *rand.Rand
	api    string
	step   int
	calls  int
	want   mayfly.Graph
}

func (s *story) node(n mayfly.Node) string {
	n.ID = fmt.Sprintf("w%d", len(s.want.Nodes))
	s.want.Nodes = append(s.want.Nodes, n)
	return n.ID
}

func (s *story) edge(from, to, kind string) {
	s.want.Edges = append(s.want.Edges, mayfly.Edge{From: from, To: to, Kind: kind})
}

func (s *story) words(what string) string {
	s.calls++
	return fmt.Sprintf("%s %d: %s", what, s.calls, []string{"go on", "schöne Grüße 😂", "a \"b\" \\ c\nd", "<x> & y"}[s.random.IntN(4)])
}

// agent tells one agent's conversation to its end.
func (s *story) agent(id, parent, task string, depth int) string {
	s.want.Agents = append(s.want.Agents, mayfly.AgentLane{ID: id, Parent: parent})
	if parent != "" {
		s.want.Agents[len(s.want.Agents)-1].Name = "Explore"
	}
	history := []modelapi.Turn{user(say(task))}
	prompt := s.node(mayfly.Node{Kind: mayfly.PromptNode, Step: s.step + 1, Agent: id, Text: task})
	if parent != "" {
		s.edge(parent, prompt, "spawns")
	}
	heads := []string{prompt}
	for turn := range 2 + s.random.IntN(5) {
		if turn > 1 && s.random.IntN(4) == 0 {
			heads, history = s.compact(id, heads, history)
		}
		if s.random.IntN(5) == 0 {
			s.side(id)
		}
		var output string
		var blocks []modelapi.Block
		output, blocks = s.turn(id, heads, history)
		results := modelapi.Turn{Role: "user"}
		heads = []string{output}
		for _, b := range blocks {
			if b.Kind == modelapi.CallBlock {
				results.Blocks = append(results.Blocks, s.act(id, output, b, depth, &heads))
			}
		}
		if len(results.Blocks) > 0 {
			heads = heads[1:]
		}
		s.random.Shuffle(len(results.Blocks), func(i, j int) {
			results.Blocks[i], results.Blocks[j] = results.Blocks[j], results.Blocks[i]
		})
		slices.SortStableFunc(heads[:min(len(heads), len(results.Blocks))], func(a, b string) int { return s.place(a, results) - s.place(b, results) })
		history = append(history, model(blocks...))
		if len(results.Blocks) == 0 || s.random.IntN(4) == 0 {
			text := s.words("prompt")
			p := s.node(mayfly.Node{Kind: mayfly.PromptNode, Step: s.step + 1, Agent: id, Text: text})
			s.edge(output, p, "next")
			heads = append(heads, p)
			if len(results.Blocks) == 0 {
				heads = []string{p}
			}
			results.Blocks = append(results.Blocks, say(text))
		}
		history = append(history, results)
	}
	text := s.words("end")
	s.finish(id, heads, history, mayfly.OutputNode, text)
	return text
}

// place is where a node's result came in.
func (s *story) place(id string, t modelapi.Turn) int {
	n := s.want.Nodes[slices.IndexFunc(s.want.Nodes, func(n mayfly.Node) bool { return n.ID == id })]
	return slices.IndexFunc(t.Blocks, func(b modelapi.Block) bool { return b.ID == n.Call })
}

// finish is a turn that says one text.
func (s *story) finish(id string, heads []string, history []modelapi.Turn, kind mayfly.NodeKind, text string) string {
	s.step++
	x := s.exchange(s.api, id, s.step, requestBody(s.api, history), answerBody(s.api, s.random.IntN(2) == 0 || s.api == modelapi.Stream, []modelapi.Block{say(text)}))
	s.want.Steps = append(s.want.Steps, mayfly.Step{Number: s.step, Agent: id, Exchanges: []string{x.ID}})
	out := s.node(mayfly.Node{Kind: kind, Step: s.step, Agent: id, Text: text})
	for _, h := range heads {
		s.edge(h, out, "next")
	}
	return out
}

// turn is one with calls, perhaps only after it was tried in vain.
func (s *story) turn(id string, heads []string, history []modelapi.Turn) (string, []modelapi.Block) {
	s.step++
	n := mayfly.Node{Kind: mayfly.OutputNode, Step: s.step, Agent: id, Text: s.words("output")}
	var blocks []modelapi.Block
	if s.random.IntN(2) == 0 {
		n.Thinking = s.words("thought")
		blocks = append(blocks, think(n.Thinking))
	}
	blocks = append(blocks, say(n.Text))
	for range s.random.IntN(4) {
		s.calls++
		c := call(fmt.Sprintf("call_%d", s.calls), "Bash", fmt.Sprintf(`{"command":"ls %d"}`, s.calls))
		if s.random.IntN(3) == 0 {
			c.Name, c.Input = "Agent", fmt.Sprintf(`{"prompt":"Task %d of many.","subagent_type":"Explore"}`, s.calls)
		}
		blocks = append(blocks, c)
	}
	output := s.node(n)
	step := mayfly.Step{Number: s.step, Agent: id}
	for range max(0, s.random.IntN(6)-3) {
		x := s.exchange(s.api, id, s.step, requestBody(s.api, history), "")
		if x.Status = 529; s.random.IntN(2) == 0 {
			x.Status, x.Error = 200, "the upstream went away"
			x.Answer = s.keep(answerBody(s.api, true, blocks)[:50])
		}
		step.Exchanges = append(step.Exchanges, x.ID)
		s.edge(output, heads[0], "retries")
	}
	x := s.exchange(s.api, id, s.step, requestBody(s.api, history), answerBody(s.api, s.random.IntN(2) == 0 || s.api == modelapi.Stream, blocks))
	step.Exchanges = append(step.Exchanges, x.ID)
	s.want.Steps = append(s.want.Steps, step)
	for _, h := range heads {
		s.edge(h, output, "next")
	}
	return output, blocks
}

// act does what a call asks for.
func (s *story) act(id, output string, b modelapi.Block, depth int, heads *[]string) modelapi.Block {
	step := s.want.Nodes[slices.IndexFunc(s.want.Nodes, func(n mayfly.Node) bool { return n.ID == output })].Step
	action := s.node(mayfly.Node{Kind: mayfly.ActionNode, Step: step, Agent: id, Tool: b.Name, Call: b.ID, Input: b.Input})
	s.edge(output, action, "calls")
	r := result(b.ID, b.Name, s.words("result"))
	if b.Name == "Agent" && depth > 0 {
		r.Text = s.agent("sub-"+b.ID, action, strings.Split(strings.Split(b.Input, `"`)[3], `"`)[0], depth-1)
	} else if s.random.IntN(4) == 0 {
		r.Text, r.Failed = "Exit code: 1\n"+r.Text, true
		if s.random.IntN(2) == 0 {
			r.Text, r.Refused = "User rejected this: "+s.words("reason"), true
		}
	}
	n := s.node(mayfly.Node{
		Kind: mayfly.ResultNode, Step: step, Agent: id, Text: r.Text, Tool: b.Name, Call: b.ID, Failed: r.Failed, Refused: r.Refused,
	})
	s.edge(action, n, "returns")
	*heads = append(*heads, n)
	return r
}

func (s *story) side(id string) {
	text := s.words("title")
	s.exchange(s.api, id, 0, requestBody(s.api, []modelapi.Turn{user(say("x"))}), answerBody(s.api, s.api == modelapi.Stream, []modelapi.Block{say(text)}))
	s.node(mayfly.Node{Kind: mayfly.SideNode, Agent: id, Text: text, Tool: "side"})
}

// compact replaces a history that ends with a turn of the user.
func (s *story) compact(id string, heads []string, history []modelapi.Turn) ([]string, []modelapi.Turn) {
	last := ""
	for _, n := range s.want.Nodes {
		if n.Agent == id && (n.Kind == mayfly.OutputNode || n.Kind == mayfly.CompactNode) {
			last = n.ID
		}
	}
	ask := "You are performing a CONTEXT CHECKPOINT COMPACTION. " + s.words("ask")
	tail := history[len(history)-1]
	// What the agent has just been told goes into the summary, too.
	history = append(slices.Clone(history[:len(history)-1]), user(append(slices.Clone(tail.Blocks), say(ask))...))
	for i := range s.want.Nodes {
		// Prompts that wait are part of what is asked.
		if n := &s.want.Nodes[i]; n.ID == heads[len(heads)-1] && n.Kind == mayfly.PromptNode {
			n.Text += "\n\n" + ask
			ask = ""
		}
	}
	if ask != "" {
		p := s.node(mayfly.Node{Kind: mayfly.PromptNode, Step: s.step + 1, Agent: id, Text: ask})
		s.edge(last, p, "next")
		heads = append(heads, p)
	}
	summary := s.words("summary")
	c := s.finish(id, heads, history, mayfly.CompactNode, summary)
	s.edge(c, last, "summarises")
	text := "This session is being continued from a previous conversation: " + summary
	p := s.node(mayfly.Node{Kind: mayfly.PromptNode, Step: s.step + 1, Agent: id, Text: text})
	s.edge(c, p, "next")
	return []string{p}, []modelapi.Turn{user(say(text))}
}

func TestRandomConversationsGiveTheirGraphInEveryFormat(t *testing.T) {
	for seed := range uint64(100) {
		s := &story{tape: newTape(), random: rand.New(rand.NewPCG(seed, 1)), api: apis[seed%4]}
		s.agent("", "", "Do it.", 2)
		got, want := lines(s.build(t)), lines(s.want)
		if slices.Equal(got, want) {
			continue
		}
		for _, l := range got {
			if !slices.Contains(want, l) {
				t.Errorf("seed %d, %s: more: %s", seed, s.api, l)
			}
		}
		for _, l := range want {
			if !slices.Contains(got, l) {
				t.Errorf("seed %d, %s: missing: %s", seed, s.api, l)
			}
		}
		t.FailNow()
	}
}
