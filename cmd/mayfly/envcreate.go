package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/terminal"
)

func (a *app) envCreateCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "create",
		Short: "Create an environment without running anything in it",
		Long: `Create an environment as mayfly run does, and leave it there for exec and shell.
Prints its name; with --json the Environment object.`,
		Example: "  mayfly env create --name work --ttl 8h\n  mayfly shell work",
		Args:    arguments(0, 0),
	}
	var ef environmentFlags
	var sf sourceFlags
	ef.add(c)
	sf.add(c)
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		ctx := c.Context()
		create, err := ef.request(c)
		if err != nil {
			return err
		}
		p, err := a.prepare(ctx, sf)
		if err != nil {
			return err
		}
		p.complete(&create)
		var e mayfly.Environment
		err = a.withTemplate(ctx, p, func() error {
			e, err = a.svc().CreateEnvironment(ctx, create)
			return err
		})
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(e)
		}
		_, err = fmt.Println(terminal.Safe(e.Name))
		return err
	}
	return c
}
