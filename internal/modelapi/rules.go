package modelapi

import (
	_ "embed"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"sync"
)

//go:embed rules.json
var rulesFile []byte

// ruleSet is what is known about agents, as data.
type ruleSet struct {
	Identity []identity `json:"identity"`
	Shapes   []shape    `json:"shapes"`
	Refused  []string   `json:"refused"` // how the result of a call begins that was not allowed
	Failed   string     `json:"failed"`  // regular expression, in the first lines of a result
	Normal   []normal   `json:"normal"`

	failed      func() *regexp.Regexp
	words       *keywords // that expressions need
	normalisers *sync.Map // by API, to be copied
}

// normal is a rule about what differs between identical runs. Paths are JSON
// pointers in which * is any one name or position and ** any number of them.
type normal struct {
	Name    string   `json:"name"`
	Agent   string   `json:"agent"` // whose habit it is, for people
	API     []string `json:"api"`   // prefixes; all when empty
	Drop    []string `json:"drop"`  // members to leave out
	Prefix  string   `json:"prefix"`
	At      []string `json:"at"`   // strings to change; all when empty
	Sort    []string `json:"sort"` // arrays, whose runs of elements with member By are sorted by it
	By      string   `json:"by"`
	Rename  bool     `json:"rename"`  // strings to number by order of appearance
	Needs   []string `json:"needs"`   // only lines with one of these are looked at
	Also    []string `json:"also"`    // and one of these, without which nothing matches
	Replace string   `json:"replace"` // regular expression; it sees one line
	With    string   `json:"with"`

	needs, also          wordSet
	expression           func() *regexp.Regexp
	drop, places, sorted [][]string
}

// rules are those of rules.json. They are read, and their expressions compiled,
// when they are first used, to keep programs that link this package quick to
// start.
var rules = sync.OnceValue(func() *ruleSet {
	s, err := parseRules(rulesFile)
	if err != nil {
		panic("modelapi: rules.json: " + err.Error())
	}
	return &s
})

// parseRules reads rules.
func parseRules(file []byte) (ruleSet, error) {
	var s ruleSet
	d := json.NewDecoder(strings.NewReader(string(file)))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return s, err
	}
	s.failed = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(s.Failed) })
	s.words, s.normalisers = &keywords{}, &sync.Map{}
	for i := range s.Normal {
		r := &s.Normal[i]
		r.needs, r.also = s.words.set(r.Needs), s.words.set(r.Also)
		if r.Replace != "" {
			source := r.Replace
			r.expression = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(source) })
		}
		r.drop, r.places, r.sorted = split(r.Drop), split(r.At), split(r.Sort)
	}
	return s, nil
}

func split(pointers []string) [][]string {
	var list [][]string
	for _, p := range pointers {
		list = append(list, strings.Split(strings.TrimPrefix(p, "/"), "/"))
	}
	return list
}

// matches reports whether a path fits a pattern.
func matches(pattern, path []string) bool {
	for len(pattern) > 0 {
		if pattern[0] == "**" {
			if len(pattern) == 1 {
				return true
			}
			for i := range len(path) + 1 {
				if matches(pattern[1:], path[i:]) {
					return true
				}
			}
			return false
		}
		if len(path) == 0 || pattern[0] != "*" && pattern[0] != path[0] {
			return false
		}
		pattern, path = pattern[1:], path[1:]
	}
	return len(path) == 0
}

func anyMatches(patterns [][]string, path []string) bool {
	return slices.ContainsFunc(patterns, func(p []string) bool { return matches(p, path) })
}

func (r *normal) speaks(api string) bool {
	return len(r.API) == 0 || slices.ContainsFunc(r.API, func(p string) bool { return strings.HasPrefix(api, p) })
}

func (r *normal) at(path []string) bool { return len(r.places) == 0 || anyMatches(r.places, path) }

func (r *normal) drops(path []string, v value) bool {
	return anyMatches(r.drop, path) &&
		(r.Prefix == "" || strings.HasPrefix(v.text(), r.Prefix) || strings.HasPrefix(v.get("text").text(), r.Prefix))
}

// needed reports whether a text with these words may have what the rule
// changes.
func (r *normal) needed(has wordSet) bool {
	return (len(r.Needs) == 0 || r.needs.meets(has)) && (len(r.Also) == 0 || r.also.meets(has))
}

// order sorts what arrived in any order.
func (r *normal) order(v *value) {
	for _, pattern := range r.sorted {
		order(v, pattern, r.By)
	}
}

func order(v *value, pattern []string, by string) {
	if len(pattern) == 0 {
		sortRuns(v.items, by)
		return
	}
	for i := range v.items {
		if pattern[0] == "*" {
			order(&v.items[i], pattern[1:], by)
		}
	}
	for i := range v.members {
		if pattern[0] == "*" || pattern[0] == v.members[i].name {
			order(&v.members[i].v, pattern[1:], by)
		}
	}
}

// sortRuns sorts each run of neighbours that have the member.
func sortRuns(items []value, by string) {
	for from := 0; from < len(items); {
		to := from
		for to < len(items) && items[to].get(by).kind == text && !items[to].get("type").is("function_call") &&
			!items[to].get("type").is("custom_tool_call") {
			to++
		}
		slices.SortStableFunc(items[from:to], func(a, b value) int {
			return strings.Compare(a.get(by).text(), b.get(by).text())
		})
		from = max(to, from+1)
	}
}

// refused reports whether a result says that the call was not allowed.
func refused(s string) bool {
	s = strings.TrimSpace(s)
	return slices.ContainsFunc(rules().Refused, func(p string) bool { return strings.HasPrefix(s, p) })
}

// failed reports whether a result says so where the API has no word for it.
func failed(s string) bool {
	return rules().failed().MatchString(s[:min(len(s), 512)])
}
