package main

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"syscall"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/diff"
)

func (a *app) diffCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "diff ENV|RUN",
		Short: "Show what changed in an environment",
		Long: `Show what changed in an environment's workspace since it was made: a patch in
git's format, binary files and modes included. --from and --to name snapshots
to compare instead of the beginning and the state now; --step N shows what one
step of a run did. On a terminal it is coloured, and control characters in it
are made visible; into a pipe it is exact. With --json: a list of Change
objects.

--rows compares the databases of the two states instead: the rows of each table
that were inserted, deleted and updated, the schema, sequences and large
objects. Both states are started in sandboxes of their own for it, so that what
runs in the environment is not disturbed. With --sql forward it prints SQL that
makes the second state of the first, with --sql reverse SQL that takes the
change back; each is one transaction that changes nothing unless the database
is in the state that it is for. Values of columns that the manifest lists under
redact are hidden. With --json: an object with tables and their rows, schema,
sequences and large_objects (docs/services.md).`,
		Example: `  mayfly diff swift-otter
  mayfly diff swift-otter --stat
  mayfly diff swift-otter --from 1 --to 2
  mayfly diff swift-otter --all
  mayfly diff run-06x9qk2n4c8wz3vy --step 3
  mayfly diff swift-otter > change.patch
  mayfly diff swift-otter --rows
  mayfly diff run-06x9qk2n4c8wz3vy --rows --step 3 --json
  mayfly diff swift-otter --rows --sql reverse > undo.sql`,
		Args: arguments(1, 1, "ENV or RUN"), ValidArgsFunction: a.completeEnvironment,
	}
	q := mayfly.DiffRequest{Format: "patch"}
	asJSON := addJSON(c)
	stat := c.Flags().Bool("stat", false, "count changed lines by file instead")
	all := c.Flags().Bool("all", false, "the whole file system instead of the workspace")
	c.Flags().StringVar(&q.From, "from", "", "from this `SNAPSHOT`")
	c.Flags().StringVar(&q.To, "to", "", "to this `SNAPSHOT`")
	rows := c.Flags().Bool("rows", false, "the rows of the databases instead of files")
	script := c.Flags().String("sql", "", "with --rows: a script in this `direction`, forward or reverse")
	var step stepFlag
	step.add(c, "what step `N` of the run changed")
	c.Flags().StringVar(&q.Path, "path", "", "`directory` to compare (default /workspace)")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := errors.Join(exclusive(c, "all", "path"), exclusive(c, "stat", "json"), exclusive(c, "step", "from"), exclusive(c, "step", "to"),
			exclusive(c, "rows", "all"), exclusive(c, "rows", "path"), exclusive(c, "rows", "stat"), exclusive(c, "sql", "json")); err != nil {
			return err
		}
		if c.Flags().Changed("sql") && !*rows {
			return usage(c, "--sql goes with --rows")
		}
		if c.Flags().Changed("sql") && *script != "forward" && *script != "reverse" {
			return usage(c, "bad --sql %q: use forward or reverse", *script)
		}
		q.Environment = args[0]
		if step.given() {
			before, after, env, err := step.around(c.Context(), a, args[0])
			if err != nil {
				return err
			}
			q.Environment, q.From, q.To = env, before.ID, after.ID
		}
		switch {
		case *asJSON:
			q.Format = "json"
		case *stat:
			q.Format = "stat"
		}
		if *all {
			q.Path = "/"
		}
		diff := func() (io.ReadCloser, error) { return a.svc().Diff(c.Context(), q) }
		if *rows {
			r := mayfly.RowsRequest{Environment: q.Environment, From: q.From, To: q.To, Format: cmp.Or(*script, "text")}
			if *asJSON {
				r.Format = "json"
			}
			diff = func() (io.ReadCloser, error) { return a.svc().DiffRows(c.Context(), r) }
			q.Format = r.Format
		}
		body, err := diff()
		if err != nil {
			return a.nearest(c.Context(), args[0], err)
		}
		defer body.Close()
		err = writeDiff(os.Stdout, body, q.Format)
		if errors.Is(err, syscall.EPIPE) {
			return statusError(128 + int(syscall.SIGPIPE))
		}
		return err
	}
	return c
}

func writeDiff(out *os.File, body io.Reader, format string) error {
	var w io.Writer = out
	if onTerminal(out) {
		safe := diff.NewSafeWriter(out)
		defer safe.Flush()
		w = safe
		if format == "patch" && os.Getenv("NO_COLOR") == "" {
			painter := &patchPainter{text: safe, terminal: out}
			defer painter.end()
			w = painter
		}
	}
	_, err := io.Copy(w, body)
	return err
}

// patchPainter colours the lines of a patch. The lines go through a safe
// writer, the colours straight to the terminal.
type patchPainter struct {
	text     *diff.SafeWriter
	terminal io.Writer
	line     []byte // the beginning of a line, until its colour is known
	body     bool   // in a hunk, where +++ and --- are content
	inLine   bool
}

const reset = "\x1b[0m"

// colourHead is how much of a line must be seen to know its colour.
const colourHead = len("diff --git ")

func (p *patchPainter) Write(b []byte) (int, error) {
	n := len(b)
	for len(b) > 0 {
		part, rest, ended := bytes.Cut(b, []byte("\n"))
		b = rest
		if !p.inLine {
			p.line = append(p.line, part...)
			if !ended && len(p.line) < colourHead {
				return n, nil
			}
			part, p.line, p.inLine = p.line, nil, true
			io.WriteString(p.terminal, p.colour(part))
		}
		if _, err := p.text.Write(part); err != nil {
			return 0, err
		}
		if ended {
			if err := p.endLine(); err != nil {
				return 0, err
			}
		}
	}
	return n, nil
}

func (p *patchPainter) endLine() error {
	p.inLine = false
	if err := p.text.Flush(); err != nil {
		return err
	}
	_, err := io.WriteString(p.terminal, reset+"\n")
	return err
}

// end finishes a last line without a newline.
func (p *patchPainter) end() {
	if len(p.line) > 0 {
		io.WriteString(p.terminal, p.colour(p.line))
		p.text.Write(p.line)
		p.line, p.inLine = nil, true
	}
	if p.inLine {
		p.text.Flush()
		io.WriteString(p.terminal, reset)
		p.inLine = false
	}
}

func (p *patchPainter) colour(line []byte) string {
	switch {
	case bytes.HasPrefix(line, []byte("diff --git ")):
		p.body = false
		return "\x1b[1m"
	case bytes.HasPrefix(line, []byte("@@ ")):
		p.body = true
		return "\x1b[36m"
	case !p.body:
		return "\x1b[1m"
	case bytes.HasPrefix(line, []byte("+")):
		return "\x1b[32m"
	case bytes.HasPrefix(line, []byte("-")):
		return "\x1b[31m"
	}
	return ""
}
