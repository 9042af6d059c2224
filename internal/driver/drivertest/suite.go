package drivertest

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
)

// Fixture is an implementation under test.
type Fixture struct {
	Driver    driver.Driver
	Isolation mayfly.Isolation                     // of the environments; empty: native
	Template  string                               // digest of a prepared template
	Write     func(name, content string) []string  // a command that writes a file and ends with 0
	Hear      func(port int, word string) []string // a command that ends with 0 if it reads the word as a line at 127.0.0.1:port
	Sleep     []string                             // a command that runs until it gets a signal
	Fail      []string                             // a command that ends with 1
}

// suite is one test's environment.
type suite struct {
	Fixture
	t   *testing.T
	ctx context.Context
	n   uint32
}

// Run holds an implementation to the contract of driver.Driver.
func Run(t *testing.T, open func(t *testing.T) Fixture) {
	for name, test := range map[string]func(*suite){
		"EveryMethodMayBeRepeated":           (*suite).repeat,
		"StartGoesOnFromPrepare":             (*suite).prepare,
		"ProcessEndsWithItsStatus":           (*suite).status,
		"CommandThatDoesNotExistEndsWith127": (*suite).missingCommand,
		"SignalEndsAProcess":                 (*suite).signal,
		"StopEndsProcessesAndKeepsFiles":     (*suite).stop,
		"RollbackRestoresTheSnapshot":        (*suite).rollback,
		"ForkBeginsWithTheSnapshot":          (*suite).fork,
		"ForkOfAForkLivesOnAlone":            (*suite).forkOfFork,
		"PausedEnvironmentKeepsItsProcess":   (*suite).pause,
		"SnapshotOfAPausedOneStaysPaused":    (*suite).pausedSnapshot,
		"UnknownTemplateIsMissing":           (*suite).unknownTemplate,
		"ProcessReachesAListener":            (*suite).listen,
		"ListenerIsOfOneEnvironment":         (*suite).listenAlone,
		"ListenerEndsWithTheSandbox":         (*suite).listenStop,
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			test(&suite{Fixture: open(t), t: t, ctx: ctx})
		})
	}
}

func (s *suite) ok(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// handle makes a handle that is destroyed after the test.
func (s *suite) handle() driver.Handle {
	s.n++
	h := driver.Handle{
		Environment: mayfly.NewID("env", time.Now()), Isolation: cmp.Or(s.Isolation, mayfly.Native),
		UIDBase: 0x4000_0000 + s.n*0x1_0000,
	}
	s.t.Cleanup(func() {
		if err := s.Driver.Destroy(context.Background(), h); err != nil {
			s.t.Error(err)
		}
	})
	return h
}

func (s *suite) spec() driver.Spec {
	return driver.Spec{Template: s.Template, Limits: mayfly.DefaultLimits}
}

// up makes a running environment.
func (s *suite) up(from *mayfly.SnapshotRef) (driver.Handle, driver.Spec) {
	s.t.Helper()
	h, spec := s.handle(), s.spec()
	spec.From = from
	s.ok(s.Driver.Create(s.ctx, h, spec))
	s.ok(s.Driver.Start(s.ctx, h, spec))
	s.expect(h, driver.SandboxAlive)
	return h, spec
}

func (s *suite) expect(h driver.Handle, want driver.SandboxState) {
	s.t.Helper()
	seen, err := s.Driver.Inspect(s.ctx, h)
	s.ok(err)
	if seen.Sandbox != want {
		s.t.Errorf("sandbox: got = %s, want %s", seen.Sandbox, want)
	}
}

// run runs a command to its end.
func (s *suite) run(h driver.Handle, spec driver.Spec, command ...string) driver.Exit {
	s.t.Helper()
	p := driver.Process{Run: mayfly.NewID("run", time.Now()), Command: command}
	s.ok(s.Driver.StartProcess(s.ctx, h, spec, p))
	exit, err := s.Driver.WaitProcess(s.ctx, h, p.Run)
	s.ok(err)
	return exit
}

func (s *suite) hash(h driver.Handle, spec driver.Spec, snapshot string) string {
	s.t.Helper()
	hash, err := s.Driver.Hash(s.ctx, h, spec, snapshot, "")
	s.ok(err)
	return hash
}

func (s *suite) repeat() {
	h, spec := s.handle(), s.spec()
	p := driver.Process{Run: mayfly.NewID("run", time.Now()), Command: s.Write("a", "1")}
	for range 2 {
		s.ok(s.Driver.Create(s.ctx, h, spec))
	}
	for range 2 {
		s.ok(s.Driver.Start(s.ctx, h, spec))
	}
	for range 2 {
		s.ok(s.Driver.StartProcess(s.ctx, h, spec, p))
	}
	for range 2 {
		_, err := s.Driver.WaitProcess(s.ctx, h, p.Run)
		s.ok(err)
	}
	for range 2 {
		_, err := s.Driver.Snapshot(s.ctx, h, "one", false)
		s.ok(err)
	}
	s.run(h, spec, s.Write("a", "2")...)
	for range 2 {
		s.ok(s.Driver.Stop(s.ctx, h))
	}
	for range 2 {
		s.ok(s.Driver.Rollback(s.ctx, h, spec, "one", ""))
	}
	if got, want := s.hash(h, spec, ""), s.hash(h, spec, "one"); got != want {
		s.t.Errorf("after two rollbacks: got = %s, want %s", got, want)
	}
	for range 2 {
		s.ok(s.Driver.RemoveSnapshot(s.ctx, h, "one"))
	}
	for range 2 {
		s.ok(s.Driver.Destroy(s.ctx, h))
	}
	s.expect(h, driver.SandboxGone)
	handles, err := s.Driver.List(s.ctx)
	s.ok(err)
	if slices.ContainsFunc(handles, func(o driver.Handle) bool { return o.Environment == h.Environment }) {
		s.t.Errorf("%s is listed after it was destroyed", h.Environment)
	}
}

func (s *suite) prepare() {
	p, ok := s.Driver.(driver.Preparer)
	if !ok {
		return
	}
	h, spec := s.handle(), s.spec()
	p.Prepare(s.ctx, h, spec)
	s.ok(s.Driver.Stop(s.ctx, h))
	s.expect(h, driver.SandboxGone)
	handles, err := s.Driver.List(s.ctx)
	s.ok(err)
	for _, left := range handles {
		if left.Environment == h.Environment {
			s.t.Error("Stop left something of what Prepare began")
		}
	}
	p.Prepare(s.ctx, h, spec)
	s.ok(s.Driver.Create(s.ctx, h, spec))
	_, err = s.Driver.Snapshot(s.ctx, h, "first", false)
	s.ok(err)
	s.ok(s.Driver.Start(s.ctx, h, spec))
	s.expect(h, driver.SandboxAlive)
	if exit := s.run(h, spec, s.Write("a", "1")...); exit.Code != 0 {
		s.t.Errorf("exit status: got = %d, want 0", exit.Code)
	}
}

func (s *suite) status() {
	h, spec := s.up(nil)
	if got := s.run(h, spec, s.Write("a", "1")...).Code; got != 0 {
		s.t.Errorf("got = %d, want 0", got)
	}
	if got := s.run(h, spec, s.Fail...).Code; got != 1 {
		s.t.Errorf("got = %d, want 1", got)
	}
}

func (s *suite) missingCommand() {
	h, spec := s.up(nil)
	if got := s.run(h, spec, "no-such-command"); got.Code != 127 || got.Reason == "" {
		s.t.Errorf("got = %+v, want 127 and a reason", got)
	}
}

func (s *suite) signal() {
	h, spec := s.up(nil)
	p := driver.Process{Run: mayfly.NewID("run", time.Now()), Command: s.Sleep}
	s.ok(s.Driver.StartProcess(s.ctx, h, spec, p))
	ctx, cancel := context.WithTimeout(s.ctx, 50*time.Millisecond)
	defer cancel()
	if _, err := s.Driver.WaitProcess(ctx, h, p.Run); !errors.Is(err, context.DeadlineExceeded) {
		s.t.Errorf("wait: got = %v, want %v", err, context.DeadlineExceeded)
	}
	s.ok(s.Driver.SignalProcess(s.ctx, h, p.Run, int(syscall.SIGTERM)))
	exit, err := s.Driver.WaitProcess(s.ctx, h, p.Run)
	s.ok(err)
	if want := 128 + int(syscall.SIGTERM); exit.Code != want {
		s.t.Errorf("got = %d, want %d", exit.Code, want)
	}
	s.ok(s.Driver.SignalProcess(s.ctx, h, p.Run, int(syscall.SIGTERM))) // of one that has ended
}

func (s *suite) stop() {
	h, spec := s.up(nil)
	s.run(h, spec, s.Write("a", "1")...)
	before := s.hash(h, spec, "")
	p := driver.Process{Run: mayfly.NewID("run", time.Now()), Command: s.Sleep}
	s.ok(s.Driver.StartProcess(s.ctx, h, spec, p))
	s.ok(s.Driver.Stop(s.ctx, h))
	s.expect(h, driver.SandboxGone)
	if _, err := s.Driver.WaitProcess(s.ctx, h, p.Run); mayfly.KindOf(err) != mayfly.NotFound {
		s.t.Errorf("process that nobody recorded: got = %v, want kind %s", err, mayfly.NotFound)
	}
	s.ok(s.Driver.Start(s.ctx, h, spec))
	if got := s.hash(h, spec, ""); got != before {
		s.t.Errorf("files after stop and start: got = %s, want %s", got, before)
	}
}

func (s *suite) rollback() {
	h, spec := s.up(nil)
	s.run(h, spec, s.Write("a", "1")...)
	_, err := s.Driver.Snapshot(s.ctx, h, "one", false)
	s.ok(err)
	s.run(h, spec, s.Write("a", "2")...)
	s.run(h, spec, s.Write("b", "2")...)
	_, err = s.Driver.Snapshot(s.ctx, h, "two", false)
	s.ok(err)
	if s.hash(h, spec, "one") == s.hash(h, spec, "two") {
		s.t.Error("two different states have one hash")
	}
	for _, to := range []string{"one", "two", "one"} {
		s.ok(s.Driver.Stop(s.ctx, h))
		s.ok(s.Driver.Rollback(s.ctx, h, spec, to, ""))
		s.ok(s.Driver.Start(s.ctx, h, spec))
		if got, want := s.hash(h, spec, ""), s.hash(h, spec, to); got != want {
			s.t.Errorf("live after rollback to %s: got = %s, want %s", to, got, want)
		}
	}
	s.run(h, spec, s.Write("c", "3")...) // what was restored can be written to
}

func (s *suite) fork() {
	h, spec := s.up(nil)
	s.run(h, spec, s.Write("a", "1")...)
	_, err := s.Driver.Snapshot(s.ctx, h, "one", false)
	s.ok(err)
	s.run(h, spec, s.Write("a", "2")...)
	fork, forkSpec := s.up(&mayfly.SnapshotRef{Environment: h.Environment, Snapshot: "one"})
	if got, want := s.hash(fork, forkSpec, ""), s.hash(h, spec, "one"); got != want {
		s.t.Errorf("fork: got = %s, want %s", got, want)
	}
	s.run(fork, forkSpec, s.Write("a", "3")...)
	if s.hash(h, spec, "one") == s.hash(fork, forkSpec, "") {
		s.t.Error("writing to the fork changed the snapshot")
	}
}

func (s *suite) forkOfFork() {
	h, spec := s.up(nil)
	s.run(h, spec, s.Write("a", "1")...)
	_, err := s.Driver.Snapshot(s.ctx, h, "one", false)
	s.ok(err)
	second, secondSpec := s.up(&mayfly.SnapshotRef{Environment: h.Environment, Snapshot: "one"})
	_, err = s.Driver.Snapshot(s.ctx, second, "one", false)
	s.ok(err)
	want := s.hash(second, secondSpec, "one")
	third, thirdSpec := s.up(&mayfly.SnapshotRef{Environment: second.Environment, Snapshot: "one"})
	s.ok(s.Driver.Destroy(s.ctx, h))
	s.ok(s.Driver.Destroy(s.ctx, second))
	if got := s.hash(third, thirdSpec, ""); got != want {
		s.t.Errorf("got = %s, want %s", got, want)
	}
	s.run(third, thirdSpec, s.Write("b", "1")...)
}

func (s *suite) pauser() driver.Pauser {
	p, ok := s.Driver.(driver.Pauser)
	if !ok {
		s.t.Fatal("the driver cannot pause") // both that exist can
	}
	return p
}

func (s *suite) pause() {
	h, spec := s.up(nil)
	p := driver.Process{Run: mayfly.NewID("run", time.Now()), Command: s.Sleep}
	s.ok(s.Driver.StartProcess(s.ctx, h, spec, p))
	for range 2 {
		s.ok(s.pauser().Pause(s.ctx, h))
	}
	s.expect(h, driver.SandboxFrozen)
	for range 2 {
		s.ok(s.pauser().Resume(s.ctx, h))
	}
	s.expect(h, driver.SandboxAlive)
	for range 4 {
		s.ok(s.pauser().Pause(s.ctx, h))
		s.ok(s.pauser().Resume(s.ctx, h))
		if x := s.run(h, spec, s.Write("after", "on")...); x.Code != 0 {
			s.t.Errorf("command after a pause: got = %+v, want 0", x)
		}
	}
	s.ok(s.Driver.SignalProcess(s.ctx, h, p.Run, int(syscall.SIGTERM)))
	_, err := s.Driver.WaitProcess(s.ctx, h, p.Run)
	s.ok(err)
}

func (s *suite) pausedSnapshot() {
	h, _ := s.up(nil)
	s.ok(s.pauser().Pause(s.ctx, h))
	_, err := s.Driver.Snapshot(s.ctx, h, "one", false)
	s.ok(err)
	s.expect(h, driver.SandboxFrozen)
}

func (s *suite) unknownTemplate() {
	there, err := s.Driver.HasTemplate(s.ctx, "sha256:unknown")
	s.ok(err)
	if there {
		s.t.Error("an unknown template is said to be there")
	}
	there, err = s.Driver.HasTemplate(s.ctx, s.Template)
	s.ok(err)
	if !there {
		s.t.Error("the template is said to be missing")
	}
}
