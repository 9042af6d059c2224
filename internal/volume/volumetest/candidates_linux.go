package volumetest

import (
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/volume"
)

// testCandidatesRandom makes random changes over several snapshots and a
// rollback, and compares every two states by reading them completely.
func testCandidatesRandom(t *testing.T, p volume.Pool) {
	for seed := range uint64(3) {
		randomHistory(t, p, seed)
	}
}

func randomHistory(t *testing.T, p volume.Pool, seed uint64) {
	ctx, env := t.Context(), fmt.Sprintf("e%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	lower := []string{t.TempDir(), t.TempDir()}
	for i := range 60 {
		write(t, filepath.Join(lower[i%2], randomPath(r), fmt.Sprintf("f%d", i%7)), fmt.Sprint(i))
	}
	must(t, p.Create(ctx, env))
	tree := p.Live(env)
	states := []string{""}
	merged, unmount := Mount(t, tree, lower...)
	for i := range 5 {
		for range 40 {
			randomChange(t, r, merged)
		}
		snapshot := fmt.Sprintf("s%d", i)
		must(t, p.Snapshot(ctx, env, snapshot))
		states = append(states, p.At(env, snapshot).Upper)
		if i == 2 { // a second branch from s1
			unmount()
			must(t, p.Rollback(ctx, env, "s1"))
			merged, unmount = Mount(t, tree, lower...)
		}
	}
	for range 5 {
		randomChange(t, r, merged)
	}
	unmount()
	states = append(states, tree.Upper)
	seen := map[string]Manifest{}
	for _, s := range states {
		seen[s] = stateOf(t, s, lower)
	}
	for _, from := range states {
		for _, to := range states {
			for _, prefix := range []string{"", "a", "a/b/../b"} {
				got := candidates(t, from, to, lower, lower, prefix)
				compareCandidates(t, got, seen[from], seen[to], prefix, from+" to "+to)
			}
		}
	}
}

func randomPath(r *rand.Rand) string {
	path := "."
	for range r.IntN(4) {
		path += "/" + string("abc"[r.IntN(3)])
	}
	return path
}

// randomChange does one thing somewhere. That it may fail, because something
// is not there or of another type, is part of the randomness.
func randomChange(t *testing.T, r *rand.Rand, root string) {
	t.Helper()
	path := filepath.Join(root, randomPath(r))
	file := filepath.Join(path, fmt.Sprintf("f%d", r.IntN(7)))
	if path == root {
		path = filepath.Join(root, "a")
	}
	var err error
	switch r.IntN(13) {
	case 0, 1, 2:
		err = os.WriteFile(file, []byte(fmt.Sprint(r.IntN(100))), 0o644)
	case 3:
		err = os.MkdirAll(path, 0o755)
	case 4:
		err = os.Remove(file)
	case 5:
		err = os.RemoveAll(path)
	case 6, 7:
		err = os.Rename(path, filepath.Join(root, randomPath(r), string("abc"[r.IntN(3)])))
	case 8:
		err = os.Rename(file, filepath.Join(root, randomPath(r), "f0"))
	case 9:
		_ = os.RemoveAll(path)
		err = os.WriteFile(path, []byte("was a directory"), 0o600)
	case 10:
		_ = os.RemoveAll(file)
		err = os.Symlink("a/b", file)
	case 11:
		err = os.Chmod(file, fs.FileMode(r.IntN(0o1000)))
	case 12:
		err = os.Link(file, filepath.Join(root, randomPath(r), "f6"))
	}
	var path1 *fs.PathError
	var path2 *os.LinkError
	if err != nil && !errors.As(err, &path1) && !errors.As(err, &path2) {
		t.Fatal(err)
	}
	if errors.Is(err, unix.EXDEV) {
		t.Fatalf("directories cannot be renamed: %v", err)
	}
}

var linkField = regexp.MustCompile(` link="(\\.|[^"])*"`)

// checkCandidates compares the candidates with what differs.
func checkCandidates(t *testing.T, from, to string, fromLower, toLower []string, prefix string) []string {
	t.Helper()
	got := candidates(t, from, to, fromLower, toLower, prefix)
	compareCandidates(t, got, stateOf(t, from, fromLower), stateOf(t, to, toLower), prefix, from+" to "+to)
	return got
}

func candidates(t *testing.T, from, to string, fromLower, toLower []string, prefix string) []string {
	t.Helper()
	got, err := volume.Candidates(t.Context(), from, to, fromLower, toLower, prefix)
	if err != nil {
		t.Fatalf("candidates from %q to %q: %v", from, to, err)
	}
	if !slices.IsSorted(got) {
		t.Errorf("candidates are not in order: %q", got)
	}
	return got
}

// compareCandidates checks that everything that differs between a and b is a
// candidate, and that every candidate is in one of them.
func compareCandidates(t *testing.T, got []string, a, b Manifest, prefix, what string) {
	t.Helper()
	for _, path := range paths(a, b) {
		rel, inside := below(path, filepath.Clean("/" + prefix)[1:])
		if !inside || linkField.ReplaceAllString(a[path], "") == linkField.ReplaceAllString(b[path], "") {
			continue
		}
		if _, found := slices.BinarySearch(got, rel); !found {
			t.Errorf("%s below %q: no candidate %q\n  which is %s\n  and then %s", what, prefix, rel, a[path], b[path])
		}
	}
	for _, rel := range got {
		path := filepath.Join(prefix, rel)
		if a[path] == "" && b[path] == "" {
			t.Errorf("%s below %q: candidate %q is in neither", what, prefix, rel)
		}
	}
}

func stateOf(t *testing.T, upper string, lower []string) Manifest {
	t.Helper()
	if upper == "" {
		return view(t, lower[0], lower[1:]...)
	}
	return view(t, upper, lower...)
}

func paths(a, b Manifest) []string {
	var all []string
	for p := range a {
		all = append(all, p)
	}
	for p := range b {
		all = append(all, p)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// below is path relative to prefix, if it is there.
func below(path, prefix string) (string, bool) {
	if prefix == "" || prefix == "." {
		return path, true
	}
	if path == prefix {
		return ".", true
	}
	return strings.CutPrefix(path, prefix+"/")
}

func testCandidatesCost(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	lower := t.TempDir()
	for i := range 2000 {
		write(t, fmt.Sprintf("%s/d%d/f%d", lower, i%40, i), "x")
	}
	must(t, p.Create(ctx, "e1"))
	tree := p.Live("e1")
	merged, _ := Mount(t, tree, lower)
	for i := range 300 {
		write(t, fmt.Sprintf("%s/new/d%d/f%d", merged, i%10, i), "x")
	}
	must(t, p.Snapshot(ctx, "e1", "s1"))
	write(t, merged+"/d0/f0", "y")
	must(t, os.Remove(merged+"/d1/f1"))
	must(t, os.RemoveAll(merged+"/d2"))
	must(t, os.Rename(merged+"/new/d3/f3", merged+"/new/d4/f3"))
	must(t, p.Snapshot(ctx, "e1", "s2"))
	first, second := p.At("e1", "s1").Upper, p.At("e1", "s2").Upper
	all := len(checkCandidates(t, "", first, []string{lower}, []string{lower}, ""))
	if all > 320 {
		t.Errorf("%d candidates, want about 312", all)
	}
	some := len(checkCandidates(t, first, second, []string{lower}, []string{lower}, ""))
	// 51 in d2, a dozen elsewhere; copies cannot tell what has not changed.
	if p.Kind() == volume.Btrfs && some > 75 || some > 75+300 {
		t.Errorf("%d candidates, want about 60", some)
	}
	if same := checkCandidates(t, second, second, []string{lower}, []string{lower}, ""); len(same) != 0 {
		t.Errorf("candidates between a state and itself = %q, want none", same)
	}
}

// testCandidatesPrefix compares below directories that are themselves moved,
// deleted or replaced.
func testCandidatesPrefix(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	lower := t.TempDir()
	for _, top := range []string{"moved", "gone", "opaque", "file", "kept"} {
		write(t, lower+"/"+top+"/ws/a", top)
		write(t, lower+"/"+top+"/ws/b/c", top)
	}
	must(t, p.Create(ctx, "e1"))
	merged, unmount := Mount(t, p.Live("e1"), lower)
	must(t, os.Rename(merged+"/moved", merged+"/new"))
	write(t, merged+"/new/ws/a", "changed")
	must(t, os.RemoveAll(merged+"/gone"))
	must(t, os.RemoveAll(merged+"/opaque"))
	write(t, merged+"/opaque/ws/z", "z")
	must(t, os.RemoveAll(merged+"/file"))
	write(t, merged+"/file", "file")
	must(t, os.Rename(merged+"/kept/ws", merged+"/kept/other"))
	must(t, os.Symlink("other", merged+"/kept/ws"))
	unmount()
	upper := p.Live("e1").Upper
	for _, top := range []string{"moved", "new", "gone", "opaque", "file", "kept", "none"} {
		for _, prefix := range []string{top, top + "/ws", top + "/ws/b"} {
			checkCandidates(t, "", upper, []string{lower}, []string{lower}, prefix)
			checkCandidates(t, upper, "", []string{lower}, []string{lower}, prefix)
		}
	}
}

// testCandidatesLayers compares states that lie over different layers.
func testCandidatesLayers(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	base := gnarlyLower(t)
	must(t, p.Create(ctx, "e1"))
	merged, unmount := Mount(t, p.Live("e1"), base)
	gnarlyChanges(t, merged)
	unmount()
	must(t, p.Snapshot(ctx, "e1", "s1"))
	layer, err := p.CommitLayer(ctx, "prepared", "e1", "s1")
	must(t, err)
	must(t, p.Create(ctx, "e2"))
	merged, unmount = Mount(t, p.Live("e2"), layer, base)
	must(t, os.Rename(merged+"/moved", merged+"/moved-again"))
	must(t, os.RemoveAll(merged+"/odd"))
	write(t, merged+"/deleted", "is back")
	unmount()
	upper := p.Live("e2").Upper
	for _, prefix := range []string{"", "moved", "moved-again", "tree", "odd"} {
		checkCandidates(t, "", upper, []string{base}, []string{layer, base}, prefix)
		checkCandidates(t, upper, p.Live("e1").Upper, []string{layer, base}, []string{base}, prefix)
		checkCandidates(t, "", "", []string{layer, base}, []string{base}, prefix)
	}
}

func testView(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	secret := t.TempDir() + "/secret"
	write(t, secret, "outside")
	must(t, p.Create(ctx, "e1"))
	upper := p.Live("e1").Upper
	must(t, os.Symlink(secret, upper+"/absolute"))
	must(t, os.Symlink(strings.Repeat("../", 30)+secret[1:], upper+"/relative"))
	must(t, os.Symlink(filepath.Dir(secret), upper+"/dir"))
	lower := t.TempDir()
	write(t, lower+"/inside", "lower")
	for _, layers := range [][]string{{upper}, {upper, lower}} {
		v, err := volume.OpenView(ctx, layers)
		must(t, err)
		for _, path := range []string{"absolute", "relative", "dir/secret", "../secret", "/etc/passwd"} {
			if b, err := v.Root().ReadFile(path); err == nil {
				t.Errorf("%d layers: %s = %q, want an error", len(layers), path, b)
			}
		}
		if err := v.Root().WriteFile("new", nil, 0o600); err == nil && len(layers) > 1 {
			t.Error("the view can be written to")
		}
		must(t, v.Close())
		must(t, v.Close())
	}
	// Whatever a redirect says, it stays in the layers.
	must(t, os.Mkdir(upper+"/evil", 0o755))
	must(t, unix.Setxattr(upper+"/evil", "trusted.overlay.redirect", []byte("/../../../../etc"), 0))
	v, err := volume.OpenView(ctx, []string{upper, lower})
	must(t, err)
	defer v.Close()
	if names, err := fs.ReadDir(v.Root().FS(), "evil"); err == nil && len(names) != 0 {
		t.Errorf("a redirect leads to %v", names)
	}
	if _, err := volume.OpenView(ctx, nil); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("view of nothing: err = %v, want kind %q", err, mayfly.Invalid)
	}
	if _, err := volume.OpenView(ctx, []string{upper, lower + "/none"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("view of a missing layer: err = %v, want fs.ErrNotExist", err)
	}
}
