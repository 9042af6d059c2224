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
	runs      map[string]int    // run id to the exit code that was reported
	snapshots map[string]string // snapshot id to the file's content in it
	live      string            // content of the file, when known for certain
}

// world is what clients were told, and what they have asked for without an
// answer.
type world struct {
	in       *installation
	rng      *rand.Rand
	promises map[string]*promise // by environment id
	deleted  map[string]bool     // acknowledged
	agent    mayfly.Run          // runs through all crashes
	count    int
	took     map[string]time.Duration // of each operation, undisturbed
}

// operation asks the server for something and notes the promise it makes.
type operation struct {
	name string
	do   func(w *world, ctx context.Context) error
}

var operations = []operation{
	{"create", (*world).create},
	{"run", (*world).run},
	{"snapshot", (*world).snapshot},
	{"rollback", (*world).rollback},
	{"fork", (*world).fork},
	{"delete", (*world).delete},
}

func (o operation) String() string { return o.name }

func TestKilledServerLosesNothingAndLeavesNothing(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: environments are made of namespaces, mounts and cgroups")
	}
	t.Logf("seed %d", *seed)
	in := install(t)
	w := &world{
		in: in, rng: rand.New(rand.NewPCG(*seed, 0)),
		promises: map[string]*promise{}, deleted: map[string]bool{}, took: map[string]time.Duration{},
	}
	w.startAgent()
	for _, o := range operations { // once each undisturbed, to learn how long they take
		began := time.Now()
		if err := o.do(w, t.Context()); err != nil {
			t.Fatalf("%s: %v\n%s", o, err, in.logTail())
		}
		w.took[o.name] = time.Since(began)
	}
	for i := range *points {
		w.crashDuring(operations[i%len(operations)])
		w.check()
		if t.Failed() {
			t.Fatalf("after kill %d\n%s", i+1, in.logTail())
		}
	}
	w.finish()
}

// crashDuring begins an operation and kills the server at a random moment of
// it, or shortly after.
func (w *world) crashDuring(o operation) {
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
}

func (w *world) startAgent() {
	r, err := w.in.client.StartRun(w.in.t.Context(), mayfly.StartRun{
		Create:  &mayfly.CreateEnvironment{Template: w.in.lock.Template, Name: "agent", TTL: 6 * time.Hour},
		Command: []string{"sh", "-c", "echo started; while [ ! -e stop ]; do sleep 0.05; done; echo stopped; exit 42"},
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
	w.count++
	name := fmt.Sprintf("env-%d-%d", w.count, w.rng.Uint32())
	env, err := w.in.client.CreateEnvironment(ctx, mayfly.CreateEnvironment{Template: w.in.lock.Template, Name: name, TTL: 6 * time.Hour})
	if err != nil {
		return err
	}
	w.promises[env.ID] = &promise{name: name, runs: map[string]int{}, snapshots: map[string]string{}, live: "start\n"}
	return nil
}

func (w *world) run(ctx context.Context) error {
	id, p := w.pick()
	code := w.rng.IntN(100)
	text := fmt.Sprintf("%d\n", w.rng.Uint32())
	p.live = "" // unknown until the run has ended
	r, err := w.in.client.StartRun(ctx, mayfly.StartRun{
		Environment: id,
		Command:     []string{"sh", "-c", fmt.Sprintf("printf '%%s\\n' %s > file; exit %d", strings.TrimSpace(text), code)},
	})
	if err != nil {
		return err
	}
	p.runs[r.ID] = code // started: from here on the end must come, and be this
	if r, err = w.in.client.WaitRun(ctx, r.ID); err != nil {
		return err
	}
	p.live = text
	p.snapshots[r.Final] = text
	return nil
}

func (w *world) snapshot(ctx context.Context) error {
	id, p := w.pick()
	content := p.live
	snap, err := w.in.client.CreateSnapshot(ctx, id, "")
	if err == nil && content != "" {
		p.snapshots[snap.ID] = content
	}
	return err
}

func (w *world) rollback(ctx context.Context) error {
	id, p := w.pick()
	for snap, content := range p.snapshots {
		p.live = ""
		p.runs = map[string]int{} // one may still be on its way, and is ended
		_, err := w.in.client.Rollback(ctx, id, snap, "")
		if err == nil {
			p.live = content
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
			w.promises[env.ID] = &promise{name: name, runs: map[string]int{}, snapshots: map[string]string{}, live: content}
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
	for id, p := range w.promises {
		env, err := c.Environment(ctx, id)
		if err != nil || env.Phase != mayfly.Ready && env.Phase != mayfly.Pending {
			t.Errorf("environment %s: phase %s, %v", p.name, env.Phase, err)
			continue
		}
		for run, code := range p.runs {
			r, err := c.WaitRun(ctx, run)
			if err != nil || r.ExitCode != code || r.Phase != mayfly.RunExited {
				t.Errorf("run %s: got = %s %d, %v, want exit code %d", run, r.Phase, r.ExitCode, err, code)
			}
			delete(p.runs, run)
			if p.live == "" && err == nil {
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
		if p.live == "" {
			p.live = w.read(id)
		} else if got := w.read(id); got != p.live {
			t.Errorf("file of %s: got = %q, want %q", p.name, got, p.live)
		}
	}
	for id := range w.deleted {
		if env, err := c.Environment(ctx, id); err != nil || env.Phase != mayfly.Deleted {
			t.Errorf("deleted environment %s: phase %s, %v", id, env.Phase, err)
		}
	}
	if r, err := c.Run(ctx, w.agent.ID); err != nil || r.Phase != mayfly.RunRunning {
		t.Errorf("agent: got = %s %s, %v, want running", r.Phase, r.Reason, err)
	}
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

// read returns the content of the file in an environment, by running cat.
func (w *world) read(env string) string {
	t, c, ctx := w.in.t, w.in.client, w.in.t.Context()
	t.Helper()
	r, err := c.StartRun(ctx, mayfly.StartRun{Environment: env, Kind: mayfly.ExecRun, Command: []string{"cat", "file"}})
	if err != nil {
		t.Errorf("read: %v", err)
		return ""
	}
	return output(t, w, r)
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
	if left := w.in.volumes(); len(left) > 0 {
		t.Errorf("volumes left: %v", left)
	}
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
