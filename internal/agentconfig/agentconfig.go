// Package agentconfig says how coding agents are told, inside an environment,
// to speak to the gateway: files that lie under every environment, and
// variables of every process.
//
// What matters is the network, which leads nowhere else. The files save
// people from configuring their agents, and, below /etc, keep a repository
// from doing it.
package agentconfig

import (
	"encoding/json"
	"fmt"
	"strconv"
)

// Options say what the files hold.
type Options struct {
	Port         int  // of the gateway
	Hooks        bool // Claude Code reports what it does to the gateway, and waits for its answer
	ProjectHooks bool // hooks of repositories and of the user may run, too
}

// Home is the home directory of agents. What Files has below it belongs to
// them; the rest belongs to root.
const Home = "/home/agent"

// Files returns content by absolute path.
func Files(o Options) map[string][]byte {
	return map[string][]byte{
		"/etc/claude-code/managed-settings.json": object(claude(o)),
		"/etc/codex/config.toml":                 []byte(fmt.Sprintf(codex, at(o.Port))),
		"/etc/gemini-cli/settings.json":          object(gemini),
		"/etc/opencode/opencode.json":            object(opencode(o.Port)),
		Home + "/.pi/agent/models.json":          object(pi(o.Port)),
	}
}

// Variables returns what every process needs to reach the gateway at the port
// with a run's token, and what keeps agents from looking for updates and
// sending telemetry.
func Variables(port int, token string) map[string]string {
	return map[string]string{
		"MAYFLY_TOKEN":           token,
		"ANTHROPIC_BASE_URL":     at(port) + "/anthropic",
		"ANTHROPIC_AUTH_TOKEN":   token,
		"OPENAI_BASE_URL":        at(port) + "/openai/v1",
		"OPENAI_API_KEY":         token,
		"GOOGLE_GEMINI_BASE_URL": at(port) + "/gemini",
		"GEMINI_API_KEY":         token,

		// Claude Code. The header would change the system prompt from run to run.
		"CLAUDE_CODE_ATTRIBUTION_HEADER":           "0",
		"CLAUDE_CODE_GATEWAY_HINT_HEADERS":         "1", // says what a request is for: a turn, a title, a subagent
		"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
		"DISABLE_TELEMETRY":                        "1",
		"DISABLE_ERROR_REPORTING":                  "1",
		"DISABLE_AUTOUPDATER":                      "1",

		"GEMINI_TELEMETRY_ENABLED": "false",

		"OPENCODE_DISABLE_AUTOUPDATE":   "1",
		"OPENCODE_DISABLE_MODELS_FETCH": "1",
		"OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
		"OPENCODE_DISABLE_SHARE":        "1",

		"PI_OFFLINE":            "1",
		"PI_SKIP_VERSION_CHECK": "1",
		"PI_TELEMETRY":          "0",

		"DO_NOT_TRACK": "1",
	}
}

func at(port int) string { return "http://127.0.0.1:" + strconv.Itoa(port) }

// object is a JSON text with its keys in order, so that it has one digest.
func object(value map[string]any) []byte {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		panic(err) // it is made of strings, numbers and truth values
	}
	return append(text, '\n')
}
