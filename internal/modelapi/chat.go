package modelapi

// chatTurn reads a message of Chat Completions.
// https://platform.openai.com/docs/api-reference/chat
func chatTurn(v value) Turn {
	t := Turn{Role: role(v)}
	content := v.get("content")
	switch t.Role {
	case "tool", "function":
		b := Block{Kind: ResultBlock, ID: v.get("tool_call_id").text(), Name: v.get("name").text(), Text: partsText(content)}
		b.Refused = refused(b.Text)
		b.Failed = b.Refused || failed(b.Text)
		t.Role, t.Blocks = "tool", []Block{b}
		return t
	}
	for _, name := range []string{"reasoning_content", "reasoning", "reasoning_text"} {
		if s := v.get(name).text(); s != "" {
			t.Blocks = append(t.Blocks, Block{Kind: ThinkingBlock, Text: s})
			break
		}
	}
	if s := joinText(partsText(content), v.get("refusal").text()); s != "" {
		t.Blocks = append(t.Blocks, Block{Kind: TextBlock, Text: s})
	}
	for _, p := range content.items {
		if p.get("text").kind == absent && p.get("refusal").kind == absent {
			t.Blocks = append(t.Blocks, Block{Kind: MediaBlock, Text: p.get("type").text()})
		}
	}
	for _, c := range v.get("tool_calls").items {
		t.Blocks = append(t.Blocks, chatCall(c))
	}
	if f := v.get("function_call"); f.kind == object {
		t.Blocks = append(t.Blocks, Block{Kind: CallBlock, Name: f.get("name").text(), Input: f.get("arguments").text()})
	}
	return t
}

func chatCall(c value) Block {
	b := Block{Kind: CallBlock, ID: c.get("id").text()}
	if f := c.get("custom"); f.kind == object {
		b.Name, b.Input = f.get("name").text(), f.get("input").text()
		return b
	}
	b.Name, b.Input = c.at("function", "name").text(), c.at("function", "arguments").text()
	return b
}
