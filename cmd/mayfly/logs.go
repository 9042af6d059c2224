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
text, or data in base64 where it is not UTF-8.`,
		Example: "  mayfly logs swift-otter\n  mayfly logs -f run-06x9qk2n4c8wz3vy",
		Args:    arguments(1, 1, "ENV or RUN"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	follow := c.Flags().BoolP("follow", "f", false, "go on until the run has ended")
	c.RunE = func(c *cobra.Command, args []string) error {
		ctx := c.Context()
		r, err := a.runOf(ctx, args[0])
		if err != nil {
			return err
		}
		var att mayfly.Attachment
		if *follow {
			att, err = a.attachLasting(ctx, r.ID)
		} else {
			att, err = a.svc().AttachRun(ctx, r.ID, false)
		}
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
