package control

import (
	"context"
	"encoding/hex"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/store"
)

// doors keeps the listeners that it got.
type doors struct {
	mu     sync.Mutex
	open   map[string]net.Listener
	opened int
}

func newDoors() *doors { return &doors{open: map[string]net.Listener{}} }

func (d *doors) Open(env string, l net.Listener) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.open[env] != nil {
		return mayfly.Errorf(mayfly.Conflict, "environment %s has a door", env)
	}
	d.open[env] = l
	d.opened++
	return nil
}

func (d *doors) Close(env string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l := d.open[env]; l != nil {
		l.Close()
	}
	delete(d.open, env)
	return nil
}

// closeAll is what the end of a process does to its sockets.
func (d *doors) closeAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, l := range d.open {
		l.Close()
	}
	clear(d.open)
}

func (d *doors) has(env string) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.open[env] != nil
}

// recorder remembers the runs that it was told of.
type recorder struct {
	mu   sync.Mutex
	runs map[string]mayfly.ExactRecording
	last History
}

func (r *recorder) Begin(_ context.Context, run string, exact mayfly.ExactRecording) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.runs == nil {
		r.runs = map[string]mayfly.ExactRecording{}
	}
	r.runs[run] = exact
	return nil
}

func (r *recorder) Content(context.Context, string) (mayfly.Content, error) {
	return mayfly.Content{Body: []byte("hello")}, nil
}

func (r *recorder) Ended(string) {}

func (r *recorder) Redact(text string) string {
	return strings.ReplaceAll(text, "s3cret", "[redacted]")
}

func (r *recorder) Seal(run string, text []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.runs[run] == mayfly.ExactNone {
		return nil, nil
	}
	return []byte(hex.EncodeToString(text)), nil
}

func (r *recorder) Unseal(run string, sealed []byte) ([]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.runs[run]; !ok {
		return nil, mayfly.Errorf(mayfly.NotFound, "no key")
	}
	return hex.DecodeString(string(sealed))
}

func (r *recorder) Forget(_ context.Context, run string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.runs, run)
	return nil
}

func (r *recorder) draw(_ context.Context, h History) (mayfly.Graph, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = h
	return mayfly.Graph{Run: h.Run.ID}, nil
}

// ask begins an exchange of a run.
func ask(t *testing.T, e *Engine, r mayfly.Run, boundary bool, retry int) mayfly.Exchange {
	t.Helper()
	x := exchangeOf(r)
	if err := e.Begin(t.Context(), &x, boundary, retry); err != nil {
		t.Fatal(err)
	}
	return x
}

func exchangeOf(r mayfly.Run) mayfly.Exchange {
	return mayfly.Exchange{
		Environment: r.Environment, Run: r.ID, Provider: "anthropic", API: "anthropic.messages", Model: "sonnet",
		Method: "POST", Path: "/v1/messages", Request: "sha256:" + strings.Repeat("1", 64), Start: time.Now(),
	}
}

func answered(t *testing.T, e *Engine, x mayfly.Exchange) {
	t.Helper()
	x.Status, x.Usage, x.End = 200, mayfly.TokenUsage{Input: 10, Output: 3}, time.Now()
	if err := e.End(t.Context(), x); err != nil {
		t.Fatal(err)
	}
}

func TestDoorIsOpenWhileTheSandboxIsAndOpensAgainAfterRestarts(t *testing.T) {
	m := newMachine(t)
	e := m.boot()
	r := startRun(t, e, create(), "", "sleep")
	if !m.doors.has(r.Environment) {
		t.Fatal("the run started before the door was open")
	}
	m.halt(e)
	e = m.boot()
	defer func() { m.halt(e) }()
	startRun(t, e, nil, r.Environment, "sleep")
	if !m.doors.has(r.Environment) || m.doors.opened != 2 {
		t.Errorf("after a restart of the server: open = %v, opened %d times, want 2", m.doors.has(r.Environment), m.doors.opened)
	}
	m.driver.Crash(r.Environment)
	startRun(t, e, nil, r.Environment, "sleep")
	if !m.doors.has(r.Environment) || m.doors.opened != 3 {
		t.Errorf("after a restart of the sandbox: opened %d times, want 3", m.doors.opened)
	}
	if _, err := e.Rollback(t.Context(), r.Environment, "1", ""); err != nil {
		t.Fatal(err)
	}
	wait(t, e, startRun(t, e, nil, r.Environment, "true"))
	if m.doors.opened != 4 {
		t.Errorf("after a rollback: opened %d times, want 4", m.doors.opened)
	}
	if _, err := e.DeleteEnvironment(t.Context(), r.Environment); err != nil {
		t.Fatal(err)
	}
	if m.doors.has(r.Environment) {
		t.Error("the door is open after the environment was deleted")
	}
}

func TestNoAgentStartsWithoutADoor(t *testing.T) {
	e, m := start(t)
	env, err := e.CreateEnvironment(t.Context(), *create())
	if err != nil {
		t.Fatal(err)
	}
	m.driver.Crash(env.ID) // so that the door has to be opened again
	m.driver.Fault = func(step string) error {
		if step == "listen.before" {
			return mayfly.Errorf(mayfly.Conflict, "port 2929 is taken")
		}
		return nil
	}
	r, err := e.StartRun(t.Context(), mayfly.StartRun{Environment: env.ID, Command: []string{"true"}})
	if err != nil || r.Phase != mayfly.RunFailed || !strings.Contains(r.Reason, "port 2929 is taken") {
		t.Errorf("got = %s %q, %v, want failed because of the port", r.Phase, r.Reason, err)
	}
	r, err = e.StartRun(t.Context(), mayfly.StartRun{Environment: env.ID, Command: []string{"true"}, Kind: mayfly.ExecRun})
	if err != nil || r.Phase == mayfly.RunFailed {
		t.Errorf("a look around: got = %s %q, %v, want started", r.Phase, r.Reason, err)
	}
}

func TestTokenIsGoodForItsRunWhileThatIsOpen(t *testing.T) {
	m := newMachine(t)
	e := m.boot()
	r := startRun(t, e, create(), "", "sleep")
	other := startRun(t, e, create(), "", "sleep")
	token := e.token(r.Environment, r.ID)
	m.halt(e)
	e = m.boot() // knows it still
	defer func() { m.halt(e) }()
	if got, err := e.Admit(t.Context(), r.Environment, token); err != nil || got.ID != r.ID {
		t.Errorf("got = %s, %v, want %s", got.ID, err, r.ID)
	}
	if got := m.kept.runs[r.ID]; len(m.kept.runs) != 1 || got != "" {
		t.Errorf("recordings begun = %v, want that of the run", m.kept.runs)
	}
	for name, c := range map[string][2]string{
		"none":                {r.Environment, ""},
		"of another run":      {r.Environment, e.token(other.Environment, other.ID)},
		"elsewhere":           {other.Environment, token},
		"other mac":           {r.Environment, token[:len(token)-1] + "g"},
		"no mac":              {r.Environment, "mf-" + r.ID},
		"unknown run":         {r.Environment, e.token(r.Environment, "run-0000000000000000")},
		"not a token at all":  {r.Environment, "sk-ant-api03"},
		"a very long one":     {r.Environment, "mf-" + strings.Repeat("-", 1<<16)},
		"with something more": {r.Environment, token + "-"},
	} {
		if _, err := e.Admit(t.Context(), c[0], c[1]); mayfly.KindOf(err) != mayfly.Forbidden {
			t.Errorf("%s: got = %v, want kind %s", name, err, mayfly.Forbidden)
		}
	}
	if _, err := e.KillRun(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := e.Admit(t.Context(), r.Environment, token); mayfly.KindOf(err) != mayfly.Forbidden {
		t.Errorf("after the end: got = %v, want kind %s", err, mayfly.Forbidden)
	}
	refused := slices.DeleteFunc(events(t, e, mayfly.EventFilter{Environment: r.Environment}), func(s string) bool { return s != "gateway.refused" })
	if len(refused) != 9 {
		t.Errorf("refusals kept = %d, want 9", len(refused))
	}
}

func TestRefusalsCannotFillTheLedger(t *testing.T) {
	e, _ := start(t)
	r := startRun(t, e, create(), "", "sleep")
	for range 100 {
		e.Admit(t.Context(), r.Environment, "guess")
	}
	if got := len(events(t, e, mayfly.EventFilter{Environment: r.Environment})); got > 20 {
		t.Errorf("events = %d, want few", got)
	}
}

func TestStepsAreNumberedAndSnapshottedAtTheirBoundaries(t *testing.T) {
	e, m := start(t)
	r := startRun(t, e, create(), "", "sleep")
	m.driver.Write(r.Environment, "a", "before 1")
	first := ask(t, e, r, true, 0)
	side := ask(t, e, r, false, 0)
	again := ask(t, e, r, false, first.Number)
	m.driver.Write(r.Environment, "a", "after 1")
	for _, x := range []mayfly.Exchange{first, side, again} {
		answered(t, e, x)
	}
	second := ask(t, e, r, true, 0)
	m.driver.Write(r.Environment, "a", "after 2")
	answered(t, e, second)
	answered(t, e, second) // twice is once
	for i, x := range []struct{ got, number, step int }{
		{first.Number, 1, first.Step - 1}, {side.Number, 2, side.Step}, {again.Number, 3, again.Step - 1}, {second.Number, 4, second.Step - 2},
	} {
		if x.got != x.number || x.step != 0 {
			t.Errorf("exchange %d: number = %d, want %d; step is off by %d", i, x.got, x.number, x.step)
		}
	}
	if _, err := e.KillRun(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	r = wait(t, e, r)
	if r.Steps != 2 || r.Exchanges != 4 || r.Tokens.Input != 40 || r.Tree == "" {
		t.Errorf("run = %+v, want 2 steps, 4 exchanges, 40 tokens in, a tree", r)
	}
	snapshots, err := e.Snapshots(t.Context(), r.Environment)
	if err != nil {
		t.Fatal(err)
	}
	for step, want := range []string{"", "after 1", "after 2"} {
		snap, err := mayfly.AfterStep(snapshots, r.ID, step)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := e.Rollback(t.Context(), r.Environment, snap.ID, ""); err != nil {
			t.Fatal(err)
		}
		if got := m.driver.Read(r.Environment, "a"); got != want {
			t.Errorf("after step %d: got = %q, want %q", step, got, want)
		}
	}
	list, err := e.Exchanges(t.Context(), r.ID)
	if err != nil || len(list) != 4 || list[0].Status != 200 || list[3].Step != 2 {
		t.Errorf("exchanges = %+v, %v, want all four with their ends", list, err)
	}
	if _, err := e.Graph(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	h := m.kept.last
	if len(h.Exchanges) != 4 || len(h.Snapshots) != 4 || h.Snapshots[1].Step != 1 {
		t.Errorf("history: %d exchanges, snapshots %+v, want 4 and baseline, two steps, final", len(h.Exchanges), h.Snapshots)
	}
	if files, err := h.Changes(t.Context(), h.Snapshots[1].ID, h.Snapshots[2].ID); err != nil || len(files) == 0 {
		t.Errorf("changes = %v, %v", files, err)
	}
}

func TestWhatStepsChangedIsKnownWhenTheirFilesAreGone(t *testing.T) {
	e, m := start(t)
	r, err := e.StartRun(t.Context(), mayfly.StartRun{Create: create(), Command: []string{"sleep"}, Remove: true})
	if err != nil {
		t.Fatal(err)
	}
	answered(t, e, ask(t, e, r, true, 0))
	m.driver.Write(r.Environment, "a", "1")
	answered(t, e, ask(t, e, r, true, 0))
	m.driver.Write(r.Environment, "b", "2")
	if _, err := e.KillRun(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	if r = wait(t, e, r); !m.driver.Empty() || r.Tree == "" {
		t.Errorf("run = %+v, want its environment gone and its tree known", r)
	}
	if _, err := e.Graph(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	files := m.kept.last.Files
	if len(files) != 2 || len(files[1]) != 1 || files[1][0].Path != "a" || len(files[2]) != 1 || files[2][0].Path != "b" {
		t.Errorf("files = %+v, want a of step 1 and b of step 2", files)
	}
}

func TestWhatIsNotAtWorkMayNotAsk(t *testing.T) {
	e, m := start(t)
	r := startRun(t, e, create(), "", "sleep")
	if _, err := e.PauseEnvironment(t.Context(), r.Environment); err != nil {
		t.Fatal(err)
	}
	x := exchangeOf(r)
	if err := e.Begin(t.Context(), &x, true, 0); mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("paused: got = %v, want kind %s", err, mayfly.Conflict)
	}
	if _, err := e.ResumeEnvironment(t.Context(), r.Environment); err != nil {
		t.Fatal(err)
	}
	m.driver.Fault = func(step string) error {
		if step == "snapshot.before" {
			return mayfly.Errorf(mayfly.Exhausted, "disk full")
		}
		return nil
	}
	if err := e.Begin(t.Context(), &x, true, 0); mayfly.KindOf(err) != mayfly.Exhausted {
		t.Errorf("without a snapshot: got = %v, want kind %s", err, mayfly.Exhausted)
	}
	m.driver.Fault = nil
	if list, err := e.Exchanges(t.Context(), r.ID); err != nil || len(list) != 1 || list[0].Error == "" {
		t.Errorf("exchanges = %+v, %v, want one that says what went wrong", list, err)
	}
	if _, err := e.DeleteEnvironment(t.Context(), r.Environment); err != nil {
		t.Fatal(err)
	}
	if err := e.Begin(t.Context(), &x, true, 0); mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("deleted: got = %v, want kind %s", err, mayfly.Conflict)
	}
}

// TestCrashBetweenBeginAndItsSnapshot cuts the engine off when the start of a
// step is saved and its snapshot not yet taken.
func TestCrashBetweenBeginAndItsSnapshot(t *testing.T) {
	m := newMachine(t)
	e := m.boot()
	r := startRun(t, e, create(), "", "sleep")
	reached := make(chan struct{})
	m.driver.Fault = func(step string) error {
		if step == "snapshot.before" {
			e.cancel()
			close(reached)
			return mayfly.Errorf(mayfly.Internal, "crash")
		}
		return nil
	}
	x := exchangeOf(r)
	if err := e.Begin(t.Context(), &x, true, 0); err == nil {
		t.Error("Begin returned without a snapshot")
	}
	<-reached
	e.wg.Wait()
	m.cut()
	m.driver.Fault = nil
	e = m.boot()
	defer func() { m.halt(e) }()
	list, err := e.Exchanges(t.Context(), r.ID)
	if err != nil || len(list) != 1 || list[0].Error == "" || list[0].End.IsZero() {
		t.Errorf("exchanges = %+v, %v, want one that was cut off", list, err)
	}
	next := ask(t, e, r, true, 0)
	if next.Number != 2 || next.Step != 2 {
		t.Errorf("next = %d of step %d, want 2 of 2", next.Number, next.Step)
	}
	snapshots, err := e.Snapshots(t.Context(), r.Environment)
	if err != nil || len(snapshots) != 3 || snapshots[1].Step != 1 || snapshots[2].Step != 2 {
		t.Errorf("snapshots = %+v, %v, want the one of step 1, too", snapshots, err)
	}
}

func TestExchangeOfACrashedServerIsEnded(t *testing.T) {
	m := newMachine(t)
	e := m.boot()
	r := startRun(t, e, create(), "", "sleep")
	x := ask(t, e, r, true, 0)
	e.cancel()
	e.wg.Wait()
	m.cut()
	e = m.boot()
	defer func() { m.halt(e) }()
	list, err := e.Exchanges(t.Context(), r.ID)
	if err != nil || len(list) != 1 || list[0].ID != x.ID || list[0].Error != serverStopped {
		t.Errorf("exchanges = %+v, %v, want one with %q", list, err, serverStopped)
	}
}

func TestModelAtWorkKeepsTheEnvironmentBusy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		e := m.boot()
		req := create()
		req.TTL, req.IdleTimeout = 24*time.Hour, time.Minute
		r := startRun(t, e, req, "", "sleep")
		x := ask(t, e, r, true, 0)
		if _, err := e.KillRun(t.Context(), r.ID); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := phase(t, e, r.Environment); got != mayfly.Ready {
			t.Errorf("with a call in flight: got = %s, want %s", got, mayfly.Ready)
		}
		answered(t, e, x)
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if got := phase(t, e, r.Environment); got != mayfly.Paused {
			t.Errorf("after it: got = %s, want %s", got, mayfly.Paused)
		}
		m.halt(e)
	})
}

func TestDivergenceIsAnEventAndMayEndTheRun(t *testing.T) {
	e, _ := start(t)
	r := startRun(t, e, create(), "", "sleep")
	d := mayfly.Divergence{Number: 2, Step: 1, Kind: "request", Path: "/messages/0", Recorded: "a", Replayed: "b"}
	if err := e.Diverged(t.Context(), r.ID, d, false); err != nil {
		t.Fatal(err)
	}
	if got, err := e.Run(t.Context(), r.ID); err != nil || got.Phase != mayfly.RunRunning || got.Divergences != 1 {
		t.Errorf("got = %+v, %v, want running with a divergence", got, err)
	}
	if err := e.Diverged(t.Context(), r.ID, d, true); err != nil {
		t.Fatal(err)
	}
	if got := wait(t, e, r); got.Phase != mayfly.RunKilled || !strings.Contains(got.Reason, "diverged") {
		t.Errorf("got = %s %q, want killed because it diverged", got.Phase, got.Reason)
	}
	if n := count(events(t, e, mayfly.EventFilter{Run: r.ID}), "run.diverged"); n != 2 {
		t.Errorf("events = %d, want 2", n)
	}
}

func count(list []string, what string) (n int) {
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

func TestReplayBeginsWhereTheRecordedRunBegan(t *testing.T) {
	e, m := start(t)
	req := create()
	req.Env = map[string]string{"A": "1"}
	r, err := e.StartRun(t.Context(), mayfly.StartRun{Create: req, Command: []string{"sleep"}, Dir: "/tmp"})
	if err != nil {
		t.Fatal(err)
	}
	answered(t, e, ask(t, e, r, true, 0))
	m.driver.Write(r.Environment, "a", "1")
	answered(t, e, ask(t, e, r, true, 0))
	if _, err := e.KillRun(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	replay := func(q mayfly.StartRun) mayfly.Run {
		t.Helper()
		got, err := e.StartRun(t.Context(), q)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	whole := replay(mayfly.StartRun{Replay: &mayfly.Replay{Run: r.ID}})
	env, err := e.Environment(t.Context(), whole.Environment)
	if err != nil || env.From == nil || env.From.Snapshot != r.Baseline {
		t.Errorf("environment = %+v, %v, want a fork of the baseline", env, err)
	}
	if whole.Command[0] != "sleep" || whole.Dir != "/tmp" || whole.Replay.OnDivergence != mayfly.StopOnDivergence {
		t.Errorf("run = %+v, want the recorded command, and to stop at a divergence", whole)
	}
	if got := m.driver.Read(whole.Environment, "a"); got != "" {
		t.Errorf("a = %q, want none yet", got)
	}
	admitted, err := e.Admit(t.Context(), whole.Environment, e.token(whole.Environment, whole.ID))
	if err != nil || admitted.Replay == nil || admitted.Replay.Run != r.ID {
		t.Errorf("admitted = %+v, %v, want a replay of %s", admitted, err, r.ID)
	}
	part := replay(mayfly.StartRun{Replay: &mayfly.Replay{Run: r.ID, FromStep: 1}})
	if got := m.driver.Read(part.Environment, "a"); got != "1" {
		t.Errorf("after step 1: a = %q, want 1", got)
	}
	if _, err := e.DeleteEnvironment(t.Context(), r.Environment); err != nil {
		t.Fatal(err)
	}
	gone := replay(mayfly.StartRun{Replay: &mayfly.Replay{Run: r.ID}})
	if env, err := e.Environment(t.Context(), gone.Environment); err != nil || env.From != nil || env.Template != digest {
		t.Errorf("environment = %+v, %v, want one of the template", env, err)
	}
	for name, c := range map[string]struct {
		q    mayfly.StartRun
		want mayfly.Kind
	}{
		"from a step that is gone": {mayfly.StartRun{Replay: &mayfly.Replay{Run: r.ID, FromStep: 1}}, mayfly.Conflict},
		"of nothing":               {mayfly.StartRun{Replay: &mayfly.Replay{Run: gone.ID}}, mayfly.Conflict},
		"of an unknown run":        {mayfly.StartRun{Replay: &mayfly.Replay{Run: "run-nope"}}, mayfly.NotFound},
		"on a whim":                {mayfly.StartRun{Replay: &mayfly.Replay{Run: r.ID, OnDivergence: "whim"}}, mayfly.Invalid},
	} {
		if _, err := e.StartRun(t.Context(), c.q); mayfly.KindOf(err) != c.want {
			t.Errorf("%s: got = %v, want kind %s", name, err, c.want)
		}
	}
}

func TestRunsAreHeldToTheirModel(t *testing.T) {
	e, _ := start(t)
	r := startRun(t, e, create(), "", "sleep")
	answered(t, e, ask(t, e, r, true, 0))
	if _, err := e.KillRun(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	m, err := e.AddModel(t.Context(), mayfly.AddModel{Name: "reviewer", Run: r.ID})
	if err != nil || m.Version != 1 || m.ID != "sonnet" || m.Baseline.Runs != 1 || m.Baseline.Steps != 1 || m.Baseline.Success != 0 {
		t.Fatalf("got = %+v, %v, want version 1 with the run as its baseline", m, err)
	}
	if same, err := e.AddModel(t.Context(), mayfly.AddModel{Name: "reviewer", Run: r.ID}); err != nil || same.Version != 1 {
		t.Errorf("the same again: got = %+v, %v, want version 1", same, err)
	}
	hot := 1.0
	other, err := e.AddModel(t.Context(), mayfly.AddModel{Name: "reviewer", Run: r.ID, Parameters: mayfly.Parameters{Temperature: &hot}})
	if err != nil || other.Version != 2 || other.Digest == m.Digest {
		t.Errorf("another: got = %+v, %v, want version 2", other, err)
	}
	if newest, err := e.Model(t.Context(), "reviewer"); err != nil || newest.Version != 2 {
		t.Errorf("newest: got = %+v, %v, want version 2", newest, err)
	}
	for ref, want := range map[string]mayfly.Kind{"nope": mayfly.NotFound, "reviewer@3": mayfly.NotFound, "reviewer@x": mayfly.Invalid} {
		if _, err := e.Model(t.Context(), ref); mayfly.KindOf(err) != want {
			t.Errorf("%s: got = %v, want kind %s", ref, err, want)
		}
	}
	for _, locked := range []bool{false, true} {
		r, err := e.StartRun(t.Context(), mayfly.StartRun{Create: create(), Command: []string{"sleep"}, Model: "reviewer@1", Locked: locked})
		if err != nil || r.Model != "reviewer@1" {
			t.Fatalf("got = %+v, %v", r, err)
		}
		answered(t, e, ask(t, e, r, true, 0))
		x := exchangeOf(r)
		x.Model = "opus"
		err = e.Begin(t.Context(), &x, true, 0)
		if locked != (mayfly.KindOf(err) == mayfly.Forbidden) {
			t.Errorf("locked = %v: got = %v", locked, err)
		}
		side := exchangeOf(r)
		side.Model = "haiku"
		if err := e.Begin(t.Context(), &side, false, 0); err != nil {
			t.Errorf("side call: %v", err)
		}
		if n := count(events(t, e, mayfly.EventFilter{Run: r.ID}), "model.drift"); n != 1 {
			t.Errorf("locked = %v: %d drift events, want 1", locked, n)
		}
	}
}

func TestVariablesOfAgentsGiveWayToThoseOfPeople(t *testing.T) {
	e, _ := start(t)
	env := &environment{Named: []string{"MODEL_URL"}}
	env.ID = "env-x"
	p := e.agentVariables(env, driver.Process{Run: "run-y", Env: map[string]string{"A": "1"}})
	want := map[string]string{"A": "1", "MODEL_KEY": e.token("env-x", "run-y")}
	if !maps.Equal(p.Env, want) {
		t.Errorf("got = %v, want %v", p.Env, want)
	}
}

func TestTokensAreNotSaved(t *testing.T) {
	e, m := start(t)
	r := startRun(t, e, create(), "", "sleep")
	err := m.store.View(t.Context(), func(tx *store.Tx) error {
		o, err := tx.Get(kindRun, r.ID)
		if strings.Contains(string(o.Doc), e.token(r.Environment, r.ID)) {
			t.Error("the saved run has its token")
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// FuzzTokens shows tokens that nobody was given.
func FuzzTokens(f *testing.F) {
	e := &Engine{Options: Options{TokenKey: []byte("key")}}
	f.Add(e.token("env-b", "run-a"))
	f.Add("mf-run-a-")
	f.Add("")
	f.Add("-")
	f.Fuzz(func(t *testing.T, token string) {
		if _, why, err := e.bearer(t.Context(), "env-a", token); why == "" || err != nil {
			t.Errorf("%q: refused because %q, %v", token, why, err)
		}
	})
}
