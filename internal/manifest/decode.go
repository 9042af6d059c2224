package manifest

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/nearest"
)

// decoder turns nodes into values. The first error stops it: every method
// does nothing once err is set.
type decoder struct {
	file string
	err  error
}

// fail records an error about a node.
func (d *decoder) fail(n *node, hint, format string, args ...any) {
	if d.err == nil {
		d.err = located(d.file, n.line, n.col, format, args...).Hint("%s", hint)
	}
}

// check records err, if there is one, as an error about a node's value.
func (d *decoder) check(n *node, name string, err error) {
	if err == nil || d.err != nil {
		return
	}
	e := located(d.file, n.line, n.col, "%s: %s", name, err)
	if m, ok := err.(*mayfly.Error); ok {
		e.Fix = m.Fix
	}
	d.err = e
}

// fieldsOf calls the function of each field that n has. A field without a
// function is an error.
func (d *decoder) fieldsOf(n *node, name string, known map[string]func(name string, value *node)) {
	if n.kind != mappingNode {
		d.wrongType(n, name, "a mapping with the fields "+list(slices.Sorted(maps.Keys(known))))
		return
	}
	prefix := ""
	if name != "" {
		prefix = name + "."
	}
	for _, f := range n.fields {
		if d.err != nil {
			return
		}
		if decode, ok := known[f.key.text]; ok {
			decode(prefix+f.key.text, f.value)
		} else {
			d.unknown(&f.key, prefix, slices.Sorted(maps.Keys(known)))
		}
	}
}

func (d *decoder) unknown(key *node, prefix string, known []string) {
	if near := closest(key.text, known); near != "" {
		d.fail(key, "did you mean "+prefix+near+"?", "unknown field %q", prefix+key.text)
		return
	}
	d.fail(key, "known fields here: "+strings.Join(known, ", "), "unknown field %q", prefix+key.text)
}

func (d *decoder) wrongType(n *node, name, want string) {
	hint := "write " + want
	if n.kind == nullNode {
		hint += ", or remove the field"
	}
	if name == "" {
		name = "the file"
	}
	d.fail(n, hint, "%s is %s, not %s", name, n.kind, want)
}

// text returns a function that decodes a string.
func (d *decoder) text(into *string, check func(string) error) func(string, *node) {
	return func(name string, n *node) {
		if n.kind != stringNode {
			hint := ""
			if n.kind == boolNode || n.kind == intNode || n.kind == floatNode {
				hint = " (put it in quotes)"
			}
			d.wrongType(n, name, "a string"+hint)
			return
		}
		if *into = n.text; check != nil {
			d.check(n, name, check(n.text))
		}
	}
}

func (d *decoder) boolean(into *bool) func(string, *node) {
	return func(name string, n *node) {
		if n.kind != boolNode {
			d.wrongType(n, name, "true or false")
			return
		}
		*into = n.text == "true" || n.text == "True" || n.text == "TRUE"
	}
}

// texts decodes a list of strings, none of them blank.
func (d *decoder) texts(into *[]string, check func(string) error) func(string, *node) {
	return func(name string, n *node) {
		if n.kind != sequenceNode {
			d.wrongType(n, name, "a list of strings")
			return
		}
		*into = []string{}
		for i, item := range n.items {
			var s string
			d.text(&s, check)(fmt.Sprintf("%s[%d]", name, i), item)
			if d.err == nil && strings.TrimSpace(s) == "" {
				d.fail(item, "remove the line", "%s[%d] is empty", name, i)
			}
			*into = append(*into, s)
		}
	}
}

// textMap decodes a mapping to strings. Numbers are taken as written, since
// nothing else can be meant; booleans and nothing are refused, since YAML
// reads more words as those than people expect.
func (d *decoder) textMap(into *map[string]string, check func(key, value string) error) func(string, *node) {
	return func(name string, n *node) {
		if n.kind != mappingNode {
			d.wrongType(n, name, "a mapping of names to strings")
			return
		}
		*into = map[string]string{}
		for _, f := range n.fields {
			switch v := f.value; v.kind {
			case stringNode, intNode, floatNode:
				(*into)[f.key.text] = v.text
				if check != nil {
					d.check(&f.key, name, check(f.key.text, v.text))
				}
			default:
				d.wrongType(v, name+"."+f.key.text, "a string (put it in quotes)")
			}
		}
	}
}

// whole decodes an integer between low and high.
func (d *decoder) whole(into *int64, low, high int64) func(string, *node) {
	return func(name string, n *node) {
		v, err := strconv.ParseInt(digits(n.text), 0, 64)
		if n.kind != intNode {
			d.wrongType(n, name, "an integer")
		} else if err != nil || v < low || v > high {
			d.fail(n, fmt.Sprintf("use an integer from %d to %d", low, high), "%s is %s, which is out of range", name, n.text)
		}
		*into = v
	}
}

// unsigned decodes an integer from 0 to 2⁶⁴-1.
func (d *decoder) unsigned(into *uint64) func(string, *node) {
	return func(name string, n *node) {
		v, err := strconv.ParseUint(digits(n.text), 0, 64)
		if n.kind != intNode {
			d.wrongType(n, name, "an integer")
		} else if err != nil {
			d.fail(n, "use an integer from 0 to 18446744073709551615", "%s is %s, which is out of range", name, n.text)
		}
		*into = v
	}
}

// digits undoes what YAML allows in integers and strconv does not.
func digits(s string) string { return strings.TrimPrefix(strings.ReplaceAll(s, "_", ""), "+") }

// size decodes a number of bytes, "4GiB" or an integer.
func (d *decoder) size(into *int64, low int64) func(string, *node) {
	return func(name string, n *node) {
		if n.kind != stringNode && n.kind != intNode {
			d.wrongType(n, name, "a size such as 4GiB")
			return
		}
		v, err := ParseSize(strings.ReplaceAll(n.text, "_", ""))
		d.check(n, name, err)
		if err == nil && v < low {
			d.fail(n, "use at least "+FormatSize(low), "%s is %s, which is too small", name, n.text)
		}
		*into = v
	}
}

func (d *decoder) duration(into *time.Duration, low, high time.Duration) func(string, *node) {
	return func(name string, n *node) {
		if n.kind != stringNode {
			d.wrongType(n, name, "a duration such as 90s, 15m or 1h30m")
			return
		}
		v, err := ParseDuration(n.text)
		d.check(n, name, err)
		if err == nil && (v < low || v > high) {
			d.fail(n, fmt.Sprintf("use something from %s to %s", FormatDuration(low), FormatDuration(high)), "%s is %s, which is out of range", name, n.text)
		}
		*into = v
	}
}

// cores decodes a number of processor cores.
func (d *decoder) cores(into *float64) func(string, *node) {
	return func(name string, n *node) {
		if n.kind != intNode && n.kind != floatNode {
			d.wrongType(n, name, "a number of cores such as 2 or 0.5")
			return
		}
		v, err := strconv.ParseFloat(digits(n.text), 64)
		if err != nil || !(v >= minCPU && v <= maxCPU) {
			d.fail(n, fmt.Sprintf("use a number from %v to %v", minCPU, maxCPU), "%s is %s, which is out of range", name, n.text)
		}
		*into = v
	}
}

// list joins words for a sentence.
func list(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	last := len(words) - 1
	return strings.Join(words[:last], ", ") + " and " + words[last]
}

// closest is the known word that s is most probably a misspelling of; empty
// when none is near.
func closest(s string, known []string) string {
	if len(s) > 64 {
		return ""
	}
	fold := func(w string) string {
		return strings.Map(func(r rune) rune {
			if r == '-' || r == '_' || r == ' ' {
				return -1
			}
			return r
		}, strings.ToLower(w))
	}
	best, bestDistance := "", max(1, len(s)/3)+1
	for _, k := range known {
		if d := nearest.Distance(fold(s), fold(k)); d < bestDistance {
			best, bestDistance = k, d
		}
	}
	return best
}
