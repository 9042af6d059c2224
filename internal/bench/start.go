package main

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	"mayfly.dev/mayfly"
)

// dockerRun is what "docker run --rm" of a small image took, in milliseconds,
// on a machine that has a Docker engine (lower end of 522-562). There is none
// where this program runs, so that it cannot be measured beside.
const dockerRun = 522

// base is the template that cheap things are measured with.
func (b *bench) base(ctx context.Context) (template, dir string, err error) {
	dir = filepath.Join(b.dir, "base")
	if b.template != "" {
		return b.template, dir, nil
	}
	if dir, err = b.repository(ctx, "base", 100); err != nil {
		return "", "", err
	}
	e, err := b.environment(ctx, dir)
	if err != nil {
		return "", "", err
	}
	if _, err := b.DeleteEnvironment(ctx, e.ID); err != nil {
		return "", "", err
	}
	b.template = e.Template
	return b.template, dir, nil
}

// start measures an environment from the request to the first instruction of
// a command inside, beside bubblewrap and runc.
func (b *bench) start(ctx context.Context) error {
	template, dir, err := b.base(ctx)
	if err != nil {
		return err
	}
	ociDir := filepath.Join(b.dir, "bundle")
	if err := bundle(ociDir, dir, stamp...); err != nil {
		return err
	}
	var ready, run, wrap, oci, remove samples
	for i := range b.rounds {
		began := time.Now()
		e, err := b.CreateEnvironment(ctx, mayfly.CreateEnvironment{Template: template})
		if err != nil {
			return err
		}
		ready = append(ready, milliseconds(time.Since(began)))
		began = time.Now()
		if _, err := b.DeleteEnvironment(ctx, e.ID); err != nil {
			return err
		}
		remove = append(remove, milliseconds(time.Since(began)))

		ms, err := first(bwrap(ctx, dir, stamp...))
		if err != nil {
			return err
		}
		wrap = append(wrap, ms)

		began = time.Now()
		r, err := b.StartRun(ctx, mayfly.StartRun{Create: &mayfly.CreateEnvironment{Template: template}, Command: stamp})
		if err != nil {
			return err
		}
		out, err := b.output(ctx, r)
		if err != nil {
			return err
		}
		if ms, err = stamped(began, out); err != nil {
			return err
		}
		run = append(run, ms)
		if _, err := b.DeleteEnvironment(ctx, r.Environment); err != nil {
			return err
		}

		if ms, err = first(runc(ctx, ociDir, filepath.Join(b.dir, "runc"), fmt.Sprintf("bench-%d", i))); err != nil {
			return err
		}
		oci = append(oci, ms)
	}
	b.report(ready.result("create, cold, until ready", "ms").against("bwrap", wrap.median()).atMost(10))
	b.report(ready.result("create, cold, until ready", "ms").against("runc run", oci.median()).ratioAtMost(1))
	least := ready.result("create, cold, fastest", "ms")
	least.Value, least.P99 = round(ready.quantile(0.001)), 0
	b.report(least.against("bwrap", wrap.quantile(0.001)))
	b.report(run.result("create to 1st instruction", "ms").against("bwrap", wrap.median()))
	b.report(run.result("create to 1st instruction", "ms").against("runc run", oci.median()).ratioAtMost(1))
	b.report(remove.result("delete, fresh environment", "ms"))
	return nil
}

// wholeProcess measures the command line from its fork to its exit.
func (b *bench) wholeProcess(ctx context.Context) error {
	_, dir, err := b.base(ctx)
	if err != nil {
		return err
	}
	var mine, wrap samples
	for range b.rounds {
		cmd := b.command(ctx, "run", "--rm", "--", "true")
		cmd.Dir = dir
		ms, err := whole(cmd)
		if err != nil {
			return err
		}
		mine = append(mine, ms)
		if ms, err = whole(bwrap(ctx, dir, "true")); err != nil {
			return err
		}
		wrap = append(wrap, ms)
	}
	b.report(mine.result("mayfly run --rm -- true", "ms").against("bwrap", wrap.median()).atMost(round(wrap.median() + 40)))
	b.report(mine.result("mayfly run --rm -- true", "ms").against("docker run (reference)", dockerRun).ratioAtMost(0.15))
	return nil
}

// bursts measures many environments asked for at once.
func (b *bench) bursts(ctx context.Context) error {
	template, dir, err := b.base(ctx)
	if err != nil {
		return err
	}
	var environments []string
	var mu sync.Mutex // guards environments
	mine, err := together(b.burst, func() (float64, error) {
		began := time.Now()
		e, err := b.CreateEnvironment(ctx, mayfly.CreateEnvironment{Template: template})
		if err != nil {
			return 0, err
		}
		took := milliseconds(time.Since(began))
		mu.Lock()
		environments = append(environments, e.ID)
		mu.Unlock()
		return took, nil
	})
	if err != nil {
		return err
	}
	began := time.Now()
	if _, err := together(len(environments), func() (float64, error) {
		mu.Lock()
		id := environments[0]
		environments = environments[1:]
		mu.Unlock()
		_, err := b.DeleteEnvironment(ctx, id)
		return 0, err
	}); err != nil {
		return err
	}
	removed := milliseconds(time.Since(began))
	wrap, err := together(b.burst, func() (float64, error) { return first(bwrap(ctx, dir, stamp...)) })
	if err != nil {
		return err
	}
	name := fmt.Sprintf("burst of %d: create", b.burst)
	b.report(mine.result(name+", p50", "ms").against("bwrap", wrap.median()))
	slowest := mine.result(name+", p99", "ms")
	slowest.Value = slowest.P99
	b.report(slowest.against("bwrap", wrap.quantile(0.99)))
	b.report(Result{Name: fmt.Sprintf("burst of %d: delete all", b.burst), Unit: "ms", Value: round(removed), OK: true})
	return nil
}

// together calls f n times at once.
func together(n int, f func() (float64, error)) (samples, error) {
	type answer struct {
		v   float64
		err error
	}
	answers := make(chan answer, n)
	for range n {
		go func() {
			v, err := f()
			answers <- answer{v, err}
		}()
	}
	var all samples
	var failed error
	for range n {
		a := <-answers
		if a.err != nil {
			failed = a.err
		}
		all = append(all, a.v)
	}
	return all, failed
}
