package scriptedmodel

import (
	"bytes"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// ask posts a request and returns status and body, and the error that cut the
// body short.
func ask(t *testing.T, s *Server, path, body string) (int, string, error) {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	response, err := http.Post(server.URL+path, "application/json", strings.NewReader(body))
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	b, err := io.ReadAll(response.Body)
	return response.StatusCode, string(b), err
}

func scripted(t *testing.T, script string) *Server {
	t.Helper()
	s, err := ParseScript([]byte(script))
	if err != nil {
		t.Fatal(err)
	}
	return &Server{Script: s}
}

// streams are a first request to each API for a stream.
var streams = map[string]string{
	"/v1/messages":         `{"model":"m","stream":true,` + anthropicTools + `,"messages":[{"role":"user","content":"go"}]}`,
	"/v1/responses":        `{"model":"m","stream":true,"tools":[` + execTool + `],"input":"go"}`,
	"/v1/chat/completions": `{"model":"m","stream":true,` + chatTools + `,"messages":[{"role":"user","content":"go"}]}`,
	"/v1beta/models/m:streamGenerateContent?alt=sse": `{` + geminiTools + `,"contents":[{"role":"user","parts":[{"text":"go"}]}]}`,
}

func TestAnErrorComesAsOftenAsTheScriptSays(t *testing.T) {
	for path, body := range streams {
		s := scripted(t, `{"steps":[{"say":"Done.","trouble":{"status":529,"times":2}}]}`)
		for i, want := range []int{529, 529, 200, 200} {
			got, text, err := ask(t, s, path, body)
			if got != want || err != nil {
				t.Errorf("%s, request %d: got = %d, %v, want %d: %s", path, i+1, got, err, want, text)
			}
		}
	}
}

func TestACutStreamBreaksTheConnection(t *testing.T) {
	for path, body := range streams {
		s := scripted(t, `{"steps":[{"say":"A long remark, in several pieces.","run":"x","trouble":{"cut":2,"times":1}}]}`)
		_, text, err := ask(t, s, path, body)
		if n := strings.Count(text, "data: "); err == nil || n != 2 {
			t.Errorf("%s: got = %d events and %v, want 2 and an error", path, n, err)
		}
		if _, text, err = ask(t, s, path, body); err != nil || strings.Count(text, "data: ") < 5 {
			t.Errorf("%s, again: got = %q, %v, want all of it", path, text, err)
		}
	}
	s := scripted(t, `{"steps":[{"say":"Done.","trouble":{"cut":1}}]}`)
	if status, text, err := ask(t, s, "/v1/messages", `{`+anthropicTools+`}`); err == nil {
		t.Errorf("without a stream: got = %d, %q, want an error", status, text)
	}
}

func TestPingsFillSilence(t *testing.T) {
	for path, body := range streams {
		s := scripted(t, `{"steps":[{"say":"Done.","trouble":{"silence_ms":100,"ping_ms":20}}]}`)
		began := time.Now()
		_, text, err := ask(t, s, path, body)
		if took := time.Since(began); took < 100*time.Millisecond || err != nil {
			t.Errorf("%s: took %v, %v", path, took, err)
		}
		if n := strings.Count(text, `{"type":"ping"}`) + strings.Count(text, ": ping\n"); n < 4 {
			t.Errorf("%s: got = %d pings in %q, want at least 4", path, n, text)
		}
	}
}

func TestEventsComeOneByOneAndSlowly(t *testing.T) {
	server := httptest.NewServer(scripted(t, `{"steps":[{"say":"Done.","trouble":{"pause_ms":30}}]}`))
	defer server.Close()
	for path, body := range streams {
		response, err := http.Post(server.URL+path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		reads, events, buffer := 0, 0, make([]byte, 1<<16)
		for err == nil {
			var n int
			if n, err = response.Body.Read(buffer); n > 0 {
				reads++
			}
			events += bytes.Count(buffer[:n], []byte("data: "))
		}
		response.Body.Close()
		// A busy machine may read late, and several at once.
		if events < 2 || reads*2 < events {
			t.Errorf("%s: %d events came in %d reads", path, events, reads)
		}
	}
}

func TestTheSameRequestGetsTheSameBytes(t *testing.T) {
	s := scripted(t, `{"steps":[{"think":"Hm.","say":"Both.","run":"one","also":[{"run":"two"}]},{"say":"Done."}]}`)
	for path, body := range streams {
		_, first, _ := ask(t, s, path, body)
		_, second, _ := ask(t, s, path, body)
		if first != second || first == "" {
			t.Errorf("%s: got = %q and %q", path, first, second)
		}
		if _, other, _ := ask(t, s, path, strings.Replace(body, "go", "go on, please, as far as you can", 1)); other == first {
			t.Errorf("%s: another request has the same answer: %q", path, other)
		}
	}
}

func TestReasoningComesBeforeTheRemark(t *testing.T) {
	for path, body := range streams {
		s := scripted(t, `{"steps":[{"think":"I wonder.","say":"Done."}]}`)
		_, text, err := ask(t, s, path, body)
		thought, said := strings.Index(text, "I wonder."), strings.Index(text, "Done.")
		if err != nil || thought < 0 || said < thought {
			t.Errorf("%s: got = %s", path, text)
		}
	}
}

func TestParallelCallsAreToldApart(t *testing.T) {
	s := scripted(t, `{"steps":[
		{"say":"Both.","run":"one","expect":"^1$","also":[{"run":"two","expect":"^2$"}]},
		{"say":"Done."}]}`)
	results := func(first, second string) string {
		return `{` + anthropicTools + `,"messages":[{"role":"assistant","content":"x"},{"role":"user","content":[` +
			`{"type":"tool_result","tool_use_id":"toolu_call_0001_` + first + `","content":"` + first + `"},` +
			`{"type":"tool_result","tool_use_id":"toolu_call_0001_` + second + `","content":"` + second + `"}]}]}`
	}
	for _, order := range [][2]string{{"1", "2"}, {"2", "1"}} {
		if _, got, _ := ask(t, s, "/v1/messages", results(order[0], order[1])); !strings.Contains(got, "Done.") {
			t.Errorf("results in order %v: got = %s", order, got)
		}
	}
	if _, got, _ := ask(t, s, "/v1/messages", results("1", "1")); !strings.Contains(got, "UNEXPECTED") {
		t.Errorf("a wrong result: got = %s", got)
	}
	for path, body := range streams {
		_, got, _ := ask(t, s, path, body)
		if !strings.Contains(got, "call_0001_1") || !strings.Contains(got, "call_0001_2") {
			t.Errorf("%s: got = %s, want two calls", path, got)
		}
	}
}

func TestSubagentsFollowTheirOwnScript(t *testing.T) {
	s := scripted(t, `{"steps":[{"say":"Go.","delegate":"counter"},{"say":"Done."}],
		"agents":{"counter":{"prompt":"Count the lines.","steps":[{"say":"I count.","run":"wc"},{"say":"Four."}]}}}`)
	task := `{"name":"Agent","input_schema":{"properties":{"prompt":{"type":"string"},"run_in_background":{"type":"boolean"}},"required":["prompt"]}}`
	tools := strings.Replace(anthropicTools, `"tools":[`, `"tools":[`+task+`,`, 1)
	for _, c := range []struct{ messages, want string }{
		{`{"role":"user","content":"Count, please."}`, `"input":{"prompt":"Count the lines.","run_in_background":false}`},
		{`{"role":"user","content":[{"type":"text","text":"Count the lines."}]}`, "toolu_counter_0001_1"},
		{`{"role":"user","content":"Count the lines."},{"role":"assistant","content":"x"},{"role":"user","content":[{"type":"tool_result","content":"4"}]}`, "Four."},
		{`{"role":"user","content":"x"},{"role":"assistant","content":"Count the lines."},{"role":"user","content":[{"type":"tool_result","content":"4"}]}`, "Done."},
	} {
		if _, got, _ := ask(t, s, "/v1/messages", `{`+tools+`,"messages":[`+c.messages+`]}`); !strings.Contains(got, c.want) {
			t.Errorf("%s: got = %s, want %s", c.messages, got, c.want)
		}
	}
}

func TestCodexGetsAProgramForAStep(t *testing.T) {
	s := scripted(t, `{"steps":[{"say":"All.","write":{"path":"a","content":"x\n"},"also":[{"run":"two"}]},{"say":"Done."}]}`)
	exec := `{"type":"namespace","name":"functions","tools":[{"type":"custom","name":"exec"},{"type":"function","name":"wait"}]}`
	_, got, _ := ask(t, s, "/v1/responses", `{"tools":[`+exec+`],"input":"go"}`)
	var answer struct{ Output []map[string]any }
	if err := json.Unmarshal([]byte(got), &answer); err != nil || len(answer.Output) != 2 {
		t.Fatalf("got = %s, %v; want a message and a call", got, err)
	}
	call := answer.Output[1]
	program, _ := call["input"].(string)
	if call["namespace"] != "functions" || call["type"] != "custom_tool_call" || strings.Count(program, "await tools.exec_command(") != 2 {
		t.Errorf("got = %v", call)
	}
	if _, got, _ = ask(t, s, "/v1/responses", `{"tools":[`+exec+`],"input":[{"type":"custom_tool_call_output","output":"x"}]}`); !strings.Contains(got, "Done.") {
		t.Errorf("after the program: got = %s", got)
	}
}

func TestGeminiAnswersFollowTheResults(t *testing.T) {
	s := scripted(t, sample)
	result := `{"role":"model","parts":[]},{"role":"user","parts":[{"functionResponse":{"id":"call_0001_1","name":"write_file","response":{"output":"ok"}}}]}`
	_, got, _ := ask(t, s, "/v1beta/models/m-1:generateContent", `{`+geminiTools+`,"contents":[`+result+`]}`)
	var answer map[string]any
	if err := json.Unmarshal([]byte(got), &answer); err != nil {
		t.Fatal(err)
	}
	call := at(answer, "candidates", 0, "content", "parts", 1, "functionCall")
	if at(call, "name") != "run_shell_command" || at(call, "args", "command") != "sh test.sh" || at(answer, "modelVersion") != "m-1" {
		t.Errorf("got = %s", got)
	}
	if _, got, _ = ask(t, s, "/v1beta/models/m:countTokens", `{}`); !strings.Contains(got, "totalTokens") {
		t.Errorf("countTokens: got = %s", got)
	}
}

func TestSideCallsGetTheFormatThatTheyAskFor(t *testing.T) {
	s := scripted(t, sample)
	schema := `{"type":"OBJECT","properties":{"choice":{"type":"STRING","enum":["flash","pro"]},"score":{"type":"INTEGER"}},"required":["choice","score"]}`
	want := `{\"choice\":\"flash\",\"score\":1}`
	for path, body := range map[string]string{
		"/v1/messages":                     `{"output_config":{"format":{"schema":` + strings.ToLower(schema) + `}}}`,
		"/v1/responses":                    `{"text":{"format":{"schema":` + schema + `}}}`,
		"/v1/chat/completions":             `{"response_format":{"json_schema":{"schema":` + schema + `}}}`,
		"/v1beta/models/m:generateContent": `{"generationConfig":{"responseJsonSchema":` + schema + `}}`,
	} {
		if _, got, _ := ask(t, s, path, body); !strings.Contains(got, want) {
			t.Errorf("%s: got = %s, want %s", path, got, want)
		}
	}
}

func TestAnybodyMayAskWhetherSomebodyIsThere(t *testing.T) {
	server := httptest.NewServer(scripted(t, sample))
	defer server.Close()
	response, err := http.Head(server.URL + "/api/hello")
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
	if response.StatusCode != http.StatusOK {
		t.Errorf("status = %d, want 200", response.StatusCode)
	}
}

func TestTheLogHasTheKeyThatWasShown(t *testing.T) {
	for _, set := range []func(*http.Request){
		func(r *http.Request) { r.Header.Set("X-Api-Key", "k") },
		func(r *http.Request) { r.Header.Set("X-Goog-Api-Key", "k") },
		func(r *http.Request) { r.Header.Set("Authorization", "Bearer k") },
		func(r *http.Request) { r.URL.RawQuery = "key=k" },
	} {
		s := scripted(t, sample)
		var log bytes.Buffer
		s.Requests = &log
		r := httptest.NewRequest("POST", "/v1/messages", strings.NewReader(`{}`))
		set(r)
		s.ServeHTTP(httptest.NewRecorder(), r)
		var e Exchange
		if err := json.Unmarshal(log.Bytes(), &e); err != nil || e.Key != "k" || e.Status != 200 {
			t.Errorf("got = %s, %v, want the key", log.String(), err)
		}
	}
}
