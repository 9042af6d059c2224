package scriptedmodel

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

const sample = `{"dir":"/work","steps":[
	{"say":"I write äöü.","write":{"path":"a.txt","content":"one\ntwo\n"}},
	{"say":"I run.","run":"sh test.sh","expect":"^PASS"},
	{"say":"Done."}]}`

func serve(t *testing.T) (*httptest.Server, *bytes.Buffer) {
	t.Helper()
	s, err := ParseScript([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	server := httptest.NewServer(&Server{Script: s, Requests: &log})
	t.Cleanup(server.Close)
	return server, &log
}

func post(t *testing.T, server *httptest.Server, path, body string) string {
	t.Helper()
	response, err := http.Post(server.URL+path, "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	if response.StatusCode != http.StatusOK {
		t.Fatalf("%s: status = %d: %s", path, response.StatusCode, b)
	}
	return string(b)
}

// events are the data of a stream, in order.
func parseEvents(t *testing.T, stream string) []map[string]any {
	t.Helper()
	var all []map[string]any
	lines := bufio.NewScanner(strings.NewReader(stream))
	for lines.Scan() {
		data, ok := strings.CutPrefix(lines.Text(), "data: ")
		if !ok || data == "[DONE]" {
			continue
		}
		var e map[string]any
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			t.Fatalf("event %q: %v", data, err)
		}
		all = append(all, e)
	}
	return all
}

func at(e any, path ...any) any {
	for _, p := range path {
		switch p := p.(type) {
		case string:
			m, _ := e.(map[string]any)
			e = m[p]
		case int:
			l, _ := e.([]any)
			if p >= len(l) {
				return nil
			}
			e = l[p]
		}
	}
	return e
}

const (
	anthropicTools = `"tools":[{"name":"Write","input_schema":{"properties":{"file_path":{"type":"string"},"content":{"type":"string"}},"required":["file_path","content"]}},{"name":"Bash","input_schema":{"properties":{"command":{"type":"string"},"description":{"type":"string"}},"required":["command","description"]}}]`
	patchTool      = `{"type":"custom","name":"apply_patch"}`
	execTool       = `{"type":"function","name":"shell","parameters":{"properties":{"command":{"type":"array"}},"required":["command"]}}`
	chatTools      = `"tools":[{"type":"function","function":{"name":"bash","parameters":{"properties":{"command":{"type":"string"}}}}}]`
	geminiTools    = `"tools":[{"functionDeclarations":[{"name":"write_file","parametersJsonSchema":{"type":"object","properties":{"file_path":{"type":"string"},"content":{"type":"string"}}}},{"name":"run_shell_command","parametersJsonSchema":{"type":"object","properties":{"command":{"type":"string"}},"required":["command"]}}]}]`
)

func TestMessagesStreamCarriesTheCall(t *testing.T) {
	server, log := serve(t)
	got := parseEvents(t, post(t, server, "/v1/messages?beta=true", `{"model":"m","stream":true,`+anthropicTools+`,"messages":[{"role":"user","content":"go"}]}`))
	var text, arguments string
	for _, e := range got {
		if s, ok := at(e, "delta", "text").(string); ok {
			text += s
		}
		if s, ok := at(e, "delta", "partial_json").(string); ok {
			arguments += s
		}
	}
	if text != "I write äöü." {
		t.Errorf("text: got = %q", text)
	}
	if want := `{"content":"one\ntwo\n","file_path":"/work/a.txt"}`; arguments != want {
		t.Errorf("arguments: got = %s, want %s", arguments, want)
	}
	if first, last := at(got[0], "type"), at(got[len(got)-1], "type"); first != "message_start" || last != "message_stop" {
		t.Errorf("stream from %v to %v", first, last)
	}
	if !strings.Contains(log.String(), `"tools":["Write"]`) {
		t.Errorf("log: got = %s", log)
	}
}

func TestMessagesAnswersFollowTheResults(t *testing.T) {
	server, _ := serve(t)
	result := func(content string) string {
		return `{"role":"user","content":[{"type":"tool_result","tool_use_id":"x","content":` + content + `}]}`
	}
	for _, c := range []struct{ messages, text, tool, stop string }{
		{result(`"ok"`), "I run.", "Bash", "tool_use"},
		{result(`"ok"`) + "," + result(`[{"type":"text","text":"PASS all"}]`), "Done.", "", "end_turn"},
		{result(`"ok"`) + "," + result(`"FAIL"`), `UNEXPECTED: step 2 should show "^PASS" and shows "FAIL"`, "", "end_turn"},
		{result(`1`) + "," + result(`"PASS"`) + "," + result(`""`), "The script is over.", "", "end_turn"},
	} {
		var got map[string]any
		if err := json.Unmarshal([]byte(post(t, server, "/v1/messages", `{"model":"m",`+anthropicTools+`,"messages":[`+c.messages+`]}`)), &got); err != nil {
			t.Fatal(err)
		}
		name, _ := at(got, "content", 1, "name").(string)
		if at(got, "content", 0, "text") != c.text || name != c.tool || at(got, "stop_reason") != c.stop {
			t.Errorf("got = %v, want %q, %q, %q", got, c.text, c.tool, c.stop)
		}
		if c.tool == "Bash" && at(got, "content", 1, "input", "description") == nil {
			t.Error("a required argument is missing")
		}
	}
}

func TestRequestsWithoutToolsAreSideCalls(t *testing.T) {
	server, _ := serve(t)
	got := post(t, server, "/v1/messages", `{"model":"m","messages":[]}`)
	if !strings.Contains(got, "A scripted conversation") {
		t.Errorf("got = %s", got)
	}
	if got := post(t, server, "/v1/messages/count_tokens", `{}`); !strings.Contains(got, "input_tokens") {
		t.Errorf("count_tokens: got = %s", got)
	}
}

func TestResponsesStreamWritesByPatchAndRunsByArray(t *testing.T) {
	server, _ := serve(t)
	got := parseEvents(t, post(t, server, "/v1/responses", `{"model":"m","stream":true,"tools":[`+patchTool+`],"input":[{"type":"additional_tools","tools":[`+execTool+`]}]}`))
	last := got[len(got)-1]
	if at(last, "type") != "response.completed" {
		t.Fatalf("last event: got = %v", last)
	}
	call := at(last, "response", "output", 1)
	if at(call, "type") != "custom_tool_call" || at(call, "input") != "*** Begin Patch\n*** Add File: a.txt\n+one\n+two\n*** End Patch\n" {
		t.Errorf("patch: got = %v", call)
	}
	for i, e := range got {
		if at(e, "sequence_number") != float64(i) {
			t.Errorf("event %d has number %v", i, at(e, "sequence_number"))
		}
	}
	got = parseEvents(t, post(t, server, "/v1/responses", `{"model":"m","stream":true,"tools":[`+execTool+`],"input":[{"type":"custom_tool_call_output","output":"ok"}]}`))
	call = at(got[len(got)-1], "response", "output", 1)
	if want := `{"command":["sh","-c","sh test.sh"]}`; at(call, "arguments") != want {
		t.Errorf("arguments: got = %v, want %s", at(call, "arguments"), want)
	}
}

func TestResponsesWithAPlainStringInput(t *testing.T) {
	server, _ := serve(t)
	got := post(t, server, "/responses", `{"model":"m","tools":[`+execTool+`],"input":"go"}`)
	if !strings.Contains(got, "END OF FILE") {
		t.Errorf("without a tool that writes, the shell should: got = %s", got)
	}
}

func TestChatStreamCarriesTheCallAndEnds(t *testing.T) {
	server, _ := serve(t)
	stream := post(t, server, "/v1/chat/completions", `{"model":"m","stream":true,`+chatTools+`,"messages":[{"role":"tool","content":"ok"}]}`)
	if !strings.HasSuffix(stream, "data: [DONE]\n\n") {
		t.Errorf("the stream ends in %q", stream[max(0, len(stream)-40):])
	}
	var arguments string
	var stop any
	for _, e := range parseEvents(t, stream) {
		if s, ok := at(e, "choices", 0, "delta", "tool_calls", 0, "function", "arguments").(string); ok {
			arguments += s
		}
		if f := at(e, "choices", 0, "finish_reason"); f != nil {
			stop = f
		}
	}
	if arguments != `{"command":"sh test.sh"}` || stop != "tool_calls" {
		t.Errorf("got = %s, %v", arguments, stop)
	}
}

func TestBadRequestsAreRefused(t *testing.T) {
	server, _ := serve(t)
	for _, c := range []struct {
		path, body string
		want       int
	}{
		{"/v1/messages", "no json", http.StatusBadRequest},
		{"/v1/responses", `{"input":[1]}`, http.StatusBadRequest},
		{"/v1/messages", `{"tools":[{"name":"Read"}]}`, 0},
		{"/v1/chat/completions", `{"messages":{}}`, http.StatusBadRequest},
		{"/v1/nothing", `{}`, http.StatusNotFound},
	} {
		response, err := http.Post(server.URL+c.path, "application/json", strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		response.Body.Close()
		if c.want != 0 && response.StatusCode != c.want {
			t.Errorf("%s %s: status = %d, want %d", c.path, c.body, response.StatusCode, c.want)
		}
		if c.want == 0 && response.StatusCode != http.StatusBadRequest {
			t.Errorf("an agent without a shell: status = %d, want 400", response.StatusCode)
		}
	}
}

func TestScriptsAreChecked(t *testing.T) {
	for _, bad := range []string{``, `{}`, `{"steps":[{"expect":"("}]}`, `{"steps":[{"run":"x","write":{"path":"y"}}]}`,
		`{"steps":[{"delegate":"nobody"}]}`, `{"steps":[{"also":[{}]}]}`, `{"steps":[{}],"agents":{"a":{}}}`,
		`{"steps":[{}],"agents":{"a":{"prompt":"x","steps":[{"expect":"("}]}}}`} {
		if _, err := ParseScript([]byte(bad)); err == nil {
			t.Errorf("ParseScript(%q): no error", bad)
		}
	}
}

func TestPiecesKeepCharactersWhole(t *testing.T) {
	text := strings.Repeat("ä€𝄞x", 20)
	parts := pieces(text)
	if got := strings.Join(parts, ""); got != text || len(parts) < 2 {
		t.Errorf("got = %q in %d parts", got, len(parts))
	}
	for _, p := range parts {
		if strings.ToValidUTF8(p, "?") != p {
			t.Errorf("part %q is cut inside a character", p)
		}
	}
}

// FuzzRequests holds every protocol to answering or refusing whatever comes.
func FuzzRequests(f *testing.F) {
	f.Add([]byte(`{"model":"m",` + anthropicTools + `,"messages":[{"content":[{"type":"tool_result","content":[{"text":"x"}]}]}]}`))
	f.Add([]byte(`{"model":"m","stream":true,"tools":[` + patchTool + `,` + execTool + `],"input":[{"type":"function_call_output","output":"x"}]}`))
	f.Add([]byte(`{"stream":true,` + chatTools + `,"messages":[{"role":"tool","content":null}]}`))
	f.Add([]byte(`{` + geminiTools + `,"contents":[{"role":"user","parts":[{"functionResponse":{"response":{"output":"x"}}}]}]}`))
	f.Add([]byte(`[]`))
	s, err := ParseScript([]byte(sample))
	if err != nil {
		f.Fatal(err)
	}
	server := &Server{Script: s}
	f.Fuzz(func(t *testing.T, body []byte) {
		for path := range protocols {
			w := httptest.NewRecorder()
			server.ServeHTTP(w, httptest.NewRequest("POST", "/v1/models/m"+path, bytes.NewReader(body)))
			if w.Code != http.StatusOK && w.Code != http.StatusBadRequest {
				t.Error(fmt.Sprint(path, " status = ", w.Code))
			}
		}
	})
}
