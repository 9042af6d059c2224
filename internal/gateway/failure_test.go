package gateway

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

var errKnob = errors.New("disk full")

func TestNothingPassesThatCannotBeRecorded(t *testing.T) {
	for name, break_ := range map[string]func(*world){
		"begin":   func(w *world) { w.runs.failBegin = errKnob },
		"request": func(w *world) { w.recorder.fail = func(mayfly.Content) error { return errKnob } },
		"panic":   func(w *world) { w.recorder.fail = func(mayfly.Content) error { panic("defect") } },
	} {
		t.Run(name, func(t *testing.T) {
			left := make(chan struct{})
			up := raw(t, func(c net.Conn, r *http.Request, in *bufio.Reader) {
				io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n")
				in.WriteTo(io.Discard) // until the gateway closes
				close(left)
			})
			w := newWorld(t, up, nil)
			break_(w)
			resp := w.post("/anthropic/v1/messages", question)
			if got := read(t, resp); resp.StatusCode != 503 || !strings.Contains(got, `"type":"error"`) || strings.Contains(got, "secret") || strings.Contains(got, "disk") {
				t.Errorf("answer = %d %s", resp.StatusCode, got)
			}
			<-left
			if !strings.Contains(w.log.String(), "cannot be recorded") {
				t.Error("the log does not say so")
			}
		})
	}
}

func TestLockedRunsSendNothingThatIsRefused(t *testing.T) {
	url, up := newEcho(t)
	w := newWorld(t, url, nil)
	w.runs.admitted[runToken] = Admission{Environment: "env-1", Run: "run-1", Locked: true}
	w.runs.failBegin = mayfly.Errorf(mayfly.Forbidden, "the run is locked to another model")
	resp := w.post("/anthropic/v1/messages", question)
	if got := read(t, resp); resp.StatusCode != 403 || !strings.Contains(got, "locked") {
		t.Errorf("answer = %d %s", resp.StatusCode, got)
	}
	w.runs.failBegin = nil
	if resp = w.post("/anthropic/v1/messages", question); resp.StatusCode != 200 || len(up.requests) != 1 {
		t.Errorf("answer = %d after %d requests, want the second one alone", resp.StatusCode, len(up.requests))
	}
	read(t, resp)
}

func TestNoByteReachesTheAgentBeforeTheStartIsSaved(t *testing.T) {
	sent := make(chan struct{})
	up := raw(t, func(c net.Conn, r *http.Request, _ *bufio.Reader) {
		chunks(c, 2*time.Millisecond, "one", "two", "three")
		close(sent)
	})
	w := newWorld(t, up, nil)
	hold := make(chan struct{})
	w.runs.beginHold = hold
	headers := make(chan *chunkReader)
	go func() { headers <- w.rawPost("/anthropic/v1/messages", question) }()
	<-sent
	select {
	case in := <-headers:
		t.Fatalf("header = %q", in.head)
	case <-time.After(50 * time.Millisecond):
	}
	close(hold)
	in := <-headers
	for _, want := range []string{"one", "two", "three", ""} {
		if got, err := in.next(); got != want || err != nil {
			t.Errorf("chunk = %q (%v), want %q", got, err, want)
		}
	}
	if answer := w.content(w.exchanges(1)[0].Answer); answer.Chunks[2].After > 50*time.Millisecond {
		t.Errorf("chunks = %+v: not the times of their arrival", answer.Chunks)
	}
}

func TestAgentSeesThatItsAnswerWasNotRecorded(t *testing.T) {
	for name, break_ := range map[string]func(*world){
		"end": func(w *world) { w.runs.failEnd = errKnob },
		"answer": func(w *world) {
			w.recorder.fail = func(c mayfly.Content) error {
				if c.Chunks != nil {
					return errKnob
				}
				return nil
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			up := raw(t, func(c net.Conn, r *http.Request, _ *bufio.Reader) { chunks(c, 0, "text") })
			w := newWorld(t, up, nil)
			break_(w)
			resp := w.post("/openai/v1/responses", `{"input":[]}`)
			if b, err := io.ReadAll(resp.Body); err == nil || string(b) != "text" {
				t.Errorf("body = %q (%v), want it to be cut", b, err)
			}
			resp.Body.Close()
		})
	}
}

func TestUpstreamDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	w := newWorld(t, "http://"+l.Addr().String(), nil)
	for _, path := range []string{"/anthropic/v1/messages", "/openai/v1/responses", "/gemini/v1beta/models/m:generateContent"} {
		resp := w.post(path, `{"messages":[],"input":[],"contents":[]}`)
		if got := read(t, resp); resp.StatusCode != 502 || !strings.Contains(got, "connection refused") || strings.Contains(got, "127.0.0.1") {
			t.Errorf("answer = %d %s", resp.StatusCode, got)
		}
	}
	for _, x := range w.exchanges(3) {
		if x.Status != 502 || !strings.HasPrefix(x.Error, noAnswer) || !strings.Contains(string(w.content(x.Answer).Body), "refused") {
			t.Errorf("exchange = %+v", x)
		}
	}
}

func TestUpstreamCutsTheAnswerOff(t *testing.T) {
	for name, start := range map[string]string{
		"chunked": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ntext\r\n",
		"length":  "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\ntext",
		"within":  "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n40\r\ntext",
	} {
		t.Run(name, func(t *testing.T) {
			up := raw(t, func(c net.Conn, r *http.Request, _ *bufio.Reader) { io.WriteString(c, start) })
			w := newWorld(t, up, nil)
			resp := w.post("/anthropic/v1/messages", question)
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 200 || string(b) != "text" || !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("answer = %d %q %v", resp.StatusCode, b, err)
			}
			x := w.exchanges(1)[0]
			if !strings.HasPrefix(x.Error, cutByUpstream) || string(w.content(x.Answer).Body) != "text" || x.Status != 200 {
				t.Errorf("exchange = %+v", x)
			}
		})
	}
}

func TestAgentLeavesEarly(t *testing.T) {
	for name, start := range map[string]string{"before": "", "within": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ntext\r\n"} {
		t.Run(name, func(t *testing.T) {
			asked, left := make(chan struct{}), make(chan struct{})
			up := raw(t, func(c net.Conn, r *http.Request, in *bufio.Reader) {
				io.WriteString(c, start)
				close(asked)
				in.WriteTo(io.Discard)
				close(left)
			})
			w := newWorld(t, up, nil)
			c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprintf(c, "POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\nContent-Length: %d\r\n\r\n%s", runToken, len(question), question)
			<-asked
			if start != "" {
				c.Read(make([]byte, 1))
			}
			c.Close()
			<-left
			x := w.exchanges(1)[0]
			if !strings.HasPrefix(x.Error, cutByAgent) {
				t.Errorf("exchange = %+v", x)
			}
			if start != "" && string(w.content(x.Answer).Body) != "text" {
				t.Errorf("recorded = %q", w.content(x.Answer).Body)
			}
		})
	}
}

func TestAgentThatHasSeenTheEndCutsNothing(t *testing.T) {
	left := make(chan struct{})
	up := raw(t, func(c net.Conn, r *http.Request, in *bufio.Reader) {
		const end = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"m\",\"usage\":{\"input_tokens\":5}}}\n\n" +
			"event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(end), end)
		in.WriteTo(io.Discard) // the end of the framing does not come
		close(left)
	})
	w := newWorld(t, up, nil)
	in := w.rawPost("/anthropic/v1/messages", question)
	if got, err := in.next(); err != nil || !strings.Contains(got, "message_stop") {
		t.Fatalf("chunk = %q %v", got, err)
	}
	in.c.Close()
	<-left
	if x := w.exchanges(1)[0]; x.Error != "" || x.Status != 200 || x.Usage.Input != 5 {
		t.Errorf("exchange = %+v", x)
	}
}

func TestStalledAgentIsCut(t *testing.T) {
	up := raw(t, func(c net.Conn, r *http.Request, _ *bufio.Reader) {
		io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
		for part := strings.Repeat("x", 4000); ; {
			if _, err := fmt.Fprintf(c, "%x\r\n%s\r\n", len(part), part); err != nil {
				return
			}
		}
	})
	w := newWorld(t, up, func(o *Options) { o.Stall, o.MaxAnswer = 100*time.Millisecond, 1<<20 })
	in := w.rawPost("/anthropic/v1/messages", question)
	defer in.c.Close()
	x := w.exchanges(1)[0] // nothing is read
	if x.Error != cutByAgent+"it stopped reading" {
		t.Errorf("exchange = %+v", x)
	}
	if recorded := len(w.content(x.Answer).Body); recorded > 1<<20 || recorded < 1<<19 {
		t.Errorf("recorded = %d bytes", recorded)
	}
}

func TestSilenceLongerThanStallPasses(t *testing.T) {
	up := raw(t, func(c net.Conn, r *http.Request, _ *bufio.Reader) {
		chunks(c, 250*time.Millisecond, "event: ping\n\n", "event: ping\n\n", "end")
	})
	w := newWorld(t, up, func(o *Options) { o.Stall, o.Silence = 150*time.Millisecond, 5*time.Second })
	if got := read(t, w.post("/anthropic/v1/messages", question)); got != "event: ping\n\nevent: ping\n\nend" {
		t.Errorf("answer = %q", got)
	}
}

func TestSilentUpstreamTimesOut(t *testing.T) {
	for name, start := range map[string]string{"before": "", "within": "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\ntext\r\n"} {
		t.Run(name, func(t *testing.T) {
			up := raw(t, func(c net.Conn, r *http.Request, in *bufio.Reader) {
				io.WriteString(c, start)
				in.WriteTo(io.Discard)
			})
			w := newWorld(t, up, func(o *Options) { o.Silence = 100 * time.Millisecond })
			resp := w.post("/anthropic/v1/messages", question)
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			x := w.exchanges(1)[0]
			if start == "" && (resp.StatusCode != 504 || err != nil || !strings.HasPrefix(x.Error, noAnswer)) {
				t.Errorf("answer = %d %q %v, exchange %+v", resp.StatusCode, b, err, x)
			}
			if start != "" && (resp.StatusCode != 200 || err == nil || x.Error != cutByUpstream+errSilent.Error()) {
				t.Errorf("answer = %d %q %v, exchange %+v", resp.StatusCode, b, err, x)
			}
		})
	}
}

func zipped(s string) string {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	io.WriteString(z, s)
	z.Close()
	return b.String()
}

func TestEncodedAnswersPassUntouched(t *testing.T) {
	plain := `{"type":"message","model":"m","content":[],"usage":{"input_tokens":7,"output_tokens":3}}`
	accepted := make(chan string, 1)
	up := raw(t, func(c net.Conn, r *http.Request, _ *bufio.Reader) {
		accepted <- r.Header.Get("Accept-Encoding")
		body := zipped(plain)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	})
	w := newWorld(t, up, nil)
	resp := w.post("/anthropic/v1/messages", question, "Accept-Encoding", "gzip, deflate, br;q=0.9")
	if got := read(t, resp); got != zipped(plain) || resp.Header.Get("Content-Encoding") != "gzip" || resp.ContentLength != int64(len(got)) {
		t.Errorf("answer = %q %v", got, resp.Header)
	}
	if got := <-accepted; got != "gzip, deflate" {
		t.Errorf("Accept-Encoding = %q", got)
	}
	if x := w.exchanges(1)[0]; x.Usage.Input != 7 || x.Usage.Output != 3 {
		t.Errorf("usage = %+v", x.Usage)
	}
}

func TestHTTP2Upstream(t *testing.T) {
	taken := make(chan struct{})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("X-Proto", r.Proto)
		for _, part := range []string{"one ", "two ", string(b[:1])} {
			io.WriteString(w, part)
			w.(http.Flusher).Flush()
			<-taken // each passes before there is a next
		}
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	w := newWorld(t, s.URL, func(o *Options) { o.TLS = &tls.Config{RootCAs: pool} })
	in := w.rawPost("/anthropic/v1/messages", question)
	if !strings.Contains(in.head, "HTTP/2.0") {
		t.Errorf("header = %q", in.head)
	}
	for _, want := range []string{"one ", "two ", "{", ""} {
		if got, err := in.next(); got != want || err != nil {
			t.Fatalf("chunk = %q (%v), want %q", got, err, want)
		}
		if want != "" {
			taken <- struct{}{}
		}
	}
	if x := w.exchanges(1)[0]; x.Status != 200 || x.Error != "" {
		t.Errorf("exchange = %+v", x)
	}
}

func TestUntrustedCertificate(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	w := newWorld(t, s.URL, nil)
	resp := w.post("/anthropic/v1/messages", question)
	if got := read(t, resp); resp.StatusCode != 502 || !strings.Contains(got, "certificate is not trusted") {
		t.Errorf("answer = %d %s", resp.StatusCode, got)
	}
}

func TestBodiesThatAreNotWhatTheyShouldBe(t *testing.T) {
	url, up := newEcho(t)
	w := newWorld(t, url, func(o *Options) { o.MaxBody, o.Stall = 1<<20, 200*time.Millisecond })
	large := strings.Repeat("x", 1<<20+1)
	for name, c := range map[string]struct{ request, want string }{
		"announced":    {"Content-Length: 104857600\r\n\r\n", "413 "},
		"asked":        {"Expect: 100-continue\r\nContent-Length: 104857600\r\n\r\n", "413 "},
		"too large":    {fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(large), large), "413 "},
		"chunks":       {fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n", len(large), large), "413 "},
		"short":        {"Content-Length: 20\r\n\r\n{}", "400 "},
		"stalled":      {"Content-Length: 20\r\n\r\n{", "408 "},
		"bad chunks":   {"Transfer-Encoding: chunked\r\n\r\nzz\r\n", "400 "},
		"two lengths":  {"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "400 "},
		"no JSON":      {"Content-Length: 5\r\n\r\n{\"a\":", "400 "},
		"bad encoding": {"Content-Encoding: br\r\nContent-Length: 2\r\n\r\n{}", "400 "},
		"deep":         {fmt.Sprintf("Content-Length: 10000\r\n\r\n%s", strings.Repeat("[", 10000)), "400 "},
	} {
		c1, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			fmt.Fprintf(c1, "POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\n%s", runToken, c.request)
			if name != "stalled" {
				c1.(*net.TCPConn).CloseWrite()
			}
		}()
		line, err := bufio.NewReader(c1).ReadString('\n')
		if !strings.Contains(line, c.want) {
			t.Errorf("%s: %q (%v), want %s", name, line, err, c.want)
		}
		c1.Close()
	}
	if len(up.requests) != 0 {
		t.Errorf("requests upstream = %d", len(up.requests))
	}
	for _, boundary := range w.runs.boundary {
		if boundary {
			t.Error("a refused request got a step")
		}
	}
}

func TestUpstreamErrorsPassAsTheyAre(t *testing.T) {
	for _, status := range []int{301, 307, 400, 401, 404, 429, 500, 529} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			elsewhere, other := newEcho(t)
			up := raw(t, func(c net.Conn, r *http.Request, _ *bufio.Reader) {
				fmt.Fprintf(c, "HTTP/1.1 %d X\r\nLocation: %s/v1/messages\r\nRetry-After: 7\r\nRequest-Id: r1\r\nContent-Length: 5\r\n\r\nerror", status, elsewhere)
			})
			w := newWorld(t, up, nil)
			resp := w.post("/anthropic/v1/messages", question)
			if got := read(t, resp); resp.StatusCode != status || got != "error" || resp.Header.Get("Retry-After") != "7" || resp.Header.Get("Request-Id") != "r1" {
				t.Errorf("answer = %d %q %v", resp.StatusCode, got, resp.Header)
			}
			if x := w.exchanges(1)[0]; x.Status != status || x.Error != "" {
				t.Errorf("exchange = %+v", x)
			}
			if len(other.requests) != 0 {
				t.Error("a redirect was followed")
			}
		})
	}
}

func TestUpstreamCannotGiveTheKeyAway(t *testing.T) {
	message := "bad key " + realKey + "!"
	half := len(message) - 20
	for name, answer := range map[string]string{
		"plain":   fmt.Sprintf("HTTP/1.1 401 X\r\nX-Key: %s\r\nContent-Length: %d\r\n\r\n%s", realKey, len(message), message),
		"success": fmt.Sprintf("HTTP/1.1 200 X\r\nContent-Length: %d\r\n\r\n%s", len(message), message),
		"chunks":  fmt.Sprintf("HTTP/1.1 401 X\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", half, message[:half], len(message)-half, message[half:]),
		"gzip":    fmt.Sprintf("HTTP/1.1 401 X\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%s", len(zipped(message)), zipped(message)),
	} {
		t.Run(name, func(t *testing.T) {
			up := raw(t, func(c net.Conn, r *http.Request, _ *bufio.Reader) {
				first, _, _ := strings.Cut(answer, message[half:])
				io.WriteString(c, first)
				time.Sleep(20 * time.Millisecond)
				io.WriteString(c, answer[len(first):])
			})
			w := newWorld(t, up, nil)
			resp := w.post("/anthropic/v1/messages", question)
			got := fmt.Sprint(resp.Header) + read(t, resp)
			if strings.Contains(got, realKey[:len(realKey)/2]) || strings.Contains(got, realKey[len(realKey)/2:]) {
				t.Errorf("answer = %s", got)
			}
			if name != "gzip" && !strings.Contains(got, "bad key *****") {
				t.Errorf("answer = %s", got)
			}
		})
	}
}

func TestAnswerWithoutEndIsRecordedInPart(t *testing.T) {
	const many = 3000
	part := strings.Repeat("z", 100)
	up := raw(t, func(c net.Conn, r *http.Request, _ *bufio.Reader) {
		parts := make([]string, many)
		for i := range parts {
			parts[i] = part
		}
		chunks(c, 0, parts...)
	})
	w := newWorld(t, up, func(o *Options) { o.MaxAnswer = 64 << 10 })
	if got := read(t, w.post("/anthropic/v1/messages", question)); len(got) != many*len(part) || strings.Trim(got, "z") != "" {
		t.Errorf("answer has %d bytes", len(got))
	}
	x := w.exchanges(1)[0]
	recorded := w.content(x.Answer)
	if x.Error != fmt.Sprintf(truncated, 64<<10) || x.AnswerSize != many*int64(len(part)) || len(recorded.Body) > 64<<10 || len(recorded.Body) < 60<<10 {
		t.Errorf("exchange = %+v, %d bytes", x, len(recorded.Body))
	}
}

func TestOpenAndClose(t *testing.T) {
	asked := make(chan struct{}, 2)
	up := raw(t, func(c net.Conn, r *http.Request, in *bufio.Reader) {
		asked <- struct{}{}
		in.WriteTo(io.Discard)
	})
	w := newWorld(t, up, nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.g.Open("env-1", l); mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("second Open = %v", err)
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the refused listener is open: %v", err)
	}
	go func() {
		if resp, err := w.try("POST", "/anthropic/v1/messages", strings.NewReader(question)); err == nil {
			resp.Body.Close()
		}
	}()
	<-asked
	if err := w.g.Close("env-1"); err != nil {
		t.Error(err)
	}
	if n := len(w.runs.ended); n != 1 {
		t.Errorf("exchanges ended when Close returned = %d", n)
	}
	if err := w.g.Close("env-1"); err != nil {
		t.Errorf("second Close = %v", err)
	}
	w.open("env-1") // again
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if err := w.g.Shutdown(ctx); err != nil {
		t.Error(err)
	}
	l, err = net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := w.g.Open("env-3", l); mayfly.KindOf(err) != mayfly.Unavailable {
		t.Errorf("Open after Shutdown = %v", err)
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	url, _ := newEcho(t)
	w := newWorld(t, url, func(o *Options) { o.MaxConns = 2 })
	var idle []net.Conn
	for range 2 {
		c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		idle = append(idle, c)
	}
	done := make(chan int)
	go func() {
		resp := w.post("/anthropic/v1/messages", question)
		resp.Body.Close()
		done <- resp.StatusCode
	}()
	select {
	case <-done:
		t.Error("a third connection was served")
	case <-time.After(50 * time.Millisecond):
	}
	idle[0].Close()
	if got := <-done; got != 200 {
		t.Errorf("status = %d", got)
	}
	idle[1].Close()
}
