package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
)

func (a *app) logsCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "logs ENV|RUN",
		Short: "Print what a run wrote",
		Long: `Print what a run wrote, or the last run of an environment: its standard output
to standard output, its standard error to standard error. With --json: one
object per line with the fields time, stream (stdout, stderr or notice), and
text, or data in base64 where it is not UTF-8.

With --service: what the last three processes of a service of ENV wrote, from
the oldest on.`,
		Example: "  mayfly logs swift-otter\n  mayfly logs -f run-06x9qk2n4c8wz3vy\n  mayfly logs swift-otter --service db",
		Args:    arguments(1, 1, "ENV or RUN"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	follow := c.Flags().BoolP("follow", "f", false, "go on until the run, or with --service the environment, has ended")
	service := c.Flags().String("service", "", "of this service, by its `NAME` in mayfly.yaml")
	c.RunE = func(c *cobra.Command, args []string) error {
		att, err := a.openLogs(c.Context(), args[0], *service, *follow)
		if err != nil {
			return err
		}
		defer att.Close()
		if *asJSON {
			return printOutputJSON(att, os.Stdout)
		}
		stdout, finishOut := outputWriter(os.Stdout)
		defer finishOut()
		stderr, finishErr := outputWriter(os.Stderr)
		defer finishErr()
		return copyOutput(att, stdout, stderr)
	}
	return c
}

// openLogs attaches to a run, or to a service of an environment.
func (a *app) openLogs(ctx context.Context, ref, service string, follow bool) (mayfly.Attachment, error) {
	if service != "" {
		e, err := a.environment(ctx, ref)
		if err != nil {
			return nil, err
		}
		return a.svc().AttachService(ctx, e.ID, service, follow)
	}
	r, err := a.runOf(ctx, ref)
	if err != nil {
		return nil, err
	}
	if follow {
		return a.attachLasting(ctx, r.ID)
	}
	return a.svc().AttachRun(ctx, r.ID, false)
}

// runOf finds a run by its id, or the last agent's run of an environment; if
// there was none, the last of any kind.
func (a *app) runOf(ctx context.Context, ref string) (mayfly.Run, error) {
	r, err := a.svc().Run(ctx, ref)
	if mayfly.KindOf(err) != mayfly.NotFound {
		return r, err
	}
	runs, err := a.svc().Runs(ctx, mayfly.RunFilter{Environment: ref})
	if err != nil {
		return r, a.nearest(ctx, ref, err)
	}
	if len(runs) == 0 {
		return r, mayfly.Errorf(mayfly.NotFound, "nothing has run in %s", ref)
	}
	last := runs[len(runs)-1]
	for _, r := range runs {
		if r.Kind == mayfly.AgentRun {
			last = r
		}
	}
	return last, nil
}

// outputRecord is a line of logs --json.
type outputRecord struct {
	Time   time.Time `json:"time"`
	Stream string    `json:"stream"`
	Text   string    `json:"text,omitempty"`
	Data   []byte    `json:"data,omitempty"`
}

var streamNames = map[mayfly.Stream]string{mayfly.Stdout: "stdout", mayfly.Stderr: "stderr", mayfly.Notice: "notice"}

func printOutputJSON(att mayfly.Attachment, w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	for {
		o, err := att.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		rec := outputRecord{Time: o.Time, Stream: streamNames[o.Stream]}
		if utf8.Valid(o.Data) {
			rec.Text = string(o.Data)
		} else {
			rec.Data = o.Data
		}
		if err := e.Encode(rec); err != nil {
			return err
		}
	}
}
