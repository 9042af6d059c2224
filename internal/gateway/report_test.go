package gateway

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

func TestReportsAreRecorded(t *testing.T) {
	up, asked := newEcho(t)
	w := newWorld(t, up, nil)
	for i, c := range []struct{ path, kind, contentType, body, want string }{
		{"/hooks/claude", "hook", "application/json", `{"hook_event_name":"PreToolUse"}`, "{}"},
		{"/hooks/codex", "hook", "application/json", `{`, "{}"},
		{"/otlp/v1/logs", "otlp", "application/json", `{}`, "{}"},
		{"/otlp/v1/traces", "otlp", "application/x-protobuf", "\x0a\x00", ""},
	} {
		resp := w.post(c.path, c.body, "Content-Type", c.contentType)
		if got := read(t, resp); resp.StatusCode != 200 || got != c.want || resp.Header.Get("Content-Type") != c.contentType {
			t.Errorf("%s = %d %q %v", c.path, resp.StatusCode, got, resp.Header)
		}
		kind, digest, _ := strings.Cut(w.runs.reports[i], " ")
		recorded := w.content(digest)
		if kind != c.kind || string(recorded.Body) != c.body || recorded.Header[pathHeader][0] != c.path || strings.Contains(fmt.Sprint(recorded.Header), runToken) {
			t.Errorf("%s: recorded %s %q %v", c.path, kind, recorded.Body, recorded.Header)
		}
	}
	w.runs.failRest = errKnob
	if resp := w.post("/hooks/claude", "{}"); !strings.Contains(read(t, resp), "cannot be recorded") || resp.StatusCode != 503 {
		t.Errorf("unsaved report = %d", resp.StatusCode)
	}
	w.runs.failRest = mayfly.Errorf(mayfly.Conflict, "run has ended")
	if resp := w.post("/hooks/claude", "{}"); !strings.Contains(read(t, resp), "too late") || resp.StatusCode != 409 {
		t.Errorf("late report = %d", resp.StatusCode)
	}
	resp, err := w.try("GET", "/hooks/claude", nil)
	if err != nil || !strings.Contains(read(t, resp), "POST") || resp.StatusCode != 405 {
		t.Errorf("GET = %v %v", resp, err)
	}
	if len(asked.requests) != 0 {
		t.Error("a report left")
	}
}

func TestSideCallsAndProbes(t *testing.T) {
	up, asked := newEcho(t)
	w := newWorld(t, up, nil)
	for _, c := range []struct{ method, path string }{
		{"HEAD", "/anthropic/api/hello"},
		{"GET", "/anthropic/v1/models?limit=1"},
		{"GET", "/openai/v1/models"},
		{"GET", "/gemini/v1beta/models/g-1"},
	} {
		resp, err := w.try(c.method, c.path, nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatalf("%s = %v %v", c.path, resp, err)
		}
		resp.Body.Close()
		if r := <-asked.requests; r.Method != c.method {
			t.Errorf("method = %s", r.Method)
		}
	}
	for _, x := range w.exchanges(4) {
		if x.Step != 0 || x.API != "other" {
			t.Errorf("exchange = %+v", x)
		}
	}
	resp, err := w.try("HEAD", "/anthropic/api/hello", nil, "X-Api-Key", "")
	if err != nil || resp.StatusCode != 200 || len(asked.requests) != 0 || len(w.runs.refused) != 0 {
		t.Errorf("probe = %v %v", resp, err)
	}
	if resp := w.post("/openai/v1/responses", "{}", "Connection", "Upgrade", "Upgrade", "websocket"); !strings.Contains(read(t, resp), "events") || resp.StatusCode != 426 {
		t.Errorf("upgrade = %d", resp.StatusCode)
	}
}

func TestRetriesAreRecognised(t *testing.T) {
	answers := []string{"HTTP/1.1 529 X\r\n", "HTTP/1.1 500 X\r\n", "HTTP/1.1 200 X\r\n", "HTTP/1.1 200 X\r\n", "HTTP/1.1 200 X\r\n"}
	var n atomic.Int32
	up := raw(t, func(c net.Conn, r *http.Request, _ *bufio.Reader) {
		fmt.Fprintf(c, "%sConnection: close\r\nContent-Length: 2\r\n\r\n{}", answers[n.Add(1)-1])
	})
	w := newWorld(t, up, nil)
	other := strings.Replace(question, "hello", "something else", 1)
	for i, body := range []string{question, question, question, question, other} {
		read(t, w.post("/anthropic/v1/messages", body))
		w.exchanges(i + 1)
	}
	if got := fmt.Sprint(w.runs.repeats, w.runs.boundary); got != "[0 1 2 0 0] [true false false true true]" {
		t.Errorf("repeats = %s", got)
	}
}

func TestMissingKeyIsExplained(t *testing.T) {
	up, asked := newEcho(t)
	empty := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(empty, []byte("\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for setting, want := range map[string]string{
		"key_env: GATEWAY_TEST_NO_KEY": "set GATEWAY_TEST_NO_KEY in the environment of the mayfly server",
		"key_file: /nonexistent/key":   "no such file",
		"key_file: " + empty:           "is empty",
	} {
		w := newWorld(t, up, func(o *Options) { o.Providers = providersAt(t, up, setting) })
		resp := w.post("/anthropic/v1/messages", question)
		if got := read(t, resp); resp.StatusCode != 401 || !strings.Contains(got, want) || !strings.Contains(got, "authentication_error") || strings.Contains(got, "/nonexistent") {
			t.Errorf("%s: %d %s", setting, resp.StatusCode, got)
		}
		if x := w.exchanges(1)[0]; x.Status != 401 || !strings.HasPrefix(x.Error, noAnswer) {
			t.Errorf("exchange = %+v", x)
		}
	}
	w := newWorld(t, up, func(o *Options) { o.Providers = providersAt(t, up, "headers: {X-Team: tools}") })
	read(t, w.post("/u/local/chat/completions", question))
	if r := <-asked.requests; r.Header.Get("Authorization") != "" || r.Header.Get("X-Team") != "tools" {
		t.Errorf("header without a key = %v", r.Header)
	}
}

func TestSecretsOfProviders(t *testing.T) {
	t.Setenv("GATEWAY_TEST_KEY", realKey)
	list, err := ParseProviders("p", []byte("providers:\n- name: a\n  url: http://x\n  key_env: GATEWAY_TEST_KEY\n"+
		"  headers: {X-Auth: Bearer 0123456789abc, X-Team: a-team-with-a-long-name, X-Api-Token: short}\n"))
	if err != nil {
		t.Fatal(err)
	}
	p := &Providers{list: list}
	got := p.Secrets()["a"]
	if want := []string{realKey, "Bearer 0123456789abc", "0123456789abc"}; !slices.Equal(got, want) {
		t.Errorf("secrets = %q, want %q", got, want)
	}
	up := raw(t, func(c net.Conn, r *http.Request, _ *bufio.Reader) {
		body := r.Header.Get("X-Auth") + " " + r.Header.Get("X-Team")
		fmt.Fprintf(c, "HTTP/1.1 403 X\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
	w := newWorld(t, up, func(o *Options) {
		o.Providers = providersAt(t, up, "headers: {X-Auth: Bearer 0123456789abc, X-Team: a-team-with-a-long-name}")
	})
	if got := read(t, w.post("/u/local/responses", question)); got != strings.Repeat("*", 20)+" a-team-with-a-long-name" {
		t.Errorf("answer = %q", got)
	}
}

func TestProvidersFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "providers.yaml")
	for text, want := range map[string]string{
		"providers: x":                                                                   ":1:12: providers is not a list",
		"provider: []":                                                                   "unknown field",
		"providers:\n  - nam: x":                                                         ":2:5: unknown field \"nam\"",
		"providers:\n  - url: http://x":                                                  ":2:5: a provider without a name",
		"providers:\n  - name: Bad_Name":                                                 ":2:11: bad name",
		"providers:\n  - name: a":                                                        "has no url",
		"providers:\n  - name: a\n    url: ftp://x":                                      ":3:10: the url",
		"providers:\n  - name: a\n    url: http://u:p@x":                                 "user or password",
		"providers:\n  - name: a\n    url: http://x?y=1":                                 "more than a path",
		"providers:\n  - name: a\n    url: http://x\n    api: soap":                      ":4:10: unknown api",
		"providers:\n  - name: anthropic\n    api: openai":                               "cannot speak",
		"providers:\n  - name: a\n    url: http://x\n    key_env: sk-abc":                ":4:14: bad variable name",
		"providers:\n  - name: a\n    url: http://x\n    key_file: rel":                  "key_file is",
		"providers:\n  - name: a\n    url: http://x\n    key_env: A\n    key_file: /b":   "both",
		"providers:\n  - name: a\n    url: http://x\n    headers: {\"a b\": c}":          "bad header name",
		"providers:\n  - name: a\n    url: http://x\n    headers: {Host: c}":             "not for a provider",
		"providers:\n  - name: a\n    url: http://x\n    headers: {X: 1}":                "not a string",
		"providers:\n  - {name: a, url: \"http://x\"}\n  - {name: a, url: \"http://y\"}": "set twice",
		"providers:\n  - name: a\n    name: b\n    url: http://x":                        "name",
		"providers: []\n---\nproviders: []":                                              "second document",
		"providers:\n\t- a":                                                              ":2:",
		"[[[[[[[[[[[[[[[[[[":                                                             "nested",
	} {
		list, err := ParseProviders("p.yaml", []byte(text))
		if mayfly.KindOf(err) != mayfly.Invalid || !strings.Contains(fmt.Sprint(err), want) {
			t.Errorf("%q = %v %v, want %s", text, list, err, want)
		}
	}
	write := func(text string, mode os.FileMode) {
		t.Helper()
		os.Remove(path)
		if err := os.WriteFile(path, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	p, err := OpenProviders(path, nil)
	if err != nil {
		t.Fatalf("without a file: %v", err)
	}
	if a, ok := p.lookup("anthropic"); !ok || a.URL.String() != "https://api.anthropic.com" || a.KeyEnv != "ANTHROPIC_API_KEY" {
		t.Errorf("anthropic = %+v", a)
	}
	write("# mine\nproviders:\n- name: local\n  url: http://127.0.0.1:1/v1 # here\n  headers:\n    X-A: b\n- name: openai\n  url: https://proxy.example/openai\n", 0o600)
	if l, ok := p.lookup("local"); !ok || l.URL.Path != "/v1" || l.Header["X-A"] != "b" || l.KeyEnv != "" {
		t.Errorf("local = %+v %v", l, ok)
	}
	if o, _ := p.lookup("openai"); o.URL.Host != "proxy.example" || o.KeyEnv != "" {
		t.Errorf("openai = %+v: the key of one place is not for another", o)
	}
	write("providers: {", 0o600)
	if _, ok := p.lookup("local"); !ok {
		t.Error("a broken file removed what was there")
	}
	write("", 0o600)
	if _, ok := p.lookup("local"); ok {
		t.Error("an emptied file removed nothing")
	}
	write("providers: []", 0o644)
	if _, err := OpenProviders(path, nil); mayfly.KindOf(err) != mayfly.Invalid || !strings.Contains(fmt.Sprint(err), "open to other users") {
		t.Errorf("open file = %v", err)
	}
}

func FuzzProviders(f *testing.F) {
	f.Add([]byte("providers:\n  - name: a\n    url: http://x\n    headers: {A: b}\n"))
	f.Add([]byte("providers: &a [*a]\n"))
	f.Add([]byte("? a\n: - b\n"))
	f.Add([]byte("a: !!binary |\n  x\n<<: *b\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := ParseProviders("p", text)
		if err != nil && mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("error = %v", err)
		}
		for name, p := range list {
			if err == nil && (p.URL == nil || p.Name != name || mayfly.CheckName(name) != nil || !isBuiltIn(p.API)) {
				t.Errorf("provider %q = %+v", name, p)
			}
		}
	})
}

func FuzzRoute(f *testing.F) {
	for _, path := range []string{"/anthropic/v1/messages", "/u/a/b", "/u//x", "/openai/v1/%2e%2e/", "/hooks/claude", "", "/%zz", "/gemini//..", `/u/a/..\b`} {
		f.Add(path, "a=1&key=x&b=%6b")
	}
	f.Fuzz(func(t *testing.T, path, query string) {
		rt, ok := findRoute(path)
		clean := cleanQuery(query)
		for pair := range strings.SplitSeq(clean, "&") {
			if name, _, _ := queryPair(pair); name == queryKey {
				t.Errorf("cleanQuery(%q) = %q", query, clean)
			}
		}
		if !ok || rt.subject != modelSubject {
			return
		}
		base := builtIn()[openaiName].URL
		u, err := upstreamURL(base, rt.rest, clean)
		if err != nil {
			t.Fatalf("upstreamURL(%q): %v", rt.rest, err)
		}
		if u.Host != base.Host || !strings.HasPrefix(u.Path, "/v1") || hasDotSegment(u.Path) || strings.Contains(u.EscapedPath(), "?") {
			t.Errorf("upstream of %q = %v", path, u)
		}
	})
}

func FuzzCredential(f *testing.F) {
	f.Add("mf-a", "Bearer mf-b", "x", "key=mf-c", "gzip, br")
	f.Add("", "bearer  ", "", "a&key&%6bey=1", "*")
	f.Fuzz(func(t *testing.T, a, b, c, query, encodings string) {
		r, err := http.NewRequest("POST", "http://x/", nil)
		if err != nil {
			t.Fatal(err)
		}
		r.URL.RawQuery = query
		r.Header = http.Header{"X-Api-Key": {a}, "Authorization": {b}, "X-Goog-Api-Key": {c}, "Accept-Encoding": {encodings}, "Connection": {a}}
		token := credential(r)
		if strings.HasPrefix(a, tokenPrefix) && token != strings.TrimSpace(a) {
			t.Errorf("credential = %q, want %q", token, a)
		}
		out := cleanHeader(r.Header)
		for _, name := range []string{"X-Api-Key", "Authorization", "X-Goog-Api-Key", "Connection"} {
			if out[name] != nil {
				t.Errorf("%s left: %q", name, out[name])
			}
		}
		if kept := strings.ToLower(out.Get("Accept-Encoding")); strings.Contains(kept, "br") && !strings.Contains(kept, ";") {
			t.Errorf("Accept-Encoding = %q", kept)
		}
	})
}

func FuzzMask(f *testing.F) {
	f.Add([]byte("x"+realKey+"y"), 7, 20)
	f.Add([]byte(realKey+realKey), 44, 45)
	f.Add([]byte(strings.Repeat("sk-real-", 20)+realKey), 1, 150)
	f.Fuzz(func(t *testing.T, text []byte, i, j int) {
		whole := string(text)
		m := masks{{key: []byte(realKey)}}
		i = min(max(i, 0), len(text))
		j = min(max(j, i), len(text))
		for _, p := range [][]byte{text[:i], text[i:j], text[j:]} {
			m.hide(p)
		}
		if len(text) != len(whole) || strings.Contains(string(text), realKey) {
			t.Errorf("masked = %q", text)
		}
		if !strings.Contains(whole, realKey[:leastKey]) && string(text) != whole {
			t.Errorf("changed %q to %q", whole, text)
		}
	})
}

// FuzzRequest sends bytes to the gateway as an agent may.
func FuzzRequest(f *testing.F) {
	answer := "HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
	up := raw(f, func(c net.Conn, r *http.Request, in *bufio.Reader) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(c, answer)
	})
	w := newWorld(f, up, func(o *Options) { o.Stall, o.MaxBody = 300*time.Millisecond, 1<<16 })
	f.Add([]byte("POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nX-Api-Key: " + runToken + "\r\nContent-Length: 2\r\n\r\n{}"))
	f.Add([]byte("POST /hooks/claude HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + runToken + "\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n"))
	f.Add([]byte("GET http://a/ HTTP/1.0\r\n\r\n"))
	f.Fuzz(func(t *testing.T, request []byte) {
		c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.Write(request)
		c.(*net.TCPConn).CloseWrite()
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.Copy(io.Discard, c); err != nil && isTimeout(err) {
			t.Errorf("no end of the answer to %q", request)
		}
		if strings.Contains(w.log.String(), "panic") {
			t.Error(w.log)
		}
	})
}
