package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
)

// responses is the Responses API.
type responses struct{}

// responsesTool is a tool as the Responses API describes it.
type responsesTool struct {
	Type       string `json:"type"` // "function", "custom", …
	Name       string `json:"name"`
	Parameters schema `json:"parameters"`
}

func (responses) parse(body []byte) (turn, error) {
	var q struct {
		Tools []responsesTool `json:"tools"`
		Input json.RawMessage `json:"input"`
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return turn{}, fmt.Errorf("parse Responses request: %w", err)
	}
	var items []struct {
		Type   string          `json:"type"`
		Output json.RawMessage `json:"output"`
		Tools  []responsesTool `json:"tools"`
	}
	// A plain string is an input without items.
	var plain string
	if len(q.Input) > 0 && json.Unmarshal(q.Input, &plain) != nil {
		if err := json.Unmarshal(q.Input, &items); err != nil {
			return turn{}, fmt.Errorf("parse input of Responses request: %w", err)
		}
	}
	var t turn
	tools := slices.Clone(q.Tools)
	for _, item := range items {
		switch item.Type {
		case "additional_tools":
			tools = append(tools, item.Tools...)
		case "function_call_output", "custom_tool_call_output", "local_shell_call_output":
			t.results = append(t.results, contentText(item.Output))
		}
	}
	for _, o := range tools {
		t.tools = append(t.tools, tool{
			name: o.Name, freeform: o.Type == "custom", properties: o.Parameters.Properties, required: o.Parameters.Required,
		})
	}
	return t, nil
}

func (responses) write(w io.Writer, q request, r reply) error {
	message := object{
		"type": "message", "id": "msg_scripted", "status": "completed", "role": "assistant",
		"content": []object{{"type": "output_text", "text": r.text, "annotations": []any{}}},
	}
	output := []object{message}
	if r.call != nil {
		output = append(output, r.call.item())
	}
	final := object{
		"id": "resp_scripted", "object": "response", "status": "completed", "model": q.Model, "output": output,
		"usage": object{
			"input_tokens": 100, "input_tokens_details": object{"cached_tokens": 0},
			"output_tokens": 20, "output_tokens_details": object{"reasoning_tokens": 0}, "total_tokens": 120,
		},
	}
	if !q.Stream {
		return json.NewEncoder(w).Encode(final)
	}
	s := &responsesStream{events: events{w: w}}
	s.send("response.created", object{"response": object{
		"id": "resp_scripted", "object": "response", "status": "in_progress", "model": q.Model, "output": []any{},
	}})
	for i, item := range output {
		s.item(i, item, r)
	}
	s.send("response.completed", object{"response": final})
	return s.err
}

// item is the output item of a call.
func (c *call) item() object {
	if c.freeform {
		return object{
			"type": "custom_tool_call", "id": "ctc_" + c.id, "call_id": c.id, "name": c.name, "input": c.arguments, "status": "completed",
		}
	}
	return object{
		"type": "function_call", "id": "fc_" + c.id, "call_id": c.id, "name": c.name, "arguments": c.arguments, "status": "completed",
	}
}

// responsesStream numbers its events.
type responsesStream struct {
	events
	sequence int
}

func (s *responsesStream) send(kind string, data object) {
	data["type"], data["sequence_number"] = kind, s.sequence
	s.sequence++
	s.events.send(kind, data)
}

// item sends an output item: its beginning, its content in pieces, its end.
func (s *responsesStream) item(index int, item object, r reply) {
	begun := object{}
	for k, v := range item {
		begun[k] = v
	}
	begun["status"] = "in_progress"
	var kind, field, text string
	switch item["type"] {
	case "message":
		begun["content"] = []any{}
		kind, field, text = "response.output_text", "text", r.text
	case "custom_tool_call":
		begun["input"] = ""
		kind, field, text = "response.custom_tool_call_input", "input", r.call.arguments
	default:
		begun["arguments"] = ""
		kind, field, text = "response.function_call_arguments", "arguments", r.call.arguments
	}
	s.send("response.output_item.added", object{"output_index": index, "item": begun})
	if item["type"] == "message" {
		s.send("response.content_part.added", object{
			"item_id": item["id"], "output_index": index, "content_index": 0,
			"part": object{"type": "output_text", "text": "", "annotations": []any{}},
		})
	}
	for _, p := range pieces(text) {
		s.send(kind+".delta", object{"item_id": item["id"], "output_index": index, "content_index": 0, "delta": p})
	}
	s.send(kind+".done", object{"item_id": item["id"], "output_index": index, "content_index": 0, field: text})
	s.send("response.output_item.done", object{"output_index": index, "item": item})
}
