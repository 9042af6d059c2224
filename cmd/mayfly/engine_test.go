package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/client"
	"mayfly.dev/mayfly/internal/autostart"
	"mayfly.dev/mayfly/internal/unixsock"
)

// TestEngineScripts runs each command against a server of its own, which is
// started on demand, with the programs as they are shipped.
func TestEngineScripts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("environments need root")
	}
	bin := buildPrograms(t)
	testscript.Run(t, testscript.Params{
		Dir: "testdata/engine",
		Setup: func(e *testscript.Env) error {
			if err := setUpScript(e); err != nil {
				return err
			}
			e.Setenv("BIN", bin)
			e.Setenv("PATH", bin+string(os.PathListSeparator)+e.Getenv("PATH"))
			// Other users must be able to come as far as the socket.
			for _, dir := range []string{filepath.Dir(e.WorkDir), e.WorkDir} {
				if err := os.Chmod(dir, 0o755); err != nil {
					return err
				}
			}
			state := e.Getenv("MAYFLY_STATE")
			e.Defer(func() {
				if err := reviveServer(bin, state); err != nil {
					t.Errorf("start a server for what is left in %s: %v", state, err)
				}
				if err := stopServer(state); err != nil {
					t.Errorf("stop the server of %s: %v", state, err)
				}
			})
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"status":     checkStatus,
			"await":      awaitFile,
			"repository": makeRepository,
			"killserver": killServer,
			"image":      makeImage,
			"model":      startModel,
			"asked":      checkAsked,
		},
		RequireExplicitExec: true,
	})
}

func buildPrograms(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("go", "build", "-o", dir+"/", "mayfly.dev/mayfly/cmd/mayfly", "mayfly.dev/mayfly/cmd/mayfly-guest",
		"mayfly.dev/mayfly/internal/scriptedmodel/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return dir
}

// reviveServer starts a server when a script that failed has killed its own
// and left environments.
func reviveServer(bin, state string) error {
	if left, _ := filepath.Glob(filepath.Join(state, "pool/envs/*")); len(left) == 0 {
		return nil
	}
	out, err := exec.Command(filepath.Join(bin, "mayfly"), "--state", state, "serve", "--daemon").CombinedOutput()
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

// stopServer deletes every environment and ends the server.
func stopServer(state string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := client.New(filepath.Join(state, autostart.SocketName))
	defer c.Close()
	info, err := c.Info(ctx)
	if mayfly.KindOf(err) == mayfly.Unavailable {
		return nil
	}
	if err != nil {
		return err
	}
	list, err := c.Environments(ctx, mayfly.EnvironmentFilter{})
	if err != nil {
		return err
	}
	for _, e := range list {
		if _, err := c.DeleteEnvironment(ctx, e.ID); err != nil {
			return err
		}
	}
	return endProcess(ctx, info.PID, syscall.SIGTERM)
}

// endProcess signals a process that is not a child and waits until it is gone.
func endProcess(ctx context.Context, pid int, sig syscall.Signal) error {
	if err := syscall.Kill(pid, sig); err != nil {
		return err
	}
	for alive(pid) {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		pause()
	}
	return nil
}

// alive reports whether a process is there and no zombie.
func alive(pid int) bool {
	b, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
	if err != nil {
		return false
	}
	_, after, _ := strings.Cut(string(b), ") ")
	return !strings.HasPrefix(after, "Z")
}

// killServer ends the server of the state directory without a warning, and
// waits until the kernel has closed its socket: killserver
func killServer(ts *testscript.TestScript, _ bool, _ []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	c := client.New(filepath.Join(ts.Getenv("MAYFLY_STATE"), autostart.SocketName))
	info, err := c.Info(ctx)
	ts.Check(err)
	ts.Check(endProcess(ctx, info.PID, syscall.SIGKILL))
	for ctx.Err() == nil && !refused(ts.Getenv("MAYFLY_STATE")) {
		pause()
	}
	ts.Check(ctx.Err())
}

// refused reports whether nobody holds the socket of a server.
func refused(state string) bool {
	conn, err := unixsock.Dial(context.Background(), filepath.Join(state, autostart.SocketName))
	if err == nil {
		conn.Close()
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
