package main

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/terminal"
)

func (a *app) forkCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "fork [flags] ENV[@SNAPSHOT]|RUN [-- COMMAND [ARGUMENT...]]",
		Short: "Make a new environment from a state of another one",
		Long: `Make a new environment from a snapshot of another one, or, without SNAPSHOT,
from its state now, or, with --step N, from its state after a step of RUN. The
other one is left as it is. Prints the new environment's name; with --json the
Environment object. With a COMMAND, runs it there as mayfly run does.`,
		Example: `  mayfly fork swift-otter
  mayfly fork swift-otter@1 --name second-try -- codex exec "try another way"
  mayfly fork run-06x9qk2n4c8wz3vy --step 3 -- claude --continue -p "go on"`,
		ValidArgsFunction: a.completeEnvironment,
	}
	var ef environmentFlags
	var pf processFlags
	ef.add(c)
	pf.add(c)
	c.Flags().SetInterspersed(true) // flags may follow ENV; COMMAND follows --
	var step stepFlag
	step.add(c, "from the state after step `N` of the run; 0 is before the first")
	remove := c.Flags().Bool("rm", false, "delete the environment when the command has ended")
	quiet := c.Flags().BoolP("quiet", "q", false, "no summary at the end")
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage(c, "ENV is missing")
		}
		create, err := ef.request(c)
		if err != nil {
			return err
		}
		env, snapshot, _ := strings.Cut(args[0], "@")
		if step.given() {
			if snapshot != "" {
				return usage(c, "--step and @SNAPSHOT exclude each other")
			}
			r, s, err := step.find(c.Context(), a, env)
			if err != nil {
				return err
			}
			env, snapshot = r.Environment, s.ID
		}
		create.From = &mayfly.SnapshotRef{Environment: env, Snapshot: snapshot}
		if len(args) == 1 {
			return a.fork(c, env, create, *asJSON)
		}
		q, err := pf.request(c, args[1:])
		if err != nil {
			return err
		}
		if err := exclusive(c, "rm", "keep"); err != nil {
			return err
		}
		if *asJSON && !pf.detach {
			return usage(c, "--json needs --detach: otherwise standard output is the command's")
		}
		q.Create, q.Remove = &create, *remove
		r, err := a.startRun(c.Context(), q)
		if err != nil {
			return a.nearest(c.Context(), env, err)
		}
		return a.see(c.Context(), r, seeing{stdin: pf.stdin, detach: pf.detach, json: *asJSON, quiet: *quiet})
	}
	return c
}

func (a *app) fork(c *cobra.Command, env string, create mayfly.CreateEnvironment, asJSON bool) error {
	for _, flag := range []string{"rm", "interactive", "tty", "detach", "timeout", "cwd"} {
		if c.Flags().Changed(flag) {
			return usage(c, "--%s needs a COMMAND", flag)
		}
	}
	e, err := a.svc().CreateEnvironment(c.Context(), create)
	if err != nil {
		return a.nearest(c.Context(), env, err)
	}
	if asJSON {
		return printJSON(e)
	}
	fmt.Println(terminal.Safe(e.Name))
	if onTerminal(os.Stderr) {
		fmt.Fprintf(os.Stderr, "work in it with: %s\n", a.self("shell "+e.Name))
	}
	return nil
}
