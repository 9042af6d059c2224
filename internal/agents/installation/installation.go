// Package installation starts servers of mayfly for tests, each with a state
// directory of its own and a scripted model as its only upstream.
package installation

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/scriptedmodel"
)

// Build compiles mayfly, its guest and further programs into a new directory,
// which the caller removes.
func Build(further ...string) (string, error) {
	dir, err := os.MkdirTemp("", "mayfly-test-")
	if err != nil {
		return "", err
	}
	// Programs of a repository must be reachable for every user.
	if err := os.Chmod(dir, 0o755); err != nil {
		return "", err
	}
	packages := append([]string{"mayfly.dev/mayfly/cmd/mayfly", "mayfly.dev/mayfly/cmd/mayfly-guest"}, further...)
	build := exec.Command("go", append([]string{"build", "-trimpath", "-o", dir + "/"}, packages...)...)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		os.RemoveAll(dir)
		return "", fmt.Errorf("build: %w: %s", err, out)
	}
	return dir, nil
}

// Installation is a server, its state directory and its upstream.
type Installation struct {
	T        *testing.T
	Programs string // directory of mayfly
	State    string
	Model    *Model
	// Key is the credential for the upstream, which no environment may see.
	Key string
	// Patience is how long a command may take.
	Patience time.Duration

	server *exec.Cmd
	log    *Log
	env    []string
}

// Start starts a server whose providers are a model that follows the script.
// env is added to the server's environment. The test's end deletes what is
// left and stops the server.
func Start(t *testing.T, programs string, script *scriptedmodel.Script, env ...string) *Installation {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: environments are made of namespaces, mounts and cgroups")
	}
	in := &Installation{
		T: t, Programs: programs, State: filepath.Join(t.TempDir(), "state"),
		Model: serve(t, script), Key: "sk-canary-" + random(), Patience: 3 * time.Minute, log: &Log{},
	}
	in.env = append(env, "CANARY_KEY="+in.Key)
	if err := os.MkdirAll(in.State, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(in.State, "providers.yaml"), []byte(in.providers()), 0o600); err != nil {
		t.Fatal(err)
	}
	in.Serve()
	t.Cleanup(func() {
		in.deleteAll()
		in.Stop()
		if t.Failed() {
			t.Logf("server's log:\n%s", in.Log())
		}
	})
	return in
}

func (in *Installation) providers() string {
	var b strings.Builder
	b.WriteString("providers:\n")
	for name, path := range map[string]string{"anthropic": "", "openai": "/v1", "gemini": ""} {
		fmt.Fprintf(&b, "  - name: %s\n    url: %s%s\n    key_env: CANARY_KEY\n", name, in.Model.URL, path)
	}
	return b.String()
}

// For is the installation, on behalf of a subtest.
func (in *Installation) For(t *testing.T) *Installation {
	c := *in
	c.T = t
	return &c
}

// Serve starts the server, which must not be running.
func (in *Installation) Serve() {
	in.T.Helper()
	in.server = exec.Command(filepath.Join(in.Programs, "mayfly"), "--state", in.State, "serve")
	in.server.Stdout, in.server.Stderr = in.log, in.log
	in.server.Env = append(os.Environ(), in.env...)
	if err := in.server.Start(); err != nil {
		in.T.Fatal(err)
	}
	// A command that finds no server would start one.
	socket := filepath.Join(in.State, "mayfly.sock")
	for end := time.Now().Add(in.Patience); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(end) {
			in.T.Fatalf("the server does not answer: %v\n%s", err, in.Log())
		}
	}
}

// Stop ends the server as an administrator does.
func (in *Installation) Stop() {
	in.T.Helper()
	in.server.Process.Signal(syscall.SIGTERM)
	if err := in.server.Wait(); err != nil {
		in.T.Errorf("server: %v", err)
	}
}

// Kill ends the server without a warning.
func (in *Installation) Kill() {
	in.server.Process.Kill()
	in.server.Wait()
}

// PID is the server's process.
func (in *Installation) PID() int { return in.server.Process.Pid }

// Log is what the server has logged.
func (in *Installation) Log() string { return in.log.String() }

// deleteAll deletes what a test has left.
func (in *Installation) deleteAll() {
	var list []mayfly.Environment
	out, err := in.Try("/", "env", "list", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	for _, e := range list {
		_, deleteErr := in.Try("/", "env", "delete", e.ID)
		err = errors.Join(err, deleteErr)
	}
	if err != nil {
		in.T.Errorf("clean up: %v", err)
	}
}

// Try runs the command line in dir, also when the test is at its end. The
// error of a failed command carries what it printed.
func (in *Installation) Try(dir string, args ...string) (string, error) {
	in.T.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(in.T.Context()), in.Patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(in.Programs, "mayfly"), append([]string{"--state", in.State}, args...)...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr, cmd.WaitDelay = &stderr, time.Second
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("mayfly %s: %w: %s%s", strings.Join(args, " "), err, out, stderr.String())
	}
	return string(out), nil
}

// Mayfly runs the command line in dir; a failure ends the test.
func (in *Installation) Mayfly(dir string, args ...string) string {
	in.T.Helper()
	out, err := in.Try(dir, args...)
	if err != nil {
		in.T.Fatal(err)
	}
	return out
}

// JSON runs the command line and reads what it prints.
func (in *Installation) JSON(v any, args ...string) {
	in.T.Helper()
	out := in.Mayfly("/", args...)
	if err := json.Unmarshal([]byte(out), v); err != nil {
		in.T.Fatalf("mayfly %s: %v: %s", strings.Join(args, " "), err, out)
	}
}

// Log keeps what several write.
type Log struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *Log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
