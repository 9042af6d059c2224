package workspace

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

func TestPlainDirectoryWorksAndSaysSo(t *testing.T) {
	testEnv(t)
	dir := realTempDir(t)
	write(t, filepath.Join(dir, "a"), "1")
	write(t, filepath.Join(dir, "d/.DS_Store"), "junk")
	write(t, filepath.Join(dir, "d/b"), "2")
	write(t, filepath.Join(dir, "inner/.git/config"), "[remote]")
	if err := os.MkdirAll(filepath.Join(dir, "empty/er"), 0o755); err != nil {
		t.Fatal(err)
	}
	s := openDirty(t, dir)
	lock, _ := s.Lock()
	wantEqual(t, "git", s.Git(), false)
	wantEqual(t, "commit", lock.Commit, "")
	wantEqual(t, "files", lock.Files, 2)
	wantEqual(t, "epoch", s.Epoch(), FixedEpoch)
	wantNote(t, s, "not in a git repository")
	wantNote(t, s, "d/.DS_Store")
	wantNote(t, s, "inner")
	in := extract(t, stream(t, s))
	if _, err := os.Stat(filepath.Join(in, "empty/er")); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(in, ".git")); err == nil {
		t.Error("a .git was made")
	}
	wantEqual(t, "digest inside", digest(openDirty(t, in)), lock.Digest)
	_, err := Open(t.Context(), dir, Options{Commit: "HEAD"})
	wantKind(t, err, mayfly.Invalid, "no commit")
}

func TestMissingDirectory(t *testing.T) {
	_, err := Open(t.Context(), "/nonexistent/x", Options{})
	wantKind(t, err, mayfly.NotFound, "/nonexistent/x")
	file := filepath.Join(t.TempDir(), "f")
	write(t, file, "")
	_, err = Open(t.Context(), file, Options{})
	if mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("error = %v, want invalid", err)
	}
}

func TestSubmodules(t *testing.T) {
	lib := newRepo(t, map[string]string{"lib.c": "int x;\n", ".gitignore": "*.o\n"})
	home := os.Getenv("HOME")
	dir := newRepo(t, map[string]string{"main.c": "int y;\n"})
	t.Setenv("HOME", home)
	git(t, dir, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", lib, "vendor/lib")
	git(t, dir, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", lib, "vendor/off")
	git(t, dir, "commit", "-qm", "submodules")
	git(t, dir, "submodule", "--quiet", "deinit", "-f", "vendor/off")
	clean := openDirty(t, dir)
	wantNames(t, names(t, stream(t, clean)), ".gitmodules", "main.c", "vendor/lib/lib.c", "vendor/lib/.gitignore")
	wantNote(t, clean, "their history: vendor/lib")
	wantNote(t, clean, "not checked out and stay empty")
	w, _ := clean.Lock()
	wantEqual(t, "uncommitted", w.Uncommitted, 0)

	write(t, filepath.Join(dir, "vendor/lib/lib.c"), "int z;\n")
	write(t, filepath.Join(dir, "vendor/lib/new.c"), "int n;\n")
	write(t, filepath.Join(dir, "vendor/lib/x.o"), "object")
	s := openDirty(t, dir)
	w, _ = s.Lock()
	wantEqual(t, "uncommitted", w.Uncommitted, 2)
	in := extract(t, stream(t, s))
	wantEqual(t, "status", git(t, in, "status", "--porcelain"), "")
	b, err := os.ReadFile(filepath.Join(in, "vendor/lib/lib.c"))
	if err != nil || string(b) != "int z;\n" {
		t.Errorf("lib.c = %q, %v", b, err)
	}
	// The submodule itself, whose .git is a file, is a workspace too.
	inner := openDirty(t, filepath.Join(dir, "vendor/lib"))
	wantEqual(t, "root", inner.Root(), filepath.Join(dir, "vendor/lib"))
	git(t, extract(t, stream(t, inner)), "fsck")
	wantNote(t, open(t, dir, Options{}), "submodules are not part")
}

func TestNestedUntrackedRepository(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	git(t, dir, "init", "-q", "inner")
	write(t, filepath.Join(dir, "inner/.gitignore"), "secret\n")
	write(t, filepath.Join(dir, "inner/secret"), "x")
	write(t, filepath.Join(dir, "inner/code"), "x")
	commitFiles(t, filepath.Join(dir, "inner"), nil)
	git(t, dir, "init", "-q", "blank")
	s := openDirty(t, dir)
	wantNames(t, names(t, stream(t, s)), "a", "inner/.gitignore", "inner/code")
	wantNote(t, s, "nested repositories")
	w, _ := s.Lock()
	wantEqual(t, "uncommitted", w.Uncommitted, 2)
}

func TestDigestFollowsTheBytesThatArrive(t *testing.T) {
	dir := newRepo(t, map[string]string{"t.txt": "a\nb\n", "keep.bin": "a\nb\n", ".gitattributes": "*.txt text=auto\n"})
	unix := openDirty(t, dir)
	write(t, filepath.Join(dir, "t.txt"), "a\r\nb\r\n")
	git(t, dir, "add", "t.txt")
	wantEqual(t, "git's opinion", git(t, dir, "status", "--porcelain"), "")
	dos := openDirty(t, dir)
	if digest(unix) == digest(dos) {
		t.Error("the digest is the same for other bytes")
	}
	w, _ := dos.Lock()
	wantEqual(t, "uncommitted", w.Uncommitted, 0)
	in := extract(t, stream(t, dos))
	b, _ := os.ReadFile(filepath.Join(in, "t.txt"))
	wantEqual(t, "content", string(b), "a\r\nb\r\n")
	wantEqual(t, "status", git(t, in, "status", "--porcelain"), "")
	wantEqual(t, "digest of the commit", digest(open(t, dir, Options{})), digest(unix))

	other := newRepo(t, map[string]string{"t.txt": "a\nb\n"})
	before := digest(openDirty(t, other))
	git(t, other, "config", "core.autocrlf", "input")
	write(t, filepath.Join(other, "t.txt"), "a\r\nb\r\n")
	git(t, other, "add", "t.txt")
	if digest(openDirty(t, other)) == before {
		t.Error("the digest overlooks core.autocrlf")
	}
}

func TestLFSPointers(t *testing.T) {
	const pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n"
	dir := newRepo(t, map[string]string{"a.bin": pointer, "b.bin": pointer, ".gitattributes": "*.bin filter=lfs -text\n"})
	// As git-lfs leaves it: the content on disk, the pointer in git, and an
	// index that knows the file as unmodified.
	git(t, dir, "config", "--global", "filter.lfs.clean", "printf '"+strings.ReplaceAll(pointer, "\n", `\n`)+"'")
	write(t, filepath.Join(dir, "b.bin"), "real content")
	git(t, dir, "add", "b.bin")
	wantEqual(t, "git's opinion", git(t, dir, "status", "--porcelain"), "")
	s := openDirty(t, dir)
	w, _ := s.Lock()
	wantEqual(t, "uncommitted", w.Uncommitted, 0)
	notes := strings.Join(s.Notes(), "\n")
	if !strings.Contains(notes, "LFS") || !strings.Contains(notes, "a.bin") || strings.Contains(notes, "b.bin") {
		t.Errorf("notes = %q, want one about a.bin alone", notes)
	}
	in := extract(t, stream(t, s))
	b, _ := os.ReadFile(filepath.Join(in, "b.bin"))
	wantEqual(t, "content", string(b), "real content")
}

// TestNoProgramOfTheRepositoryRuns plants every hook that git offers a
// repository's configuration. The control proves that the trap works.
func TestNoProgramOfTheRepositoryRuns(t *testing.T) {
	plant := func(t *testing.T) (dir, mark string) {
		dir = newRepo(t, map[string]string{"a.x": "1", "b.x": "2", ".gitattributes": "*.x filter=evil merge=evil\n"})
		mark = filepath.Join(t.TempDir(), "ran")
		trap := filepath.Join(t.TempDir(), "trap")
		write(t, trap, "#!/bin/sh\necho $0 \"$@\" >> "+mark+"\ncat\n")
		if err := os.Chmod(trap, 0o755); err != nil {
			t.Fatal(err)
		}
		included := filepath.Join(t.TempDir(), "included")
		write(t, included, fmt.Sprintf("[filter \"evil\"]\n\tclean = %s clean\n\tsmudge = %s smudge\n\tprocess = %s\n\trequired = true\n", trap, trap, trap))
		for k, v := range map[string]string{
			"include.path": included, "core.fsmonitor": trap, "core.hooksPath": filepath.Dir(trap),
			"core.pager": trap, "core.sshCommand": trap, "diff.external": trap, "diff.evil.textconv": trap,
			"merge.evil.driver": trap, "core.askPass": trap, "gpg.program": trap, "commit.gpgSign": "true",
			"credential.helper": trap, "filter.e.v i\"l.clean": trap,
		} {
			git(t, dir, "config", k, v)
		}
		for _, hook := range []string{"post-index-change", "reference-transaction", "pre-commit", "fsmonitor-watchman"} {
			write(t, filepath.Join(filepath.Dir(trap), hook), "#!/bin/sh\necho hook >> "+mark+"\n")
			if err := os.Chmod(filepath.Join(filepath.Dir(trap), hook), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		write(t, filepath.Join(dir, "a.x"), "changed")
		later := time.Now().Add(time.Hour) // forces git to compare contents
		if err := os.Chtimes(filepath.Join(dir, "b.x"), later, later); err != nil {
			t.Fatal(err)
		}
		return dir, mark
	}
	dir, mark := plant(t)
	tryGit(dir, "status", "--porcelain")
	if _, err := os.Stat(mark); err != nil {
		t.Fatal("control: git itself did not run the planted program")
	}
	dir, mark = plant(t)
	stream(t, openDirty(t, dir))
	stream(t, open(t, dir, Options{}))
	if b, err := os.ReadFile(mark); err == nil {
		t.Errorf("programs ran: %s", b)
	}
}

func TestConfigurationOfAnOrdinaryCloneIsNotAskedFor(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	clone := filepath.Join(realTempDir(t), "clone")
	git(t, "", "clone", "-q", dir, clone)
	for _, c := range []struct {
		key, value string
		want       bool
	}{
		{"user.name", "x", true},
		{"filter.x.clean", "x", false},
		{"include.path", "x", false},
		{"core.worktree", "..", false},
		{"core.autocrlf", "input", false},
		{"core.attributesFile", "x", false},
	} {
		r, err := find(clone)
		if err != nil || !r.plain() {
			t.Fatalf("an ordinary clone is held for a dangerous one, %v", err)
		}
		git(t, clone, "config", c.key, c.value)
		wantEqual(t, c.key, r.plain(), c.want)
		if err := os.WriteFile(filepath.Join(clone, ".git/config"), []byte("[core]\n\tbare = false\n[branch \"main\"]\n\tmerge = refs/heads/main\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGitVariablesDoNotMislead(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	want := digest(openDirty(t, dir))
	other := filepath.Join(realTempDir(t), "other")
	git(t, "", "init", "-q", other)
	t.Setenv("GIT_DIR", filepath.Join(other, ".git"))
	t.Setenv("GIT_INDEX_FILE", "/nonexistent")
	t.Setenv("GIT_CONFIG_COUNT", "1")
	t.Setenv("GIT_CONFIG_KEY_0", "core.bare")
	t.Setenv("GIT_CONFIG_VALUE_0", "true")
	wantEqual(t, "digest", digest(openDirty(t, dir)), want)
}

func TestSpecialFilesAreSkippedAndNoted(t *testing.T) {
	for _, kind := range []string{"git", "plain"} {
		t.Run(kind, func(t *testing.T) {
			dir := newRepo(t, map[string]string{"tracked": "1", "a": "1"})
			if kind == "plain" {
				if err := os.RemoveAll(filepath.Join(dir, ".git")); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Remove(filepath.Join(dir, "tracked")); err != nil {
				t.Fatal(err)
			}
			for _, name := range []string{"tracked", "fifo"} {
				if err := syscall.Mkfifo(filepath.Join(dir, name), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			l, err := net.Listen("unix", filepath.Join(dir, "sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			s := openDirty(t, dir)
			wantNames(t, names(t, stream(t, s)), "a")
			for _, name := range []string{"tracked", "fifo", "sock"} {
				wantNote(t, s, name)
			}
		})
	}
}

func TestUnreadableFile(t *testing.T) {
	if os.Getuid() == 0 {
		// Root reads everything; the same test runs again as somebody else.
		runAsNobody(t, "TestUnreadableFile")
		return
	}
	dir := newRepo(t, map[string]string{"a": "1"})
	write(t, filepath.Join(dir, "locked"), "x")
	if err := os.Chmod(filepath.Join(dir, "locked"), 0); err != nil {
		t.Fatal(err)
	}
	_, err := Open(t.Context(), dir, Options{Uncommitted: true})
	wantKind(t, err, mayfly.Invalid, "locked")
	if err := os.RemoveAll(filepath.Join(dir, ".git")); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), dir, Options{Uncommitted: true})
	wantKind(t, err, mayfly.Invalid, "locked")
}

func runAsNobody(t *testing.T, name string) {
	t.Helper()
	tmp, err := os.MkdirTemp("/tmp", "workspace-nobody-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(tmp) })
	if err := os.Chmod(tmp, 0o777); err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(tmp, "test")
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, self, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-test.run=^"+name+"$", "-test.v")
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp, "HOME="+tmp)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte("--- PASS")) {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

func TestForeignOwnerIsExplained(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to give a directory away")
	}
	dir := newRepo(t, map[string]string{"a": "1"})
	t.Setenv("SUDO_UID", "")
	os.Unsetenv("SUDO_UID")
	for _, name := range []string{"", ".git"} {
		if err := os.Chown(filepath.Join(dir, name), 12345, 12345); err != nil {
			t.Fatal(err)
		}
	}
	_, err := Open(t.Context(), dir, Options{Uncommitted: true})
	wantKind(t, err, mayfly.Forbidden, dir)
	git(t, "", "config", "--global", "--add", "safe.directory", dir)
	openDirty(t, dir)
}

func TestOddNames(t *testing.T) {
	odd := []string{"new\nline", "bad\xff\xfeutf8", strings.Repeat("x", 255), "tab\tq\"uote\\", " lead", "-rf", "a b", "Readme", "README",
		"dir/\x01\x1b[31mred", strings.Repeat("long/", 60) + "end", "日本"}
	files := map[string]string{}
	for i, n := range odd {
		files[n] = fmt.Sprint(i)
	}
	dir := newRepo(t, files)
	s := openDirty(t, dir)
	w, _ := s.Lock()
	wantEqual(t, "files", w.Files, len(odd))
	wantEqual(t, "uncommitted", w.Uncommitted, 0)
	in := extract(t, stream(t, s))
	for n, want := range files {
		b, err := os.ReadFile(filepath.Join(in, n))
		if err != nil || string(b) != want {
			t.Errorf("%q = %q, %v", n, b, err)
		}
	}
	wantEqual(t, "status", git(t, in, "status", "--porcelain"), "")
	for n := range files { // untracked, too
		write(t, filepath.Join(dir, "u", n), "u")
	}
	in = extract(t, stream(t, openDirty(t, dir)))
	wantEqual(t, "untracked", strings.Count(git(t, in, "status", "--porcelain", "-uall", "-z"), "\x00"), len(odd))
}

func TestLinksAreData(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	for name, to := range map[string]string{"abs": "/etc/passwd", "up": "../../../etc/passwd", "dangling": "nowhere", "dir": "."} {
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	s := openDirty(t, dir)
	wantNote(t, s, "absolute targets point elsewhere inside an environment: abs")
	in := extract(t, stream(t, s))
	to, err := os.Readlink(filepath.Join(in, "abs"))
	if err != nil || to != "/etc/passwd" {
		t.Errorf("abs -> %q, %v", to, err)
	}
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-qm", "links")
	wantNote(t, openDirty(t, dir), "abs")
}

func TestRepositoryWithoutCommit(t *testing.T) {
	testEnv(t)
	dir := realTempDir(t)
	git(t, dir, "init", "-q", "-b", "trunk")
	empty := openDirty(t, dir)
	wantEqual(t, "status", git(t, extract(t, stream(t, empty)), "status", "--porcelain"), "")
	write(t, filepath.Join(dir, "a"), "1")
	write(t, filepath.Join(dir, "b"), "1")
	git(t, dir, "add", "a")
	s := openDirty(t, dir)
	w, _ := s.Lock()
	wantEqual(t, "commit", w.Commit, "")
	wantEqual(t, "uncommitted", w.Uncommitted, 2)
	in := extract(t, stream(t, s))
	wantEqual(t, "status", git(t, in, "status", "--porcelain"), "?? a\n?? b\n")
	wantEqual(t, "branch", strings.TrimSpace(git(t, in, "branch", "--show-current")), "trunk")
	_, err := Open(t.Context(), dir, Options{})
	wantKind(t, err, mayfly.Invalid, "no commit yet")
}

func TestDetachedHead(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	git(t, dir, "checkout", "-q", "--detach")
	s := openDirty(t, dir)
	wantEqual(t, "branch", s.Branch(), "")
	in := extract(t, stream(t, s))
	wantEqual(t, "branch inside", git(t, in, "branch", "--show-current"), "")
	wantEqual(t, "head", strings.TrimSpace(git(t, in, "rev-parse", "HEAD")), s.Commit())
}

func TestBareRepository(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	bare := filepath.Join(realTempDir(t), "bare")
	git(t, "", "clone", "-q", "--bare", dir, bare)
	for _, at := range []string{bare, filepath.Join(bare, "refs"), filepath.Join(dir, ".git")} {
		_, err := Open(t.Context(), at, Options{Uncommitted: true})
		wantKind(t, err, mayfly.Invalid, at)
	}
}

func TestSparseCheckout(t *testing.T) {
	dir := newRepo(t, map[string]string{"top": "1", "in/a": "2", "out/b": "3"})
	git(t, dir, "sparse-checkout", "set", "in")
	s := openDirty(t, dir)
	wantNote(t, s, "sparse checkout: 1 tracked")
	archive := stream(t, s)
	wantNames(t, names(t, archive), "top", "in/a")
	wantEqual(t, "status", git(t, extract(t, archive), "status", "--porcelain"), "")
	git(t, dir, "sparse-checkout", "set", "--cone", "--sparse-index", "in")
	wantEqual(t, "digest with a sparse index", digest(openDirty(t, dir)), digest(s))
}

func TestLinkedWorkTree(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	linked := filepath.Join(realTempDir(t), "linked")
	git(t, dir, "worktree", "add", "-q", "-b", "feature", linked)
	write(t, filepath.Join(linked, "b"), "2")
	s := openDirty(t, linked)
	wantEqual(t, "root", s.Root(), linked)
	wantEqual(t, "branch", s.Branch(), "feature")
	in := extract(t, stream(t, s))
	wantEqual(t, "status", git(t, in, "status", "--porcelain"), "?? b\n")
}

func TestSHA256Repository(t *testing.T) {
	testEnv(t)
	dir := realTempDir(t)
	git(t, dir, "init", "-q", "--object-format=sha256", "-b", "main")
	commitFiles(t, dir, map[string]string{"a": "1", "d/b": "2"})
	write(t, filepath.Join(dir, "c"), "3")
	in := extract(t, stream(t, openDirty(t, dir)))
	wantEqual(t, "status", git(t, in, "status", "--porcelain"), "?? c\n")
	git(t, in, "fsck", "--strict")
}

func TestAssumeUnchangedDoesNotHideChanges(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	git(t, dir, "update-index", "--assume-unchanged", "a")
	before := openDirty(t, dir)
	write(t, filepath.Join(dir, "a"), "two")
	s := openDirty(t, dir)
	if digest(s) == digest(before) {
		t.Error("the digest overlooks a change")
	}
	b, _ := os.ReadFile(filepath.Join(extract(t, stream(t, s)), "a"))
	wantEqual(t, "content", string(b), "two")
}

func TestMergeInProgress(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1\n"})
	git(t, dir, "checkout", "-q", "-b", "x")
	commitFiles(t, dir, map[string]string{"a": "x\n"})
	git(t, dir, "checkout", "-q", "main")
	commitFiles(t, dir, map[string]string{"a": "y\n"})
	tryGit(dir, "merge", "x")
	s := openDirty(t, dir)
	w, _ := s.Lock()
	wantEqual(t, "files", w.Files, 1)
	wantEqual(t, "uncommitted", w.Uncommitted, 1)
	b, _ := os.ReadFile(filepath.Join(extract(t, stream(t, s)), "a"))
	if !strings.Contains(string(b), "<<<<<<<") {
		t.Errorf("a = %q, want the conflict as it is on disk", b)
	}
}

func TestFileChangedBetweenDigestAndStream(t *testing.T) {
	for name, size := range map[string]int{"small": 10, "large": 3 << 20} {
		dir := newRepo(t, map[string]string{"a": "1", "victim": strings.Repeat("x", size)})
		s := openDirty(t, dir)
		write(t, filepath.Join(dir, "victim"), strings.Repeat("y", size))
		err := s.WriteTar(t.Context(), io.Discard)
		wantKind(t, err, mayfly.Conflict, "victim")
		if err := os.Remove(filepath.Join(dir, "victim")); err != nil {
			t.Fatal(err)
		}
		err = s.WriteTar(t.Context(), io.Discard)
		wantKind(t, err, mayfly.Conflict, "victim")
		t.Log(name, err)
	}
}

// TestFileThatNeverStandsStill rewrites a file for as long as it is read.
func TestFileThatNeverStandsStill(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	victim := filepath.Join(dir, "victim")
	write(t, victim, strings.Repeat("x", 8<<20))
	var stop atomic.Bool
	done := make(chan struct{})
	go func() {
		defer close(done)
		f, err := os.OpenFile(victim, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return
		}
		defer f.Close()
		for !stop.Load() {
			f.Write([]byte("more"))
			time.Sleep(200 * time.Microsecond)
		}
	}()
	_, err := Open(t.Context(), dir, Options{Uncommitted: true})
	stop.Store(true)
	<-done
	wantKind(t, err, mayfly.Conflict, "victim")
	s := openDirty(t, dir) // and as soon as it stands still, all is well
	stream(t, s)
}

// TestChangeThatPasses restores a file's content while the stream waits.
func TestChangeThatPasses(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "one"})
	s := openDirty(t, dir)
	write(t, filepath.Join(dir, "a"), "two")
	timer := time.AfterFunc(20*time.Millisecond, func() { os.WriteFile(filepath.Join(dir, "a"), []byte("one"), 0o644) })
	defer timer.Stop()
	stream(t, s)
}

// TestManyFilesStreamInBoundedMemory is about contents: paths and ids are held
// in memory, what is in the files is not.
func TestManyFilesStreamInBoundedMemory(t *testing.T) {
	testEnv(t)
	dir := realTempDir(t)
	const large, small = 160, 1000
	for i := range large {
		write(t, filepath.Join(dir, fmt.Sprint("large", i)), strings.Repeat("x", smallFile))
	}
	for i := range small {
		write(t, filepath.Join(dir, fmt.Sprint("d", i%50), fmt.Sprint("f", i)), "x")
	}
	git(t, dir, "init", "-q")
	s := openDirty(t, dir)
	runtime.GC()
	var before, now runtime.MemStats
	runtime.ReadMemStats(&before)
	w := &byteCounter{}
	if err := s.WriteTar(t.Context(), w); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&now)
	if w.n < large*smallFile {
		t.Errorf("the stream has %d bytes, want more than %d", w.n, large*smallFile)
	}
	grown := int64(now.Sys) - int64(before.Sys)
	if grown > large*smallFile*6/10 {
		t.Errorf("memory grew by %d MB", grown>>20)
	}
	t.Logf("%d MB of content, memory grew by %d MB", w.n>>20, grown>>20)
}

type byteCounter struct{ n int64 }

func (c *byteCounter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

func TestHugeFileStreams(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	const size = 300 << 20
	f, err := os.Create(filepath.Join(dir, "huge"))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s := openDirty(t, dir)
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(s.WriteTar(t.Context(), pw)) }()
	r := tar.NewReader(pr)
	for {
		h, err := r.Next()
		if err == io.EOF {
			t.Fatal("huge is missing")
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Name == "huge" {
			wantEqual(t, "size", h.Size, size)
			break
		}
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, pr)
}

func TestCancelledStreamStops(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	for i := range 200 {
		write(t, filepath.Join(dir, fmt.Sprint("f", i)), "x")
	}
	s := openDirty(t, dir)
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.WriteTar(ctx, io.Discard); err == nil {
		t.Error("stream of a cancelled context succeeded")
	}
	w := &failingWriter{}
	if err := s.WriteTar(t.Context(), w); err == nil || !strings.Contains(err.Error(), "pipe is gone") {
		t.Errorf("error = %v, want the writer's", err)
	}
	left, _ := filepath.Glob(filepath.Join(tmp, "*"))
	if len(left) > 0 {
		t.Errorf("left over: %v", left)
	}
}

type failingWriter struct{}

func (*failingWriter) Write(p []byte) (int, error) { return 0, fmt.Errorf("the pipe is gone") }
