// Package graph makes the decision graph of a run from what passed the
// gateway, and draws it.
package graph

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/modelapi"
)

// Input is what a graph is made of. Only exchanges are required.
type Input struct {
	Exchanges []mayfly.Exchange // in order of arrival
	// Content returns a recorded request, answer or report by digest. One that
	// is NotFound leaves a gap in the graph; other errors end Build. It is
	// called from two goroutines at once.
	Content   func(digest string) (mayfly.Content, error)
	Snapshots map[int]Boundary // by number of the step
	Processes []mayfly.Process
	Reports   []Report // what agents said about themselves, in order of arrival
}

// Boundary names the snapshots around a step.
type Boundary struct{ Before, After string }

// Report is something that an agent said about itself.
type Report struct {
	Kind    string // begins with "hook", "otlp" or "mcp"
	Time    time.Time
	Content string // digest
}

// Build makes the graph of a run. It reads of each request only what the one
// before it in its conversation did not have.
func Build(run string, in Input) (mayfly.Graph, error) {
	b := builder{
		in: in, lanes: map[string]*lane{}, wires: map[string]*wire{}, last: map[int]int{}, turns: map[int]*turn{},
		answers: map[string]*conversation{}, calls: map[string][]*action{}, steps: map[int]int{},
	}
	b.g.Run = run
	b.g.Steps, b.g.Nodes = make([]mayfly.Step, 0, len(in.Exchanges)), make([]mayfly.Node, 0, 3*len(in.Exchanges))
	for i, x := range in.Exchanges {
		b.last[x.Step] = i
	}
	b.answersOf = b.readAhead()
	defer b.answersOf.close()
	for i := range in.Exchanges {
		if err := b.exchange(i); err != nil {
			return mayfly.Graph{}, fmt.Errorf("exchange %s: %w", in.Exchanges[i].ID, err)
		}
	}
	for _, r := range in.Reports {
		if err := b.report(r); err != nil {
			return mayfly.Graph{}, fmt.Errorf("report of %s: %w", r.Kind, err)
		}
	}
	b.orphans()
	b.processes()
	return b.g, nil
}

type builder struct {
	in        Input
	g         mayfly.Graph
	lanes     map[string]*lane
	wires     map[string]*wire         // by what the wire calls the agent
	last      map[int]int              // exchange that is the answer of a step
	turns     map[int]*turn            // by step, until it is answered
	steps     map[int]int              // position in g.Steps
	answers   map[string]*conversation // by the answer's id
	calls     map[string][]*action     // by the call's id, in all lanes
	actions   []*action
	spawns    []*action // that may have started an agent, and are not known to
	stray     []string  // results without a call
	answersOf *reader
	tails     map[int]string // last node of a step that the wire shows
	came      []int          // positions in g.Steps, when all exchanges were read
}

// lane is an agent.
type lane struct {
	id    string
	index int // in g.Agents
}

// wire is what comes under one name of an agent: a conversation, several, or
// those of agents that the wire does not tell apart.
type wire struct {
	conversations []*conversation
}

// conversation is a history that grows.
type conversation struct {
	lane       *lane
	reader     *modelapi.Conversation
	heads      []string // nodes that lead to the next output
	last       string   // node that came last
	outputs    int
	compacting bool // the last output is a summary that will replace the history
	calls      map[string]*action
	waiting    map[string]*queue // calls by tool, for results without an id
	seen       map[string]bool
	step       int // the last one
}

// action is a tool call.
type action struct {
	node, step int // positions
	lane       *lane
	echoed     bool // came back in a later request
	done       bool
	result     int // position of its node; -1 when there is none
	remote     bool
}

// queue is the calls of one tool in a conversation.
type queue struct {
	results []*action // up to the first, all have a result
	echoes  []*action // likewise, came back
}

// result is the first call that has no result; nil when there is none.
func (q *queue) result() *action {
	if q == nil {
		return nil
	}
	for len(q.results) > 0 && q.results[0].done {
		q.results = q.results[1:]
	}
	if len(q.results) == 0 {
		return nil
	}
	return q.results[0]
}

// echo is the first call that neither came back nor has a result.
func (q *queue) echo() *action {
	if q == nil {
		return nil
	}
	for len(q.echoes) > 0 && (q.echoes[0].echoed || q.echoes[0].done) {
		q.echoes = q.echoes[1:]
	}
	if len(q.echoes) == 0 {
		return nil
	}
	return q.echoes[0]
}

// turn is a step between its request and its answer.
type turn struct {
	c       *conversation
	step    int // position in g.Steps
	request modelapi.Request
	heads   []string
}

const wireSource = "wire"

func (b *builder) node(n mayfly.Node) string {
	n.ID = fmt.Sprintf("n%d", len(b.g.Nodes)+1)
	if n.Sources == nil {
		n.Sources = []string{wireSource}
	}
	b.g.Nodes = append(b.g.Nodes, n)
	return n.ID
}

func (b *builder) edge(from, to, kind string) {
	if from != "" && to != "" {
		b.g.Edges = append(b.g.Edges, mayfly.Edge{From: from, To: to, Kind: kind})
	}
}

// content reads recorded bytes; it is false when they are gone.
func (b *builder) content(digest string) (http.Header, []byte, bool, error) {
	if digest == "" || b.in.Content == nil {
		return nil, nil, false, nil
	}
	c, err := b.in.Content(digest)
	if mayfly.KindOf(err) == mayfly.NotFound {
		return nil, nil, false, nil
	}
	if err != nil {
		return nil, nil, false, err
	}
	h := make(http.Header, len(c.Header))
	for name, list := range c.Header {
		for _, v := range list {
			h.Add(name, v)
		}
	}
	body, err := modelapi.Decode(h, c.Body)
	h.Del("Content-Encoding")
	return h, body, err == nil, nil
}

func (b *builder) exchange(i int) error {
	x := &b.in.Exchanges[i]
	if x.Step == 0 {
		return b.side(x)
	}
	t := b.turns[x.Step]
	if at, ok := b.steps[x.Step]; ok {
		s := &b.g.Steps[at]
		s.Exchanges = append(s.Exchanges, x.ID)
		if t == nil { // answered already: what comes after it does not count
			return nil
		}
	} else {
		var err error
		if t, err = b.begin(x); err != nil {
			return err
		}
	}
	if b.last[x.Step] != i {
		return b.usage(x)
	}
	delete(b.turns, x.Step)
	return b.answer(t, x, b.answersOf.answer(i))
}

// begin makes the step of an exchange, with what its request brings.
func (b *builder) begin(x *mayfly.Exchange) (*turn, error) {
	header, body, ok, err := b.content(x.Request)
	if err != nil {
		return nil, err
	}
	t := &turn{step: len(b.g.Steps)}
	b.steps[x.Step], b.turns[x.Step] = t.step, t
	bound := b.in.Snapshots[x.Step]
	b.g.Steps = append(b.g.Steps, mayfly.Step{
		Number: x.Step, Agent: x.Agent, Exchanges: []string{x.ID}, Model: x.Model,
		Before: bound.Before, After: bound.After, Start: x.Start,
	})
	var turns []modelapi.Turn
	var shared int
	if ok {
		// A request that cannot be read is a step without a prompt.
		turns, shared = b.read(t, x, header, body)
	}
	if t.c == nil {
		t.c = b.begins(b.wire(x), b.lane(x.Agent, ""))
	}
	c := t.c
	s := &b.g.Steps[t.step]
	s.Agent, s.Parameter = c.lane.id, t.request.Parameters
	s.System, s.Tools = t.request.SystemDigest, t.request.ToolsDigest
	if s.Model == "" {
		s.Model = t.request.Model
	}
	if at, ok := b.steps[c.step]; ok && c.step != 0 && b.g.Steps[at].Done.IsZero() {
		b.g.Steps[at].Done = x.Start
	}
	c.step = x.Step
	b.prompt(t, x, turns, shared)
	t.heads, c.heads = c.heads, nil
	return t, nil
}

// answer adds what the model said to the step.
func (b *builder) answer(t *turn, x *mayfly.Exchange, p parsed) error {
	if p.err != nil {
		return p.err
	}
	a := p.answer
	if p.invalid != nil && x.Error == "" {
		a.Error = fmt.Sprintf("an answer that cannot be read, status %d", x.Status)
	}
	if a.Error == "" && !a.Complete {
		a.Error = x.Error
	}
	s := &b.g.Steps[t.step]
	s.FirstByte, s.End = x.FirstByte, x.End
	s.Usage = x.Usage
	if s.Usage == (mayfly.TokenUsage{}) {
		s.Usage = a.Usage
	}
	b.add(s.Usage)
	if s.Model == "" {
		s.Model = a.Model
	}
	if !p.ok && x.Error == "" && x.Status < 400 {
		t.c.heads = t.heads // never answered
		return nil
	}
	b.output(t, x, a)
	return nil
}

// usage counts an exchange that was retried.
func (b *builder) usage(x *mayfly.Exchange) error {
	b.add(x.Usage)
	return nil
}

func (b *builder) add(u mayfly.TokenUsage) {
	b.g.Usage.Input += u.Input
	b.g.Usage.Output += u.Output
	b.g.Usage.CacheRead += u.CacheRead
	b.g.Usage.CacheWrite += u.CacheWrite
	b.g.Usage.Reasoning += u.Reasoning
}

// output adds the nodes of an answer.
func (b *builder) output(t *turn, x *mayfly.Exchange, a modelapi.Answer) {
	c := t.c
	n := mayfly.Node{Kind: mayfly.OutputNode, Step: x.Step, Agent: c.lane.id, Exchange: x.ID, Time: x.End, Failed: a.Error != ""}
	heads := t.heads
	if len(heads) == 0 && c.last != "" {
		heads = []string{c.last}
	}
	n.Text, n.Thinking = joined(a.Blocks, modelapi.TextBlock), joined(a.Blocks, modelapi.ThinkingBlock)
	if summary := joined(a.Blocks, modelapi.SummaryBlock); t.request.Compaction {
		n.Text = join(n.Text, summary)
	} else if has(a.Blocks, modelapi.SummaryBlock) {
		heads = []string{b.compact(c, x, summary, heads)}
	}
	if n.Failed && n.Text == "" {
		n.Text = a.Error
	}
	c.compacting = t.request.Compaction && !n.Failed
	if c.compacting {
		n.Kind = mayfly.CompactNode
	}
	id := b.node(n)
	if c.compacting {
		b.edge(id, c.last, "summarises")
	}
	for _, h := range heads {
		b.edge(h, id, "next")
	}
	// What was retried was the step's first node, on the way to this output.
	if tries := len(b.g.Steps[t.step].Exchanges); len(heads) > 0 {
		for range tries - 1 {
			b.edge(id, heads[0], "retries")
		}
	}
	c.last, c.heads, c.outputs = id, []string{id}, c.outputs+1
	if a.ID != "" {
		b.answers[a.ID] = c
	}
	for _, block := range a.Blocks {
		switch block.Kind {
		case modelapi.CallBlock:
			act := b.call(c, x, x.Step, block)
			b.edge(id, b.g.Nodes[act.node].ID, "calls")
		case modelapi.ResultBlock:
			b.result(c, x, block, false)
		}
	}
}

// compact adds a summary that replaces the conversation so far.
func (b *builder) compact(c *conversation, x *mayfly.Exchange, text string, heads []string) string {
	id := b.node(mayfly.Node{
		Kind: mayfly.CompactNode, Step: x.Step, Agent: c.lane.id, Exchange: x.ID, Text: text, Time: x.Start,
	})
	b.edge(id, c.last, "summarises")
	for _, h := range heads {
		if h != c.last {
			b.edge(h, id, "next")
		}
	}
	return id
}

// call adds the node of a tool call.
func (b *builder) call(c *conversation, x *mayfly.Exchange, step int, block modelapi.Block) *action {
	a := &action{node: len(b.g.Nodes), step: step, lane: c.lane, result: -1, remote: block.Remote}
	b.node(mayfly.Node{
		Kind: mayfly.ActionNode, Step: step, Agent: c.lane.id, Exchange: x.ID,
		Tool: block.Name, Call: block.ID, Input: block.Input, Time: x.End,
	})
	b.actions = append(b.actions, a)
	if block.ID != "" {
		c.calls[block.ID] = a
		b.calls[block.ID] = append(b.calls[block.ID], a)
	}
	q := c.waiting[block.Name]
	if q == nil {
		q = &queue{}
		c.waiting[block.Name] = q
	}
	q.results, q.echoes = append(q.results, a), append(q.echoes, a)
	if spawning[block.Name] {
		b.spawns = append(b.spawns, a)
		b.spawns = b.spawns[max(0, len(b.spawns)-mostSpawns):]
	}
	return a
}

// result joins a result to its call.
func (b *builder) result(c *conversation, x *mayfly.Exchange, block modelapi.Block, filtered bool) {
	a := c.calls[block.ID]
	if block.ID == "" {
		a = c.waiting[block.Name].result()
	}
	if a != nil && a.done || a == nil && filtered && c.seen["result "+block.ID] {
		return // told again
	}
	n := mayfly.Node{
		Kind: mayfly.ResultNode, Step: x.Step, Agent: c.lane.id, Exchange: x.ID, Text: block.Text,
		Tool: block.Name, Call: block.ID, Failed: block.Failed, Refused: block.Refused, Time: x.Start,
	}
	c.seen["result "+block.ID] = true
	if a == nil {
		id := b.node(n)
		b.stray = append(b.stray, id)
		c.heads = append(c.heads, id)
		return
	}
	n.Step, n.Tool, n.Call = a.step, b.g.Nodes[a.node].Tool, b.g.Nodes[a.node].Call
	a.done, a.result = true, len(b.g.Nodes)
	id := b.node(n)
	b.edge(b.g.Nodes[a.node].ID, id, "returns")
	c.heads = append(c.heads, id)
}

// side adds a call beside the conversation.
func (b *builder) side(x *mayfly.Exchange) error {
	n := mayfly.Node{Kind: mayfly.SideNode, Agent: x.Agent, Exchange: x.ID, Tool: "side", Time: x.Start}
	if x.API == modelapi.MessagesCount || x.API == modelapi.GeminiCount {
		n.Tool = "count"
	} else if header, body, ok, err := b.content(x.Request); err != nil {
		return err
	} else if ok {
		if r, err := modelapi.ParseRequest(x.API, header, body); err == nil && r.Side != "" {
			n.Tool = r.Side
		}
	}
	header, body, ok, err := b.content(x.Answer)
	if err != nil {
		return err
	}
	usage := x.Usage
	if ok {
		a, err := modelapi.ParseAnswer(x.API, header, body)
		n.Text = joined(a.Blocks, modelapi.TextBlock)
		if n.Failed = err != nil || a.Error != ""; n.Failed && n.Text == "" {
			n.Text = a.Error
		}
		if usage == (mayfly.TokenUsage{}) {
			usage = a.Usage
		}
	}
	b.add(usage)
	b.node(n)
	return nil
}

// joined is the text of the blocks of a kind.
func joined(blocks []modelapi.Block, kind modelapi.BlockKind) string {
	var list []string
	for _, b := range blocks {
		if b.Kind == kind && b.Text != "" {
			list = append(list, b.Text)
		}
	}
	return strings.Join(list, "\n\n")
}

func has(blocks []modelapi.Block, kind modelapi.BlockKind) bool {
	return slices.ContainsFunc(blocks, func(b modelapi.Block) bool { return b.Kind == kind })
}

func join(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "\n\n" + b
}

// orphans lists the calls without results and the results without calls.
func (b *builder) orphans() {
	for _, a := range b.actions {
		if !a.done && !a.remote {
			b.g.Orphans = append(b.g.Orphans, b.g.Nodes[a.node].ID)
		}
	}
	b.g.Orphans = append(b.g.Orphans, b.stray...)
}

// cameAt is when the output of a step began to come, from when on an agent can
// act on it: the end is noted after the agent has it.
func (b *builder) cameAt(step int) time.Time {
	if s := &b.g.Steps[step]; !s.FirstByte.IsZero() {
		return s.FirstByte
	}
	return b.g.Steps[step].End
}

// inOrder are the steps in the order in which their outputs came.
func (b *builder) inOrder() []int {
	if b.came != nil {
		return b.came
	}
	b.came = make([]int, 0, len(b.g.Steps))
	for i := range b.g.Steps {
		if !b.cameAt(i).IsZero() {
			b.came = append(b.came, i)
		}
	}
	slices.SortStableFunc(b.came, func(i, j int) int { return b.cameAt(i).Compare(b.cameAt(j)) })
	return b.came
}

// processes gives each process to the step whose output came last before it.
func (b *builder) processes() {
	for _, p := range b.in.Processes {
		if s := b.stepAt(p.Time, ""); s != nil {
			s.Processes = append(s.Processes, p)
		}
	}
}
