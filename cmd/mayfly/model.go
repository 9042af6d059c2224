package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/terminal"
)

func (a *app) modelCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "model",
		Aliases: []string{"models"},
		Short:   "Keep and compare models and how they are asked",
		Long: `The model registry holds what decides a model's answers: provider, model id,
parameters, system prompt, prompt template and tool set, under a name. Entries
never change; another setting is another version. How recorded runs went is
their baseline. MODEL is NAME, for the newest version, or NAME@VERSION; model:
in mayfly.yaml says which one the runs of a repository are meant to use.`,
		Example: "  mayfly model add reviewer --run swift-otter\n  mayfly model compare reviewer@1 reviewer@2",
		Args:    cobra.ArbitraryArgs,
		RunE:    group,
	}
	c.AddCommand(a.modelListCommand(), a.modelShowCommand(), a.modelAddCommand(), a.modelCompareCommand())
	return c
}

func modelName(m mayfly.Model) string { return m.Name + "@" + strconv.Itoa(m.Version) }

func (a *app) modelListCommand() *cobra.Command {
	c := &cobra.Command{
		Use: "list", Aliases: []string{"ls"},
		Short:   "List the model registry",
		Long:    "List the entries of the model registry. With --json: a list of Model objects.",
		Example: "  mayfly model list",
		Args:    arguments(0, 0),
	}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, _ []string) error {
		list, err := a.svc().Models(c.Context())
		if err != nil {
			return err
		}
		if *asJSON {
			return printList(list)
		}
		var rows [][]string
		for _, m := range list {
			rows = append(rows, []string{
				modelName(m), m.Provider, m.ID, ago(m.CreatedAt), strconv.Itoa(m.Baseline.Runs), percent(m.Baseline),
			})
		}
		return table(os.Stdout, "MODEL\tPROVIDER\tID\tAGE\tRUNS\tSUCCESS", rows)
	}
	return c
}

func percent(b mayfly.ModelBaseline) string {
	if b.Runs == 0 {
		return ""
	}
	return fmt.Sprintf("%.0f%%", 100*b.Success)
}

func (a *app) modelShowCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "show MODEL",
		Short:   "Show an entry of the model registry and its baseline",
		Long:    "Show an entry of the model registry and how its recorded runs went. With --json:\nthe Model object.",
		Example: "  mayfly model show reviewer\n  mayfly model show reviewer@1 --json",
		Args:    arguments(1, 1, "MODEL"),
	}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		m, err := a.svc().Model(c.Context(), args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(m)
		}
		return table(os.Stdout, "MODEL\t"+terminal.Safe(modelName(m)), modelRows(m))
	}
	return c
}

// modelRows lists the settings and the baseline of an entry, one a row.
func modelRows(m mayfly.Model) [][]string {
	p, b := m.Parameters, m.Baseline
	rows := [][]string{
		{"digest", m.Digest}, {"provider", m.Provider}, {"id", m.ID},
		{"temperature", optional(p.Temperature)}, {"top_p", optional(p.TopP)}, {"top_k", optional(p.TopK)},
		{"max_tokens", optional(p.MaxTokens)}, {"seed", optional(p.Seed)}, {"reasoning", p.Reasoning},
		{"system prompt", m.System}, {"prompt template", m.Template}, {"tool set", m.Tools},
		{"runs", strconv.Itoa(b.Runs)},
	}
	if b.Runs == 0 {
		return rows
	}
	cost := ""
	if b.Cost > 0 {
		cost = fmt.Sprintf("$%.4f", b.Cost/1e6)
	}
	return append(rows, [][]string{
		{"success", percent(b)}, {"steps", fmt.Sprintf("%.1f", b.Steps)},
		{"input tokens", fmt.Sprintf("%.0f", b.Input)}, {"output tokens", fmt.Sprintf("%.0f", b.Output)},
		{"cost", cost}, {"duration", span(b.Duration)},
	}...)
}

func optional[T int64 | float64](v *T) string {
	if v == nil {
		return ""
	}
	return fmt.Sprint(*v)
}

func (a *app) modelCompareCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "compare MODEL MODEL",
		Short:   "Compare two entries of the model registry",
		Long:    "Compare the settings of two entries of the model registry, and how their\nrecorded runs went. With --json: a list of both Model objects.",
		Example: "  mayfly model compare reviewer@1 reviewer@2",
		Args:    arguments(2, 2, "MODEL", "the second MODEL"),
	}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		var both [2]mayfly.Model
		for i := range both {
			var err error
			if both[i], err = a.svc().Model(c.Context(), args[i]); err != nil {
				return err
			}
		}
		if *asJSON {
			return printJSON(both)
		}
		rows := modelRows(both[0])
		right := map[string]string{}
		for _, r := range modelRows(both[1]) {
			right[r[0]] = r[1]
		}
		for i, r := range rows {
			mark := ""
			if r[1] != right[r[0]] {
				mark = "differs"
			}
			rows[i] = []string{r[0], r[1], right[r[0]], mark}
			delete(right, r[0])
		}
		for _, r := range modelRows(both[1]) {
			if v, ok := right[r[0]]; ok {
				rows = append(rows, []string{r[0], "", v, "differs"})
			}
		}
		return table(os.Stdout, "\t"+modelName(both[0])+"\t"+modelName(both[1])+"\t", rows)
	}
	return c
}

func (a *app) modelAddCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a version to the model registry",
		Long: `Add a version to the model registry: with --run, what the first step of that run
asked, as far as other flags do not say otherwise. An entry with the same
settings is not added twice. Prints NAME@VERSION; with --json the Model object.`,
		Example: `  mayfly model add reviewer --run swift-otter
  mayfly model add reviewer --run swift-otter --temperature 0
  mayfly model add writer --provider openai --id gpt-5 --seed 7`,
		Args: arguments(1, 1, "NAME"),
	}
	var q mayfly.AddModel
	asJSON := addJSON(c)
	f := c.Flags()
	f.StringVar(&q.Run, "run", "", "take the settings of this `RUN`, or of the last run of an environment")
	f.StringVar(&q.Provider, "provider", "", "`name` of the upstream, such as anthropic")
	f.StringVar(&q.ID, "id", "", "the model's `id`, as the provider calls it")
	f.StringVar(&q.Parameters.Reasoning, "reasoning", "", "`effort` or budget, as the provider takes it")
	template := f.String("template", "", "`file` that prompts are made from; its digest is kept")
	numbers := map[string]func(string) error{
		"temperature": float(&q.Parameters.Temperature), "top-p": float(&q.Parameters.TopP),
		"top-k": whole(&q.Parameters.TopK), "max-tokens": whole(&q.Parameters.MaxTokens), "seed": whole(&q.Parameters.Seed),
	}
	for _, name := range []string{"temperature", "top-p", "top-k", "max-tokens", "seed"} {
		f.Func(name, "`number` that is asked with", numbers[name])
	}
	c.RunE = func(c *cobra.Command, args []string) error {
		q.Name = args[0]
		if err := a.completeModel(c.Context(), &q, *template); err != nil {
			return err
		}
		m, err := a.svc().AddModel(c.Context(), q)
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(m)
		}
		fmt.Println(terminal.Safe(modelName(m)))
		return nil
	}
	return c
}

// completeModel finds the run that is meant, and reads the template.
func (a *app) completeModel(ctx context.Context, q *mayfly.AddModel, template string) error {
	if q.Run != "" {
		r, err := a.runOf(ctx, q.Run)
		if err != nil {
			return err
		}
		q.Run = r.ID
	}
	if template == "" {
		return nil
	}
	f, err := os.Open(template)
	if err != nil {
		return mayfly.Errorf(mayfly.Invalid, "the prompt template: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return mayfly.Errorf(mayfly.Invalid, "the prompt template: %w", err)
	}
	q.Template = "sha256:" + hex.EncodeToString(sum.Sum(nil))
	return nil
}

func float(to **float64) func(string) error {
	return func(s string) error {
		v, err := strconv.ParseFloat(s, 64)
		if err == nil && !(v >= 0 && v <= 1000) {
			err = strconv.ErrRange
		}
		if err != nil {
			return mayfly.Errorf(mayfly.Invalid, "bad number %q", s)
		}
		*to = &v
		return nil
	}
}

func whole(to **int64) func(string) error {
	return func(s string) error {
		v, err := strconv.ParseInt(s, 10, 64)
		if err != nil {
			return mayfly.Errorf(mayfly.Invalid, "bad whole number %q", s)
		}
		*to = &v
		return nil
	}
}
