package diff

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// entry is a file of a test tree: content, or a link's target.
type entry struct {
	content string
	mode    os.FileMode // 0644, 0755 or os.ModeSymlink
}

func file(content string) entry { return entry{content, 0o644} }
func link(to string) entry      { return entry{to, os.ModeSymlink} }

type files map[string]entry

func (f files) make(t testing.TB) (string, *os.Root) {
	t.Helper()
	dir := t.TempDir()
	f.into(t, dir)
	return dir, openRoot(t, dir)
}

func openRoot(t testing.TB, dir string) *os.Root {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func (f files) into(t testing.TB, dir string) {
	t.Helper()
	for name, e := range f {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		var err error
		if e.mode == os.ModeSymlink {
			err = os.Symlink(e.content, p)
		} else {
			err = os.WriteFile(p, []byte(e.content), e.mode)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func compare(t testing.TB, from, to *os.Root, paths []string, o Options) *Diff {
	t.Helper()
	d, err := Compare(t.Context(), from, to, paths, o)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func patchOf(t testing.TB, d *Diff) string {
	t.Helper()
	var b bytes.Buffer
	if err := d.WritePatch(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func diffOf(t testing.TB, from, to files, o Options) *Diff {
	t.Helper()
	_, a := from.make(t)
	_, b := to.make(t)
	return compare(t, a, b, nil, o)
}

// git runs git without anybody's settings.
func git(dir, stdin string, args ...string) (string, error) {
	cmd := exec.Command("git", args...)
	cmd.Dir = dir
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=/nonexistent", "GIT_CONFIG_NOSYSTEM=1", "LC_ALL=C",
		"GIT_CEILING_DIRECTORIES=" + filepath.Dir(dir),
		"GIT_AUTHOR_NAME=a", "GIT_AUTHOR_EMAIL=a@b", "GIT_COMMITTER_NAME=a", "GIT_COMMITTER_EMAIL=a@b"}
	cmd.Stdin = strings.NewReader(stdin)
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), errors.Join(err, errors.New(complaint.String()))
	}
	return out.String(), nil
}

func mustGit(t testing.TB, dir, stdin string, args ...string) string {
	t.Helper()
	out, err := git(dir, stdin, args...)
	if err != nil {
		t.Fatalf("git %v: %v", args, err)
	}
	return out
}

func hashOf(t testing.TB, dir string) string {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	h, err := Hash(t.Context(), root, "", HashOptions{SkipGit: true})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

var oddNames = []string{
	"a", "b", "c.txt", "dir/a", "dir/b", "dir/sub/c", "dir", "a b", "tab\there", "new\nline", "q\"uote", "back\\slash",
	"bad\xff", "üml", " lead", "trail ", "-dash", "a/b/c/d/e", "a/b", strings.Repeat("n", 255), "\x01\x1b[31m", "b/dev/null", "+++ x", "dir.txt",
}

func randomText(r *rand.Rand) string {
	var b strings.Builder
	for range r.IntN(40) {
		switch r.IntN(8) {
		case 0:
			b.WriteByte('\n')
		case 1:
			b.WriteString("-- \n")
		case 2:
			b.WriteString("\xff\xfe\r\n")
		default:
			fmt.Fprintf(&b, "line %d\n", r.IntN(30))
		}
	}
	if r.IntN(4) == 0 {
		b.WriteString("no newline at the end")
	}
	return b.String()
}

func randomEntry(r *rand.Rand) entry {
	switch r.IntN(10) {
	case 0:
		return link([]string{"target", "../x", "/abs", "away/sub", strings.Repeat("y/", 300)}[r.IntN(5)])
	case 1:
		return entry{"", 0o644}
	case 2:
		b := make([]byte, r.IntN(3000))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return entry{"\x00" + string(b), 0o644}
	case 3:
		return entry{randomText(r), 0o755}
	}
	return file(randomText(r))
}

// put adds a file unless another file is where a directory should be.
func (f files) put(name string, e entry) {
	for other := range f {
		if strings.HasPrefix(other, name+"/") || strings.HasPrefix(name, other+"/") {
			delete(f, other)
		}
	}
	f[name] = e
}

func randomFiles(r *rand.Rand) files {
	f := files{}
	for range r.IntN(12) {
		f.put(oddNames[r.IntN(len(oddNames))], randomEntry(r))
	}
	return f
}

func sortedNames(f files) []string {
	names := make([]string, 0, len(f))
	for n := range f {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// mutate makes a tree that resembles f.
func mutate(r *rand.Rand, f files) files {
	to := files{}
	for _, n := range sortedNames(f) {
		to[n] = f[n]
	}
	for _, n := range sortedNames(f) {
		e := f[n]
		switch r.IntN(7) {
		case 0:
			delete(to, n)
		case 1: // rename, perhaps with a change
			delete(to, n)
			if e.mode != os.ModeSymlink && r.IntN(2) == 0 {
				e.content += "appended\n"
			}
			to.put(oddNames[r.IntN(len(oddNames))], e)
		case 2:
			if e.mode == 0o644 {
				e.mode = 0o755
			} else if e.mode == 0o755 {
				e.mode = 0o644
			}
			to.put(n, e)
		case 3:
			to.put(n, randomEntry(r))
		case 4:
			if e.mode != os.ModeSymlink {
				lines := strings.SplitAfter(e.content, "\n")
				lines[r.IntN(len(lines))] = "changed\n"
				e.content = strings.Join(lines, "")
			}
			to.put(n, e)
		}
	}
	for range r.IntN(3) {
		to.put(oddNames[r.IntN(len(oddNames))], randomEntry(r))
	}
	return to
}

// TestGitApplyTurnsFromIntoTo is the promise of patches, over random trees: in
// a work tree and its index, and, with -R, backwards.
func TestGitApplyTurnsFromIntoTo(t *testing.T) {
	rounds := 120
	if testing.Short() {
		rounds = 20
	}
	renames := 0
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 1))
		from := randomFiles(r)
		to := mutate(r, from)
		if r.IntN(10) == 0 {
			to = randomFiles(r)
		}
		fromDir, a := from.make(t)
		toDir, b := to.make(t)
		d := compare(t, a, b, nil, Options{NoRenames: r.IntN(5) == 0})
		for _, c := range d.Changes() {
			if c.Kind == mayfly.Renamed {
				renames++
			}
		}
		p := patchOf(t, d)
		want := hashOf(t, toDir)
		before := hashOf(t, fromDir)
		if before == want {
			if p != "" {
				t.Errorf("seed %d: equal trees give the patch\n%s", seed, p)
			}
			continue
		}
		mustGit(t, fromDir, "", "init", "-q")
		mustGit(t, fromDir, "", "add", "-A")
		if out, err := git(fromDir, p, "apply", "--index", "--whitespace=nowarn", "-"); err != nil {
			t.Fatalf("seed %d: git apply: %v\n%s\n%s", seed, err, out, p)
		}
		if got := hashOf(t, fromDir); got != hashOf(t, toDir) {
			t.Fatalf("seed %d: the patched tree differs from the wanted one\n%s", seed, p)
		}
		if out := mustGit(t, fromDir, "", "ls-files", "-o", "-d", "-m"); out != "" {
			t.Errorf("seed %d: index and work tree differ: %q", seed, out)
		}
		if _, err := git(fromDir, p, "apply", "-R", "--whitespace=nowarn", "-"); err != nil {
			t.Fatalf("seed %d: git apply -R: %v\n%s", seed, err, p)
		}
		if got := hashOf(t, fromDir); got != before {
			t.Fatalf("seed %d: the patch cannot be taken back\n%s", seed, p)
		}
	}
	if renames == 0 {
		t.Error("no rename in any round: the test is too weak")
	}
}

func TestChangesSayWhatHappened(t *testing.T) {
	big := strings.Repeat("some line of text\n", 50)
	d := diffOf(t, files{
		"mod": file("1\n2\n3\n"), "gone": file("x\ny\n"), "same": file("s"), "exec": file("e"), "moved": file(big),
		"moved exactly": file("exactly this\n"), "bin": file("\x00a"), "type": file("t\n"), "link": link("a"), "to dir": file("q\n"),
	}, files{
		"mod": file("1\ntwo\n3\n4\n"), "same": file("s"), "exec": {"e", 0o755}, "new/place": file(big + "more\n"),
		"moved there": file("exactly this\n"), "bin": file("\x00b"), "type": link("t"), "link": link("b"), "to dir/f": file("another\n"),
	}, Options{})
	got := map[string]string{}
	for _, c := range d.Changes() {
		got[c.Path] = fmt.Sprintf("%s from=%q %o>%o %d>%d bin=%v +%d -%d", c.Kind, c.From, c.OldMode, c.NewMode, c.OldSize, c.NewSize, c.Binary, c.Inserted, c.Deleted)
	}
	want := map[string]string{
		"mod":         `modified from="" 100644>100644 6>10 bin=false +2 -1`,
		"gone":        `removed from="" 100644>0 4>0 bin=false +0 -2`,
		"exec":        `modified from="" 100644>100755 1>1 bin=false +0 -0`,
		"new/place":   `renamed from="moved" 100644>100644 900>905 bin=false +1 -0`,
		"moved there": `renamed from="moved exactly" 100644>100644 13>13 bin=false +0 -0`,
		"bin":         `modified from="" 100644>100644 2>2 bin=true +0 -0`,
		"type":        `modified from="" 100644>120777 2>1 bin=false +1 -1`,
		"link":        `modified from="" 120777>120777 1>1 bin=false +1 -1`,
		"to dir":      `removed from="" 100644>0 2>0 bin=false +0 -1`,
		"to dir/f":    `added from="" 0>100644 0>8 bin=false +1 -0`,
	}
	for p, w := range want {
		if got[p] != w {
			t.Errorf("%s: got = %s, want %s", p, got[p], w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("got %d changes, want %d: %v", len(got), len(want), got)
	}
}

func TestCandidatesAloneAreLookedAt(t *testing.T) {
	_, a := files{"a": file("1"), "b": file("1"), "d/x": file("1"), "d/y/z": file("1"), "e/f": file("1")}.make(t)
	_, b := files{"a": file("2"), "b": file("2"), "e/f": file("2"), "n/m/o": file("2"), ".git/config": file("2")}.make(t)
	got := func(paths ...string) string {
		var l []string
		for _, c := range compare(t, a, b, paths, Options{NoRenames: true}).Changes() {
			l = append(l, string(c.Kind)+" "+c.Path)
		}
		return strings.Join(l, ", ")
	}
	for _, c := range []struct {
		paths []string
		want  string
	}{
		{[]string{}, ""},
		{[]string{"a", "no such", "no/such"}, "modified a"},
		{[]string{"d"}, "removed d/x, removed d/y/z"},
		{[]string{"d", "d/x", "n"}, "removed d/x, removed d/y/z, added n/m/o"},
		{[]string{"e"}, ""},
		{[]string{"e/f", "e", ".", ".git/config"}, "modified e/f"},
		{[]string{"a/b/c"}, ""},
	} {
		if g := got(c.paths...); g != c.want {
			t.Errorf("%q: got = %s, want %s", c.paths, g, c.want)
		}
	}
	for _, bad := range []string{"/etc", "../x", "a/../b", "", "a//b", "a\x00b"} {
		if _, err := Compare(t.Context(), a, b, []string{bad}, Options{}); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%q: error = %v, want invalid", bad, err)
		}
	}
	if n := len(compare(t, a, b, nil, Options{Git: true}).Changes()) - len(compare(t, a, b, nil, Options{}).Changes()); n != 1 {
		t.Errorf("with .git there are %d more changes, want 1", n)
	}
}

// TestLinksAreNotFollowed replaces a directory by a link to one that has the
// same file: a path through the link must not count as being there.
func TestLinksAreNotFollowed(t *testing.T) {
	_, a := files{"d/f": file("1"), "other/f": file("2")}.make(t)
	_, b := files{"d": link("other"), "other/f": file("2")}.make(t)
	d := compare(t, a, b, []string{"d", "d/f"}, Options{NoRenames: true})
	var got []string
	for _, c := range d.Changes() {
		got = append(got, string(c.Kind)+" "+c.Path)
	}
	if !slices.Equal(got, []string{"added d", "removed d/f"}) {
		t.Errorf("changes = %q, want d added and d/f removed", got)
	}
}

func TestDirectoriesAndSpecialFiles(t *testing.T) {
	dirA, a := files{"keep": file("")}.make(t)
	dirB, b := files{"keep": file("")}.make(t)
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dirA, "both"), 0o755), os.MkdirAll(filepath.Join(dirB, "both"), 0o700),
		os.MkdirAll(filepath.Join(dirB, "empty/er"), 0o755), syscall.Mkfifo(filepath.Join(dirB, "fifo"), 0o644),
		os.WriteFile(filepath.Join(dirA, "perm"), nil, 0o600), os.WriteFile(filepath.Join(dirB, "perm"), nil, 0o644),
		os.Chmod(filepath.Join(dirB, "both"), 0o700),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	d := compare(t, a, b, nil, Options{})
	var got []string
	for _, c := range d.Changes() {
		got = append(got, string(c.Kind)+" "+c.Path)
	}
	want := []string{"modified both", "added empty/er", "added fifo", "modified perm"}
	if !slices.Equal(got, want) {
		t.Errorf("changes = %q, want %q", got, want)
	}
	if p := patchOf(t, d); p != "" {
		t.Errorf("patch = %q, want none of it", p)
	}
	if n := d.Notes(); len(n) != 4 {
		t.Errorf("notes = %q, want four", n)
	}
}

func TestHugeAndUnevenFilesTakeLittleTime(t *testing.T) {
	lines := func(n int, f func(i int) int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "%d\n", f(i))
		}
		return b.String()
	}
	r := rand.New(rand.NewPCG(1, 2))
	const n = 400_000
	for name, c := range map[string][2]string{
		"two values":    {lines(n, func(int) int { return r.IntN(2) }), lines(n, func(int) int { return r.IntN(2) })},
		"few values":    {lines(n, func(int) int { return r.IntN(50) }), lines(n, func(int) int { return r.IntN(50) })},
		"reversed":      {lines(n, func(i int) int { return i }), lines(n, func(i int) int { return n - i })},
		"shuffled":      {lines(n, func(int) int { return r.IntN(n) }), lines(n, func(int) int { return r.IntN(n) })},
		"one long line": {strings.Repeat("a", 4<<20), strings.Repeat("a", 4<<20-1) + "b"},
		"all the same":  {strings.Repeat("\n", n), strings.Repeat("\n", n/2) + "x" + strings.Repeat("\n", n/2)},
	} {
		start := time.Now()
		a, b := splitLines([]byte(c[0])), splitLines([]byte(c[1]))
		edits := lineEdits(a, b)
		took := time.Since(start)
		if got := applyEdits(a, b, edits); got != c[1] {
			t.Errorf("%s: the edits give another text", name)
		}
		t.Logf("%s: %v, %d edits", name, took, len(edits))
		if took > 20*time.Second {
			t.Errorf("%s: took %v", name, took)
		}
	}
}

func applyEdits(a, b [][]byte, edits []edit) string {
	var out []byte
	at := 0
	for _, e := range edits {
		for _, l := range a[at:e.a0] {
			out = append(out, l...)
		}
		for _, l := range b[e.b0:e.b1] {
			out = append(out, l...)
		}
		at = e.a1
	}
	for _, l := range a[at:] {
		out = append(out, l...)
	}
	return string(out)
}

func TestSmallEditsGiveSmallPatches(t *testing.T) {
	var a, b strings.Builder
	for i := range 2000 {
		fmt.Fprintf(&a, "line %d\n\t}\n", i)
		if i%10 == 3 {
			fmt.Fprintf(&b, "changed %d\n\t}\n", i)
			continue
		}
		fmt.Fprintf(&b, "line %d\n\t}\n", i)
	}
	d := diffOf(t, files{"f": file(a.String())}, files{"f": file(b.String())}, Options{})
	c := d.Changes()[0]
	if c.Inserted != 200 || c.Deleted != 200 {
		t.Errorf("got +%d -%d, want +200 -200", c.Inserted, c.Deleted)
	}
}

func TestFileBeyondTheLimitIsBinaryAndApplies(t *testing.T) {
	from, a := files{"big": file(strings.Repeat("text\n", 1000)), "small": file("s\n")}.make(t)
	to, b := files{"big": file(strings.Repeat("text\n", 1001)), "small": file("t\n")}.make(t)
	d := compare(t, a, b, nil, Options{MaxText: 100})
	p := patchOf(t, d)
	if strings.Count(p, "GIT binary patch") != 1 {
		t.Errorf("patch = %s, want one binary section", p)
	}
	if _, err := git(from, p, "apply", "-"); err != nil {
		t.Fatal(err)
	}
	if hashOf(t, from) != hashOf(t, to) {
		t.Error("the patched tree differs")
	}
}

func TestFileThatShrinksMeanwhileIsAConflict(t *testing.T) {
	_, a := files{}.make(t)
	dir, b := files{"bin": file("\x00" + strings.Repeat("x", 1000))}.make(t)
	d := compare(t, a, b, nil, Options{})
	if err := os.WriteFile(filepath.Join(dir, "bin"), []byte("\x00"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := d.WritePatch(&bytes.Buffer{}); mayfly.KindOf(err) != mayfly.Conflict || !strings.Contains(err.Error(), "bin") {
		t.Errorf("error = %v, want a conflict about bin", err)
	}
	// A FIFO in its place must not be waited for.
	if err := errors.Join(os.Remove(filepath.Join(dir, "bin")), syscall.Mkfifo(filepath.Join(dir, "bin"), 0o644)); err != nil {
		t.Fatal(err)
	}
	if err := d.WritePatch(&bytes.Buffer{}); mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("error = %v, want a conflict", err)
	}
}

func TestRenamesAmongManyFilesAreBounded(t *testing.T) {
	from, to := files{}, files{}
	for i := range 1500 {
		text := fmt.Sprintf("header\n%s%d\n", strings.Repeat(fmt.Sprintln("body", i), 20), i)
		from[fmt.Sprintf("old/%d.txt", i)] = file(text)
		to[fmt.Sprintf("new/%d.txt", i)] = file(text + "tail\n")
	}
	start := time.Now()
	d := diffOf(t, from, to, Options{})
	renamed := 0
	for _, c := range d.Changes() {
		if c.Kind == mayfly.Renamed {
			renamed++
		}
	}
	if renamed != 1500 {
		t.Errorf("%d renames, want 1500", renamed)
	}
	t.Log("1500 changed renames:", time.Since(start))
}

func TestStat(t *testing.T) {
	d := diffOf(t,
		files{"a.go": file("1\n2\n"), "bin": file("\x00"), "\x1b[31mred": file("x\n"), "gone": file("z\n")},
		files{"a.go": file("1\n3\n4\n"), "bin": file("\x00\x01"), "\x1b[31mred": file("y\n"), strings.Repeat("long/", 40) + "f": file(strings.Repeat("n\n", 500))},
		Options{NoRenames: true})
	var plain, colored bytes.Buffer
	if err := d.WriteStat(&plain, 80, false); err != nil {
		t.Fatal(err)
	}
	if err := d.WriteStat(&colored, 80, true); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Bin 1 -> 2 bytes", " | ", `"\033[31mred"`, " 5 files changed, 503 insertions(+), 3 deletions(-)\n", "+-"} {
		if !strings.Contains(plain.String(), want) {
			t.Errorf("stat lacks %q:\n%s", want, plain.String())
		}
	}
	if strings.Contains(plain.String(), "\x1b") {
		t.Errorf("stat holds an escape:\n%q", plain.String())
	}
	if !strings.Contains(colored.String(), "\x1b[32m+") {
		t.Errorf("colored stat = %q, want green", colored.String())
	}
	for line := range strings.Lines(plain.String()) {
		if n := len(strings.TrimSuffix(line, "\n")); n > 80 {
			t.Errorf("line of %d columns: %q", n, line)
		}
	}
}

func TestHash(t *testing.T) {
	base := files{"a": file("1"), "d/b": {"2", 0o755}, "l": link("a")}
	dir, root := base.make(t)
	want := hashOf(t, dir)
	again, _ := base.make(t)
	if err := os.Chtimes(filepath.Join(again, "a"), time.Unix(1, 0), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if got := hashOf(t, again); got != want {
		t.Errorf("copy: hash = %s, want %s", got, want)
	}
	for name, change := range map[string]func(dir string) error{
		"content":   func(d string) error { return os.WriteFile(filepath.Join(d, "a"), []byte("2"), 0o644) },
		"mode":      func(d string) error { return os.Chmod(filepath.Join(d, "a"), 0o600) },
		"setuid":    func(d string) error { return os.Chmod(filepath.Join(d, "a"), 0o644|os.ModeSetuid) },
		"name":      func(d string) error { return os.Rename(filepath.Join(d, "a"), filepath.Join(d, "b")) },
		"empty dir": func(d string) error { return os.Mkdir(filepath.Join(d, "e"), 0o755) },
		"target": func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "l")), os.Symlink("b", filepath.Join(d, "l")))
		},
		"type": func(d string) error {
			return errors.Join(os.Remove(filepath.Join(d, "l")), os.WriteFile(filepath.Join(d, "l"), []byte("a"), 0o644))
		},
		"fifo": func(d string) error { return syscall.Mkfifo(filepath.Join(d, "f"), 0o644) },
	} {
		other, _ := base.make(t)
		if err := change(other); err != nil {
			t.Fatal(err)
		}
		if hashOf(t, other) == want {
			t.Errorf("%s: the hash is the same", name)
		}
	}
	if err := os.MkdirAll(filepath.Join(dir, "d/.git"), 0o755); err != nil {
		t.Fatal(err)
	}
	if got := hashOf(t, dir); got != want {
		t.Errorf("with .git: hash = %s, want %s", got, want)
	}
	if h, err := Hash(t.Context(), root, "", HashOptions{}); err != nil || h == want {
		t.Errorf("hash including .git = %s, %v, want another", h, err)
	}
	for _, p := range []string{"d", "a", "l"} {
		if _, err := Hash(t.Context(), root, p, HashOptions{}); err != nil {
			t.Error(err)
		}
	}
	if _, err := Hash(t.Context(), root, "none", HashOptions{}); mayfly.KindOf(err) != mayfly.NotFound {
		t.Errorf("error = %v, want not found", err)
	}
}

func TestDeepTreeIsRefused(t *testing.T) {
	dir := t.TempDir()
	at := openRoot(t, dir)
	name := strings.Repeat("d", 250)
	for range 18 {
		if err := at.Mkdir(name, 0o755); err != nil {
			t.Fatal(err)
		}
		at = must(at.OpenRoot(name))(t)
	}
	t.Cleanup(func() { exec.Command("rm", "-rf", dir).Run() })
	_, err := Hash(t.Context(), openRoot(t, dir), "", HashOptions{})
	if mayfly.KindOf(err) != mayfly.Exhausted {
		t.Errorf("error = %v, want exhausted", err)
	}
}

func must(r *os.Root, err error) func(testing.TB) *os.Root {
	return func(t testing.TB) *os.Root {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return r
	}
}

func TestSafeWriterDisarmsTerminals(t *testing.T) {
	const text = "a\x1b[31mb\r\nc\td\x00\x7f\u009b1m\u202eé\xff\xfe日\u2066z"
	const want = "a^[[31mb^M\nc\td^@^?\\u009b1m\\u202eé\\xff\\xfe日\\u2066z"
	for step := 1; step <= len(text); step++ {
		var out bytes.Buffer
		w := NewSafeWriter(&out)
		for rest := text; rest != ""; {
			n := min(step, len(rest))
			if m, err := w.Write([]byte(rest[:n])); m != n || err != nil {
				t.Fatal(m, err)
			}
			rest = rest[n:]
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if out.String() != want {
			t.Fatalf("step %d: got = %q, want %q", step, out.String(), want)
		}
	}
	var out bytes.Buffer
	w := NewSafeWriter(&out)
	w.Write([]byte("é"[:1]))
	w.Flush()
	if out.String() != `\xc3` {
		t.Errorf("got = %q, want the unfinished byte", out.String())
	}
}

func FuzzLineEdits(f *testing.F) {
	f.Add([]byte("a\nb\n"), []byte("b\na"))
	f.Add([]byte("\n\n\n"), []byte(""))
	f.Add([]byte(strings.Repeat("a\nb\n", 200)), []byte(strings.Repeat("b\na\n", 210)))
	f.Fuzz(func(t *testing.T, x, y []byte) {
		// Few distinct lines make the hard cases: one byte, one line.
		for _, spread := range []bool{false, true} {
			if spread {
				x, y = spreadLines(x), spreadLines(y)
			}
			a, b := splitLines(x), splitLines(y)
			if got := applyEdits(a, b, lineEdits(a, b)); got != string(y) {
				t.Errorf("the edits turn %q into %q, want %q", x, got, y)
			}
		}
	})
}

func spreadLines(b []byte) []byte {
	var out []byte
	for _, c := range b {
		out = append(out, 'a'+c%5, '\n')
	}
	return out
}

func FuzzSafeWriter(f *testing.F) {
	f.Add([]byte("a\x1b[31m\xc3"), 1)
	f.Fuzz(func(t *testing.T, text []byte, cut int) {
		var out bytes.Buffer
		w := NewSafeWriter(&out)
		cut = min(max(cut, 0), len(text))
		w.Write(text[:cut])
		w.Write(text[cut:])
		w.Flush()
		for _, r := range out.String() {
			if r != '\n' && r != '\t' && (r < 0x20 || r >= 0x7f && r < 0xa0 || r == '\u202e') {
				t.Errorf("%q lets %q through", text, r)
			}
		}
	})
}
