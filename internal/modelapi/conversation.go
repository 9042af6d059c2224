package modelapi

import (
	"bytes"
	"errors"
	"hash/maphash"
	"net/http"
	"sort"
	"strings"

	"mayfly.dev/mayfly"
)

// Conversation reads the requests of one conversation, each of which repeats
// the turns before it: only what is new is parsed. The zero value has read
// nothing. It keeps the last body, which must not change.
type Conversation struct {
	api     string
	body    []byte
	members []member // of the body, without the turns
	start   int      // of the first turn in body
	marks   []mark   // of each turn
	fresh   []mark   // of turns while they are read, behind marks
	parser  *parser  // of turns
	leading []string // turns at the beginning that are instructions
	system  string   // those, joined
	extra   []addition
	tools   []Tool
	digests digests
	match   struct { // what same found out last
		body     []byte
		start, n int
	}
}

// mark is what is kept of a turn.
type mark struct {
	end  int    // in the body
	hash uint64 // tells what is the same though written anew
}

// digests are kept with what they are of.
type digests struct {
	systemOf, system string
	shapes           []bool // whose text the system prompt has
	toolsOf          []value
	tools            string
}

// addition is a set of tools that a turn brings.
type addition struct {
	turn  int
	tools value
}

// member names of the turns in a body, by API.
var turnsMember = map[string]string{
	Messages: "messages", MessagesCount: "messages", Chat: "messages", Responses: "input", Compact: "input",
	Generate: "contents", Stream: "contents", GeminiCount: "contents",
}

// Turns is how many turns the last request had.
func (c *Conversation) Turns() int { return len(c.marks) }

// Likely reports whether a request, which is not compressed, continues the
// conversation, as far as can be said quickly.
func (c *Conversation) Likely(body []byte) bool {
	p, n := c.find(body)
	return p != nil && len(c.marks) > 0 && n >= len(c.marks)-2
}

// find moves a parser behind the first turns that are the same bytes, and
// counts them. It returns nil when the body has no turns.
func (c *Conversation) find(body []byte) (*parser, int) {
	p := &parser{in: body, pos: c.start, depth: 2}
	if c.start == 0 || !bytes.HasPrefix(body, c.body[:c.start]) {
		*p = parser{in: body}
		if p.seek(turnsMember[c.api]) < 0 {
			return nil, 0
		}
	}
	start := p.pos
	n := c.same(body, start)
	if n > 0 {
		p.pos = c.marks[n-1].end - c.start + start
	}
	return p, n
}

// Match is how many turns at its beginning a request shares with the last
// one. It looks at the bytes, and beyond the first that differ at few turns
// only, so that it is quick and may say too little. The body is not compressed.
func (c *Conversation) Match(body []byte) int {
	if len(c.marks) == 0 {
		return 0
	}
	p, n := c.find(body)
	if p == nil {
		return 0
	}
	for range 4 {
		if n > 0 && p.peek() == ',' {
			p.pos++
		}
		if n == len(c.marks) || p.peek() != '{' {
			break
		}
		v, err := p.value()
		if err != nil || turnOf(c.api, v).hash() != c.marks[n].hash {
			break
		}
		n++
	}
	return n
}

// same counts the turns that are the same bytes when those of body start at
// start.
func (c *Conversation) same(body []byte, start int) int {
	if len(c.marks) == 0 {
		return 0
	}
	if m := &c.match; len(m.body) == len(body) && &m.body[0] == &body[0] && m.start == start {
		return m.n
	}
	last := c.marks[len(c.marks)-1].end
	same := c.start + common(c.body[c.start:last], body[start:])
	n := sort.Search(len(c.marks), func(i int) bool { return c.marks[i].end > same })
	c.match.body, c.match.start, c.match.n = body, start, n
	return n
}

// common is the length of the longest common prefix.
func common(a, b []byte) int {
	n := min(len(a), len(b))
	const block = 4096
	i := 0
	for i+block <= n && bytes.Equal(a[i:i+block], b[i:i+block]) {
		i += block
	}
	for i < n && a[i] == b[i] {
		i++
	}
	return i
}

// Read reads the next request of the conversation. Its Turns are those that
// the request before did not have; shared is how many came before them. A
// request that does not continue the conversation shares nothing, or little.
func (c *Conversation) Read(api string, header http.Header, body []byte) (r Request, shared int, err error) {
	if api == Other {
		return Request{}, 0, nil
	}
	if c.api != api {
		*c = Conversation{api: api}
	}
	turns, shared, err := c.advance(header, body, 0)
	if err != nil {
		return Request{}, 0, err
	}
	return c.head(header, turns, shared), shared, nil
}

// Continue reads like Read a request that has all turns of the last one. Every
// other it leaves alone, with ok false.
func (c *Conversation) Continue(api string, header http.Header, body []byte) (r Request, shared int, ok bool) {
	if c.api != api || len(c.marks) == 0 {
		return Request{}, 0, false
	}
	turns, shared, err := c.advance(header, body, len(c.marks))
	if err != nil {
		return Request{}, 0, false
	}
	return c.head(header, turns, shared), shared, true
}

// errOther is for a request that shares too little with the last one.
var errOther = errors.New("another conversation")

// advance reads the body of a request that shares at least so many turns with
// the last one, and returns the others.
func (c *Conversation) advance(header http.Header, body []byte, least int) (turns []Turn, shared int, err error) {
	if body, err = Decode(header, body); err != nil {
		return nil, 0, err
	}
	next := Conversation{api: c.api, body: body, digests: c.digests, tools: c.tools, parser: c.parser}
	if next.parser == nil {
		next.parser = &parser{seen: newSeen()}
	}
	next.members = make([]member, 0, len(c.members))
	p := parser{in: body, seen: next.parser.seen}
	turns, shared, err = next.read(&p, c)
	if err == nil && shared < least {
		err = errOther
	}
	if err != nil {
		return nil, 0, err
	}
	// Most marks stay, and most of the rest are new.
	next.marks = append(next.marks, next.fresh...)
	next.fresh = nil
	*c = next
	return turns, shared, nil
}

// seek moves to the first element of the top-level array with that name; it
// returns -1 when there is none.
func (p *parser) seek(name string) int {
	if p.peek() != '{' {
		return -1
	}
	p.pos++
	for p.peek() == '"' {
		got, err := p.name()
		if err != nil {
			return -1
		}
		if got == name {
			if p.peek() != '[' {
				return -1
			}
			p.pos++
			return p.pos
		}
		if _, err := p.value(); err != nil || p.peek() != ',' {
			return -1
		}
		p.pos++
	}
	return -1
}

// read reads a body, taking from the last one what is the same.
func (c *Conversation) read(p *parser, last *Conversation) (turns []Turn, shared int, err error) {
	if p.peek() != '{' {
		return nil, 0, mayfly.Errorf(mayfly.Invalid, "the body of a request is not a JSON object")
	}
	if err := p.enter(); err != nil {
		return nil, 0, err
	}
	name, seen := turnsMember[c.api], false
	for more := p.peek() != '}'; more; {
		m := member{}
		if m.name, err = p.name(); err != nil {
			return nil, 0, err
		}
		p.space()
		if m.name == name && !seen && p.peek() == '[' {
			seen = true
			turns, shared, err = c.turns(p, last)
		} else {
			m.v, err = last.member(p, m.name)
			c.members = append(c.members, m)
		}
		if err != nil {
			return nil, 0, err
		}
		if more, err = p.more('}'); err != nil {
			return nil, 0, err
		}
	}
	if seen {
		err = p.once(append(c.members[:len(c.members):len(c.members)], member{name: name}))
	} else if err = p.once(c.members); err == nil {
		turns = c.plain(name)
	}
	if p.peek() == '}' && len(c.members) == 0 && !seen {
		p.pos++
	}
	if p.space(); err == nil && p.pos < len(p.in) {
		err = p.errorf("more after the value")
	}
	return turns, shared, err
}

// mostMembers is how many members of the last body are looked at; requests
// have about twenty.
const mostMembers = 64

// member reads the value of a member, which is often that of the last body.
func (c *Conversation) member(p *parser, name string) (value, error) {
	for _, m := range c.members[:min(len(c.members), mostMembers)] {
		if m.name == name && m.v.kind != number && bytes.HasPrefix(p.in[p.pos:], m.v.raw) {
			p.pos += len(m.v.raw)
			return m.v, nil
		}
	}
	return p.value()
}

// turns reads the array of turns.
func (c *Conversation) turns(p *parser, last *Conversation) (turns []Turn, shared int, err error) {
	if err := p.enter(); err != nil {
		return nil, 0, err
	}
	c.start = p.pos
	shared = last.same(p.in, c.start)
	c.take(last, shared)
	if shared > 0 {
		p.pos = c.marks[shared-1].end
	}
	more := p.peek() != ']'
	if shared > 0 || !more {
		if more, err = p.more(']'); err != nil {
			return nil, 0, err
		}
	}
	same := true
	for more {
		v, err := c.value(p)
		if err != nil {
			return nil, 0, err
		}
		i := len(c.marks) + len(c.fresh)
		turn := c.turn(i, v)
		m := mark{p.pos, turn.hash()}
		c.fresh = append(c.fresh, m)
		if same = same && i < len(last.marks) && m.hash == last.marks[i].hash; same {
			shared++
		} else {
			turns = append(turns, turn)
		}
		if more, err = p.more(']'); err != nil {
			return nil, 0, err
		}
	}
	if c.system == "" {
		c.system = joinTexts(func(yield func(string)) {
			for _, s := range c.leading {
				yield(s)
			}
		})
	}
	return turns, shared, nil
}

// value reads a turn, which is valid until the next one.
func (c *Conversation) value(p *parser) (value, error) {
	t := c.parser
	t.in, t.pos, t.depth = p.in, p.pos, p.depth
	t.items, t.members, t.room = t.items[:0], t.members[:0], t.room[:0]
	v, err := t.value()
	p.pos = t.pos
	if err == nil && v.kind != object {
		err = p.errorf("a turn that is not an object")
	}
	return v, err
}

// take copies what is known about the first n turns of the last request.
func (c *Conversation) take(last *Conversation, n int) {
	if n == 0 {
		return
	}
	if c.start == last.start {
		c.marks = last.marks[:n] // what is behind is overwritten when all was read
	} else {
		c.marks = make([]mark, n, n+16)
		for i, m := range last.marks[:n] {
			c.marks[i] = mark{m.end - last.start + c.start, m.hash}
		}
	}
	k := min(len(last.leading), n)
	if c.leading = last.leading[:k:k]; k == len(last.leading) {
		c.system = last.system
	}
	for _, e := range last.extra {
		if e.turn < n {
			c.extra = append(c.extra, e)
		}
	}
}

// turn reads element i of the turns.
func (c *Conversation) turn(i int, v value) Turn {
	if set := v.get("tools"); v.get("type").is("additional_tools") && set.kind == array {
		c.extra, c.parser.room = append(c.extra, addition{i, set}), nil // it stays
	}
	t := turnOf(c.api, v)
	if len(c.leading) == i && (t.Role == "system" || t.Role == "") {
		c.leading, c.system = append(c.leading, t.text()), ""
	}
	return t
}

func turnOf(api string, v value) Turn {
	switch api {
	case Messages, MessagesCount:
		return messagesTurn(v)
	case Responses, Compact:
		return responsesTurn(v)
	case Chat:
		return chatTurn(v)
	}
	return geminiTurn(v)
}

// plain is the turn of a body that has a string where others have turns.
func (c *Conversation) plain(name string) []Turn {
	for _, m := range c.members[:min(len(c.members), mostMembers)] {
		if m.name == name && m.v.kind == text {
			return []Turn{{Role: "user", Blocks: []Block{{Kind: TextBlock, Text: m.v.str}}}}
		}
	}
	return nil
}

// text is what the turn says, without thoughts, calls and results.
func (t Turn) text() string {
	return joinTexts(func(yield func(string)) {
		for _, b := range t.Blocks {
			if b.Kind == TextBlock {
				yield(b.Text)
			}
		}
	})
}

// joinTexts joins those that are not empty.
func joinTexts(each func(yield func(string))) string {
	var list []string
	each(func(s string) {
		if s != "" {
			list = append(list, s)
		}
	})
	return strings.Join(list, "\n\n")
}

func joinText(a, b string) string {
	if a == "" || b == "" {
		return a + b
	}
	return a + "\n\n" + b
}

var seed = maphash.MakeSeed()

// hash tells turns apart within one process.
func (t Turn) hash() uint64 {
	var h maphash.Hash
	h.SetSeed(seed)
	write := func(s string) {
		n := len(s)
		h.Write([]byte{byte(n), byte(n >> 8), byte(n >> 16), byte(n >> 24)})
		h.WriteString(s)
	}
	write(t.Role)
	for _, b := range t.Blocks {
		for _, s := range []string{string(b.Kind), b.Text, b.ID, b.Name, b.Input} {
			write(s)
		}
		if b.Failed {
			h.WriteByte(1)
		}
	}
	return h.Sum64()
}
