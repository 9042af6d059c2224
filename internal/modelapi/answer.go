package modelapi

import (
	"net/http"
	"strings"

	"mayfly.dev/mayfly"
)

// ParseAnswer reads the body of an answer: JSON, events, or Gemini's array,
// whole or cut off, compressed as the header says. What can be read is
// returned, with Complete false when the end is missing. A body that is none
// of these is an error of kind Invalid.
func ParseAnswer(api string, header http.Header, body []byte) (Answer, error) {
	if api == Other || len(body) == 0 {
		return Answer{}, nil
	}
	body, err := Decode(header, body)
	if err != nil {
		return Answer{}, err
	}
	b := newBuilder(api)
	switch {
	case isEvents(header, body):
		var p parser
		eachEvent(body, func(name string, data []byte) {
			if string(data) == "[DONE]" {
				b.answer.Complete = true
			} else if v, err := p.whole(data); err == nil {
				b.event(name, v)
			}
		})
	case api == Stream:
		err = eachItem(body, func(v value) { b.event("", v) })
	default:
		var v value
		if v, err = parseValue(body); err == nil && v.kind == object {
			b.whole(v)
		}
	}
	return b.finish(), err
}

// eachItem calls yield with the elements of an array that may be cut off, or
// with the one value that there is instead.
func eachItem(body []byte, yield func(value)) error {
	p := parser{in: body}
	if p.peek() != '[' {
		v, err := parseValue(body)
		if err == nil {
			yield(v)
		}
		return err
	}
	p.pos, p.depth = p.pos+1, 1
	for p.peek() == '{' {
		v, err := p.value()
		if err != nil {
			return nil // the last one is cut off
		}
		yield(v)
		if p.peek() != ',' {
			break
		}
		p.pos++
	}
	return nil
}

// builder puts an answer together.
type builder struct {
	api    string
	answer Answer
	blocks []*partial
	index  map[int64]*partial
}

// partial is a block that grows. Items of Responses bring several blocks.
type partial struct {
	block Block
	text  strings.Builder // of Text, or of Input of a call
	whole []Block         // instead, when it is known as a whole
}

func newBuilder(api string) *builder {
	return &builder{api: api, answer: Answer{}, index: map[int64]*partial{}}
}

func (b *builder) add(block Block) *partial {
	p := &partial{block: block}
	b.blocks = append(b.blocks, p)
	return p
}

// at is the partial block with that index, made when it is new.
func (b *builder) at(i int64, kind BlockKind) *partial {
	p, ok := b.index[i]
	if !ok {
		p = b.add(Block{Kind: kind})
		b.index[i] = p
	}
	return p
}

// grow adds text to the last block if it is of that kind, else to a new one.
func (b *builder) grow(kind BlockKind, s string) {
	if s == "" {
		return
	}
	if n := len(b.blocks); n == 0 || b.blocks[n-1].block.Kind != kind || b.blocks[n-1].whole != nil {
		b.add(Block{Kind: kind})
	}
	b.blocks[len(b.blocks)-1].text.WriteString(s)
}

func (b *builder) finish() Answer {
	for _, p := range b.blocks {
		if p.whole != nil {
			b.answer.Blocks = append(b.answer.Blocks, p.whole...)
			continue
		}
		s := strings.ToValidUTF8(p.text.String(), "\uFFFD")
		switch {
		case p.block.Kind == CallBlock && s != "":
			p.block.Input = s
		case p.block.Kind != CallBlock:
			p.block.Text += s
		}
		b.answer.Blocks = append(b.answer.Blocks, p.block)
	}
	return b.answer
}

func (b *builder) event(name string, v value) {
	if b.fault(v) {
		return
	}
	switch b.api {
	case Messages, MessagesCount:
		b.messagesEvent(v)
	case Responses, Compact:
		b.responsesEvent(v)
	case Chat:
		b.chatEvent(v)
	default:
		b.geminiEvent(v)
	}
}

// whole reads an answer that is not streamed.
func (b *builder) whole(v value) {
	if b.fault(v) {
		return
	}
	b.answer.Complete = true
	switch b.api {
	case Messages, MessagesCount:
		b.message(v)
		for _, c := range v.get("content").items {
			if block, ok := messagesBlock(c); ok {
				b.blocks = append(b.blocks, &partial{whole: []Block{block}})
			}
		}
		if n := v.get("input_tokens"); n.kind == number {
			b.add(Block{Kind: TextBlock, Text: n.str + " tokens"})
		}
	case Responses, Compact:
		b.response(v)
	case Chat:
		b.completion(v)
		b.blocks = append(b.blocks, &partial{whole: chatTurn(choice(v).get("message")).Blocks})
	default:
		b.geminiEvent(v)
		if n := v.get("totalTokens"); n.kind == number {
			b.add(Block{Kind: TextBlock, Text: n.str + " tokens"})
		}
	}
}

// fault takes note of an error that stands instead of an answer, or ends it.
func (b *builder) fault(v value) bool {
	e := v.get("error")
	if e.kind != object && e.kind != text {
		if !v.get("type").is("error") {
			return false
		}
		e = v // Responses: {"type":"error","message":…}
	}
	b.answer.Error = e.get("message").text()
	for _, s := range []string{e.text(), e.get("type").text(), "error"} {
		if b.answer.Error == "" {
			b.answer.Error = s
		}
	}
	return true
}

// tokens is a count; never below nothing.
func tokens(v value) int64 { return max(0, v.int()) }

func (b *builder) message(v value) {
	b.answer.ID, b.answer.Model = v.get("id").text(), v.get("model").text()
	b.stop(v.get("stop_reason"))
	b.messagesUsage(v.get("usage"))
}

func (b *builder) stop(v value) {
	if s := v.text(); s != "" {
		b.answer.Stop = s
	}
}

// messagesUsage reads counts, each of which replaces what came before.
func (b *builder) messagesUsage(v value) {
	u := &b.answer.Usage
	read, write, input := u.CacheRead, u.CacheWrite, u.Input-u.CacheRead-u.CacheWrite
	for name, count := range map[string]*int64{
		"input_tokens": &input, "cache_read_input_tokens": &read, "cache_creation_input_tokens": &write,
		"output_tokens": &u.Output,
	} {
		if n := v.get(name); n.kind == number {
			*count = tokens(n)
		}
	}
	u.Input, u.CacheRead, u.CacheWrite = input+read+write, read, write
}

func (b *builder) messagesEvent(v value) {
	switch v.get("type").text() {
	case "message_start":
		b.message(v.get("message"))
	case "content_block_start":
		c := v.get("content_block")
		block, ok := messagesBlock(c)
		if !ok {
			return
		}
		p := b.at(v.get("index").int(), block.Kind)
		p.block = block
	case "content_block_delta":
		b.messagesDelta(v)
	case "message_delta":
		b.stop(v.at("delta", "stop_reason"))
		b.messagesUsage(v.get("usage"))
	case "message_stop":
		b.answer.Complete = true
	}
}

func (b *builder) messagesDelta(v value) {
	d := v.get("delta")
	for _, part := range []struct {
		name string
		kind BlockKind
	}{
		{"text", TextBlock}, {"thinking", ThinkingBlock}, {"partial_json", CallBlock}, {"content", SummaryBlock},
	} {
		if s := d.get(part.name); s.kind == text {
			b.at(v.get("index").int(), part.kind).text.WriteString(s.str)
		}
	}
}

func (b *builder) response(v value) {
	if s := v.get("id").text(); s != "" {
		b.answer.ID = s
	}
	if s := v.get("model").text(); s != "" {
		b.answer.Model = s
	}
	status := v.get("status")
	b.stop(status)
	b.stop(v.at("incomplete_details", "reason"))
	if u := v.get("usage"); u.kind == object {
		b.answer.Usage = mayfly.TokenUsage{
			Input: tokens(u.get("input_tokens")), Output: tokens(u.get("output_tokens")),
			CacheRead:  tokens(u.at("input_tokens_details", "cached_tokens")),
			CacheWrite: tokens(u.at("input_tokens_details", "cache_write_tokens")),
			Reasoning:  tokens(u.at("output_tokens_details", "reasoning_tokens")),
		}
	}
	if len(b.blocks) == 0 {
		for _, item := range v.get("output").items {
			b.blocks = append(b.blocks, &partial{whole: itemBlocks(item)})
		}
	}
}

// itemBlocks are the blocks of an item of an answer, never nil.
func itemBlocks(item value) []Block {
	list := responsesTurn(item).Blocks
	if list == nil {
		list = []Block{}
	}
	return list
}

func (b *builder) responsesEvent(v value) {
	kind := v.get("type").text()
	index := v.get("output_index").int()
	switch kind {
	case "response.created", "response.in_progress":
		b.response(v.get("response"))
	case "response.output_item.added":
		if list := itemBlocks(v.get("item")); len(list) > 0 {
			first := list[0]
			b.at(index, first.Kind).block = first
		}
	case "response.output_item.done":
		b.at(index, TextBlock).whole = itemBlocks(v.get("item"))
	case "response.completed", "response.incomplete", "response.failed", "response.done":
		b.response(v.get("response"))
		b.answer.Complete = kind != "response.failed"
		b.fault(v.get("response"))
	default:
		b.responsesDelta(kind, index, v.get("delta"))
	}
}

func (b *builder) responsesDelta(kind string, index int64, delta value) {
	name, ok := strings.CutSuffix(strings.TrimPrefix(kind, "response."), ".delta")
	if !ok || delta.kind != text {
		return
	}
	block := TextBlock
	switch {
	case strings.HasPrefix(name, "reasoning"):
		block = ThinkingBlock
	case strings.HasSuffix(name, "arguments"), strings.HasSuffix(name, "input"), strings.HasSuffix(name, "code"):
		block = CallBlock
	case name != "output_text" && name != "refusal":
		return
	}
	b.at(index, block).text.WriteString(delta.str)
}

// choice is the first choice of a completion.
func choice(v value) value {
	for _, c := range v.get("choices").items {
		if c.get("index").int() == 0 {
			return c
		}
	}
	return value{}
}

func (b *builder) completion(v value) {
	if s := v.get("id").text(); s != "" {
		b.answer.ID = s
	}
	if s := v.get("model").text(); s != "" {
		b.answer.Model = s
	}
	b.stop(choice(v).get("finish_reason"))
	if u := v.get("usage"); u.kind == object {
		b.answer.Usage = mayfly.TokenUsage{
			Input: tokens(u.get("prompt_tokens")), Output: tokens(u.get("completion_tokens")),
			CacheRead:  max(tokens(u.at("prompt_tokens_details", "cached_tokens")), tokens(u.get("prompt_cache_hit_tokens"))),
			CacheWrite: tokens(u.at("prompt_tokens_details", "cache_write_tokens")),
			Reasoning:  tokens(u.at("completion_tokens_details", "reasoning_tokens")),
		}
	}
}

func (b *builder) chatEvent(v value) {
	b.completion(v)
	d := choice(v).get("delta")
	for _, name := range []string{"reasoning_content", "reasoning", "reasoning_text"} {
		if s := d.get(name).text(); s != "" {
			b.grow(ThinkingBlock, s)
			break
		}
	}
	b.grow(TextBlock, d.get("content").text())
	b.grow(TextBlock, d.get("refusal").text())
	for i, c := range d.get("tool_calls").items {
		index := int64(i)
		if n := c.get("index"); n.kind == number {
			index = n.int()
		}
		b.chatCall(index, c)
	}
	if f := d.get("function_call"); f.kind == object {
		b.chatCall(-1, value{kind: object, members: []member{{"function", f}}})
	}
}

// chatCall adds a piece of a call. Some upstreams count every call as the
// first: another id is another call.
func (b *builder) chatCall(index int64, c value) {
	next := chatCall(c)
	p, ok := b.index[index]
	if !ok || next.ID != "" && p.block.ID != "" && next.ID != p.block.ID {
		p = b.add(Block{Kind: CallBlock})
		b.index[index] = p
	}
	if next.ID != "" {
		p.block.ID = next.ID
	}
	if p.block.Name == "" {
		p.block.Name = next.Name
	}
	p.text.WriteString(next.Input)
}

func (b *builder) geminiEvent(v value) {
	if s := v.get("responseId").text(); s != "" {
		b.answer.ID = s
	}
	if s := v.get("modelVersion").text(); s != "" {
		b.answer.Model = s
	}
	var candidate value
	for _, c := range v.get("candidates").items {
		if c.get("index").int() == 0 {
			candidate = c
			break
		}
	}
	for _, p := range candidate.at("content", "parts").items {
		for _, block := range addPart(nil, p) {
			if block.Kind == TextBlock || block.Kind == ThinkingBlock {
				b.grow(block.Kind, block.Text)
				continue
			}
			b.blocks = append(b.blocks, &partial{whole: []Block{block}})
		}
	}
	if s := candidate.get("finishReason").text(); s != "" {
		b.answer.Stop, b.answer.Complete = s, true
	}
	if s := v.at("promptFeedback", "blockReason").text(); s != "" {
		b.answer.Error, b.answer.Complete = "the prompt was blocked: "+s, true
	}
	if u := v.get("usageMetadata"); u.kind == object {
		thoughts := tokens(u.get("thoughtsTokenCount"))
		b.answer.Usage = mayfly.TokenUsage{
			Input:     tokens(u.get("promptTokenCount")) + tokens(u.get("toolUsePromptTokenCount")),
			Output:    tokens(u.get("candidatesTokenCount")) + thoughts,
			CacheRead: tokens(u.get("cachedContentTokenCount")), Reasoning: thoughts,
		}
	}
}
