package main

import (
	"os"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/doctor"
)

func (a *app) doctorCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine can do, and what is missing",
		Long: `Try what environments need of this machine, and say what works, what is
missing, and the command that gets it. Most of it needs root. The exit status
is 72 when environments cannot run here. With --json: a list of findings with
the fields name, status (ok, missing, degraded), detail, needs, fix, required,
took_us and error.`,
		Example: "  sudo mayfly doctor\n  mayfly doctor --json | jq -r '.[] | select(.status != \"ok\") | .fix'",
		Args:    arguments(0, 0),
	}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		findings := doctor.Check(c.Context(), a.state)
		var err error
		if *asJSON {
			err = printList(findings)
		} else {
			err = doctor.WriteText(os.Stdout, findings)
		}
		if err != nil {
			return err
		}
		if !doctor.Usable(findings) {
			return statusError(mayfly.Unsupported.ExitStatus())
		}
		return nil
	}
	return c
}
