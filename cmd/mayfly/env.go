package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/terminal"
)

func (a *app) envCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "env",
		Aliases: []string{"environment", "environments"},
		Short:   "Create, list, pause and delete environments",
		Long: `Environments are what runs happen in: short-lived copies of a repository at a
state that its lock names. Wherever a command takes ENV, the name of a live
environment will do, an id, a unique beginning of an id, or the id of a run.`,
		Example: "  mayfly env list\n  mayfly env show swift-otter",
		Args:    cobra.ArbitraryArgs,
		RunE:    group,
	}
	c.AddCommand(a.envCreateCommand(), a.envListCommand(), a.envShowCommand(), a.envPauseCommand(),
		a.envResumeCommand(), a.envExtendCommand(), a.envDeleteCommand())
	return c
}

func (a *app) envListCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List environments",
		Long:    "List environments that are not deleted. With --json: a list of Environment\nobjects.",
		Example: `  mayfly env list
  mayfly env list --label branch=main
  mayfly env list --json | jq -r '.[].name'`,
		Args: arguments(0, 0),
	}
	asJSON := addJSON(c)
	labels := c.Flags().StringArrayP("label", "l", nil, "only with this label, `KEY=VALUE`; may be repeated")
	deleted := c.Flags().Bool("deleted", false, "also deleted ones")
	c.RunE = func(c *cobra.Command, _ []string) error {
		want, err := parseLabels(*labels)
		if err != nil {
			return err
		}
		list, err := a.svc().Environments(c.Context(), mayfly.EnvironmentFilter{Deleted: *deleted, Labels: want})
		if err != nil {
			return err
		}
		if *asJSON {
			return printList(list)
		}
		var rows [][]string
		for _, e := range list {
			rows = append(rows, []string{e.Name, string(e.Phase), ago(e.CreatedAt), lifeLeft(e), activity(e), e.Owner, labelText(e.Labels)})
		}
		return table(os.Stdout, "NAME\tPHASE\tAGE\tLEFT\tIDLE\tOWNER\tLABELS", rows)
	}
	return c
}

// lifeLeft says how long an environment will be there.
func lifeLeft(e mayfly.Environment) string {
	if e.Phase == mayfly.Deleted {
		return ""
	}
	if e.Keep {
		return left(e.ExpiresAt) + " (kept)"
	}
	return left(e.ExpiresAt)
}

func activity(e mayfly.Environment) string {
	switch {
	case e.Phase == mayfly.Deleted:
		return ""
	case e.IdleSince.IsZero():
		return "at work"
	}
	return ago(e.IdleSince)
}

// environmentDetail is the output of env show --json: the Environment and what
// belongs to it.
type environmentDetail struct {
	mayfly.Environment
	Runs      []mayfly.Run      `json:"runs"`
	Snapshots []mayfly.Snapshot `json:"snapshots"`
}

func (a *app) envShowCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "show ENV",
		Short:   "Show an environment, its runs and its snapshots",
		Long:    "Show an environment, its runs and its snapshots. With --json: an Environment\nobject with the fields runs and snapshots added.",
		Example: "  mayfly env show swift-otter\n  mayfly env show --json swift-otter | jq .runs[-1].exit_code",
		Args:    arguments(1, 1, "ENV"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		ctx := c.Context()
		e, err := a.environment(ctx, args[0])
		if err != nil {
			return err
		}
		d := environmentDetail{Environment: e, Runs: []mayfly.Run{}, Snapshots: []mayfly.Snapshot{}}
		if runs, err := a.svc().Runs(ctx, mayfly.RunFilter{Environment: e.ID}); err != nil {
			return err
		} else if runs != nil {
			d.Runs = runs
		}
		if snapshots, err := a.svc().Snapshots(ctx, e.ID); err != nil {
			return err
		} else if snapshots != nil {
			d.Snapshots = snapshots
		}
		if *asJSON {
			return printJSON(d)
		}
		return showEnvironment(d)
	}
	return c
}

// serviceText says how a service is, and why.
func serviceText(s mayfly.ServiceStatus) string {
	text := s.Name + ": " + string(s.State)
	if s.Reason != "" {
		text += ": " + s.Reason
	}
	if s.Spare > 0 {
		text += fmt.Sprintf(", a spare of snapshot %d", s.Spare)
	}
	return text
}

func showEnvironment(d environmentDetail) error {
	line := func(name, value string) {
		if value != "" {
			fmt.Printf("%-10s %s\n", name, terminal.Safe(value))
		}
	}
	e := d.Environment
	line("name", e.Name)
	line("id", e.ID)
	phase := string(e.Phase)
	if e.Reason != "" {
		phase += ": " + e.Reason
	}
	line("phase", phase)
	line("owner", e.Owner)
	line("labels", labelText(e.Labels))
	line("template", e.Template)
	line("source", e.Source)
	line("commit", e.Commit)
	if e.From != nil {
		line("fork of", e.From.Environment+"@"+e.From.Snapshot)
	}
	line("isolation", string(e.Isolation))
	line("limits", limitText(e.Limits))
	for _, s := range e.Services {
		line("service", serviceText(s))
	}
	line("created", stamp(e.CreatedAt))
	line("expires", stamp(e.ExpiresAt)+" ("+lifeLeft(e)+")")
	line("idle", activity(e))
	line("deleted", stamp(e.DeletedAt))
	if len(d.Runs) > 0 {
		fmt.Println()
		var rows [][]string
		for _, r := range d.Runs {
			rows = append(rows, []string{r.ID, string(r.Kind), runOutcome(r), duration(r), shorten(shellWords(r.Command), 32)})
		}
		if err := table(os.Stdout, "RUN\tKIND\tOUTCOME\tTIME\tCOMMAND", rows); err != nil {
			return err
		}
	}
	if len(d.Snapshots) > 0 {
		fmt.Println()
		return snapshotTable(d.Snapshots)
	}
	return nil
}

func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.Local().Format("2006-01-02 15:04:05 MST")
}

func limitText(l mayfly.Limits) string {
	var parts []string
	if l.CPU > 0 {
		parts = append(parts, fmt.Sprintf("cpu %g", l.CPU))
	}
	if l.Memory > 0 {
		parts = append(parts, "memory "+bytesText(l.Memory))
	}
	if l.PIDs > 0 {
		parts = append(parts, fmt.Sprintf("pids %d", l.PIDs))
	}
	if l.Disk > 0 {
		parts = append(parts, "disk "+bytesText(l.Disk))
	}
	return strings.Join(parts, ", ")
}

func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

func duration(r mayfly.Run) string {
	switch {
	case r.StartedAt.IsZero():
		return ""
	case r.EndedAt.IsZero():
		return ago(r.StartedAt)
	}
	return span(r.EndedAt.Sub(r.StartedAt))
}

// environmentChange makes the commands that do one thing to environments.
func (a *app) environmentChange(use, short, long, example, done string, do func(context.Context, string) (mayfly.Environment, error)) *cobra.Command {
	c := &cobra.Command{
		Use: use, Short: short, Long: long, Example: example,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usage(c, "ENV is missing")
			}
			return nil
		},
		ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		var changed []mayfly.Environment
		for _, ref := range args {
			e, err := do(c.Context(), ref)
			if err != nil {
				return a.nearest(c.Context(), ref, err)
			}
			changed = append(changed, e)
			if !*asJSON {
				fmt.Printf("%s %s\n", terminal.Safe(e.Name), done)
			}
		}
		if *asJSON {
			return printList(changed)
		}
		return nil
	}
	return c
}

func (a *app) envPauseCommand() *cobra.Command {
	return a.environmentChange("pause ENV...", "Freeze every process of environments",
		"Freeze every process of environments. They keep their memory and use no CPU.\nTheir time to live goes on.",
		"  mayfly env pause swift-otter", "paused",
		func(ctx context.Context, ref string) (mayfly.Environment, error) {
			return a.svc().PauseEnvironment(ctx, ref)
		})
}

func (a *app) envResumeCommand() *cobra.Command {
	return a.environmentChange("resume ENV...", "Let paused environments go on",
		"Let paused environments go on.",
		"  mayfly env resume swift-otter", "resumed",
		func(ctx context.Context, ref string) (mayfly.Environment, error) {
			return a.svc().ResumeEnvironment(ctx, ref)
		})
}

func (a *app) envDeleteCommand() *cobra.Command {
	c := a.environmentChange("delete ENV...", "Delete environments and everything in them",
		"Delete environments: their processes, files, snapshots and logs. Returns when\nall of it is gone. Deleting a deleted environment is not an error.",
		"  mayfly env delete swift-otter\n  mayfly env list --json --label pr=7 | jq -r '.[].id' | xargs mayfly env delete", "deleted",
		func(ctx context.Context, ref string) (mayfly.Environment, error) {
			return a.svc().DeleteEnvironment(ctx, ref)
		})
	c.Aliases = []string{"rm"}
	return c
}

func (a *app) envExtendCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "extend ENV DURATION",
		Short:   "Move the end of an environment's life",
		Long:    "Move the end of an environment's life to DURATION from now, at most 30 days.\nWith --json: the Environment object.",
		Example: "  mayfly env extend swift-otter 8h\n  mayfly env extend swift-otter 7d",
		Args:    arguments(2, 2, "ENV", "DURATION"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		var ttl ttlFlag
		if err := ttl.Set(args[1]); err != nil {
			return err
		}
		e, err := a.svc().ExtendEnvironment(c.Context(), args[0], ttl.d)
		if err != nil {
			return a.nearest(c.Context(), args[0], err)
		}
		if *asJSON {
			return printJSON(e)
		}
		_, err = fmt.Printf("%s expires %s\n", terminal.Safe(e.Name), stamp(e.ExpiresAt))
		return err
	}
	return c
}
