// Package agents runs real coding agents in environments, against a model
// that follows a script, without a network. Its tests need the agents from
// npm, some hundred megabytes each, so that they are targets of their own:
// make agents, and make agents_all for the slower ones, too.
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
	// Delegates says that the agent can start subagents.
	Delegates bool
	// Slow agents are tried only where there is time.
	Slow bool
}

// Address is where the model listens inside an environment.
const Address = "127.0.0.1:4000"

// Prompt is what the agents are asked to do.
const Prompt = "Make the test pass."

const (
	claude   = "node_modules/@anthropic-ai/claude-code-linux-x64/claude"
	codexDir = "@openai/codex-linux-x64/vendor/x86_64-unknown-linux-musl/bin"
	codex    = "node_modules/" + codexDir + "/codex"
	gemini   = "node_modules/@google/gemini-cli/bundle/gemini.js"
	opencode = "node_modules/opencode-linux-x64/bin/opencode"
	pi       = "node_modules/@mariozechner/pi-coding-agent/dist/cli.js"
)

var codexConfig = map[string]string{".codex/config.toml": `model_provider = "scripted"
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
`}

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
		Command:   []string{claude, "-p", Prompt, "--dangerously-skip-permissions"},
		Delegates: true,
	},
	{
		// Each action is a tool call.
		Name:    "codex-direct",
		Package: "@openai/codex@0.169.0",
		Files:   []string{codexDir + "/codex"},
		Env:     map[string]string{"SCRIPTED_KEY": "worthless"},
		Config:  codexConfig,
		Command: []string{codex, "exec", "-m", "gpt-5.5", "--skip-git-repo-check", Prompt},
	},
	{
		// A tool call is a program that performs several actions. The model
		// decides: its entry in Codex's own catalogue says so.
		Name:    "codex-code",
		Package: "@openai/codex@0.169.0",
		Files:   []string{codexDir},
		Env:     map[string]string{"SCRIPTED_KEY": "worthless"},
		Config:  codexConfig,
		Command: []string{codex, "exec", "-m", "gpt-6-sol", "--skip-git-repo-check", Prompt},
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
		Command: []string{"node", pi, "-p", "--provider", "scripted", "--model", "scripted-1", Prompt},
	},
	{
		Name:    "gemini",
		Package: "@google/gemini-cli@0.61.0",
		Files:   []string{"@google/gemini-cli"},
		Env: map[string]string{
			"GOOGLE_GEMINI_BASE_URL": "http://" + Address, "GEMINI_API_KEY": "worthless", "GEMINI_TELEMETRY_ENABLED": "false",
		},
		Config: map[string]string{".gemini/settings.json": `{
  "security": {"auth": {"selectedType": "gemini-api-key"}},
  "general": {"enableAutoUpdate": false},
  "privacy": {"usageStatisticsEnabled": false}
}
`},
		Command: []string{"node", gemini, "-p", Prompt, "--yolo", "--skip-trust"},
		Slow:    true,
	},
	{
		Name:    "opencode",
		Package: "opencode-ai@1.18.33",
		Files:   []string{"opencode-linux-x64/bin/opencode"},
		Env:     map[string]string{"OPENCODE_DISABLE_AUTOUPDATE": "1", "OPENCODE_DISABLE_MODELS_FETCH": "1"},
		Config: map[string]string{".config/opencode/opencode.json": `{
  "autoupdate": false, "share": "disabled", "model": "scripted/scripted-1", "small_model": "scripted/scripted-1",
  "provider": {"scripted": {
    "npm": "@ai-sdk/openai-compatible", "name": "scripted",
    "options": {"baseURL": "http://` + Address + `/v1", "apiKey": "worthless"},
    "models": {"scripted-1": {"name": "scripted"}}
  }}
}
`},
		Command: []string{opencode, "run", Prompt},
		Slow:    true,
	},
}
