package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly/internal/terminal"
)

func (a *app) rollbackCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "rollback ENV|RUN [SNAPSHOT]",
		Short: "Put an environment's files back to a snapshot",
		Long: `End every process of an environment and put its files, and the data of its
services, back to a snapshot: the one before its last run, unless SNAPSHOT names
another, or --step N the state after a step of its last run, or of RUN. What was
there is kept as a snapshot too, whose id is printed, so that a rollback can be
undone; later steps stay in the graph. Says how long it took. With --json: that
Snapshot object.`,
		Example: `  mayfly rollback swift-otter
  mayfly rollback swift-otter 3
  mayfly rollback swift-otter --step 2`,
		Args: arguments(1, 2, "ENV or RUN"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	var step stepFlag
	step.add(c, "to the state after step `N`; 0 is before the first")
	c.RunE = func(c *cobra.Command, args []string) error {
		var snapshot string
		if len(args) == 2 {
			snapshot = args[1]
		}
		env := args[0]
		if step.given() {
			if snapshot != "" {
				return usage(c, "--step and SNAPSHOT exclude each other")
			}
			r, s, err := step.find(c.Context(), a, args[0])
			if err != nil {
				return err
			}
			env, snapshot = r.Environment, s.ID
		}
		began := time.Now()
		kept, err := a.svc().Rollback(c.Context(), env, snapshot)
		if err != nil {
			return a.nearest(c.Context(), args[0], err)
		}
		if *asJSON {
			return printJSON(kept)
		}
		fmt.Println(kept.ID)
		remark("rolled back in %v", time.Since(began).Round(time.Millisecond))
		if onTerminal(os.Stderr) {
			fmt.Fprintf(os.Stderr, "undo with: %s\n", a.self("rollback "+terminal.Safe(args[0])+" "+kept.ID))
		}
		return nil
	}
	return c
}
