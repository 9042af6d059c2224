package control

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/store"
)

func TestSecretsInCommandsAreUsedAndNotWritten(t *testing.T) {
	e, m := start(t)
	r := startRun(t, e, create(), "", "write", "a", "s3cret")
	if got := wait(t, e, r); got.Command[2] != "[redacted]" || got.ExitCode != 0 {
		t.Errorf("run = %+v, want its secret hidden", got)
	}
	if got := m.driver.Read(r.Environment, "a"); got != "s3cret" {
		t.Errorf("the command wrote %q, want what was asked for", got)
	}
	answered(t, e, ask(t, e, startRun(t, e, nil, r.Environment, "sleep", "s3cret"), true, 0))
	err := filepath.WalkDir(m.dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if bytes.Contains(b, []byte("s3cret")) {
			t.Errorf("%s holds the secret", path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestReplayUsesTheSecretsOfACommandWhileTheyAreKept(t *testing.T) {
	m := newMachine(t)
	e := m.boot()
	r := startRun(t, e, create(), "", "sleep", "s3cret")
	answered(t, e, ask(t, e, r, true, 0))
	if _, err := e.KillRun(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	m.halt(e) // what was in memory is gone
	e = m.boot()
	again, err := e.StartRun(t.Context(), mayfly.StartRun{Replay: &mayfly.Replay{Run: r.ID}})
	if err != nil {
		t.Fatal(err)
	}
	var saved *run
	err = e.Store.View(t.Context(), func(tx *store.Tx) (err error) {
		saved, err = get[run](tx, kindRun, again.ID)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if p, err := e.process(saved); err != nil || p.Command[1] != "s3cret" {
		t.Errorf("command = %q, %v, want the recorded one", p.Command, err)
	}
	if err := m.kept.Forget(t.Context(), r.ID); err != nil {
		t.Fatal(err)
	}
	_, err = e.StartRun(t.Context(), mayfly.StartRun{Replay: &mayfly.Replay{Run: r.ID}})
	if mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("a replay of what is forgotten: got = %v, want kind %v", err, mayfly.Conflict)
	}
	m.halt(e)
}
