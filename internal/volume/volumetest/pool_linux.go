package volumetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/volume"
)

func testCreate(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	for range 2 { // the second time it is there
		must(t, p.Create(ctx, "e1"))
	}
	tree := p.Live("e1")
	for _, dir := range []string{tree.Upper, tree.Work, tree.DB, p.Host("e1")} {
		var st unix.Stat_t
		must(t, unix.Lstat(dir, &st))
		if got, want := st.Mode, uint32(unix.S_IFDIR|0o755); got != want || st.Uid != 0 || st.Gid != 0 {
			t.Errorf("%s: mode = %o, owner = %d:%d, want %o, 0:0", dir, got, st.Uid, st.Gid, want)
		}
		entries, err := os.ReadDir(dir)
		must(t, err)
		if len(entries) != 0 {
			t.Errorf("%s has %d entries, want none", dir, len(entries))
		}
	}
	names, err := p.Volumes(ctx)
	must(t, err)
	if want := []string{"e1"}; !slices.Equal(names, want) {
		t.Errorf("volumes = %v, want %v", names, want)
	}
	// Only root gets into the pool.
	pool := filepath.Dir(filepath.Dir(filepath.Dir(filepath.Dir(tree.Upper))))
	st, err := os.Stat(pool)
	must(t, err)
	if got := st.Mode().Perm(); got != 0o700 {
		t.Errorf("mode of %s = %o, want 700", pool, got)
	}
}

func testNames(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	for _, name := range []string{"", ".", "..", "a/b", "../x", "A", "é", "a\x00", ".next", strings.Repeat("a", 65)} {
		for what, err := range map[string]error{
			"create":   p.Create(ctx, name),
			"snapshot": p.Snapshot(ctx, "e1", name),
			"destroy":  p.Destroy(ctx, name),
			"layer":    p.RemoveLayer(ctx, name),
			"fork":     p.Fork(ctx, "e2", "e1", name),
		} {
			if got := mayfly.KindOf(err); got != mayfly.Invalid {
				t.Errorf("%s %q: kind = %q, want %q", what, name, got, mayfly.Invalid)
			}
		}
	}
}

// testFrozenWriter takes a snapshot while a process, stopped by a signal, is
// in the middle of writing through an overlay and beside it.
func testFrozenWriter(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	must(t, p.Create(ctx, "e1"))
	tree := p.Live("e1")
	merged, _ := Mount(t, tree)
	cmd := exec.Command("sh", "-c", `i=0
while :; do
  i=$((i+1)); echo "$i" >>"$0/log"; echo "$i" >>"$1/log"
  if [ $((i % 50)) = 0 ]; then mkdir -p "$0/d$i"; echo x >"$0/d$i/f"; mv "$0/d$i" "$0/e$i"; fi
done`, merged, tree.DB)
	must(t, cmd.Start())
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	for i := range 5 {
		time.Sleep(60 * time.Millisecond)
		freeze(t, cmd.Process.Pid)
		snapshot := fmt.Sprintf("s%d", i)
		wantUpper, wantDB := ManifestOf(t, tree.Upper), ManifestOf(t, tree.DB)
		must(t, p.Snapshot(ctx, "e1", snapshot))
		must(t, cmd.Process.Signal(unix.SIGCONT))
		time.Sleep(20 * time.Millisecond)
		compare(t, snapshot+"'s upper", ManifestOf(t, p.At("e1", snapshot).Upper), wantUpper)
		compare(t, snapshot+"'s db", ManifestOf(t, p.At("e1", snapshot).DB), wantDB)
	}
	checkLog(t, p, tree)
}

// checkLog checks that every snapshot holds a beginning of the log, and more
// than the one before it.
func checkLog(t *testing.T, p volume.Pool, tree volume.Tree) {
	t.Helper()
	final, err := os.ReadFile(tree.Upper + "/log")
	must(t, err)
	before := 0
	for i := range 5 {
		at := p.At("e1", fmt.Sprintf("s%d", i))
		log, err := os.ReadFile(at.Upper + "/log")
		must(t, err)
		db, err := os.ReadFile(at.DB + "/log")
		must(t, err)
		if !bytes.HasPrefix(final, log) || len(log) <= before {
			t.Errorf("snapshot %d: log of %d bytes is no longer beginning of the final one than %d", i, len(log), before)
		}
		if n := bytes.Count(log, []byte("\n")) - bytes.Count(db, []byte("\n")); n != 0 && n != 1 {
			t.Errorf("snapshot %d: the overlay is %d writes ahead of the database, want 0 or 1", i, n)
		}
		before = len(log)
	}
}

// freeze stops the process and returns when it stands still.
func freeze(t *testing.T, pid int) {
	t.Helper()
	must(t, unix.Kill(pid, unix.SIGSTOP))
	for range 1000 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		must(t, err)
		if strings.Contains(string(b), ") T ") && !busyChild(pid) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("the writer does not stop")
}

// busyChild reports whether a command that the shell has started still runs.
func busyChild(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil || len(bytes.TrimSpace(b)) == 0 {
		return false
	}
	for _, child := range strings.Fields(string(b)) {
		stat, err := os.ReadFile("/proc/" + child + "/stat")
		if err == nil && !strings.Contains(string(stat), ") Z ") {
			return true
		}
	}
	return false
}

func testSnapshotKeeps(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	lower := gnarlyLower(t)
	must(t, p.Create(ctx, "e1"))
	tree := p.Live("e1")
	merged, unmount := Mount(t, tree, lower)
	gnarlyChanges(t, merged)
	gnarlyChanges(t, tree.DB)
	unmount()
	wantUpper, wantDB, wantView := ManifestOf(t, tree.Upper), ManifestOf(t, tree.DB), view(t, tree.Upper, lower)
	size := allocated(t, tree.Upper)

	for range 2 { // the second time it is left as it is
		must(t, p.Snapshot(ctx, "e1", "s1"))
		must(t, os.WriteFile(tree.Upper+"/later", nil, 0o600))
	}
	must(t, p.Fork(ctx, "e2", "e1", "s1"))
	must(t, p.Rollback(ctx, "e1", "s1"))
	for what, at := range map[string]volume.Tree{"snapshot": p.At("e1", "s1"), "fork": p.Live("e2"), "rolled back": tree} {
		compare(t, what+"'s upper", ManifestOf(t, at.Upper), wantUpper)
		compare(t, what+"'s db", ManifestOf(t, at.DB), wantDB)
		compare(t, what+"'s view", view(t, at.Upper, lower), wantView)
		if got := allocated(t, at.Upper); got > size+size/2+1<<20 {
			t.Errorf("%s occupies %d bytes, want about %d: holes are gone", what, got, size)
		}
	}
	names, err := p.SnapshotsOf(ctx, "e1")
	if err != nil || !slices.Equal(names, []string{"s1"}) {
		t.Errorf("snapshots = %v, %v, want [s1]", names, err)
	}
}

func testRollback(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	lower := t.TempDir()
	write(t, lower+"/dir/deleted", "from below")
	must(t, p.Create(ctx, "e1"))
	tree := p.Live("e1")
	merged, unmount := Mount(t, tree, lower)
	write(t, merged+"/own", "one")
	write(t, tree.DB+"/rows", "one")
	want := ManifestOf(t, merged)
	must(t, p.Snapshot(ctx, "e1", "s1"))

	for round := range 2 {
		must(t, os.RemoveAll(merged+"/dir"))
		must(t, os.Remove(merged+"/own"))
		write(t, merged+"/dir/other", "two")
		write(t, tree.DB+"/rows", "two")
		unmount()
		must(t, p.Rollback(ctx, "e1", "s1"))
		if entries, err := os.ReadDir(tree.Work); err != nil || len(entries) != 0 {
			t.Errorf("work directory holds %v, %v, want nothing", entries, err)
		}
		merged, unmount = Mount(t, tree, lower) // volatile again
		compare(t, fmt.Sprintf("round %d", round), ManifestOf(t, merged), want)
		if got, err := os.ReadFile(tree.DB + "/rows"); err != nil || string(got) != "one" {
			t.Errorf("database = %q, %v, want %q", got, err, "one")
		}
	}
}

// testRollbackOfChangedRows changes a file so that only the time of its change,
// which nobody can set, tells.
func testRollbackOfChangedRows(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	must(t, p.Create(ctx, "e1"))
	db := p.Live("e1").DB
	for _, name := range []string{"/d/changed", "/d/same", "/d/appended"} {
		write(t, db+name, "one")
	}
	var before unix.Stat_t
	must(t, unix.Stat(db+"/d/changed", &before))
	for time.Since(time.Unix(before.Ctim.Unix())) < 1500*time.Millisecond {
		time.Sleep(100 * time.Millisecond) // a file changed just before is copied anyhow
	}
	must(t, p.Snapshot(ctx, "e1", "s1"))
	want := entriesOf(t, db)
	f, err := os.OpenFile(db+"/d/changed", os.O_WRONLY, 0)
	must(t, err)
	_, err = f.WriteString("two")
	must(t, errors.Join(err, f.Close()))
	must(t, unix.UtimesNanoAt(unix.AT_FDCWD, db+"/d/changed", []unix.Timespec{before.Atim, before.Mtim}, 0))
	f, err = os.OpenFile(db+"/d/appended", os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = f.WriteString("two")
	must(t, errors.Join(err, f.Close()))
	for range 2 {
		must(t, p.RollbackDB(ctx, "e1", "s1"))
		compare(t, "databases", entriesOf(t, db), want)
	}
}

// testRollbackSides rolls one side back after the other; that of the databases
// under a mount, as it is in a sandbox that lives.
func testRollbackSides(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	lower := gnarlyLower(t)
	must(t, p.Create(ctx, "e1"))
	tree := p.Live("e1")
	merged, unmount := Mount(t, tree, lower)
	gnarlyChanges(t, merged)
	gnarlyChanges(t, tree.DB+"/one")
	write(t, tree.DB+"/gone/rows", "one")
	unmount()
	must(t, p.Snapshot(ctx, "e1", "s1"))
	oldUpper, oldDB := ManifestOf(t, tree.Upper), entriesOf(t, tree.DB)
	write(t, tree.Upper+"/own", "two")
	must(t, os.RemoveAll(tree.DB+"/gone"))
	write(t, tree.DB+"/one/rows", "two")
	write(t, tree.DB+"/new/rows", "two")
	must(t, p.Snapshot(ctx, "e1", "s2"))
	newUpper, newDB := ManifestOf(t, tree.Upper), entriesOf(t, tree.DB)

	mount := t.TempDir()
	must(t, unix.Mount(tree.DB, mount, "", unix.MS_BIND, ""))
	must(t, p.RollbackDB(ctx, "e1", "s1"))
	if got, err := os.ReadFile(mount + "/gone/rows"); err != nil || string(got) != "one" {
		t.Errorf("through a mount: got = %q, %v, want %q", got, err, "one")
	}
	must(t, unix.Unmount(mount, 0))
	compare(t, "upper beside old databases", ManifestOf(t, tree.Upper), newUpper)
	compare(t, "old databases", entriesOf(t, tree.DB), oldDB)
	must(t, p.RollbackUpper(ctx, "e1", "s1"))
	compare(t, "old upper", ManifestOf(t, tree.Upper), oldUpper)
	must(t, p.RollbackDB(ctx, "e1", "s2"))
	compare(t, "new databases", entriesOf(t, tree.DB), newDB)
	must(t, p.RollbackUpper(ctx, "e1", "s2"))
	must(t, p.RollbackUpper(ctx, "e1", "s1"))
	compare(t, "old upper again", ManifestOf(t, tree.Upper), oldUpper)
	compare(t, "databases beside it", entriesOf(t, tree.DB), newDB)
	if entries, err := os.ReadDir(tree.Work); err != nil || len(entries) != 0 {
		t.Errorf("work directory holds %v, %v, want nothing", entries, err)
	}
	_, unmount = Mount(t, tree, lower)
	unmount()
	must(t, p.Snapshot(ctx, "e1", "s3"))
	compare(t, "snapshot of two times", entriesOf(t, p.At("e1", "s3").DB), newDB)
	for what, err := range map[string]error{"upper": p.RollbackUpper(ctx, "e1", "missing"), "db": p.RollbackDB(ctx, "e1", "missing")} {
		if mayfly.KindOf(err) != mayfly.NotFound {
			t.Errorf("%s of a missing snapshot: err = %v, want kind %s", what, err, mayfly.NotFound)
		}
	}
}

func testSpares(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	must(t, p.Create(ctx, "e1"))
	db := p.Live("e1").DB
	rows := func(dir, want string) {
		t.Helper()
		if got, err := os.ReadFile(dir + "/deep/rows"); err != nil || string(got) != want {
			t.Errorf("%s: got = %q, %v, want %q", dir, got, err, want)
		}
	}
	write(t, db+"/one/deep/rows", "old")
	must(t, os.Symlink("rows", db+"/one/deep/link"))
	write(t, db+"/two/deep/rows", "old")
	must(t, p.Snapshot(ctx, "e1", "s1"))
	write(t, db+"/one/deep/rows", "new")
	write(t, db+"/two/deep/rows", "new")
	spare := p.SpareDB("e1", "one")
	write(t, spare+"/junk", "what a crash has left")
	for range 2 {
		must(t, p.CopyDB(ctx, "e1", "s1", "one", 2345))
	}
	must(t, filepath.WalkDir(spare, func(path string, e os.DirEntry, err error) error {
		var st unix.Stat_t
		if err := errors.Join(err, unix.Lstat(path, &st)); err != nil || st.Uid != 2345 || st.Gid != 2345 {
			t.Errorf("%s: got = owner %d:%d, %v, want the spare's", path, st.Uid, st.Gid, err)
		}
		return nil
	}))
	if _, err := os.Lstat(spare + "/junk"); err == nil {
		t.Error("a spare has what was there before it")
	}
	p.ReadAheadDB(ctx, "e1", "s1")
	must(t, p.RollbackDB(ctx, "e1", "s1", "one"))
	rows(db+"/one", "new")
	rows(db+"/two", "old")
	must(t, p.ExchangeDB(ctx, "e1", "one"))
	rows(db+"/one", "old")
	rows(spare, "new")
	must(t, p.RollbackDB(ctx, "e1", "s1"))
	rows(db+"/one", "old")
	rows(spare, "new") // which is no part of a rollback
	must(t, p.RollbackUpper(ctx, "e1", "s1"))
	rows(db+"/one", "old")
	for what, err := range map[string]error{"snapshot": p.CopyDB(ctx, "e1", "missing", "one", 1), "spare": p.ExchangeDB(ctx, "e1", "two")} {
		if err == nil {
			t.Errorf("missing %s: got no error", what)
		}
	}
}

// entriesOf is what lies below the entries of a directory: those themselves
// have other times after they were exchanged.
func entriesOf(t *testing.T, dir string) Manifest {
	t.Helper()
	m := ManifestOf(t, dir)
	maps.DeleteFunc(m, func(name, _ string) bool { return !strings.Contains(name, "/") })
	return m
}

func testForks(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	must(t, p.Create(ctx, "e1"))
	write(t, p.Live("e1").Upper+"/f", "1")
	must(t, p.Snapshot(ctx, "e1", "s1"))
	must(t, p.Fork(ctx, "e2", "e1", "s1"))
	write(t, p.Live("e2").Upper+"/f", "2")
	write(t, p.Live("e2").DB+"/g", "2")
	must(t, p.Snapshot(ctx, "e2", "s1"))
	for range 2 {
		must(t, p.Fork(ctx, "e3", "e2", "s1"))
	}
	write(t, p.Live("e3").Upper+"/f", "3")
	must(t, p.Destroy(ctx, "e1"))
	must(t, p.Rollback(ctx, "e2", "s1"))
	for env, want := range map[string]string{"e2": "2", "e3": "3"} {
		got, err := os.ReadFile(p.Live(env).Upper + "/f")
		if err != nil || string(got) != want {
			t.Errorf("%s: f = %q, %v, want %q", env, got, err, want)
		}
		if _, err := os.Lstat(p.Live(env).DB + "/g"); err != nil {
			t.Errorf("%s: %v", env, err)
		}
		merged, _ := Mount(t, p.Live(env))
		write(t, merged+"/new", "x")
	}
	if names, err := p.SnapshotsOf(ctx, "e3"); err != nil || len(names) != 0 {
		t.Errorf("snapshots of the fork = %v, %v, want none", names, err)
	}
}

func testMissing(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	must(t, p.Create(ctx, "e1"))
	for what, err := range map[string]error{
		"snapshot without volume": p.Snapshot(ctx, "nobody", "s1"),
		"rollback to nothing":     p.Rollback(ctx, "e1", "s1"),
		"fork of nothing":         p.Fork(ctx, "e2", "e1", "s1"),
		"fork of nobody":          p.Fork(ctx, "e2", "nobody", "s1"),
	} {
		if got := mayfly.KindOf(err); got != mayfly.NotFound {
			t.Errorf("%s: kind = %q (%v), want %q", what, got, err, mayfly.NotFound)
		}
	}
	_, err := p.CommitLayer(ctx, "layer", "e1", "s1")
	if got := mayfly.KindOf(err); got != mayfly.NotFound {
		t.Errorf("commit of nothing: kind = %q (%v), want %q", got, err, mayfly.NotFound)
	}
	must(t, p.RemoveSnapshot(ctx, "e1", "s1"))
	must(t, p.RemoveSnapshot(ctx, "nobody", "s1"))
	must(t, p.Destroy(ctx, "nobody"))
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	if err := p.Create(cancelled, "e3"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled create: err = %v, want %v", err, context.Canceled)
	}
	names, err := p.Volumes(ctx)
	if err != nil || !slices.Equal(names, []string{"e1"}) {
		t.Errorf("volumes = %v, %v, want [e1]", names, err)
	}
}

func testDestroy(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	must(t, p.Create(ctx, "e1"))
	dir := filepath.Dir(p.Host("e1"))
	write(t, p.Live("e1").Upper+"/a/b", "1")
	write(t, p.Host("e1")+"/log/1", "1")
	must(t, p.Snapshot(ctx, "e1", "s1"))
	must(t, p.Snapshot(ctx, "e1", "s2"))
	must(t, p.RemoveSnapshot(ctx, "e1", "s1"))
	if names, err := p.SnapshotsOf(ctx, "e1"); err != nil || !slices.Equal(names, []string{"s2"}) {
		t.Errorf("snapshots = %v, %v, want [s2]", names, err)
	}
	for range 2 {
		must(t, p.Destroy(ctx, "e1"))
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: err = %v, want fs.ErrNotExist", dir, err)
	}
	trash := filepath.Join(filepath.Dir(filepath.Dir(dir)), "trash")
	if entries, err := os.ReadDir(trash); err != nil || len(entries) != 0 {
		t.Errorf("trash holds %v, %v, want nothing", entries, err)
	}
	must(t, p.Create(ctx, "e1")) // the name is free
}

// testDeep nests directories deeper than a process has descriptors for their
// way down.
func testDeep(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	must(t, p.Create(ctx, "e1"))
	for _, top := range []string{p.Live("e1").Upper, p.Host("e1")} {
		fd, err := unix.Open(top, unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		for range 3000 {
			must(t, unix.Mkdirat(fd, "d", 0o755))
			next, err := unix.Openat(fd, "d", unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			must(t, err)
			unix.Close(fd)
			fd = next
		}
		unix.Close(fd)
	}
	var limit unix.Rlimit
	must(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 512, Max: limit.Max}))
	defer func() { must(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }()
	must(t, p.Destroy(ctx, "e1"))
	if names, err := p.Volumes(ctx); err != nil || len(names) != 0 {
		t.Errorf("volumes = %v, %v, want none", names, err)
	}
}

func testSpace(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	must(t, p.Create(ctx, "e1"))
	free := func() int64 {
		var st unix.Statfs_t
		must(t, unix.Statfs(filepath.Dir(filepath.Dir(p.Host("e1"))), &st))
		return int64(st.Bfree) * st.Bsize
	}
	const size = 96 << 20
	before := free()
	must(t, os.WriteFile(p.Live("e1").Upper+"/big", bytes.Repeat([]byte("not zero"), size/8), 0o600))
	must(t, p.Snapshot(ctx, "e1", "s1"))
	unix.Sync()
	if used := before - free(); used < size*9/10 {
		t.Errorf("the file took %d bytes, want at least %d", used, size)
	}
	must(t, p.Destroy(ctx, "e1"))
	deadline := time.Now().Add(60 * time.Second)
	for before-free() > size/10 {
		if time.Now().After(deadline) {
			t.Fatalf("%d bytes are still in use a minute after the deletion", before-free())
		}
		unix.Sync()
		time.Sleep(100 * time.Millisecond)
	}
}

func testRepeat(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	must(t, p.Create(ctx, "e1"))
	write(t, p.Live("e1").Upper+"/f", "1")
	must(t, p.Snapshot(ctx, "e1", "s1"))
	for range 2 {
		must(t, p.Recover(ctx))
	}
	if got, err := os.ReadFile(p.At("e1", "s1").Upper + "/f"); err != nil || string(got) != "1" {
		t.Errorf("f = %q, %v, want 1", got, err)
	}
	for range 2 {
		must(t, p.Close())
	}
	if err := p.Create(ctx, "e2"); !errors.Is(err, fs.ErrClosed) {
		t.Errorf("create in a closed pool: err = %v, want %v", err, fs.ErrClosed)
	}
}
