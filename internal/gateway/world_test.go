package gateway

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

const (
	realKey  = "sk-real-0123456789abcdefghijklmnopqrstuvwxyz"
	runToken = "mf-run-1-00000000000000000000000000000000"
)

// runs is a Runs in memory, with knobs for failure.
type runs struct {
	mu       sync.Mutex
	admitted map[string]Admission // by token
	refused  []string             // tokens
	begun    []mayfly.Exchange
	boundary []bool
	repeats  []int
	ended    []mayfly.Exchange
	reports  []string
	diverged []mayfly.Divergence
	stopped  []bool

	beginHold <-chan struct{}
	failBegin error
	failEnd   error
	failRest  error
}

func (r *runs) Admit(ctx context.Context, env, token string) (Admission, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	a, ok := r.admitted[token]
	if !ok || a.Environment != env {
		r.refused = append(r.refused, token)
		return Admission{}, mayfly.Errorf(mayfly.Forbidden, "no such token")
	}
	return a, nil
}

func (r *runs) Begin(ctx context.Context, x *mayfly.Exchange, boundary bool, retry int) error {
	if r.beginHold != nil {
		<-r.beginHold
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failBegin != nil {
		return r.failBegin
	}
	x.Number = len(r.begun) + 1
	if boundary {
		x.Step = x.Number
	}
	r.begun = append(r.begun, *x)
	r.boundary = append(r.boundary, boundary)
	r.repeats = append(r.repeats, retry)
	return nil
}

func (r *runs) End(ctx context.Context, x mayfly.Exchange) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.failEnd != nil {
		return r.failEnd
	}
	r.ended = append(r.ended, x)
	return nil
}

func (r *runs) Report(ctx context.Context, env, run, kind, content string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reports = append(r.reports, kind+" "+content)
	return r.failRest
}

func (r *runs) Diverged(ctx context.Context, run string, d mayfly.Divergence, stop bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.diverged = append(r.diverged, d)
	r.stopped = append(r.stopped, stop)
	return r.failRest
}

// recorder is a Recorder in memory.
type recorder struct {
	mu       sync.Mutex
	contents map[string]mayfly.Content
	fail     func(mayfly.Content) error
}

func (r *recorder) WriteContent(ctx context.Context, run string, c mayfly.Content) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		if err := r.fail(c); err != nil {
			return "", err
		}
	}
	b, err := json.Marshal(c)
	if err != nil {
		return "", err
	}
	digest := fmt.Sprintf("sha256:%x", sha256.Sum256(b))
	c.Body = bytes.Clone(c.Body)
	r.contents[digest] = c
	return digest, nil
}

// player serves exchanges by their number.
type player struct{ answers map[int]Played }

func (p *player) Answer(ctx context.Context, a Admission, x mayfly.Exchange, request mayfly.Content) (Played, error) {
	played, ok := p.answers[x.Number]
	if !ok {
		return Played{}, mayfly.Errorf(mayfly.NotFound, "no exchange %d", x.Number)
	}
	return played, nil
}

// world is a gateway with one environment, "env-1", and one run in it.
type world struct {
	t        testing.TB
	g        *Gateway
	url      string // of the gateway
	runs     *runs
	recorder *recorder
	log      *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// newWorld makes a world whose providers all are at upstream. At the end it
// checks that nothing is left running.
func newWorld(t testing.TB, upstream string, adjust func(*Options)) *world {
	t.Helper()
	if _, fuzzing := t.(*testing.F); !fuzzing { // which has goroutines of its own
		before := runtime.NumGoroutine()
		t.Cleanup(func() { settle(t, before) })
	}
	w := &world{t: t, log: &lockedBuffer{}, recorder: &recorder{contents: map[string]mayfly.Content{}}}
	w.runs = &runs{admitted: map[string]Admission{runToken: {Environment: "env-1", Run: "run-1"}}}
	t.Setenv("GATEWAY_TEST_KEY", realKey)
	o := Options{
		Runs: w.runs, Recorder: w.recorder, Providers: providersAt(t, upstream, "key_env: GATEWAY_TEST_KEY"),
		Log: slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	if adjust != nil {
		adjust(&o)
	}
	w.g = New(o)
	w.url = "http://" + w.open("env-1")
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := w.g.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if strings.Contains(w.log.String(), realKey) {
			t.Errorf("the log has the key: %s", w.log)
		}
		for _, c := range w.recorder.contents {
			if b, _ := json.Marshal(c); bytes.Contains(b, []byte(realKey)) || bytes.Contains(c.Body, []byte(realKey)) {
				t.Errorf("the recording has the key: %s", b)
			}
		}
	})
	return w
}

func (w *world) open(env string) (address string) {
	w.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.g.Open(env, l); err != nil {
		w.t.Fatal(err)
	}
	return l.Addr().String()
}

// settle waits for goroutines to end.
func settle(t testing.TB, before int) {
	t.Helper()
	http.DefaultClient.CloseIdleConnections()
	for end := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > before; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			stacks := make([]byte, 1<<20)
			t.Errorf("goroutines = %d, want %d:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
			return
		}
	}
}

// providersAt writes a providers file in which every provider is at url.
func providersAt(t testing.TB, url, key string) *Providers {
	t.Helper()
	var b strings.Builder
	b.WriteString("providers:\n")
	for _, name := range []string{"anthropic", "openai", "gemini", "local"} {
		fmt.Fprintf(&b, "  - name: %s\n    url: %s\n", name, url)
		if key != "" {
			fmt.Fprintf(&b, "    %s\n", key)
		}
	}
	path := filepath.Join(t.TempDir(), "providers.yaml")
	if err := os.WriteFile(path, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	p, err := OpenProviders(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

const question = `{"model":"m-1","max_tokens":1000,"temperature":0.5,"stream":true,"system":"You help.",` +
	`"tools":[{"name":"Bash","input_schema":{"type":"object"}}],"messages":[{"role":"user","content":"hello"}]}`

// post sends a question with the run's token, as Claude Code does.
func (w *world) post(path, body string, header ...string) *http.Response {
	w.t.Helper()
	resp, err := w.try(http.MethodPost, path, strings.NewReader(body), header...)
	if err != nil {
		w.t.Fatal(err)
	}
	return resp
}

func (w *world) try(method, path string, body io.Reader, header ...string) (*http.Response, error) {
	w.t.Helper()
	r, err := http.NewRequest(method, w.url+path, body)
	if err != nil {
		w.t.Fatal(err)
	}
	r.Header.Set("X-Api-Key", runToken)
	for i := 0; i+1 < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	client := &http.Client{
		Transport:     &http.Transport{DisableCompression: true, DisableKeepAlives: true},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return client.Do(r)
}

func read(t testing.TB, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("read body: %v after %q", err, b)
	}
	return string(b)
}

// exchanges waits until n exchanges have ended.
func (w *world) exchanges(n int) []mayfly.Exchange {
	w.t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		w.runs.mu.Lock()
		ended := append([]mayfly.Exchange{}, w.runs.ended...)
		w.runs.mu.Unlock()
		if len(ended) >= n {
			return ended
		}
		if time.Now().After(end) {
			w.t.Fatalf("exchanges ended = %d, want %d", len(ended), n)
		}
	}
}

func (w *world) content(digest string) mayfly.Content {
	w.t.Helper()
	w.recorder.mu.Lock()
	defer w.recorder.mu.Unlock()
	c, ok := w.recorder.contents[digest]
	if !ok {
		w.t.Fatalf("no content %q", digest)
	}
	return c
}

// raw is an upstream that is written byte by byte: script answers each
// connection's requests as it likes, and the connection ends when it returns.
func raw(t testing.TB, script func(c net.Conn, r *http.Request, in *bufio.Reader)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				in := bufio.NewReader(c)
				r, err := http.ReadRequest(in)
				if err != nil {
					return
				}
				script(c, r, in)
			})
		}
	})
	return "http://" + l.Addr().String()
}

// chunks writes an answer in HTTP chunks, with a pause after each.
func chunks(c net.Conn, pause time.Duration, parts ...string) {
	io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
	for _, p := range parts {
		fmt.Fprintf(c, "%x\r\n%s\r\n", len(p), p)
		time.Sleep(pause)
	}
	io.WriteString(c, "0\r\n\r\n")
}

// chunkReader reads an answer's HTTP chunks without joining any.
type chunkReader struct {
	c    net.Conn
	in   *bufio.Reader
	head string
}

// rawPost sends a question and reads the answer's header.
func (w *world) rawPost(path, body string) *chunkReader {
	w.t.Helper()
	c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { c.Close() })
	fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\nContent-Length: %d\r\n\r\n%s", path, runToken, len(body), body)
	r := &chunkReader{c: c, in: bufio.NewReader(c)}
	for {
		line, err := r.in.ReadString('\n')
		if err != nil {
			w.t.Fatalf("read header: %v after %q", err, r.head)
		}
		if r.head += line; line == "\r\n" {
			return r
		}
	}
}

// next is the next chunk; "" is the last.
func (r *chunkReader) next() (string, error) {
	var size int
	if _, err := fmt.Fscanf(r.in, "%x\r\n", &size); err != nil {
		return "", err
	}
	b := make([]byte, size+2)
	if _, err := io.ReadFull(r.in, b); err != nil {
		return "", err
	}
	return string(b[:size]), nil
}
