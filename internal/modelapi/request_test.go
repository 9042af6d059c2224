package modelapi

import (
	"bytes"
	"compress/gzip"
	"net/http"
	"reflect"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"mayfly.dev/mayfly"
)

func TestIdentifyNamesTheAPI(t *testing.T) {
	for _, c := range []struct {
		method, path, api string
		ok                bool
	}{
		{"POST", "/v1/messages?beta=true", Messages, true},
		{"POST", "/v1/messages/count_tokens?beta=true", MessagesCount, true},
		{"POST", "/v1/responses", Responses, true},
		{"POST", "/v1/responses/compact", Compact, true},
		{"POST", "/api/v1/chat/completions", Chat, true},
		{"POST", "/v1beta/models/gemini-3-pro:generateContent", Generate, true},
		{"POST", "/v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse", Stream, true},
		{"POST", "/v1beta/models/gemini-3-pro:countTokens", GeminiCount, true},
		{"GET", "/v1/models", Other, true},
		{"GET", "/v1/models/gpt-5", Other, true},
		{"HEAD", "/api/hello", Other, true},
		{"GET", "/v1/messages", "", false},
		{"POST", "/v1/files", "", false},
		{"POST", "/", "", false},
	} {
		if api, ok := Identify(c.method, c.path); api != c.api || ok != c.ok {
			t.Errorf("%s %s: got = %q, %t, want %q, %t", c.method, c.path, api, ok, c.api, c.ok)
		}
	}
	if got := PathModel("/v1beta/models/gemini-3-pro:streamGenerateContent?alt=sse"); got != "gemini-3-pro" {
		t.Errorf("model: got = %q", got)
	}
}

func parse(t *testing.T, api, body string, header ...string) Request {
	t.Helper()
	r, err := ParseRequest(api, headers(header...), []byte(body))
	if err != nil {
		t.Fatalf("%s: %v", body, err)
	}
	return r
}

func headers(pairs ...string) http.Header {
	h := http.Header{}
	for i := 0; i+1 < len(pairs); i += 2 {
		h.Set(pairs[i], pairs[i+1])
	}
	return h
}

// One conversation in the words of each API: a question, a thought, two calls
// at once, their results in the other order, the second one failed.
var conversations = map[string]string{
	Messages: `{"model":"m","max_tokens":100,"system":[{"type":"text","text":"Be brief."}],"tools":[{"name":"Bash","input_schema":{}}],"messages":[
		{"role":"user","content":"What is here?"},
		{"role":"assistant","content":[{"type":"thinking","thinking":"Look.","signature":"x"},{"type":"text","text":"I look."},
			{"type":"tool_use","id":"1","name":"Bash","input":{"command":"ls"}},{"type":"tool_use","id":"2","name":"Bash","input":{"command":"cat x"}}]},
		{"role":"user","content":[{"type":"tool_result","tool_use_id":"2","is_error":true,"content":"no x"},{"type":"tool_result","tool_use_id":"1","content":[{"type":"text","text":"a.txt"}]}]}]}`,
	Responses: `{"model":"m","max_output_tokens":100,"instructions":"Be brief.","tools":[{"type":"function","name":"Bash","parameters":{}}],"input":[
		{"type":"message","role":"user","content":[{"type":"input_text","text":"What is here?"}]},
		{"type":"reasoning","summary":[{"type":"summary_text","text":"Look."}],"encrypted_content":"zz"},
		{"type":"message","role":"assistant","content":[{"type":"output_text","text":"I look."}]},
		{"type":"function_call","call_id":"1","name":"Bash","arguments":"{\"command\":\"ls\"}"},
		{"type":"function_call","call_id":"2","name":"Bash","arguments":"{\"command\":\"cat x\"}"},
		{"type":"function_call_output","call_id":"2","output":{"success":false,"content":"no x"}},
		{"type":"function_call_output","call_id":"1","output":"a.txt"}]}`,
	Chat: `{"model":"m","max_completion_tokens":100,"tools":[{"type":"function","function":{"name":"Bash"}}],"messages":[
		{"role":"system","content":"Be brief."},{"role":"user","content":[{"type":"text","text":"What is here?"}]},
		{"role":"assistant","reasoning_content":"Look.","content":"I look.","tool_calls":[
			{"id":"1","type":"function","function":{"name":"Bash","arguments":"{\"command\":\"ls\"}"}},
			{"id":"2","type":"function","function":{"name":"Bash","arguments":"{\"command\":\"cat x\"}"}}]},
		{"role":"tool","tool_call_id":"2","content":"Exit code: 1\nno x"},{"role":"tool","tool_call_id":"1","content":"a.txt"}]}`,
	Generate: `{"systemInstruction":{"parts":[{"text":"Be brief."}]},"tools":[{"functionDeclarations":[{"name":"Bash"}]}],"generationConfig":{"maxOutputTokens":100},"contents":[
		{"role":"user","parts":[{"text":"What is here?"}]},
		{"role":"model","parts":[{"text":"Look.","thought":true},{"text":"I look."},
			{"functionCall":{"id":"1","name":"Bash","args":{"command":"ls"}}},{"functionCall":{"id":"2","name":"Bash","args":{"command":"cat x"}}}]},
		{"role":"user","parts":[{"functionResponse":{"id":"2","name":"Bash","response":{"error":"no x"}}},{"functionResponse":{"id":"1","name":"Bash","response":{"output":"a.txt"}}}]}]}`,
}

func TestRequestsOfAllAPIsSayTheSame(t *testing.T) {
	for api, body := range conversations {
		r := parse(t, api, body)
		if r.System != "Be brief." || len(r.Tools) != 1 || r.Tools[0].Name != "Bash" || r.Parameters.MaxTokens == nil || *r.Parameters.MaxTokens != 100 {
			t.Errorf("%s: got = %+v", api, r)
		}
		if !strings.HasPrefix(r.SystemDigest, "sha256:") || !strings.HasPrefix(r.ToolsDigest, "sha256:") {
			t.Errorf("%s: digests: got = %q, %q", api, r.SystemDigest, r.ToolsDigest)
		}
		var got []string
		for _, turn := range r.Turns {
			for _, b := range turn.Blocks {
				if turn.Role == "system" {
					continue
				}
				s := string(b.Kind) + " " + b.Text + b.ID + b.Input
				if b.Failed {
					s += " failed"
				}
				got = append(got, strings.Replace(s, "Exit code: 1\n", "", 1))
			}
		}
		want := []string{"text What is here?", "thinking Look.", "text I look.", `call 1{"command":"ls"}`, `call 2{"command":"cat x"}`,
			"result no x2 failed", "result a.txt1"}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got = %q, want %q", api, got, want)
		}
	}
}

func TestParseRequestUnpacks(t *testing.T) {
	body := []byte(conversations[Messages])
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	z.Write(body)
	z.Close()
	w, _ := zstd.NewWriter(nil)
	for encoding, b := range map[string][]byte{"gzip": packed.Bytes(), "zstd": w.EncodeAll(body, nil)} {
		if r, err := ParseRequest(Messages, headers("Content-Encoding", encoding), b); err != nil || len(r.Turns) != 3 {
			t.Errorf("%s: got = %+v, %v", encoding, r, err)
		}
	}
	if _, err := ParseRequest(Messages, headers("Content-Encoding", "br"), body); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("br: got = %v", err)
	}
}

func TestWhoAsks(t *testing.T) {
	for _, c := range []struct {
		name, api, body        string
		header                 []string
		session, agent, parent string
	}{
		{"claude", Messages, `{}`, []string{"X-Claude-Code-Session-Id", "s"}, "s", "", ""},
		{"claude's subagent", Messages, `{}`, []string{"X-Claude-Code-Session-Id", "s", "X-Claude-Code-Agent-Id", "a", "X-Claude-Code-Parent-Agent-Id", "p"}, "s", "a", "p"},
		{"old claude", Messages, `{"metadata":{"user_id":"user_x_account__session_0-1"}}`, nil, "0-1", "", ""},
		{"claude's metadata", Messages, `{"metadata":{"user_id":"{\"device_id\":\"d\",\"session_id\":\"0-1\"}"}}`, nil, "0-1", "", ""},
		{"codex", Responses, `{"input":"x"}`, []string{"Session-Id", "s", "Thread-Id", "s"}, "s", "", ""},
		{"codex's subagent", Responses, `{"input":"x"}`, []string{"Session-Id", "s", "Thread-Id", "t", "X-Codex-Parent-Thread-Id", "s", "X-OpenAI-Subagent", "collab_spawn"}, "s", "t", "s"},
		{"opencode", Chat, `{}`, []string{"X-Session-Id", "s"}, "s", "", ""},
		{"opencode's child", Chat, `{}`, []string{"X-Session-Id", "c", "X-Parent-Session-Id", "s"}, "s", "c", "s"},
		{"nobody", Chat, `{}`, nil, "", "", ""},
	} {
		r := parse(t, c.api, c.body, c.header...)
		if r.Session != c.session || r.Agent != c.agent || r.Parent != c.parent {
			t.Errorf("%s: got = %q, %q, %q", c.name, r.Session, r.Agent, r.Parent)
		}
	}
}

func TestSideCallsAreTold(t *testing.T) {
	tools := `"tools":[{"name":"Bash"}],`
	for _, c := range []struct {
		name, api, body string
		header          []string
		side            string
		asks, brings    bool
	}{
		{name: "count", api: MessagesCount, body: `{` + tools + `"messages":[]}`, side: "count"},
		{name: "quota", api: Messages, body: `{"max_tokens":1,"messages":[{"role":"user","content":"quota"}]}`, side: "quota"},
		{name: "title", api: Messages, body: `{"system":"Generate a concise, sentence-case title (3-7 words)","messages":[{"role":"user","content":"x"}]}`, side: "title"},
		{name: "title with tools", api: Messages, body: `{` + tools + `"system":"Generate a concise, sentence-case title (3-7 words)","messages":[]}`},
		{name: "auxiliary", api: Messages, body: `{` + tools + `"messages":[]}`, header: []string{"X-Claude-Code-Request-Class", "auxiliary"}, side: "auxiliary"},
		{name: "main", api: Messages, body: `{` + tools + `"messages":[]}`, header: []string{"X-Claude-Code-Request-Class", "main"}},
		{name: "routing", api: Generate, body: `{"systemInstruction":{"parts":[{"text":"You are a specialized Task Routing AI. Your"}]},"contents":[]}`, side: "routing"},
		{name: "opencode", api: Chat, body: `{"messages":[{"role":"system","content":"You are a title generator. You"},{"role":"user","content":"x"}]}`, side: "title"},
		{name: "claude compacts", api: Messages, body: `{` + tools + `"messages":[{"role":"user","content":"Your task is to create a detailed summary of the conversation so far"}]}`, asks: true},
		{name: "claude goes on", api: Messages, body: `{` + tools + `"messages":[{"role":"user","content":"This session is being continued from a previous conversation that"}]}`, brings: true},
		{name: "codex compacts", api: Responses, body: `{"input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"You are performing a CONTEXT CHECKPOINT COMPACTION. x"}]}]}`, asks: true},
		{name: "codex compacts remotely", api: Compact, body: `{"input":[]}`, asks: true},
		{name: "codex triggers", api: Responses, body: `{"input":[{"type":"compaction_trigger"}]}`, asks: true},
		{name: "codex goes on", api: Responses, body: `{"input":[{"type":"compaction","encrypted_content":"x"}]}`, brings: true},
		{name: "anthropic compacted", api: Messages, body: `{"messages":[{"role":"assistant","content":[{"type":"compaction","content":"s"}]}]}`, brings: true},
	} {
		r := parse(t, c.api, c.body, c.header...)
		if r.Side != c.side || r.Compaction != c.asks || r.Compacted != c.brings {
			t.Errorf("%s: got = %q, %t, %t", c.name, r.Side, r.Compaction, r.Compacted)
		}
	}
}

func TestResponsesItems(t *testing.T) {
	r := parse(t, Responses, `{"previous_response_id":"r1","input":[
		{"type":"additional_tools","tools":[{"type":"custom","name":"exec"},{"type":"namespace","name":"fs","tools":[{"type":"function","name":"read"}]}]},
		{"type":"custom_tool_call","call_id":"c","name":"exec","input":"await tools.shell()"},
		{"type":"custom_tool_call_output","call_id":"c","output":[{"type":"input_text","text":"done"}]},
		{"type":"local_shell_call","call_id":"d","action":{"type":"exec","command":["ls"]}},
		{"type":"local_shell_call_output","call_id":"d","output":"exec command rejected by user"},
		{"type":"web_search_call","id":"ws","action":{"query":"x"}}]}`)
	if r.Previous != "r1" || len(r.Tools) != 2 || r.Tools[0] != (Tool{"exec", "custom"}) || r.Tools[1].Name != "fs.read" {
		t.Errorf("got = %+v", r)
	}
	var got []Block
	for _, turn := range r.Turns {
		got = append(got, turn.Blocks...)
	}
	want := []Block{
		{Kind: CallBlock, ID: "c", Name: "exec", Input: "await tools.shell()"},
		{Kind: ResultBlock, ID: "c", Text: "done"},
		{Kind: CallBlock, ID: "d", Name: "local_shell", Input: `{"type":"exec","command":["ls"]}`},
		{Kind: ResultBlock, ID: "d", Text: "exec command rejected by user", Failed: true, Refused: true},
		{Kind: CallBlock, ID: "ws", Name: "web_search", Input: `{"query":"x"}`, Remote: true},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got = %+v, want %+v", got, want)
	}
}

func TestChatKnowsTheOldFunctionCall(t *testing.T) {
	r := parse(t, Chat, `{"messages":[{"role":"assistant","content":null,"function_call":{"name":"f","arguments":"{}"}},{"role":"function","name":"f","content":"ok"}]}`)
	if b := r.Turns[0].Blocks[0]; b.Kind != CallBlock || b.Name != "f" || b.Input != "{}" {
		t.Errorf("call: got = %+v", b)
	}
	if b := r.Turns[1].Blocks[0]; b.Kind != ResultBlock || b.Name != "f" || b.Text != "ok" {
		t.Errorf("result: got = %+v", b)
	}
}

func TestHostileBodiesAreRefused(t *testing.T) {
	for name, body := range map[string]string{
		"empty": "", "array": "[]", "cut": `{"messages":[{"role":`, "twice": `{"model":"a","model":"b"}`,
		"turns twice": `{"messages":[],"messages":[]}`, "twice inside": `{"messages":[{"role":"user","role":"assistant"}]}`,
		"escaped twice": `{"model":"a","mod\u0065l":"b"}`,
		"deep":          `{"messages":` + strings.Repeat("[", 10000) + strings.Repeat("]", 10000) + `}`,
		"deep object":   strings.Repeat(`{"a":`, 10000), "more": `{} {}`, "turn": `{"messages":[1]}`, "leading zero": `{"max_tokens":01}`,
	} {
		if _, err := ParseRequest(Messages, nil, []byte(body)); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%s: got = %v, want invalid", name, err)
		}
	}
	r := parse(t, Messages, "{\"max_tokens\":1e400,\"messages\":[{\"role\":\"user\",\"content\":\"a\xff\\ud800b\"}]}")
	if got := r.Turns[0].Blocks[0].Text; got != "a\uFFFD\uFFFDb" {
		t.Errorf("text: got = %q", got)
	}
}

func TestConversationReadsOnlyWhatIsNew(t *testing.T) {
	const head, tail = `{"model":"m","messages":[`, `],"tools":[{"name":"Bash"}],"system":"s"}`
	one := `{"role":"user","content":[{"type":"text","text":"one"}]}`
	marked := `{"role":"user","content":[{"type":"text","text":"one","cache_control":{"type":"ephemeral"}}]}`
	two, three := `{"role":"assistant","content":"two"}`, `{"role":"user","content":"three"}`
	var c Conversation
	for _, step := range []struct {
		body        string
		shared, new int
	}{
		{head + marked + tail, 0, 1},
		{head + one + "," + two + "," + three + tail, 1, 2}, // the mark moved: the same turn in other bytes
		{head + one + "," + two + "," + three + tail, 3, 0},
		{head + one + " , " + two + tail, 2, 0},
		{`{"stream":true,"model":"m","messages":[` + one + "," + three + tail, 1, 1},
		{head + tail, 0, 0},
	} {
		r, shared, err := c.Read(Messages, nil, []byte(step.body))
		if err != nil || shared != step.shared || len(r.Turns) != step.new {
			t.Errorf("%s: got = %d shared, %+v, %v, want %d, %d", step.body, shared, r.Turns, err, step.shared, step.new)
		}
		if r.System != "s" || len(r.Tools) != 1 || r.Model != "m" {
			t.Errorf("head: got = %+v", r)
		}
	}
}
