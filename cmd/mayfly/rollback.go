package main

import (
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/terminal"
)

// breaks says what does not fit any more when one side is rolled back alone.
var breaks = map[mayfly.Side]string{
	mayfly.DatabaseSide: "the files are as they were, and newer than the databases: " +
		"rows that they name may be missing, migrations that they have may have to be applied again; clients have to connect again",
	mayfly.FilesSide: "the databases are as they were, and newer than the files: " +
		"rows may name files that are missing, and tables may be newer than the code; every process was ended",
}

func (a *app) rollbackCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "rollback ENV|RUN [SNAPSHOT]",
		Short: "Put an environment's files back to a snapshot",
		Long: `End every process of an environment and put its files, and the data of its
services, back to a snapshot: the one before its last run, unless SNAPSHOT names
another, or --step N the state after a step of its last run, or of RUN. What was
there is kept as a snapshot too, whose id is printed, so that a rollback can be
undone; later steps stay in the graph. Says how long it took. With --json: that
Snapshot object.

With --only db the data of services alone is put back, and with native isolation
what runs goes on: its connections are closed, and it connects again as before.
With --only files the data of services stays. The two sides are of different
times then, which the command says.`,
		Example: `  mayfly rollback swift-otter
  mayfly rollback swift-otter 3
  mayfly rollback swift-otter --step 2
  mayfly rollback swift-otter 3 --only db`,
		Args: arguments(1, 2, "ENV or RUN"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	var step stepFlag
	step.add(c, "to the state after step `N`; 0 is before the first")
	only := c.Flags().String("only", "", "one `SIDE`: db, the data of services, or files, all but that")
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
		kept, err := a.svc().Rollback(c.Context(), env, snapshot, mayfly.Side(*only))
		if err != nil {
			return a.nearest(c.Context(), args[0], err)
		}
		if *asJSON {
			return printJSON(kept)
		}
		fmt.Println(kept.ID)
		remark("rolled back in %v", time.Since(began).Round(time.Millisecond))
		if text := breaks[mayfly.Side(*only)]; text != "" {
			remark("%s", text)
		}
		if onTerminal(os.Stderr) {
			fmt.Fprintf(os.Stderr, "undo with: %s\n", a.self("rollback "+terminal.Safe(args[0])+" "+kept.ID))
		}
		return nil
	}
	return c
}
