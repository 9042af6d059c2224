package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/terminal"
)

const runLong = `Run a command in a new environment: a copy of the repository that the current
directory is in, upon the base that mayfly.yaml names, with its setup done. The
files are snapshotted before and after. The command's exit status is passed on.

Changes that are not committed come along, unless --no-uncommitted or the
manifest says otherwise. The first run of a state of the repository prepares a
template; later ones are copies of it and start at once.

The environment stays until the end of its life (--ttl), so that the change can
be looked at, kept, rolled back or forked. --rm deletes it with the run.

When standard output is a terminal, escape sequences other than colours are
taken out of what the command writes; a pipe gets every byte as it is, and -t
hands the terminal over.

With --repeat the command runs in N copies of the environment. Instead of its
output there is a report on whether their exit statuses, tests, files and
actions agree; status 79 says that they do not. With --json: an object with the
fields agree, runs (Run objects) and differences (kind, name, step, values).`

const runExample = `  mayfly run -- go test ./...
  mayfly run -it -- claude
  mayfly run --rm -- make check
  mayfly run --name fix --ttl 8h --label pr=7 -- codex exec "fix the test"
  mayfly run --locked --timeout 20m -- ./agent.sh
  mayfly run --detach -- ./agent.sh; mayfly logs -f RUN
  mayfly run --repeat 10 --rm -- go test -v ./...`

// runFlags are those of run itself.
type runFlags struct {
	environmentFlags
	processFlags
	sourceFlags
	remove bool
	quiet  bool
	json   bool
	repeat int
}

func (a *app) runCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "run [flags] [--] COMMAND [ARGUMENT...]",
		Short:   "Run a command in a new environment",
		Long:    runLong,
		Example: runExample,
	}
	var f runFlags
	f.environmentFlags.add(c)
	f.processFlags.add(c)
	f.sourceFlags.add(c)
	c.Flags().BoolVar(&f.remove, "rm", false, "delete the environment when the command has ended")
	c.Flags().BoolVarP(&f.quiet, "quiet", "q", false, "no summary at the end")
	c.Flags().BoolVar(&f.json, "json", false, "with --detach: print the Run object; with --repeat: the report")
	c.Flags().IntVar(&f.repeat, "repeat", 0, "run it `N` times at once, and report what the runs disagree about")
	c.RunE = func(c *cobra.Command, args []string) error { return a.run(c, f, args) }
	return c
}

func (a *app) run(c *cobra.Command, f runFlags, command []string) error {
	q, err := f.processFlags.request(c, command)
	if err != nil {
		return err
	}
	create, err := f.environmentFlags.request(c)
	if err != nil {
		return err
	}
	if err := exclusive(c, "rm", "keep"); err != nil {
		return err
	}
	repeated := c.Flags().Changed("repeat")
	if repeated {
		if err := checkRepeat(c, f); err != nil {
			return err
		}
	}
	if f.json && !f.detach && !repeated {
		return usage(c, "--json needs --detach or --repeat: otherwise standard output is the command's")
	}
	ctx := c.Context()
	p, err := a.prepare(ctx, f.sourceFlags)
	if err != nil {
		return err
	}
	p.complete(&create)
	q.Create, q.Remove, q.Locked = &create, f.remove, f.locked
	if p.lock.Model != nil {
		q.Model = p.lock.Model.Ref
	}
	if repeated {
		return a.repeat(ctx, f, p, q)
	}
	var r mayfly.Run
	err = a.withTemplate(ctx, p, func() error {
		r, err = a.startRun(ctx, q)
		return err
	})
	if err != nil {
		return err
	}
	return a.see(ctx, r, seeing{stdin: f.stdin, detach: f.detach, json: f.json, quiet: f.quiet})
}

// seeing says how to follow a run.
type seeing struct {
	stdin, detach, json, quiet bool
}

// see follows a run that has started, to its end, and passes on its status.
func (a *app) see(ctx context.Context, r mayfly.Run, s seeing) error {
	if s.detach {
		a.releaseSignals()
		return a.detached(r, s)
	}
	r, err := a.attend(ctx, r, s.stdin)
	if err != nil {
		return err
	}
	if !s.quiet {
		a.summarize(ctx, r)
	}
	return runStatus(r)
}

func (a *app) detached(r mayfly.Run, s seeing) error {
	if s.json {
		return printJSON(r)
	}
	fmt.Println(r.ID)
	if onTerminal(os.Stderr) && !s.quiet {
		fmt.Fprintf(os.Stderr, "follow it with: %s\n", a.self("logs -f "+r.ID))
	}
	return nil
}

// runStatus is nil for a run that ended with status 0, and otherwise passes on
// its status, with a word about ends that the run itself cannot tell.
func runStatus(r mayfly.Run) error {
	code := r.ExitCode
	switch r.Phase {
	case mayfly.RunExited:
	case mayfly.RunTimedOut:
		code = mayfly.Timeout.ExitStatus()
	case mayfly.RunFailed:
		if code == 0 {
			code = 126
		}
		fmt.Fprintf(os.Stderr, "mayfly: the command could not be started: %s\n", terminal.Safe(r.Reason))
	default:
		if code == 0 {
			code = 137
		}
	}
	if code == 0 {
		return nil
	}
	return statusError(code)
}
