// Package agents runs real coding agents in environments, against a model
// that follows a script, without a network. Its tests need the agents from
// npm, some hundred megabytes, so that they are a target of their own:
// make agents.
package agents

// Agent says how a coding agent is installed and started without a person, a
// network, updates and telemetry.
type Agent struct {
	Name    string
	Package string // of npm, with its version
	// Files are what of node_modules goes along, relative to it.
	Files []string
	// Env is set for the agent. The keys in it are worthless.
	Env map[string]string
	// Config is a file in the home directory, by its path relative to it.
	Config map[string]string
	// Command starts the agent; "node_modules/…" is relative to the workspace.
	Command []string
}

// Address is where the model listens inside an environment.
const Address = "127.0.0.1:4000"

// Prompt is what the agents are asked to do.
const Prompt = "Make the test pass."

// All are the agents that are tried.
var All = []Agent{
	{
		Name:    "claude",
		Package: "@anthropic-ai/claude-code@2.1.330",
		Files:   []string{"@anthropic-ai/claude-code-linux-x64/claude"},
		Env: map[string]string{
			"ANTHROPIC_BASE_URL":                       "http://" + Address,
			"ANTHROPIC_API_KEY":                        "worthless",
			"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
			"DISABLE_TELEMETRY":                        "1",
			"DISABLE_ERROR_REPORTING":                  "1",
			"DISABLE_AUTOUPDATER":                      "1",
		},
		Command: []string{
			"node_modules/@anthropic-ai/claude-code-linux-x64/claude", "-p", Prompt, "--dangerously-skip-permissions",
		},
	},
	{
		Name:    "codex",
		Package: "@openai/codex@0.169.0",
		Files:   []string{"@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin/codex"},
		Env:     map[string]string{"SCRIPTED_KEY": "worthless"},
		Config: map[string]string{".codex/config.toml": `model = "scripted-1"
model_provider = "scripted"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false

[analytics]
enabled = false

[model_providers.scripted]
name = "scripted"
base_url = "http://` + Address + `/v1"
wire_api = "responses"
supports_websockets = false
env_key = "SCRIPTED_KEY"
`},
		Command: []string{
			"node_modules/@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin/codex", "exec", "--skip-git-repo-check", Prompt,
		},
	},
	{
		Name:    "pi",
		Package: "@mariozechner/pi-coding-agent@0.73.1",
		Files:   []string{"."},
		Env:     map[string]string{"PI_OFFLINE": "1", "PI_SKIP_VERSION_CHECK": "1"},
		Config: map[string]string{".pi/agent/models.json": `{"providers": {"scripted": {
  "baseUrl": "http://` + Address + `/v1", "api": "openai-completions", "apiKey": "worthless",
  "models": [{"id": "scripted-1", "name": "scripted", "reasoning": false, "input": ["text"],
    "contextWindow": 100000, "maxTokens": 8000, "cost": {"input": 0, "output": 0, "cacheRead": 0, "cacheWrite": 0}}]
}}}
`},
		Command: []string{
			"node", "node_modules/@mariozechner/pi-coding-agent/dist/cli.js", "-p", "--provider", "scripted", "--model", "scripted-1", Prompt,
		},
	},
}
