package mayfly

import "time"

// Graph is the decision graph of a run: what the model was told, what it
// answered, what the agent did about it, and what came of that.
type Graph struct {
	Run    string      `json:"run"`
	Agents []AgentLane `json:"agents"`
	Steps  []Step      `json:"steps"`
	Nodes  []Node      `json:"nodes"`
	Edges  []Edge      `json:"edges"`
	// Orphans are the tool calls without a result, and results without a call.
	Orphans []string   `json:"orphans,omitempty"`
	Usage   TokenUsage `json:"usage"`
}

// AgentLane is the main agent of a run, or a subagent.
type AgentLane struct {
	ID     string `json:"id"` // "" for the main agent
	Name   string `json:"name,omitempty"`
	Parent string `json:"parent,omitempty"` // node of the action that started it
}

// Step is one turn: a prompt, the model's output, its actions and their
// results.
type Step struct {
	Number    int        `json:"number"` // 1, 2, … within the run
	Agent     string     `json:"agent,omitempty"`
	Exchanges []string   `json:"exchanges"` // the last one is the answer; the others were retried
	Model     string     `json:"model,omitempty"`
	Parameter Parameters `json:"parameters,omitzero"`
	System    string     `json:"system,omitempty"` // digest of the system prompt
	Tools     string     `json:"tools,omitempty"`  // digest of the tool set
	Before    string     `json:"before,omitempty"` // snapshot when the prompt came
	After     string     `json:"after,omitempty"`  // snapshot when the results were in
	Usage     TokenUsage `json:"usage,omitzero"`
	Start     time.Time  `json:"start"`
	FirstByte time.Time  `json:"first_byte,omitzero"`
	End       time.Time  `json:"end,omitzero"`        // of the model's output
	Done      time.Time  `json:"done,omitzero"`       // of the actions: when the next prompt came
	Files     []Change   `json:"files,omitempty"`     // changed between Before and After
	Processes []Process  `json:"processes,omitempty"` // started between them
	Reached   []string   `json:"reached,omitempty"`   // what passed the gateway
}

// Parameters are the settings of a model call. Nil means that the request was
// silent.
type Parameters struct {
	Temperature *float64 `json:"temperature,omitempty"`
	TopP        *float64 `json:"top_p,omitempty"`
	TopK        *int64   `json:"top_k,omitempty"`
	MaxTokens   *int64   `json:"max_tokens,omitempty"`
	Seed        *int64   `json:"seed,omitempty"`
	Reasoning   string   `json:"reasoning,omitempty"` // effort or budget, as written
}

// Process is a program that was started in an environment.
type Process struct {
	Time    time.Time `json:"time"`
	PID     int       `json:"pid"` // on the host
	Parent  int       `json:"parent"`
	Command []string  `json:"command"`
}

// NodeKind says what a node of the graph is.
type NodeKind string

const (
	PromptNode  NodeKind = "prompt"  // new input from a person or the agent's program
	OutputNode  NodeKind = "output"  // what the model said
	ActionNode  NodeKind = "action"  // a tool call
	ResultNode  NodeKind = "result"  // what came of an action
	SideNode    NodeKind = "side"    // a call beside the conversation: titles, routing, counting
	CompactNode NodeKind = "compact" // the conversation was replaced by a summary
)

// Node is one node of the graph. Text is redacted.
type Node struct {
	ID       string    `json:"id"`
	Kind     NodeKind  `json:"kind"`
	Step     int       `json:"step,omitempty"`
	Agent    string    `json:"agent,omitempty"`
	Exchange string    `json:"exchange,omitempty"` // where it was seen first
	Text     string    `json:"text,omitempty"`
	Thinking string    `json:"thinking,omitempty"`
	Tool     string    `json:"tool,omitempty"`
	Call     string    `json:"call,omitempty"`  // tool call id: joins an action and its result
	Input    string    `json:"input,omitempty"` // arguments of an action: JSON, or what the tool takes
	Failed   bool      `json:"failed,omitempty"`
	Refused  bool      `json:"refused,omitempty"` // a person or the agent's program did not allow it
	Time     time.Time `json:"time,omitzero"`
	Sources  []string  `json:"sources,omitempty"` // who reported it: "wire", "hook", "otlp", "mcp"
}

// Edge joins two nodes, by id.
type Edge struct {
	From string `json:"from"`
	To   string `json:"to"`
	Kind string `json:"kind"` // "next", "calls", "returns", "spawns", "retries", "summarises"
}
