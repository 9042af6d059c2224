package graph

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/modelapi"
)

// spawning names the tools that start agents.
var spawning = map[string]bool{
	"Task": true, "Agent": true, "task": true, "agent": true, "spawn_agent": true, "delegate_to_agent": true,
	"subagent": true, "dispatch_agent": true, "codebase_investigator": true, "generalist": true, "Skill": true, "Workflow": true,
	"collaboration.spawn_agent": true,
}

// mostSpawns is how many calls may wait for the agent that they started.
const mostSpawns = 256

// recent is how many conversations under one name are looked through.
const recent = 32

func (b *builder) wire(x *mayfly.Exchange) *wire {
	w, ok := b.wires[x.Agent]
	if !ok {
		w = &wire{}
		b.wires[x.Agent] = w
	}
	return w
}

// lane is the agent with that id, made when it is new.
func (b *builder) lane(id, name string) *lane {
	l, ok := b.lanes[id]
	if !ok {
		l = &lane{id: id, index: len(b.g.Agents)}
		b.lanes[id] = l
		b.g.Agents = append(b.g.Agents, mayfly.AgentLane{ID: id, Name: name})
	}
	return l
}

func (b *builder) begins(w *wire, l *lane) *conversation {
	c := &conversation{lane: l, reader: new(modelapi.Conversation),
		calls: map[string]*action{}, waiting: map[string]*queue{}, seen: map[string]bool{},
	}
	w.conversations = append(w.conversations, c)
	if n := len(w.conversations); n > recent {
		w.conversations = w.conversations[n-recent:]
	}
	return c
}

// read reads a request and finds the conversation that it belongs to.
func (b *builder) read(t *turn, x *mayfly.Exchange, header http.Header, body []byte) (turns []modelapi.Turn, shared int) {
	w := b.wire(x)
	if n := len(w.conversations); n > 0 && w.conversations[n-1].reader.Likely(body) {
		if turns, shared, ok := t.goOn(w.conversations[n-1], x, header, body); ok {
			return turns, shared
		}
	}
	c, n := w.match(body)
	if c != nil {
		if turns, shared, ok := t.goOn(c, x, header, body); ok {
			w.use(c)
			return turns, shared
		}
	}
	reader := new(modelapi.Conversation)
	r, _, err := reader.Read(x.API, header, body)
	if err != nil {
		return nil, 0
	}
	t.request = r
	known := b.answers[r.Previous] // the upstream remembers the turns before
	if known == nil {
		known = b.continues(w, r)
	}
	switch {
	case known != nil:
		c = known
	case c != nil && n > 2 && n >= c.reader.Turns()/2:
		// History was edited.
	default:
		c = b.other(w, x, r)
	}
	c.reader, t.c = reader, c
	w.use(c)
	return r.Turns, 0
}

// goOn reads a request that has all turns of a conversation.
func (t *turn) goOn(c *conversation, x *mayfly.Exchange, header http.Header, body []byte) ([]modelapi.Turn, int, bool) {
	r, shared, ok := c.reader.Continue(x.API, header, body)
	if !ok {
		return nil, 0, false
	}
	t.c, t.request = c, r
	return r.Turns, shared, true
}

// match finds the conversation that shares most turns with a body.
func (w *wire) match(body []byte) (best *conversation, n int) {
	for _, c := range slices.Backward(w.conversations) {
		if m := c.reader.Match(body); m > n {
			best, n = c, m
		}
	}
	return best, n
}

// use makes it the conversation that was heard last.
func (w *wire) use(c *conversation) {
	i := slices.Index(w.conversations, c)
	if i >= 0 {
		w.conversations = append(slices.Delete(w.conversations, i, i+1), c)
	}
}

// continues finds the conversation whose calls a request speaks of. Of a
// history with many, the last ones count.
func (b *builder) continues(w *wire, r modelapi.Request) *conversation {
	for _, turn := range slices.Backward(r.Turns) {
		for _, block := range turn.Blocks {
			if block.ID == "" || block.Kind != modelapi.ResultBlock {
				continue
			}
			for _, c := range slices.Backward(w.conversations) {
				if a := c.calls[block.ID]; a != nil && (!a.done || b.sameResult(a, block)) {
					return c
				}
			}
		}
	}
	return nil
}

func (b *builder) sameResult(a *action, block modelapi.Block) bool {
	return b.g.Nodes[a.result].Text == block.Text
}

// other finds out what a request is that continues no history: what follows a
// summary, a subagent, or a conversation of its own.
func (b *builder) other(w *wire, x *mayfly.Exchange, r modelapi.Request) *conversation {
	_, known := b.lanes[x.Agent]
	said := firstWords(r)
	if x.Agent != "" && !known {
		l := b.lane(x.Agent, r.AgentName)
		var parent *lane
		if r.Parent != "" {
			parent = b.lanes[r.Parent]
		}
		b.spawned(l, b.spawner(parent, said))
		return b.begins(w, l)
	}
	if n := len(w.conversations); n > 0 {
		for _, c := range slices.Backward(w.conversations) {
			if c.compacting {
				return c
			}
		}
		if r.Compacted || r.Compaction {
			return w.conversations[n-1]
		}
		if a := b.spawner(nil, said); a != nil {
			l := b.lane(b.unused(), "")
			b.spawned(l, a)
			return b.begins(w, l)
		}
	}
	return b.begins(w, b.lane(x.Agent, r.AgentName))
}

// unused is an id for an agent that the wire has no name for.
func (b *builder) unused() string {
	for i := len(b.g.Agents); ; i++ {
		if id := fmt.Sprintf("agent-%d", i); b.lanes[id] == nil {
			return id
		}
	}
}

// firstWords is what a conversation begins with, without what the agent's
// program adds around it.
func firstWords(r modelapi.Request) string {
	for _, turn := range r.Turns {
		if turn.Role != "user" {
			continue
		}
		for _, block := range slices.Backward(turn.Blocks) {
			if s := strings.TrimSpace(block.Text); block.Kind == modelapi.TextBlock && s != "" && !strings.HasPrefix(s, "<") {
				return s
			}
		}
	}
	return ""
}

// spawner finds the call that started an agent: the one whose input has the
// agent's first words, else the oldest that has no result. parent is the lane
// that made the call; nil when the wire does not name it.
func (b *builder) spawner(parent *lane, said string) *action {
	var oldest *action
	for _, a := range b.spawns {
		if parent != nil && a.lane != parent {
			continue
		}
		if said != "" && slices.ContainsFunc(inputTexts(b.g.Nodes[a.node].Input), func(s string) bool {
			return s != "" && (strings.Contains(said, s) || strings.Contains(s, said))
		}) {
			return a
		}
		if oldest == nil && !a.done {
			oldest = a
		}
	}
	return oldest
}

// inputTexts are the instructions in a call's input.
func inputTexts(input string) []string {
	var o map[string]any
	if json.Unmarshal([]byte(input), &o) != nil {
		return []string{strings.TrimSpace(input)}
	}
	var list []string
	for _, name := range []string{"prompt", "message", "task", "objective", "instructions", "query"} {
		if s, ok := o[name].(string); ok {
			list = append(list, strings.TrimSpace(s))
		}
	}
	return list
}

// spawned joins an agent to the call that started it.
func (b *builder) spawned(l *lane, a *action) {
	if a == nil {
		return
	}
	b.spawns = slices.DeleteFunc(b.spawns, func(o *action) bool { return o == a })
	agent := &b.g.Agents[l.index]
	agent.Parent = b.g.Nodes[a.node].ID
	var o map[string]any
	if json.Unmarshal([]byte(b.g.Nodes[a.node].Input), &o) != nil {
		return
	}
	for _, name := range []string{"subagent_type", "agent_type", "agent", "agent_name", "description"} {
		if s, ok := o[name].(string); ok && s != "" {
			agent.Name = s
			return
		}
	}
}

// prompt adds the nodes of what a request brings: results, and what a person
// or the agent's program said.
func (b *builder) prompt(t *turn, x *mayfly.Exchange, turns []modelapi.Turn, shared int) {
	c := t.c
	p := prompt{b: b, c: c, x: x, step: x.Step, filtered: shared == 0 && c.outputs > 0, compacted: t.request.Compacted && !c.compacting}
	leading := shared == 0
	for _, turn := range turns {
		if leading = leading && turn.Role == "system" || turn.Role == ""; leading {
			continue // instructions: the step has their digest
		}
		if turn.Role == "assistant" && c.outputs == 0 {
			p.history(turn)
			continue
		}
		for _, block := range turn.Blocks {
			p.block(turn.Role, block)
		}
	}
	p.flush()
}

// prompt collects what a request says.
type prompt struct {
	b         *builder
	c         *conversation
	x         *mayfly.Exchange
	step      int
	filtered  bool // the request repeats things that were seen
	compacted bool // it begins with a summary
	text      []string
}

func (p *prompt) block(role string, block modelapi.Block) {
	switch block.Kind {
	case modelapi.SummaryBlock:
		if p.c.outputs > 0 && (role == "assistant" || p.c.compacting) {
			return
		}
		id := p.b.compact(p.c, p.x, block.Text, nil)
		p.c.heads, p.compacted = append(p.c.heads, id), false
	case modelapi.CallBlock:
		p.echo(block)
	case modelapi.ResultBlock:
		p.b.result(p.c, p.x, block, p.filtered)
	case modelapi.TextBlock, modelapi.MediaBlock:
		s := block.Text
		if block.Kind == modelapi.MediaBlock {
			s = "[" + s + "]"
		}
		if role == "assistant" || s == "" || p.filtered && p.c.seen[s] {
			return
		}
		p.c.seen[s] = true
		p.text = append(p.text, s)
	}
}

// echo takes note of a call that comes back as part of the history, perhaps
// under another id.
func (p *prompt) echo(block modelapi.Block) {
	if a := p.c.calls[block.ID]; a != nil {
		a.echoed = true
		return
	}
	if a := p.c.waiting[block.Name].echo(); a != nil {
		a.echoed = true
		if block.ID != "" {
			p.c.calls[block.ID] = a
		}
		return
	}
	if !p.filtered && block.ID != "" {
		// Put into the history by the agent's program.
		p.b.edge(p.c.last, p.b.g.Nodes[p.b.call(p.c, p.x, p.x.Step, block).node].ID, "calls")
	}
}

// history adds an answer from before the run: it has no step.
func (p *prompt) history(turn modelapi.Turn) {
	p.step = 0
	p.flush()
	p.step = p.x.Step
	n := mayfly.Node{Kind: mayfly.OutputNode, Agent: p.c.lane.id, Exchange: p.x.ID, Time: p.x.Start}
	n.Text, n.Thinking = joined(turn.Blocks, modelapi.TextBlock), joined(turn.Blocks, modelapi.ThinkingBlock)
	// The wire may divide an answer into several turns.
	if last := len(p.b.g.Nodes) - 1; p.c.last != "" && len(p.c.heads) == 1 && p.c.heads[0] == p.c.last && n.Text == "" && n.Thinking == "" && last >= 0 {
		p.calls(p.c.last, turn)
		return
	}
	id := p.b.node(n)
	heads := p.c.heads
	if len(heads) == 0 && p.c.last != "" {
		heads = []string{p.c.last}
	}
	for _, h := range heads {
		p.b.edge(h, id, "next")
	}
	p.c.last, p.c.heads = id, []string{id}
	p.calls(id, turn)
}

func (p *prompt) calls(id string, turn modelapi.Turn) {
	for _, block := range turn.Blocks {
		switch block.Kind {
		case modelapi.CallBlock:
			a := p.b.call(p.c, p.x, 0, block)
			p.b.edge(id, p.b.g.Nodes[a.node].ID, "calls")
		case modelapi.ResultBlock:
			p.b.result(p.c, p.x, block, false)
		}
	}
}

// flush makes a node of the collected text.
func (p *prompt) flush() {
	c := p.c
	// Results lead on instead of the output whose calls they answer.
	if len(c.heads) > 1 && c.heads[0] == c.last {
		c.heads = c.heads[1:]
	}
	if len(p.text) == 0 {
		return
	}
	n := mayfly.Node{
		Kind: mayfly.PromptNode, Step: p.step, Agent: c.lane.id, Exchange: p.x.ID, Text: strings.Join(p.text, "\n\n"), Time: p.x.Start,
	}
	if p.compacted {
		n.Kind = mayfly.CompactNode
	}
	id := p.b.node(n)
	first := c.last == "" && p.b.g.Agents[c.lane.index].Parent != ""
	switch {
	case p.compacted:
		p.b.edge(id, c.last, "summarises")
	case first:
		p.b.edge(p.b.g.Agents[c.lane.index].Parent, id, "spawns")
	default:
		p.b.edge(c.last, id, "next")
	}
	p.text, p.compacted = nil, false
	if len(c.heads) == 1 && c.heads[0] == c.last {
		c.heads = nil
	}
	c.heads = append(c.heads, id)
}
