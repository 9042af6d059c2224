package redact

import (
	_ "embed"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
)

//go:embed rules.yaml
var builtin []byte

// rule is one entry of rules.yaml, which says what the fields mean.
type rule struct {
	Name     string   `yaml:"name"`
	Group    string   `yaml:"group"`
	Keywords []string `yaml:"keywords"`
	Back     string   `yaml:"back"`
	Inside   bool     `yaml:"inside"`
	Pattern  string   `yaml:"pattern"`
	Window   int      `yaml:"window"`
	Entropy  float64  `yaml:"entropy"`
	Check    string   `yaml:"check"`
	Allow    string   `yaml:"allow"`

	pattern, allow *regexp.Regexp
	back           *[256]bool
}

// number stands for the beginning of a long number among keywords.
const number = "#"

// parseRules reads rules and leaves out those that skip names, or their groups.
func parseRules(text []byte, skip []string) ([]*rule, error) {
	var all, list []*rule
	if err := yaml.UnmarshalWithOptions(text, &all, yaml.Strict()); err != nil {
		return nil, fmt.Errorf("rules of redaction: %w", err)
	}
	known := map[string]bool{}
	for _, r := range all {
		known[r.Name], known[r.Group] = true, true
		if slices.Contains(skip, r.Name) || r.Group != "" && slices.Contains(skip, r.Group) {
			continue
		}
		if err := r.compile(); err != nil {
			return nil, fmt.Errorf("rule %s of redaction: %w", r.Name, err)
		}
		list = append(list, r)
	}
	for _, name := range skip {
		if !known[name] {
			return nil, fmt.Errorf("no rule or group %q of redaction", name)
		}
	}
	return list, nil
}

func (r *rule) compile() (err error) {
	if len(r.Keywords) == 0 || r.Name == "" {
		return fmt.Errorf("it has no name or no keywords")
	}
	if !slices.Contains([]string{"", "mixed", "varied", "luhn"}, r.Check) {
		return fmt.Errorf("unknown check %q", r.Check)
	}
	if r.pattern, err = regexp.Compile(`\A(?:` + r.Pattern + `)`); err != nil {
		return err
	}
	if r.Allow != "" {
		if r.allow, err = regexp.Compile(r.Allow); err != nil {
			return err
		}
	}
	if r.Back != "" {
		class, err := regexp.Compile(`\A[` + r.Back + `]\z`)
		if err != nil {
			return err
		}
		r.back = new([256]bool)
		for c := range 128 {
			r.back[c] = class.Match([]byte{byte(c)})
		}
	}
	return nil
}

const (
	maxBack = 64  // bytes before a keyword
	window  = 512 // bytes from a keyword that a pattern sees at first
	maxSpan = 1 << 16
)

// match looks for the rule in text where a keyword begins and returns what is
// to be taken out.
func (r *rule) match(text []byte, at int) (start, end int, ok bool) {
	if r.back != nil {
		if at == 0 || !r.back[text[at-1]] {
			return 0, 0, false
		}
		for low := max(0, at-maxBack); at > low && r.back[text[at-1]]; {
			at--
		}
	}
	if !r.Inside && at > 0 && isWord(text[at-1]) {
		return 0, 0, false
	}
	for size := max(window, r.Window); ; size *= 4 {
		part := text[at:min(len(text), at+size)]
		m := r.pattern.FindSubmatchIndex(part)
		whole := len(part) < size || size >= maxSpan
		if m == nil {
			return 0, 0, false
		}
		if m[1] == len(part) && !whole {
			continue // it may go on
		}
		if len(m) > 2 && m[2] >= 0 {
			m = m[2:]
		}
		return at + m[0], at + m[1], r.accepts(part[m[0]:m[1]])
	}
}

func (r *rule) accepts(value []byte) bool {
	switch {
	case r.Entropy > 0 && entropy(value) < r.Entropy,
		r.Check == "mixed" && !mixed(value),
		r.Check == "varied" && !varied(value),
		r.Check == "luhn" && !luhn(value),
		r.allow != nil && r.allow.Match(value):
		return false
	}
	return true
}

// entropy is Shannon's, in bits per byte.
func entropy(b []byte) float64 {
	var counts [256]int
	for _, c := range b {
		counts[c]++
	}
	h := 0.0
	for _, n := range counts {
		if n > 0 {
			p := float64(n) / float64(len(b))
			h -= p * math.Log2(p)
		}
	}
	return h
}

func mixed(b []byte) bool {
	letter, digit := false, false
	for _, c := range b {
		letter = letter || isLetter(c)
		digit = digit || isDigit(c)
	}
	return letter && digit
}

func varied(b []byte) bool {
	low, high := false, false
	for _, c := range b {
		low = low || c >= 'a' && c <= 'z'
		high = high || c >= 'A' && c <= 'Z'
	}
	return low && high || mixed(b)
}

// luhn checks the last digit of a card's number (ISO/IEC 7812-1, annex B).
func luhn(b []byte) bool {
	sum, count := 0, 0
	for _, c := range slices.Backward(b) {
		if !isDigit(c) {
			continue
		}
		d := int(c - '0')
		if count%2 == 1 {
			if d *= 2; d > 9 {
				d -= 9
			}
		}
		sum, count = sum+d, count+1
	}
	return count >= 13 && count <= 19 && sum%10 == 0
}

// longNumber reports whether nine or more digits begin at a place, with what
// people write between them.
func longNumber(text []byte, at int) bool {
	count := 0
	for _, c := range text[at:min(len(text), at+16)] {
		if isDigit(c) {
			count++
		} else if !strings.ContainsRune(" .-()", rune(c)) {
			break
		}
	}
	return count >= 9
}

func isDigit(c byte) bool  { return c >= '0' && c <= '9' }
func isLetter(c byte) bool { return c|0x20 >= 'a' && c|0x20 <= 'z' }
func isWord(c byte) bool   { return isDigit(c) || isLetter(c) || c == '_' }
