package rowdiff

import (
	"path"

	"mayfly.dev/mayfly"
)

// Rule names columns by patterns as those of path.Match; an empty one fits
// everything.
type Rule struct {
	Schema string `json:"schema,omitempty"`
	Table  string `json:"table,omitempty"`
	Column string `json:"column,omitempty"`
}

func checkRules(rules []Rule) error {
	for _, r := range rules {
		for _, p := range []string{r.Schema, r.Table, r.Column} {
			if _, err := path.Match(p, ""); err != nil {
				return mayfly.Errorf(mayfly.Invalid, "bad pattern %q in a redaction rule", p).
					Hint("use names with * and ?, such as email or *_token")
			}
		}
	}
	return nil
}

// redacted reports whether a rule hides the column.
func (d *Diff) redacted(t *Table, column string) bool {
	for _, r := range d.opts.Redact {
		if matches(r.Schema, t.Schema) && matches(r.Table, t.Name) && matches(r.Column, column) {
			return true
		}
	}
	return false
}

// matches treats a slash in a name as any other character: it would end the
// part of a path that * stands for.
func matches(pattern, name string) bool {
	if pattern == "" || pattern == "*" {
		return true
	}
	ok, _ := path.Match(pathless(pattern), pathless(name))
	return ok
}

func pathless(s string) string {
	b := []byte(s)
	for i, c := range b {
		if c == '/' {
			b[i] = 0xff
		}
	}
	return string(b)
}
