package agentconfig

// Names of Claude Code's events, see its hooks reference. Those that guard an
// action fail closed; a failure at the others must not keep an agent from
// ending.
var (
	claudeGuards  = []string{"PreToolUse", "UserPromptSubmit"}
	claudeReports = []string{"PostToolUse", "PostToolUseFailure", "SubagentStart", "SubagentStop", "PreCompact", "Stop", "SessionEnd"}
)

// hookTimeout is in seconds.
const hookTimeout = 60

// claude is /etc/claude-code/managed-settings.json, which no other settings
// override.
func claude(o Options) map[string]any {
	settings := map[string]any{
		"allowManagedHooksOnly": !o.ProjectHooks,
		"env": map[string]any{
			"ANTHROPIC_BASE_URL":                       at(o.Port) + "/anthropic",
			"CLAUDE_CODE_ATTRIBUTION_HEADER":           "0",
			"CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
			"DISABLE_AUTOUPDATER":                      "1",
			"DISABLE_ERROR_REPORTING":                  "1",
			"DISABLE_TELEMETRY":                        "1",
		},
	}
	if !o.Hooks {
		return settings
	}
	url := at(o.Port) + "/hooks/claude"
	hooks := map[string]any{}
	for _, event := range claudeReports {
		hooks[event] = claudeHook(url, "continue")
	}
	for _, event := range claudeGuards {
		hooks[event] = claudeHook(url, "block")
	}
	settings["hooks"] = hooks
	settings["allowedHttpHookUrls"] = []string{url}
	return settings
}

// claudeHook posts every event of its kind to the gateway, with the run's
// token. Claude Code does not put the variables of its own keys into headers.
func claudeHook(url, onFailure string) []any {
	hook := map[string]any{
		"type": "http", "url": url, "timeout": hookTimeout, "onFailure": onFailure,
		"headers":        map[string]any{"Authorization": "Bearer $MAYFLY_TOKEN"},
		"allowedEnvVars": []string{"MAYFLY_TOKEN"},
	}
	return []any{map[string]any{"hooks": []any{hook}}}
}
