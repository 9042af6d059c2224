package volumetest

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mayfly.dev/mayfly/internal/volume"
)

func testBuildLayer(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	if _, err := p.Layer("base"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing layer: err = %v, want fs.ErrNotExist", err)
	}
	calls := 0
	fill := func(_ context.Context, dir string) error {
		calls++
		return os.WriteFile(filepath.Join(dir, "f"), []byte("content"), 0o640)
	}
	for range 2 {
		dir, err := p.BuildLayer(ctx, "base", fill)
		must(t, err)
		got, err := os.ReadFile(filepath.Join(dir, "f"))
		if err != nil || string(got) != "content" {
			t.Errorf("layer's file = %q, %v, want %q", got, err, "content")
		}
		if found, err := p.Layer("base"); err != nil || found != dir {
			t.Errorf("layer = %q, %v, want %q", found, err, dir)
		}
	}
	if calls != 1 {
		t.Errorf("fill was called %d times, want 1", calls)
	}
	names, err := p.Layers(ctx)
	if err != nil || !slices.Equal(names, []string{"base"}) {
		t.Errorf("layers = %v, %v, want [base]", names, err)
	}
	for range 2 {
		must(t, p.RemoveLayer(ctx, "base"))
	}
	if _, err := p.Layer("base"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("removed layer: err = %v, want fs.ErrNotExist", err)
	}
}

func testFailedBuild(t *testing.T, p volume.Pool) {
	boom := errors.New("boom")
	_, err := p.BuildLayer(t.Context(), "base", func(_ context.Context, dir string) error {
		write(t, dir+"/half", "made")
		return boom
	})
	if !errors.Is(err, boom) {
		t.Errorf("err = %v, want %v", err, boom)
	}
	if names, err := p.Layers(t.Context()); err != nil || len(names) != 0 {
		t.Errorf("layers = %v, %v, want none", names, err)
	}
	dir, err := p.BuildLayer(t.Context(), "base", func(context.Context, string) error { return nil })
	must(t, err)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 0 {
		t.Errorf("second build holds %v, %v, want nothing", entries, err)
	}
}

func testConcurrentBuilds(t *testing.T, p volume.Pool) {
	var calls atomic.Int32
	release := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, err := p.BuildLayer(t.Context(), "base", func(context.Context, string) error {
				calls.Add(1)
				<-release
				return nil
			})
			if err != nil {
				t.Errorf("build: %v", err)
			}
		})
	}
	for calls.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	close(release)
	wg.Wait()
	if got := calls.Load(); got != 1 {
		t.Errorf("fill was called %d times, want 1", got)
	}
}

func testCancelledBuild(t *testing.T, p volume.Pool) {
	ctx, cancel := context.WithCancel(t.Context())
	started := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := p.BuildLayer(ctx, "base", func(ctx context.Context, _ string) error {
			close(started)
			<-ctx.Done()
			return ctx.Err()
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled build: err = %v, want %v", err, context.Canceled)
		}
	})
	<-started
	wg.Go(func() {
		_, err := p.BuildLayer(t.Context(), "base", func(_ context.Context, dir string) error {
			return os.WriteFile(dir+"/second", nil, 0o600)
		})
		if err != nil {
			t.Errorf("second build: %v", err)
		}
	})
	time.Sleep(10 * time.Millisecond)
	cancel()
	wg.Wait()
	dir, err := p.Layer("base")
	must(t, err)
	if _, err := os.Lstat(dir + "/second"); err != nil {
		t.Errorf("second build's file: %v", err)
	}
}

func testCommitLayer(t *testing.T, p volume.Pool) {
	ctx := t.Context()
	lower := gnarlyLower(t)
	must(t, p.Create(ctx, "e1"))
	merged, unmount := Mount(t, p.Live("e1"), lower)
	gnarlyChanges(t, merged)
	write(t, p.Live("e1").DB+"/pg/base", "rows")
	unmount()
	must(t, p.Snapshot(ctx, "e1", "s1"))
	want := ManifestOf(t, p.At("e1", "s1").Upper)
	dir, err := p.CommitLayer(ctx, "prepared", "e1", "s1")
	must(t, err)
	compare(t, "layer", ManifestOf(t, dir), want)
	if again, err := p.CommitLayer(ctx, "prepared", "e1", "s1"); err != nil || again != dir {
		t.Errorf("commit again = %q, %v, want %q", again, err, dir)
	}
	merge := view(t, dir, lower)
	must(t, p.Destroy(ctx, "e1"))
	compare(t, "view after the volume is gone", view(t, dir, lower), merge)
	must(t, p.Create(ctx, "e2"))
	merged, _ = Mount(t, p.Live("e2"), dir, lower)
	if _, err := os.Lstat(merged + "/moved/inner"); err != nil {
		t.Errorf("renamed directory over the layer: %v", err)
	}
}
