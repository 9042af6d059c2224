// Command mayfly runs coding agents in short-lived, reproducible environments.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/terminal"
)

func main() { os.Exit(execute(os.Args[1:])) }

// execute runs one command line and returns its exit status.
func execute(args []string) int {
	a := newApp()
	defer a.close()
	root := a.rootCommand()
	root.SetArgs(args)
	err := root.ExecuteContext(a.ctx)
	if err != nil && a.ctx.Err() != nil {
		err = context.Cause(a.ctx)
	}
	return report(os.Stderr, err)
}

// statusError is a command's own exit status, passed on without a word.
type statusError int

func (e statusError) Error() string { return fmt.Sprintf("exit status %d", int(e)) }

// report prints an error, with what can be done about it, and returns the exit
// status that it stands for.
func report(w io.Writer, err error) int {
	var status statusError
	var interrupted interruption
	switch {
	case err == nil:
		return 0
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &interrupted):
		return 128 + int(interrupted.signal)
	}
	kind := mayfly.KindOf(err)
	if errors.Is(err, context.DeadlineExceeded) {
		kind = mayfly.Timeout
	}
	fmt.Fprintf(w, "mayfly: %s\n", safeLines(err.Error()))
	var e *mayfly.Error
	if errors.As(err, &e) && e.Fix != "" {
		fmt.Fprintf(w, "hint: %s\n", safeLines(e.Fix))
	}
	return kind.ExitStatus()
}

// safeLines makes text safe for a terminal, line by line.
func safeLines(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = terminal.Safe(lines[i])
	}
	return strings.Join(lines, "\n")
}

const rootLong = `mayfly runs coding agents, or any command, in short-lived, reproducible
environments: isolated copies of a repository with everything it needs. What a
run changed can be looked at, kept, rolled back, forked or forgotten.

The commands talk to a server, which starts when it is needed and leaves when
it has nothing to look after. Its state is in one directory (--state or
MAYFLY_STATE); different directories are independent installations.`

const rootExample = `  mayfly run -- go test ./...             a command in a copy of this repository
  mayfly run -it -- claude                an interactive agent
  mayfly diff swift-otter                 what it changed
  mayfly apply swift-otter --branch fix   keep that on a branch
  mayfly env delete swift-otter           forget it`

func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "mayfly",
		Short:         "Run agents in short-lived, reproducible environments",
		Long:          rootLong + "\n\n" + exitStatuses(),
		Example:       rootExample,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE:          group,
		CompletionOptions: cobra.CompletionOptions{
			DisableDescriptions: false,
		},
	}
	cobra.EnableCommandSorting = false
	root.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		return usage(c, "%v", err)
	})
	flags := root.PersistentFlags()
	flags.StringVar(&a.state, "state", a.state, "state `directory` of the server (MAYFLY_STATE)")
	flags.StringVar(&a.socket, "socket", a.socket, "`path` of the server's socket, if not in the state directory (MAYFLY_SOCKET)")
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return a.settle() }
	root.AddGroup(
		&cobra.Group{ID: "run", Title: "Run:"},
		&cobra.Group{ID: "change", Title: "Look at changes and decide about them:"},
		&cobra.Group{ID: "manage", Title: "Environments and the machine:"},
	)
	for _, g := range []struct {
		id       string
		commands []*cobra.Command
	}{
		{"run", []*cobra.Command{a.runCommand(), a.execCommand(), a.shellCommand(), a.logsCommand(), a.lockCommand(), a.replayCommand()}},
		{"change", []*cobra.Command{a.graphCommand(), a.showCommand(), a.diffCommand(), a.applyCommand(), a.rollbackCommand(), a.forkCommand(), a.snapshotCommand(), a.hashCommand()}},
		{"manage", []*cobra.Command{a.envCommand(), a.eventsCommand(), a.modelCommand(), a.providerCommand(), a.templateCommand(), a.forgetCommand(), a.serveCommand(), a.doctorCommand(), a.versionCommand()}},
	} {
		for _, c := range g.commands {
			c.GroupID = g.id
			root.AddCommand(c)
		}
	}
	root.AddCommand(docsCommand(root))
	return root
}

// group is what a command does that only has subcommands: it says which.
func group(c *cobra.Command, args []string) error {
	if len(args) == 0 {
		if !c.HasParent() {
			return c.Help()
		}
		return usage(c, "which command of %q?", c.CommandPath())
	}
	c.SuggestionsMinimumDistance = 2
	if near := c.SuggestionsFor(args[0]); len(near) > 0 {
		return mayfly.Errorf(mayfly.Invalid, "unknown command %q", args[0]).Hint("did you mean: %s %s", c.CommandPath(), near[0])
	}
	return usage(c, "unknown command %q", args[0])
}

// usage is the error for a command line that is wrong.
func usage(c *cobra.Command, format string, args ...any) error {
	return mayfly.Errorf(mayfly.Invalid, format, args...).Hint("see: %s --help", c.CommandPath())
}

// exclusive refuses more than one of the named flags.
func exclusive(c *cobra.Command, names ...string) error {
	first := ""
	for _, n := range names {
		switch {
		case !c.Flags().Changed(n):
		case first == "":
			first = n
		default:
			return usage(c, "--%s and --%s exclude each other", first, n)
		}
	}
	return nil
}

// arguments checks their number; names are those of the usage line.
func arguments(least, most int, names ...string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		if len(args) < least {
			return usage(c, "%s is missing", names[len(args)])
		}
		if len(args) > most {
			return usage(c, "unexpected argument %q", args[most])
		}
		return nil
	}
}

// kindMeaning says in a few words what each kind of error means.
var kindMeaning = map[mayfly.Kind]string{
	mayfly.Invalid:     "the input is wrong",
	mayfly.NotFound:    "no such thing",
	mayfly.Conflict:    "not in the state that this needs",
	mayfly.Forbidden:   "not allowed",
	mayfly.Drift:       "the lock and the world differ",
	mayfly.Exhausted:   "a quota, a limit or the disk is used up",
	mayfly.Unsupported: "this machine cannot do it",
	mayfly.Timeout:     "it took too long",
	mayfly.Unavailable: "no server, or it is stopping",
	mayfly.Missing:     "a template or image is not there",
	mayfly.Diverged:    "a replay or a repeated run went another way",
	mayfly.Internal:    "a defect; the server's log has the id",
}

func exitStatuses() string {
	var b strings.Builder
	b.WriteString("Exit statuses:\n    0  done\n")
	for _, k := range mayfly.Kinds() {
		fmt.Fprintf(&b, "  %3d  %s (%s)\n", k.ExitStatus(), kindMeaning[k], k)
	}
	b.WriteString("  130  interrupted; 128+N: signal N\n")
	b.WriteString("run, exec and shell pass on the status of the command, and 124 for one that\nreached its --timeout. docs/errors.md has the causes and fixes.")
	return b.String()
}
