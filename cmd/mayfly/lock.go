package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly/internal/manifest"
	"mayfly.dev/mayfly/internal/terminal"
)

func (a *app) lockCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "lock",
		Short: "Write mayfly.lock",
		Long: `Write mayfly.lock: the digests of all that decides what environments contain and
how their runs behave. mayfly run --locked refuses to run when anything differs
from it. What is copied from a live server, or from a directory of the machine,
is copied anew for the next environment. Prints the digest of the template; with
--json the Lock object.

--check writes nothing: it says what differs, and exits with status 78 if
anything does. With --json: a list of differences with the fields what, was, is
and fix.`,
		Example: "  mayfly lock\n  mayfly lock --check",
		Args:    arguments(0, 0),
	}
	var f sourceFlags
	c.Flags().StringVarP(&f.dir, "dir", "C", ".", "take the repository that this `directory` is in")
	c.Flags().BoolVar(&f.noUncommitted, "no-uncommitted", false, "leave out changes that are not committed")
	c.MarkFlagDirname("dir")
	check := c.Flags().Bool("check", false, "say what differs, and write nothing")
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		f.locked, f.renew = *check, !*check // without a lock there is nothing to check
		p, err := pin(c.Context(), f)
		if err == nil {
			err = a.pinModel(c.Context(), p)
		}
		if err != nil {
			return err
		}
		if *check {
			differences := manifest.Drift(*p.old, p.lock)
			if *asJSON {
				if err := printList(differences); err != nil {
					return err
				}
			}
			return manifest.DriftError(differences)
		}
		if err := manifest.WriteLock(p.lockPath(), p.lock); err != nil {
			return err
		}
		for _, n := range p.source.Notes() {
			remark("%s", n)
		}
		if *asJSON {
			return printJSON(p.lock)
		}
		_, err = fmt.Printf("%s\n", terminal.Safe(p.lock.Template))
		return err
	}
	return c
}
