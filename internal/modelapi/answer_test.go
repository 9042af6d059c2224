package modelapi

import (
	"bytes"
	"compress/gzip"
	"reflect"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

// The same answer in each format: a thought, a remark and two calls.
var answers = []struct {
	name, api, body string
}{
	{"messages", Messages, `{"id":"r","model":"m-1","content":[{"type":"thinking","thinking":"Höre."},{"type":"text","text":"I look."},
		{"type":"tool_use","id":"1","name":"Bash","input":{"command":"ls"}},{"type":"tool_use","id":"2","name":"Bash","input":{"command":"cat x"}}],
		"stop_reason":"tool_use","usage":{"input_tokens":10,"cache_read_input_tokens":20,"cache_creation_input_tokens":5,"output_tokens":7}}`},
	{"messages stream", Messages, "event: message_start\r\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"r\",\"model\":\"m-1\",\"usage\":{\"input_tokens\":10,\"cache_read_input_tokens\":20,\"cache_creation_input_tokens\":5,\"output_tokens\":1}}}\r\n\r\n" + events(
		`{"type":"ping"}`,
		`{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":""}}`,
		`{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"H\u00f6"}}`,
		`{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"re."}}`,
		`{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"x"}}`,
		`{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}`,
		`{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"I look."}}`,
		`{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"1","name":"Bash","input":{}}}`,
		`{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":""}}`,
		`{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"comm"}}`,
		`{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"and\":\"ls\"}"}}`,
		`{"type":"content_block_start","index":3,"content_block":{"type":"tool_use","id":"2","name":"Bash","input":{}}}`,
		`{"type":"content_block_delta","index":3,"delta":{"type":"input_json_delta","partial_json":"{\"command\":\"cat x\"}"}}`,
		`{"type":"message_delta","delta":{"stop_reason":"tool_use"},"usage":{"output_tokens":7}}`,
		`{"type":"message_stop"}`)},
	{"responses", Responses, `{"id":"r","model":"m-1","status":"completed","output":[{"type":"reasoning","summary":[{"type":"summary_text","text":"Höre."}]},
		{"type":"message","role":"assistant","content":[{"type":"output_text","text":"I look."}]},
		{"type":"function_call","call_id":"1","name":"Bash","arguments":"{\"command\":\"ls\"}"},{"type":"function_call","call_id":"2","name":"Bash","arguments":"{\"command\":\"cat x\"}"}],
		"usage":{"input_tokens":35,"input_tokens_details":{"cached_tokens":20},"output_tokens":7}}`},
	{"responses stream", Responses, events(
		`{"type":"response.created","response":{"id":"r","model":"m-1","output":[]}}`,
		`{"type":"response.output_item.added","output_index":0,"item":{"type":"reasoning","summary":[]}}`,
		`{"type":"response.reasoning_summary_text.delta","output_index":0,"delta":"Höre."}`,
		`{"type":"response.output_item.added","output_index":1,"item":{"type":"message","role":"assistant","content":[]}}`,
		`{"type":"response.output_text.delta","output_index":1,"content_index":0,"delta":"I lo"}`,
		`{"type":"response.output_text.delta","output_index":1,"content_index":0,"delta":"ok."}`,
		`{"type":"response.output_item.added","output_index":2,"item":{"type":"function_call","call_id":"1","name":"Bash","arguments":""}}`,
		`{"type":"response.output_item.added","output_index":3,"item":{"type":"function_call","call_id":"2","name":"Bash","arguments":""}}`,
		`{"type":"response.function_call_arguments.delta","output_index":3,"delta":"{\"command\":\"cat x\"}"}`,
		`{"type":"response.function_call_arguments.delta","output_index":2,"delta":"{\"command\":"}`,
		`{"type":"response.function_call_arguments.delta","output_index":2,"delta":"\"ls\"}"}`,
		`{"type":"response.output_item.done","output_index":2,"item":{"type":"function_call","call_id":"1","name":"Bash","arguments":"{\"command\":\"ls\"}"}}`,
		`{"type":"response.completed","response":{"id":"r","status":"completed","output":[],"usage":{"input_tokens":35,"input_tokens_details":{"cached_tokens":20},"output_tokens":7}}}`)},
	{"chat", Chat, `{"id":"r","model":"m-1","choices":[{"index":0,"finish_reason":"tool_calls","message":{"role":"assistant","reasoning_content":"Höre.","content":"I look.","tool_calls":[
		{"id":"1","type":"function","function":{"name":"Bash","arguments":"{\"command\":\"ls\"}"}},{"id":"2","type":"function","function":{"name":"Bash","arguments":"{\"command\":\"cat x\"}"}}]}}],
		"usage":{"prompt_tokens":35,"prompt_tokens_details":{"cached_tokens":20},"completion_tokens":7}}`},
	{"chat stream", Chat, events(
		`{"id":"r","model":"m-1","choices":[{"index":0,"delta":{"role":"assistant","reasoning_content":"Höre."}}]}`,
		`{"id":"r","choices":[{"index":0,"delta":{"content":"I lo"}}]}`, `{"id":"r","choices":[{"index":0,"delta":{"content":"ok."}}]}`,
		`{"id":"r","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"1","function":{"name":"Bash","arguments":""}},{"index":1,"id":"2","function":{"name":"Bash","arguments":"{\"comm"}}]}}]}`,
		`{"id":"r","choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"function":{"arguments":"and\":\"cat x\"}"}}]}}]}`,
		`{"id":"r","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"command\":\"ls\"}"}}]}}]}`,
		`{"id":"r","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}`,
		`{"id":"r","choices":[],"usage":{"prompt_tokens":35,"prompt_tokens_details":{"cached_tokens":20},"completion_tokens":7}}`) + "data: [DONE]\n\n"},
	{"chat stream of one that counts badly", Chat, events(
		`{"id":"r","model":"m-1","choices":[{"index":0,"delta":{"reasoning":"Höre."}}]}`,
		`{"id":"r","choices":[{"index":0,"delta":{"content":"I look."}}]}`,
		`{"id":"r","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"1","function":{"name":"Bash","arguments":"{\"command\":\"ls\"}"}}]}}]}`,
		`{"id":"r","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"2","function":{"name":"Bash","arguments":"{\"command\":\"cat x\"}"}}]},"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":35,"prompt_cache_hit_tokens":20,"completion_tokens":7}}`) + "data: [DONE]"},
	{"gemini", Generate, `{"responseId":"r","modelVersion":"m-1","candidates":[{"index":0,"finishReason":"STOP","content":{"role":"model","parts":[{"text":"Höre.","thought":true},{"text":"I look."},
		{"functionCall":{"id":"1","name":"Bash","args":{"command":"ls"}}},{"functionCall":{"id":"2","name":"Bash","args":{"command":"cat x"}}}]}}],
		"usageMetadata":{"promptTokenCount":35,"cachedContentTokenCount":20,"candidatesTokenCount":7}}`},
	{"gemini events", Stream, events(geminiChunks...)},
	{"gemini array", Stream, "[" + strings.Join(geminiChunks, "\n,") + "]"},
}

var geminiChunks = []string{
	`{"responseId":"r","modelVersion":"m-1","candidates":[{"content":{"role":"model","parts":[{"text":"Höre.","thought":true}]}}]}`,
	`{"responseId":"r","candidates":[{"content":{"parts":[{"text":"I lo"}]}}]}`,
	`{"responseId":"r","candidates":[{"content":{"parts":[{"text":"ok."},{"functionCall":{"id":"1","name":"Bash","args":{"command":"ls"}}}]}}]}`,
	`{"responseId":"r","candidates":[{"finishReason":"STOP","content":{"parts":[{"functionCall":{"id":"2","name":"Bash","args":{"command":"cat x"}}}]}}],"usageMetadata":{"promptTokenCount":35,"cachedContentTokenCount":20,"candidatesTokenCount":7}}`,
}

func events(list ...string) string {
	return "data: " + strings.Join(list, "\n\ndata: ") + "\n\n"
}

func TestAnswersOfAllAPIsSayTheSame(t *testing.T) {
	want := []Block{
		{Kind: ThinkingBlock, Text: "Höre."}, {Kind: TextBlock, Text: "I look."},
		{Kind: CallBlock, ID: "1", Name: "Bash", Input: `{"command":"ls"}`}, {Kind: CallBlock, ID: "2", Name: "Bash", Input: `{"command":"cat x"}`},
	}
	for _, c := range answers {
		a, err := ParseAnswer(c.api, nil, []byte(c.body))
		if err != nil || !reflect.DeepEqual(a.Blocks, want) {
			t.Errorf("%s: got = %+v, %v", c.name, a.Blocks, err)
		}
		if a.ID != "r" || a.Model != "m-1" || !a.Complete || a.Error != "" || a.Stop == "" {
			t.Errorf("%s: got = %+v", c.name, a)
		}
		if u := a.Usage; u.Input != 35 || u.Output != 7 || u.CacheRead != 20 {
			t.Errorf("%s: usage: got = %+v", c.name, u)
		}
	}
}

// An answer may end after any byte, also within a character.
func TestAnswersCutOffAnywhereGiveWhatWasThere(t *testing.T) {
	for _, c := range answers {
		if !strings.Contains(c.name, "stream") && !strings.Contains(c.name, "events") && !strings.Contains(c.name, "array") {
			continue
		}
		whole, _ := ParseAnswer(c.api, nil, []byte(c.body))
		for i := range len(c.body) {
			a, err := ParseAnswer(c.api, nil, []byte(c.body[:i]))
			if err != nil {
				continue // not even a beginning
			}
			if len(a.Blocks) > len(whole.Blocks) {
				t.Fatalf("%s to %d: got = %+v", c.name, i, a)
			}
			for j, b := range a.Blocks {
				if !strings.HasPrefix(whole.Blocks[j].Text, b.Text) || b.Kind != whole.Blocks[j].Kind {
					t.Fatalf("%s to %d: got = %+v", c.name, i, a)
				}
			}
		}
	}
}

func TestErrorsInAnswers(t *testing.T) {
	for api, body := range map[string]string{
		Messages:  "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"Overloaded\"}}\n\n",
		Chat:      `{"error":{"message":"Overloaded","type":"server_error"}}`,
		Responses: events(`{"type":"response.failed","response":{"id":"r","status":"failed","error":{"code":"server_error","message":"Overloaded"}}}`),
		Generate:  `{"error":{"code":503,"message":"Overloaded","status":"UNAVAILABLE"}}`,
		Stream:    `[{"error":{"code":503,"message":"Overloaded"}}]`,
	} {
		if a, err := ParseAnswer(api, nil, []byte(body)); err != nil || a.Error != "Overloaded" || a.Complete {
			t.Errorf("%s: got = %+v, %v", api, a, err)
		}
	}
	if _, err := ParseAnswer(Messages, nil, []byte("<html>502</html>")); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("html: got = %v, want invalid", err)
	}
}

func TestAnswersThatAreCompressedAndCutOff(t *testing.T) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	z.Write([]byte(answers[1].body))
	z.Flush()
	a, err := ParseAnswer(Messages, headers("Content-Encoding", "gzip"), b.Bytes())
	if err != nil || len(a.Blocks) != 4 {
		t.Errorf("got = %+v, %v", a, err)
	}
}

func TestUpstreamToolsBringTheirResults(t *testing.T) {
	a, err := ParseAnswer(Messages, nil, []byte(`{"content":[{"type":"server_tool_use","id":"s","name":"web_search","input":{"query":"x"}},
		{"type":"web_search_tool_result","tool_use_id":"s","content":[{"type":"web_search_result","title":"t"}]}]}`))
	if err != nil || len(a.Blocks) != 2 || !a.Blocks[0].Remote || a.Blocks[1].ID != "s" || a.Blocks[1].Text != "[web_search_result]" {
		t.Errorf("got = %+v, %v", a, err)
	}
}
