//go:build linux

package hostile

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// shell runs a script outside, with a variable.
func shell(dir, variable, script string) (string, error) {
	cmd := exec.Command("sh", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), variable)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func link(t *testing.T, target, name string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, name); err != nil {
		t.Fatal(err)
	}
}

func TestLinksOfTheRepositoryReadNothingOutside(t *testing.T) {
	in := start(t)
	outside := t.TempDir()
	put(t, filepath.Join(outside, "secret"), "canary-of-the-host\n", 0o644)
	dir := repository(t, nil)
	relative, err := filepath.Rel(filepath.Join(dir, "deep"), outside)
	if err != nil {
		t.Fatal(err)
	}
	link(t, filepath.Join(outside, "secret"), filepath.Join(dir, "file-link"))
	link(t, outside, filepath.Join(dir, "dir-link"))
	link(t, relative, filepath.Join(dir, "deep", "relative-link"))
	link(t, "/", filepath.Join(dir, "root-link"))
	script := `for f in file-link dir-link/secret deep/relative-link/secret root-link` + outside + `/secret; do cat $f; done; exit 0`
	if out, err := shell(dir, "", script); err != nil || strings.Count(out, "canary-of-the-host") != 4 {
		t.Fatalf("control: got = %q, %v, want the secret through each link", out, err)
	}
	out := in.Mayfly(dir, "run", "--name", "links", "--", "sh", "-c", script+" 2>&1; readlink file-link")
	if strings.Contains(out, "canary-of-the-host") {
		t.Errorf("the environment reads a file of the host: %s", out)
	}
	if !strings.Contains(in.Mayfly(dir, "exec", "links", "--", "readlink", "file-link"), outside) {
		t.Error("the link itself did not come along")
	}
	if out, err := exec.Command("grep", "-r", "-l", "-a", "canary-of-the-host", in.State, "--exclude=pool.img").CombinedOutput(); err == nil {
		t.Errorf("the secret is in the state directory: %s", out)
	}
}

// A link may lie in the repository, and the agent may put a directory in its
// place, so that a change below it lands where the link leads.
func TestChangesDoNotGoThroughLinksOfTheRepository(t *testing.T) {
	in := start(t)
	outside := t.TempDir()
	plant := func() string {
		dir := repository(t, nil)
		link(t, outside, filepath.Join(dir, "out"))
		if o, err := git(dir, "add", "out"); err != nil {
			t.Fatalf("git add: %v: %s", err, o)
		}
		return dir
	}
	control := plant()
	put(t, filepath.Join(control, "out", "control"), "x", 0o644) // as one copies a file over
	if _, err := os.Stat(filepath.Join(outside, "control")); err != nil {
		t.Fatal("control: writing below the link did not reach outside")
	}
	for kind, script := range map[string]string{
		"directory": "rm out; mkdir out; echo evil > out/evil",
		"link":      "echo two > file; ln -s " + outside + " more; ln -s ../../../.. up",
		"git":       "mkdir -p .git/x sub/.git; echo evil > sub/.git/config; ln -s .git dot; echo two > file",
	} {
		t.Run(kind, func(t *testing.T) {
			in, dir := in.For(t), plant()
			if out, err := git(dir, "commit", "-qm", "link"); err != nil {
				t.Fatalf("git commit: %v: %s", err, out)
			}
			in.Mayfly(dir, "run", "--name", name(t), "--", "sh", "-c", script)
			for _, args := range [][]string{{"apply", "--branch", "brought"}, {"apply", "--worktree"}} {
				if out, err := in.Try(dir, append(args, name(t))...); err == nil {
					t.Errorf("mayfly %s: got = %s, want a refusal", strings.Join(args, " "), out)
				}
			}
			for _, evil := range []string{filepath.Join(outside, "evil"), filepath.Join(dir, "sub", ".git"), filepath.Join(dir, "dot", "HEAD")} {
				if _, err := os.Stat(evil); err == nil {
					t.Errorf("%s came out", evil)
				}
			}
			if target, err := os.Readlink(filepath.Join(dir, "more")); err == nil {
				t.Errorf("a link to %s came out", target)
			}
		})
	}
}
