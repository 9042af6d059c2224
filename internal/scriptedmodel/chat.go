package scriptedmodel

import (
	"encoding/json"
	"fmt"
)

// chat is the Chat Completions API.
type chat struct{}

func (chat) parse(body []byte) (turn, error) {
	var q struct {
		Tools []struct {
			Function struct {
				Name       string   `json:"name"`
				Parameters property `json:"parameters"`
			} `json:"function"`
		} `json:"tools"`
		Messages []struct {
			Role    string          `json:"role"`
			Call    string          `json:"tool_call_id"`
			Content json.RawMessage `json:"content"`
		} `json:"messages"`
		Format struct {
			Schema struct {
				Schema json.RawMessage `json:"schema"`
			} `json:"json_schema"`
		} `json:"response_format"`
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return turn{}, fmt.Errorf("parse Chat Completions request: %w", err)
	}
	t := turn{format: q.Format.Schema.Schema}
	for _, o := range q.Tools {
		t.tools = append(t.tools, tool{name: o.Function.Name, schema: o.Function.Parameters})
	}
	answered := false
	for _, m := range q.Messages {
		answered = answered || m.Role == "assistant"
		if m.Role == "tool" {
			t.results = append(t.results, result{m.Call, contentText(m.Content)})
		}
		if m.Role == "user" && !answered {
			t.opening += contentText(m.Content) + "\n"
		}
	}
	return t, nil
}

func (chat) write(w *answer, q request, r reply) error {
	used := object{
		"prompt_tokens": r.usage.input, "completion_tokens": r.usage.output, "total_tokens": r.usage.input + r.usage.output,
		"prompt_tokens_details":     object{"cached_tokens": r.usage.cached},
		"completion_tokens_details": object{"reasoning_tokens": r.usage.reasoning},
	}
	stop := "stop"
	if len(r.calls) > 0 {
		stop = "tool_calls"
	}
	if !q.Stream {
		return w.json(object{
			"id": "chatcmpl-" + q.id, "object": "chat.completion", "created": 0, "model": q.Model,
			"choices": []object{{"index": 0, "message": chatMessage(r), "finish_reason": stop}}, "usage": used,
		})
	}
	chunk := func(choices []object, used any) {
		o := object{"id": "chatcmpl-" + q.id, "object": "chat.completion.chunk", "created": 0, "model": q.Model, "choices": choices}
		if used != nil {
			o["usage"] = used
		}
		w.send("", o)
	}
	for _, d := range chatDeltas(r) {
		chunk([]object{{"index": 0, "delta": d, "finish_reason": nil}}, nil)
	}
	chunk([]object{{"index": 0, "delta": object{}, "finish_reason": stop}}, nil)
	chunk([]object{}, used)
	w.end("data: [DONE]\n\n")
	return w.err
}

func chatMessage(r reply) object {
	message := object{"role": "assistant", "content": r.text}
	if r.thinking != "" {
		message["reasoning_content"] = r.thinking
	}
	var calls []object
	for _, c := range r.calls {
		calls = append(calls, object{"id": c.id, "type": "function", "function": object{"name": c.name, "arguments": c.arguments}})
	}
	if calls != nil {
		message["tool_calls"] = calls
	}
	return message
}

func chatDeltas(r reply) []object {
	all := []object{{"role": "assistant", "content": ""}}
	for _, p := range pieces(r.thinking) {
		all = append(all, object{"reasoning_content": p})
	}
	for _, p := range pieces(r.text) {
		all = append(all, object{"content": p})
	}
	for i, c := range r.calls {
		all = append(all, object{"tool_calls": []object{{
			"index": i, "id": c.id, "type": "function", "function": object{"name": c.name, "arguments": ""},
		}}})
		for _, p := range pieces(c.arguments) {
			all = append(all, object{"tool_calls": []object{{"index": i, "function": object{"arguments": p}}}})
		}
	}
	return all
}
