package main

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/graph"
	"mayfly.dev/mayfly/internal/terminal"
)

func (a *app) graphCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "graph RUN",
		Short: "Show what an agent was told, decided and did",
		Long: `Show the decision graph of a run, or of the last run of an environment: prompts,
what the models answered, the actions of the agent and what came of them, step
by step, with the files that each step changed. It is drawn from what passed the
gateway, whatever the agent says about itself. With --json: the Graph object.`,
		Example: `  mayfly graph swift-otter
  mayfly graph run-06x9qk2n4c8wz3vy --json | jq '.steps[].usage'
  mayfly graph swift-otter --dot | dot -Tsvg > graph.svg`,
		Args: arguments(1, 1, "RUN"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	dot := c.Flags().Bool("dot", false, "print it for Graphviz")
	mermaid := c.Flags().Bool("mermaid", false, "print it for Mermaid")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := errors.Join(exclusive(c, "json", "dot", "mermaid")); err != nil {
			return err
		}
		g, err := a.graphOf(c, args[0])
		if err != nil {
			return err
		}
		switch {
		case *asJSON:
			return printJSON(g)
		case *dot:
			return piped(graph.DOT(os.Stdout, g))
		case *mermaid:
			return piped(graph.Mermaid(os.Stdout, g))
		}
		return piped(graph.Tree(os.Stdout, g, treeOptions()))
	}
	return c
}

func (a *app) graphOf(c *cobra.Command, ref string) (mayfly.Graph, error) {
	r, err := a.runOf(c.Context(), ref)
	if err != nil {
		return mayfly.Graph{}, err
	}
	return a.svc().Graph(c.Context(), r.ID)
}

func treeOptions() graph.TreeOptions {
	o := graph.TreeOptions{Color: onTerminal(os.Stdout) && os.Getenv("NO_COLOR") == ""}
	if onTerminal(os.Stdout) {
		_, cols := terminal.Size(os.Stdout)
		o.Width = int(cols)
	}
	return o
}

// piped takes nobody reading any more for what it is.
func piped(err error) error {
	if errors.Is(err, syscall.EPIPE) {
		return statusError(128 + int(syscall.SIGPIPE))
	}
	return err
}

// shownStep is the output of show --json: a step, and what of the graph
// belongs to it.
type shownStep struct {
	mayfly.Step
	Nodes []mayfly.Node `json:"nodes"`
	Edges []mayfly.Edge `json:"edges"`
}

func (a *app) showCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "show RUN STEP",
		Short: "Show one step of a run whole",
		Long: `Show one step of a run whole: the prompt, what the model thought and said, each
action with its result, files, processes, usage and times. With --json: the Step
object with its nodes and edges. --request and --answer print what passed the
gateway, redacted: the body, or with --json the Content object.`,
		Example: `  mayfly show swift-otter 3
  mayfly show run-06x9qk2n4c8wz3vy 3 --request | jq .messages`,
		Args: arguments(2, 2, "RUN", "STEP"), ValidArgsFunction: a.completeEnvironment,
	}
	asJSON := addJSON(c)
	request := c.Flags().Bool("request", false, "print the recorded request")
	answer := c.Flags().Bool("answer", false, "print the recorded answer")
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := exclusive(c, "request", "answer"); err != nil {
			return err
		}
		n, err := strconv.Atoi(args[1])
		if err != nil || n < 1 {
			return usage(c, "bad STEP %q: steps are numbered from 1", args[1])
		}
		switch {
		case *request:
			return a.printContent(c, args[0], n, *asJSON, func(x mayfly.Exchange) string { return x.Request })
		case *answer:
			return a.printContent(c, args[0], n, *asJSON, func(x mayfly.Exchange) string { return x.Answer })
		}
		g, err := a.graphOf(c, args[0])
		if err != nil {
			return err
		}
		if *asJSON {
			return printStep(g, n)
		}
		return piped(graph.StepText(os.Stdout, g, n, treeOptions()))
	}
	return c
}

func printStep(g mayfly.Graph, n int) error {
	s := shownStep{Nodes: []mayfly.Node{}, Edges: []mayfly.Edge{}}
	for _, step := range g.Steps {
		if step.Number == n {
			s.Step = step
		}
	}
	if s.Number == 0 {
		return noStep(g.Run, n)
	}
	of := map[string]bool{}
	for _, node := range g.Nodes {
		if node.Step == n {
			s.Nodes = append(s.Nodes, node)
			of[node.ID] = true
		}
	}
	for _, e := range g.Edges {
		if of[e.From] || of[e.To] {
			s.Edges = append(s.Edges, e)
		}
	}
	return printJSON(s)
}

func noStep(run string, n int) error {
	return mayfly.Errorf(mayfly.NotFound, "run %s has no step %d", run, n).Hint("list them with: mayfly graph %s", run)
}

// printContent prints what passed the gateway in the last exchange of a step.
func (a *app) printContent(c *cobra.Command, ref string, n int, asJSON bool, digest func(mayfly.Exchange) string) error {
	r, err := a.runOf(c.Context(), ref)
	if err != nil {
		return err
	}
	list, err := a.svc().Exchanges(c.Context(), r.ID)
	if err != nil {
		return err
	}
	found := ""
	for _, x := range list {
		if x.Step == n {
			found = digest(x)
		}
	}
	if found == "" {
		return noStep(r.ID, n)
	}
	body, err := a.svc().Content(c.Context(), found)
	if err != nil {
		return err
	}
	defer body.Close()
	if asJSON {
		_, err = io.Copy(os.Stdout, body)
		return piped(err)
	}
	var content mayfly.Content
	if err := json.NewDecoder(body).Decode(&content); err != nil {
		return mayfly.Errorf(mayfly.Internal, "the recorded content is not understood: %w", err)
	}
	text := content.Body
	if onTerminal(os.Stdout) {
		text = []byte(safeLines(string(text)))
	}
	_, err = os.Stdout.Write(text)
	return piped(err)
}

func (a *app) forgetCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "forget RUN",
		Short: "Destroy what redaction took out of a run's recording",
		Long: `Destroy the key under which the secrets and personal data of a run's recording
are kept, so that nobody can ever read them again. What is redacted stays: the
graph, and replays, in which marks stand in place of what was taken out. With
--json: the Run object.`,
		Example: "  mayfly forget run-06x9qk2n4c8wz3vy",
		Args:    arguments(1, 1, "RUN"),
	}
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		r, err := a.runOf(c.Context(), args[0])
		if err != nil {
			return err
		}
		if r, err = a.svc().ForgetExact(c.Context(), r.ID); err != nil {
			return err
		}
		if *asJSON {
			return printJSON(r)
		}
		return nil
	}
	return c
}
