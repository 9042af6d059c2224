package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// tapeOf is a recorded answer of these chunks, a millisecond apart.
func tapeOf(gap time.Duration, parts ...string) Played {
	start := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	p := Played{Exchange: mayfly.Exchange{Status: 200, Start: start}}
	p.Content.Header = http.Header{"Content-Type": {"text/event-stream"}, "Transfer-Encoding": {"chunked"}, "Request-Id": {"r1"}}
	for i, part := range parts {
		p.Content.Body = append(p.Content.Body, part...)
		p.Content.Chunks = append(p.Content.Chunks, mayfly.Chunk{Size: len(part), After: time.Duration(i+1) * gap})
	}
	p.Exchange.End = start.Add(time.Duration(len(parts)) * gap)
	return p
}

// newReplay is a world in which run-1 replays answers, numbered from 1.
func newReplay(t *testing.T, upstream string, r mayfly.Replay, answers ...Played) *world {
	p := &player{answers: map[int]Played{}}
	for i, a := range answers {
		p.answers[i+1] = a
	}
	w := newWorld(t, upstream, func(o *Options) { o.Player = p })
	r.Run = "run-0"
	w.runs.admitted[runToken] = Admission{Environment: "env-1", Run: "run-1", Replay: &r}
	return w
}

func TestReplayServesRecordedChunks(t *testing.T) {
	up, got := newEcho(t)
	parts := []string{"data: ä", "\xe2\x82", "\xac\n\n", strings.Repeat("z", 70000), "end"}
	w := newReplay(t, up, mayfly.Replay{}, tapeOf(time.Hour, parts...))
	in := w.rawPost("/anthropic/v1/messages", question)
	for i, want := range append(parts, "") {
		if got, err := in.next(); got != want || err != nil {
			t.Fatalf("chunk %d = %q (%v), want %q", i, got, err, want)
		}
	}
	if !strings.Contains(in.head, "Request-Id: r1") || !strings.Contains(in.head, "200 OK") {
		t.Errorf("header = %q", in.head)
	}
	x := w.exchanges(1)[0]
	if !x.Replayed || x.Status != 200 || x.Error != "" || x.Divergence != nil || x.Step != 1 {
		t.Errorf("exchange = %+v", x)
	}
	if recorded := w.content(x.Answer); string(recorded.Body) != strings.Join(parts, "") || len(recorded.Chunks) != len(parts) {
		t.Errorf("recorded = %d bytes, %d chunks", len(recorded.Body), len(recorded.Chunks))
	}
	if len(got.requests) != 0 {
		t.Error("the upstream was asked")
	}
}

func TestReplayKeepsTimesWhenAsked(t *testing.T) {
	up, _ := newEcho(t)
	w := newReplay(t, up, mayfly.Replay{Realtime: true}, tapeOf(40*time.Millisecond, "a", "b", "c"))
	start := time.Now()
	in := w.rawPost("/anthropic/v1/messages", question)
	for i := 1; i <= 3; i++ {
		in.next()
		if took := time.Since(start); took < time.Duration(i)*40*time.Millisecond {
			t.Errorf("chunk %d after %v", i, took)
		}
	}
}

func TestReplayRepeatsHowAnswersEnded(t *testing.T) {
	up, _ := newEcho(t)
	cut := tapeOf(0, "half")
	cut.Exchange.Error = cutByUpstream + "unexpected EOF"
	sized := tapeOf(0, "whole")
	sized.Content.Header["Content-Length"] = []string{"5"}
	odd := tapeOf(0, "longer")
	odd.Content.Chunks[0].Size = 3 // as after redaction
	failed := tapeOf(0, `{"error":1}`)
	failed.Exchange.Status = 529
	none := tapeOf(0)
	none.Exchange.Status, none.Exchange.Error = 0, noAnswer+"x"
	w := newReplay(t, up, mayfly.Replay{}, cut, sized, odd, failed, none)

	resp := w.post("/anthropic/v1/messages", question)
	b, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(b) != "half" || !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("cut answer = %q %v", b, err)
	}
	if resp = w.post("/anthropic/v1/messages", question); read(t, resp) != "whole" || resp.ContentLength != 5 {
		t.Errorf("length = %d", resp.ContentLength)
	}
	if got := read(t, w.post("/anthropic/v1/messages", question)); got != "longer" {
		t.Errorf("answer = %q", got)
	}
	if resp = w.post("/anthropic/v1/messages", question); read(t, resp) != `{"error":1}` || resp.StatusCode != 529 {
		t.Errorf("status = %d", resp.StatusCode)
	}
	if resp = w.post("/anthropic/v1/messages", question); resp.StatusCode != 502 {
		t.Errorf("status = %d", resp.StatusCode)
	}
	resp.Body.Close()
}

func TestDivergence(t *testing.T) {
	different := tapeOf(0, "recorded")
	different.Divergence = &mayfly.Divergence{Kind: "request", Path: "/messages/0", Recorded: "a", Replayed: "b"}
	for _, c := range []struct {
		on       mayfly.OnDivergence
		path     string
		answers  []Played
		status   int
		body     string
		stopped  bool
		asked    int
		kind     string
		replayed bool
	}{
		{"", "/anthropic/v1/messages", []Played{different}, 403, "permission_error", true, 0, "request", true},
		{mayfly.StopOnDivergence, "/openai/v1/responses", []Played{different}, 400, "invalid_request", true, 0, "request", true},
		{mayfly.StopOnDivergence, "/gemini/v1beta/models/m:generateContent", nil, 400, "INVALID_ARGUMENT", true, 0, "extra", true},
		{mayfly.ContinueOnDivergence, "/anthropic/v1/messages", []Played{different}, 200, "recorded", false, 0, "request", true},
		{mayfly.ContinueOnDivergence, "/anthropic/v1/messages", nil, 403, "permission_error", true, 0, "extra", true},
		{mayfly.LiveOnDivergence, "/anthropic/v1/messages", []Played{different, tapeOf(0, "recorded too")}, 200, `"message"`, false, 1, "request", false},
		{mayfly.LiveOnDivergence, "/anthropic/v1/messages", nil, 200, `"message"`, false, 1, "extra", false},
	} {
		t.Run(fmt.Sprintf("%s %s", c.on, c.kind), func(t *testing.T) {
			up, asked := newEcho(t)
			w := newReplay(t, up, mayfly.Replay{OnDivergence: c.on}, c.answers...)
			resp := w.post(c.path, `{"messages":[],"input":[],"contents":[]}`)
			if got := read(t, resp); resp.StatusCode != c.status || !strings.Contains(got, c.body) {
				t.Errorf("answer = %d %s", resp.StatusCode, got)
			}
			x := w.exchanges(1)[0]
			if x.Divergence == nil || x.Divergence.Kind != c.kind || x.Divergence.Number != 1 || x.Divergence.Step != 1 || x.Replayed != c.replayed {
				t.Errorf("exchange = %+v", x)
			}
			if len(w.runs.diverged) != 1 || w.runs.diverged[0] != *x.Divergence || w.runs.stopped[0] != c.stopped {
				t.Errorf("diverged = %+v %v", w.runs.diverged, w.runs.stopped)
			}
			if c.asked == 1 { // and from there on
				if got := read(t, w.post(c.path, question)); !strings.Contains(got, `"message"`) {
					t.Errorf("second answer = %s", got)
				}
				c.asked = 2
			}
			if len(asked.requests) != c.asked {
				t.Errorf("requests upstream = %d, want %d", len(asked.requests), c.asked)
			}
		})
	}
}

func TestDivergenceThatCannotBeSavedStopsTheAnswer(t *testing.T) {
	up, asked := newEcho(t)
	w := newReplay(t, up, mayfly.Replay{OnDivergence: mayfly.LiveOnDivergence})
	w.runs.failRest = errKnob
	resp := w.post("/anthropic/v1/messages", question)
	if got := read(t, resp); resp.StatusCode != 503 || strings.Contains(got, "disk full") || len(asked.requests) != 0 {
		t.Errorf("answer = %d %s", resp.StatusCode, got)
	}
}

func TestReplayNeverAsksTheUpstream(t *testing.T) {
	up := raw(t, func(c net.Conn, r *http.Request, in *bufio.Reader) { t.Error("the upstream was asked") })
	w := newReplay(t, up, mayfly.Replay{}, tapeOf(0, "{}"), tapeOf(0, `{"input_tokens":1}`))
	read(t, w.post("/openai/v1/chat/completions", question))
	read(t, w.post("/anthropic/v1/messages/count_tokens", question))
	if x := w.exchanges(2)[1]; x.Step != 0 || w.runs.boundary[1] {
		t.Errorf("counting tokens = %+v", x)
	}
}

func TestAgentLeavesWhileReplaying(t *testing.T) {
	up, _ := newEcho(t)
	w := newReplay(t, up, mayfly.Replay{Realtime: true}, tapeOf(time.Hour, "a", "b"))
	c, err := net.Dial("tcp", strings.TrimPrefix(w.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(c, "POST /anthropic/v1/messages HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\nContent-Length: %d\r\n\r\n%s", runToken, len(question), question)
	bufio.NewReader(c).ReadString('\n')
	c.Close()
	if x := w.exchanges(1)[0]; !strings.HasPrefix(x.Error, cutByAgent) {
		t.Errorf("exchange = %+v", x)
	}
}
