package monitor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/cgroup"
)

// watcher is a monitor that runs.
type watcher struct {
	*Monitor
	mu   sync.Mutex
	seen []Exec
}

func open(t *testing.T, o Options) *watcher {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("loading BPF programs needs root")
	}
	m, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	w := &watcher{Monitor: m}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// run begins to collect.
func (w *watcher) run(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- w.Run(ctx, func(e Exec) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.seen = append(w.seen, e)
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// of returns what was seen of an environment when there are n, or after a
// while.
func (w *watcher) of(env string, n int) []Exec {
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		w.mu.Lock()
		var list []Exec
		for _, e := range w.seen {
			if e.Environment == env {
				list = append(list, e)
			}
		}
		w.mu.Unlock()
		if len(list) >= n || time.Now().After(deadline) {
			return list
		}
	}
}

// groups makes control groups, which are removed after the test.
func groups(t *testing.T, envs ...string) map[string]string {
	t.Helper()
	tree, err := cgroup.Open(cgroup.Options{Installation: "monitor" + strconv.Itoa(os.Getpid())})
	if err != nil {
		t.Fatal(err)
	}
	dirs := map[string]string{}
	for _, env := range envs {
		if err := tree.Create(env, mayfly.Limits{}); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			if err := errors.Join(tree.Kill(ctx, env), tree.Remove(ctx, env)); err != nil {
				t.Error(err)
			}
			tree.Close()
		})
		dir, err := tree.Directory(env)
		if err != nil || dir == nil {
			t.Fatal("no unified hierarchy", err)
		}
		dirs[env] = dir.Name()
		dir.Close()
	}
	return dirs
}

// in runs a command in a control group.
func in(t *testing.T, dir string, argv ...string) int {
	t.Helper()
	fd, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(fd.Fd())}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%q: %v: %s", argv, err, out)
	}
	return cmd.Process.Pid
}

func TestEveryProgramIsSeenOnce(t *testing.T) {
	w := open(t, Options{})
	dirs := groups(t, "one", "two", "other")
	for _, env := range []string{"one", "two"} {
		if err := w.Watch(env, dirs[env]); err != nil {
			t.Fatal(err)
		}
	}
	w.run(t)
	const many = 1000
	loop := fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); /bin/true $0 $i; done", many)
	began := time.Now()
	var group sync.WaitGroup
	pids := map[string]int{}
	var mu sync.Mutex
	for _, env := range []string{"one", "other"} {
		group.Go(func() {
			pid := in(t, dirs[env], "/bin/sh", "-c", loop, env)
			mu.Lock()
			defer mu.Unlock()
			pids[env] = pid
		})
	}
	group.Wait()
	seen := w.of("one", many+1)
	times := map[string]int{}
	for _, e := range seen {
		times[strings.Join(e.Args, " ")]++
		if e.Time.Before(began.Add(-time.Second)) || e.Time.After(time.Now().Add(time.Second)) {
			t.Fatalf("time: got = %v, want about %v", e.Time, began)
		}
		if e.Command == "true" && e.Parent != pids["one"] {
			t.Fatalf("parent: got = %d, want %d", e.Parent, pids["one"])
		}
	}
	if len(seen) != many+1 {
		t.Errorf("programs: got = %d, want %d", len(seen), many+1)
	}
	for i := range many {
		if n := times[fmt.Sprintf("/bin/true one %d", i+1)]; n != 1 {
			t.Errorf("program %d was seen %d times", i+1, n)
		}
	}
	for _, e := range w.seen {
		if e.Environment != "one" || strings.Contains(strings.Join(e.Args, " "), "other") {
			t.Fatalf("got %+v of a group that is not watched", e)
		}
	}
	if lost, err := w.Lost(); lost != 0 || err != nil {
		t.Errorf("lost: got = %d, %v, want 0", lost, err)
	}
}

func TestGroupsBelowBelongToTheWatchedOne(t *testing.T) {
	w := open(t, Options{})
	dirs := groups(t, "one")
	if err := w.Watch("one", dirs["one"]); err != nil {
		t.Fatal(err)
	}
	w.run(t)
	below := filepath.Join(dirs["one"], "a", "b")
	if err := os.MkdirAll(below, 0o755); err != nil {
		t.Fatal(err)
	}
	pid := in(t, below, "/bin/true", "deep")
	seen := w.of("one", 1)
	if len(seen) != 1 || seen[0].PID != pid || !slices.Equal(seen[0].Args, []string{"/bin/true", "deep"}) || seen[0].Command != "true" || seen[0].Truncated {
		t.Errorf("got = %+v, want process %d", seen, pid)
	}
}

func TestArgumentsAreBounded(t *testing.T) {
	w := open(t, Options{})
	dirs := groups(t, "one")
	if err := w.Watch("one", dirs["one"]); err != nil {
		t.Fatal(err)
	}
	w.run(t)
	odd := "new\nline \xff \x1b[31m"
	in(t, dirs["one"], "/bin/true", odd, "", strings.Repeat("x", 100_000))
	in(t, dirs["one"], "/bin/true", "")
	seen := w.of("one", 2)
	if len(seen) != 2 {
		t.Fatalf("got = %d, want 2", len(seen))
	}
	long := seen[0]
	if !long.Truncated || len(long.Args) != 4 || long.Args[1] != "new\nline \uFFFD \x1b[31m" || long.Args[2] != "" || len(strings.Join(long.Args, " ")) > maxArgs+2 {
		t.Errorf("got = %d arguments, truncated %v: %.60q", len(long.Args), long.Truncated, long.Args)
	}
	if !slices.Equal(seen[1].Args, []string{"/bin/true", ""}) || seen[1].Truncated {
		t.Errorf("got = %+v", seen[1])
	}
}

func TestUnwatchKeepsWhatHappenedBefore(t *testing.T) {
	w := open(t, Options{})
	dirs := groups(t, "one")
	for range 2 {
		if err := w.Watch("one", dirs["one"]); err != nil {
			t.Fatal(err)
		}
	}
	in(t, dirs["one"], "/bin/true", "before")
	for range 2 {
		if err := w.Unwatch("one"); err != nil {
			t.Fatal(err)
		}
	}
	in(t, dirs["one"], "/bin/true", "between")
	if err := w.Watch("one", dirs["one"]); err != nil {
		t.Fatal(err)
	}
	in(t, dirs["one"], "/bin/true", "after")
	w.run(t)
	var words []string
	for _, e := range w.of("one", 2) {
		words = append(words, e.Args[1])
	}
	if want := []string{"before", "after"}; !slices.Equal(words, want) {
		t.Errorf("got = %v, want %v", words, want)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.Monitor.mu.Lock()
	defer w.Monitor.mu.Unlock()
	if len(w.watches) != 1 || len(w.ended) != 0 {
		t.Errorf("watches kept: got = %v, %v, want one", w.watches, w.ended)
	}
}

func TestLossIsCounted(t *testing.T) {
	const buffer = 4096
	w := open(t, Options{Buffer: buffer})
	dirs := groups(t, "one")
	if err := w.Watch("one", dirs["one"]); err != nil {
		t.Fatal(err)
	}
	const many = 200
	in(t, dirs["one"], "/bin/sh", "-c", fmt.Sprintf("i=0; while [ $i -lt %d ]; do i=$((i+1)); /bin/true $i; done", many))
	lost, err := w.Lost()
	if err != nil {
		t.Fatal(err)
	}
	w.run(t)
	if seen := w.of("one", many+1-int(lost)); lost == 0 || len(seen)+int(lost) != many+1 {
		t.Errorf("got = %d seen, %d lost, want %d", len(seen), lost, many+1)
	}
}

func TestWatchRefusesWhatIsNoGroup(t *testing.T) {
	w := open(t, Options{})
	if err := w.Watch("one", t.TempDir()); !errors.Is(err, errors.ErrUnsupported) || mayfly.KindOf(err) != mayfly.Unsupported {
		t.Errorf("a directory elsewhere: got = %v", err)
	}
	if err := w.Watch("one", "/nowhere"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing group: got = %v", err)
	}
}

func TestOpenSaysWhatIsMissing(t *testing.T) {
	if os.Getenv("MAYFLY_MONITOR_AS_NOBODY") != "" {
		_, err := Open(Options{})
		fmt.Printf("%v %v %v\n", errors.Is(err, errors.ErrUnsupported), mayfly.KindOf(err), err)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root to give up being root")
	}
	// A copy, as nobody may be unable to enter the directory of this one.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(t.TempDir(), "test")
	if err := os.WriteFile(program, self, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/fd/3", "-test.run=TestOpenSaysWhatIsMissing")
	cmd.ExtraFiles = []*os.File{f}
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "MAYFLY_MONITOR_AS_NOBODY=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "true unsupported watching processes: ") {
		t.Errorf("got = %s, %v", out, err)
	}
}
