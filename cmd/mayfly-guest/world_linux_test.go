package main

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/cgroup"
	"mayfly.dev/mayfly/internal/guest"
	"mayfly.dev/mayfly/internal/sandbox"
)

// program is the guest, built for the tests as it is shipped.
var program string

func TestMain(m *testing.M) {
	if probe := os.Getenv(probeVariable); probe != "" {
		os.Exit(runProbe(probe))
	}
	dir, err := os.MkdirTemp("", "mayfly-guest")
	if err != nil {
		panic(err)
	}
	program = filepath.Join(dir, "mayfly-guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", program, ".")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	build.Stderr = os.Stderr
	if err := build.Run(); err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// world is a machine with sandboxes; when the test ends, nothing may be left
// of them.
type world struct {
	t        testing.TB
	dir      string
	groups   *cgroup.Tree
	runtime  sandboxes
	skeleton string
}

// sandboxes is what the tests hold to its contract, see newRuntime.
type sandboxes interface {
	sandbox.Runtime
	Close() error
}

// aboutHost names the cases about devices, mounts and counts that gVisor's
// kernel does not have or has otherwise.
var aboutHost = map[string]bool{
	"seccomp": true, "loopback is up": true, "control group": true, "devices": true, "mounts": true,
	"user namespaces": true, "lower score": true,
}

// bases tells the ids of environments apart.
var bases atomic.Int64

// installations tells the worlds of parallel tests apart.
var installations atomic.Int64

func newWorld(t testing.TB) *world {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("making sandboxes needs root")
	}
	name := "test" + strconv.Itoa(os.Getpid()) + "-" + strconv.FormatInt(installations.Add(1), 10)
	groups, err := cgroup.Open(cgroup.Options{Installation: name})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, dir: t.TempDir(), groups: groups}
	if w.runtime, err = newRuntime(w.options()); err != nil {
		t.Fatal(err)
	}
	w.skeleton = skeleton(t, w.dir)
	t.Cleanup(w.end)
	return w
}

// options are those of every runtime of the world.
func (w *world) options() sandbox.Options {
	return sandbox.Options{Cgroups: w.groups, Guest: program, Host: func(env string) string { return filepath.Join(w.dir, env, "host") }}
}

// end stops everything and looks for leftovers.
func (w *world) end() {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	names, err := w.runtime.List(ctx)
	if err != nil {
		w.t.Error(err)
	}
	for _, env := range names {
		if err := w.runtime.Stop(ctx, env); err != nil {
			w.t.Error(err)
		}
	}
	if names, _ := w.runtime.List(ctx); len(names) > 0 {
		w.t.Errorf("control groups left: %v", names)
	}
	w.runtime.Close()
	w.groups.Close()
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.t.Error(err)
	}
	if strings.Contains(string(mounts), w.dir) {
		w.t.Errorf("mounts left:\n%s", mounts)
	}
	for _, pid := range children(w.t) {
		w.t.Errorf("process left: %s", pid)
	}
}

// children lists what is left of guests that this process started, zombies
// too: they are in this process's session only if they are launchers.
func children(t testing.TB) []string {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		b, err := os.ReadFile("/proc/" + e.Name() + "/stat")
		if err != nil {
			continue
		}
		// "pid (comm) state ppid …"; comm may hold anything.
		_, after, _ := strings.Cut(string(b), ") ")
		if f := strings.Fields(after); len(f) > 1 && f[1] == strconv.Itoa(os.Getpid()) && !strings.Contains(string(b), "(go)") {
			left = append(left, string(b))
		}
	}
	return left
}

// skeleton makes a layer that the host's /usr completes.
func skeleton(t testing.TB, dir string) string {
	t.Helper()
	root := filepath.Join(dir, "skeleton")
	for _, d := range []string{"usr", "etc", "proc", "dev", "sys", "tmp", "run", "root", "home/agent", "workspace", "var/lib/mayfly-db", "var/tmp", "probe"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		if err := os.Symlink("usr/"+d, filepath.Join(root, d)); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"home/agent", "workspace"} {
		if err := os.Chown(filepath.Join(root, d), sandbox.UID, sandbox.GID); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"tmp", "var/tmp"} {
		if err := os.Chmod(filepath.Join(root, d), 0o777|fs.ModeSticky); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(root, "root"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"etc/passwd": "root:x:0:0::/root:/bin/sh\nagent:x:1000:1000::/home/agent:/bin/sh\n",
		"etc/group":  "root:x:0:\nagent:x:1000:\n",
		"etc/hosts":  "127.0.0.1 localhost\n",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// spec describes an environment whose directories exist.
func (w *world) spec(env string, change ...func(*sandbox.Spec)) sandbox.Spec {
	w.t.Helper()
	dir := filepath.Join(w.dir, env)
	for _, d := range []string{"upper", "work", "db", "host"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			w.t.Fatal(err)
		}
	}
	if err := os.Chown(filepath.Join(dir, "db"), sandbox.UID, sandbox.GID); err != nil {
		w.t.Fatal(err)
	}
	self, err := os.Executable()
	if err != nil {
		w.t.Fatal(err)
	}
	s := sandbox.Spec{
		Environment: env,
		Host:        filepath.Join(dir, "host"),
		Lower:       []string{w.skeleton},
		Upper:       filepath.Join(dir, "upper"),
		Work:        filepath.Join(dir, "work"),
		DB:          filepath.Join(dir, "db"),
		Binds:       []sandbox.Bind{{Source: "/usr", Target: "/usr"}, {Source: filepath.Dir(self), Target: "/probe"}},
		Env:         []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=/home/agent", "USER=agent", "LANG=C.UTF-8", "TZ=UTC"},
		Limits:      mayfly.Limits{CPU: 2, Memory: 512 << 20, PIDs: 256},
		UIDBase:     uint32(1+bases.Add(1)%1000) * 65536 * 8,
	}
	for _, f := range change {
		f(&s)
	}
	return s
}

// start starts an environment.
func (w *world) start(env string, change ...func(*sandbox.Spec)) *env {
	w.t.Helper()
	s := w.spec(env, change...)
	if err := w.runtime.Start(w.t.Context(), s); err != nil {
		w.t.Fatalf("start: %v", err)
	}
	return w.use(s)
}

// env is a running environment.
type env struct {
	world *world
	t     testing.TB
	spec  sandbox.Spec
	runs  atomic.Int64
}

func (w *world) use(s sandbox.Spec) *env { return &env{world: w, t: w.t, spec: s} }

func (e *env) dial() net.Conn {
	e.t.Helper()
	conn, err := e.world.runtime.Dial(e.t.Context(), e.spec)
	if err != nil {
		e.t.Fatal(err)
	}
	return conn
}

// launch starts a command and returns its run.
func (e *env) launch(c guest.Command) string {
	e.t.Helper()
	if c.Run == "" {
		c.Run = "run-" + strconv.FormatInt(e.runs.Add(1), 10)
	}
	if err := guest.Start(e.t.Context(), e.dial(), c); err != nil {
		e.t.Fatalf("start %q: %v", c.Argv, err)
	}
	return c.Run
}

func (e *env) wait(run string) guest.Exit {
	e.t.Helper()
	ctx, cancel := context.WithTimeout(e.t.Context(), 60*time.Second)
	defer cancel()
	x, err := guest.Wait(ctx, e.dial(), run)
	if err != nil {
		e.t.Fatalf("wait: %v", err)
	}
	return x
}

func (e *env) attach(run string) mayfly.Attachment {
	e.t.Helper()
	a, err := guest.Attach(e.t.Context(), e.dial(), e.spec.Host, run, true)
	if err != nil {
		e.t.Fatalf("attach: %v", err)
	}
	return a
}

// read returns what an attachment yields of stdout, stderr and notices.
func read(t testing.TB, a mayfly.Attachment) (stdout, stderr, notice string) {
	t.Helper()
	var out [4]strings.Builder
	for {
		o, err := a.Recv()
		if errors.Is(err, io.EOF) {
			return out[1].String(), out[2].String(), out[3].String()
		}
		if err != nil {
			t.Fatalf("recv: %v", err)
		}
		out[o.Stream].Write(o.Data)
	}
}

// run executes a command to its end.
func (e *env) run(argv ...string) (guest.Exit, string, string) {
	e.t.Helper()
	id := e.launch(guest.Command{Argv: argv})
	a := e.attach(id)
	defer a.Close()
	stdout, stderr, _ := read(e.t, a)
	return e.wait(id), stdout, stderr
}

// shell executes a shell script that must succeed and returns its output.
func (e *env) shell(script string) string {
	e.t.Helper()
	x, stdout, stderr := e.run("sh", "-c", script)
	if x.Code != 0 {
		e.t.Fatalf("sh -c %q: exit %d, reason %q, stderr %q", script, x.Code, x.Reason, stderr)
	}
	return strings.TrimRight(stdout, "\n")
}
