package main

import (
	"strconv"
	"testing"
	"time"

	"mayfly.dev/mayfly/internal/guest"
	"mayfly.dev/mayfly/internal/sandbox"
)

func TestProcessesStartWhileAndAfterFreezing(t *testing.T) {
	w := newWorld(t)
	e := w.start("env-1")
	run := e.launch(guest.Command{Argv: []string{"sh", "-c", `
		n=0; while [ ! -e /workspace/enough ]; do n=$((n+1)); [ "$(sh -c "echo $n")" = $n ] || exit 9; done`}})
	for n := range 20 {
		time.Sleep(20 * time.Millisecond)
		if err := w.runtime.Freeze(t.Context(), "env-1"); err != nil {
			t.Fatal(err)
		}
		if err := w.runtime.Thaw(t.Context(), "env-1"); err != nil {
			t.Fatal(err)
		}
		want := "alive " + strconv.Itoa(n)
		if got := e.shell("sh -c 'echo " + want + "'"); got != want {
			t.Errorf("after %d times: got = %q, want %q", n+1, got, want)
		}
	}
	e.shell("touch /workspace/enough")
	if x := e.wait(run); x.Code != 0 {
		t.Errorf("got = %+v, want every process to have started", x)
	}
}

func TestFrozenSandboxIsFoundByAnotherServer(t *testing.T) {
	w := newWorld(t)
	e := w.start("env-1")
	if err := w.runtime.Freeze(t.Context(), "env-1"); err != nil {
		t.Fatal(err)
	}
	if err := w.runtime.Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	if w.runtime, err = newRuntime(w.options()); err != nil {
		t.Fatal(err)
	}
	if s, err := w.runtime.Inspect(t.Context(), "env-1"); s != sandbox.Frozen {
		t.Errorf("got = %v %v, want frozen", s, err)
	}
	for range 2 {
		if err := w.runtime.Thaw(t.Context(), "env-1"); err != nil {
			t.Fatal(err)
		}
	}
	if s, err := w.runtime.Inspect(t.Context(), "env-1"); s != sandbox.Alive {
		t.Errorf("got = %v %v, want alive", s, err)
	}
	if got := e.shell("echo on"); got != "on" {
		t.Errorf("got = %q, want on", got)
	}
}
