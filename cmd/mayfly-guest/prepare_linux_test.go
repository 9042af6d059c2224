//go:build !gvisor

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly/internal/sandbox"
)

func (w *world) expectState(env string, want sandbox.State) {
	w.t.Helper()
	if got, err := w.runtime.Inspect(w.t.Context(), env); err != nil || got != want {
		w.t.Errorf("state of %s: got = %s, %v, want %s", env, got, err, want)
	}
}

func TestStartGoesOnFromPrepare(t *testing.T) {
	w := newWorld(t)
	s := w.spec("env-1", func(s *sandbox.Spec) { s.Env = append(s.Env, "GIVEN=early") })
	w.runtime.(sandbox.Preparer).Prepare(s)
	w.expectState("env-1", sandbox.Remains) // nothing to freeze, nothing to talk to
	if err := w.runtime.Start(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	w.expectState("env-1", sandbox.Alive)
	x, out, _ := w.use(s).run("sh", "-c", "echo $GIVEN; cat /proc/self/cgroup")
	if x.Code != 0 || !strings.HasPrefix(out, "early\n") {
		t.Errorf("got = %d, %q", x.Code, out)
	}
	pids, err := w.groups.Processes("env-1")
	if err != nil || len(pids) != 1 {
		t.Errorf("processes in the control group: got = %v, %v, want the guest alone", pids, err)
	}
}

// The world looks for what is left.
func TestPreparedIsTakenBack(t *testing.T) {
	w := newWorld(t)
	w.runtime.(sandbox.Preparer).Prepare(w.spec("env-1"))
	if err := w.runtime.Stop(t.Context(), "env-1"); err != nil {
		t.Fatal(err)
	}
	w.expectState("env-1", sandbox.Gone)
}

// A server that goes away takes what it has prepared along; the next one
// starts the environment from the beginning.
func TestPreparedEndsWithTheServer(t *testing.T) {
	w := newWorld(t)
	s := w.spec("env-1")
	former, err := sandbox.NewNative(w.options())
	if err != nil {
		t.Fatal(err)
	}
	former.Prepare(s)
	if err := former.Close(); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if pids, err := w.groups.Processes("env-1"); err != nil || time.Now().After(deadline) {
			t.Fatalf("processes left: %v, %v", pids, err)
		} else if len(pids) == 0 {
			break
		}
	}
	if _, err := os.Lstat(filepath.Join(s.Host, "guest.sock")); !os.IsNotExist(err) {
		t.Errorf("a prepared guest was reachable: %v", err)
	}
	w.expectState("env-1", sandbox.Remains)
	if err := w.runtime.Start(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if x, _, _ := w.use(s).run("true"); x.Code != 0 {
		t.Errorf("exit %d", x.Code)
	}
}
