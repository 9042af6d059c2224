// Package crash kills the server at random moments and checks that nothing is
// lost and nothing is left over.
package crash

import (
	"context"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

var (
	points = flag.Int("points", 12, "how often to kill the server")
	seed   = flag.Uint64("seed", uint64(time.Now().UnixNano()), "of the random moments")
)

func TestMain(m *testing.M) {
	flag.Parse()
	dir, err := os.MkdirTemp("", "mayfly-crash-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	build := exec.Command("go", "build", "-o", dir+"/", "mayfly.dev/mayfly/cmd/mayfly", "mayfly.dev/mayfly/cmd/mayfly-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "%v\n%s", err, out)
		os.Exit(1)
	}
	binaries = dir
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

// promise is what a client was told about an environment.
type promise struct {
	name      string
	runs      map[string]int     // run id to the exit code that was reported
	snapshots map[string]content // snapshot id to what is in it
	live      content            // zero when it is not known for certain
	either    []content          // what a live state that is not known may be; nil: anything
}

// content is what an environment holds: a file and, with a database, a row.
type content struct{ file, row string }

// world is what clients were told, and what they have asked for without an
// answer.
type world struct {
	in       *installation
	database bool // environments have one
	rng      *rand.Rand
	promises map[string]*promise // by environment id
	deleted  map[string]bool     // acknowledged
	agent    mayfly.Run          // runs through all crashes
	count    int
	prepared int                      // templates
	took     map[string]time.Duration // of each operation, undisturbed
}

// operation asks the server for something and notes the promise it makes.
type operation struct {
	name  string
	do    func(w *world, ctx context.Context) error
	again bool // once more after a kill, as its client would
}

var operations = []operation{
	{name: "create", do: (*world).create},
	{name: "run", do: (*world).run},
	{name: "snapshot", do: (*world).snapshot},
	{name: "rollback", do: (*world).rollback},
	{name: "fork", do: (*world).fork},
	{name: "delete", do: (*world).delete},
}

// databaseOperations are for environments with a database.
var databaseOperations = append([]operation{
	{name: "prepare", do: (*world).prepare, again: true},
	{name: "rollback of the database", do: (*world).rollbackDatabase},
}, operations...)

func (o operation) String() string { return o.name }

func TestKilledServerLosesNothingAndLeavesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: environments are made of namespaces, mounts and cgroups")
	}
	kill(t, &world{in: install(t)}, operations, *points)
}

// The database of an environment goes on without a server, and is found again
// by the next one.
func TestKilledServerLosesNothingOfDatabases(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: environments are made of namespaces, mounts and cgroups")
	}
	files, service := stateOf("start")
	service.Postgres.Spare = true
	w := &world{in: installWith(t, files, service), database: true}
	kill(t, w, databaseOperations, *points*len(databaseOperations)/12)
}

// kill does each operation once undisturbed, and then kills the server in the
// middle of them.
func kill(t *testing.T, w *world, operations []operation, points int) {
	t.Logf("seed %d", *seed)
	w.rng = rand.New(rand.NewPCG(*seed, 0))
	w.promises, w.deleted, w.took = map[string]*promise{}, map[string]bool{}, map[string]time.Duration{}
	w.startAgent()
	if err := w.create(t.Context()); err != nil {
		t.Fatalf("%v\n%s", err, w.in.logTail())
	}
	for _, o := range operations { // to learn how long they take
		began := time.Now()
		if err := o.do(w, t.Context()); err != nil {
			t.Fatalf("%s: %v\n%s", o, err, w.in.logTail())
		}
		w.took[o.name] = time.Since(began)
	}
	for i := range points {
		o := operations[i%len(operations)]
		after := w.crashDuring(o)
		w.check()
		if t.Failed() {
			t.Fatalf("after kill %d, %v into %s, which takes %v\n%s", i+1, after, o, w.took[o.name], w.in.logTail())
		}
	}
	w.finish()
}

// crashDuring begins an operation and kills the server at a random moment of
// it, or shortly after.
func (w *world) crashDuring(o operation) (after time.Duration) {
	if len(w.promises) < 2 {
		if err := w.create(w.in.t.Context()); err != nil {
			w.in.t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(w.in.t.Context())
	defer cancel()
	done := make(chan error, 1)
	delay := time.Duration(w.rng.Int64N(int64(w.took[o.name]*3/2) + 1))
	// The operation draws its own random numbers before the timer starts.
	go func() { done <- o.do(w, ctx) }()
	time.Sleep(delay)
	w.in.kill()
	cancel()
	<-done
	w.in.start()
	if o.again {
		if err := o.do(w, w.in.t.Context()); err != nil {
			w.in.t.Errorf("%s after a kill: %v", o, err)
		}
	}
	return delay
}

func (w *world) startAgent() {
	script := "echo started; while [ ! -e stop ]; do sleep 0.05; done; echo stopped; exit 42"
	if w.database { // its connection string works all the time
		script = `echo started; while [ ! -e stop ]; do psql -qAtc 'SELECT FROM state' "$DATABASE_URL" >>said 2>&1 || cat said; sleep 0.1; done; echo stopped; exit 42`
	}
	r, err := w.in.client.StartRun(w.in.t.Context(), mayfly.StartRun{
		Create:  &mayfly.CreateEnvironment{Template: w.in.lock.Template, Name: "agent", TTL: 6 * time.Hour},
		Command: []string{"sh", "-c", script},
	})
	if err != nil {
		w.in.t.Fatalf("start agent: %v\n%s", err, w.in.logTail())
	}
	w.agent = r
}

// pick returns one of the environments that were promised.
func (w *world) pick() (string, *promise) {
	n := w.rng.IntN(len(w.promises))
	for _, id := range slices.Sorted(maps.Keys(w.promises)) {
		if n == 0 {
			return id, w.promises[id]
		}
		n--
	}
	panic("unreachable")
}

func (w *world) create(ctx context.Context) error {
	return w.createOf(ctx, w.in.lock.Template, w.start())
}

// start is what environments begin with.
func (w *world) start() content {
	if w.database {
		return content{"start", "start"}
	}
	return content{file: "start"}
}

func (w *world) createOf(ctx context.Context, template string, begin content) error {
	w.count++
	name := fmt.Sprintf("env-%d-%d", w.count, w.rng.Uint32())
	env, err := w.in.client.CreateEnvironment(ctx, mayfly.CreateEnvironment{Template: template, Name: name, TTL: 6 * time.Hour})
	if err != nil {
		return err
	}
	w.promises[env.ID] = newPromise(name, begin)
	return nil
}

func newPromise(name string, live content) *promise {
	return &promise{name: name, runs: map[string]int{}, snapshots: map[string]content{}, live: live}
}

func (w *world) run(ctx context.Context) error {
	id, p := w.pick()
	code := w.rng.IntN(100)
	text := fmt.Sprint(w.rng.Uint32())
	after := content{file: text}
	script := "echo " + text + " > file; "
	if w.database {
		after.row = text
		script += "psql -qc 'UPDATE state SET text = " + text + "' || exit 200; "
	}
	p.unknown() // until the run has ended
	r, err := w.in.client.StartRun(ctx, mayfly.StartRun{
		Environment: id,
		Command:     []string{"sh", "-c", fmt.Sprint(script, "exit ", code)},
	})
	if err != nil {
		return err
	}
	p.runs[r.ID] = code // started: from here on the end must come, and be this
	if r, err = w.in.client.WaitRun(ctx, r.ID); err != nil {
		return err
	}
	p.live = after
	p.snapshots[r.Final] = after
	return nil
}

// unknown notes that the live state is about to become one of several, or
// anything.
func (p *promise) unknown(either ...content) {
	if p.live == (content{}) || len(p.runs) > 0 {
		either = nil
	}
	p.live, p.either = content{}, either
}

func (w *world) snapshot(ctx context.Context) error {
	id, p := w.pick()
	live := p.live
	snap, err := w.in.client.CreateSnapshot(ctx, id, "")
	if err == nil && live != (content{}) {
		p.snapshots[snap.ID] = live
	}
	return err
}

func (w *world) rollback(ctx context.Context) error { return w.rollbackTo(ctx, "") }

func (w *world) rollbackDatabase(ctx context.Context) error {
	return w.rollbackTo(ctx, mayfly.DatabaseSide)
}

func (w *world) rollbackTo(ctx context.Context, only mayfly.Side) error {
	id, p := w.pick()
	for snap, after := range p.snapshots {
		before := p.live
		if only == mayfly.DatabaseSide {
			if before == (content{}) {
				break
			}
			after.file = before.file
		}
		p.unknown(before, after)
		p.runs = map[string]int{} // one may still be on its way, and is ended
		_, err := w.in.client.Rollback(ctx, id, snap, only)
		if err == nil {
			p.live = after
		}
		return err
	}
	return w.snapshot(ctx)
}

func (w *world) fork(ctx context.Context) error {
	id, p := w.pick()
	w.count++
	name := fmt.Sprintf("fork-%d-%d", w.count, w.rng.Uint32())
	for snap, content := range p.snapshots {
		env, err := w.in.client.CreateEnvironment(ctx, mayfly.CreateEnvironment{
			From: &mayfly.SnapshotRef{Environment: id, Snapshot: snap}, Name: name, TTL: 6 * time.Hour,
		})
		if err == nil {
			w.promises[env.ID] = newPromise(name, content)
		}
		return err
	}
	return w.snapshot(ctx)
}

func (w *world) delete(ctx context.Context) error {
	id, _ := w.pick()
	delete(w.promises, id) // asked for: it may or may not be there from now on
	_, err := w.in.client.DeleteEnvironment(ctx, id)
	if err == nil {
		w.deleted[id] = true
	}
	return err
}

// check holds the restarted server to everything that was promised.
func (w *world) check() {
	t, c, ctx := w.in.t, w.in.client, w.in.t.Context()
	t.Helper()
	var all sync.WaitGroup
	for id, p := range w.promises {
		all.Go(func() { w.checkEnvironment(id, p) })
	}
	all.Wait()
	for id := range w.deleted {
		if env, err := c.Environment(ctx, id); err != nil || env.Phase != mayfly.Deleted {
			t.Errorf("deleted environment %s: phase %s, %v", id, env.Phase, err)
		}
	}
	w.in.checkVolumes()
	if r, err := c.Run(ctx, w.agent.ID); err != nil || r.Phase != mayfly.RunRunning {
		t.Errorf("agent: got = %s %s, %v, want running", r.Phase, r.Reason, err)
	}
}

func (w *world) checkEnvironment(id string, p *promise) {
	t, c, ctx := w.in.t, w.in.client, w.in.t.Context()
	t.Helper()
	env, err := c.Environment(ctx, id)
	if err != nil || env.Phase != mayfly.Ready && env.Phase != mayfly.Pending {
		t.Errorf("environment %s: phase %s, %v", p.name, env.Phase, err)
		return
	}
	for run, code := range p.runs {
		r, err := c.WaitRun(ctx, run)
		if err != nil || r.ExitCode != code || r.Phase != mayfly.RunExited {
			t.Errorf("run %s: got = %s %d, %v, want exit code %d", run, r.Phase, r.ExitCode, err, code)
		}
		delete(p.runs, run)
		if p.live == (content{}) && err == nil {
			p.live = w.read(id)
			p.snapshots[r.Final] = p.live
		}
	}
	w.settle(id)
	have := map[string]bool{}
	snapshots, err := c.Snapshots(ctx, id)
	if err != nil {
		t.Errorf("snapshots of %s: %v", p.name, err)
	}
	for _, s := range snapshots {
		have[s.ID] = true
	}
	for snap := range p.snapshots {
		if !have[snap] {
			t.Errorf("snapshot %s of %s is lost", snap, p.name)
		}
	}
	got := w.read(id)
	if p.live != (content{}) {
		p.either = []content{p.live}
	}
	if p.either != nil && !slices.Contains(p.either, got) {
		t.Errorf("content of %s: got = %v, want one of %v", p.name, got, p.either)
	}
	p.live, p.either = got, nil
}

// settle waits for the runs of an environment whose start was not
// acknowledged and which may be on their way all the same.
func (w *world) settle(env string) {
	t, c, ctx := w.in.t, w.in.client, w.in.t.Context()
	t.Helper()
	runs, err := c.Runs(ctx, mayfly.RunFilter{Environment: env})
	if err != nil {
		t.Errorf("runs: %v", err)
	}
	for _, r := range runs {
		if _, err := c.WaitRun(ctx, r.ID); err != nil {
			t.Errorf("wait for run %s: %v", r.ID, err)
		}
	}
}

// read returns what is in an environment, by running a command there.
func (w *world) read(env string) content {
	t, c, ctx := w.in.t, w.in.client, w.in.t.Context()
	t.Helper()
	script := "cat file"
	if w.database {
		script += "; psql -qAtc 'SELECT text FROM state'"
	}
	r, err := c.StartRun(ctx, mayfly.StartRun{Environment: env, Kind: mayfly.ExecRun, Command: []string{"sh", "-c", script}})
	if err != nil {
		t.Errorf("read: %v", err)
		return content{}
	}
	file, row, _ := strings.Cut(output(t, w, r), "\n")
	return content{file, strings.TrimSuffix(row, "\n")}
}

func output(t *testing.T, w *world, r mayfly.Run) string {
	t.Helper()
	a, err := w.in.client.AttachRun(t.Context(), r.ID, true)
	if err != nil {
		t.Errorf("attach: %v", err)
		return ""
	}
	defer a.Close()
	var text strings.Builder
	for {
		o, err := a.Recv()
		if err == io.EOF {
			return text.String()
		}
		if err != nil {
			t.Errorf("attach: %v", err)
			return text.String()
		}
		text.Write(o.Data)
	}
}

// finish ends the agent that ran through all crashes, deletes everything and
// checks that nothing is left.
func (w *world) finish() {
	t, c, ctx := w.in.t, w.in.client, w.in.t.Context()
	if _, err := c.StartRun(ctx, mayfly.StartRun{Environment: w.agent.ID, Kind: mayfly.ExecRun, Command: []string{"touch", "stop"}}); err != nil {
		t.Error(err)
	}
	r, err := c.WaitRun(ctx, w.agent.ID)
	if err != nil || r.ExitCode != 42 {
		t.Errorf("agent: got = %s %d, %v, want exit code 42", r.Phase, r.ExitCode, err)
	}
	if got, want := output(t, w, r), "started\nstopped\n"; got != want {
		t.Errorf("the agent's output: got = %q, want %q", got, want)
	}
	environments, err := c.Environments(ctx, mayfly.EnvironmentFilter{})
	if err != nil {
		t.Fatal(err)
	}
	for _, env := range environments {
		if _, err := c.DeleteEnvironment(ctx, env.ID); err != nil {
			t.Errorf("delete %s: %v", env.Name, err)
		}
	}
	w.in.checkVolumes()
	w.in.stop()
	w.in.awaitNothing()
	t.Logf("%d events, each once", w.in.checkLedger())
	if socket := filepath.Join(w.in.dir, "mayfly.sock"); exists(socket) {
		t.Errorf("%s is left", socket)
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
