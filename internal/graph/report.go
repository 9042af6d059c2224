package graph

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"time"

	"mayfly.dev/mayfly"
)

// sighting is what an agent said about a tool call.
type sighting struct {
	source  string
	call    string
	tool    string
	agent   string // that made the call, as the wire calls it
	input   string
	result  string
	ended   bool // there is a result
	failed  bool
	refused bool
	started string // agent that the call started
	kind    string // of that agent
	begin   time.Time
	end     time.Time
}

// report merges what an agent said about itself. What cannot be read says
// nothing: agents are not trusted to speak well.
func (b *builder) report(r Report) error {
	header, body, ok, err := b.content(r.Content)
	if err != nil || !ok {
		return err
	}
	for _, s := range sightings(r, header, body) {
		b.merge(s)
	}
	return nil
}

func sightings(r Report, header http.Header, body []byte) []sighting {
	kind := strings.TrimPrefix(r.Kind, "agent.")
	switch {
	case strings.HasPrefix(kind, "hook"):
		return hookSightings(r.Time, body)
	case strings.HasPrefix(kind, "mcp"):
		return mcpSightings(r.Time, body)
	case strings.HasPrefix(kind, "otlp"):
		return otlpSightings(header, body)
	}
	return nil
}

// hook is a payload of Claude Code's hooks, which Codex's resemble.
// https://docs.anthropic.com/en/docs/claude-code/hooks
type hook struct {
	Event    string          `json:"hook_event_name"`
	Tool     string          `json:"tool_name"`
	Input    json.RawMessage `json:"tool_input"`
	Response json.RawMessage `json:"tool_response"`
	Call     string          `json:"tool_use_id"`
	Agent    string          `json:"agent_id"`
	Kind     string          `json:"agent_type"`
	Error    string          `json:"error"`
	Reason   string          `json:"reason"`
}

func hookSightings(t time.Time, body []byte) []sighting {
	var h hook
	if json.Unmarshal(body, &h) != nil {
		return nil
	}
	s := sighting{source: "hook", call: h.Call, tool: h.Tool, agent: h.Agent, input: plainJSON(h.Input)}
	switch h.Event {
	case "PreToolUse":
		s.begin = t
	case "PostToolUse":
		s.end, s.ended, s.result = t, true, responseText(h.Response)
		var agent struct {
			ID   string `json:"agentId"`
			Kind string `json:"agentType"`
		}
		if json.Unmarshal(h.Response, &agent) == nil {
			s.started, s.kind = agent.ID, agent.Kind
		}
	case "PostToolUseFailure":
		s.end, s.ended, s.failed, s.result = t, true, true, h.Error
	case "PermissionDenied":
		s.end, s.ended, s.failed, s.refused, s.result = t, true, true, true, h.Reason
	case "SubagentStart", "SubagentStop":
		s = sighting{source: "hook", started: h.Agent, kind: h.Kind}
	default:
		return nil
	}
	return []sighting{s}
}

// plainJSON is JSON as it is, and the text of a string.
func plainJSON(raw json.RawMessage) string {
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}

// responseText is what a tool gave back.
func responseText(raw json.RawMessage) string {
	var o struct {
		Stdout *string `json:"stdout"`
		Stderr string  `json:"stderr"`
		Output *string `json:"output"`
	}
	if json.Unmarshal(raw, &o) == nil {
		switch {
		case o.Output != nil:
			return *o.Output
		case o.Stdout != nil:
			return *o.Stdout + o.Stderr
		}
	}
	return plainJSON(raw)
}

// mcpSightings reads a tools/call of the Model Context Protocol, in whose
// _meta Claude Code names the call.
func mcpSightings(t time.Time, body []byte) []sighting {
	var q struct {
		Method string `json:"method"`
		Params struct {
			Name      string                     `json:"name"`
			Arguments json.RawMessage            `json:"arguments"`
			Meta      map[string]json.RawMessage `json:"_meta"`
		} `json:"params"`
	}
	if json.Unmarshal(body, &q) != nil || q.Method != "tools/call" {
		return nil
	}
	return []sighting{{
		source: "mcp", call: plainJSON(q.Params.Meta["claudecode/toolUseId"]), tool: q.Params.Name,
		input: string(q.Params.Arguments), begin: t,
	}}
}

// merge adds a sighting to the action that it is of. An action that only the
// agent tells of becomes a node of its own.
func (b *builder) merge(s sighting) {
	var a *action
	if s.call != "" {
		if a = b.sighted(s); a == nil && s.tool != "" {
			a = b.own(s)
		}
	}
	if l := b.lanes[s.started]; l != nil && s.started != "" {
		agent := &b.g.Agents[l.index]
		if agent.Name == "" {
			agent.Name = s.kind
		}
		if a != nil && agent.Parent == "" && a.lane != l {
			agent.Parent = b.g.Nodes[a.node].ID
			b.edge(agent.Parent, b.firstOf(l), "spawns")
		}
	}
	if a == nil {
		return
	}
	n := &b.g.Nodes[a.node]
	addSource(n, s.source)
	if n.Input == "" {
		n.Input = s.input
	}
	// The wire shows when a call was asked for, the agent when it ran.
	if !s.begin.IsZero() && s.begin.After(n.Time) {
		n.Time = s.begin
	}
	if !s.ended {
		return
	}
	if a.result < 0 && !slices.Contains(n.Sources, wireSource) {
		a.done, a.result = true, len(b.g.Nodes)
		result := mayfly.Node{
			Kind: mayfly.ResultNode, Step: n.Step, Agent: n.Agent, Text: s.result, Tool: n.Tool, Call: n.Call,
			Failed: s.failed, Refused: s.refused, Time: s.end, Sources: []string{s.source},
		}
		from := n.ID
		b.edge(from, b.node(result), "returns")
		return
	}
	if a.result >= 0 {
		r := &b.g.Nodes[a.result]
		addSource(r, s.source)
		r.Refused = r.Refused || s.refused && r.Failed
		if !s.end.IsZero() && s.end.Before(r.Time) && !s.end.Before(n.Time) {
			r.Time = s.end
		}
	}
}

func addSource(n *mayfly.Node, source string) {
	if !slices.Contains(n.Sources, source) {
		n.Sources = append(n.Sources, source)
	}
}

// sighted finds the action that a sighting is of. Agents may use an id again:
// then it is that of the agent that is named, or the last one before.
func (b *builder) sighted(s sighting) *action {
	var found *action
	at := s.begin
	if at.IsZero() {
		at = s.end
	}
	for _, a := range b.calls[s.call] {
		if s.agent != "" && a.lane.id == s.agent {
			return a
		}
		if found == nil || at.IsZero() || !b.g.Nodes[a.node].Time.After(at) {
			found = a
		}
	}
	return found
}

// own makes the node of an action that only the agent tells of, as part of
// the action that was under way then.
func (b *builder) own(s sighting) *action {
	at := s.begin
	if at.IsZero() {
		at = s.end
	}
	step := b.stepAt(at, s.agent)
	n := mayfly.Node{
		Kind: mayfly.ActionNode, Tool: s.tool, Call: s.call, Input: s.input, Agent: s.agent, Time: at, Sources: []string{s.source},
	}
	l := b.lanes[s.agent]
	if step != nil {
		n.Step, n.Agent, l = step.Number, step.Agent, b.lanes[step.Agent]
	}
	if l == nil {
		return nil
	}
	parent := ""
	if n.Step != 0 {
		parent = b.underWay(n.Step)
	}
	a := &action{node: len(b.g.Nodes), step: n.Step, lane: l, result: -1, remote: true}
	b.edge(parent, b.node(n), "calls")
	b.actions = append(b.actions, a)
	b.calls[s.call] = append(b.calls[s.call], a)
	return a
}

// underWay is the last action of a step that the wire shows, else its output.
func (b *builder) underWay(step int) string {
	if b.tails == nil {
		b.tails = map[int]string{}
		for _, n := range b.g.Nodes {
			if (n.Kind == mayfly.OutputNode || n.Kind == mayfly.ActionNode) && slices.Contains(n.Sources, wireSource) {
				b.tails[n.Step] = n.ID
			}
		}
	}
	return b.tails[step]
}

// firstOf is the first node of an agent.
func (b *builder) firstOf(l *lane) string {
	for i := range b.g.Nodes {
		if n := &b.g.Nodes[i]; n.Agent == l.id && n.Kind == mayfly.PromptNode {
			return n.ID
		}
	}
	return ""
}

// stepAt is the step whose output came last before a time, of the agent if
// the wire knows it.
func (b *builder) stepAt(t time.Time, agent string) *mayfly.Step {
	order := b.inOrder()
	at, _ := slices.BinarySearchFunc(order, t, func(i int, t time.Time) int {
		if b.cameAt(i).After(t) {
			return 1
		}
		return -1
	})
	for i := at - 1; i >= 0; i-- {
		if s := &b.g.Steps[order[i]]; s.Agent == agent || b.lanes[agent] == nil || agent == "" {
			return s
		}
	}
	return nil
}
