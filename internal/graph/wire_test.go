package graph

import (
	"encoding/json"
	"fmt"
	"strings"

	"mayfly.dev/mayfly/internal/modelapi"
)

// What agents send and upstreams answer, written in each format from the same
// turns.

type object = map[string]any

func raw(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func args(s string) any { return json.RawMessage(s) }

// requestBody writes a request with the whole history.
func requestBody(api string, history []modelapi.Turn) string {
	list := []object{}
	for _, t := range history {
		switch api {
		case modelapi.Messages:
			list = append(list, messagesTurn(t))
		case modelapi.Responses:
			list = append(list, responsesItems(t)...)
		case modelapi.Chat:
			list = append(list, chatMessages(t)...)
		default:
			list = append(list, geminiContent(t))
		}
	}
	switch api {
	case modelapi.Messages:
		return `{"model":"m","messages":` + raw(list) + `,"system":"S","tools":[{"name":"Bash"},{"name":"Agent"}],"max_tokens":9}`
	case modelapi.Responses:
		return `{"model":"m","instructions":"S","input":` + raw(list) + `,"tools":[{"type":"function","name":"Bash"},{"type":"function","name":"Agent"}]}`
	case modelapi.Chat:
		list = append([]object{{"role": "system", "content": "S"}}, list...)
		return `{"model":"m","messages":` + raw(list) + `,"tools":[{"type":"function","function":{"name":"Bash"}},{"type":"function","function":{"name":"Agent"}}]}`
	}
	return `{"contents":` + raw(list) + `,"systemInstruction":{"parts":[{"text":"S"}]},"tools":[{"functionDeclarations":[{"name":"Bash"},{"name":"Agent"}]}]}`
}

func messagesTurn(t modelapi.Turn) object {
	content := []object{}
	for _, b := range t.Blocks {
		content = append(content, messagesBlock(b))
	}
	return object{"role": t.Role, "content": content}
}

func messagesBlock(b modelapi.Block) object {
	switch b.Kind {
	case modelapi.ThinkingBlock:
		return object{"type": "thinking", "thinking": b.Text, "signature": "x"}
	case modelapi.CallBlock:
		return object{"type": "tool_use", "id": b.ID, "name": b.Name, "input": args(b.Input)}
	case modelapi.ResultBlock:
		return object{"type": "tool_result", "tool_use_id": b.ID, "content": b.Text, "is_error": b.Failed}
	}
	return object{"type": "text", "text": b.Text}
}

func responsesItems(t modelapi.Turn) []object {
	var list []object
	for _, b := range t.Blocks {
		switch b.Kind {
		case modelapi.ThinkingBlock:
			list = append(list, object{"type": "reasoning", "summary": []object{{"type": "summary_text", "text": b.Text}}})
		case modelapi.CallBlock:
			list = append(list, object{"type": "function_call", "call_id": b.ID, "name": b.Name, "arguments": b.Input})
		case modelapi.ResultBlock:
			list = append(list, object{"type": "function_call_output", "call_id": b.ID, "output": object{"content": b.Text, "success": !b.Failed}})
		default:
			kind := map[string]string{"user": "input_text", "assistant": "output_text"}[t.Role]
			list = append(list, object{"type": "message", "role": t.Role, "content": []object{{"type": kind, "text": b.Text}}})
		}
	}
	return list
}

func chatMessages(t modelapi.Turn) []object {
	if t.Role == "assistant" {
		return []object{chatMessage(t.Blocks)}
	}
	var list []object
	for _, b := range t.Blocks {
		if b.Kind == modelapi.ResultBlock {
			list = append(list, object{"role": "tool", "tool_call_id": b.ID, "content": b.Text})
		} else {
			list = append(list, object{"role": "user", "content": b.Text})
		}
	}
	return list
}

func chatMessage(blocks []modelapi.Block) object {
	m := object{"role": "assistant", "content": nil}
	var calls []object
	for _, b := range blocks {
		switch b.Kind {
		case modelapi.ThinkingBlock:
			m["reasoning_content"] = b.Text
		case modelapi.CallBlock:
			calls = append(calls, object{"id": b.ID, "type": "function", "function": object{"name": b.Name, "arguments": b.Input}})
		default:
			m["content"] = b.Text
		}
	}
	if calls != nil {
		m["tool_calls"] = calls
	}
	return m
}

func geminiContent(t modelapi.Turn) object {
	parts := []object{}
	for _, b := range t.Blocks {
		parts = append(parts, geminiPart(b))
	}
	return object{"role": map[string]string{"user": "user", "assistant": "model"}[t.Role], "parts": parts}
}

func geminiPart(b modelapi.Block) object {
	switch b.Kind {
	case modelapi.ThinkingBlock:
		return object{"text": b.Text, "thought": true}
	case modelapi.CallBlock:
		return object{"functionCall": object{"id": b.ID, "name": b.Name, "args": args(b.Input)}}
	case modelapi.ResultBlock:
		field := "output"
		if b.Failed {
			field = "error"
		}
		return object{"functionResponse": object{"id": b.ID, "name": b.Name, "response": object{field: b.Text}}}
	}
	return object{"text": b.Text}
}

// answerBody writes an answer, whole or as events.
func answerBody(api string, stream bool, blocks []modelapi.Block) string {
	switch api {
	case modelapi.Messages:
		return messagesAnswer(stream, blocks)
	case modelapi.Responses:
		return responsesAnswer(stream, blocks)
	case modelapi.Chat:
		return chatAnswer(stream, blocks)
	}
	content := geminiContent(modelapi.Turn{Role: "assistant", Blocks: blocks})
	usage := object{"promptTokenCount": 10, "candidatesTokenCount": 2}
	if !stream {
		return raw(object{"candidates": []object{{"content": content, "finishReason": "STOP"}}, "usageMetadata": usage})
	}
	var chunks []string
	for _, p := range content["parts"].([]object) {
		chunks = append(chunks, raw(object{"candidates": []object{{"content": object{"parts": []object{p}}}}}))
	}
	chunks = append(chunks, raw(object{"candidates": []object{{"finishReason": "STOP"}}, "usageMetadata": usage}))
	return "[" + strings.Join(chunks, ",\r\n") + "]"
}

// halves cuts a text in two, anywhere between characters.
func halves(s string) []string {
	r := []rune(s)
	return []string{string(r[:len(r)/2]), string(r[len(r)/2:])}
}

func messagesAnswer(stream bool, blocks []modelapi.Block) string {
	usage := object{"input_tokens": 10, "output_tokens": 2}
	content := []object{}
	var b strings.Builder
	send := func(v object) { fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", v["type"], raw(v)) }
	send(object{"type": "message_start", "message": object{"id": "r", "model": "m", "usage": usage}})
	for i, block := range blocks {
		whole := messagesBlock(block)
		content = append(content, whole)
		start, deltas := object{"type": whole["type"]}, halves(block.Text)
		field, kind := "text", "text_delta"
		switch block.Kind {
		case modelapi.CallBlock:
			start["id"], start["name"], start["input"], deltas = block.ID, block.Name, object{}, halves(block.Input)
			field, kind = "partial_json", "input_json_delta"
		case modelapi.ThinkingBlock:
			field, kind = "thinking", "thinking_delta"
		}
		send(object{"type": "content_block_start", "index": i, "content_block": start})
		for _, d := range deltas {
			send(object{"type": "content_block_delta", "index": i, "delta": object{"type": kind, field: d}})
		}
		send(object{"type": "content_block_stop", "index": i})
	}
	send(object{"type": "message_delta", "delta": object{"stop_reason": "end_turn"}, "usage": object{"output_tokens": 2}})
	send(object{"type": "message_stop"})
	if stream {
		return b.String()
	}
	return raw(object{"id": "r", "model": "m", "content": content, "stop_reason": "end_turn", "usage": usage})
}

func responsesAnswer(stream bool, blocks []modelapi.Block) string {
	items := responsesItems(modelapi.Turn{Role: "assistant", Blocks: blocks})
	final := object{"id": "", "status": "completed", "output": items, "usage": object{"input_tokens": 10, "output_tokens": 2}}
	if !stream {
		return raw(final)
	}
	var b strings.Builder
	send := func(v object) { fmt.Fprintf(&b, "event: %s\ndata: %s\n\n", v["type"], raw(v)) }
	for i, item := range items {
		send(object{"type": "response.output_item.added", "output_index": i, "item": object{"type": item["type"]}})
		send(object{"type": "response.output_item.done", "output_index": i, "item": item})
	}
	send(object{"type": "response.completed", "response": final})
	return b.String()
}

func chatAnswer(stream bool, blocks []modelapi.Block) string {
	usage := object{"prompt_tokens": 10, "completion_tokens": 2}
	if !stream {
		return raw(object{"choices": []object{{"message": chatMessage(blocks), "finish_reason": "stop"}}, "usage": usage})
	}
	var b strings.Builder
	send := func(delta object) {
		fmt.Fprintf(&b, "data: %s\n\n", raw(object{"choices": []object{{"index": 0, "delta": delta}}}))
	}
	calls := 0
	for _, block := range blocks {
		switch block.Kind {
		case modelapi.ThinkingBlock:
			for _, s := range halves(block.Text) {
				send(object{"reasoning_content": s})
			}
		case modelapi.CallBlock:
			id, name := block.ID, block.Name
			for _, s := range halves(block.Input) {
				send(object{"tool_calls": []object{{"index": calls, "id": id, "function": object{"name": name, "arguments": s}}}})
				id, name = "", ""
			}
			calls++
		default:
			for _, s := range halves(block.Text) {
				send(object{"content": s})
			}
		}
	}
	fmt.Fprintf(&b, "data: %s\n\ndata: [DONE]\n\n", raw(object{"choices": []object{{"index": 0, "delta": object{}, "finish_reason": "stop"}}, "usage": usage}))
	return b.String()
}
