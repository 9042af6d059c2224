package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"io"
)

// chat is the Chat Completions API.
type chat struct{}

func (chat) parse(body []byte) (turn, error) {
	var q struct {
		Tools []struct {
			Function struct {
				Name       string `json:"name"`
				Parameters schema `json:"parameters"`
			} `json:"function"`
		} `json:"tools"`
		Messages []struct {
			Role    string          `json:"role"`
			Content json.RawMessage `json:"content"`
		} `json:"messages"`
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return turn{}, fmt.Errorf("parse Chat Completions request: %w", err)
	}
	var t turn
	for _, o := range q.Tools {
		f := o.Function
		t.tools = append(t.tools, tool{name: f.Name, properties: f.Parameters.Properties, required: f.Parameters.Required})
	}
	for _, m := range q.Messages {
		if m.Role == "tool" {
			t.results = append(t.results, contentText(m.Content))
		}
	}
	return t, nil
}

func (chat) write(w io.Writer, q request, r reply) error {
	stop := "stop"
	message := object{"role": "assistant", "content": r.text}
	if r.call != nil {
		stop = "tool_calls"
		message["tool_calls"] = []object{{
			"id": r.call.id, "type": "function", "function": object{"name": r.call.name, "arguments": r.call.arguments},
		}}
	}
	usage := object{"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
	if !q.Stream {
		return json.NewEncoder(w).Encode(object{
			"id": "chatcmpl-scripted", "object": "chat.completion", "created": 0, "model": q.Model,
			"choices": []object{{"index": 0, "message": message, "finish_reason": stop}}, "usage": usage,
		})
	}
	e := &events{w: w}
	chunk := func(delta object, finish any) {
		e.send("", object{
			"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0, "model": q.Model,
			"choices": []object{{"index": 0, "delta": delta, "finish_reason": finish}},
		})
	}
	chunk(object{"role": "assistant", "content": ""}, nil)
	for _, p := range pieces(r.text) {
		chunk(object{"content": p}, nil)
	}
	if r.call != nil {
		chunk(object{"tool_calls": []object{{
			"index": 0, "id": r.call.id, "type": "function", "function": object{"name": r.call.name, "arguments": ""},
		}}}, nil)
		for _, p := range pieces(r.call.arguments) {
			chunk(object{"tool_calls": []object{{"index": 0, "function": object{"arguments": p}}}}, nil)
		}
	}
	chunk(object{}, stop)
	e.send("", object{
		"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0, "model": q.Model,
		"choices": []any{}, "usage": usage,
	})
	if e.err != nil {
		return e.err
	}
	_, err := io.WriteString(w, "data: [DONE]\n\n")
	return err
}
