package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
)

// responses is the Responses API.
type responses struct{}

// responsesTool is a tool as the Responses API describes it.
type responsesTool struct {
	Type       string          `json:"type"` // "function", "custom", "namespace", …
	Name       string          `json:"name"`
	Parameters property        `json:"parameters"`
	Tools      []responsesTool `json:"tools"` // of a namespace
}

// responsesItem is one item of a request's input.
type responsesItem struct {
	Type    string          `json:"type"`
	Role    string          `json:"role"`
	Content json.RawMessage `json:"content"`
	Call    string          `json:"call_id"`
	Output  json.RawMessage `json:"output"`
	Tools   []responsesTool `json:"tools"`
}

func (responses) parse(body []byte) (turn, error) {
	var q struct {
		Tools []responsesTool `json:"tools"`
		Input json.RawMessage `json:"input"`
		Text  struct {
			Format struct {
				Schema json.RawMessage `json:"schema"`
			} `json:"format"`
		} `json:"text"`
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return turn{}, fmt.Errorf("parse Responses request: %w", err)
	}
	t := turn{format: q.Text.Format.Schema}
	var items []responsesItem
	// A plain string is an input without items.
	if len(q.Input) > 0 && json.Unmarshal(q.Input, &t.opening) != nil {
		if err := json.Unmarshal(q.Input, &items); err != nil {
			return turn{}, fmt.Errorf("parse input of Responses request: %w", err)
		}
	}
	tools := slices.Clone(q.Tools)
	for _, item := range items {
		tools = append(tools, item.Tools...)
	}
	t.readItems(items)
	t.addTools("", tools)
	return t, nil
}

func (t *turn) addTools(namespace string, tools []responsesTool) {
	for _, o := range tools {
		if o.Type == "namespace" {
			t.addTools(o.Name, o.Tools)
			continue
		}
		t.tools = append(t.tools, tool{name: o.Name, namespace: namespace, freeform: o.Type == "custom", schema: o.Parameters})
	}
}

func (t *turn) readItems(items []responsesItem) {
	answered := false
	for _, item := range items {
		answered = answered || item.Role == "assistant"
		switch item.Type {
		case "function_call_output", "custom_tool_call_output", "local_shell_call_output":
			t.results = append(t.results, result{item.Call, contentText(item.Output)})
		case "message", "":
			if item.Role == "user" && !answered {
				t.opening += contentText(item.Content) + "\n"
			}
		}
	}
}

func (responses) write(w *answer, q request, r reply) error {
	output := outputItems(r, q.id)
	final := object{
		"id": "resp_" + q.id, "object": "response", "status": "completed", "model": q.Model, "output": output,
		"usage": object{
			"input_tokens": r.usage.input, "input_tokens_details": object{"cached_tokens": r.usage.cached},
			"output_tokens": r.usage.output, "output_tokens_details": object{"reasoning_tokens": r.usage.reasoning},
			"total_tokens": r.usage.input + r.usage.output,
		},
	}
	if !q.Stream {
		return w.json(final)
	}
	s := &responsesStream{answer: w}
	s.send("response.created", object{"response": object{
		"id": final["id"], "object": "response", "status": "in_progress", "model": q.Model, "output": []any{},
	}})
	for i, item := range output {
		s.item(i, item)
	}
	s.send("response.completed", object{"response": final})
	return w.err
}

// outputItems are the items of an answer.
func outputItems(r reply, id string) []object {
	var output []object
	if r.thinking != "" {
		output = append(output, object{
			"type": "reasoning", "id": "rs_" + id, "encrypted_content": signature,
			"summary": []object{{"type": "summary_text", "text": r.thinking}},
		})
	}
	output = append(output, object{
		"type": "message", "id": "msg_" + id, "status": "completed", "role": "assistant",
		"content": []object{{"type": "output_text", "text": r.text, "annotations": []any{}}},
	})
	for _, c := range r.calls {
		output = append(output, c.item())
	}
	return output
}

// item is the output item of a call.
func (c *call) item() object {
	o := object{"call_id": c.id, "name": c.name, "status": "completed"}
	if c.namespace != "" {
		o["namespace"] = c.namespace
	}
	if c.freeform {
		o["type"], o["id"], o["input"] = "custom_tool_call", "ctc_"+c.id, c.arguments
	} else {
		o["type"], o["id"], o["arguments"] = "function_call", "fc_"+c.id, c.arguments
	}
	return o
}

// responsesStream numbers its events.
type responsesStream struct {
	*answer
	sequence int
}

func (s *responsesStream) send(kind string, data object) {
	data["type"], data["sequence_number"] = kind, s.sequence
	s.sequence++
	s.answer.send(kind, data)
}

// item sends an output item: its beginning, its content in pieces, its end.
func (s *responsesStream) item(index int, item object) {
	begun := maps.Clone(item)
	where := object{"item_id": item["id"], "output_index": index}
	switch item["type"] {
	case "reasoning":
		begun["summary"] = []any{}
		s.begin(index, begun)
		part := item["summary"].([]object)[0]
		s.part("response.reasoning_summary_part", "summary_index", where, part, "response.reasoning_summary_text")
	case "message":
		begun["content"], begun["status"] = []any{}, "in_progress"
		s.begin(index, begun)
		part := item["content"].([]object)[0]
		s.part("response.content_part", "content_index", where, part, "response.output_text")
	case "custom_tool_call":
		begun["input"], begun["status"] = "", "in_progress"
		s.begin(index, begun)
		s.text("response.custom_tool_call_input", "input", where, item["input"].(string))
	default:
		begun["arguments"], begun["status"] = "", "in_progress"
		s.begin(index, begun)
		s.text("response.function_call_arguments", "arguments", where, item["arguments"].(string))
	}
	s.send("response.output_item.done", object{"output_index": index, "item": item})
}

func (s *responsesStream) begin(index int, item object) {
	s.send("response.output_item.added", object{"output_index": index, "item": item})
}

// part sends the only part of an item, which has text.
func (s *responsesStream) part(kind, index string, where, part object, text string) {
	where[index] = 0
	empty := maps.Clone(part)
	empty["text"] = ""
	s.send(kind+".added", merge(where, object{"part": empty}))
	s.text(text, "text", where, part["text"].(string))
	s.send(kind+".done", merge(where, object{"part": part}))
}

func (s *responsesStream) text(kind, field string, where object, text string) {
	for _, p := range pieces(text) {
		s.send(kind+".delta", merge(where, object{"delta": p}))
	}
	s.send(kind+".done", merge(where, object{field: text}))
}

func merge(a, b object) object {
	o := maps.Clone(a)
	maps.Copy(o, b)
	return o
}
