package volumetest

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/volume"
)

// fill writes up to size bytes to path and returns how many it could.
func fill(t *testing.T, path string, size int) int {
	t.Helper()
	f, err := os.Create(path)
	if isFull(err) {
		return 0
	}
	must(t, err)
	defer f.Close()
	chunk := make([]byte, 256<<10)
	for i := range chunk {
		chunk[i] = byte(i*7 + 1)
	}
	for n := 0; n < size; n += len(chunk) {
		if _, err := f.Write(chunk); isFull(err) {
			return n
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return size
}

func isFull(err error) bool { return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) }

// testLimit fills an environment with data and then with inodes. Nobody else
// notices.
func testLimit(t *testing.T, p volume.Pool) {
	l, ok := p.(volume.Limiter)
	if !ok {
		return // checked by the test of what each kind can do
	}
	ctx := t.Context()
	const limit = 24 << 20
	must(t, p.Create(ctx, "e1"))
	must(t, p.Create(ctx, "e2"))
	must(t, l.SetLimit(ctx, "e1", limit))
	merged, unmount := Mount(t, p.Live("e1"))
	n := fill(t, merged+"/big", 4*limit)
	if n > limit || n < limit/2 {
		t.Errorf("wrote %d bytes, want at most %d and not much less", n, limit)
	}
	used, err := l.Used(ctx, "e1")
	if err != nil || used > limit || used < int64(n)/2 {
		t.Errorf("used = %d, %v, want about %d", used, err, n)
	}
	if n := fill(t, p.Live("e1").DB+"/big", 4*limit); n > limit/2 {
		t.Errorf("wrote %d bytes more beside the overlay, want next to none", n)
	}
	if n := fill(t, p.Host("e1")+"/log", 1<<20); n != 1<<20 {
		t.Errorf("the host could write %d bytes of its log, want %d", n, 1<<20)
	}
	must(t, p.Snapshot(ctx, "e1", "full"))
	must(t, os.Remove(merged+"/big"))
	inodes := 0
	for ; inodes < 1_000_000; inodes++ {
		if err := os.Mkdir(fmt.Sprintf("%s/d%d", merged, inodes), 0o755); isFull(err) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if inodes == 1_000_000 {
		t.Error("inodes are not limited")
	}
	unmount()
	merged, _ = Mount(t, p.Live("e2"))
	if n := fill(t, merged+"/big", 2*limit); n != 2*limit {
		t.Errorf("the other environment could write %d bytes, want %d", n, 2*limit)
	}
	must(t, p.Rollback(ctx, "e1", "full")) // also when it is full
	must(t, p.Destroy(ctx, "e1"))
}

func testLimitSurvives(t *testing.T, p volume.Pool) {
	l, ok := p.(volume.Limiter)
	if !ok {
		return
	}
	ctx := t.Context()
	const mib = 1 << 20
	must(t, p.Create(ctx, "e1"))
	must(t, l.SetLimit(ctx, "e1", 32*mib))
	if n := fill(t, p.Live("e1").Upper+"/a", 20*mib); n != 20*mib {
		t.Fatalf("wrote %d bytes, want %d", n, 20*mib)
	}
	must(t, p.Snapshot(ctx, "e1", "s1"))
	must(t, os.Remove(p.Live("e1").Upper+"/a")) // the snapshot still has it
	if n := fill(t, p.Live("e1").Upper+"/b", 20*mib); n > 12*mib {
		t.Errorf("wrote %d bytes beside a snapshot of %d, want at most %d", n, 20*mib, 12*mib)
	}
	must(t, p.Rollback(ctx, "e1", "s1"))
	must(t, p.Fork(ctx, "e2", "e1", "s1"))
	if n := fill(t, p.Live("e2").Upper+"/b", 60*mib); n > 32*mib {
		t.Errorf("the fork wrote %d bytes, want at most %d", n, 32*mib)
	}
	// What the rollback has replaced is freed a little later.
	deadline := time.Now().Add(60 * time.Second)
	n := 0
	for n < 8*mib && time.Now().Before(deadline) {
		n = fill(t, p.Live("e1").Upper+"/b", 20*mib)
		time.Sleep(100 * time.Millisecond)
	}
	if n < 8*mib || n > 12*mib {
		t.Errorf("wrote %d bytes after the rollback, want %d to %d", n, 8*mib, 12*mib)
	}
	must(t, l.SetLimit(ctx, "e1", 0))
	if n := fill(t, p.Live("e1").Upper+"/b", 60*mib); n != 60*mib {
		t.Errorf("wrote %d bytes without a limit, want %d", n, 60*mib)
	}
	must(t, p.Destroy(ctx, "e1"))
	must(t, l.SetLimit(ctx, "e2", 64*mib))
	if got, err := l.Used(ctx, "e2"); err != nil || got > 40*mib {
		t.Errorf("used = %d, %v, want at most %d", got, err, 40*mib)
	}
}
