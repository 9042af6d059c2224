package agentconfig

import (
	"bytes"
	"encoding/json"
	"path"
	"strings"
	"testing"
)

func TestFilesAreTheSameEachTime(t *testing.T) {
	o := Options{Port: 2929, Hooks: true}
	for range 20 {
		a, b := Files(o), Files(o)
		for name := range a {
			if !bytes.Equal(a[name], b[name]) {
				t.Fatalf("%s differs from time to time", name)
			}
		}
	}
}

func TestFilesLeadNowhereButToTheGateway(t *testing.T) {
	for name, content := range Files(Options{Port: 4711, Hooks: true}) {
		if !path.IsAbs(name) || path.Clean(name) != name {
			t.Errorf("path: got = %q", name)
		}
		if strings.HasSuffix(name, ".json") && !json.Valid(content) {
			t.Errorf("%s is no JSON: %s", name, content)
		}
		text := strings.ReplaceAll(string(content), "https://opencode.ai/config.json", "")
		if strings.Contains(text, "https://") || strings.Count(text, "http://") != strings.Count(text, "http://127.0.0.1:4711/") {
			t.Errorf("%s leads elsewhere: %s", name, content)
		}
	}
}

func TestTokenIsInVariablesOnly(t *testing.T) {
	const token = "mf-run-1-0123"
	n := 0
	for name, value := range Variables(2929, token) {
		if value == token {
			n++
		} else if strings.Contains(value, token) {
			t.Errorf("%s: got = %q", name, value)
		}
		if strings.HasSuffix(name, "_URL") && !strings.HasPrefix(value, "http://127.0.0.1:2929/") {
			t.Errorf("%s: got = %q", name, value)
		}
	}
	if n != 4 {
		t.Errorf("keys: got = %d, want 4", n)
	}
}

func TestSwitchesOfClaude(t *testing.T) {
	type settings struct {
		AllowManagedHooksOnly bool
		AllowedHttpHookUrls   []string
		Hooks                 map[string][]struct {
			Hooks []struct{ URL, OnFailure string }
		}
	}
	for _, c := range []struct {
		o    Options
		only bool
		pre  string
	}{
		{Options{Port: 1}, true, ""},
		{Options{Port: 1, Hooks: true}, true, "block"},
		{Options{Port: 1, Hooks: true, ProjectHooks: true}, false, "block"},
	} {
		var got settings
		if err := json.Unmarshal(Files(c.o)["/etc/claude-code/managed-settings.json"], &got); err != nil {
			t.Fatal(err)
		}
		pre := ""
		if h := got.Hooks["PreToolUse"]; len(h) == 1 && len(h[0].Hooks) == 1 && h[0].Hooks[0].URL == "http://127.0.0.1:1/hooks/claude" {
			pre = h[0].Hooks[0].OnFailure
		}
		if got.AllowManagedHooksOnly != c.only || pre != c.pre || (len(got.Hooks) > 0) != c.o.Hooks {
			t.Errorf("%+v: got = %+v", c.o, got)
		}
	}
}
