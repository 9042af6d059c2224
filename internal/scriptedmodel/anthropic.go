package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"io"
)

// anthropic is the Messages API.
type anthropic struct{}

func (anthropic) parse(body []byte) (turn, error) {
	var q struct {
		Tools []struct {
			Name   string `json:"name"`
			Schema schema `json:"input_schema"`
		} `json:"tools"`
		Messages []struct {
			Content json.RawMessage `json:"content"`
		} `json:"messages"`
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return turn{}, fmt.Errorf("parse Messages request: %w", err)
	}
	var t turn
	for _, o := range q.Tools {
		t.tools = append(t.tools, tool{name: o.Name, properties: o.Schema.Properties, required: o.Schema.Required})
	}
	for _, m := range q.Messages {
		var blocks []struct {
			Type    string          `json:"type"`
			Content json.RawMessage `json:"content"`
		}
		if json.Unmarshal(m.Content, &blocks) != nil {
			continue // a string
		}
		for _, b := range blocks {
			if b.Type == "tool_result" {
				t.results = append(t.results, contentText(b.Content))
			}
		}
	}
	return t, nil
}

func (anthropic) write(w io.Writer, q request, r reply) error {
	blocks := []object{{"type": "text", "text": r.text}}
	stop := "end_turn"
	if r.call != nil {
		stop = "tool_use"
		blocks = append(blocks, object{
			"type": "tool_use", "id": "toolu_" + r.call.id, "name": r.call.name, "input": json.RawMessage(r.call.arguments),
		})
	}
	usage := object{"input_tokens": 100, "output_tokens": 20, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0}
	message := object{
		"id": "msg_scripted", "type": "message", "role": "assistant", "model": q.Model, "content": blocks,
		"stop_reason": stop, "stop_sequence": nil, "usage": usage,
	}
	if !q.Stream {
		return json.NewEncoder(w).Encode(message)
	}
	message["content"], message["stop_reason"] = []object{}, nil
	e := &events{w: w}
	e.send("message_start", object{"type": "message_start", "message": message})
	e.send("ping", object{"type": "ping"})
	for i, b := range blocks {
		start, delta := object{"type": "text", "text": ""}, func(s string) object { return object{"type": "text_delta", "text": s} }
		text := r.text
		if b["type"] == "tool_use" {
			start = object{"type": "tool_use", "id": b["id"], "name": b["name"], "input": object{}}
			delta = func(s string) object { return object{"type": "input_json_delta", "partial_json": s} }
			text = r.call.arguments
		}
		e.send("content_block_start", object{"type": "content_block_start", "index": i, "content_block": start})
		for _, p := range pieces(text) {
			e.send("content_block_delta", object{"type": "content_block_delta", "index": i, "delta": delta(p)})
		}
		e.send("content_block_stop", object{"type": "content_block_stop", "index": i})
	}
	e.send("message_delta", object{
		"type": "message_delta", "delta": object{"stop_reason": stop, "stop_sequence": nil}, "usage": object{"output_tokens": 20},
	})
	e.send("message_stop", object{"type": "message_stop"})
	return e.err
}
