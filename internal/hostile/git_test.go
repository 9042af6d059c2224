//go:build linux

package hostile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mayfly.dev/mayfly/internal/agents/installation"
)

// trap is a program that leaves a mark, and what it did.
type trap struct {
	program string
	mark    string
}

func newTrap(t *testing.T) trap {
	t.Helper()
	dir := t.TempDir()
	tr := trap{filepath.Join(dir, "program"), filepath.Join(dir, "mark")}
	put(t, tr.program, "#!/bin/sh\necho \"$0 $*\" >> "+tr.mark+"\n[ $# -gt 0 ] || cat\n", 0o755)
	return tr
}

// sprung is what the program did; empty when nothing started it.
func (tr trap) sprung() string {
	b, _ := os.ReadFile(tr.mark)
	return string(b)
}

// gitTrick is a way in which a repository makes git start a program.
type gitTrick struct {
	name string
	// plant puts the trap into the repository.
	plant func(t *testing.T, dir string, tr trap)
	// control is what a person might do with git that springs the trap.
	control []string
}

// setting plants the trap as settings of the repository.
func setting(keys ...string) func(*testing.T, string, trap) {
	return func(t *testing.T, dir string, tr trap) {
		for _, key := range keys {
			key, value, given := strings.Cut(key, "=")
			if !given {
				value = tr.program
			}
			if out, err := git(dir, "config", key, value); err != nil {
				t.Fatalf("git config %s: %v: %s", key, err, out)
			}
		}
	}
}

// hooks are those that git starts by itself for what mayfly does.
var hooks = []string{
	"applypatch-msg", "pre-applypatch", "post-applypatch", "pre-commit", "prepare-commit-msg", "commit-msg", "post-commit",
	"post-checkout", "post-merge", "post-rewrite", "reference-transaction", "post-index-change", "fsmonitor-watchman", "pre-auto-gc",
}

func plantHooks(t *testing.T, dir string, tr trap) {
	for _, hook := range hooks {
		put(t, filepath.Join(dir, hook), "#!/bin/sh\n"+tr.program+" </dev/null >&2\n", 0o755)
	}
}

var gitTricks = []gitTrick{
	{"hooks", func(t *testing.T, dir string, tr trap) { plantHooks(t, filepath.Join(dir, ".git", "hooks"), tr) }, []string{"commit", "-am", "x"}},
	{"core.hooksPath", func(t *testing.T, dir string, tr trap) {
		plantHooks(t, filepath.Join(dir, "hooks"), tr)
		setting("core.hooksPath=hooks")(t, dir, tr)
	}, []string{"commit", "-am", "x"}},
	{"core.fsmonitor", setting("core.fsmonitor"), []string{"status"}},
	{"filter", func(t *testing.T, dir string, tr trap) {
		put(t, filepath.Join(dir, ".gitattributes"), "* filter=evil\n", 0o644)
		setting("filter.evil.clean", "filter.evil.smudge")(t, dir, tr)
	}, []string{"add", "file"}},
	{"diff.external", setting("diff.external"), []string{"diff"}},
	{"textconv", func(t *testing.T, dir string, tr trap) {
		put(t, filepath.Join(dir, ".gitattributes"), "* diff=evil\n", 0o644)
		setting("diff.evil.textconv")(t, dir, tr)
	}, []string{"diff"}},
	{"core.editor", setting("core.editor"), []string{"commit", "-a"}},
	{"gpg.program", setting("gpg.program", "commit.gpgSign=true"), []string{"commit", "-am", "x"}},
	{"core.sshCommand", setting("core.sshCommand", "remote.origin.url=ssh://nowhere.invalid/x"), []string{"fetch", "origin"}},
	{"include", func(t *testing.T, dir string, tr trap) {
		put(t, filepath.Join(dir, "settings"), "[core]\n\tfsmonitor = "+tr.program+"\n", 0o644)
		setting("include.path=../settings")(t, dir, tr)
	}, []string{"status"}},
}

// bringBack does with a run's change all that the command line offers.
var bringBack = [][]string{
	{"diff"}, {"apply", "--patch=-"}, {"apply", "--branch", "brought"}, {"apply", "--worktree"},
}

func TestGitOfTheRepositoryStartsNothingOutside(t *testing.T) {
	in := start(t)
	for _, trick := range gitTricks {
		t.Run(trick.name, func(t *testing.T) {
			control, tr := repository(t, nil), newTrap(t)
			trick.plant(t, control, tr)
			put(t, filepath.Join(control, "file"), "two\n", 0o644)
			git(control, trick.control...) // what it says of the trap does not matter
			if tr.sprung() == "" {
				t.Fatalf("control: git %s did not start the program", strings.Join(trick.control, " "))
			}
			dir, tr := repository(t, nil), newTrap(t)
			trick.plant(t, dir, tr)
			runAndBringBack(t, in.For(t), dir, "echo two >> file; echo new > new")
			if did := tr.sprung(); did != "" {
				t.Errorf("the repository's program ran outside: %s", did)
			}
			if b, _ := os.ReadFile(filepath.Join(dir, "file")); string(b) != "one\ntwo\n" {
				t.Errorf("the change did not come back: got = %q", b)
			}
		})
	}
}

// runAndBringBack runs the script in the repository and applies its change.
func runAndBringBack(t *testing.T, in *installation.Installation, dir, script string) {
	t.Helper()
	in.Mayfly(dir, "lock")
	in.Mayfly(dir, "run", "--name", name(t), "--", "sh", "-c", script)
	for _, args := range bringBack {
		in.Mayfly(dir, append(args, name(t))...)
	}
}

// An agent that cannot get out may leave traps for the person who takes its
// work.
func TestGitTrapsSetInsideStayInside(t *testing.T) {
	in := start(t)
	script := `set -e
		mkdir -p .git/hooks evil
		for h in ` + strings.Join(hooks, " ") + `; do printf '#!/bin/sh\n%s\n' "$TRAP" > .git/hooks/$h; chmod +x .git/hooks/$h; done
		git config core.fsmonitor "$TRAP"
		git config filter.evil.clean "$TRAP"
		mkdir -p sub && cd sub && git init -q && git config core.fsmonitor "$TRAP" && cd ..
		echo two >> file`
	control, tr := repository(t, nil), newTrap(t)
	if out, err := shell(control, "TRAP="+tr.program, script); err != nil {
		t.Fatalf("control: %v: %s", err, out)
	}
	if git(control, "status"); tr.sprung() == "" {
		t.Fatal("control: git status did not start the program")
	}
	dir, tr := repository(t, nil), newTrap(t)
	in.Mayfly(dir, "run", "--name", "traps", "--env", "TRAP="+tr.program, "--", "sh", "-c", script)
	for _, args := range bringBack {
		in.Mayfly(dir, append(args, "traps")...)
	}
	for _, args := range [][]string{{"status"}, {"commit", "-am", "x"}, {"checkout", "brought"}} {
		if out, err := git(dir, args...); err != nil {
			t.Errorf("git %s: %v: %s", args[0], err, out)
		}
	}
	if did := tr.sprung(); did != "" {
		t.Errorf("what the agent planted ran outside: %s", did)
	}
}
