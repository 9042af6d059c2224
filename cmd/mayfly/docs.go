package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// docsCommand prints docs/cli.md.
func docsCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use:    "docs",
		Short:  "Print the reference of the command line as Markdown",
		Hidden: true,
		Args:   arguments(0, 0),
		RunE: func(*cobra.Command, []string) error {
			return writeReference(os.Stdout, root)
		},
	}
}

func writeReference(w io.Writer, root *cobra.Command) error {
	root.InitDefaultHelpCmd()
	var b strings.Builder
	b.WriteString("# The command line\n\nPrinted by `mayfly docs`; a test holds it to the program.\n")
	writeCommand(&b, root)
	_, err := io.WriteString(w, b.String())
	return err
}

func writeCommand(b *strings.Builder, c *cobra.Command) {
	fmt.Fprintf(b, "\n## %s\n\n%s.\n\n```\n%s\n```\n\n", c.CommandPath(), c.Short, c.CommandPath()+strings.TrimPrefix(c.Use, c.Name()))
	writeLong(b, c.Long)
	if c.Example != "" {
		fmt.Fprintf(b, "\nExamples:\n\n```\n%s\n```\n", unindent(c.Example))
	}
	var flags strings.Builder
	c.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		value, text := pflag.UnquoteUsage(f)
		if value != "" {
			name += " " + value
		}
		fmt.Fprintf(&flags, "| `%s` | %s |\n", name, text)
	})
	if flags.Len() > 0 {
		fmt.Fprintf(b, "\n| flag | |\n|---|---|\n%s", flags.String())
	}
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" && sub.Name() != "completion" {
			writeCommand(b, sub)
		}
	}
}

// writeLong writes paragraphs, and tables of exit statuses as code.
func writeLong(b *strings.Builder, long string) {
	code := false
	for line := range strings.Lines(long) {
		if table := strings.HasPrefix(line, "  "); table != code {
			code = table
			if code {
				b.WriteString("\n")
			}
			b.WriteString("```\n")
			if !code {
				b.WriteString("\n")
			}
		}
		b.WriteString(line)
	}
	if !strings.HasSuffix(long, "\n") {
		b.WriteString("\n")
	}
}

func unindent(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}
