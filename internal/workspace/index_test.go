package workspace

import (
	"os"
	"path/filepath"
	"reflect"
	"testing"
)

// oddIndex makes a repository whose index has an entry of every sort.
func oddIndex(t testing.TB) string {
	dir := newRepo(t, map[string]string{
		"a": "1", "dir/with a space": "2", "dir/ünï": "3", "kept": "4", "left": "5", "run.sh": "#!/bin/sh\n", "ours": "0\n",
	})
	git(t, dir, "update-index", "--chmod=+x", "run.sh")
	if err := os.Symlink("a", filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	git(t, dir, "init", "-q", "sub")
	git(t, filepath.Join(dir, "sub"), "commit", "-q", "--allow-empty", "-m", "x")
	git(t, dir, "add", "-A")
	git(t, dir, "commit", "-q", "-m", "odd")
	git(t, dir, "checkout", "-q", "-b", "other")
	commitFiles(t, dir, map[string]string{"ours": "1\n"})
	git(t, dir, "checkout", "-q", "main")
	commitFiles(t, dir, map[string]string{"ours": "2\n"})
	tryGit(dir, "merge", "other") // conflicts
	write(t, filepath.Join(dir, "coming"), "soon")
	git(t, dir, "add", "--intent-to-add", "coming")
	git(t, dir, "update-index", "--assume-unchanged", "kept")
	git(t, dir, "update-index", "--skip-worktree", "left")
	return dir
}

func TestIndexIsReadAsGitReadsIt(t *testing.T) {
	dir := oddIndex(t)
	r, err := find(dir)
	if err != nil {
		t.Fatal(err)
	}
	got, err := r.readIndex()
	if err != nil {
		t.Fatal(err)
	}
	out, err := r.output(t.Context(), "ls-files", "-s", "-v", "-z")
	if err != nil {
		t.Fatal(err)
	}
	want, err := parseListFiles(out)
	if err != nil || len(want) < 9 {
		t.Fatalf("git lists %d entries, %v", len(want), err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("entries:\ngot  = %+v\nwant = %+v", got, want)
	}
	r.simple = false
	slow, err := r.tracked(t.Context())
	if err != nil || !reflect.DeepEqual(got, slow) {
		t.Errorf("without the short way: got = %+v, %v", slow, err)
	}
}

func TestOtherIndexesAreLeftToGit(t *testing.T) {
	for name, change := range map[string][]string{
		"compressed": {"update-index", "--index-version", "4"},
		"split":      {"update-index", "--split-index"},
	} {
		dir := newRepo(t, map[string]string{"a": "1", "b/c": "2"})
		want := digest(openDirty(t, dir))
		git(t, dir, change...)
		r, err := find(dir)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.readIndex(); err == nil {
			t.Errorf("%s: read as a plain one", name)
		}
		wantEqual(t, name, digest(openDirty(t, dir)), want)
	}
}

func TestLooseHeadIsTheCommitThatGitNames(t *testing.T) {
	dir := newRepo(t, map[string]string{"a": "1"})
	r, err := find(dir)
	if err != nil {
		t.Fatal(err)
	}
	want, err := r.commit(t.Context(), "HEAD")
	if err != nil {
		t.Fatal(err)
	}
	got, ok := r.looseHead()
	if !ok || got != want {
		t.Errorf("on a branch: got = %v, %v, want %v", got, ok, want)
	}
	git(t, dir, "checkout", "-q", "--detach")
	if got, ok := r.looseHead(); !ok || got != want {
		t.Errorf("detached: got = %v, %v, want %v", got, ok, want)
	}
	object := filepath.Join(dir, ".git/objects", want.id[:2], want.id[2:])
	if err := os.Chmod(object, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(object, []byte("\x78\x9c\x03\x00\x00\x00\x00\x01"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got, ok := r.looseHead(); ok {
		t.Errorf("another object under its name: got = %v", got)
	}
}

func FuzzParseIndex(f *testing.F) {
	b, err := os.ReadFile(filepath.Join(oddIndex(f), ".git/index"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := parseIndex(b)
		if err != nil {
			return
		}
		for _, e := range entries {
			if checkPath(e.path) != nil || !isObjectID(e.id) {
				t.Errorf("entry %+v", e)
			}
		}
	})
}
