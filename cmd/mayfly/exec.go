package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/terminal"
)

func (a *app) execCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "exec [flags] ENV [--] COMMAND [ARGUMENT...]",
		Short: "Run a command in an environment that exists",
		Long: `Run a command in an environment that exists, beside whatever runs there, without
snapshots. Its exit status is passed on.`,
		Example: `  mayfly exec swift-otter -- go test ./...
  mayfly exec -i swift-otter -- sh -c 'cat > notes.txt' < notes.txt`,
		ValidArgsFunction: a.completeEnvironment,
	}
	var f processFlags
	f.add(c)
	env := c.Flags().StringArrayP("env", "e", nil, "set `NAME=VALUE`, or pass on the caller's NAME; may be repeated")
	asJSON := c.Flags().Bool("json", false, "with --detach: print the Run object")
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage(c, "ENV is missing")
		}
		command := args[1:]
		if len(command) > 0 && command[0] == "--" {
			command = command[1:]
		}
		q, err := f.request(c, command)
		if err != nil {
			return err
		}
		if *asJSON && !f.detach {
			return usage(c, "--json needs --detach: otherwise standard output is the command's")
		}
		if q.Env, err = parseEnv(*env); err != nil {
			return err
		}
		return a.execIn(c, args[0], q, seeing{stdin: f.stdin, detach: f.detach, json: *asJSON, quiet: true})
	}
	return c
}

func (a *app) execIn(c *cobra.Command, ref string, q mayfly.StartRun, s seeing) error {
	q.Environment, q.Kind = ref, mayfly.ExecRun
	r, err := a.startRun(c.Context(), q)
	if err != nil {
		return a.nearest(c.Context(), ref, err)
	}
	a.warnOfServices(c.Context(), r.Environment)
	return a.see(c.Context(), r, s)
}

// warnOfServices says which services a command is without.
func (a *app) warnOfServices(ctx context.Context, env string) {
	e, err := a.svc().Environment(ctx, env)
	if err != nil {
		return // whatever it is, the command meets it, too
	}
	for _, s := range e.Services {
		if s.State == mayfly.ServiceFailed {
			fmt.Fprintf(os.Stderr, "mayfly: warning: service %s\n", terminal.Safe(serviceText(s)))
		}
	}
}

// shellScript starts the best shell that there is.
const shellScript = `command -v bash >/dev/null && exec bash; exec sh`

func (a *app) shellCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "shell ENV",
		Short:   "Open a shell in an environment",
		Long:    "Open a shell in an environment that exists, beside whatever runs there. It needs\na terminal; for scripts there is exec.",
		Example: "  mayfly shell swift-otter",
		Args:    arguments(1, 1, "ENV"), ValidArgsFunction: a.completeEnvironment,
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		f := processFlags{stdin: true, tty: true}
		q, err := f.request(c, []string{"sh", "-c", shellScript})
		if err != nil {
			return mayfly.Errorf(mayfly.Invalid, "shell needs a terminal as standard input and output").
				Hint("without one: %s", a.self("exec "+shellWord(args[0])+" -- COMMAND"))
		}
		q.Env = map[string]string{}
		if term := os.Getenv("TERM"); term != "" {
			q.Env["TERM"] = term
		}
		return a.execIn(c, args[0], q, seeing{stdin: true, quiet: true})
	}
	return c
}
