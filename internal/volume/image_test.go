//go:build linux

package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// attachments counts the loop devices of an image.
func attachments(t testing.TB, path string) (n int) {
	t.Helper()
	image, err := os.Open(path)
	must(t, err)
	defer image.Close()
	devices, err := filepath.Glob("/sys/block/loop*/loop")
	must(t, err)
	for _, d := range devices {
		if dev, err := os.Open("/dev/" + filepath.Base(filepath.Dir(d))); err == nil {
			if backs(image, dev) {
				n++
			}
			dev.Close()
		}
	}
	return n
}

func blocks(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

func extHost(t testing.TB, size int64) string {
	return fileSystem(t, "ext4", "", size, "mkfs.ext4", "-q", "-F")
}

// TestMain lets the test binary be the server that is killed.
func TestMain(m *testing.M) {
	if dir := os.Getenv("MAYFLY_VOLUME_TEST_POOL"); dir != "" {
		if err := churn(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// churn uses a pool until it is killed.
func churn(dir string) error {
	ctx := context.Background()
	p, err := Open(ctx, Options{Dir: dir})
	if err == nil {
		err = p.Recover(ctx)
	}
	fmt.Println("ready")
	for i := 0; err == nil; i++ {
		env := fmt.Sprintf("e%d", i%3)
		err = errors.Join(p.Create(ctx, env), put(p.Live(env).Upper+"/f", "1"), p.Snapshot(ctx, env, "s1"),
			p.Rollback(ctx, env, "s1"), p.Fork(ctx, env+"-fork", env, "s1"), p.Destroy(ctx, env+"-fork"), p.Destroy(ctx, env))
	}
	return err
}

func TestOpenFindsTheImageAgainAfterAKill(t *testing.T) {
	dir := extHost(t, 6<<30)
	exe, err := os.Executable()
	must(t, err)
	for range 5 {
		cmd := exec.Command(exe)
		cmd.Env = append(os.Environ(), "MAYFLY_VOLUME_TEST_POOL="+dir+"/pool")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		_, err = out.Read(make([]byte, 6))
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
		must(t, cmd.Process.Kill())
		_ = cmd.Wait()
		must(t, err)
		if n := attachments(t, dir+"/pool.img"); n != 1 {
			t.Fatalf("the image is attached %d times, want once", n)
		}
	}
	// Not mounted any more, but attached: by a descriptor of the device.
	image, err := os.Open(dir + "/pool.img")
	must(t, err)
	defer image.Close()
	dev, err := findLoop(image)
	must(t, err)
	must(t, unix.Unmount(dir+"/pool", 0))
	p, err := Open(t.Context(), Options{Dir: dir + "/pool"})
	must(t, err)
	must(t, p.Recover(t.Context()))
	dev.Close()
	if n := attachments(t, dir+"/pool.img"); n != 1 {
		t.Errorf("the image is attached %d times, want once", n)
	}
	if p.Kind() != Btrfs {
		t.Errorf("kind = %q, want %q", p.Kind(), Btrfs)
	}
	if left := leftovers(t, dir+"/pool"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	closePool(t, p)
	if n := attachments(t, dir+"/pool.img"); n != 0 {
		t.Errorf("the image is attached %d times after Close, want 0", n)
	}
}

func TestCloseOfABusyPoolLeavesItUsable(t *testing.T) {
	ctx := t.Context()
	dir := extHost(t, 6<<30)
	p := openPool(t, dir, Options{Kind: Btrfs})
	must(t, p.Create(ctx, "e1"))
	tree := p.Live("e1")
	must(t, put(tree.Upper+"/f", "1"))

	open, err := os.Open(tree.Upper + "/f")
	must(t, err)
	if err := p.Close(); mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("close with an open file: err = %v, want kind %q", err, mayfly.Conflict)
	}
	open.Close()

	// A mount elsewhere does not keep the pool's mount busy, only what is
	// below it.
	elsewhere := t.TempDir()
	must(t, unix.Mount("overlay", elsewhere, "overlay", 0,
		"volatile,lowerdir="+t.TempDir()+",upperdir="+tree.Upper+",workdir="+tree.Work))
	if err := p.Close(); mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("close with an overlay: err = %v, want kind %q", err, mayfly.Conflict)
	}
	must(t, put(elsewhere+"/g", "2"))
	must(t, p.Snapshot(ctx, "e1", "s1"))
	if got := content(p.At("e1", "s1").Upper + "/g"); got != "2" {
		t.Errorf("g = %q, want 2", got)
	}
	must(t, unix.Unmount(elsewhere, 0))
	closePool(t, p)
	if n := attachments(t, dir+"/pool.img"); n != 0 {
		t.Errorf("the image is attached %d times after Close, want 0", n)
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(mounts), dir+"/pool") {
		t.Errorf("%s is still mounted (%v)", dir+"/pool", err)
	}
}

func TestSecondServerIsRefused(t *testing.T) {
	for name, h := range hosts {
		t.Run(name, func(t *testing.T) {
			dir := h.dir(t)
			openPool(t, dir, Options{Kind: h.kind})
			if p, err := Open(t.Context(), Options{Dir: dir + "/pool", Kind: h.kind}); mayfly.KindOf(err) != mayfly.Conflict {
				t.Errorf("second pool = %v, %v, want kind %q", p, err, mayfly.Conflict)
			}
		})
	}
}

func TestImageGrowsAheadOfWriters(t *testing.T) {
	dir := extHost(t, 64<<30) // sparse
	p := openPool(t, dir, Options{})
	must(t, p.Create(t.Context(), "e1"))
	begin, err := os.Stat(dir + "/pool.img")
	must(t, err)
	if begin.Size() > 16<<30 {
		t.Errorf("the image begins with %d bytes, want it small", begin.Size())
	}
	f, err := os.Create(p.Live("e1").Upper + "/big")
	must(t, err)
	defer f.Close()
	const size = 14 << 30
	for at := int64(0); at < size; at += 1 << 30 {
		if err := unix.Fallocate(int(f.Fd()), 0, at, 1<<30); err != nil {
			t.Fatalf("at %d GiB: %v", at>>30, err)
		}
		time.Sleep(300 * time.Millisecond)
	}
	end, err := os.Stat(dir + "/pool.img")
	must(t, err)
	if end.Size() < size+imageHeadroom/2 {
		t.Errorf("the image has %d bytes, want more than %d", end.Size(), size)
	}
	if got := blocks(t, dir+"/pool.img"); got > 1<<30 {
		t.Errorf("the image occupies %d bytes, want it sparse", got)
	}
	f.Close()
	closePool(t, p)
	p = openPool(t, dir, Options{}) // it is found again in its new size
	if _, err := os.Stat(p.Live("e1").Upper + "/big"); err != nil {
		t.Error(err)
	}
}

func TestImageHonoursItsLimit(t *testing.T) {
	dir := extHost(t, 64<<30)
	p := openPool(t, dir, Options{ImageSize: 1 << 30})
	must(t, p.Create(t.Context(), "e1"))
	f, err := os.Create(p.Live("e1").Upper + "/big")
	must(t, err)
	defer f.Close()
	err = nil
	for at := int64(0); err == nil && at < 4<<30; at += 64 << 20 {
		err = unix.Fallocate(int(f.Fd()), 0, at, 64<<20)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("filling it: err = %v, want %v", err, unix.ENOSPC)
	}
	if err := p.Create(t.Context(), "e2"); mayfly.KindOf(err) != mayfly.Exhausted {
		t.Errorf("create in a full pool: err = %v, want kind %q", err, mayfly.Exhausted)
	}
	must(t, p.Destroy(t.Context(), "e2"))
	must(t, p.Destroy(t.Context(), "e1")) // possible in a full pool
}

func TestFullHostRefusesNewVolumes(t *testing.T) {
	ctx := t.Context()
	dir := extHost(t, 3<<30)
	p := openPool(t, dir, Options{Kind: Btrfs})
	must(t, p.Create(ctx, "e1"))
	image, err := os.Stat(dir + "/pool.img")
	must(t, err)
	if free, err := freeBytes(dir); err != nil || image.Size() > free {
		t.Errorf("the image of %d bytes does not fit the free %d (%v)", image.Size(), free, err)
	}
	free, err := freeBytes(dir)
	must(t, err)
	filler, err := os.Create(dir + "/filler")
	must(t, err)
	defer filler.Close()
	must(t, unix.Fallocate(int(filler.Fd()), 0, 0, free-hostReserve/2))
	for what, err := range map[string]error{
		"create": p.Create(ctx, "e2"), "snapshot": p.Snapshot(ctx, "e1", "s1"), "layer": buildLayer(ctx, p, "e1"),
	} {
		var e *mayfly.Error
		if !errors.As(err, &e) || e.Kind != mayfly.Exhausted || e.Fix == "" {
			t.Errorf("%s on a full host: err = %v, want kind %q and a hint", what, err, mayfly.Exhausted)
		}
	}
	if _, err := Open(ctx, Options{Dir: dir + "/other/pool", Kind: Btrfs}); mayfly.KindOf(err) != mayfly.Exhausted {
		t.Errorf("open on a full host: err = %v, want kind %q", err, mayfly.Exhausted)
	}
	must(t, filler.Truncate(0))
	must(t, p.Create(ctx, "e2"))
	must(t, p.Snapshot(ctx, "e1", "s1"))
}

func TestDeletionMakesHolesInTheImage(t *testing.T) {
	ctx := t.Context()
	dir := extHost(t, 6<<30)
	p := openPool(t, dir, Options{})
	must(t, p.Create(ctx, "e1"))
	const size = 256 << 20
	before := blocks(t, dir+"/pool.img")
	must(t, os.WriteFile(p.Live("e1").Upper+"/big", bytes.Repeat([]byte("not zero"), size/8), 0o600))
	must(t, p.Snapshot(ctx, "e1", "s1"))
	if used := blocks(t, dir+"/pool.img") - before; used < size {
		t.Errorf("the file took %d bytes, want at least %d", used, size)
	}
	must(t, p.Destroy(ctx, "e1"))
	begin := time.Now()
	for blocks(t, dir+"/pool.img")-before > size/4 {
		if time.Since(begin) > 90*time.Second {
			t.Fatalf("%d bytes are still allocated", blocks(t, dir+"/pool.img")-before)
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Logf("given back after %v", time.Since(begin).Round(100*time.Millisecond))
}

func TestMissingToolIsNamedAndWorkedAround(t *testing.T) {
	dir := extHost(t, 6<<30)
	saved := mkfsNames
	t.Cleanup(func() { mkfsNames = saved })
	mkfsNames = []string{"/nonexistent/mkfs.btrfs"}
	_, err := Open(t.Context(), Options{Dir: dir + "/pool", Kind: Btrfs})
	var e *mayfly.Error
	if !errors.Is(err, errors.ErrUnsupported) || !errors.As(err, &e) || !strings.Contains(e.Fix, "btrfs-progs") {
		t.Errorf("err = %v, want one that wraps errors.ErrUnsupported and names btrfs-progs", err)
	}
	p := openPool(t, dir, Options{})
	if p.Kind() != Plain {
		t.Errorf("kind = %q, want %q", p.Kind(), Plain)
	}
	must(t, p.Create(t.Context(), "e1"))
	closePool(t, p)
	mkfsNames = saved
	// What exists keeps its kind, and is not hidden below an image.
	p = openPool(t, dir, Options{})
	if names, err := p.Volumes(t.Context()); p.Kind() != Plain || err != nil || len(names) != 1 {
		t.Errorf("kind = %q, volumes = %v, %v, want %q with one volume", p.Kind(), names, err, Plain)
	}
	closePool(t, p)
	if _, err := Open(t.Context(), Options{Dir: dir + "/pool", Kind: Btrfs}); mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("btrfs over plain directories: err = %v, want kind %q", err, mayfly.Conflict)
	}
	if _, err := Open(t.Context(), Options{Dir: dir + "/pool", Kind: Reflink}); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("reflink on ext4: err = %v, want errors.ErrUnsupported", err)
	}
	if _, err := Open(t.Context(), Options{Dir: dir + "/pool", Kind: "zfs"}); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("unknown kind: err = %v, want kind %q", err, mayfly.Invalid)
	}
}

func TestOpenPicksTheBestKind(t *testing.T) {
	for name, want := range map[string]Kind{"plain": Btrfs, "reflink": Btrfs, "native": Btrfs} {
		dir := hosts[name].dir(t)
		p := openPool(t, dir, Options{})
		if p.Kind() != want {
			t.Errorf("on %s: kind = %q, want %q", name, p.Kind(), want)
		}
		_, err := os.Stat(dir + "/pool.img")
		if err != nil { // on btrfs, too: layers and volumes have to be on two file systems
			t.Errorf("on %s: no image: %v", name, err)
		}
		if _, ok := p.(Limiter); !ok {
			t.Errorf("on %s: the pool is no Limiter", name)
		}
	}
}

// TestNestedSubvolumesDoNotKeepAVolume makes what a process that writes to a
// database directory can make.
func TestNestedSubvolumesDoNotKeepAVolume(t *testing.T) {
	ctx := t.Context()
	p := openPool(t, extHost(t, 6<<30), Options{})
	must(t, p.Create(ctx, "e1"))
	nest := func() {
		db := p.Live("e1").DB
		must(t, createSubvolume(db+"/outer"))
		must(t, put(db+"/outer/dir/f", "1"))
		must(t, createSubvolume(db+"/outer/dir/inner"))
		must(t, put(db+"/outer/dir/inner/f", "1"))
		must(t, createSubvolume(p.Host("e1")+"/log"))
	}
	must(t, p.Snapshot(ctx, "e1", "s1"))
	nest()
	must(t, p.Snapshot(ctx, "e1", "s2"))
	must(t, p.Rollback(ctx, "e1", "s1"))
	must(t, os.Remove(p.Host("e1")+"/log"))
	nest()
	must(t, p.Destroy(ctx, "e1"))
	if left := leftovers(t, filepath.Dir(filepath.Dir(filepath.Dir(p.Host("e1"))))); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestQuotaGroupsGoWithTheirEnvironments(t *testing.T) {
	ctx := t.Context()
	p := openPool(t, extHost(t, 6<<30), Options{}).(limitedPool)
	for i := range 3 {
		env := fmt.Sprintf("e%d", i)
		must(t, ready(ctx, p, env))
		must(t, p.Rollback(ctx, env, "s1"))
		must(t, p.SetLimit(ctx, env, 1<<30))
	}
	must(t, p.Destroy(ctx, "e0"))
	must(t, p.Destroy(ctx, "e1"))
	q := p.limiter.(*limitedStore).quota
	want := 0 // the groups of e2: 1 for it, live, s1; and one of the pool
	deadline := time.Now().Add(60 * time.Second)
	for {
		q.stale.Store(true)
		_, err := q.sweep()
		must(t, err)
		groups, err := filepath.Glob(q.sysfs + "/*_*")
		must(t, err)
		n := 0
		for _, g := range groups {
			if b := filepath.Base(g); b[0] >= '0' && b[0] <= '9' {
				n++
			}
		}
		// The state that the rollback replaced still owns what s1 shares.
		if want = 5; n <= want {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d quota groups are left, want at most %d: %v", n, want, groups)
		}
		time.Sleep(200 * time.Millisecond)
	}
	if bytes, err := p.Used(ctx, "e2"); err != nil || bytes == 0 {
		t.Errorf("used = %d, %v, want something", bytes, err)
	}
}
