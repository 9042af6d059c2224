//go:build linux

package hostile

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly/internal/agents/installation"
	"mayfly.dev/mayfly/internal/scriptedmodel"
)

// programs is the directory of mayfly and of the program ask.
var programs string

func TestMain(m *testing.M) {
	var err error
	if programs, err = installation.Build("mayfly.dev/mayfly/internal/hostile/ask"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	// Git's settings of whoever runs the tests must not matter.
	os.Setenv("HOME", programs)
	os.Setenv("GIT_CONFIG_NOSYSTEM", "1")
	status := m.Run()
	os.RemoveAll(programs)
	os.Exit(status)
}

// start starts a server, whose model says a word and ends.
func start(t *testing.T) *installation.Installation {
	t.Helper()
	in := installation.Start(t, programs, &scriptedmodel.Script{Steps: []scriptedmodel.Step{{Say: "Done."}}})
	in.Patience = 30 * time.Second
	return in
}

// repository is a new one with the files and one commit.
func repository(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "repository")
	put(t, filepath.Join(dir, "file"), "one\n", 0o644)
	for name, content := range files {
		put(t, filepath.Join(dir, name), content, 0o644)
	}
	for _, args := range [][]string{
		{"init", "-q", "-b", "main"}, {"config", "user.name", "test"}, {"config", "user.email", "test@example.com"},
		{"add", "-A"}, {"commit", "-q", "-m", "first"},
	} {
		if out, err := git(dir, args...); err != nil {
			t.Fatalf("git %s: %v: %s", args[0], err, out)
		}
	}
	return dir
}

// git runs git as a person does, with all that the repository brings.
func git(dir string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "git", args...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func put(t *testing.T, name, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

// name is a name for an environment of the test.
func name(t *testing.T) string {
	clean := func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= '0' && c <= '9' {
			return c
		}
		return '-'
	}
	s := strings.Map(clean, strings.ToLower(t.Name()))
	return strings.Trim(s[max(0, len(s)-60):], "-")
}
