package api

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/api/apitest"
)

var quiet = slog.New(slog.DiscardHandler)

// request sends one and returns status and body.
func request(t *testing.T, h http.Handler, method, target, content string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequest(method, target, strings.NewReader(content)))
	return w.Code, w.Body.String()
}

func TestBadRequestsAreRefusedAndChangeNothing(t *testing.T) {
	digest := apitest.Digest("x")
	for name, c := range map[string]struct{ method, target, content, want string }{
		"unknown path":        {"GET", "/v1/nothing", "", "no such resource"},
		"other version":       {"GET", "/v2/info", "", "no such resource"},
		"wrong method":        {"PATCH", "/v1/environments/e", "", "it answers to GET, DELETE"},
		"unknown parameter":   {"GET", "/v1/environments?lable=a=b", "", `unknown query parameter \"lable\"`},
		"parameter twice":     {"GET", "/v1/events?after=1\u0026after=2", "", "occurs 2 times"},
		"bad boolean":         {"GET", "/v1/environments?deleted=perhaps", "", `bad value \"perhaps\"`},
		"bad label":           {"GET", "/v1/environments?label=x", "", "bad label"},
		"unknown field":       {"POST", "/v1/runs", `{"comand":["x"]}`, "unknown field"},
		"no body":             {"POST", "/v1/environments", "", "missing"},
		"ttl of zero":         {"POST", "/v1/environments/e/extend", `{"ttl":0}`, "bad time to live"},
		"ttl of a year":       {"POST", "/v1/environments/e/extend", `{"ttl":31536000000000000}`, "bad time to live"},
		"diff format":         {"GET", "/v1/environments/e/diff?format=xml", "", "unknown diff format"},
		"event number":        {"GET", "/v1/events?after=-1", "", "bad event number"},
		"stream":              {"GET", "/v1/runs/r/logs?stream=stdin", "", "unknown stream"},
		"no upgrade":          {"GET", "/v1/runs/r/attach", "", "does not upgrade"},
		"bad digest":          {"PUT", "/v1/images/sha256:123", "", "bad digest"},
		"digest traversal":    {"PUT", "/v1/images/..%2f..%2fetc", "", "bad digest"},
		"template not a form": {"PUT", "/v1/templates/" + digest, "", "bad template upload"},
	} {
		t.Run(name, func(t *testing.T) {
			svc := apitest.New()
			code, body := request(t, New(svc, Options{Log: quiet}), c.method, c.target, c.content)
			if code < 400 || code >= 500 || !strings.Contains(body, c.want) {
				t.Errorf("answer = %d %s, want 4xx with %q", code, body, c.want)
			}
			if calls := svc.Calls(); len(calls) != 0 {
				t.Errorf("the service saw %v", calls)
			}
		})
	}
}

func TestTemplateFormIsReadStrictly(t *testing.T) {
	digest := apitest.Digest("x")
	part := func(name, content string) string {
		return "--b\r\nContent-Disposition: form-data; name=\"" + name + "\"\r\n\r\n" + content + "\r\n"
	}
	for name, c := range map[string]struct{ content, want string }{
		"order":        {part("workspace", "") + part("lock", "{}") + "--b--\r\n", `part \"workspace\" in place of \"lock\"`},
		"other digest": {part("lock", `{"template":"sha256:0"}`) + part("workspace", "") + "--b--\r\n", "the lock is of template"},
		"no workspace": {part("lock", `{"template":"`+digest+`"}`) + "--b--\r\n", `part \"workspace\"`},
		"huge lock":    {part("lock", `{"name":"`+strings.Repeat("a", 2<<20)+`"}`) + "--b--\r\n", "over 1048576 bytes"},
		"bad lock":     {part("lock", `{"nmae":""}`) + "--b--\r\n", "unknown field"},
	} {
		t.Run(name, func(t *testing.T) {
			svc := apitest.New()
			r := httptest.NewRequest("PUT", "/v1/templates/"+digest, strings.NewReader(c.content))
			r.Header.Set("Content-Type", "multipart/form-data; boundary=b")
			w := httptest.NewRecorder()
			New(svc, Options{Log: quiet}).ServeHTTP(w, r)
			if w.Code != 400 || !strings.Contains(w.Body.String(), c.want) {
				t.Errorf("answer = %d %s, want 400 with %q", w.Code, w.Body, c.want)
			}
			if calls := svc.Calls(); len(calls) != 0 {
				t.Errorf("the service saw %v", calls)
			}
		})
	}
}

func TestEmptyListsAreLists(t *testing.T) {
	h := New(apitest.New(), Options{Log: quiet})
	for _, target := range []string{"/v1/environments", "/v1/runs", "/v1/templates", "/v1/events"} {
		if code, body := request(t, h, "GET", target, ""); code != 200 || strings.TrimSpace(body) != "[]" {
			t.Errorf("%s = %d %s, want []", target, code, body)
		}
	}
}

func TestDocumentIsServed(t *testing.T) {
	h := New(apitest.New(), Options{Log: quiet})
	if code, body := request(t, h, "GET", "/v1/openapi.yaml", ""); code != 200 || body != string(openapi) {
		t.Errorf("answer = %d, %d bytes, want the document", code, len(body))
	}
}

func TestPanicIsAnInternalErrorAndTheServerLives(t *testing.T) {
	var log strings.Builder
	h := New(nil, Options{Log: slog.New(slog.NewTextHandler(&log, nil))})
	code, body := request(t, h, "GET", "/v1/info", "")
	var e mayfly.Error
	if err := json.Unmarshal([]byte(body), &e); err != nil || code != 500 || e.Message != errInternal {
		t.Errorf("answer = %d %s, want an internal error", code, body)
	}
	if !strings.Contains(log.String(), e.ID) || !strings.Contains(log.String(), "nil pointer") {
		t.Errorf("log = %s, want the id and the panic", &log)
	}
	if code, _ := request(t, h, "GET", "/v1/health", ""); code != 200 {
		t.Errorf("health after a panic = %d, want 200", code)
	}
}

func TestRequestIDIsTheClientsWhenItIsPlain(t *testing.T) {
	h := New(apitest.New(), Options{Log: quiet})
	for id, keep := range map[string]bool{"abc-1.2_X": true, "": false, "a b": false, "a\"b": false, strings.Repeat("x", 65): false} {
		r := httptest.NewRequest("GET", "/v1/health", nil)
		r.Header.Set("X-Request-Id", id)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if got := w.Header().Get("X-Request-Id"); (got == id) != keep || got == "" {
			t.Errorf("id for %q = %q", id, got)
		}
	}
}

func finishedRun(t *testing.T, svc *apitest.Service, command ...string) mayfly.Run {
	t.Helper()
	r, err := svc.StartRun(t.Context(), mayfly.StartRun{
		Create: &mayfly.CreateEnvironment{Template: svc.AddTemplate("t", nil)}, Command: command,
	})
	if err != nil {
		t.Fatal(err)
	}
	if r, err = svc.WaitRun(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	return r
}

func TestLogsAreTheBytesOfTheStreams(t *testing.T) {
	svc := apitest.New()
	h := New(svc, Options{Log: quiet})
	r := finishedRun(t, svc, "complain", "oh \x1b[31m no")
	for query, want := range map[string]string{"": "oh \x1b[31m no\n", "?stream=stderr&follow=true": "oh \x1b[31m no\n", "?stream=stdout": ""} {
		if code, body := request(t, h, "GET", "/v1/runs/"+r.ID+"/logs"+query, ""); code != 200 || body != want {
			t.Errorf("logs%s = %d %q, want %q", query, code, body, want)
		}
	}
}

func TestEventStreamHasIDsAndKeepAlive(t *testing.T) {
	svc := apitest.New()
	finishedRun(t, svc, "true")
	ts := httptest.NewServer(New(svc, Options{Log: quiet, KeepAlive: 5 * time.Millisecond}))
	defer ts.Close()
	r, err := http.NewRequestWithContext(t.Context(), "GET", ts.URL+"/v1/events?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Last-Event-ID", "2")
	resp, err := ts.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if ct := resp.Header.Get("Content-Type"); ct != eventStream {
		t.Errorf("content type = %q, want %q", ct, eventStream)
	}
	lines := bufio.NewScanner(resp.Body)
	var ids []string
	for keepAlives := 0; keepAlives < 3 && lines.Scan(); {
		if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
			ids = append(ids, id)
		}
		if lines.Text() == ": keep-alive" {
			keepAlives++
		}
	}
	if len(ids) == 0 || ids[0] != "3" {
		t.Errorf("ids = %v, want 3 and on", ids)
	}
}

func TestEventsOfAnUnknownEnvironmentAreNotFound(t *testing.T) {
	h := New(apitest.New(), Options{Log: quiet})
	for _, query := range []string{"", "&follow=true"} {
		if code, body := request(t, h, "GET", "/v1/events?environment=none"+query, ""); code != 404 {
			t.Errorf("events%s = %d %s, want 404", query, code, body)
		}
	}
}

func TestQuietSinceCountsRequestsInFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		svc := apitest.New()
		svc.Programs["nap"] = func(*apitest.Process) int { time.Sleep(time.Minute); return 0 }
		h := New(svc, Options{Log: quiet})
		start := time.Now()
		r, err := svc.StartRun(t.Context(), mayfly.StartRun{
			Create: &mayfly.CreateEnvironment{Template: svc.AddTemplate("t", nil)}, Command: []string{"nap"},
		})
		if err != nil {
			t.Fatal(err)
		}
		done := make(chan struct{})
		go func() {
			defer close(done)
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest("GET", "/v1/runs/"+r.ID+"/wait", nil))
			io.Copy(io.Discard, w.Body)
		}()
		time.Sleep(time.Second)
		if got := h.QuietSince(); !got.IsZero() {
			t.Errorf("QuietSince during a request = %v, want zero", got)
		}
		<-done
		if got, want := h.QuietSince(), start.Add(time.Minute); !got.Equal(want) {
			t.Errorf("QuietSince = %v, want %v", got, want)
		}
	})
}

// net/http panics when a full-duplex answer leaves the body unread and the
// connection is used again.
func TestUploadThatIsNotReadEndsItsConnection(t *testing.T) {
	svc := apitest.New()
	digest := svc.AddTemplate("t", nil)
	var log lockedLog
	ts := httptest.NewUnstartedServer(New(svc, Options{Log: quiet}))
	ts.Config.ErrorLog = slog.NewLogLogger(slog.NewTextHandler(&log, nil), slog.LevelWarn)
	ts.Start()
	defer ts.Close()
	conn, err := net.Dial("tcp", ts.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	body := "--b\r\nContent-Disposition: form-data; name=\"lock\"\r\n\r\n{\"template\":\"" + digest + "\"}" +
		"\r\n--b\r\nContent-Disposition: form-data; name=\"workspace\"\r\n\r\n" + strings.Repeat("x", 200_000) + "\r\n--b--\r\n"
	fmt.Fprintf(conn, "PUT /v1/templates/%s HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: %d\r\n\r\n%s", digest, len(body), body)
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	answer, err := io.ReadAll(conn)
	if err != nil || !strings.Contains(string(answer), `"template":{`) {
		t.Errorf("answer = %q, %v, want the template and the end", answer, err)
	}
	if log := log.String(); log != "" {
		t.Errorf("log = %s, want nothing", log)
	}
}

type lockedLog struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
