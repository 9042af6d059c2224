package recording

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/modelapi"
)

// tape is the exchanges of runs, as events would have them.
type tape struct {
	t     testing.TB
	store *Store
	mu    sync.Mutex
	runs  map[string][]mayfly.Exchange
}

func newTape(t testing.TB) *tape {
	s := openStore(t, t.TempDir())
	begun(t, s, "run-a", Encrypted)
	return &tape{t: t, store: s, runs: map[string][]mayfly.Exchange{}}
}

func (p *tape) exchanges(_ context.Context, run string) ([]mayfly.Exchange, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.runs[run]), nil
}

func (p *tape) player() *Player { return NewPlayer(p.store, p.exchanges) }

func (p *tape) append(run string, x mayfly.Exchange) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.runs[run] = append(p.runs[run], x)
}

// ask is a request of an agent.
type ask struct {
	session, agent, text string
	step                 int // 0: a side call
}

func (a ask) exchange(number int) (mayfly.Exchange, mayfly.Content) {
	c := mayfly.Content{Header: map[string][]string{"Authorization": {"Bearer x"}}, Body: []byte(`{"model":"m","messages":[{"role":"user","content":` + quoted(a.text) + `}]}`)}
	x := mayfly.Exchange{
		ID: fmt.Sprint("x", number), Number: number, Step: a.step, API: modelapi.Messages, Method: "POST", Path: "/v1/messages",
		Session: a.session, Agent: a.agent, Model: "m", Start: time.Unix(int64(number), 0),
	}
	if a.step == 0 {
		x.API, x.Path = modelapi.MessagesCount, "/v1/messages/count_tokens"
	}
	x.Key = keyOf(x.API, c)
	return x, c
}

// record appends an exchange of run-a with its answer.
func (p *tape) record(a ask, status int, answer string) {
	p.t.Helper()
	x, c := a.exchange(len(p.runs["run-a"]) + 1)
	x.Request = write(p.t, p.store, "run-a", c)
	if x.Status = status; status != 0 {
		x.Answer = write(p.t, p.store, "run-a", chunked(mayfly.Content{Header: map[string][]string{"A": {"b"}}, Body: []byte(answer)}, 5))
		x.End = x.Start.Add(time.Second)
	}
	p.append("run-a", x)
}

// play asks in the replay and returns the answer's body.
func (p *tape) play(pl *Player, r mayfly.Replay, a ask) (string, *mayfly.Divergence, error) {
	p.mu.Lock()
	number := len(p.runs["run-b"]) + 1
	p.mu.Unlock()
	x, request := a.exchange(number)
	recorded, c, d, err := pl.Answer(context.Background(), r, "run-b", x, request)
	x.Status, x.Replayed, x.Divergence, x.End = recorded.Status, err == nil, d, x.Start.Add(time.Second)
	p.append("run-b", x)
	return string(c.Body), d, err
}

var fromA = mayfly.Replay{Run: "run-a"}

// want plays and expects an answer without a divergence.
func (p *tape) want(pl *Player, r mayfly.Replay, a ask, answer string) {
	p.t.Helper()
	got, d, err := p.play(pl, r, a)
	if err != nil || d != nil || got != answer {
		p.t.Errorf("%+v: answer = %q, %+v, %v, want %q", a, got, d, err, answer)
	}
}

func (p *tape) wantMissing(pl *Player, r mayfly.Replay, n int) {
	p.t.Helper()
	list, err := pl.Missing(p.t.Context(), r, "run-b")
	if err != nil || len(list) != n {
		p.t.Errorf("missing = %+v, %v, want %d", list, err, n)
	}
	for _, d := range list {
		if d.Kind != "missing" || !strings.Contains(d.Recorded, "POST /v1/messages") {
			p.t.Errorf("missing = %+v", d)
		}
	}
}

func TestSessionsAndAgentsAreRenamed(t *testing.T) {
	p := newTape(t)
	p.record(ask{"s1", "", "hello", 1}, 200, "first with "+exactValue)
	p.record(ask{"s1", "sub-x", "part one", 2}, 200, "of x")
	p.record(ask{"s1", "sub-y", "part two", 3}, 200, "of y")
	p.record(ask{"s1", "sub-x", "part one b", 4}, 200, "of x again")
	p.record(ask{"s1", "", "hello again", 5}, 200, "second")
	p.record(ask{"s2", "", "hello", 6}, 200, "other session")
	pl := p.player()
	p.want(pl, fromA, ask{"t9", "", "hello", 1}, "first with "+exactValue)
	p.want(pl, fromA, ask{"t9", "q", "part two", 2}, "of y") // in another order
	p.want(pl, fromA, ask{"t9", "p", "part one", 3}, "of x")
	p.wantMissing(pl, fromA, 3)
	p.want(pl, fromA, ask{"t8", "", "hello", 4}, "other session")
	p.want(pl, fromA, ask{"t9", "p", "part one b", 5}, "of x again")
	p.want(pl, fromA, ask{"t9", "", "hello again", 6}, "second")
	p.wantMissing(pl, fromA, 0)
	_, d, err := p.play(pl, fromA, ask{"t9", "", "more", 7})
	if mayfly.KindOf(err) != mayfly.NotFound || d == nil || d.Kind != "extra" {
		t.Errorf("extra request: %+v, %v", d, err)
	}
}

func TestChunksAndHeadersAreThoseRecorded(t *testing.T) {
	p := newTape(t)
	p.record(ask{"", "", "hello", 1}, 529, "overloaded, sadly")
	x, c := ask{"", "", "hello", 1}.exchange(1)
	recorded, got, d, err := p.player().Answer(t.Context(), fromA, "run-b", x, c)
	want := chunked(mayfly.Content{Header: map[string][]string{"A": {"b"}}, Body: []byte("overloaded, sadly")}, 5)
	if err != nil || d != nil || recorded.Status != 529 {
		t.Fatalf("answer: %+v, %+v, %v", recorded, d, err)
	}
	sameContent(t, "answer", got, want)
}

func TestRetriesAreReplayed(t *testing.T) {
	p := newTape(t)
	p.record(ask{"", "", "hello", 1}, 529, "overloaded")
	p.record(ask{"", "", "hello", 1}, 200, "well")
	p.record(ask{"", "", "next", 2}, 0, "") // cut off, and asked again
	p.record(ask{"", "", "next", 2}, 200, "better")
	pl := p.player()
	p.want(pl, fromA, ask{"", "", "hello", 1}, "overloaded")
	p.want(pl, fromA, ask{"", "", "hello", 1}, "well")
	p.want(pl, fromA, ask{"", "", "next", 2}, "better")
	p.want(pl, fromA, ask{"", "", "next", 2}, "better") // one retry more than recorded
	p.wantMissing(pl, fromA, 0)
}

func TestSideCallsComeInAnyOrderAndNumber(t *testing.T) {
	p := newTape(t)
	p.record(ask{"", "", "count a", 0}, 200, "1")
	p.record(ask{"", "", "hello", 1}, 200, "well")
	p.record(ask{"", "", "count b", 0}, 200, "2")
	p.record(ask{"", "", "count c", 0}, 200, "3")
	pl := p.player()
	p.want(pl, fromA, ask{"", "", "count b", 0}, "2")
	p.want(pl, fromA, ask{"", "", "count a", 0}, "1")
	p.want(pl, fromA, ask{"", "", "count a", 0}, "1")
	p.want(pl, fromA, ask{"", "", "hello", 1}, "well")
	p.wantMissing(pl, fromA, 0)
	got, d, err := p.play(pl, fromA, ask{"", "", "count unknown", 0})
	if err != nil || got != "3" || d == nil || d.Kind != "request" {
		t.Errorf("unknown side call: %q, %+v, %v", got, d, err)
	}
}

func TestADifferenceIsNamedWithBothSides(t *testing.T) {
	p := newTape(t)
	p.record(ask{"", "", "the colour is red", 1}, 200, "well")
	p.record(ask{"", "", "next", 2}, 200, "better")
	pl := p.player()
	got, d, err := p.play(pl, fromA, ask{"", "", "the colour is blue, key " + exactValue, 1})
	if err != nil || got != "well" || d == nil {
		t.Fatalf("answer: %q, %+v, %v", got, d, err)
	}
	if d.Kind != "request" || d.Number != 1 || d.Step != 1 {
		t.Errorf("divergence = %+v", d)
	}
	if strings.Contains(d.Replayed+d.Recorded, exactValue) || strings.Contains(d.Replayed+d.Recorded, "pa\\\"ss") {
		t.Errorf("a secret is in %+v", d)
	}
	if !strings.HasPrefix(d.Path, "/messages/0/content") || !strings.Contains(d.Recorded, "red") || !strings.Contains(d.Replayed, "blue") {
		t.Errorf("divergence = %+v", d)
	}
	p.want(pl, fromA, ask{"", "", "next", 2}, "better")
}

func TestADifferenceInASecretIsNotServedSilently(t *testing.T) {
	p := newTape(t)
	p.record(ask{"", "", "card 4111 1111" + " 1111 1111.", 1}, 200, "well")
	_, d, err := p.play(p.player(), fromA, ask{"", "", "card 5500 0000" + " 0000 0004.", 1})
	if err != nil || d == nil || d.Kind != "request" || strings.Contains(d.Recorded+d.Replayed, "1111") || strings.Contains(d.Recorded+d.Replayed, "5500") {
		t.Errorf("divergence = %+v, %v", d, err)
	}
}

func TestAnAnswerWithoutItsKeyIsADivergence(t *testing.T) {
	p := newTape(t)
	p.record(ask{"", "", "a", 1}, 200, "it is "+exactValue)
	p.record(ask{"", "", "b", 2}, 200, "plain")
	if err := p.store.DestroyKey(t.Context(), "run-a"); err != nil {
		t.Fatal(err)
	}
	pl := p.player()
	got, d, err := p.play(pl, fromA, ask{"", "", "a", 1})
	if err != nil || d == nil || d.Kind != "result" || got != "it is [redacted:server-key]" {
		t.Errorf("answer: %q, %+v, %v", got, d, err)
	}
	p.want(pl, fromA, ask{"", "", "b", 2}, "plain")
}

func TestFromStepLeavesOutWhatCameBefore(t *testing.T) {
	p := newTape(t)
	for i, text := range []string{"a", "b", "a", "c"} {
		p.record(ask{"s", "", text, i + 1}, 200, fmt.Sprint("answer ", i+1))
	}
	pl, from := p.player(), mayfly.Replay{Run: "run-a", FromStep: 2}
	p.want(pl, from, ask{"t", "", "a", 1}, "answer 3")
	p.wantMissing(pl, from, 1)
	p.want(pl, from, ask{"t", "", "c", 2}, "answer 4")
	p.wantMissing(pl, from, 0)
}

func TestARestartedServerGoesOnWhereItWas(t *testing.T) {
	p := newTape(t)
	same := []string{"a", "a", "b", "a"} // told apart only by their order
	for i, text := range same {
		p.record(ask{"s", "", text, i + 1}, 200, fmt.Sprint("answer ", i+1))
	}
	for i, text := range same {
		// A request that was under way when the server ended is asked again.
		x, _ := ask{"t", "", text, i + 1}.exchange(100 + i)
		p.append("run-b", x)
		p.want(p.player(), fromA, ask{"t", "", text, i + 1}, fmt.Sprint("answer ", i+1))
	}
	p.wantMissing(p.player(), fromA, 0)
}

func TestParallelRequestsEachGetTheirAnswer(t *testing.T) {
	p := newTape(t)
	const lanes, each = 6, 20
	for n := range each {
		for a := range lanes {
			p.record(ask{"s", strings.Repeat("x", a), fmt.Sprintf("agent %d turn %d", a, n), 1 + n*lanes + a}, 200, fmt.Sprintf("%d.%d", a, n))
		}
	}
	pl := p.player()
	var wg sync.WaitGroup
	for a := range lanes {
		wg.Go(func() {
			name := ""
			if a > 0 {
				name = fmt.Sprint("renamed ", lanes-a)
			}
			for n := range each {
				p.want(pl, fromA, ask{"t", name, fmt.Sprintf("agent %d turn %d", a, n), 1 + n}, fmt.Sprintf("%d.%d", a, n))
			}
		})
	}
	wg.Wait()
	p.wantMissing(pl, fromA, 0)
}
