package modelapi

import (
	"strconv"

	"mayfly.dev/mayfly"
)

// geminiTurn reads a content of Gemini's.
// https://ai.google.dev/api/generate-content
func geminiTurn(v value) Turn {
	t := Turn{Role: v.get("role").text()}
	switch t.Role {
	case "model":
		t.Role = "assistant"
	case "function":
		t.Role = "tool"
	case "":
		t.Role = "user"
	}
	for _, p := range v.get("parts").items {
		t.Blocks = addPart(t.Blocks, p)
	}
	return t
}

// addPart adds a part; texts of one kind that follow each other are one.
func addPart(list []Block, p value) []Block {
	if s := p.get("text"); s.kind == text {
		kind := TextBlock
		if p.get("thought").bool() {
			kind = ThinkingBlock
		}
		return append(list, Block{Kind: kind, Text: s.str})
	}
	for _, name := range []string{"functionCall", "function_call"} {
		if c := p.get(name); c.kind == object {
			return append(list, Block{
				Kind: CallBlock, ID: c.get("id").text(), Name: c.get("name").text(), Input: string(c.get("args").raw),
			})
		}
	}
	for _, name := range []string{"functionResponse", "function_response"} {
		if r := p.get(name); r.kind == object {
			return append(list, geminiResult(r))
		}
	}
	if c := p.get("executableCode"); c.kind == object {
		return append(list, Block{Kind: CallBlock, Name: "code_execution", Input: c.get("code").text(), Remote: true})
	}
	if r := p.get("codeExecutionResult"); r.kind == object {
		return append(list, Block{
			Kind: ResultBlock, Name: "code_execution", Text: r.get("output").text(), Failed: !r.get("outcome").is("OUTCOME_OK"),
		})
	}
	for _, name := range []string{"inlineData", "fileData", "inline_data", "file_data"} {
		if m := p.get(name); m.kind == object {
			return append(list, Block{Kind: MediaBlock, Text: m.get("mimeType").text()})
		}
	}
	return list
}

func geminiResult(r value) Block {
	b := Block{Kind: ResultBlock, ID: r.get("id").text(), Name: r.get("name").text()}
	out := r.get("response")
	b.Failed = out.get("error").kind != absent
	for _, name := range []string{"output", "error", "result", "content"} {
		if s := out.get(name); s.kind == text {
			b.Text = s.str
			b.Refused = b.Failed && refused(b.Text)
			return b
		}
	}
	b.Text = string(out.raw)
	return b
}

func geminiParameters(v value) mayfly.Parameters {
	g := v.get("generationConfig")
	if g.kind != object {
		g = v.get("generation_config")
	}
	p := mayfly.Parameters{
		Temperature: g.get("temperature").floatPointer(),
		TopP:        g.get("topP").floatPointer(),
		TopK:        g.get("topK").intPointer(),
		MaxTokens:   g.get("maxOutputTokens").intPointer(),
		Seed:        g.get("seed").intPointer(),
		Reasoning:   g.at("thinkingConfig", "thinkingLevel").text(),
	}
	if n := g.at("thinkingConfig", "thinkingBudget"); n.kind == number {
		p.Reasoning = strconv.FormatInt(n.int(), 10)
	}
	return p
}
