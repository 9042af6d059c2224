package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/agreement"
	"mayfly.dev/mayfly/internal/terminal"
)

const replayLong = `Run an agent again as it ran, in a new environment that begins as the recorded
one did, with the answers of its models from the recording: nothing is asked
upstream. What the agent asks is compared with what it asked, and at the end its
actions, results, exit status and final tree. Prints "same", or where the two
went apart, with both sides, and exits with status 79. With --json: an object
with the fields same, upstream (calls that left), recorded and replayed (Run
objects) and divergences (Divergence objects).

RUN is a run, or an environment for its last one. With COMMAND, that is run
instead of the recorded command. --on-divergence says what to do where a request
is not the recorded one: stop ends the run, continue serves the recorded answer
all the same, live asks the real model from there on.`

// replayFlags are those of replay.
type replayFlags struct {
	replay mayfly.Replay
	at     string
	remove bool
	json   bool
}

func (a *app) replayCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "replay [flags] RUN [-- COMMAND [ARGUMENT...]]",
		Short: "Run an agent again with the recorded answers of its models",
		Long:  replayLong,
		Example: `  mayfly replay swift-otter
  mayfly replay run-06x9qk2n4c8wz3vy --on-divergence continue --json
  mayfly replay swift-otter --from-step 4 -- claude --continue -p "go on"`,
		ValidArgsFunction: a.completeEnvironment,
	}
	var f replayFlags
	flags := c.Flags()
	flags.BoolVar(&f.replay.Realtime, "realtime", false, "keep the recorded timing of answers")
	flags.StringVar(&f.at, "on-divergence", string(mayfly.StopOnDivergence), "`what` to do at a difference: stop, continue or live")
	flags.IntVar(&f.replay.FromStep, "from-step", 0, "begin with the files after step `N`, and leave out what came up to it")
	flags.BoolVar(&f.remove, "rm", false, "delete the new environment at the end")
	flags.BoolVar(&f.json, "json", false, "print JSON")
	c.RegisterFlagCompletionFunc("on-divergence", cobra.FixedCompletions([]string{"stop", "continue", "live"}, cobra.ShellCompDirectiveNoFileComp))
	c.RunE = func(c *cobra.Command, args []string) error {
		if len(args) == 0 {
			return usage(c, "RUN is missing")
		}
		if len(args) > 1 && c.ArgsLenAtDash() != 1 {
			return usage(c, "unexpected argument %q", args[1])
		}
		if f.replay.FromStep < 0 {
			return usage(c, "bad --from-step %d: steps are numbered from 1", f.replay.FromStep)
		}
		return a.replay(c.Context(), f, args[0], args[1:])
	}
	return c
}

// replayed is the output of replay --json.
type replayed struct {
	Same        bool                `json:"same"`
	Upstream    int                 `json:"upstream"`
	Recorded    mayfly.Run          `json:"recorded"`
	Replayed    mayfly.Run          `json:"replayed"`
	Divergences []mayfly.Divergence `json:"divergences"`
}

func (a *app) replay(ctx context.Context, f replayFlags, ref string, command []string) error {
	recorded, err := a.runOf(ctx, ref)
	if err != nil {
		return err
	}
	f.replay.Run, f.replay.OnDivergence = recorded.ID, mayfly.OnDivergence(f.at)
	r, err := a.startRun(ctx, mayfly.StartRun{Command: command, Replay: &f.replay})
	if err != nil {
		return err
	}
	if r, err = a.waitOrKill(ctx, r); err != nil {
		return err
	}
	report, err := a.compareReplay(ctx, recorded, r)
	if f.remove {
		if _, deleteErr := a.svc().DeleteEnvironment(context.WithoutCancel(ctx), r.Environment); err == nil {
			err = deleteErr
		}
	}
	if err != nil {
		return err
	}
	if f.json {
		err = printJSON(report)
	} else {
		printReplay(report)
	}
	if err == nil && !report.Same {
		err = statusError(mayfly.Diverged.ExitStatus())
	}
	return err
}

// waitOrKill waits for a run, which does not outlive this command.
func (a *app) waitOrKill(ctx context.Context, r mayfly.Run) (mayfly.Run, error) {
	ended, err := a.waitRun(ctx, r.ID)
	if ctx.Err() != nil {
		kill, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		a.svc().KillRun(kill, r.ID)
	}
	return ended, err
}

// compareReplay lists where a replay and its recording went apart.
func (a *app) compareReplay(ctx context.Context, recorded, replay mayfly.Run) (*replayed, error) {
	report := &replayed{Recorded: recorded, Replayed: replay, Divergences: []mayfly.Divergence{}}
	from := replay.Replay.FromStep
	exchanges, err := a.svc().Exchanges(ctx, replay.ID)
	if err != nil {
		return nil, err
	}
	for _, x := range exchanges {
		if !x.Replayed {
			report.Upstream++
		}
		if x.Divergence != nil {
			report.Divergences = append(report.Divergences, *x.Divergence)
		}
	}
	if stopped(replay) && len(report.Divergences) > 0 {
		return report, nil // it was ended for that; what it left says nothing more
	}
	ended, err := a.compareEnds(ctx, recorded, replay, from, len(report.Divergences) > 0)
	if err != nil {
		return nil, err
	}
	report.Divergences = append(report.Divergences, ended...)
	report.Same = len(report.Divergences) == 0
	return report, nil
}

func stopped(r mayfly.Run) bool {
	return r.Phase == mayfly.RunKilled && r.Replay.OnDivergence == mayfly.StopOnDivergence && r.Divergences > 0
}

// compareEnds compares what the agents did and what they left. Results of
// actions that agents have told their models have been compared with the
// requests, which know what differs in each run anyway; they are looked at
// again only when something diverged.
func (a *app) compareEnds(ctx context.Context, recorded, replay mayfly.Run, from int, results bool) ([]mayfly.Divergence, error) {
	was, err := a.outcome(ctx, recorded)
	if err != nil {
		return nil, err
	}
	is, err := a.outcome(ctx, replay)
	if err != nil {
		return nil, err
	}
	if from > 0 {
		was.Graph, is.Graph = after(was.Graph, from), after(is.Graph, 0)
	}
	if was.Tree == "" || is.Tree == "" {
		was.Tree, is.Tree = "", ""
		remark("one of the runs has no final snapshot: the trees are not compared")
	}
	if was.Tree != is.Tree {
		if err := a.compareFiles(ctx, &was, &is); err != nil {
			return nil, err
		}
	}
	var list []mayfly.Divergence
	for _, d := range agreement.Compare([]agreement.Outcome{was, is}) {
		if d.Kind == "result" && !results {
			continue
		}
		list = append(list, divergence(d))
	}
	return list, nil
}

// compareFiles finds out which files the runs left differently, while both
// environments are there.
func (a *app) compareFiles(ctx context.Context, was, is *agreement.Outcome) error {
	env, err := a.svc().Environment(ctx, is.Run.Environment)
	if err != nil || env.From == nil {
		return err
	}
	files, err := a.filesOf(ctx, was.Run, env.From.Snapshot)
	if mayfly.KindOf(err) == mayfly.Conflict { // it was deleted meanwhile
		return nil
	}
	if err != nil {
		return err
	}
	was.Files = files
	is.Files, err = a.filesOf(ctx, is.Run, is.Run.Baseline)
	return err
}

// after leaves out of a graph what came up to a step, and what the agent only
// remembers, and numbers the others from 1.
func after(g mayfly.Graph, step int) mayfly.Graph {
	g.Steps = slices.DeleteFunc(slices.Clone(g.Steps), func(s mayfly.Step) bool { return s.Number <= step })
	g.Nodes = slices.DeleteFunc(slices.Clone(g.Nodes), func(n mayfly.Node) bool { return n.Step <= step })
	for i := range g.Steps {
		g.Steps[i].Number -= step
	}
	for i := range g.Nodes {
		g.Nodes[i].Step -= step
	}
	return g
}

// kinds of divergences for those of disagreements.
var divergenceKinds = map[string]string{"status": "exit", "steps": "missing", "file": "tree"}

func divergence(d agreement.Difference) mayfly.Divergence {
	out := mayfly.Divergence{Kind: cmp.Or(divergenceKinds[d.Kind], d.Kind), Step: d.Step, Path: d.Name}
	if d.Kind == "steps" {
		out.Path = "number of steps"
	}
	for _, v := range d.Values {
		for _, run := range v.Runs {
			if run == 1 {
				out.Recorded = v.Value
			} else {
				out.Replayed = v.Value
			}
		}
	}
	return out
}

func printReplay(p *replayed) {
	if p.Same {
		fmt.Printf("same: %s, exit status %d, tree %s\n", plural(p.Replayed.Steps, "step"), p.Replayed.ExitCode, shortDigest(p.Replayed.Tree))
	} else {
		fmt.Printf("diverged: %s, %s\n", plural(p.Replayed.Steps, "step"), plural(len(p.Divergences), "difference"))
	}
	for _, d := range p.Divergences {
		where := d.Kind
		if d.Step > 0 {
			where = fmt.Sprintf("step %d: %s", d.Step, d.Kind)
		}
		fmt.Println("  " + terminal.Safe(strings.TrimSpace(where+" "+d.Path)))
		fmt.Println("    recorded  " + terminal.Safe(cmp.Or(d.Recorded, "nothing")))
		fmt.Println("    replayed  " + terminal.Safe(cmp.Or(d.Replayed, "nothing")))
	}
	fmt.Fprintf(os.Stderr, "mayfly: %s in %s, %s upstream\n", p.Replayed.ID, duration(p.Replayed), plural(p.Upstream, "call"))
}
