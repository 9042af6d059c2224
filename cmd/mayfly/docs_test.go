package main

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"mayfly.dev/mayfly"
)

func TestReferenceIsThatOfTheProgram(t *testing.T) {
	t.Setenv("MAYFLY_STATE", "")
	a := newApp()
	defer a.close()
	var b strings.Builder
	if err := writeReference(&b, a.rootCommand()); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile("../../docs/cli.md")
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != b.String() {
		t.Error("docs/cli.md is not what mayfly docs prints; renew it: go run ./cmd/mayfly docs > docs/cli.md")
	}
}

// walk calls do for every command that a user sees.
func walk(c *cobra.Command, do func(*cobra.Command)) {
	do(c)
	for _, sub := range c.Commands() {
		if sub.IsAvailableCommand() && sub.Name() != "help" && sub.Name() != "completion" {
			walk(sub, do)
		}
	}
}

func TestEveryCommandExplainsItself(t *testing.T) {
	a := newApp()
	defer a.close()
	walk(a.rootCommand(), func(c *cobra.Command) {
		if c.Long == "" || c.Short == "" || c.Example == "" {
			t.Errorf("%s lacks a short or long text or an example", c.CommandPath())
		}
		for line := range strings.Lines(c.Long + "\n" + c.Example) {
			if len([]rune(strings.TrimRight(line, "\n"))) > 80 {
				t.Errorf("%s: over 80 columns: %s", c.CommandPath(), line)
			}
		}
		c.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s: --%s has no description", c.CommandPath(), f.Name)
			}
		})
	})
}

// TestReadsSpeakJSON holds every command that reads to a flag --json.
func TestReadsSpeakJSON(t *testing.T) {
	a := newApp()
	defer a.close()
	other := map[string]bool{"mayfly": true, "env": true, "snapshot": true, "template": true, "model": true, "provider": true, "serve": true, "shell": true}
	walk(a.rootCommand(), func(c *cobra.Command) {
		if !other[c.Name()] && c.Flags().Lookup("json") == nil {
			t.Errorf("%s has no --json", c.CommandPath())
		}
	})
}

func TestErrorsDocumentHasEveryKind(t *testing.T) {
	b, err := os.ReadFile("../../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(line, "| `") {
			rows++
			if n := strings.Count(line, " | "); n != 4 {
				t.Errorf("%d columns, want 5 in %s", n+1, line)
			}
		}
	}
	if rows != len(mayfly.Kinds()) {
		t.Errorf("docs/errors.md has %d kinds, want %d", rows, len(mayfly.Kinds()))
	}
	help := exitStatuses()
	for _, k := range mayfly.Kinds() {
		want := fmt.Sprintf("| `%s` | %d | %d | ", k, k.HTTPStatus(), k.ExitStatus())
		if !strings.Contains(string(b), want) {
			t.Errorf("docs/errors.md lacks %q", want)
		}
		if kindMeaning[k] == "" || !strings.Contains(help, fmt.Sprintf("%3d  %s (%s)", k.ExitStatus(), kindMeaning[k], k)) {
			t.Errorf("the help lacks the kind %s", k)
		}
	}
}
