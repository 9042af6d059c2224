//go:build linux

package volume

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// trees are the sizes of volumes that are measured: files and bytes of each.
var trees = []struct {
	name        string
	files, size int
}{{"10k", 10_000, 20 << 10}, {"200k", 200_000, 1 << 10}}

// populate fills a directory with files, 100 in each directory.
func populate(b *testing.B, dir string, files, size int) {
	b.Helper()
	data := make([]byte, size)
	for i := range data {
		data[i] = byte(i * 31)
	}
	for i := range files {
		sub := fmt.Sprintf("%s/d%d", dir, i/100)
		if i%100 == 0 {
			must(b, os.MkdirAll(sub, 0o755))
		}
		must(b, os.WriteFile(fmt.Sprintf("%s/f%d", sub, i), data, 0o644))
	}
}

// times reports the median and the 99th percentile of single calls.
type times []time.Duration

func (ts *times) add(fn func() error) error {
	begin := time.Now()
	err := fn()
	*ts = append(*ts, time.Since(begin))
	return err
}

func (ts times) report(b *testing.B) {
	slices.Sort(ts)
	ms := func(q int) float64 { return float64(ts[(len(ts)-1)*q/100].Microseconds()) / 1000 }
	b.ReportMetric(ms(0), "min-ms")
	b.ReportMetric(ms(50), "p50-ms")
	b.ReportMetric(ms(99), "p99-ms")
	b.ReportMetric(0, "ns/op")
}

// benchPool is a pool where tests of the machine run: an image unless the
// temporary directory is on a btrfs.
func benchPool(b *testing.B, kind Kind) Pool {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("needs root: mounts file systems")
	}
	return openPool(b, b.TempDir(), Options{Kind: kind})
}

func BenchmarkCreate(b *testing.B) {
	for _, kind := range []Kind{Btrfs, Plain} {
		b.Run(string(kind), func(b *testing.B) {
			p := benchPool(b, kind)
			var create, destroy times
			for i := 0; b.Loop(); i++ {
				env := fmt.Sprintf("e%d", i)
				must(b, create.add(func() error { return p.Create(b.Context(), env) }))
				must(b, destroy.add(func() error { return p.Destroy(b.Context(), env) }))
			}
			create.report(b)
		})
	}
}

// BenchmarkVolume measures what can be done with a volume of many files, and
// the same by cp -a, which is what there is without copy-on-write.
func BenchmarkVolume(b *testing.B) {
	for _, tree := range trees {
		for _, kind := range []Kind{Btrfs, Plain} {
			if testing.Short() && tree.files > 10_000 || kind == Plain && tree.files > 10_000 {
				continue
			}
			b.Run(fmt.Sprintf("%s/%s", kind, tree.name), func(b *testing.B) {
				p := benchPool(b, kind)
				must(b, p.Create(b.Context(), "e1"))
				populate(b, p.Live("e1").Upper, tree.files, tree.size)
				must(b, p.Snapshot(b.Context(), "e1", "first"))
				benchVolume(b, p)
			})
		}
	}
}

func benchVolume(b *testing.B, p Pool) {
	ctx := b.Context()
	b.Run("SnapshotClean", func(b *testing.B) {
		var ts times
		for b.Loop() {
			must(b, ts.add(func() error { return p.Snapshot(ctx, "e1", "s") }))
			must(b, p.RemoveSnapshot(ctx, "e1", "s"))
		}
		ts.report(b)
	})
	b.Run("SnapshotDirty", func(b *testing.B) { // 100 files of 20 KiB since the last one
		var ts times
		for b.Loop() {
			for i := range 100 {
				must(b, os.WriteFile(fmt.Sprintf("%s/d0/f%d", p.Live("e1").Upper, i), make([]byte, 20<<10), 0o644))
			}
			must(b, ts.add(func() error { return p.Snapshot(ctx, "e1", "s") }))
			must(b, p.RemoveSnapshot(ctx, "e1", "s"))
		}
		ts.report(b)
	})
	b.Run("Rollback", func(b *testing.B) {
		var ts times
		for b.Loop() {
			must(b, ts.add(func() error { return p.Rollback(ctx, "e1", "first") }))
		}
		ts.report(b)
	})
	var destroy times
	b.Run("Fork", func(b *testing.B) {
		var ts times
		for b.Loop() {
			must(b, ts.add(func() error { return p.Fork(ctx, "e2", "e1", "first") }))
			must(b, destroy.add(func() error { return p.Destroy(ctx, "e2") }))
		}
		ts.report(b)
	})
	b.Run("Destroy", func(b *testing.B) {
		for b.Loop() { // measured above
		}
		destroy.report(b)
	})
	b.Run("CopyBaseline", func(b *testing.B) {
		var ts times
		for b.Loop() {
			if len(ts) == 3 {
				continue // it takes long enough
			}
			dst := filepath.Join(b.TempDir(), "copy")
			must(b, ts.add(func() error { return exec.Command("cp", "-a", p.Live("e1").Upper, dst).Run() }))
			must(b, os.RemoveAll(dst))
		}
		ts.report(b)
	})
}

// BenchmarkCandidates compares states of volumes whose upper directory holds
// all the files, and whose lower one does.
func BenchmarkCandidates(b *testing.B) {
	for _, tree := range trees {
		if testing.Short() && tree.files > 10_000 {
			continue
		}
		p := benchPool(b, Btrfs)
		ctx := b.Context()
		lower, err := p.BuildLayer(ctx, "empty", func(context.Context, string) error { return nil })
		must(b, err)
		must(b, p.Create(ctx, "e1"))
		populate(b, p.Live("e1").Upper, tree.files, 10)
		must(b, p.Snapshot(ctx, "e1", "s1"))
		for i := range 100 {
			must(b, os.WriteFile(fmt.Sprintf("%s/d%d/new", p.Live("e1").Upper, i), nil, 0o644))
		}
		must(b, p.Snapshot(ctx, "e1", "s2"))
		full, err := p.CommitLayer(ctx, "full", "e1", "s1")
		must(b, err)
		must(b, p.Create(ctx, "e2"))
		for i := range 100 {
			must(b, put(fmt.Sprintf("%s/d%d/new", p.Live("e2").Upper, i), ""))
		}
		s1, s2 := p.At("e1", "s1").Upper, p.At("e1", "s2").Upper
		for _, c := range []struct{ name, from, to, lower string }{
			{"AllNew", "", s1, lower}, {"100Of", s1, s2, lower}, {"100Over", "", p.Live("e2").Upper, full},
		} {
			b.Run(c.name+"/"+tree.name, func(b *testing.B) {
				var ts times
				var found int
				for b.Loop() {
					must(b, ts.add(func() error {
						paths, err := Candidates(ctx, c.from, c.to, []string{c.lower}, []string{c.lower}, "")
						found = len(paths)
						return err
					}))
				}
				ts.report(b)
				b.ReportMetric(float64(found), "paths")
			})
		}
	}
}

// BenchmarkWrites measures what an agent's tools do to the pool's file system.
func BenchmarkWrites(b *testing.B) {
	p := benchPool(b, Btrfs)
	must(b, p.Create(b.Context(), "e1"))
	for name, dir := range map[string]string{"btrfs": p.Live("e1").DB, "host": b.TempDir()} {
		b.Run("300Fsyncs/"+name, func(b *testing.B) {
			var ts times
			for b.Loop() {
				must(b, ts.add(func() error { return fsyncs(dir, 300) }))
			}
			ts.report(b)
		})
		b.Run("CreateRename5000/"+name, func(b *testing.B) {
			var ts times
			for b.Loop() {
				must(b, ts.add(func() error { return renames(dir, 5000) }))
			}
			ts.report(b)
		})
	}
}

func fsyncs(dir string, n int) error {
	for i := range n {
		f, err := os.Create(fmt.Sprintf("%s/s%d", dir, i))
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(make([]byte, 2000)); err != nil {
			return err
		}
		if err := unix.Fsync(int(f.Fd())); err != nil {
			return err
		}
	}
	return nil
}

func renames(dir string, n int) error {
	for i := range n {
		tmp := fmt.Sprintf("%s/tmp%d", dir, i)
		if err := os.WriteFile(tmp, make([]byte, 5000), 0o644); err != nil {
			return err
		}
		if err := os.Rename(tmp, fmt.Sprintf("%s/r%d", dir, i)); err != nil {
			return err
		}
	}
	return nil
}
