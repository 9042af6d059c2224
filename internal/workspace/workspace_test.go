package workspace

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

func TestCleanRepositoryArrivesClean(t *testing.T) {
	dir := newRepo(t, map[string]string{"a.txt": "a\n", "dir/b.sh": "#!/bin/sh\n", "mayfly.lock": "{}\n"})
	if err := os.Chmod(filepath.Join(dir, "dir/b.sh"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("a.txt", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	commitFiles(t, dir, nil)
	s := openDirty(t, dir)
	lock, _ := s.Lock()
	wantEqual(t, "files", lock.Files, 3)
	wantEqual(t, "uncommitted", lock.Uncommitted, 0)
	wantEqual(t, "commit", lock.Commit, strings.TrimSpace(git(t, dir, "rev-parse", "HEAD")))
	wantEqual(t, "branch", s.Branch(), "main")
	wantEqual(t, "epoch", s.Epoch(), 1700000000)

	in := extract(t, stream(t, s))
	wantEqual(t, "status", git(t, in, "status", "--porcelain"), "")
	wantEqual(t, "branch inside", strings.TrimSpace(git(t, in, "branch", "--show-current")), "main")
	wantEqual(t, "head inside", strings.TrimSpace(git(t, in, "rev-parse", "HEAD")), lock.Commit)
	wantEqual(t, "history", strings.Count(git(t, in, "log", "--oneline"), "\n"), 2)
	git(t, in, "fsck", "--strict")
	st, err := os.Stat(filepath.Join(in, "dir/b.sh"))
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "executable", st.Mode().Perm(), os.FileMode(0o755))
	wantEqual(t, "digest inside", digest(openDirty(t, in)), lock.Digest)
}

// TestStatusInsideReadsNoFile makes the index prove its worth: files whose
// content was exchanged behind git's back, with size and time kept, must look
// unchanged to it.
func TestStatusInsideReadsNoFile(t *testing.T) {
	dir := newRepo(t, map[string]string{"a.txt": "one\n", "d/b.txt": "two\n"})
	in := extract(t, stream(t, openDirty(t, dir)))
	name := filepath.Join(in, "d/b.txt")
	st, err := os.Stat(name)
	if err != nil {
		t.Fatal(err)
	}
	write(t, name, "owt\n")
	if err := os.Chtimes(name, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "status", git(t, in, "--no-optional-locks", "status", "--porcelain"), "")
	write(t, name, "more than two\n")
	wantEqual(t, "status", git(t, in, "status", "--porcelain"), " M d/b.txt\n")
}

func TestUncommittedChangesStayUncommitted(t *testing.T) {
	dir := newRepo(t, map[string]string{"mod": "1", "gone": "2", "same": "3", "type": "4", ".gitignore": "*.o\n", "staged": "5"})
	clean := openDirty(t, dir)
	write(t, filepath.Join(dir, "mod"), "changed")
	write(t, filepath.Join(dir, "new dir/new"), "new")
	write(t, filepath.Join(dir, "x.o"), "ignored")
	write(t, filepath.Join(dir, "staged"), "staged")
	git(t, dir, "add", "staged")
	for _, name := range []string{"gone", "type"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("same", filepath.Join(dir, "type")); err != nil {
		t.Fatal(err)
	}
	s := openDirty(t, dir)
	lock, _ := s.Lock()
	wantEqual(t, "uncommitted", lock.Uncommitted, 5)
	wantEqual(t, "files", lock.Files, 6)
	if digest(s) == digest(clean) {
		t.Error("digest did not change")
	}
	in := extract(t, stream(t, s))
	wantEqual(t, "status", git(t, in, "status", "--porcelain", "-uall"),
		" D gone\n M mod\n M staged\n T type\n?? \"new dir/new\"\n")
	wantEqual(t, "digest inside", digest(openDirty(t, in)), lock.Digest)

	committed := open(t, dir, Options{})
	wantEqual(t, "digest of the commit", digest(committed), digest(clean))
	wantEqual(t, "status", git(t, extract(t, stream(t, committed)), "status", "--porcelain"), "")
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-qm", "all")
	wantEqual(t, "digest after committing", digest(openDirty(t, dir)), lock.Digest)
}

func TestCommitOptionTakesThatCommit(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "old"})
	first := strings.TrimSpace(git(t, dir, "rev-parse", "HEAD"))
	old := openDirty(t, dir)
	commitFiles(t, dir, map[string]string{"a": "new", "b": "new"})
	s := open(t, dir, Options{Commit: "HEAD~1"})
	wantEqual(t, "commit", s.Commit(), first)
	wantEqual(t, "digest", digest(s), digest(old))
	in := extract(t, stream(t, s))
	b, err := os.ReadFile(filepath.Join(in, "a"))
	if err != nil {
		t.Fatal(err)
	}
	wantEqual(t, "content", string(b), "old")
	wantEqual(t, "status", git(t, in, "status", "--porcelain"), "")
	for _, rev := range []string{"nonsense", "--all", "HEAD\nHEAD", "HEAD:a"} {
		_, err := Open(t.Context(), dir, Options{Commit: rev})
		wantKind(t, err, mayfly.Invalid, "no commit")
	}
	_, err = Open(t.Context(), dir, Options{Commit: "HEAD", Uncommitted: true})
	wantKind(t, err, mayfly.Invalid, "exclude")
}

func TestSameSourceStreamsSameBytes(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1", "d/e/f": "2", "d/g": strings.Repeat("long ", 500000)})
	commitFiles(t, dir, map[string]string{"a": "3"})
	write(t, filepath.Join(dir, "untracked"), "4")
	one := stream(t, openDirty(t, dir))
	git(t, dir, "status") // refreshes the index
	two := stream(t, openDirty(t, dir))
	if !bytes.Equal(one, two) {
		t.Error("two streams of the same source differ")
	}
}

func TestSubdirectoryMeansTheWholeRepository(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1", "x/y/b": "2"})
	s := openDirty(t, filepath.Join(dir, "x/y"))
	wantEqual(t, "root", s.Root(), dir)
	wantEqual(t, "dir", s.Dir(), "x/y")
	wantEqual(t, "digest", digest(s), digest(openDirty(t, dir)))
}

func TestLockFileIsStreamedButNotDigested(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	before := openDirty(t, dir)
	write(t, filepath.Join(dir, "mayfly.lock"), "anything")
	write(t, filepath.Join(dir, "sub/go.sum"), "sums")
	git(t, dir, "add", "sub")
	git(t, dir, "commit", "-qm", "sums")
	s := open(t, dir, Options{Uncommitted: true, Pin: func(p string) bool { return filepath.Base(p) == "go.sum" }})
	lock, pins := s.Lock()
	wantEqual(t, "uncommitted", lock.Uncommitted, 0)
	wantEqual(t, "files", lock.Files, 2)
	wantNames(t, names(t, stream(t, s)), "a", "mayfly.lock", "sub/go.sum")
	wantEqual(t, "pins", len(pins), 1)
	wantEqual(t, "pin", pins["sub/go.sum"], fmt.Sprintf("sha256:%x", sha256.Sum256([]byte("sums"))))
	git(t, dir, "rm", "-qr", "sub")
	wantEqual(t, "digest", digest(openDirty(t, dir)), digest(before))
}

func TestHistoryDepth(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "0"})
	for _, c := range []string{"1", "2", "3"} {
		commitFiles(t, dir, map[string]string{"a": c})
	}
	git(t, dir, "branch", "other", "HEAD~1")
	git(t, dir, "checkout", "-q", "-b", "secret")
	commitFiles(t, dir, map[string]string{"key": "secret"})
	git(t, dir, "checkout", "-q", "main")
	for depth, want := range map[int]int{0: 4, 1: 1, 2: 2, 9: 4} {
		in := extract(t, stream(t, open(t, dir, Options{Uncommitted: true, Depth: depth})))
		wantEqual(t, "commits", strings.Count(git(t, in, "log", "--oneline"), "\n"), want)
		wantEqual(t, "status", git(t, in, "status", "--porcelain"), "")
		git(t, in, "fsck", "--strict")
		if out := git(t, in, "for-each-ref"); strings.Count(out, "\n") != 1 {
			t.Errorf("refs = %q, want main alone", out)
		}
		if out := git(t, in, "cat-file", "--batch-all-objects", "--batch-check"); depth == 1 && strings.Count(out, "\n") != 3 {
			t.Errorf("objects = %q, want commit, tree and blob", out)
		}
	}
	shallow := filepath.Join(realTempDir(t), "shallow")
	git(t, "", "clone", "-q", "--depth=2", "file://"+dir, shallow)
	for depth, want := range map[int]int{0: 2, 1: 1} {
		in := extract(t, stream(t, open(t, shallow, Options{Uncommitted: true, Depth: depth})))
		wantEqual(t, "commits", strings.Count(git(t, in, "log", "--oneline"), "\n"), want)
		git(t, in, "fsck", "--strict")
	}
}

func TestNothingOfTheUsersSettingsGetsIn(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	git(t, dir, "config", "user.email", "person@example.com")
	git(t, dir, "remote", "add", "origin", "https://user:password@example.com/x")
	git(t, dir, "config", "http.extraHeader", "Authorization: token")
	write(t, filepath.Join(dir, ".git/hooks/pre-commit"), "#!/bin/sh\nexit 1\n")
	archive := stream(t, openDirty(t, dir))
	for _, secret := range []string{"password", "person@example.com", "Authorization", "hooks/", "logs/"} {
		if bytes.Contains(archive, []byte(secret)) {
			t.Errorf("the stream contains %q", secret)
		}
	}
	in := extract(t, archive)
	wantEqual(t, "email", strings.TrimSpace(git(t, in, "config", "user.email")), AgentEmail)
}
