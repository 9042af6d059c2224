package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"strings"
)

// anthropic is the Messages API.
type anthropic struct{}

func (anthropic) parse(body []byte) (turn, error) {
	var q struct {
		Tools []struct {
			Name   string   `json:"name"`
			Schema property `json:"input_schema"`
		} `json:"tools"`
		Messages []struct {
			Role    string          `json:"role"`
			Content json.RawMessage `json:"content"`
		} `json:"messages"`
		Output struct {
			Format struct {
				Schema json.RawMessage `json:"schema"`
			} `json:"format"`
		} `json:"output_config"`
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return turn{}, fmt.Errorf("parse Messages request: %w", err)
	}
	t := turn{format: q.Output.Format.Schema}
	for _, o := range q.Tools {
		t.tools = append(t.tools, tool{name: o.Name, schema: o.Schema})
	}
	answered := false
	for _, m := range q.Messages {
		answered = answered || m.Role == "assistant"
		if !answered {
			t.opening += contentText(m.Content) + "\n"
		}
		var blocks []struct {
			Type    string          `json:"type"`
			Call    string          `json:"tool_use_id"`
			Content json.RawMessage `json:"content"`
		}
		if json.Unmarshal(m.Content, &blocks) != nil {
			continue // a string
		}
		for _, b := range blocks {
			if b.Type == "tool_result" {
				t.results = append(t.results, result{strings.TrimPrefix(b.Call, "toolu_"), contentText(b.Content)})
			}
		}
	}
	return t, nil
}

func (anthropic) write(w *answer, q request, r reply) error {
	stop := "end_turn"
	if len(r.calls) > 0 {
		stop = "tool_use"
	}
	used := object{
		"input_tokens": r.usage.input - r.usage.cached, "output_tokens": r.usage.output,
		"cache_creation_input_tokens": 0, "cache_read_input_tokens": r.usage.cached,
	}
	message := object{
		"id": "msg_" + q.id, "type": "message", "role": "assistant", "model": q.Model,
		"stop_reason": stop, "stop_sequence": nil, "usage": used,
	}
	blocks := blocksOf(r)
	if !q.Stream {
		var content []object
		for _, b := range blocks {
			content = append(content, b.whole)
		}
		message["content"] = content
		return w.json(message)
	}
	message["content"], message["stop_reason"] = []object{}, nil
	w.send("message_start", object{"type": "message_start", "message": message})
	w.send("ping", object{"type": "ping"})
	for i, b := range blocks {
		w.send("content_block_start", object{"type": "content_block_start", "index": i, "content_block": b.start})
		for _, d := range b.deltas {
			w.send("content_block_delta", object{"type": "content_block_delta", "index": i, "delta": d})
		}
		w.send("content_block_stop", object{"type": "content_block_stop", "index": i})
	}
	w.send("message_delta", object{
		"type": "message_delta", "delta": object{"stop_reason": stop, "stop_sequence": nil},
		"usage": object{"output_tokens": r.usage.output},
	})
	w.send("message_stop", object{"type": "message_stop"})
	return w.err
}

// block is one content block: whole, and as it is streamed.
type block struct {
	whole, start object
	deltas       []object
}

// signature stands for what the API signs reasoning with.
const signature = "c2NyaXB0ZWQ="

func blocksOf(r reply) []block {
	var all []block
	if r.thinking != "" {
		b := block{
			whole:  object{"type": "thinking", "thinking": r.thinking, "signature": signature},
			start:  object{"type": "thinking", "thinking": "", "signature": ""},
			deltas: deltas("thinking_delta", "thinking", r.thinking),
		}
		b.deltas = append(b.deltas, object{"type": "signature_delta", "signature": signature})
		all = append(all, b)
	}
	all = append(all, block{
		whole:  object{"type": "text", "text": r.text},
		start:  object{"type": "text", "text": ""},
		deltas: deltas("text_delta", "text", r.text),
	})
	for _, c := range r.calls {
		id := "toolu_" + c.id
		all = append(all, block{
			whole:  object{"type": "tool_use", "id": id, "name": c.name, "input": json.RawMessage(c.arguments)},
			start:  object{"type": "tool_use", "id": id, "name": c.name, "input": object{}},
			deltas: deltas("input_json_delta", "partial_json", c.arguments),
		})
	}
	return all
}

func deltas(kind, field, text string) []object {
	var all []object
	for _, p := range pieces(text) {
		all = append(all, object{"type": kind, field: p})
	}
	return all
}
