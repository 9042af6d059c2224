package main

import (
	"context"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
)

// stepFlag is --step N: the state after a step of a run; step 0 is what was
// there before the run.
type stepFlag struct {
	n   int
	cmd *cobra.Command
}

func (f *stepFlag) add(c *cobra.Command, what string) {
	f.cmd = c
	c.Flags().IntVar(&f.n, "step", 0, what)
}

func (f *stepFlag) given() bool { return f.cmd.Flags().Changed("step") }

// find returns the run that is meant, and the snapshot after the step.
func (f *stepFlag) find(ctx context.Context, a *app, ref string) (mayfly.Run, mayfly.Snapshot, error) {
	r, list, err := a.snapshotsOf(ctx, ref)
	if err != nil {
		return r, mayfly.Snapshot{}, err
	}
	if f.n < 0 {
		return r, mayfly.Snapshot{}, usage(f.cmd, "bad --step %d: steps are numbered from 1; 0 is before the first", f.n)
	}
	s, err := mayfly.AfterStep(list, r.ID, f.n)
	return r, s, err
}

// around returns the snapshots before and after the step.
func (f *stepFlag) around(ctx context.Context, a *app, ref string) (before, after mayfly.Snapshot, env string, err error) {
	r, list, err := a.snapshotsOf(ctx, ref)
	if err != nil {
		return before, after, "", err
	}
	if f.n < 1 {
		return before, after, "", usage(f.cmd, "bad --step %d: steps are numbered from 1", f.n)
	}
	if after, err = mayfly.AfterStep(list, r.ID, f.n); err == nil {
		before, err = mayfly.BeforeStep(list, r.ID, f.n)
	}
	return before, after, r.Environment, err
}

func (a *app) snapshotsOf(ctx context.Context, ref string) (mayfly.Run, []mayfly.Snapshot, error) {
	r, err := a.runOf(ctx, ref)
	if err != nil {
		return r, nil, err
	}
	list, err := a.svc().Snapshots(ctx, r.Environment)
	return r, list, err
}
