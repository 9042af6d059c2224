//go:build agents

package agents

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/scriptedmodel"
)

var (
	binaries string // directory of mayfly, mayfly-guest and serve
	slow     bool   // try the slow agents, too
)

func TestMain(m *testing.M) {
	status, err := prepare(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		status = 1
	}
	os.Exit(status)
}

// prepare builds what the tests run and installs the agents once.
func prepare(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "mayfly-agents-")
	if err != nil {
		return 0, err
	}
	defer os.RemoveAll(dir)
	binaries = dir
	build := exec.Command("go", "build", "-trimpath", "-o", dir+"/", "mayfly.dev/mayfly/cmd/mayfly",
		"mayfly.dev/mayfly/cmd/mayfly-guest", "mayfly.dev/mayfly/internal/scriptedmodel/serve")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 0, fmt.Errorf("build: %w: %s", err, out)
	}
	for _, a := range wanted() {
		if err := a.install(); err != nil {
			return 0, err
		}
	}
	return m.Run(), nil
}

// wanted are the agents that are tried.
func wanted() []Agent {
	return slices.DeleteFunc(slices.Clone(All), func(a Agent) bool { return a.Slow && !slow })
}

// directory is where the agent is kept between tests.
func (a Agent) directory() (string, error) {
	cache, err := os.UserCacheDir()
	return filepath.Join(cache, "mayfly", "agents", strings.ReplaceAll(a.Package, "/", "_")), err
}

// install puts the agent into its directory, once.
func (a Agent) install() error {
	dir, err := a.directory()
	if err != nil {
		return err
	}
	// Written last: with it, everything is there.
	stamp := filepath.Join(dir, "installed")
	if _, err := os.Stat(stamp); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	npm := exec.Command("npm", "install", "--prefix", dir, "--ignore-scripts", "--no-audit", "--no-fund", "--no-package-lock",
		"--loglevel=error", a.Package)
	if out, err := npm.CombinedOutput(); err != nil {
		return fmt.Errorf("npm install %s: %w: %s", a.Package, err, out)
	}
	return os.WriteFile(stamp, nil, 0o644)
}

// installation is a server with a state directory of its own.
type installation struct {
	t     *testing.T
	state string
}

func start(t *testing.T) *installation {
	if os.Geteuid() != 0 {
		t.Skip("environments need root")
	}
	in := &installation{t, filepath.Join(t.TempDir(), "state")}
	var log bytes.Buffer
	server := exec.Command(filepath.Join(binaries, "mayfly"), "--state", in.state, "serve")
	server.Stdout, server.Stderr = &log, &log
	if err := server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.deleteAll()
		server.Process.Signal(syscall.SIGTERM)
		if err := server.Wait(); err != nil {
			t.Errorf("server: %v", err)
		}
		if t.Failed() {
			t.Logf("server's log:\n%s", log.String())
		}
	})
	return in
}

// deleteAll deletes what a test that failed has left.
func (in *installation) deleteAll() {
	var list []mayfly.Environment
	out, err := in.mayfly("/", "env", "list", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &list)
	}
	for _, e := range list {
		_, deleteErr := in.mayfly("/", "env", "delete", e.ID)
		err = errors.Join(err, deleteErr)
	}
	if err != nil {
		in.t.Errorf("clean up: %v", err)
	}
}

// mayfly runs the command line in dir.
func (in *installation) mayfly(dir string, args ...string) (string, error) {
	in.t.Helper()
	// Also when the test is at its end.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(in.t.Context()), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(binaries, "mayfly"), append([]string{"--state", in.state}, args...)...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return string(out), fmt.Errorf("mayfly %s: %w: %s%s", args[0], err, out, stderr.String())
	}
	return string(out), nil
}

// repository is one with a failing test, and the agent and its model beside
// it, not committed.
func repository(t *testing.T, a Agent) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repository")
	copyFile(t, "testdata/test.sh", filepath.Join(dir, "test.sh"))
	for _, args := range [][]string{
		{"init", "-q"}, {"add", "test.sh"},
		{"-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "-q", "-m", "a test"},
	} {
		if out, err := exec.Command("git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v: %s", args[0], err, out)
		}
	}
	writeScript(t, a, filepath.Join(dir, "script.json"))
	copyFile(t, filepath.Join(binaries, "serve"), filepath.Join(dir, "serve"))
	installed, err := a.directory()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range a.Files {
		copyTree(t, filepath.Join(installed, "node_modules", f), filepath.Join(dir, "node_modules", f))
	}
	for path, content := range a.Config {
		name := filepath.Join(dir, "config", path)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// writeScript writes the script of the agent's model: without the step that
// the agent cannot do.
func writeScript(t *testing.T, a Agent, name string) {
	t.Helper()
	data, err := os.ReadFile("testdata/script.json")
	if err != nil {
		t.Fatal(err)
	}
	script, err := scriptedmodel.ParseScript(data)
	if err != nil {
		t.Fatal(err)
	}
	script.Steps = slices.DeleteFunc(script.Steps, func(s scriptedmodel.Step) bool { return s.Delegate != "" && !a.Delegates })
	if data, err = json.Marshal(script); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

func copyTree(t *testing.T, from, to string) {
	t.Helper()
	err := filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case d.Type().IsRegular():
			copyFile(t, path, filepath.Join(to, rel))
		case d.Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			os.MkdirAll(filepath.Dir(filepath.Join(to, rel)), 0o755)
			return os.Symlink(target, filepath.Join(to, rel))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// copyFile links where it can, as the agents are large.
func copyFile(t *testing.T, from, to string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		t.Fatal(err)
	}
	if os.Link(from, to) == nil {
		return
	}
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, content, info.Mode().Perm()); err != nil {
		t.Fatal(err)
	}
}

const requests = "/home/agent/requests.jsonl"

// command starts the agent beside its model, with its configuration in its
// home.
func (a Agent) command() []string {
	var script strings.Builder
	for path := range a.Config {
		fmt.Fprintf(&script, "mkdir -p \"$HOME/%s\" && cat 'config/%s' > \"$HOME/%s\" && ", filepath.Dir(path), path, path)
	}
	return append([]string{
		"sh", "-c", script.String() + `exec "$@"`, "sh",
		"./serve", "-script", "script.json", "-listen", Address, "-requests", requests, "--",
	}, a.Command...)
}

func TestAgentsMakeTheTestPass(t *testing.T) {
	in := start(t)
	for _, a := range wanted() {
		for _, isolation := range []mayfly.Isolation{mayfly.Native, mayfly.GVisor} {
			t.Run(a.Name+"/"+string(isolation), func(t *testing.T) { in.try(t, a, isolation) })
		}
	}
}

func (in *installation) try(t *testing.T, a Agent, isolation mayfly.Isolation) {
	in = &installation{t, in.state} // of this subtest
	dir := repository(t, a)
	name := a.Name + "-" + string(isolation)
	args := []string{"run", "--name", name, "--isolation", string(isolation)}
	for k, v := range a.Env {
		args = append(args, "--env", k+"="+v)
	}
	began := time.Now()
	out, err := in.mayfly(dir, append(append(args, "--"), a.command()...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s took %v", name, time.Since(began).Round(time.Millisecond))
	if !strings.Contains(out, "The test passes.") {
		t.Errorf("the agent's last words are missing in:\n%s", out)
	}
	in.checkRequests(t, a, name)
	diff, err := in.mayfly(dir, "diff", name)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(diff, "+++ b/add.sh") || !strings.Contains(diff, "+echo $(($1 + $2))") {
		t.Errorf("the diff lacks what the agent wrote:\n%s", diff)
	}
	if out, err := in.mayfly(dir, "exec", name, "--", "sh", "test.sh"); err != nil || !strings.Contains(out, "PASS: 2 + 3 = 5") {
		t.Errorf("the test afterwards: %v: %s", err, out)
	}
	if _, err := in.mayfly(dir, "env", "delete", name); err != nil {
		t.Error(err)
	}
}

// checkRequests looks at what the model was asked: the script's steps in
// order, and nothing that it could not answer.
func (in *installation) checkRequests(t *testing.T, a Agent, env string) {
	t.Helper()
	log, err := in.mayfly("/", "exec", env, "--", "cat", requests)
	if err != nil {
		t.Fatal(err)
	}
	var steps []string
	for line := range strings.Lines(log) {
		var e scriptedmodel.Exchange
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("request %q: %v", line, err)
		}
		if e.Error != "" || strings.HasPrefix(e.Text, "UNEXPECTED") {
			t.Errorf("%s: %s%s", e.Path, e.Error, e.Text)
		}
		if e.Step != "" {
			steps = append(steps, fmt.Sprint(e.Step, " ", e.Status))
		}
	}
	want := []string{"call 1 200", "call 2 200", "call 3 529", "call 3 200", "call 4 200"}
	if a.Delegates {
		want = []string{
			"call 1 200", "call 2 200", "counter 1 200", "counter 2 200", "call 3 200", "call 4 529", "call 4 200", "call 5 200",
		}
	}
	if !slices.Equal(steps, want) {
		t.Errorf("steps: got = %q, want %q", steps, want)
	}
}

func TestAgentsFailWithoutTheirModel(t *testing.T) {
	in := start(t)
	// The control: with nobody listening the same agent must not succeed, so
	// that success above comes from the model inside.
	a := All[0]
	dir := repository(t, a)
	args := []string{"run", "--rm", "--timeout", "20s"}
	for k, v := range a.Env {
		args = append(args, "--env", k+"="+v)
	}
	out, err := in.mayfly(dir, append(append(args, "--"), a.Command...)...)
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		t.Errorf("got = %q, %v; want a failure", out, err)
	}
}
