package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"strings"
)

// gemini is the generateContent API.
type gemini struct{}

func (gemini) parse(body []byte) (turn, error) {
	var q struct {
		Tools []struct {
			Functions []struct {
				Name       string   `json:"name"`
				Parameters property `json:"parameters"`
				Schema     property `json:"parametersJsonSchema"`
			} `json:"functionDeclarations"`
		} `json:"tools"`
		Contents []struct {
			Role  string `json:"role"`
			Parts []struct {
				Text     string `json:"text"`
				Response *struct {
					ID       string          `json:"id"`
					Response json.RawMessage `json:"response"`
				} `json:"functionResponse"`
			} `json:"parts"`
		} `json:"contents"`
		Config struct {
			Schema     json.RawMessage `json:"responseSchema"`
			JSONSchema json.RawMessage `json:"responseJsonSchema"`
		} `json:"generationConfig"`
	}
	if err := json.Unmarshal(body, &q); err != nil {
		return turn{}, fmt.Errorf("parse generateContent request: %w", err)
	}
	t := turn{format: q.Config.Schema}
	if t.format == nil {
		t.format = q.Config.JSONSchema
	}
	for _, o := range q.Tools {
		for _, f := range o.Functions {
			schema := f.Parameters
			if schema.Type == nil {
				schema = f.Schema
			}
			t.tools = append(t.tools, tool{name: f.Name, schema: schema})
		}
	}
	answered := false
	for _, c := range q.Contents {
		answered = answered || c.Role == "model"
		for _, p := range c.Parts {
			if p.Response != nil {
				t.results = append(t.results, result{p.Response.ID, responseText(p.Response.Response)})
			}
			if !answered {
				t.opening += p.Text + "\n"
			}
		}
	}
	return t, nil
}

// responseText is what a function gave back: its output, or everything.
func responseText(raw json.RawMessage) string {
	var r struct {
		Output *string `json:"output"`
	}
	if json.Unmarshal(raw, &r) == nil && r.Output != nil {
		return *r.Output
	}
	return string(raw)
}

func (gemini) write(w *answer, q request, r reply) error {
	used := object{
		"promptTokenCount": r.usage.input, "candidatesTokenCount": r.usage.output - r.usage.reasoning,
		"totalTokenCount": r.usage.input + r.usage.output, "cachedContentTokenCount": r.usage.cached,
		"thoughtsTokenCount": r.usage.reasoning,
	}
	message := func(parts []object, finish any) object {
		candidate := object{"index": 0, "content": object{"role": "model", "parts": parts}}
		if finish != nil {
			candidate["finishReason"] = finish
		}
		return object{"responseId": q.id, "modelVersion": q.Model, "candidates": []object{candidate}, "usageMetadata": used}
	}
	var calls []object
	for i, c := range r.calls {
		part := object{"functionCall": object{"id": c.id, "name": c.name, "args": json.RawMessage(c.arguments)}}
		if i == 0 {
			part["thoughtSignature"] = signature // the first call of an answer carries it
		}
		calls = append(calls, part)
	}
	parts := append(geminiText(r.thinking, true, false), geminiText(r.text, false, false)...)
	if !q.Stream {
		return w.json(message(append(parts, calls...), "STOP"))
	}
	for _, p := range append(geminiText(r.thinking, true, true), geminiText(r.text, false, true)...) {
		w.send("", message([]object{p}, nil))
	}
	if calls != nil {
		w.send("", message(calls, nil))
	}
	w.send("", message([]object{{"text": ""}}, "STOP"))
	return w.err
}

// geminiText is text as parts: one, or several when it is cut for a stream.
func geminiText(text string, thought, cut bool) []object {
	if text == "" {
		return nil
	}
	texts := []string{text}
	if cut {
		texts = pieces(text)
	}
	var parts []object
	for _, s := range texts {
		p := object{"text": s}
		if thought {
			p["thought"] = true
		}
		parts = append(parts, p)
	}
	return parts
}

// geminiCall splits what follows "/models/" in a path: the model and what is
// asked of it.
func geminiCall(path string) (model, method string) {
	_, after, _ := strings.Cut(path, "/models/")
	model, method, _ = strings.Cut(after, ":")
	return model, method
}
