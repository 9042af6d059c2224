package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/terminal"
)

func (a *app) eventsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "events",
		Short: "Print what happened",
		Long: `Print events: who did what, when, in which environment and run. With --json:
one Event object per line.`,
		Example: `  mayfly events --env swift-otter
  mayfly events -f
  mayfly events --json --after 120`,
		Args: arguments(0, 0),
	}
	asJSON := addJSON(c)
	var f mayfly.EventFilter
	c.Flags().BoolVarP(&f.Follow, "follow", "f", false, "wait for more")
	c.Flags().StringVar(&f.Environment, "env", "", "only of this `ENV`")
	c.Flags().StringVar(&f.Run, "run", "", "only of this `RUN`")
	c.Flags().Uint64Var(&f.After, "after", 0, "only events with a number greater than `N`")
	c.RunE = func(c *cobra.Command, _ []string) error {
		print := printEvent
		if *asJSON {
			print = printEventJSON
		}
		err := a.follow(c.Context(), f, print)
		if f.Environment != "" {
			err = a.nearest(c.Context(), f.Environment, err)
		}
		return err
	}
	return c
}

// follow reads events; when it follows them and the server goes away, it goes
// on with the next server after the last event that it has seen.
func (a *app) follow(ctx context.Context, f mayfly.EventFilter, yield func(mayfly.Event) error) error {
	for failures := 0; ; {
		began := time.Now()
		err := a.svc().Events(ctx, f, func(e mayfly.Event) error {
			f.After = e.Seq
			return yield(e)
		})
		if failures++; time.Since(began) > time.Second {
			failures = 1
		}
		if !f.Follow || mayfly.KindOf(err) != mayfly.Unavailable || failures > reconnectTries {
			return err
		}
		if !sleep(ctx, reconnectPause) {
			return context.Cause(ctx)
		}
	}
}

// sleep returns false when ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

func printEventJSON(e mayfly.Event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(os.Stdout, "%s\n", b)
	return err
}

func printEvent(e mayfly.Event) error {
	line := fmt.Sprintf("%6d  %s  %-22s %s", e.Seq, e.Time.Local().Format("2006-01-02 15:04:05"), e.Type, e.Actor)
	for _, s := range []string{e.Environment, e.Run, string(e.Data)} {
		if s != "" {
			line += " " + s
		}
	}
	_, err := fmt.Fprintln(os.Stdout, terminal.Safe(line))
	return err
}
