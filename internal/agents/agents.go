// Package agents runs real coding agents in environments, through the gateway
// to a model that follows a script, without a network. The agents have no
// configuration but what every environment gives them. The tests need them
// from npm, some hundred megabytes each, so that they are targets of their
// own: make agents, and make agents_all for the slower ones, too.
package agents

import "slices"

// Agent says how a coding agent is installed and started without a person.
type Agent struct {
	Name    string
	Package string // of npm, with its version
	// Files are what of node_modules goes along, relative to it.
	Files []string
	// Command starts the agent; "node_modules/…" is relative to the workspace.
	Command []string
	// Ask comes before the prompt, which is last.
	Ask []string
	// Parameter is what more the command may say, so that a parameter of its
	// requests is not Was, but Is.
	Parameter []string
	Was, Is   string
	// Aside says that the prompt goes to another model first, for a title or a
	// choice of the model.
	Aside bool
	// Delegates says that the agent can start subagents.
	Delegates bool
	// Program says that a tool call holds all actions of a step.
	Program bool
	// Slow agents are tried only where there is time.
	Slow bool
}

// Start is the command with a prompt, and with what more it is to say.
func (a Agent) Start(prompt string, more ...string) []string {
	return slices.Concat(a.Command, more, a.Ask, []string{prompt})
}

const (
	codexDir = "@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin"
	codex    = "node_modules/" + codexDir + "/codex"
)

// All are the agents that are tried.
var All = []Agent{
	{
		Name:      "claude",
		Package:   "@anthropic-ai/claude-code@2.1.330",
		Files:     []string{"@anthropic-ai/claude-code-linux-x64/claude"},
		Command:   []string{"node_modules/@anthropic-ai/claude-code-linux-x64/claude", "--dangerously-skip-permissions"},
		Ask:       []string{"-p"},
		Parameter: []string{"--effort", "high"},
		Is:        "high",
		Delegates: true,
	},
	{
		// Each action is a tool call.
		Name:      "codex-direct",
		Package:   "@openai/codex@0.169.0",
		Files:     []string{codexDir + "/codex"},
		Command:   []string{codex, "exec", "-m", "gpt-5.5", "--skip-git-repo-check"},
		Parameter: []string{"-c", `model_reasoning_effort="high"`},
		Is:        "high",
	},
	{
		// A tool call is a program that performs several actions. The model
		// decides: its entry in Codex's own catalogue says so.
		Name:      "codex-code",
		Package:   "@openai/codex@0.169.0",
		Files:     []string{codexDir},
		Command:   []string{codex, "exec", "-m", "gpt-6-sol", "--skip-git-repo-check"},
		Parameter: []string{"-c", `model_reasoning_effort="high"`},
		Is:        "high",
		Program:   true,
	},
	{
		Name:      "pi",
		Package:   "@mariozechner/pi-coding-agent@0.73.1",
		Files:     []string{"."},
		Command:   []string{"node", "node_modules/@mariozechner/pi-coding-agent/dist/cli.js", "-p", "--provider", "openai", "--model", "gpt-5.1"},
		Parameter: []string{"--thinking", "high"},
		Is:        "high",
	},
	{
		Name:      "gemini",
		Package:   "@google/gemini-cli@0.61.0",
		Files:     []string{"@google/gemini-cli"},
		Command:   []string{"node", "node_modules/@google/gemini-cli/bundle/gemini.js", "--yolo", "--skip-trust"},
		Ask:       []string{"-p"},
		Parameter: []string{"-m", "gemini-2.5-pro"},
		Was:       "HIGH",
		Aside:     true,
		Slow:      true,
	},
	{
		Name:      "opencode",
		Package:   "opencode-ai@1.18.33",
		Files:     []string{"opencode-linux-x64/bin/opencode"},
		Command:   []string{"node_modules/opencode-linux-x64/bin/opencode", "run", "-m", "openai/gpt-5.1"},
		Parameter: []string{"--variant", "high"},
		Is:        "high",
		Aside:     true,
		Slow:      true,
	},
}
