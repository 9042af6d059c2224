package modelapi

import "strings"

// messagesTurn reads a message of Anthropic's.
// https://docs.anthropic.com/en/api/messages
func messagesTurn(v value) Turn {
	t := Turn{Role: v.get("role").text()}
	content := v.get("content")
	if content.kind == text {
		t.Blocks = []Block{{Kind: TextBlock, Text: content.str}}
		return t
	}
	for _, b := range content.items {
		if block, ok := messagesBlock(b); ok {
			t.Blocks = append(t.Blocks, block)
		}
	}
	return t
}

// messagesBlock reads a content block; it is false for those that say nothing
// of use.
func messagesBlock(v value) (Block, bool) {
	kind := v.get("type").text()
	switch {
	case kind == "text":
		return Block{Kind: TextBlock, Text: v.get("text").text()}, true
	case kind == "thinking":
		return Block{Kind: ThinkingBlock, Text: v.get("thinking").text()}, true
	case kind == "compaction":
		return Block{Kind: SummaryBlock, Text: partsText(v.get("content"))}, true
	case strings.HasSuffix(kind, "tool_use"):
		return Block{
			Kind: CallBlock, ID: v.get("id").text(), Name: v.get("name").text(),
			Input: string(v.get("input").raw), Remote: kind != "tool_use",
		}, true
	case strings.HasSuffix(kind, "tool_result"):
		return messagesResult(v), true
	case kind == "image" || kind == "document":
		return Block{Kind: MediaBlock, Text: kind}, true
	}
	return Block{}, false
}

func messagesResult(v value) Block {
	content := v.get("content")
	b := Block{Kind: ResultBlock, ID: v.get("tool_use_id").text(), Text: partsText(content)}
	if b.Text == "" && (content.kind == object || content.kind == array && len(content.items) > 0) {
		b.Text = mediaText(content)
	}
	b.Failed = v.get("is_error").bool() || strings.HasSuffix(content.get("type").text(), "_error")
	b.Refused = b.Failed && refused(b.Text)
	return b
}

// mediaText names what a result without text has.
func mediaText(v value) string {
	if v.kind == object {
		return string(v.raw)
	}
	var list []string
	for _, item := range v.items {
		list = append(list, "["+item.get("type").text()+"]")
	}
	return strings.Join(list, " ")
}
