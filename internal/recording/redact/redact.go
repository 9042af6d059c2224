// Package redact finds secrets and personal data in what agents and models say
// to each other, and takes them out so that they can be put back.
package redact

import (
	"bytes"
	"fmt"
	"slices"
	"sort"
	"time"
)

// Options are the settings of a redactor.
type Options struct {
	Secrets []Secret // values that must not be written
	Skip    []string // names of rules, or of groups of rules, to leave out
}

// Span is a stretch of a body that is taken out, and what takes its place.
type Span struct {
	Start, End int
	Marker     string // "" for the later pieces of what lies in pieces
}

// Redactor finds what must not be written. It is safe for concurrent use.
type Redactor struct {
	words *automaton
	asks  []matcher // by id of the automaton's words
	cache blockCache
}

// matcher is asked where one of its words begins.
type matcher struct {
	name   string
	group  int // matchers of one rule have the same
	number bool
	match  func(text []byte, at int) (start, end int, ok bool)
}

// New makes a redactor.
func New(o Options) (*Redactor, error) {
	rules, err := parseRules(builtin, o.Skip)
	if err != nil {
		return nil, err
	}
	r, words := &Redactor{}, []string(nil)
	add := func(word string, m matcher) {
		words = append(words, word)
		r.asks = append(r.asks, m)
	}
	for i, rule := range rules {
		for _, k := range rule.Keywords {
			m := matcher{rule.Name, i, k == number, rule.match}
			if !m.number {
				add(k, m)
				continue
			}
			for d := '0'; d <= '9'; d++ {
				add(string(d), m)
			}
		}
	}
	for _, s := range o.Secrets {
		for _, e := range forms(s) {
			word := string(e.form[:min(len(e.form), 16)])
			add(word, matcher{e.name, len(rules) + len(r.asks), false, e.match})
		}
	}
	r.words = newAutomaton(words)
	if r.words.classes > 255 {
		return nil, fmt.Errorf("the secrets to redact have too many different characters")
	}
	return r, nil
}

// Find returns what must be taken out of a body, in order and without overlap.
// It knows JSON, server-sent events and lines of JSON, and takes everything
// else for text; escapes are undone before it looks, and pieces of one text in
// several events are joined.
func (r *Redactor) Find(body []byte) []Span {
	var spans []Span
	s := r.search(len(body))
	list, valid := blocks(body)
	texts, rest := assemble(body, valid)
	switch {
	case valid:
		for _, b := range list {
			spans = s.block(spans, body, b)
		}
	case len(texts) > 0: // their escapes are undone below
		spans = s.look(spans, plain(body, 0, len(body)))
		spans = s.levels(spans, joined(body, rest), true)
	default:
		spans = s.levels(spans, plain(body, 0, len(body)), true)
	}
	for _, parts := range texts {
		spans = s.levels(spans, joined(body, parts), false)
	}
	spans = merge(spans)
	quoteNumbers(body, spans, valid)
	return spans
}

// search is one look at a body. Nobody waits long for texts that were made to
// be slow: what is left when its time is over is taken out unseen.
type search struct {
	*Redactor
	deadline time.Time
	work     int // what was looked at in vain
	over     bool
}

func (r *Redactor) search(size int) *search {
	return &search{Redactor: r, deadline: time.Now().Add(slowest + time.Duration(size)*slowByte)}
}

const (
	slowest  = 2 * time.Second
	slowByte = 500 * time.Nanosecond
)

// wasted notes that something was looked at in vain.
func (s *search) wasted() {
	if s.work++; s.work%16 == 0 {
		s.over = s.over || time.Now().After(s.deadline)
	}
}

// block looks at a part of a JSON body, or remembers what is in it.
func (s *search) block(spans []Span, body []byte, b piece) []Span {
	text := body[b.start:b.end]
	key := keyOf(text)
	list, ok := s.cache.get(key)
	if !ok {
		list = s.levels(nil, plain(text, 0, len(text)), false)
		if !s.over {
			s.cache.put(key, list)
		}
	}
	for _, in := range list {
		spans = append(spans, Span{in.Start + b.start, in.End + b.start, in.Marker})
	}
	return spans
}

// Text returns s without what must not be written.
func (r *Redactor) Text(s string) string {
	body := []byte(s)
	spans := merge(r.search(len(body)).levels(nil, plain(body, 0, len(body)), true))
	out, _ := Cut(body, spans)
	return string(out)
}

// levels looks at a view and at what it is with escapes undone, again and
// again. bare says that it is not JSON: then its escapes may be none.
func (s *search) levels(spans []Span, v view, bare bool) []Span {
	for level := 0; ; level++ {
		deeper, more := v.undone(false)
		if more && level < maxLevels {
			if level > 0 || bare {
				spans = s.look(spans, v)
			}
			v = deeper
			continue
		}
		spans = s.look(spans, v)
		break
	}
	if urlEscapes(v.text) {
		if deeper, more := v.undone(true); more {
			spans = s.look(spans, deeper)
		}
	}
	return spans
}

// urlEscapes reports whether text has an escaped @, :, / or another sign
// without which percent signs hide nothing.
func urlEscapes(text []byte) bool {
	for {
		i := bytes.IndexByte(text, '%')
		if i < 0 || i+2 >= len(text) {
			return false
		}
		if c := text[i+1]; c >= '2' && c <= '7' {
			if _, ok := hexDigit(text[i+2]); ok {
				return true
			}
		}
		text = text[i+1:]
	}
}

// unreadable is the marker of what would take too long to look at.
const unreadable = "[redacted:unreadable]"

// look appends what it finds in one view. When the time is over, it takes out
// the rest.
func (s *search) look(spans []Span, v view) []Span {
	var done map[int]int // by group: the end of the last match
	from := 0            // of what was not looked at yet
	s.words.find(v.text, func(id, at int) {
		m := &s.asks[id]
		if s.over {
			return
		}
		from = at
		if m.number && (at > 0 && (isWord(v.text[at-1]) || v.text[at-1] == '-') || !longNumber(v.text, at)) {
			return
		}
		if at < done[m.group] {
			return
		}
		start, end, ok := m.match(v.text, at)
		if done == nil {
			done = map[int]int{}
		}
		if !ok || start == end {
			s.wasted()
			if end-start > longReject {
				done[m.group] = end
			}
			return
		}
		done[m.group] = end
		marker := "[redacted:" + m.name + "]"
		for _, p := range v.origin(start, end) {
			spans = append(spans, Span{p.start, p.end, marker})
			marker = ""
		}
	})
	if s.over && from < len(v.text) {
		for _, p := range v.origin(from, len(v.text)) {
			spans = append(spans, Span{p.start, p.end, unreadable})
		}
	}
	return spans
}

// longReject is how long a value that a rule rejects must be so that the rule
// does not look for another one in it.
const longReject = 256

// merge sorts spans and joins those that overlap. The marker of the longer one
// is kept.
func merge(spans []Span) []Span {
	if len(spans) < 2 {
		return spans
	}
	slices.SortFunc(spans, func(a, b Span) int {
		if a.Start != b.Start {
			return a.Start - b.Start
		}
		return b.End - a.End
	})
	out := spans[:1]
	longest := out[0].End - out[0].Start
	for _, s := range spans[1:] {
		last := &out[len(out)-1]
		if s.Start >= last.End {
			out, longest = append(out, s), s.End-s.Start
			continue
		}
		if s.Marker != "" && (last.Marker == "" || s.End-s.Start > longest) {
			last.Marker, longest = s.Marker, s.End-s.Start
		}
		last.End = max(last.End, s.End)
	}
	return out
}

// Cut takes spans out of a body. back is what Restore needs to undo it: it has
// what was taken out.
func Cut(body []byte, spans []Span) (out []byte, back []Original) {
	if len(spans) == 0 {
		return body, nil
	}
	last := 0
	for _, s := range spans {
		out = append(out, body[last:s.Start]...)
		back = append(back, Original{s.Start - last, len(s.Marker), body[s.Start:s.End]})
		out = append(out, s.Marker...)
		last = s.End
	}
	return append(out, body[last:]...), back
}

// Original is a stretch that was taken out.
type Original struct {
	Gap    int // bytes since the one before
	Marker int // length of what is in its place
	Bytes  []byte
}

// Restore undoes Cut; false when back does not fit.
func Restore(body []byte, back []Original) ([]byte, bool) {
	var out []byte
	for _, o := range back {
		if o.Gap < 0 || o.Marker < 0 || o.Gap > len(body) || o.Marker > len(body)-o.Gap {
			return nil, false
		}
		out = append(append(out, body[:o.Gap]...), o.Bytes...)
		body = body[o.Gap+o.Marker:]
	}
	return append(out, body...), true
}

// Offset is where a place of the body lies after spans were cut out of it.
// What is in the middle of a span moves to its end.
func Offset(spans []Span, at int) int {
	n := sort.Search(len(spans), func(i int) bool { return spans[i].Start >= at })
	moved := at
	if n > 0 && spans[n-1].End > at {
		moved = spans[n-1].End
	}
	for _, s := range spans[:n] {
		moved += len(s.Marker) - (s.End - s.Start)
	}
	return moved
}
