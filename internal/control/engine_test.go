package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver/drivertest"
	"mayfly.dev/mayfly/internal/ledger"
	"mayfly.dev/mayfly/internal/store"
)

var digest = "sha256:" + strings.Repeat("a", 64)

// machine is a state directory and a driver, over which engines come and go.
type machine struct {
	t      testing.TB
	dir    string
	driver *drivertest.Memory
	store  *store.Store
	ledger *ledger.Ledger
	doors  *doors
	kept   *recorder
}

func newMachine(t testing.TB) *machine {
	m := &machine{t: t, dir: t.TempDir(), driver: drivertest.New(), doors: newDoors(), kept: &recorder{}}
	e := m.boot()
	lock := mayfly.Lock{Template: digest, Workspace: mayfly.LockedWorkspace{Commit: "c0ffee"}}
	if _, err := e.PutTemplate(t.Context(), lock, strings.NewReader(""), io.Discard); err != nil {
		t.Fatal(err)
	}
	m.halt(e)
	return m
}

func (m *machine) boot() *Engine {
	m.t.Helper()
	ctx := context.Background()
	var err error
	if m.store, err = store.Open(ctx, filepath.Join(m.dir, "mayfly.db")); err != nil {
		m.t.Fatal(err)
	}
	if m.ledger, err = ledger.Open(filepath.Join(m.dir, "ledger")); err != nil {
		m.t.Fatal(err)
	}
	e, err := New(ctx, Options{
		Store: m.store, Ledger: m.ledger, Driver: m.driver, Log: slog.New(slog.DiscardHandler),
		Doors: m.doors, Port: 2929, TokenKey: []byte("key"), Recorder: m.kept, Draw: m.kept.draw,
		Variables: func(port int, token string) map[string]string {
			return map[string]string{"MODEL_URL": fmt.Sprint("http://127.0.0.1:", port), "MODEL_KEY": token}
		},
	})
	if err != nil {
		m.t.Fatal(err)
	}
	return e
}

func (m *machine) halt(e *Engine) {
	m.t.Helper()
	if err := e.Close(); err != nil {
		m.t.Error(err)
	}
	m.cut()
}

// cut closes the files without a word to the engine.
func (m *machine) cut() {
	m.doors.closeAll()
	m.store.Close()
	m.ledger.Close()
}

func start(t *testing.T) (*Engine, *machine) {
	m := newMachine(t)
	e := m.boot()
	t.Cleanup(func() { m.halt(e) })
	return e, m
}

func create() *mayfly.CreateEnvironment { return &mayfly.CreateEnvironment{Template: digest} }

func startRun(t *testing.T, e *Engine, create *mayfly.CreateEnvironment, env string, command ...string) mayfly.Run {
	t.Helper()
	r, err := e.StartRun(t.Context(), mayfly.StartRun{Create: create, Environment: env, Command: command})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func wait(t *testing.T, e *Engine, r mayfly.Run) mayfly.Run {
	t.Helper()
	r, err := e.WaitRun(t.Context(), r.ID)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func events(t testing.TB, e *Engine, f mayfly.EventFilter) (types []string) {
	t.Helper()
	err := e.Events(t.Context(), f, func(event mayfly.Event) error {
		types = append(types, event.Type)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return types
}

func phase(t *testing.T, e *Engine, env string) mayfly.Phase {
	t.Helper()
	got, err := e.Environment(t.Context(), env)
	if err != nil {
		t.Fatal(err)
	}
	return got.Phase
}

func TestRunIsSnapshottedBeforeAndAfterAndEveryFactIsAnEvent(t *testing.T) {
	e, _ := start(t)
	ctx := mayfly.WithActor(t.Context(), "ann")
	r, err := e.StartRun(ctx, mayfly.StartRun{Create: create(), Command: []string{"write", "a", "1"}})
	if err != nil {
		t.Fatal(err)
	}
	r = wait(t, e, r)
	if r.Phase != mayfly.RunExited || r.ExitCode != 0 || r.Actor != "ann" {
		t.Errorf("got = %+v, want an exited run of ann's", r)
	}
	snapshots, err := e.Snapshots(ctx, r.Environment)
	if err != nil || len(snapshots) != 2 || snapshots[0].ID != r.Baseline || snapshots[1].ID != r.Final {
		t.Fatalf("snapshots = %+v, %v, want baseline and final", snapshots, err)
	}
	diff, err := e.Diff(ctx, mayfly.DiffRequest{Environment: r.ID, From: "1"})
	if err != nil {
		t.Fatal(err)
	}
	var changes []mayfly.Change
	if err := json.NewDecoder(diff).Decode(&changes); err != nil || len(changes) != 1 || changes[0].Path != "a" {
		t.Errorf("changes = %v, %v, want a", changes, err)
	}
	want := "environment.requested run.requested snapshot.created environment.ready run.started run.exited snapshot.created"
	if got := strings.Join(events(t, e, mayfly.EventFilter{Environment: r.Environment}), " "); got != want {
		t.Errorf("events\ngot  = %s\nwant = %s", got, want)
	}
}

func TestRemoveDeletesTheEnvironmentWithItsRun(t *testing.T) {
	e, m := start(t)
	r, err := e.StartRun(t.Context(), mayfly.StartRun{Create: create(), Command: []string{"false"}, Remove: true})
	if err != nil {
		t.Fatal(err)
	}
	if r = wait(t, e, r); r.ExitCode != 1 {
		t.Errorf("exit code = %d, want 1", r.ExitCode)
	}
	if got := phase(t, e, r.Environment); got != mayfly.Deleted || !m.driver.Empty() {
		t.Errorf("phase = %s, empty = %v, want deleted and empty", got, m.driver.Empty())
	}
}

func TestRollbackRestoresFilesAndKeepsWhatItReplaced(t *testing.T) {
	e, m := start(t)
	r := wait(t, e, startRun(t, e, create(), "", "write", "a", "1"))
	wait(t, e, startRun(t, e, nil, r.Environment, "write", "a", "2"))
	sleeper := startRun(t, e, nil, r.Environment, "sleep")
	saved, err := e.Rollback(t.Context(), r.Environment, r.Final, "")
	if err != nil {
		t.Fatal(err)
	}
	if got := m.driver.Read(r.Environment, "a"); got != "1" {
		t.Errorf("after rollback: got = %q, want 1", got)
	}
	if got := wait(t, e, sleeper); got.Phase != mayfly.RunKilled {
		t.Errorf("running run: got = %s, want %s", got.Phase, mayfly.RunKilled)
	}
	fork, err := e.CreateEnvironment(t.Context(), mayfly.CreateEnvironment{
		From: &mayfly.SnapshotRef{Environment: r.Environment, Snapshot: saved.ID},
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := m.driver.Read(fork.ID, "a"); got != "2" {
		t.Errorf("fork of what was replaced: got = %q, want 2", got)
	}
	if got := phase(t, e, r.Environment); got != mayfly.Ready {
		t.Errorf("phase = %s, want ready", got)
	}
}

func TestTimeToLivePausesThenDeletes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		e := m.boot()
		req := create()
		req.TTL = 10 * time.Minute
		r := startRun(t, e, req, "", "sleep")
		check := func(after time.Duration, want mayfly.Phase) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := phase(t, e, r.Environment); got != want {
				t.Errorf("got = %s, want %s", got, want)
			}
		}
		check(10*time.Minute-time.Second, mayfly.Ready)
		check(2*time.Second, mayfly.Paused)
		if _, err := e.ResumeEnvironment(t.Context(), r.Environment); mayfly.KindOf(err) != mayfly.Conflict {
			t.Errorf("resume after the end: got = %v, want kind %s", err, mayfly.Conflict)
		}
		if _, err := e.ExtendEnvironment(t.Context(), r.Environment, 5*time.Minute); err != nil {
			t.Error(err)
		}
		check(time.Second, mayfly.Ready)
		check(5*time.Minute, mayfly.Paused)
		check(10*time.Minute, mayfly.Deleted)
		if got := wait(t, e, r); got.Phase != mayfly.RunKilled {
			t.Errorf("run: got = %s, want %s", got.Phase, mayfly.RunKilled)
		}
		m.halt(e)
	})
}

func TestKeepIsNeverDeletedByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		e := m.boot()
		req := create()
		req.TTL, req.Keep = time.Minute, true
		r := startRun(t, e, req, "", "sleep")
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		if got := phase(t, e, r.Environment); got != mayfly.Paused {
			t.Errorf("got = %s, want %s", got, mayfly.Paused)
		}
		m.halt(e)
	})
}

func TestIdleEnvironmentPausesAndResumesForTheNextRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		e := m.boot()
		req := create()
		req.TTL, req.IdleTimeout = 24*time.Hour, time.Minute
		sleeper := startRun(t, e, req, "", "sleep")
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := phase(t, e, sleeper.Environment); got != mayfly.Ready {
			t.Errorf("with a run: got = %s, want %s", got, mayfly.Ready)
		}
		if r, err := e.KillRun(t.Context(), sleeper.ID); err != nil || r.Phase != mayfly.RunKilled {
			t.Errorf("kill: got = %v, %v", r.Phase, err)
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if got := phase(t, e, sleeper.Environment); got != mayfly.Paused {
			t.Errorf("idle: got = %s, want %s", got, mayfly.Paused)
		}
		if r := wait(t, e, startRun(t, e, nil, sleeper.Environment, "true")); r.Phase != mayfly.RunExited {
			t.Errorf("next run: got = %s, want %s", r.Phase, mayfly.RunExited)
		}
		m.halt(e)
	})
}

func TestTimeoutEndsARunThatIgnoresSIGTERM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMachine(t)
		e := m.boot()
		r, err := e.StartRun(t.Context(), mayfly.StartRun{Create: create(), Command: []string{"deaf"}, Timeout: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		r = wait(t, e, r)
		if r.Phase != mayfly.RunTimedOut || r.ExitCode != 137 {
			t.Errorf("got = %s %d, want %s 137", r.Phase, r.ExitCode, mayfly.RunTimedOut)
		}
		if took := time.Since(began); took < 65*time.Second || took > 70*time.Second {
			t.Errorf("took = %v, want timeout and grace", took)
		}
		m.halt(e)
	})
}

func TestSandboxThatDiesEndsItsRunsAndRestartsForTheNext(t *testing.T) {
	e, m := start(t)
	r := startRun(t, e, create(), "", "sleep")
	m.driver.Crash(r.Environment)
	if got := wait(t, e, r); got.Phase != mayfly.RunKilled || got.Reason == "" {
		t.Errorf("got = %+v, want killed with a reason", got)
	}
	if got := wait(t, e, startRun(t, e, nil, r.Environment, "true")); got.Phase != mayfly.RunExited {
		t.Errorf("next run: got = %s, want %s", got.Phase, mayfly.RunExited)
	}
}

func TestCreateThatFailsLeavesNothing(t *testing.T) {
	for _, step := range []string{"create.before", "create.after", "start.before", "start.after"} {
		e, m := start(t)
		m.driver.Fault = func(at string) error {
			if at == step {
				return mayfly.Errorf(mayfly.Exhausted, "disk full")
			}
			return nil
		}
		_, err := e.StartRun(t.Context(), mayfly.StartRun{Create: create(), Command: []string{"true"}})
		if mayfly.KindOf(err) != mayfly.Exhausted {
			t.Errorf("%s: got = %v, want kind %s", step, err, mayfly.Exhausted)
		}
		if !m.driver.Empty() {
			t.Errorf("%s: something is left", step)
		}
	}
}

func TestRequestsThatAreWrongChangeNothing(t *testing.T) {
	e, m := start(t)
	named := create()
	named.Name = "web"
	if _, err := e.CreateEnvironment(t.Context(), *named); err != nil {
		t.Fatal(err)
	}
	before := len(events(t, e, mayfly.EventFilter{}))
	with := func(change func(*mayfly.CreateEnvironment)) mayfly.StartRun {
		c := create()
		change(c)
		return mayfly.StartRun{Create: c, Command: []string{"true"}}
	}
	for name, c := range map[string]struct {
		request mayfly.StartRun
		want    mayfly.Kind
	}{
		"no command":       {mayfly.StartRun{Create: create()}, mayfly.Invalid},
		"no environment":   {mayfly.StartRun{Command: []string{"true"}}, mayfly.Invalid},
		"unknown":          {mayfly.StartRun{Environment: "nope", Command: []string{"true"}}, mayfly.NotFound},
		"NUL":              {mayfly.StartRun{Environment: "web", Command: []string{"a\x00"}}, mayfly.Invalid},
		"relative dir":     {mayfly.StartRun{Environment: "web", Command: []string{"true"}, Dir: "x"}, mayfly.Invalid},
		"huge":             {mayfly.StartRun{Environment: "web", Command: []string{strings.Repeat("x", 2<<20)}}, mayfly.Invalid},
		"bad variable":     {mayfly.StartRun{Environment: "web", Command: []string{"true"}, Env: map[string]string{"a=b": ""}}, mayfly.Invalid},
		"negative timeout": {mayfly.StartRun{Environment: "web", Command: []string{"true"}, Timeout: -1}, mayfly.Invalid},
		"name taken":       {with(func(c *mayfly.CreateEnvironment) { c.Name = "web" }), mayfly.Conflict},
		"bad name":         {with(func(c *mayfly.CreateEnvironment) { c.Name = "Web!" }), mayfly.Invalid},
		"long TTL":         {with(func(c *mayfly.CreateEnvironment) { c.TTL = 365 * 24 * time.Hour }), mayfly.Invalid},
		"bad label":        {with(func(c *mayfly.CreateEnvironment) { c.Labels = map[string]string{"": ""} }), mayfly.Invalid},
		"negative memory":  {with(func(c *mayfly.CreateEnvironment) { c.Limits.Memory = -1 }), mayfly.Invalid},
		"isolation":        {with(func(c *mayfly.CreateEnvironment) { c.Isolation = "vm" }), mayfly.Invalid},
		"no template":      {with(func(c *mayfly.CreateEnvironment) { c.Template = "" }), mayfly.Invalid},
		"missing template": {with(func(c *mayfly.CreateEnvironment) { c.Template = "sha256:0" }), mayfly.Missing},
	} {
		if _, err := e.StartRun(t.Context(), c.request); mayfly.KindOf(err) != c.want {
			t.Errorf("%s: got = %v, want kind %s", name, err, c.want)
		}
	}
	if after := len(events(t, e, mayfly.EventFilter{})); after != before {
		t.Errorf("events = %d, want %d", after, before)
	}
	if there, err := m.driver.List(t.Context()); err != nil || len(there) != 1 {
		t.Errorf("environments there: got = %v, %v, want the first alone", there, err)
	}
}

func TestEnvironmentsAreFoundByNameIDPrefixAndRun(t *testing.T) {
	e, _ := start(t)
	named := create()
	named.Name = "web"
	r := wait(t, e, startRun(t, e, named, "", "true"))
	for _, ref := range []string{"web", r.Environment, r.Environment[:15], r.Environment[4:16], r.ID} {
		if got, err := e.Environment(t.Context(), ref); err != nil || got.ID != r.Environment {
			t.Errorf("%q: got = %s, %v, want %s", ref, got.ID, err, r.Environment)
		}
	}
	for _, ref := range []string{"", "env-", "we", "run-zzzz", "%"} {
		if _, err := e.Environment(t.Context(), ref); mayfly.KindOf(err) != mayfly.NotFound {
			t.Errorf("%q: got = %v, want kind %s", ref, err, mayfly.NotFound)
		}
	}
}

// TestCrashAnywhereIsRepaired runs a story, cuts the engine off at every
// effect of its driver in turn, lets a new engine take over, and checks that
// the story can be told to its end.
func TestCrashAnywhereIsRepaired(t *testing.T) {
	for crash := 1; ; crash++ {
		m := newMachine(t)
		var count atomic.Int64
		var mu sync.Mutex
		engine := m.boot()
		current := func() *Engine { mu.Lock(); defer mu.Unlock(); return engine }
		crashed := make(chan struct{})
		m.driver.Fault = func(step string) error {
			if count.Add(1) == int64(crash) {
				current().cancel() // from here on this engine saves nothing
				close(crashed)
				return fmt.Errorf("crash at %s", step)
			}
			return nil
		}
		go func() {
			<-crashed
			mu.Lock()
			defer mu.Unlock()
			engine.wg.Wait()
			m.cut()
			engine = m.boot()
		}()
		story(t, m, current)
		engine = current()
		seen := map[string]bool{}
		last := uint64(0)
		err := engine.Events(t.Context(), mayfly.EventFilter{}, func(event mayfly.Event) error {
			if seen[event.ID] || event.Seq != last+1 {
				t.Errorf("crash %d: event %d %s twice or out of order", crash, event.Seq, event.ID)
			}
			seen[event.ID], last = true, event.Seq
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		m.halt(engine)
		if !m.driver.Empty() {
			t.Errorf("crash %d: something is left", crash)
		}
		if count.Load() < int64(crash) {
			t.Logf("%d crashes", crash-1)
			return
		}
	}
}

// story retries each request that a stopping engine refuses, as a client does.
func story(t *testing.T, m *machine, engine func() *Engine) {
	t.Helper()
	retry := func(do func(*Engine) error) {
		t.Helper()
		for began := time.Now(); time.Since(began) < 30*time.Second; {
			e := engine()
			err := do(e)
			if err == nil {
				return
			}
			if e == engine() && e.ctx.Err() == nil && !errors.Is(err, errAgain) {
				t.Fatal(err)
			}
			time.Sleep(5 * time.Millisecond)
		}
		t.Fatal("gave up")
	}
	ctx := t.Context()
	find := func(e *Engine, name string) (mayfly.Environment, bool) {
		env, err := e.Environment(ctx, name)
		return env, err == nil
	}
	retry(func(e *Engine) error {
		if _, ok := find(e, "one"); ok {
			_, err := e.awaitPhase(ctx, mustFind(e, "one"), func(env *environment) bool { return env.Phase == mayfly.Ready })
			return err
		}
		req := create()
		req.Name = "one"
		_, err := e.CreateEnvironment(ctx, *req)
		return err
	})
	command := func(words ...string) {
		t.Helper()
		retry(func(e *Engine) error {
			runs, err := e.Runs(ctx, mayfly.RunFilter{Environment: "one"})
			if err != nil {
				return err
			}
			i := slices.IndexFunc(runs, func(r mayfly.Run) bool { return slices.Equal(r.Command, words) })
			if i < 0 {
				_, err = e.StartRun(ctx, mayfly.StartRun{Environment: "one", Command: words})
				return errors.Join(err, e.ctx.Err(), errAgain)
			}
			r, err := e.WaitRun(ctx, runs[i].ID)
			if err == nil && (r.Phase != mayfly.RunExited || r.Baseline == "" || r.Final == "") {
				t.Errorf("run = %+v, want exited with two snapshots", r)
			}
			return err
		})
	}
	command("write", "a", "1")
	command("write", "a", "2")
	retry(func(e *Engine) error {
		if _, err := e.Rollback(ctx, "one", "2", ""); err != nil {
			return err
		}
		return nil
	})
	id := mustFind(engine(), "one")
	if got := m.driver.Read(id, "a"); got != "1" {
		t.Errorf("after rollback: got = %q, want 1", got)
	}
	retry(func(e *Engine) error {
		if _, ok := find(e, "two"); ok {
			_, err := e.awaitPhase(ctx, mustFind(e, "two"), func(env *environment) bool { return env.Phase == mayfly.Ready })
			return err
		}
		_, err := e.CreateEnvironment(ctx, mayfly.CreateEnvironment{Name: "two", From: &mayfly.SnapshotRef{Environment: "one", Snapshot: "4"}})
		return err
	})
	if got := m.driver.Read(mustFind(engine(), "two"), "a"); got != "2" {
		t.Errorf("fork: got = %q, want 2", got)
	}
	retry(func(e *Engine) error {
		_, err := e.DeleteSnapshot(ctx, "one", "4")
		list, listErr := e.Snapshots(ctx, "one")
		if mayfly.KindOf(err) == mayfly.NotFound && listErr == nil && len(list) > 3 { // asked for before the crash
			if err = nil; list[3].DeletedAt.IsZero() {
				err = errAgain
			}
		}
		return errors.Join(err, listErr)
	})
	for _, name := range []string{"one", "two"} {
		retry(func(e *Engine) error {
			env, ok := find(e, name)
			if !ok {
				return e.ctx.Err()
			}
			_, err := e.DeleteEnvironment(ctx, env.ID)
			return err
		})
	}
}

var errAgain = errors.New("look again")

func mustFind(e *Engine, name string) string {
	env, _ := e.Environment(context.Background(), name)
	return env.ID
}

func TestEventsAppendedJustBeforeACrashAreNotAppendedAgain(t *testing.T) {
	m := newMachine(t)
	e := m.boot()
	wait(t, e, startRun(t, e, create(), "", "true"))
	m.halt(e)
	// Put the last event back into the outbox, as if Sent had not happened.
	ctx := t.Context()
	m.store, _ = store.Open(ctx, filepath.Join(m.dir, "mayfly.db"))
	l, err := ledger.Open(filepath.Join(m.dir, "ledger"))
	if err != nil {
		t.Fatal(err)
	}
	before := l.Last()
	m.store.Update(ctx, func(tx *store.Tx) error { return tx.Emit(mayfly.Event{Type: "twice"}) })
	outgoing, _, _ := m.store.Outgoing(ctx, 0, 10)
	if err := l.Append(ctx, outgoing...); err != nil {
		t.Fatal(err)
	}
	l.Close()
	m.store.Close()
	e = m.boot()
	if got := uint64(len(events(t, e, mayfly.EventFilter{}))); got != before+1 {
		t.Errorf("events = %d, want %d", got, before+1)
	}
	m.halt(e)
}

// reader is an attachment that ends when it is told to.
type reader struct {
	mayfly.Attachment
	end chan struct{}
}

func (r reader) Recv() (mayfly.Output, error) { <-r.end; return mayfly.Output{}, io.EOF }
func (r reader) Close() error                 { return nil }

func TestRemoveWaitsForTheAnnouncedReader(t *testing.T) {
	for name, c := range map[string]struct {
		attach bool          // whether the reader who was announced comes
		want   time.Duration // until the environment is gone
	}{
		"it comes and reads for long": {true, time.Minute},
		"it does not come":            {false, attachPatience},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := newMachine(t)
				e := m.boot()
				began := time.Now()
				r, err := e.StartRun(t.Context(), mayfly.StartRun{Create: create(), Command: []string{"true"}, Remove: true, Attach: true})
				if err != nil {
					t.Fatal(err)
				}
				if c.attach {
					a := e.hold(&run{Run: r}, reader{end: make(chan struct{})})
					time.AfterFunc(time.Minute, func() { a.Close() })
				}
				wait(t, e, r)
				if took := time.Since(began); took < c.want || took > c.want+time.Second {
					t.Errorf("gone after %v, want %v", took, c.want)
				}
				m.halt(e)
			})
		})
	}
}
