package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"mayfly.dev/mayfly/internal/api"
	"mayfly.dev/mayfly/internal/api/apitest"
	"mayfly.dev/mayfly/internal/autostart"
	"mayfly.dev/mayfly/internal/unixsock"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"mayfly":     main,
		"fakeserver": fakeServer,
	})
}

// fakeServer serves environments in memory from the state directory until it
// is told to stop.
func fakeServer() {
	state := os.Getenv("MAYFLY_STATE")
	if err := os.MkdirAll(state, 0o755); err != nil {
		panic(err)
	}
	l, err := unixsock.Listen(filepath.Join(state, autostart.SocketName), 0o600)
	if err != nil {
		panic(err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := api.New(apitest.New(), api.Options{Log: slog.New(slog.DiscardHandler)}).Serve(ctx, l); err != nil {
		panic(err)
	}
}

// TestScripts runs the scripts that need no engine: what the command line does
// by itself, and what it does with a server in memory.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: setUpScript,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":     checkStatus,
			"await":      awaitFile,
			"repository": makeRepository,
		},
		RequireExplicitExec: true,
	})
}

func setUpScript(e *testscript.Env) error {
	e.Setenv("MAYFLY_STATE", filepath.Join(e.WorkDir, "state"))
	e.Setenv("HOME", e.WorkDir)
	e.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	for _, who := range []string{"AUTHOR", "COMMITTER"} {
		e.Setenv("GIT_"+who+"_NAME", "test")
		e.Setenv("GIT_"+who+"_EMAIL", "test@example.com")
		e.Setenv("GIT_"+who+"_DATE", "2026-01-01T00:00:00Z")
	}
	return nil
}

// checkStatus runs a command that must exit with the given status:
// status N COMMAND…
func checkStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: status N COMMAND...")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := 0
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v: %v", args[1:], err)
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit status = %d, want %s", got, args[0])
	}
}

// awaitFile waits until a file exists: await FILE
func awaitFile(ts *testscript.TestScript, neg bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: [!] await FILE")
	}
	path := ts.MkAbs(args[0])
	for range 1000 {
		_, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) == neg {
			return
		}
		pause()
	}
	ts.Fatalf("%s: waited for 10 s", path)
}

// makeRepository makes a git repository of a directory: repository DIR
func makeRepository(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 {
		ts.Fatalf("usage: repository DIR")
	}
	dir := ts.MkAbs(args[0])
	for _, argv := range [][]string{{"init", "-q", "-b", "main", dir}, {"-C", dir, "add", "-A"}, {"-C", dir, "commit", "-q", "-m", "first"}} {
		ts.Check(ts.Exec("git", argv...))
	}
}

func pause() { time.Sleep(10 * time.Millisecond) }
