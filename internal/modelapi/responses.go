package modelapi

import "strings"

// responsesTurn reads an item of a Responses request or answer.
// https://platform.openai.com/docs/api-reference/responses
func responsesTurn(v value) Turn {
	kind := v.get("type").text()
	switch {
	case kind == "message" || kind == "" && v.get("role").kind == text:
		return messageItem(v)
	case kind == "additional_tools":
		return Turn{} // looked at where tools are
	case kind == "reasoning":
		s := joinText(partsText(v.get("summary")), partsText(v.get("content")))
		return Turn{Role: "assistant", Blocks: []Block{{Kind: ThinkingBlock, Text: s}}}
	case strings.Contains(kind, "compaction"):
		if kind == "compaction_trigger" {
			return Turn{Role: "user", Blocks: []Block{{Kind: triggerBlock}}}
		}
		return Turn{Role: "user", Blocks: []Block{{Kind: SummaryBlock, Text: partsText(v.get("summary"))}}}
	case strings.HasSuffix(kind, "_output"):
		return Turn{Role: "tool", Blocks: []Block{outputItem(v)}}
	case strings.HasSuffix(kind, "_call"):
		return Turn{Role: "assistant", Blocks: []Block{callItem(kind, v)}}
	}
	return Turn{Role: "user", Blocks: []Block{{Kind: MediaBlock, Text: kind}}}
}

func messageItem(v value) Turn {
	t := Turn{Role: role(v)}
	content := v.get("content")
	if s := partsText(content); s != "" {
		t.Blocks = append(t.Blocks, Block{Kind: TextBlock, Text: s})
	}
	for _, p := range content.items {
		if p.get("text").kind == absent && p.get("refusal").kind == absent {
			t.Blocks = append(t.Blocks, Block{Kind: MediaBlock, Text: p.get("type").text()})
		}
	}
	return t
}

// role is who speaks; what a developer says is the system's.
func role(v value) string {
	r := v.get("role").text()
	if r == "developer" {
		return "system"
	}
	return r
}

// callItem reads a call. Those without call_id are run by the upstream.
func callItem(kind string, v value) Block {
	b := Block{Kind: CallBlock, ID: v.get("call_id").text(), Name: v.get("name").text()}
	if b.ID == "" {
		b.ID, b.Remote = v.get("id").text(), true
	}
	if b.Name == "" {
		b.Name = strings.TrimSuffix(kind, "_call")
	}
	if space := v.get("namespace").text(); space != "" {
		b.Name = space + "." + b.Name
	}
	for _, name := range []string{"arguments", "input", "action", "queries", "code"} {
		if in := v.get(name); in.kind == text {
			b.Input = in.str
			return b
		} else if in.kind != absent {
			b.Input = string(in.raw)
			return b
		}
	}
	return b
}

func outputItem(v value) Block {
	out := v.get("output")
	b := Block{Kind: ResultBlock, ID: v.get("call_id").text(), Text: partsText(out)}
	if out.kind == object && b.Text == "" {
		b.Text = out.get("content").text()
	}
	if b.Text == "" && out.kind != text && out.kind != absent {
		b.Text = mediaText(out)
	}
	if out.kind == absent {
		b.Text = string(v.get("tools").raw)
	}
	b.Refused = refused(b.Text)
	b.Failed = b.Refused || v.get("status").is("failed") || failed(b.Text) ||
		out.get("success").kind == boolean && !out.get("success").bool()
	return b
}
