package main

import (
	"os"
	"strconv"

	"github.com/spf13/cobra"
)

func (a *app) templateCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "template",
		Short:   "List prepared templates",
		Long:    "Templates are what environments are copies of: a base, a workspace and the\nresult of the setup commands, prepared once and named by a digest.",
		Example: "  mayfly template list",
		Args:    cobra.ArbitraryArgs,
		RunE:    group,
	}
	list := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List prepared templates",
		Long:    "List prepared templates. With --json: a list of Template objects.",
		Example: "  mayfly template list\n  mayfly template list --json | jq -r '.[].digest'",
		Args:    arguments(0, 0),
	}
	asJSON := addJSON(list)
	list.RunE = func(c *cobra.Command, _ []string) error {
		templates, err := a.svc().Templates(c.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printList(templates)
		}
		var rows [][]string
		for _, t := range templates {
			rows = append(rows, []string{shortDigest(t.Digest), t.Lock.Name, t.Lock.Base.Kind, shorten(t.Lock.Workspace.Commit, 12), strconv.Itoa(t.Lock.Workspace.Files), ago(t.CreatedAt)})
		}
		return table(os.Stdout, "TEMPLATE\tNAME\tBASE\tCOMMIT\tFILES\tAGE", rows)
	}
	c.AddCommand(list)
	return c
}

// shortDigest is enough of a digest for a person.
func shortDigest(d string) string {
	const n = len("sha256:") + 12
	if len(d) > n {
		return d[:n]
	}
	return d
}
