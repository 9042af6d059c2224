package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly/internal/terminal"
)

func (a *app) rollbackCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "rollback ENV [SNAPSHOT]",
		Short: "Put an environment's files back to a snapshot",
		Long: `End every process of an environment and put its files back to a snapshot: the
one before its last run, unless SNAPSHOT names another. What was there is kept
as a snapshot too, whose id is printed, so that a rollback can be undone. With
--json: that Snapshot object.`,
		Example: `  mayfly rollback swift-otter
  mayfly rollback swift-otter 3`,
		Args: arguments(1, 2, "ENV"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		var snapshot string
		if len(args) == 2 {
			snapshot = args[1]
		}
		kept, err := a.svc().Rollback(c.Context(), args[0], snapshot)
		if err != nil {
			return a.nearest(c.Context(), args[0], err)
		}
		if *asJSON {
			return printJSON(kept)
		}
		fmt.Println(kept.ID)
		if onTerminal(os.Stderr) {
			fmt.Fprintf(os.Stderr, "rolled back; undo with: %s\n", a.self("rollback "+terminal.Safe(args[0])+" "+kept.ID))
		}
		return nil
	}
	return c
}
