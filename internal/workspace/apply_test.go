package workspace

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

// makePatch edits a copy of the repository and returns git's patch of it.
func makePatch(t testing.TB, dir string, edit func(dir string)) string {
	t.Helper()
	in := filepath.Join(realTempDir(t), "edited")
	git(t, "", "clone", "-q", dir, in)
	edit(in)
	git(t, in, "add", "-A", "-f")
	return git(t, in, "diff", "--cached", "--binary", "--full-index", "-M")
}

// picture is everything about a repository that applying must not touch.
func picture(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(dir, p)
		if rel == ".git/objects" {
			return fs.SkipDir
		}
		st, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %v", rel, st.Mode())
		if st.Mode().IsRegular() {
			content, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %v %x", st.ModTime().UnixNano(), content)
		}
		b.WriteByte('\n')
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func applyBranch(t testing.TB, dir, patch, branch string) (Applied, error) {
	t.Helper()
	head := strings.TrimSpace(git(t, dir, "rev-parse", "main"))
	return Apply(t.Context(), dir, strings.NewReader(patch), ApplyOptions{Branch: branch, Base: head, Message: "the change"})
}

func TestApplyMakesABranchAndLeavesTheRestAlone(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1\n2\n3\n", "gone": "x\n", "moved": strings.Repeat("line\n", 30), ".gitignore": "*.o\n", "sp ace": "1\n"})
	patch := makePatch(t, dir, func(in string) {
		write(t, filepath.Join(in, "a"), "1\ntwo\n3\n")
		write(t, filepath.Join(in, "bin"), "\x00\x01\x02")
		write(t, filepath.Join(in, "odd\n\"näme\\"), "odd\n")
		write(t, filepath.Join(in, "sp ace"), "2\n")
		write(t, filepath.Join(in, "x.o"), "object\n")
		for _, err := range []error{
			os.Remove(filepath.Join(in, "gone")), os.Rename(filepath.Join(in, "moved"), filepath.Join(in, "moved there")),
			os.Symlink("a", filepath.Join(in, "link")), os.Chmod(filepath.Join(in, "a"), 0o755),
		} {
			if err != nil {
				t.Fatal(err)
			}
		}
	})
	write(t, filepath.Join(dir, "a"), "the user is at work here\n")
	write(t, filepath.Join(dir, "staged"), "staged\n")
	git(t, dir, "add", "staged")
	git(t, dir, "config", "user.name", "The User")
	git(t, dir, "config", "apply.whitespace", "fix")
	git(t, dir, "status")
	before := picture(t, dir)
	got, err := applyBranch(t, dir, patch, "mayfly/env-1")
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "skipped", fmt.Sprint(got.Skipped), "[x.o]")
	wantEqual(t, "branch", got.Branch, "mayfly/env-1")
	wantEqual(t, "commit", strings.TrimSpace(git(t, dir, "rev-parse", "mayfly/env-1")), got.Commit)
	wantEqual(t, "log", git(t, dir, "log", "-1", "--format=%an|%ae|%cn|%s|%P", got.Commit),
		"mayfly agent|agent@mayfly.invalid|The User|the change|"+git(t, dir, "rev-parse", "main"))
	summary := git(t, dir, "diff-tree", "-r", "-M", "--name-status", "-z", "main", got.Commit)
	wantEqual(t, "changes", strings.ReplaceAll(summary, "\x00", " "),
		"M a A bin D gone A link R100 moved moved there A odd\n\"näme\\ M sp ace ")
	git(t, dir, "fsck", "--strict")

	after := picture(t, dir)
	for _, gone := range []string{".git/logs/refs/heads/mayfly", ".git/refs/heads/mayfly"} {
		var kept []string
		for line := range strings.Lines(after) {
			if !strings.HasPrefix(line, gone) {
				kept = append(kept, line)
			}
		}
		after = strings.Join(kept, "")
	}
	if before != after {
		t.Errorf("more than the branch changed:\n%s\nwas\n%s", after, before)
	}
	all, err := Apply(t.Context(), dir, strings.NewReader(patch), ApplyOptions{Branch: "with-ignored", Base: "main", Ignored: true})
	if err != nil || len(all.Skipped) != 0 || !slices.Contains(all.Files, "x.o") {
		t.Errorf("with ignored files: %+v, %v", all, err)
	}
}

func TestApplyRefusesConflictsAndChangesNothing(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1\n2\n3\n", "b": "1\n"})
	patch := makePatch(t, dir, func(in string) {
		write(t, filepath.Join(in, "a"), "1\ntwo\n3\n")
		write(t, filepath.Join(in, "new"), "x\n")
	})
	commitFiles(t, dir, map[string]string{"a": "completely\nother\n"})
	git(t, dir, "branch", "taken")
	git(t, dir, "branch", "dir/inner")
	git(t, dir, "status")
	before := picture(t, dir)
	for name, c := range map[string]struct {
		o       ApplyOptions
		kind    mayfly.Kind
		mention string
	}{
		"does not apply":   {ApplyOptions{Branch: "x", Base: "main"}, mayfly.Conflict, "a: patch does not apply"},
		"branch exists":    {ApplyOptions{Branch: "taken", Base: "main~1"}, mayfly.Conflict, "taken"},
		"name is a prefix": {ApplyOptions{Branch: "dir", Base: "main~1"}, mayfly.Conflict, "dir"},
		"bad name":         {ApplyOptions{Branch: "a..b", Base: "main~1"}, mayfly.Invalid, "a..b"},
		"option as name":   {ApplyOptions{Branch: "-f", Base: "main~1"}, mayfly.Invalid, "-f"},
		"unknown base":     {ApplyOptions{Branch: "x", Base: strings.Repeat("1", 40)}, mayfly.Conflict, "1111"},
	} {
		_, err := Apply(t.Context(), dir, strings.NewReader(patch), c.o)
		wantKind(t, err, c.kind, c.mention)
		wantEqual(t, name+": repository", picture(t, dir), before)
	}
	_, err := Apply(t.Context(), dir, strings.NewReader(patch), ApplyOptions{Branch: "x", Base: "main", Uncommitted: true})
	if e, ok := err.(*mayfly.Error); !ok || !strings.Contains(e.Fix, "uncommitted") {
		t.Errorf("error = %#v, want a hint about uncommitted changes", err)
	}
	_, err = ApplyWorktree(t.Context(), dir, strings.NewReader(patch), ApplyOptions{})
	wantKind(t, err, mayfly.Conflict, "a: patch does not apply")
	wantEqual(t, "repository", picture(t, dir), before)
	_, err = Apply(t.Context(), dir, strings.NewReader(""), ApplyOptions{Branch: "x", Base: "main"})
	wantKind(t, err, mayfly.Conflict, "nothing to apply")
	if _, err := Apply(t.Context(), dir, strings.NewReader(patch), ApplyOptions{Branch: "x", Base: "main~1"}); err != nil {
		t.Errorf("control: %v", err)
	}
}

func TestApplyWorktree(t *testing.T) {
	for _, kind := range []string{"git", "plain"} {
		t.Run(kind, func(t *testing.T) {
			dir := newRepo(t, map[string]string{"a": "1\n", "gone": "x\n", "d/e": "1\n"})
			patch := makePatch(t, dir, func(in string) {
				write(t, filepath.Join(in, "a"), "2\n")
				write(t, filepath.Join(in, "n/new"), "\x00new")
				if err := os.Remove(filepath.Join(in, "gone")); err != nil {
					t.Fatal(err)
				}
			})
			if kind == "plain" {
				if err := os.RemoveAll(filepath.Join(dir, ".git")); err != nil {
					t.Fatal(err)
				}
			}
			got, err := ApplyWorktree(t.Context(), filepath.Join(dir, map[string]string{"git": "d", "plain": ""}[kind]), strings.NewReader(patch), ApplyOptions{})
			if err != nil {
				t.Fatal(err)
			}
			wantEqual(t, "files", fmt.Sprint(got.Files), "[a gone n/new]")
			a, _ := os.ReadFile(filepath.Join(dir, "a"))
			n, _ := os.ReadFile(filepath.Join(dir, "n/new"))
			wantEqual(t, "contents", string(a)+string(n), "2\n\x00new")
			if _, err := os.Stat(filepath.Join(dir, "gone")); err == nil {
				t.Error("gone is still there")
			}
			before := picture(t, dir)
			_, err = ApplyWorktree(t.Context(), dir, strings.NewReader(patch), ApplyOptions{})
			wantKind(t, err, mayfly.Conflict, "does not apply")
			wantEqual(t, "directory", picture(t, dir), before)
		})
	}
}

func newFile(name, content string) string {
	return fmt.Sprintf("diff --git %s %s\nnew file mode 100644\nindex 0000000..%s\n--- /dev/null\n+++ %s\n@@ -0,0 +1 @@\n+%s\n",
		cQuote("a/"+name), cQuote("b/"+name), blobID("sha1", []byte(content+"\n")), cQuote("b/"+name), content)
}

func newLink(name, to string) string {
	return fmt.Sprintf("diff --git a/%s b/%s\nnew file mode 120000\nindex 0000000..%s\n--- /dev/null\n+++ b/%s\n@@ -0,0 +1 @@\n+%s\n\\ No newline at end of file\n",
		name, name, blobID("sha1", []byte(to)), name, to)
}

// hostile are patches that want more than to change files of the workspace.
var hostile = map[string]string{
	"hook":              newFile(".git/hooks/post-checkout", "evil"),
	"config":            newFile(".git/config", "evil"),
	"upper case":        newFile(".GIT/config", "evil"),
	"nested":            newFile("sub/.git/config", "evil"),
	"mixed case":        newFile("sub/.gIt/hooks/x", "evil"),
	"NTFS short name":   newFile("GIT~1/config", "evil"),
	"NTFS stream":       newFile(".git::$INDEX_ALLOCATION/config", "evil"),
	"trailing dot":      newFile(".git./config", "evil"),
	"trailing space":    newFile(".git /config", "evil"),
	"HFS ignorable":     newFile(".g\u200cit/config", "evil"),
	"backslash":         newFile(`sub\.git\config`, "evil"),
	"parent":            newFile("../outside", "evil"),
	"inner parent":      newFile("a/../../outside", "evil"),
	"absolute":          newFile("/tmp/outside", "evil"),
	"double slash":      newFile("a//b", "evil"),
	"absolute link":     newLink("l", "/etc/passwd"),
	"escaping link":     newLink("d/l", "../../outside"),
	"link into .git":    newLink("l", ".git/hooks"),
	"through a link":    newLink("l", "d") + newFile("l/x", "evil"),
	"submodule":         "diff --git a/m b/m\nnew file mode 160000\nindex 0000000..1111111111111111111111111111111111111111\n--- /dev/null\n+++ b/m\n@@ -0,0 +1 @@\n+Subproject commit 1111111111111111111111111111111111111111\n",
	"odd mode":          "diff --git a/m b/m\nnew file mode 104755\nindex 0000000..e69de29\n",
	"file to link":      "diff --git a/target b/target\nold mode 100644\nnew mode 120000\n",
	"rename into .git":  "diff --git a/f b/.git/hooks/pre-commit\nsimilarity index 100%\nrename from f\nrename to .git/hooks/pre-commit\n",
	"rename of a link":  "diff --git a/d/inner b/inner\nsimilarity index 100%\nrename from d/inner\nrename to inner\n",
	"binary link":       "diff --git a/l b/l\nnew file mode 120000\nindex 0000000000000000000000000000000000000000..1111111111111111111111111111111111111111\nGIT binary patch\nliteral 0\nHcmV?d00001\n\n",
	"hidden name":       strings.Replace(newFile("ok", "evil"), "+++ b/ok", "+++ b/.git/config", 1),
	"second name":       strings.Replace(newFile("ok", "evil"), "diff --git a/ok b/ok", "diff --git a/ok b/.git/config", 1),
	"leading garbage":   "--- a/.git/config\n+++ b/.git/config\n@@ -0,0 +1 @@\n+evil\n" + newFile("ok", "fine"),
	"garbage inside":    newFile("ok", "fine") + "--- /dev/null\n+++ b/.git/x\n@@ -0,0 +1 @@\n+evil\n",
	"garbage after":     newFile("ok", "fine") + "something\n",
	"no final newline":  strings.TrimSuffix(newFile("ok", "fine"), "\n"),
	"too few lines":     strings.Replace(newFile("ok", "fine"), "+1 @@", "+1,3 @@", 1),
	"too many lines":    newFile("ok", "fine") + "+more\n",
	"traditional patch": "--- a/f\n+++ b/f\n@@ -1 +1 @@\n-1\n+2\n",
	"mode not said":     "diff --git a/d/inner b/d/inner\nindex 1111111..2222222\n--- a/d/inner\n+++ b/d/inner\n@@ -1 +1 @@\n-../f\n\\ No newline at end of file\n+/etc/passwd\n\\ No newline at end of file\n",
}

func TestHostilePatchesAreRefused(t *testing.T) {
	make := func() string {
		dir := newRepo(t, map[string]string{"f": "1\n", "d/x": "1\n", "target": "/etc/passwd"})
		if err := os.Symlink("../f", filepath.Join(dir, "d/inner")); err != nil {
			t.Fatal(err)
		}
		commitFiles(t, dir, nil)
		return dir
	}
	dir := make()
	plain := make()
	if err := os.RemoveAll(filepath.Join(plain, ".git")); err != nil {
		t.Fatal(err)
	}
	git(t, dir, "status")
	before, plainBefore := picture(t, dir), picture(t, plain)
	for name, patch := range hostile {
		_, err := applyBranch(t, dir, patch, "x")
		judge := func(how string, err error) {
			t.Helper()
			if k := mayfly.KindOf(err); k != mayfly.Forbidden && k != mayfly.Invalid && k != mayfly.Conflict {
				t.Errorf("%s (%s): error = %v, want a refusal", name, how, err)
			}
		}
		judge("branch", err)
		_, err = ApplyWorktree(t.Context(), dir, strings.NewReader(patch), ApplyOptions{})
		judge("work tree", err)
		_, err = ApplyWorktree(t.Context(), plain, strings.NewReader(patch), ApplyOptions{})
		judge("plain", err)
		if picture(t, dir) != before || picture(t, plain) != plainBefore {
			t.Fatalf("%s: something changed", name)
		}
	}
	for _, e := range []string{filepath.Join(filepath.Dir(dir), "outside"), "/tmp/outside"} {
		if _, err := os.Lstat(e); err == nil {
			t.Errorf("%s was made", e)
		}
	}
	fine := newFile("ok", "fine") + newFile("d/.gitignore", "x") + newFile(".github/git~x", "y") + newLink("d/l", "../f") + newLink("d/l2", "x")
	if got, err := applyBranch(t, dir, fine, "x"); err != nil || len(got.Files) != 5 {
		t.Errorf("control: %+v, %v", got, err)
	}
	if _, err := ApplyWorktree(t.Context(), plain, strings.NewReader(fine), ApplyOptions{}); err != nil {
		t.Errorf("control: %v", err)
	}
}

// TestApplyThroughALinkOfTheWorkTree has a directory that is a link on the
// user's disk alone.
func TestApplyThroughALinkOfTheWorkTree(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1\n"})
	outside := realTempDir(t)
	write(t, filepath.Join(outside, "x"), "1\n")
	if err := os.Symlink(outside, filepath.Join(dir, "l")); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{newFile("l/y", "evil"),
		"diff --git a/l/x b/l/x\nindex 1111111..2222222 100644\n--- a/l/x\n+++ b/l/x\n@@ -1 +1 @@\n-1\n+2\n"} {
		_, err := ApplyWorktree(t.Context(), dir, strings.NewReader(p), ApplyOptions{})
		wantKind(t, err, mayfly.Conflict, "l/")
	}
	list, _ := os.ReadDir(outside)
	wantEqual(t, "files outside", len(list), 1)
	b, _ := os.ReadFile(filepath.Join(outside, "x"))
	wantEqual(t, "content outside", string(b), "1\n")
}

func TestApplyRunsNoProgramOfTheRepository(t *testing.T) {
	dir := newRepo(t, map[string]string{"a.x": "1\n", ".gitattributes": "*.x filter=evil merge=evil diff=evil\n"})
	patch := makePatch(t, dir, func(in string) { write(t, filepath.Join(in, "a.x"), "2\n") })
	mark := filepath.Join(t.TempDir(), "ran")
	hooks := t.TempDir()
	trap := filepath.Join(hooks, "reference-transaction")
	write(t, trap, "#!/bin/sh\necho ran >> "+mark+"\ncat\n")
	if err := os.Chmod(trap, 0o755); err != nil {
		t.Fatal(err)
	}
	for k, v := range map[string]string{
		"core.hooksPath": hooks, "filter.evil.clean": trap, "filter.evil.smudge": trap, "merge.evil.driver": trap,
		"diff.evil.textconv": trap, "diff.external": trap, "core.fsmonitor": trap, "gpg.program": trap, "commit.gpgSign": "true",
	} {
		git(t, dir, "-c", "core.hooksPath=/dev/null", "-c", "core.fsmonitor=false", "config", k, v)
	}
	if _, err := applyBranch(t, dir, patch, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := ApplyWorktree(t.Context(), dir, strings.NewReader(patch), ApplyOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mark); err == nil {
		t.Error("a program of the repository ran")
	}
	tryGit(dir, "branch", "control")
	if _, err := os.Stat(mark); err != nil {
		t.Error("control: git itself did not run the planted hook")
	}
}

func TestApplyInAnSHA256Repository(t *testing.T) {
	testEnv(t)
	dir := filepath.Join(realTempDir(t), "r")
	git(t, "", "init", "-q", "--object-format=sha256", "-b", "main", dir)
	commitFiles(t, dir, map[string]string{"a": "1\n"})
	patch := makePatch(t, dir, func(in string) { write(t, filepath.Join(in, "a"), "2\n"); write(t, filepath.Join(in, "b"), "\x00") })
	if _, err := applyBranch(t, dir, patch, "x"); err != nil {
		t.Fatal(err)
	}
}

func TestApplyRefusesChangesInsideSubmodules(t *testing.T) {
	lib := newRepo(t, map[string]string{"lib.c": "1\n"})
	home := os.Getenv("HOME")
	dir := newRepo(t, map[string]string{"a": "1\n"})
	t.Setenv("HOME", home)
	git(t, dir, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", lib, "lib")
	git(t, dir, "commit", "-qm", "submodule")
	patch := "diff --git a/lib/lib.c b/lib/lib.c\nindex 1111111..2222222 100644\n--- a/lib/lib.c\n+++ b/lib/lib.c\n@@ -1 +1 @@\n-1\n+2\n"
	_, err := applyBranch(t, dir, patch, "x")
	wantKind(t, err, mayfly.Conflict, "lib/lib.c")
	_, err = applyBranch(t, dir, newFile("lib/new.c", "1"), "x")
	if err == nil {
		t.Error("a file inside a submodule was committed to the repository")
	}
}

func FuzzParsePatch(f *testing.F) {
	for _, p := range hostile {
		f.Add([]byte(p))
	}
	f.Add([]byte(newFile("ok", "fine") + newLink("l", "ok")))
	f.Add([]byte("diff --git \"a/x\\n\" \"b/x\\n\"\ndeleted file mode 100644\nindex e69de29..0000000\n"))
	f.Fuzz(func(t *testing.T, patch []byte) {
		sections, err := parsePatch(bytes.NewReader(patch))
		if err != nil {
			return
		}
		at := int64(0)
		for _, s := range sections {
			if s.start != at || s.end <= s.start {
				t.Fatalf("section from %d to %d, want it to begin at %d", s.start, s.end, at)
			}
			at = s.end
			if s.oldPath == "" && s.newPath == "" {
				t.Fatal("a section without a name")
			}
		}
		if at != int64(len(patch)) {
			t.Fatalf("%d bytes belong to no section", int64(len(patch))-at)
		}
		if guard(sections) == nil {
			for _, s := range sections {
				if p := s.path(); strings.HasPrefix(p, "/") || strings.Contains("/"+strings.ToLower(p)+"/", "/.git/") || strings.Contains("/"+p+"/", "/../") {
					t.Fatalf("%q passed", p)
				}
			}
		}
	})
}

func FuzzGitOutput(f *testing.F) {
	f.Add([]byte("H 100644 e69de29bb2d1d6434b8b29ae775ad8c2e48c5391 0\tfile\x00"))
	f.Add([]byte("100644 blob e69de29bb2d1d6434b8b29ae775ad8c2e48c5391\tfile\x00"))
	f.Add([]byte("# branch.oid (initial)\x001 .M N... 100644 100644 100644 e69de29 e69de29 a b\x00? x/\x00u UU N... 1 2 3 4 h h h p\x00"))
	f.Add([]byte("a\x00text\x00auto\x00"))
	f.Add([]byte("local\x00filter.x.clean\nrm\x00"))
	f.Add([]byte("e69de29bb2d1d6434b8b29ae775ad8c2e48c5391 commit 9\ntree e69de29bb2d1d6434b8b29ae775ad8c2e48c5391\ncommitter a <b> 1 +0\n\nx"))
	f.Fuzz(func(t *testing.T, out []byte) {
		if l, err := parseListFiles(out); err == nil {
			for _, e := range l {
				if checkPath(e.path) != nil {
					t.Errorf("path %q passed", e.path)
				}
			}
		}
		parseListTree(out)
		if s, err := parseStatus(out); err == nil {
			for _, p := range s.untracked {
				if checkPath(strings.TrimSuffix(p, "/")) != nil {
					t.Errorf("path %q passed", p)
				}
			}
		}
		parseAttributes(out, true)
		parseCommit(out)
		(&repository{}).parseConfig(out)
		if name, rest, err := unquote(string(out)); err == nil && rest == "" && strings.HasPrefix(string(out), `"`) {
			if again, _, err := unquote(cQuote(name)); err != nil || again != name {
				t.Errorf("%q does not survive quoting: %q, %v", name, again, err)
			}
		}
	})
}
