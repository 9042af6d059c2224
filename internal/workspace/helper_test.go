package workspace

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// testEnv keeps the user's own git settings out of the tests.
func testEnv(t testing.TB) {
	t.Helper()
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(home, "xdg"))
	t.Setenv("GIT_CONFIG_NOSYSTEM", "1")
}

// newRepo makes a repository on branch main with the files given, committed.
func newRepo(t testing.TB, files map[string]string) string {
	t.Helper()
	testEnv(t)
	dir := filepath.Join(realTempDir(t), "repo")
	git(t, "", "init", "-q", "-b", "main", dir)
	commitFiles(t, dir, files)
	return dir
}

func realTempDir(t testing.TB) string {
	t.Helper()
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func commitFiles(t testing.TB, dir string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		write(t, filepath.Join(dir, name), content)
	}
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "--allow-empty", "-m", "a commit")
}

func write(t testing.TB, name, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func git(t testing.TB, dir string, args ...string) string {
	t.Helper()
	out, err := tryGit(dir, args...)
	if err != nil {
		t.Fatalf("git %v: %v\n%s", args, err, out)
	}
	return out
}

func tryGit(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LC_ALL=C",
		"GIT_AUTHOR_NAME=A", "GIT_AUTHOR_EMAIL=a@example.com", "GIT_AUTHOR_DATE=1700000000 +0000",
		"GIT_COMMITTER_NAME=A", "GIT_COMMITTER_EMAIL=a@example.com", "GIT_COMMITTER_DATE=1700000000 +0000",
		"GIT_ALLOW_PROTOCOL=file")
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), errors.Join(err, errors.New(complaint.String()))
	}
	return out.String(), nil
}

func open(t testing.TB, dir string, o Options) *Source {
	t.Helper()
	s, err := Open(t.Context(), dir, o)
	if err != nil {
		t.Fatalf("open %s: %v", dir, err)
	}
	return s
}

func openDirty(t testing.TB, dir string) *Source {
	t.Helper()
	return open(t, dir, Options{Uncommitted: true})
}

func stream(t testing.TB, s *Source) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := s.WriteTar(t.Context(), &b); err != nil {
		t.Fatalf("stream: %v", err)
	}
	return b.Bytes()
}

// extract unpacks a stream the way an environment gets it: with its times.
func extract(t testing.TB, archive []byte) string {
	t.Helper()
	dir := realTempDir(t)
	r := tar.NewReader(bytes.NewReader(archive))
	times := map[string]time.Time{}
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Uid != 1000 || h.Gid != 1000 {
			t.Errorf("%s: owner = %d:%d, want 1000:1000", h.Name, h.Uid, h.Gid)
		}
		name := filepath.Join(dir, h.Name)
		switch h.Typeflag {
		case tar.TypeDir:
			err = os.Mkdir(name, 0o755)
		case tar.TypeSymlink:
			err = os.Symlink(h.Linkname, name)
		case tar.TypeReg:
			var f *os.File
			if f, err = os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, os.FileMode(h.Mode)); err == nil {
				_, err = io.Copy(f, r)
				f.Close()
			}
			times[name] = h.ModTime
		default:
			t.Fatalf("%s: unexpected type %q", h.Name, h.Typeflag)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, at := range times {
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// names lists an archive's files and links, without .git.
func names(t testing.TB, archive []byte) []string {
	t.Helper()
	var list []string
	r := tar.NewReader(bytes.NewReader(archive))
	for {
		h, err := r.Next()
		if err == io.EOF {
			slices.Sort(list)
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeDir && !strings.HasPrefix(h.Name, ".git/") {
			list = append(list, h.Name)
		}
	}
}

func digest(s *Source) string {
	w, _ := s.Lock()
	return w.Digest
}

func wantKind(t testing.TB, err error, kind mayfly.Kind, mention string) {
	t.Helper()
	if mayfly.KindOf(err) != kind {
		t.Fatalf("error = %v (kind %q), want kind %q", err, mayfly.KindOf(err), kind)
	}
	if !strings.Contains(err.Error(), mention) {
		t.Errorf("error = %q, want it to mention %q", err, mention)
	}
	var e *mayfly.Error
	if errors.As(err, &e) && e.Fix == "" && kind != mayfly.NotFound {
		t.Errorf("error %q has no hint", err)
	}
}

func wantNote(t testing.TB, s *Source, mention string) {
	t.Helper()
	if !strings.Contains(strings.Join(s.Notes(), "\n"), mention) {
		t.Errorf("notes = %q, want one with %q", s.Notes(), mention)
	}
}

func wantEqual[T comparable](t testing.TB, what string, got, want T) {
	t.Helper()
	if got != want {
		t.Errorf("%s = %v, want %v", what, got, want)
	}
}

func wantNames(t testing.TB, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("files = %q, want %q", got, want)
	}
}
