package modelapi

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// Inputs of half a megabyte that take minutes where something is quadratic.
func TestHostileSizesTakeLinearTime(t *testing.T) {
	many := func(s string, size int) string { return strings.Repeat(s, size/len(s)) }
	const size = 1 << 19
	var names strings.Builder
	for i := range size / 16 {
		fmt.Fprintf(&names, `"name%d":1,`, i)
	}
	list := func(s string) string { return strings.TrimSuffix(many(s+",", size), ",") }
	requests := map[string]string{
		Messages:      `{"messages":[` + list(`{"role":"user","content":"x"}`) + `]}`,
		MessagesCount: `{` + names.String() + `"messages":[{"role":"user","content":[` + list(`{"type":"text","text":"x"}`) + `]}]}`,
		Chat:          `{"messages":[` + list(`{"role":"system","content":"x"}`) + `]}`,
		Responses:     `{"input":[` + list(`{"type":"additional_tools","tools":[]}`) + `]}`,
		Compact:       `{"input":"` + many(`\"`, size) + `"}`,
		Generate:      `{"contents":[{"parts":[` + list(`{"functionCall":{"id":"x"}}`) + `]}]}`,
		Stream:        many(`{"a":`, size),
	}
	answers := map[string]string{
		Messages:  many("data: x\n", size) + "\n",
		Chat:      many(`data: {"choices":[{"delta":{"tool_calls":[{"index":0,"function":{"name":"n","arguments":"a"}}]}}]}`+"\n\n", size),
		Responses: many(`data: {"type":"response.output_text.delta","output_index":0,"delta":"x"}`+"\n\n", size),
		Stream:    "[" + list(`{"candidates":[{"content":{"parts":[{"text":"x"}]}}]}`),
		Generate:  many("\r", size),
	}
	within := func(what string, f func()) {
		start := time.Now()
		f()
		if d := time.Since(start); d > 10*time.Second {
			t.Errorf("%s took %v", what, d)
		}
	}
	for api, body := range requests {
		within("request of "+api, func() {
			var c Conversation
			c.Read(api, nil, []byte(body))
			c.Match([]byte(body))
			c.Read(api, nil, []byte(body))
		})
		within("normal form of "+api, func() {
			form, _ := Normalise(api, nil, []byte(body))
			Difference(form, form)
		})
	}
	for api, body := range answers {
		within("answer of "+api, func() { ParseAnswer(api, headers("Content-Type", "text/event-stream"), []byte(body)) })
		within("plain answer of "+api, func() { ParseAnswer(api, nil, []byte(body)) })
	}
}
