package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/agreement"
	"mayfly.dev/mayfly/internal/terminal"
)

// maxRepeat bounds how often a command is repeated, abreast how many of the
// runs go on at once.
const (
	maxRepeat = 100
	abreast   = 16
)

// agreed is the output of run --repeat --json.
type agreed struct {
	Agree       bool                   `json:"agree"`
	Runs        []mayfly.Run           `json:"runs"`
	Differences []agreement.Difference `json:"differences"`
}

func checkRepeat(c *cobra.Command, f runFlags) error {
	if f.repeat < 2 || f.repeat > maxRepeat {
		return usage(c, "bad --repeat %d: use 2 to %d", f.repeat, maxRepeat)
	}
	for _, other := range []string{"detach", "interactive", "tty"} {
		if err := exclusive(c, "repeat", other); err != nil {
			return err
		}
	}
	return nil
}

// repeat runs a command in copies of one environment, and reports what they
// disagree about.
func (a *app) repeat(ctx context.Context, f runFlags, p *prepared, q mayfly.StartRun) error {
	outcomes := make([]agreement.Outcome, f.repeat)
	err := a.repeatAll(ctx, p, q, outcomes)
	if err == nil {
		err = a.whichFiles(ctx, outcomes)
	}
	if f.remove || err != nil {
		err = errors.Join(err, a.deleteAll(ctx, outcomes))
	}
	if err != nil {
		return err
	}
	report := agreed{Differences: agreement.Compare(outcomes)}
	report.Agree = len(report.Differences) == 0
	for _, o := range outcomes {
		report.Runs = append(report.Runs, o.Run)
	}
	if f.json {
		err = printJSON(report)
	} else {
		err = printAgreement(report)
	}
	if err != nil {
		return err
	}
	if !report.Agree {
		return statusError(mayfly.Diverged.ExitStatus())
	}
	return runStatus(report.Runs[0])
}

func (a *app) repeatAll(ctx context.Context, p *prepared, q mayfly.StartRun, outcomes []agreement.Outcome) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	start := func(i int) (r mayfly.Run, err error) {
		q, create := q, *q.Create
		if create.Name != "" {
			create.Name += "-" + strconv.Itoa(i+1)
		}
		q.Create, q.Attach, q.Remove = &create, false, false
		err = a.withTemplate(ctx, p, func() error {
			r, err = a.svc().StartRun(ctx, q)
			return err
		})
		return r, err
	}
	one := func(i int, r mayfly.Run) (err error) {
		outcomes[i].Run = r
		if r, err = a.waitOrKill(ctx, r); err != nil {
			return err
		}
		if outcomes[i], err = a.outcome(ctx, r); err != nil {
			return err
		}
		outcomes[i].Output, err = a.outputOf(ctx, r)
		return err
	}
	first, err := start(0) // alone: it brings the template
	if err != nil {
		return err
	}
	places := make(chan struct{}, abreast)
	errs := make([]error, len(outcomes))
	var wg sync.WaitGroup
	for i := range outcomes {
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			r := first
			if i > 0 {
				if r, errs[i] = start(i); errs[i] != nil {
					cancel()
					return
				}
			}
			if errs[i] = one(i, r); errs[i] != nil {
				cancel() // a report on some of them would mislead
			}
		})
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil && !errors.Is(err, context.Canceled) {
			return err
		}
	}
	return errors.Join(errs...)
}

// whichFiles finds out which files differ where trees do.
func (a *app) whichFiles(ctx context.Context, outcomes []agreement.Outcome) error {
	same := !slices.ContainsFunc(outcomes, func(o agreement.Outcome) bool { return o.Tree != outcomes[0].Tree })
	if same {
		return nil
	}
	for i, o := range outcomes {
		files, err := a.filesOf(ctx, o.Run, o.Run.Baseline)
		if err != nil {
			return err
		}
		outcomes[i].Files = files
	}
	return nil
}

func (a *app) deleteAll(ctx context.Context, outcomes []agreement.Outcome) error {
	ctx = context.WithoutCancel(ctx)
	errs := make([]error, len(outcomes))
	var wg sync.WaitGroup
	for i, o := range outcomes {
		if o.Run.Environment == "" {
			continue
		}
		wg.Go(func() { _, errs[i] = a.svc().DeleteEnvironment(ctx, o.Run.Environment) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func printAgreement(report agreed) error {
	if report.Agree {
		fmt.Printf("%s agree: exit status %d\n", plural(len(report.Runs), "run"), report.Runs[0].ExitCode)
		return nil
	}
	fmt.Printf("%s disagree about %s\n", plural(len(report.Runs), "run"), plural(len(report.Differences), "thing"))
	for _, d := range report.Differences {
		fmt.Println("  " + terminal.Safe(strings.TrimSpace(d.Kind+" "+d.Name)))
		for _, v := range d.Values {
			fmt.Printf("    %s: %s\n", runNumbers(v.Runs), terminal.Safe(cmp.Or(v.Value, "nothing")))
		}
	}
	fmt.Println()
	var rows [][]string
	for i, r := range report.Runs {
		rows = append(rows, []string{strconv.Itoa(i + 1), r.ID, r.Environment, runOutcome(r), duration(r)})
	}
	return table(os.Stdout, "NO\tRUN\tENVIRONMENT\tOUTCOME\tTOOK", rows)
}

// runNumbers writes a list of numbers with ranges: "runs 1-3, 5".
func runNumbers(runs []int) string {
	var parts []string
	for i := 0; i < len(runs); {
		j := i
		for j+1 < len(runs) && runs[j+1] == runs[j]+1 {
			j++
		}
		if part := strconv.Itoa(runs[i]); i == j {
			parts = append(parts, part)
		} else {
			parts = append(parts, part+"-"+strconv.Itoa(runs[j]))
		}
		i = j + 1
	}
	word := "runs "
	if len(runs) == 1 {
		word = "run "
	}
	return word + strings.Join(parts, ", ")
}
