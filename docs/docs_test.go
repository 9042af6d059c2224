// Package docs holds the documentation to the program: what it shows is run.
package docs

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly/internal/manifest"
	"mayfly.dev/mayfly/internal/scriptedmodel"
)

// block is a fenced block of a document whose commands are run: one that is
// marked "console". One that is marked with a kind and a path is a file, which
// is written before what follows.
type block struct {
	line   int // of the fence
	file   string
	text   string // of the file
	status int    // of the last command that fails; "console status=78"
	steps  []step
}

// step is a command and the output that is shown for it.
type step struct {
	line    int
	command string
	output  []string
}

var fence = regexp.MustCompile("^```(\\S*)(?: status=(\\d+)| ([a-z./]+))?$")

// blocks finds the console blocks of a document.
func blocks(t *testing.T, name, text string) []block {
	t.Helper()
	var found []block
	inside := "" // kind of the block
	open := false
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimSuffix(line, "\n")
		if m := fence.FindStringSubmatch(line); m != nil {
			open = !open
			inside = m[1]
			if open && (inside == "console" || m[3] != "") {
				b := block{line: n, file: m[3]}
				fmt.Sscan(m[2], &b.status)
				found = append(found, b)
				if b.file != "" {
					inside = "file"
				}
			}
			continue
		}
		if open && inside == "file" {
			found[len(found)-1].text += line + "\n"
			continue
		}
		if !open || inside != "console" {
			continue
		}
		b := &found[len(found)-1]
		if command, ok := strings.CutPrefix(line, "$ "); ok {
			b.steps = append(b.steps, step{line: n, command: command})
		} else if len(b.steps) > 0 {
			s := &b.steps[len(b.steps)-1]
			s.output = append(s.output, line)
		} else {
			t.Fatalf("%s:%d: a console block begins with output", name, n)
		}
	}
	if open {
		t.Fatalf("%s: a block is not closed", name)
	}
	return found
}

// matches compares output with what is shown. "…" stands for anything; as a
// line of its own, also for any number of lines.
func matches(shown []string, got string) bool {
	if len(shown) == 0 {
		return true
	}
	var pattern strings.Builder
	pattern.WriteString(`(?s)^`)
	for i, line := range shown {
		if line == "…" {
			pattern.WriteString(`.*`)
			continue
		}
		if i > 0 && shown[i-1] != "…" {
			pattern.WriteString(`\n`)
		}
		parts := strings.Split(line, "…")
		for j, p := range parts {
			if j > 0 {
				pattern.WriteString(`.*`)
			}
			pattern.WriteString(regexp.QuoteMeta(p))
		}
	}
	pattern.WriteString(`\s*$`)
	return regexp.MustCompile(pattern.String()).MatchString(got)
}

// session runs the commands of one document in one shell, so that cd and
// variables last.
type session struct {
	t     *testing.T
	dir   string
	state string
	path  string
}

func (s *session) run(name string, b block) {
	s.t.Helper()
	if b.file != "" {
		path := filepath.Join(s.dir, b.file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(b.text), 0o644)); err != nil {
			s.t.Fatal(err)
		}
	}
	for i, step := range b.steps {
		want := 0
		if i == len(b.steps)-1 {
			want = b.status
		}
		out, status := s.shell(step.command)
		if status != want {
			s.t.Fatalf("%s:%d: %s: status = %d, want %d\n%s", name, step.line, step.command, status, want, out)
		}
		if !matches(step.output, out) {
			s.t.Errorf("%s:%d: %s: got =\n%s\nwant\n%s", name, step.line, step.command, out, strings.Join(step.output, "\n"))
		}
	}
}

// shell runs one command, and remembers the directory that it ends in.
func (s *session) shell(command string) (string, int) {
	s.t.Helper()
	where := filepath.Join(s.state, "..", "where")
	cmd := exec.CommandContext(s.t.Context(), "bash", "-c", "trap 'pwd > "+where+"' EXIT; "+command)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "MAYFLY_STATE="+s.state, "PATH="+s.path)
	out, err := cmd.Output()
	status := cmd.ProcessState.ExitCode()
	if exit, ok := err.(*exec.ExitError); ok && status != 0 {
		out = append(out, exit.Stderr...)
	}
	if dir, err := os.ReadFile(where); err == nil {
		s.dir = strings.TrimSpace(string(dir))
	}
	return string(out), status
}

// documents are all that is written, relative to this directory.
func documents(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("*.md")
	if err != nil {
		t.Fatal(err)
	}
	return append(names, "../README.md")
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestCommandsInDocumentsDoWhatIsShown(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("environments need root")
	}
	bin := t.TempDir()
	build := exec.Command("go", "build", "-o", bin+"/", "mayfly.dev/mayfly/cmd/mayfly", "mayfly.dev/mayfly/cmd/mayfly-guest",
		"mayfly.dev/mayfly/internal/scriptedmodel/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	ran := 0
	for _, name := range documents(t) {
		all := blocks(t, name, read(t, name))
		if len(all) == 0 {
			continue
		}
		t.Run(filepath.Base(name), func(t *testing.T) {
			s := &session{t: t, dir: t.TempDir(), state: filepath.Join(t.TempDir(), "state"), path: bin + ":" + os.Getenv("PATH")}
			if name == "../README.md" {
				exampleRepository(t, s.dir)
			}
			if slices.Contains(aboutAgents, name) {
				agentRepository(t, s.dir, filepath.Join(bin, "agent"))
				scriptedModel(t, s.state)
			}
			server(t, filepath.Join(bin, "mayfly"), s.state)
			for _, b := range all {
				s.run(name, b)
				ran += len(b.steps)
			}
		})
	}
	if ran < 20 {
		t.Errorf("got = %d commands in the documentation, want at least 20", ran)
	}
}

// server starts one for a document and ends it with everything it looks
// after.
func server(t *testing.T, program, state string) {
	t.Helper()
	var log bytes.Buffer
	cmd := exec.Command(program, "--state", state, "serve")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		list := exec.Command("bash", "-c", program+` env list --json | grep -o '"id": *"env-[a-z0-9]*"' | cut -d'"' -f4 | xargs -r `+program+` env delete`)
		list.Env = append(os.Environ(), "MAYFLY_STATE="+state)
		if out, err := list.CombinedOutput(); err != nil {
			t.Errorf("delete environments: %v\n%s", err, out)
		}
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			t.Errorf("server: %v\n%s", err, log.String())
		}
	})
	// A command that comes too early starts a server of its own.
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		conn, err := net.Dial("unix", filepath.Join(state, "mayfly.sock"))
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("server: %v", err)
		}
	}
}

// aboutAgents are the documents whose commands run an agent: the small one of
// the tests, which finds a scripted model behind the gateway.
var aboutAgents = []string{"gateway.md", "graph.md", "replay.md", "models.md"}

const script = `{"dir": "/workspace", "steps": [
	{"think": "Let me see.", "say": "I look at the code first.", "run": "cat sum.sh"},
	{"say": "The sign is wrong.", "write": {"path": "sum.sh", "content": "echo $(($1 + $2))\n"}},
	{"say": "Now the test.", "run": "sh test.sh", "expect": "PASS"},
	{"say": "The sum is a sum again."}
]}`

func agentRepository(t *testing.T, dir, agent string) {
	t.Helper()
	b, err := os.ReadFile(agent)
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{
		"agent": b, "sum.sh": []byte("echo $(($1 - $2))\n"),
		"test.sh": []byte("[ $(sh sum.sh 1 2) = 3 ] && echo '--- PASS: TestSum (0.00s)' || echo '--- FAIL: TestSum (0.00s)'\n"),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := exec.Command("git", "-C", dir, "init", "-q").CombinedOutput(); err != nil {
		t.Fatalf("git: %v: %s", err, out)
	}
}

// scriptedModel starts a model, and says where it is in the state directory.
func scriptedModel(t *testing.T, state string) {
	t.Helper()
	parsed, err := scriptedmodel.ParseScript([]byte(script))
	if err != nil {
		t.Fatal(err)
	}
	model := httptest.NewServer(&scriptedmodel.Server{Script: parsed})
	t.Cleanup(model.Close)
	if err := os.MkdirAll(state, 0o755); err != nil {
		t.Fatal(err)
	}
	key := filepath.Join(t.TempDir(), "model.key")
	if err := os.WriteFile(key, []byte("sk-of-nobody-at-all\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	providers := "providers:\n  - name: anthropic\n    url: " + model.URL + "\n    key_file: " + key + "\n"
	if err := os.WriteFile(filepath.Join(state, "providers.yaml"), []byte(providers), 0o600); err != nil {
		t.Fatal(err)
	}
}

// exampleRepository makes a repository of the example in dir.
func exampleRepository(t *testing.T, dir string) {
	t.Helper()
	if err := os.CopyFS(dir, os.DirFS("../examples/freebusy")); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"init", "-q"}, {"add", "-A"}, {"-c", "user.name=me", "-c", "user.email=me@example.com", "commit", "-q", "-m", "example"}} {
		if out, err := exec.Command("git", append([]string{"-C", dir}, args...)...).CombinedOutput(); err != nil {
			t.Fatalf("git: %v: %s", err, out)
		}
	}
}

var link = regexp.MustCompile(`\]\(([^)#:]+)(#[^)]*)?\)`)

func TestLinksLeadSomewhere(t *testing.T) {
	for _, name := range documents(t) {
		for _, m := range link.FindAllStringSubmatch(read(t, name), -1) {
			if _, err := os.Stat(filepath.Join(filepath.Dir(name), m[1])); err != nil {
				t.Errorf("%s: link to %s: %v", name, m[1], err)
			}
		}
	}
}

var makeTarget = regexp.MustCompile("(?m)(?:^\\$? ?|`)make ([a-z]+)")

func TestMakeTargetsInDocumentsExist(t *testing.T) {
	makefile := read(t, "../Makefile")
	for _, name := range documents(t) {
		for _, m := range makeTarget.FindAllStringSubmatch(read(t, name), -1) {
			if !strings.Contains(makefile, "\n"+m[1]+":") {
				t.Errorf("%s: make %s: no such target", name, m[1])
			}
		}
	}
}

func TestEveryDependencyIsExplained(t *testing.T) {
	text := read(t, "dependencies.md")
	var modules []string
	for line := range strings.Lines(read(t, "../go.mod")) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && strings.HasPrefix(fields[1], "v") && strings.Contains(fields[0], ".") && !strings.Contains(line, "// indirect") {
			modules = append(modules, fields[0])
		}
	}
	for _, m := range modules {
		if !strings.Contains(text, "`"+m+"`") {
			t.Errorf("dependencies.md does not say why %s is there", m)
		}
	}
}

func TestLinesOfDocumentsFit(t *testing.T) {
	for _, name := range documents(t) {
		n, code := 0, false
		for line := range strings.Lines(read(t, name)) {
			n++
			if strings.HasPrefix(line, "```") {
				code = !code
			}
			if code || strings.HasPrefix(line, "|") {
				continue
			}
			if length := len([]rune(strings.TrimSuffix(line, "\n"))); length > 80 {
				t.Errorf("%s:%d: %d columns", name, n, length)
			}
		}
	}
}

func TestMatchesKnowsEllipses(t *testing.T) {
	for _, c := range []struct {
		shown string
		got   string
		want  bool
	}{
		{"", "anything", true},
		{"one", "one\n", true},
		{"one", "two\n", false},
		{"one", "one\ntwo\n", false},
		{"…one…", "a one b\n", true},
		{"…\n+two", "head\nmore\n+two\n", true},
		{"a\nb", "a\nb\n", true},
		{"a\nb", "ab\n", false},
		{"…", "", true},
	} {
		var shown []string
		if c.shown != "" {
			shown = strings.Split(c.shown, "\n")
		}
		if got := matches(shown, c.got); got != c.want {
			t.Errorf("matches(%q, %q) = %v, want %v", c.shown, c.got, got, c.want)
		}
	}
}

func TestBlocksAreFound(t *testing.T) {
	text := "x\n```console status=7\n$ a\nout\n$ b\n```\n```sql d/e.sql\nf\n```\n```\n$ c\n```\n"
	got := blocks(t, "x", text)
	if len(got) != 2 || got[1].file != "d/e.sql" || got[1].text != "f\n" || got[0].status != 7 || len(got[0].steps) != 2 || !slices.Equal(got[0].steps[0].output, []string{"out"}) {
		t.Errorf("got = %+v", got)
	}
}

var yamlBlock = regexp.MustCompile("(?ms)^```yaml(?: [a-z./]+)?\n(.*?)^```$")

func TestManifestsInDocumentsAreValid(t *testing.T) {
	found := 0
	for _, name := range documents(t) {
		for _, m := range yamlBlock.FindAllStringSubmatch(read(t, name), -1) {
			found++
			if _, err := manifest.Parse(name, []byte(m[1])); err != nil {
				t.Errorf("%s: %v in\n%s", name, err, m[1])
			}
		}
	}
	if found < 3 {
		t.Errorf("got = %d manifests in the documentation, want at least 3", found)
	}
}
