package manifest

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

// The reference's examples are real, and its table has every field with its
// default.
func TestTheReferenceIsTrue(t *testing.T) {
	data, err := os.ReadFile("../../docs/manifest.md")
	if err != nil {
		t.Fatal(err)
	}
	doc := string(data)
	examples := regexp.MustCompile("(?s)```(yaml|json)\n(.*?)```").FindAllStringSubmatch(doc, -1)
	if len(examples) < 8 {
		t.Errorf("the reference has %d examples, want at least 8", len(examples))
	}
	for _, e := range examples {
		if e[1] == "json" {
			if _, err := ParseLock("docs/manifest.md", []byte(e[2])); err != nil {
				t.Errorf("the lock of the reference: %v", err)
			}
		} else if _, err := Parse("docs/manifest.md", []byte(e[2])); err != nil {
			t.Errorf("example\n%s: %v", e[2], err)
		}
	}
	for _, name := range lockfileNames {
		if !strings.Contains(doc, "`"+name+"`") {
			t.Errorf("the reference lacks the lockfile %s", name)
		}
	}
	for name := range reserved {
		if !strings.Contains(doc, "`"+name+"`") {
			t.Errorf("the reference lacks the reserved variable %s", name)
		}
	}
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z_.]+)` \\|[^|]+\\|([^|]*)\\|").FindAllStringSubmatch(doc, -1) {
		documented = append(documented, row[1])
		if want, ok := defaultsOf()[row[1]]; ok && strings.TrimSpace(row[2]) != "`"+want+"`" {
			t.Errorf("the reference says that %s is by default %s, want `%s`", row[1], row[2], want)
		}
	}
	for _, prefix := range []string{"", "limits", "workspace", "recording"} {
		for _, field := range fieldsKnown(t, prefix) {
			if !slices.Contains(documented, field) && !slices.ContainsFunc(documented, func(d string) bool { return strings.HasPrefix(d, field+".") }) {
				t.Errorf("the reference lacks the field %s", field)
			}
		}
	}
}

// fieldsKnown asks the decoder, by an unknown field that is near no other.
func fieldsKnown(t *testing.T, prefix string) []string {
	t.Helper()
	content := "qqqqqqqq: 1"
	if prefix != "" {
		content = prefix + ":\n  qqqqqqqq: 1"
	}
	_, err := Parse("mayfly.yaml", []byte(content))
	e, ok := err.(*mayfly.Error)
	if !ok {
		t.Fatalf("err = %v, want the known fields", err)
	}
	_, list, _ := strings.Cut(e.Fix, ": ")
	fields := strings.Split(list, ", ")
	for i := range fields {
		if prefix != "" {
			fields[i] = prefix + "." + fields[i]
		}
	}
	return fields
}

func defaultsOf() map[string]string {
	m := defaults(".")
	return map[string]string{
		"base": string(m.Base.Kind), "workspace.uncommitted": "true", "workspace.depth": "0", "seed": "0",
		"limits.cpu": "2", "limits.memory": FormatSize(m.Limits.Memory), "limits.pids": "1024", "limits.disk": FormatSize(m.Limits.Disk),
		"limits.output": FormatSize(m.Limits.Output), "ttl": FormatDuration(m.TTL), "idle": FormatDuration(m.Idle), "nested_sandboxes": "false",
		"recording.exact": string(m.Exact),
	}
}
