package main

import (
	"fmt"

	"github.com/spf13/cobra"
)

// hashed is the output of hash --json.
type hashed struct {
	Digest string `json:"digest"`
}

func (a *app) hashCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "hash ENV",
		Short: "Print the digest of an environment's files",
		Long: `Print the digest of the files in an environment: their paths, types, modes,
contents and link targets, without times and without .git. Equal digests mean
equal trees.`,
		Example: "  mayfly hash swift-otter\n  mayfly hash swift-otter --snapshot 2 --path /home/agent",
		Args:    arguments(1, 1, "ENV"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	snapshot := c.Flags().String("snapshot", "", "look at this `SNAPSHOT` instead of the live state")
	path := c.Flags().String("path", "/workspace", "`directory` to look at")
	c.RunE = func(c *cobra.Command, args []string) error {
		digest, err := a.svc().Hash(c.Context(), args[0], *snapshot, *path)
		if err != nil {
			return a.nearest(c.Context(), args[0], err)
		}
		if *asJSON {
			return printJSON(hashed{digest})
		}
		fmt.Println(digest)
		return nil
	}
	return c
}
