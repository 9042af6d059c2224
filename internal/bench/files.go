package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// workloads are what agents do to files all day. Each is a subcommand of the
// program in package work, which tells how long it took without its own
// start.
var workloads = []struct {
	name, command string
	unit          string
}{
	{"git status", "git-status", "ms"},
	{"untar 5k files", "untar", "ms"},
	{"npm-like install", "npm", "ms"},
	{"300 fsyncs", "fsync", "ms"},
}

// fileWork runs the workloads inside an environment and outside, on the file
// system that holds the state directory, turn by turn.
func (b *bench) fileWork(ctx context.Context) error {
	dir, err := b.repository(ctx, "workloads", b.small)
	if err != nil {
		return err
	}
	if err := exec.CommandContext(ctx, b.work, "prepare", dir).Run(); err != nil {
		return fmt.Errorf("prepare workloads: %w", err)
	}
	e, err := b.environment(ctx, dir)
	if err != nil {
		return err
	}
	defer b.DeleteEnvironment(ctx, e.ID)
	for _, w := range workloads {
		var inside, outside samples
		for range b.few + 2 {
			cmd := exec.CommandContext(ctx, b.work, w.command)
			cmd.Dir = dir
			out, err := cmd.Output()
			if err != nil {
				return fmt.Errorf("%s outside: %w", w.command, err)
			}
			if outside, err = appendTime(outside, string(out)); err != nil {
				return err
			}
			text, err := b.exec(ctx, e.ID, "/workspace/work", w.command)
			if err != nil {
				return fmt.Errorf("%s inside: %w", w.command, err)
			}
			if inside, err = appendTime(inside, text); err != nil {
				return err
			}
		}
		// The first of each fills caches.
		inside, outside = inside[1:], outside[1:]
		b.report(inside.result("inside: "+w.name, w.unit).against("outside", outside.median()).ratioAtMost(1.3))
	}
	return os.RemoveAll(filepath.Join(b.dir, "workloads"))
}

// appendTime adds a workload's time, in nanoseconds as it prints it.
func appendTime(s samples, text string) (samples, error) {
	ns, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil {
		return s, fmt.Errorf("time of a workload: %w", err)
	}
	return append(s, float64(ns)/1e6), nil
}
