package agentconfig

// codex is /etc/codex/config.toml, below what users and command lines say. A
// repository's own configuration cannot choose a provider. Codex's sandbox
// is off because the environment is one, in which a second cannot be made.
const codex = `model_provider = "mayfly"
approval_policy = "never"
sandbox_mode = "danger-full-access"
check_for_update_on_startup = false

[analytics]
enabled = false

[feedback]
enabled = false

[model_providers.mayfly]
name = "mayfly"
base_url = "%s/openai/v1"
wire_api = "responses"
supports_websockets = false
env_key = "OPENAI_API_KEY"
`

// gemini is /etc/gemini-cli/settings.json, which no other settings override.
// Address and key come as variables.
var gemini = map[string]any{
	"general":   map[string]any{"enableAutoUpdate": false, "enableAutoUpdateNotification": false},
	"privacy":   map[string]any{"usageStatisticsEnabled": false},
	"telemetry": map[string]any{"enabled": false},
	"security":  map[string]any{"auth": map[string]any{"selectedType": "gemini-api-key"}},
}

// opencode is /etc/opencode/opencode.json, which no other configuration
// overrides.
func opencode(port int) map[string]any {
	provider := func(path, key string) map[string]any {
		return map[string]any{"options": map[string]any{"baseURL": at(port) + path, "apiKey": "{env:" + key + "}"}}
	}
	return map[string]any{
		"$schema":    "https://opencode.ai/config.json",
		"autoupdate": false,
		"share":      "disabled",
		"provider": map[string]any{
			"anthropic": provider("/anthropic/v1", "ANTHROPIC_AUTH_TOKEN"),
			"openai":    provider("/openai/v1", "OPENAI_API_KEY"),
			"google":    provider("/gemini/v1beta", "GEMINI_API_KEY"),
		},
	}
}

// pi is ~/.pi/agent/models.json: its own models, elsewhere. Keys are names of
// variables.
func pi(port int) map[string]any {
	provider := func(path, key string) map[string]any {
		return map[string]any{"baseUrl": at(port) + path, "apiKey": key}
	}
	return map[string]any{"providers": map[string]any{
		"anthropic": provider("/anthropic", "ANTHROPIC_AUTH_TOKEN"),
		"openai":    provider("/openai/v1", "OPENAI_API_KEY"),
		"google":    provider("/gemini/v1beta", "GEMINI_API_KEY"),
	}}
}
