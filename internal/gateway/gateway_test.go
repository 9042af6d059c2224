package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
)

// echo is an upstream that keeps what it gets and answers 200.
type echo struct {
	requests chan *http.Request
	bodies   chan string
}

func newEcho(t *testing.T) (string, *echo) {
	e := &echo{make(chan *http.Request, 16), make(chan string, 16)}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		e.requests <- r
		e.bodies <- string(b)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Upstream", "yes")
		io.WriteString(w, `{"type":"message","content":[]}`)
	}))
	t.Cleanup(s.Close)
	return s.URL, e
}

func TestKeyIsSwappedAndRestIsForwardedUntouched(t *testing.T) {
	for _, c := range []struct{ path, wantPath, tokenHeader, keyHeader, key string }{
		{"/anthropic/v1/messages?beta=true", "/v1/messages?beta=true", "X-Api-Key", "X-Api-Key", realKey},
		{"/anthropic/v1/messages", "/v1/messages", "Authorization", "X-Api-Key", realKey},
		{"/openai/v1/responses", "/responses", "Authorization", "Authorization", "Bearer " + realKey},
		{"/openai/v1/chat/completions?a=1&key=" + runToken + "&b=%2F", "/chat/completions?a=1&b=%2F", "", "Authorization", "Bearer " + realKey},
		{"/gemini/v1beta/models/g-1:generateContent?key=" + runToken, "/v1beta/models/g-1:generateContent", "", "X-Goog-Api-Key", realKey},
		{"/gemini/v1beta/models/g%2D1:streamGenerateContent?alt=sse", "/v1beta/models/g%2D1:streamGenerateContent?alt=sse", "X-Goog-Api-Key", "X-Goog-Api-Key", realKey},
		{"/u/local/chat/completions", "/chat/completions", "Authorization", "Authorization", "Bearer " + realKey},
	} {
		t.Run(c.path, func(t *testing.T) {
			url, up := newEcho(t)
			w := newWorld(t, url, nil)
			body := `{"model":"m",  "unknown":{"b":1,"a":[1.0]},"messages":[],"input":[],"contents":[]}`
			r, _ := http.NewRequest("POST", w.url+c.path, strings.NewReader(body))
			switch c.tokenHeader {
			case "":
			case "Authorization":
				r.Header.Set("Authorization", "bearer "+runToken)
			default:
				r.Header.Set(c.tokenHeader, runToken)
			}
			r.Header.Set("Anthropic-Beta", "one,two")
			r.Header["x-odd-CASE"] = []string{"1", "2"}
			r.Header.Set("Connection", "X-Private")
			r.Header.Set("X-Private", "hop")
			resp, err := http.DefaultClient.Do(r)
			if err != nil {
				t.Fatal(err)
			}
			if got := read(t, resp); resp.StatusCode != 200 || !strings.Contains(got, "message") || resp.Header.Get("X-Upstream") != "yes" {
				t.Fatalf("answer = %d %q %v", resp.StatusCode, got, resp.Header)
			}
			got := <-up.requests
			if got.RequestURI != c.wantPath || <-up.bodies != body {
				t.Errorf("request = %q, want %q", got.RequestURI, c.wantPath)
			}
			if got.Header.Get(c.keyHeader) != c.key {
				t.Errorf("%s = %q", c.keyHeader, got.Header.Get(c.keyHeader))
			}
			if all := fmt.Sprint(got.Header, got.RequestURI); strings.Contains(all, runToken) || strings.Contains(all, "hop") {
				t.Errorf("the token or a hop left: %s", all)
			}
			if got.Header.Get("Anthropic-Beta") != "one,two" || len(got.Header.Values("X-Odd-Case")) != 2 {
				t.Errorf("header = %v", got.Header)
			}
			x := w.exchanges(1)[0]
			if x.Path != c.wantPath || x.Status != 200 || x.Error != "" || x.Number != 1 || x.Step != 1 || x.Key == "" {
				t.Errorf("exchange = %+v", x)
			}
			request, answer := w.content(x.Request), w.content(x.Answer)
			if string(request.Body) != body || strings.Contains(fmt.Sprint(request.Header), runToken) || request.Header["Anthropic-Beta"] == nil {
				t.Errorf("recorded request = %q %v", request.Body, request.Header)
			}
			if string(answer.Body) != `{"type":"message","content":[]}` || answer.Header["X-Upstream"] == nil || x.AnswerSize != int64(len(answer.Body)) {
				t.Errorf("recorded answer = %q %v", answer.Body, answer.Header)
			}
		})
	}
}

func TestRefusesTokensInTheShapeOfEachAPI(t *testing.T) {
	url, up := newEcho(t)
	w := newWorld(t, url, nil)
	w.runs.admitted["mf-run-2-other"] = Admission{Environment: "env-2", Run: "run-2"}
	for _, c := range []struct{ path, shape string }{
		{"/anthropic/v1/messages", `"type":"authentication_error"`},
		{"/openai/v1/responses", `"code":"invalid_api_key"`},
		{"/gemini/v1beta/models/g:generateContent", `"status":"UNAUTHENTICATED"`},
		{"/u/local/chat/completions", `"code":"invalid_api_key"`},
		{"/hooks/claude", `"error"`},
		{"/otlp/v1/traces", `"error"`},
	} {
		for _, token := range []string{"", "wrong", "mf-run-2-other", realKey} {
			resp := w.post(c.path, question, "X-Api-Key", token)
			if got := read(t, resp); resp.StatusCode != 401 || !strings.Contains(got, c.shape) || strings.Contains(got, realKey) {
				t.Errorf("%s with token %q = %d %s", c.path, token, resp.StatusCode, got)
			}
			w.runs.mu.Lock()
			if last := w.runs.refused[len(w.runs.refused)-1]; last != token {
				t.Errorf("refused token = %q, want %q", last, token)
			}
			w.runs.mu.Unlock()
		}
	}
	if len(up.requests) != 0 || len(w.runs.begun) != 0 || len(w.recorder.contents) != 0 {
		t.Errorf("something passed: %d requests, %d exchanges", len(up.requests), len(w.runs.begun))
	}
}

func TestUnknownPathsNameTheKnownOnes(t *testing.T) {
	url, up := newEcho(t)
	w := newWorld(t, url, nil)
	for path, want := range map[string]string{
		"/":                                       "/anthropic/",
		"/v1/messages":                            "/hooks/claude",
		"/anthropicx/v1/messages":                 "/gemini/",
		"/u/unheard/chat/completions":             "local",
		"/u/openai/chat/completions":              "/u/NAME",
		"/anthropic/v1/files":                     "/messages",
		"/openai/v1/organization/admin_api_keys":  "/responses",
		"/openai/v1/../../x/responses":            "/openai/v1/",
		"/openai/v1/%2e%2e/x/responses":           "/openai/v1/",
		"/u/local/..%2f..%2fx/chat/completions":   "/openai/v1/",
		"/anthropic/v1/chat/completions":          "/messages",
		"/hooks/unknown":                          "/hooks/codex",
		"/otlp/v1/traces/":                        "/otlp/v1/logs",
		"/anthropic/v1/messages/batches":          "/messages",
		"http://elsewhere.invalid/anthropic/v1/x": "",
	} {
		c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}", path, runToken)
		b, _ := io.ReadAll(c)
		c.Close()
		if got := string(b); !strings.HasPrefix(got, "HTTP/1.1 404") || !strings.Contains(got, want) {
			t.Errorf("%s = %s", path, got)
		}
	}
	if len(up.requests) != 0 {
		t.Errorf("requests upstream = %d", len(up.requests))
	}
}

func TestChunksKeepTheirBoundaries(t *testing.T) {
	var parts []string
	for i := range 200 {
		parts = append(parts, fmt.Sprintf("data: {\"i\":%d,\"text\":\"ä%s\"}\n\n", i, strings.Repeat("x", i%50)))
	}
	euro := "€"
	parts = append(parts, "data: \""+euro[:1], euro[1:]+"\"\n\n", strings.Repeat("y", 3000))
	up := raw(t, func(c net.Conn, r *http.Request, _ *bufio.Reader) { chunks(c, time.Millisecond, parts...) })
	w := newWorld(t, up, nil)
	in := w.rawPost("/anthropic/v1/messages", question)
	for i, want := range append(parts, "") {
		if got, err := in.next(); err != nil || got != want {
			t.Fatalf("chunk %d = %q (%v), want %q", i, got, err, want)
		}
	}
	x := w.exchanges(1)[0]
	answer := w.content(x.Answer)
	if string(answer.Body) != strings.Join(parts, "") || len(answer.Chunks) != len(parts) {
		t.Fatalf("recorded %d bytes in %d chunks", len(answer.Body), len(answer.Chunks))
	}
	for i, c := range answer.Chunks {
		if c.Size != len(parts[i]) || i > 0 && c.After < answer.Chunks[i-1].After {
			t.Errorf("chunk %d = %+v after %+v", i, c, answer.Chunks[max(0, i-1)])
		}
	}
	if x.Model != "m-1" || !x.Stream || x.System == "" || x.Tools == "" || *x.Parameters.Temperature != 0.5 || *x.Parameters.MaxTokens != 1000 {
		t.Errorf("exchange = %+v", x)
	}
	if spread := answer.Chunks[len(parts)-1].After - answer.Chunks[0].After; spread < time.Duration(len(parts)-1)*time.Millisecond {
		t.Errorf("first to last chunk = %v", spread)
	}
	if first := x.FirstByte.Sub(x.Start); first != answer.Chunks[0].After || x.End.Before(x.FirstByte) {
		t.Errorf("times = %v %v %v", x.Start, x.FirstByte, x.End)
	}
}

func TestLargestBodyPasses(t *testing.T) {
	url, up := newEcho(t)
	w := newWorld(t, url, nil)
	const most = 32 << 20
	frame := strings.Replace(question, "hello", "%s", 1)
	body := fmt.Sprintf(frame, strings.Repeat("a", most-len(frame)+len("%s")))
	if got := read(t, w.post("/anthropic/v1/messages", body)); !strings.Contains(got, "message") || len(body) != most {
		t.Fatalf("answer to %d bytes = %s", len(body), got)
	}
	if <-up.bodies != body {
		t.Error("the body changed")
	}
	if resp := w.post("/anthropic/v1/messages", body+" "); !strings.Contains(read(t, resp), "request_too_large") || resp.StatusCode != 413 {
		t.Errorf("one byte more = %d", resp.StatusCode)
	}
}
