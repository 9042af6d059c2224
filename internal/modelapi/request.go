package modelapi

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"mayfly.dev/mayfly"
)

// ParseRequest reads the body of a request, which may be compressed as the
// header says. Bodies of Other are not read. Errors are of kind Invalid.
func ParseRequest(api string, header http.Header, body []byte) (Request, error) {
	r, _, err := new(Conversation).Read(api, header, body)
	return r, err
}

// CheckRequest gives the errors of ParseRequest, and does the rest of its work
// when what it returns is called.
func CheckRequest(api string, header http.Header, body []byte) (rest func() Request, err error) {
	if api == Other {
		return func() Request { return Request{} }, nil
	}
	c := &Conversation{api: api}
	turns, _, err := c.advance(header, body, 0)
	if err != nil {
		return nil, err
	}
	return func() Request { return c.head(header, turns, 0) }, nil
}

// head is the request that was read last, with its new turns.
func (c *Conversation) head(header http.Header, turns []Turn, shared int) Request {
	v := value{kind: object, members: c.members}
	r := Request{
		Model:      strings.TrimPrefix(v.get("model").text(), "models/"),
		Stream:     v.get("stream").bool() || c.api == Stream,
		Previous:   v.get("previous_response_id").text(),
		Parameters: parameters(c.api, v),
		System:     joinText(systemText(c.api, v), c.system),
		Turns:      turns,
	}
	c.describe(v, &r)
	identify(header, v, &r)
	c.classify(header, turns, shared, &r)
	return r
}

// describe sets the tools and the digests.
func (c *Conversation) describe(v value, r *Request) {
	if c.digests.systemOf != r.System {
		c.digests.systemOf, c.digests.system = r.System, ""
		c.digests.shapes = make([]bool, len(rules().Shapes))
		for i, s := range rules().Shapes {
			c.digests.shapes[i] = s.System != "" && strings.Contains(r.System, s.System)
		}
		if r.System != "" {
			c.digests.system = digest([]byte(steady(c.api, r.System)))
		}
	}
	r.SystemDigest = c.digests.system
	c.toolSet(v.get("tools"))
	r.Tools, r.ToolsDigest = c.tools, c.digests.tools
}

// toolSet reads the tools of the body and of the turns, unless they are those
// of the last request.
func (c *Conversation) toolSet(set value) {
	var all []value
	if set.kind == array {
		all = append(all, set)
	}
	for _, e := range c.extra {
		all = append(all, e.tools)
	}
	if slices.EqualFunc(all, c.digests.toolsOf, func(a, b value) bool { return &a.raw[0] == &b.raw[0] }) {
		return
	}
	c.digests.toolsOf, c.tools, c.digests.tools = all, nil, ""
	var form []byte
	for _, set := range all {
		c.tools = append(c.tools, toolsOf(set)...)
		form = canonical(form, set)
	}
	if len(all) > 0 {
		c.digests.tools = digest(form)
	}
}

// parameters reads the settings, which each API has elsewhere.
func parameters(api string, v value) mayfly.Parameters {
	maximum := "max_tokens"
	switch api {
	case Generate, Stream, GeminiCount:
		return geminiParameters(v)
	case Responses, Compact:
		maximum = "max_output_tokens"
	case Chat:
		if v.get("max_completion_tokens").kind == number {
			maximum = "max_completion_tokens"
		}
	}
	return mayfly.Parameters{
		Temperature: v.get("temperature").floatPointer(),
		TopP:        v.get("top_p").floatPointer(),
		TopK:        v.get("top_k").intPointer(),
		MaxTokens:   v.get(maximum).intPointer(),
		Seed:        v.get("seed").intPointer(),
		Reasoning:   reasoning(v),
	}
}

// reasoning is the effort or the budget of thinking.
func reasoning(v value) string {
	for _, effort := range []value{
		v.at("output_config", "effort"), v.at("reasoning", "effort"), v.get("reasoning_effort"),
	} {
		if s := effort.text(); s != "" {
			return s
		}
	}
	if n := v.at("thinking", "budget_tokens"); n.kind == number {
		return strconv.FormatInt(n.int(), 10)
	}
	return v.at("thinking", "type").text()
}

// systemText is what stands outside the turns.
func systemText(api string, v value) string {
	switch api {
	case Messages, MessagesCount:
		return partsText(v.get("system"))
	case Responses, Compact:
		return v.get("instructions").text()
	case Generate, Stream, GeminiCount:
		if s := v.get("systemInstruction"); s.kind == object {
			return partsText(s.get("parts"))
		}
		return partsText(v.at("system_instruction", "parts"))
	}
	return ""
}

// partsText joins the texts of a string or of an array of parts.
func partsText(v value) string {
	if v.kind == text {
		return v.str
	}
	if v.kind == object {
		return v.get("text").text()
	}
	var list []string
	for _, p := range v.items {
		switch {
		case p.kind == text:
			list = append(list, p.str)
		case p.get("text").kind == text:
			list = append(list, p.get("text").str)
		case p.get("refusal").kind == text:
			list = append(list, p.get("refusal").str)
		}
	}
	return strings.Join(list, "\n")
}

// toolsOf lists the tools of a set, in any of the APIs.
func toolsOf(set value) []Tool {
	var list []Tool
	for _, t := range set.items {
		switch {
		case t.get("functionDeclarations").kind == array || t.get("function_declarations").kind == array:
			for _, f := range append(t.get("functionDeclarations").items, t.get("function_declarations").items...) {
				list = append(list, Tool{Name: f.get("name").text(), Kind: "function"})
			}
		case t.get("type").is("namespace"):
			for _, inner := range toolsOf(t.get("tools")) {
				inner.Name = t.get("name").text() + "." + inner.Name
				list = append(list, inner)
			}
		default:
			list = append(list, tool(t))
		}
	}
	return list
}

func tool(t value) Tool {
	kind := t.get("type").text()
	if kind == "" {
		kind = "function"
		if t.get("name").kind == absent && len(t.members) > 0 {
			kind = t.members[0].name // Gemini: {"googleSearch":{}}
		}
	}
	for _, name := range []value{t.get("name"), t.at("function", "name"), t.at("custom", "name")} {
		if s := name.text(); s != "" {
			return Tool{Name: s, Kind: kind}
		}
	}
	return Tool{Name: kind, Kind: kind}
}

// runs reports whether the agent, and not the upstream, runs the tool.
func (t Tool) runs() bool { return t.Kind == "function" || t.Kind == "custom" }

// identify finds out who asks.
func identify(header http.Header, v value, r *Request) {
	for i := range rules().Identity {
		rules().Identity[i].apply(header, v, r)
	}
	if r.Agent == r.Session && r.Parent == "" {
		r.Agent = ""
	}
}

// field is where a request has a fact: "header:Name" or "body:/pointer".
type field string

func (f field) value(header http.Header, v value) string {
	if name, ok := strings.CutPrefix(string(f), "header:"); ok {
		return strings.TrimSpace(header.Get(name))
	}
	pointer, _ := strings.CutPrefix(string(f), "body:/")
	return v.at(strings.Split(pointer, "/")...).text()
}

// identity is how one kind of agent says who it is.
type identity struct {
	Agent   string  `json:"agent"`   // kind of agent, for people
	Session field   `json:"session"` // the rule applies when this is there
	Within  string  `json:"within"`  // the session is what follows this, or this member of a JSON object
	Sub     field   `json:"sub"`     // names the subagent, when …
	When    field   `json:"when"`    // … this is there
	Parent  field   `json:"parent"`
	Names   []field `json:"names"` // what kind of subagent
	Root    bool    `json:"root"`  // a subagent's session is the parent's
}

func (d identity) apply(header http.Header, v value, r *Request) {
	session := d.Session.value(header, v)
	if session == "" || r.Session != "" {
		return
	}
	if d.Within != "" {
		session = within(session, d.Within)
	}
	r.Session = session
	if d.When != "" && d.When.value(header, v) == "" {
		return
	}
	if d.Sub != "" {
		r.Agent = d.Sub.value(header, v)
	}
	if r.Agent == "" {
		return
	}
	r.Parent = d.Parent.value(header, v)
	if d.Root && r.Parent != "" {
		r.Session = r.Parent
	}
	for _, f := range d.Names {
		if s := f.value(header, v); s != "" {
			r.AgentName = s
		}
	}
}

// within takes an id out of a longer one.
func within(s, name string) string {
	var o map[string]any
	if json.Unmarshal([]byte(s), &o) == nil {
		id, _ := o[strings.Trim(name, "_")+"_id"].(string)
		return id
	}
	if _, id, ok := strings.Cut(s, name); ok {
		return id
	}
	return s
}

// shape is evidence that a request is a side call or about compaction. All
// that is given must hold. One that offers tools for the agent to run is a
// side call only when a header says so.
type shape struct {
	Name       string `json:"name"`
	Side       string `json:"side"`
	Compaction bool   `json:"compaction"`
	Compacted  bool   `json:"compacted"`
	API        string `json:"api"`        // prefix
	Header     string `json:"header"`     // "Name: value", or "Name:" for any value
	System     string `json:"system"`     // in the system prompt
	Any        string `json:"any"`        // in the text of a turn
	Last       string `json:"last"`       // in the text of the last turn
	MaxTokens  int64  `json:"max_tokens"` // at most
	Turns      int    `json:"turns"`      // at most
}

// evidence is what shapes are held against.
type evidence struct {
	api    string
	header http.Header
	texts  []string // of the new turns
	turns  int      // all
	offers bool     // tools for the agent to run
	r      *Request
}

func (s *shape) fits(e *evidence) bool {
	if !strings.HasPrefix(e.api, s.API) || s.Turns > 0 && e.turns > s.Turns {
		return false
	}
	if s.Header == "" && s.Side != "" && e.offers {
		return false
	}
	if s.Header != "" {
		name, want, _ := strings.Cut(s.Header, ":")
		got, want := e.header.Get(name), strings.TrimSpace(want)
		if got == "" || want != "" && !strings.EqualFold(got, want) {
			return false
		}
	}
	if n := e.r.Parameters.MaxTokens; s.MaxTokens > 0 && (n == nil || *n > s.MaxTokens) {
		return false
	}
	last := ""
	if n := len(e.texts); n > 0 {
		last = e.texts[n-1]
	}
	return strings.Contains(last, s.Last) && (s.Any == "" ||
		slices.ContainsFunc(e.texts, func(t string) bool { return strings.Contains(t, s.Any) }))
}

func offers(tools []Tool) bool {
	for _, t := range tools {
		if t.runs() {
			return true
		}
	}
	return false
}

// classify tells side calls and compaction from turns of the conversation.
func (c *Conversation) classify(header http.Header, turns []Turn, shared int, r *Request) {
	r.Compaction = c.api == Compact
	if c.api == MessagesCount || c.api == GeminiCount {
		r.Side = "count"
		return
	}
	e := evidence{api: c.api, header: header, turns: shared + len(turns), offers: offers(r.Tools), r: r}
	for _, t := range turns {
		e.texts = append(e.texts, t.text())
		for _, b := range t.Blocks {
			r.Compacted = r.Compacted || b.Kind == SummaryBlock
			r.Compaction = r.Compaction || b.Kind == triggerBlock
		}
	}
	for i := range rules().Shapes {
		s := &rules().Shapes[i]
		if s.System != "" && (c.digests.shapes == nil || !c.digests.shapes[i]) {
			continue
		}
		if r.Side == "" && s.fits(&e) {
			r.Side = s.Side
			r.Compaction = r.Compaction || s.Compaction
			r.Compacted = r.Compacted || s.Compacted
		}
	}
}
