//go:build agents

package agents

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/agents/installation"
	"mayfly.dev/mayfly/internal/scriptedmodel"
)

var (
	programs string // directory of mayfly
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
	var err error
	if programs, err = installation.Build(); err != nil {
		return 0, err
	}
	defer os.RemoveAll(programs)
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

// secrets are canaries: each must stay where it is.
type secrets struct {
	prompt string // the person tells it the agent
	result string // an action shows it
	answer string // the model says it
	server string // the server's environment has it, and an action shows it
}

func newSecrets() secrets {
	return secrets{
		prompt: "ghp_" + letters(36), result: "glpat-" + letters(20), answer: "npm_" + letters(36), server: letters(32),
	}
}

func letters(n int) string {
	const all = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	b := make([]byte, n)
	rand.Read(b)
	for i := range b {
		b[i] = all[int(b[i])%len(all)]
	}
	return string(b)
}

// script is what the agent's model does: without the step that the agent
// cannot do.
func script(t *testing.T, a Agent, s secrets) *scriptedmodel.Script {
	t.Helper()
	data, err := os.ReadFile("testdata/script.json")
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := scriptedmodel.ParseScript([]byte(strings.ReplaceAll(string(data), "{answer}", s.answer)))
	if err != nil {
		t.Fatal(err)
	}
	parsed.Steps = slices.DeleteFunc(parsed.Steps, func(s scriptedmodel.Step) bool { return s.Delegate != "" && !a.Delegates })
	return parsed
}

// repository is one with a failing test, and the agent beside it, not
// committed.
func repository(t *testing.T, a Agent, s secrets) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repository")
	copyFile(t, "testdata/test.sh", filepath.Join(dir, "test.sh"))
	env := fmt.Sprintf("GITLAB_TOKEN=%s\nOTHER=%s\n", s.result, s.server)
	if err := os.WriteFile(filepath.Join(dir, ".env"), []byte(env), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{
		{"init", "-q"}, {"add", "test.sh", ".env"},
		{"-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "-q", "-m", "a test"},
	} {
		if out, err := exec.Command("git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git %s: %v: %s", args[0], err, out)
		}
	}
	installed, err := a.directory()
	if err != nil {
		t.Fatal(err)
	}
	// Git says nothing about changes below.
	fact := filepath.Join(dir, "node_modules", "fact")
	if err := errors.Join(os.MkdirAll(filepath.Dir(fact), 0o755), os.WriteFile(fact, []byte("Adding is easy.\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, f := range a.Files {
		copyTree(t, filepath.Join(installed, "node_modules", f), filepath.Join(dir, "node_modules", f))
	}
	return dir
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

// recorded is a run of an agent that made its test pass.
type recorded struct {
	*installation.Installation
	agent   Agent
	secrets secrets
	prompt  string
	env     string
	graph   mayfly.Graph
}

// For is the run, on behalf of a subtest.
func (r recorded) For(t *testing.T) recorded {
	r.Installation = r.Installation.For(t)
	return r
}

// record runs the agent, and checks that it did its work and asked for what
// the script foresees.
func record(t *testing.T, a Agent, isolation mayfly.Isolation) recorded {
	t.Helper()
	s := newSecrets()
	r := recorded{
		Installation: installation.Start(t, programs, script(t, a, s), "DEPLOY_TOKEN="+s.server),
		agent:        a, secrets: s, prompt: "Make the test pass. My token is " + s.prompt + ".",
		env: a.Name + "-" + string(isolation),
	}
	dir := repository(t, a, s)
	out := r.Mayfly(dir, append([]string{"run", "--name", r.env, "--isolation", string(isolation), "--"}, a.Start(r.prompt)...)...)
	if !strings.Contains(out, "The test passes.") {
		t.Errorf("the agent's last words are missing in:\n%s", out)
	}
	r.checkAsked(t)
	diff := r.Mayfly(dir, "diff", r.env)
	if !strings.Contains(diff, "+++ b/add.sh") || !strings.Contains(diff, "+echo $(($1 + $2))") {
		t.Errorf("the diff lacks what the agent wrote:\n%s", diff)
	}
	if out := r.Mayfly(dir, "exec", r.env, "--", "sh", "test.sh"); !strings.Contains(out, "PASS: 2 + 3 = 5") {
		t.Errorf("the test afterwards: %s", out)
	}
	r.JSON(&r.graph, "graph", r.env, "--json")
	return r
}

// checkAsked looks at what the model was asked: the script's steps in order,
// each with the real key, and nothing that it could not answer.
func (r recorded) checkAsked(t *testing.T) {
	t.Helper()
	var steps []string
	for _, e := range r.Model.Taken() {
		if e.Error != "" || strings.HasPrefix(e.Text, "UNEXPECTED") {
			t.Errorf("%s: %s%s", e.Path, e.Error, e.Text)
		}
		if e.Key != r.Key && e.Method == "POST" {
			t.Errorf("%s: key = %q, want the real one", e.Path, e.Key)
		}
		if e.Step != "" {
			steps = append(steps, fmt.Sprint(e.Step, " ", e.Status))
		}
	}
	want := []string{"call 1 200", "call 2 200", "call 3 529", "call 3 200", "call 4 200"}
	if r.agent.Delegates {
		want = []string{
			"call 1 200", "call 2 200", "counter 1 200", "counter 2 200", "call 3 200", "call 4 529", "call 4 200", "call 5 200",
		}
	}
	if !slices.Equal(steps, want) {
		t.Errorf("steps: got = %q, want %q", steps, want)
	}
}

// The numbers of the script's steps as the graph has them.
func (r recorded) steps() (look, delegate, write, test, last int) {
	if r.agent.Delegates {
		return 1, 2, 5, 6, 7
	}
	return 1, 0, 2, 3, 4
}

func TestAgents(t *testing.T) {
	for _, a := range wanted() {
		isolations := []mayfly.Isolation{mayfly.Native}
		if a.Name == "claude" || a.Name == "codex-direct" {
			isolations = append(isolations, mayfly.GVisor)
		}
		for _, isolation := range isolations {
			t.Run(a.Name+"/"+string(isolation), func(t *testing.T) {
				r := record(t, a, isolation)
				t.Run("graph", func(t *testing.T) { r.For(t).checkGraph(t) })
				t.Run("secrets", func(t *testing.T) { r.For(t).checkSecrets(t) })
				t.Run("replay", func(t *testing.T) { r.For(t).checkReplay(t) })
				t.Run("changes", func(t *testing.T) { r.For(t).checkChanges(t) })
				t.Run("continue", func(t *testing.T) { r.For(t).checkContinue(t) })
				t.Run("fork", func(t *testing.T) { r.For(t).checkForks(t) })
				t.Run("rollback", func(t *testing.T) { r.For(t).checkRollback(t) })
			})
		}
	}
}
