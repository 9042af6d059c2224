package main

import (
	"fmt"
	"math"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
)

func (a *app) snapshotCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "snapshot",
		Short: "Take, list and delete snapshots of environments",
		Long: `Snapshots are points in time of a whole environment: all files, databases
included. One is taken before and after every run; these commands take more,
list them and delete them. A SNAPSHOT is named by its id or, within an
environment, its number.`,
		Example: "  mayfly snapshot create swift-otter --label before-upgrade\n  mayfly snapshot list swift-otter",
		Args:    cobra.ArbitraryArgs,
		RunE:    group,
	}
	c.AddCommand(a.snapshotCreateCommand(), a.snapshotListCommand(), a.snapshotDeleteCommand())
	return c
}

func (a *app) snapshotCreateCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "create ENV",
		Short:   "Take a snapshot of an environment",
		Long:    "Take a snapshot of an environment, also while it works. Prints the snapshot's\nid; with --json a Snapshot object.",
		Example: "  mayfly snapshot create swift-otter --label before-upgrade",
		Args:    arguments(1, 1, "ENV"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	label := c.Flags().String("label", "", "`text` to remember it by")
	c.RunE = func(c *cobra.Command, args []string) error {
		s, err := a.svc().CreateSnapshot(c.Context(), args[0], *label)
		if err != nil {
			return a.nearest(c.Context(), args[0], err)
		}
		if *asJSON {
			return printJSON(s)
		}
		fmt.Println(s.ID)
		return nil
	}
	return c
}

func (a *app) snapshotListCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "list ENV",
		Aliases: []string{"ls"},
		Short:   "List an environment's snapshots",
		Long:    "List an environment's snapshots, the oldest first. With --json: a list of\nSnapshot objects, also of those that were deleted.",
		Example: "  mayfly snapshot list swift-otter\n  mayfly diff swift-otter --from 1 --to 2",
		Args:    arguments(1, 1, "ENV"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		list, err := a.svc().Snapshots(c.Context(), args[0])
		if err != nil {
			return a.nearest(c.Context(), args[0], err)
		}
		if *asJSON {
			return printList(list)
		}
		return snapshotTable(list)
	}
	return c
}

func (a *app) snapshotDeleteCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "delete ENV SNAPSHOT...",
		Aliases: []string{"rm"},
		Short:   "Delete snapshots and give their disk space back",
		Long: `Delete snapshots of an environment. Returns when they are gone; what nothing
else shares stops counting towards limits.disk shortly after. Forks made from
them live on. Nothing can be rolled back to a deleted snapshot, compared with it
or replayed from it. With --json: the Snapshot objects.`,
		Example: "  mayfly snapshot delete swift-otter 3\n  mayfly snapshot delete swift-otter 4 5 6",
		Args:    arguments(2, math.MaxInt, "ENV", "SNAPSHOT"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		var gone []mayfly.Snapshot
		for _, ref := range args[1:] {
			s, err := a.svc().DeleteSnapshot(c.Context(), args[0], ref)
			if err != nil {
				return a.nearest(c.Context(), args[0], err)
			}
			if gone = append(gone, s); !*asJSON {
				fmt.Printf("deleted snapshot %d\n", s.Number)
			}
		}
		if *asJSON {
			return printList(gone)
		}
		return nil
	}
	return c
}

func snapshotTable(list []mayfly.Snapshot) error {
	var rows [][]string
	for _, s := range list {
		if !s.DeletedAt.IsZero() {
			continue
		}
		rows = append(rows, []string{strconv.Itoa(s.Number), s.ID, string(s.Kind), ago(s.CreatedAt), s.Run, s.Label})
	}
	return table(os.Stdout, "NO\tSNAPSHOT\tKIND\tAGE\tRUN\tLABEL", rows)
}
