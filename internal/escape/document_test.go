//go:build linux

package escape

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestSecurityDocumentNamesEveryProbe holds docs/security.md to the suite:
// each claim has a probe, and each probe a claim.
func TestSecurityDocumentNamesEveryProbe(t *testing.T) {
	text, err := os.ReadFile("../../docs/security.md")
	check(t, err)
	_, section, ok := strings.Cut(string(text), "## What is shut")
	if !ok {
		t.Fatal("the section with the table is missing")
	}
	section, _, _ = strings.Cut(section, "\n## ")
	claimed := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z0-9-]+)`").FindAllStringSubmatch(section, -1) {
		claimed[m[1]] = true
	}
	probes := map[string]bool{"cpu-bomb": true, "log-bomb": true, "inotify-bomb": true, "kill-everything": true, "link-race": true}
	for _, d := range doors {
		probes[d.row()] = true
	}
	for _, b := range bombs {
		probes[b.name] = true
	}
	for name := range sequences {
		probes["terminal-"+name] = true
	}
	for name := range probes {
		if !claimed[name] {
			t.Errorf("probe %s has no claim in docs/security.md", name)
		}
	}
	for name := range claimed {
		if !probes[name] {
			t.Errorf("docs/security.md names a probe %s, which does not exist", name)
		}
	}
}
