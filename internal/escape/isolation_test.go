//go:build linux

package escape

import (
	"context"
	"crypto/rand"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mayfly.dev/mayfly/internal/cgroup"
	"mayfly.dev/mayfly/internal/sandbox"
	"mayfly.dev/mayfly/internal/volume"
)

// isolation is a runtime that the suite runs against.
type isolation struct {
	name    string
	runtime sandbox.Runtime
	emulate bool // has a kernel of its own
}

// hosts has the host directories of environments by their ids.
var hosts sync.Map

// newOptions gives a runtime control groups of its own and a fresh guest.
func newOptions(t *testing.T) sandbox.Options {
	t.Helper()
	groups, err := cgroup.Open(cgroup.Options{Installation: "escape-" + strings.ToLower(rand.Text()[:8])})
	check(t, err)
	t.Cleanup(func() { groups.Close() })
	guest := filepath.Join(t.TempDir(), "mayfly-guest")
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", guest, "mayfly.dev/mayfly/cmd/mayfly-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest: %v\n%s", err, out)
	}
	host := func(env string) string {
		dir, _ := hosts.Load(env)
		s, _ := dir.(string)
		return s
	}
	return sandbox.Options{Cgroups: groups, Guest: guest, Host: host}
}

// pool makes volumes that are held to a size, as those of environments are.
type pool struct{ volume.Pool }

func newPool(t *testing.T, w *world) pool {
	t.Helper()
	p, err := volume.Open(t.Context(), volume.Options{Dir: filepath.Join(w.dir, "pool"), Kind: volume.Btrfs, ImageSize: 4 << 30, Now: time.Now})
	check(t, err)
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close pool: %v", err)
		}
	})
	return pool{p}
}

// place puts an environment into a volume that holds no more than bytes.
func (p pool) place(t *testing.T, s *sandbox.Spec, bytes int64) {
	t.Helper()
	check(t, p.Create(t.Context(), s.Environment))
	t.Cleanup(func() {
		if err := p.Destroy(context.Background(), s.Environment); err != nil {
			t.Errorf("destroy volume: %v", err)
		}
	})
	limiter, ok := p.Pool.(volume.Limiter)
	if !ok {
		t.Fatal("the pool cannot limit volumes")
	}
	check(t, limiter.SetLimit(t.Context(), s.Environment, bytes))
	tree := p.Live(s.Environment)
	s.Upper, s.Work, s.DB, s.Host = tree.Upper, tree.Work, tree.DB, p.Host(s.Environment)
}
