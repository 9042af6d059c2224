package modelapi

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/gowebpki/jcs"

	"mayfly.dev/mayfly"
)

// Normalise is the canonical form (JCS, RFC 8785) of a request, without what
// differs between identical runs: ids that an agent makes up, dates, times
// and durations, the order in which parallel results arrived. The rules are in
// rules.json. Errors are of kind Invalid.
func Normalise(api string, header http.Header, body []byte) ([]byte, error) {
	return rules().normalise(api, header, body)
}

// Key is the digest of the normalised request, "sha256:…".
func Key(api string, header http.Header, body []byte) (string, error) {
	form, err := Normalise(api, header, body)
	if err != nil {
		return "", err
	}
	return digest(form), nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func (s *ruleSet) normalise(api string, header http.Header, body []byte) ([]byte, error) {
	body, err := Decode(header, body)
	if err != nil {
		return nil, err
	}
	v, err := parseValue(body)
	if err != nil {
		return nil, err
	}
	n := s.normaliser(api)
	for _, r := range n.sorts {
		r.order(&v)
	}
	n.walk(&v, make([]string, 0, 32))
	if n.err != nil {
		return nil, n.err
	}
	return canonical(make([]byte, 0, len(body)), v), nil
}

// normaliser changes a value in place.
type normaliser struct {
	words    *keywords
	sorts    []*normal         // rules of the API that sort
	drops    []*normal         // those that leave out
	renames  []*normal         // those that rename
	replaces []*normal         // those that change parts of texts
	here     []*normal         // those of replaces that a text at hand may need
	renamed  map[string]string // ids, in order of appearance
	err      error
}

// normaliser is a new one for an API.
func (s *ruleSet) normaliser(api string) *normaliser {
	known, ok := s.normalisers.Load(api)
	if !ok {
		known, _ = s.normalisers.LoadOrStore(api, s.rulesOf(api))
	}
	n := *known.(*normaliser)
	n.renamed = map[string]string{}
	return &n
}

// rulesOf sorts the rules that an API has.
func (s *ruleSet) rulesOf(api string) *normaliser {
	n := &normaliser{words: s.words}
	for i := range s.Normal {
		r := &s.Normal[i]
		if !r.speaks(api) {
			continue
		}
		if len(r.sorted) > 0 {
			n.sorts = append(n.sorts, r)
		}
		if len(r.drop) > 0 {
			n.drops = append(n.drops, r)
		}
		if r.Rename {
			n.renames = append(n.renames, r)
		}
		if r.expression != nil {
			n.replaces = append(n.replaces, r)
		}
	}
	return n
}

func (n *normaliser) walk(v *value, path []string) {
	switch v.kind {
	case object:
		v.members = slices.DeleteFunc(v.members, func(m member) bool { return n.dropped(append(path, m.name), m.v) })
		for i := range v.members {
			n.walk(&v.members[i].v, append(path, v.members[i].name))
		}
	case array:
		v.items = slices.DeleteFunc(v.items, func(item value) bool { return n.dropped(append(path, "-"), item) })
		for i := range v.items {
			n.walk(&v.items[i], append(path, "-"))
		}
	case text:
		v.str = n.text(path, v.str)
	case number:
		if f, err := strconv.ParseFloat(v.str, 64); err != nil {
			n.err = mayfly.Errorf(mayfly.Invalid, "the number %s is out of range", shorten(v.str, 0))
		} else if s, err := jcs.NumberToJSON(f); err == nil && !exactInt(v.str) {
			v.str = s
		}
	}
}

// exactInt reports a whole number as JCS writes it, or one too large for it:
// that keeps its digits, so that two of them differ.
func exactInt(s string) bool {
	n, err := strconv.ParseInt(s, 10, 64)
	return err == nil && strconv.FormatInt(n, 10) == s
}

func (n *normaliser) dropped(path []string, v value) bool {
	return slices.ContainsFunc(n.drops, func(r *normal) bool { return r.drops(path, v) })
}

// shortest is the length of the shortest text that a rule changes a part of.
const shortest = 6

func (n *normaliser) text(path []string, s string) string {
	if s == "" {
		return s
	}
	for _, r := range n.renames {
		if r.at(path) {
			if n.renamed[s] == "" {
				n.renamed[s] = "id-" + strconv.Itoa(len(n.renamed)+1)
			}
			return n.renamed[s]
		}
	}
	if len(s) < shortest {
		return s
	}
	has := n.words.in(s)
	n.here = n.here[:0]
	for _, r := range n.replaces {
		if r.needed(has) && r.at(path) {
			n.here = append(n.here, r)
		}
	}
	if len(n.here) == 0 {
		return s
	}
	return n.lines(s)
}

// lines applies the rules of the place to each line of a text.
func (n *normaliser) lines(s string) string {
	var out strings.Builder
	out.Grow(len(s))
	for line := range strings.Lines(s) {
		has := n.words.in(line)
		for _, r := range n.here {
			if !r.needed(has) {
				continue
			}
			if changed := r.expression().ReplaceAllString(line, r.With); changed != line {
				line, has = changed, n.words.in(changed)
			}
		}
		out.WriteString(line)
	}
	return out.String()
}

// steady takes out of a system prompt what differs between identical runs.
func steady(api, s string) string {
	return rules().normaliser(api).text([]string{"system"}, s)
}

// canonical appends the form of RFC 8785.
func canonical(out []byte, v value) []byte {
	switch v.kind {
	case object:
		var room [16]int
		order := room[:0]
		for i := range v.members {
			order = append(order, i)
		}
		slices.SortFunc(order, func(i, j int) int { return compareUTF16(v.members[i].name, v.members[j].name) })
		out = append(out, '{')
		for i, at := range order {
			if i > 0 {
				out = append(out, ',')
			}
			out = append(quote(out, v.members[at].name), ':')
			out = canonical(out, v.members[at].v)
		}
		return append(out, '}')
	case array:
		out = append(out, '[')
		for i, item := range v.items {
			if i > 0 {
				out = append(out, ',')
			}
			out = canonical(out, item)
		}
		return append(out, ']')
	case text:
		return quote(out, v.str)
	}
	return append(out, v.str...)
}

// compareUTF16 compares as RFC 8785 sorts: by UTF-16 code units.
func compareUTF16(a, b string) int {
	for i := 0; i < len(a) && i < len(b); i++ {
		if a[i] == b[i] {
			continue
		}
		if a[i] < utf8.RuneSelf && b[i] < utf8.RuneSelf {
			return cmp.Compare(a[i], b[i])
		}
		return slices.Compare(utf16.Encode([]rune(a)), utf16.Encode([]rune(b)))
	}
	return cmp.Compare(len(a), len(b))
}

const hexDigits = "0123456789abcdef"

// quote appends a string in quotes, with the escapes of RFC 8785.
func quote(out []byte, s string) []byte {
	out = append(out, '"')
	from := 0
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		out = append(out, s[from:i]...)
		from = i + 1
		switch c {
		case '"', '\\':
			out = append(out, '\\', c)
		case '\b':
			out = append(out, '\\', 'b')
		case '\t':
			out = append(out, '\\', 't')
		case '\n':
			out = append(out, '\\', 'n')
		case '\f':
			out = append(out, '\\', 'f')
		case '\r':
			out = append(out, '\\', 'r')
		default:
			out = append(out, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
		}
	}
	return append(append(out, s[from:]...), '"')
}
