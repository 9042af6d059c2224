//go:build linux

package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var errCrash = errors.New("crash")

// crasher is the fault hook of a pool: at the chosen step it fails, and at all
// later ones, so that nothing is cleaned up, as if the process were gone.
type crasher struct {
	armed bool
	steps []string // since armed
	at    int      // index in steps to crash at; -1: never
	dead  bool
}

func (c *crasher) step(name string) error {
	if !c.armed {
		return nil
	}
	if len(c.steps) == c.at {
		c.dead = true
	}
	c.steps = append(c.steps, name)
	if c.dead {
		return fmt.Errorf("%s: %w", name, errCrash)
	}
	return nil
}

// abandon lets go of a pool as the kernel does when a process is killed.
func abandon(t testing.TB, p Pool) {
	t.Helper()
	if l, ok := p.(limitedPool); ok {
		p = l.pool
	}
	switch s := p.(*pool).store.(type) {
	case *limitedStore:
		close(s.stop)
		s.done.Wait()
		must(t, s.lock.Close())
	case *btrfsStore:
		close(s.stop)
		s.done.Wait()
		must(t, s.lock.Close())
	case *copyStore:
		must(t, s.lock.Close())
	}
}

// operation is one method of a pool, with the state that it needs and the
// states that a crash may leave. Environments are called env and env+"-fork",
// the layer env+"-layer".
type operation struct {
	setup func(ctx context.Context, p Pool, env string) error
	do    func(ctx context.Context, p Pool, env string) error
	// state describes what the operation changes; it is compared with what it
	// was before and with what it is in the end.
	state func(p Pool, env string) string
}

func put(path, content string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, []byte(content), 0o644)
}

func content(path string) string {
	b, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "-"
	} else if err != nil {
		return err.Error()
	}
	return string(b)
}

// ready makes env with two states: s1 with content "one", and live "two".
func ready(ctx context.Context, p Pool, env string) error {
	err := p.Create(ctx, env)
	for _, dir := range []string{p.Live(env).Upper, p.Live(env).DB} {
		err = errors.Join(err, put(dir+"/a/f", "one"), put(dir+"/a/g", "one"))
	}
	err = errors.Join(err, put(p.Host(env)+"/log", "log"), p.Snapshot(ctx, env, "s1"))
	return errors.Join(err, put(p.Live(env).Upper+"/a/f", "two"), put(p.Live(env).DB+"/a/f", "two"),
		put(p.Live(env).Work+"/work/incompat/volatile", ""))
}

func treeState(t Tree) string {
	return content(t.Upper+"/a/f") + content(t.Upper+"/a/g") + content(t.DB+"/a/f") + content(t.DB+"/a/g")
}

// whole says whether an environment exists, with all its parts.
func whole(p Pool, env string) string {
	t := p.Live(env)
	n := 0
	for _, dir := range []string{t.Upper, t.DB, t.Work, p.Host(env)} {
		if isDir(dir) {
			n++
		}
	}
	return fmt.Sprint(n, " directories ", treeState(t))
}

func layerState(p Pool, env string) string {
	dir, err := p.Layer(env + "-layer")
	if err != nil {
		return "none"
	}
	return content(dir + "/a/f")
}

func nothing(context.Context, Pool, string) error { return nil }

func buildLayer(ctx context.Context, p Pool, env string) error {
	_, err := p.BuildLayer(ctx, env+"-layer", func(_ context.Context, dir string) error {
		return put(dir+"/a/f", "layer")
	})
	return err
}

var operations = map[string]operation{
	"create": {nothing, func(ctx context.Context, p Pool, env string) error { return p.Create(ctx, env) }, whole},
	"fork": {ready,
		func(ctx context.Context, p Pool, env string) error { return p.Fork(ctx, env+"-fork", env, "s1") },
		func(p Pool, env string) string { return whole(p, env+"-fork") }},
	"snapshot": {ready,
		func(ctx context.Context, p Pool, env string) error { return p.Snapshot(ctx, env, "s2") },
		func(p Pool, env string) string { return treeState(p.At(env, "s2")) }},
	"rollback": {ready,
		func(ctx context.Context, p Pool, env string) error { return p.Rollback(ctx, env, "s1") },
		func(p Pool, env string) string { return whole(p, env) + treeState(p.At(env, "s1")) }},
	"rollback upper": {ready,
		func(ctx context.Context, p Pool, env string) error { return p.RollbackUpper(ctx, env, "s1") },
		func(p Pool, env string) string { return whole(p, env) + treeState(p.At(env, "s1")) }},
	"rollback db": {ready,
		func(ctx context.Context, p Pool, env string) error { return p.RollbackDB(ctx, env, "s1") },
		func(p Pool, env string) string { return whole(p, env) + treeState(p.At(env, "s1")) }},
	"remove snapshot": {ready,
		func(ctx context.Context, p Pool, env string) error { return p.RemoveSnapshot(ctx, env, "s1") },
		func(p Pool, env string) string { return treeState(p.At(env, "s1")) }},
	"destroy": {ready, func(ctx context.Context, p Pool, env string) error { return p.Destroy(ctx, env) },
		func(p Pool, env string) string { return whole(p, env) + treeState(p.At(env, "s1")) }},
	"build layer": {nothing, buildLayer, layerState},
	"commit layer": {ready, func(ctx context.Context, p Pool, env string) error {
		_, err := p.CommitLayer(ctx, env+"-layer", env, "s1")
		return err
	}, layerState},
	"remove layer": {buildLayer,
		func(ctx context.Context, p Pool, env string) error { return p.RemoveLayer(ctx, env+"-layer") }, layerState},
}

func TestCrashAtEveryStepIsRepaired(t *testing.T) {
	for name, h := range hosts {
		t.Run(name, func(t *testing.T) {
			dir := h.dir(t)
			for name, op := range operations {
				t.Run(name, func(t *testing.T) { crashEverywhere(t, dir, h.kind, strings.ReplaceAll(name, " ", "-"), op) })
			}
		})
	}
}

// crashEverywhere runs the operation once for each of its steps, and crashes
// there; every other time it is repeated without Recover.
func crashEverywhere(t *testing.T, dir string, kind Kind, name string, op operation) {
	ctx := t.Context()
	for at := 0; ; at++ {
		env := fmt.Sprintf("%s%d", name, at)
		c := &crasher{at: at}
		p, err := Open(ctx, Options{Dir: dir + "/pool", Kind: kind, fault: c.step})
		must(t, err)
		must(t, op.setup(ctx, p, env))
		before := op.state(p, env)
		c.armed = true
		err = op.do(ctx, p, env)
		c.armed = false
		if !c.dead {
			must(t, err)
			must(t, p.Close())
			if at == 0 {
				t.Errorf("the operation has %d steps", at)
			}
			return
		}
		if !errors.Is(err, errCrash) {
			t.Errorf("step %d (%s): err = %v, want the crash", at, c.steps[at], err)
		}
		abandon(t, p)
		repairs(t, dir, kind, op, env, before, fmt.Sprintf("step %d (%s)", at, c.steps[at]), at%2 == 0)
	}
}

// repairs opens the pool after a crash and finishes the operation.
func repairs(t *testing.T, dir string, kind Kind, op operation, env, before, where string, recover bool) {
	t.Helper()
	ctx := t.Context()
	p, err := Open(ctx, Options{Dir: dir + "/pool", Kind: kind})
	must(t, err)
	defer closePool(t, p)
	if recover {
		must(t, p.Recover(ctx))
	}
	between := op.state(p, env)
	if names, err := p.Volumes(ctx); recover && err == nil {
		for _, name := range names {
			if !isDir(p.Live(name).Upper) {
				t.Errorf("%s: %s has been recovered without live state", where, name)
			}
		}
	}
	if err := op.do(ctx, p, env); err != nil {
		t.Fatalf("%s: repeat: %v", where, err)
	}
	after := op.state(p, env)
	if recover && between != before && between != after {
		t.Errorf("%s: state = %q, want %q or %q", where, between, before, after)
	}
	if before == after {
		t.Errorf("%s: the operation did nothing: %q", where, after)
	}
	if isDir(p.Live(env).Work) {
		if entries, err := os.ReadDir(p.Live(env).Work); before != after && strings.HasPrefix(where, "rollback") && (err != nil || len(entries) > 0) {
			t.Errorf("%s: work holds %v, %v", where, entries, err)
		}
	}
	must(t, p.Recover(ctx))
	if left := leftovers(t, dir+"/pool"); len(left) > 0 {
		t.Errorf("%s: left behind: %v", where, left)
	}
	if now := op.state(p, env); now != after {
		t.Errorf("%s: recovering changed %q to %q", where, after, now)
	}
}

// leftovers lists what is half-made in a pool.
func leftovers(t *testing.T, dir string) (left []string) {
	t.Helper()
	l := layout{dir}
	dirs := []string{l.layers(), l.envs()}
	envs, err := list(l.envs())
	must(t, err)
	for _, env := range envs {
		dirs = append(dirs, l.env(env), l.snapshots(env))
	}
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		must(t, err)
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") {
				left = append(left, filepath.Join(d, e.Name()))
			}
		}
	}
	entries, err := os.ReadDir(l.trash())
	must(t, err)
	for _, e := range entries {
		left = append(left, filepath.Join(l.trash(), e.Name()))
	}
	return left
}

func TestCrashWhileOpeningAnImageIsRepaired(t *testing.T) {
	for at := 0; ; at++ {
		dir := fileSystem(t, "ext4", "", 6<<30, "mkfs.ext4", "-q", "-F")
		c := &crasher{at: at, armed: true}
		o := Options{Dir: dir + "/pool", Kind: Btrfs, fault: c.step}
		p, err := Open(t.Context(), o)
		c.armed = false
		if err == nil {
			abandon(t, p)
		} else if !errors.Is(err, errCrash) {
			t.Errorf("step %d (%s): err = %v, want the crash", at, c.steps[at], err)
		}
		p, err = Open(t.Context(), Options{Dir: dir + "/pool", Kind: Btrfs})
		if err != nil {
			t.Fatalf("step %d (%v): open again: %v", at, c.steps, err)
		}
		must(t, p.Recover(t.Context()))
		must(t, p.Create(t.Context(), "e1"))
		if n := attachments(t, dir+"/pool.img"); n != 1 {
			t.Errorf("step %d: the image is attached %d times, want once", at, n)
		}
		closePool(t, p)
		if !c.dead {
			if at < 3 {
				t.Errorf("opening has %d steps", at)
			}
			return
		}
	}
}
