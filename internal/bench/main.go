// Command bench measures what mayfly costs, each thing beside a baseline that
// is measured in the same run, turn by turn. It prints a table and writes the
// results as JSON.
//
// It starts a server of its own on a state directory of its own, drives it
// through the public client and the command line, and removes it at the end.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
)

// sizes are how much is measured.
type sizes struct {
	rounds   int // of cheap things
	few      int // of things that take a second
	burst    int
	small    int // files
	large    int // files
	idle     int // environments
	baseIdle int // bubblewraps
	database int // MB
	huge     int // MB of a second database; 0: none
	clones   int // of the database, at once
	seconds  int // of pgbench
}

var (
	full = sizes{rounds: 100, few: 7, burst: 100, small: 10_000, large: 200_000, idle: 1000, baseIdle: 50,
		database: 1024, huge: 5 * 1024, clones: 15, seconds: 5}
	quick = sizes{rounds: 5, few: 2, burst: 8, small: 300, large: 1500, idle: 10, baseIdle: 5,
		database: 64, clones: 3, seconds: 2}
)

// bench is one run of the program.
type bench struct {
	*subject
	sizes
	out     *os.File
	results []Result
}

func (b *bench) report(r Result) {
	b.results = append(b.results, r)
	writeRow(b.out, r)
}

// sections in the order of the table.
var sections = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"start", (*bench).start},
	{"run", (*bench).wholeProcess},
	{"burst", (*bench).bursts},
	{"volume", (*bench).volumes},
	{"files", (*bench).fileWork},
	{"idle", (*bench).idleEnvironments},
	{"gateway", (*bench).gateway},
	{"replay", (*bench).replays},
	{"database", (*bench).databases},
}

func main() {
	output := flag.String("o", "", "file for the results as JSON")
	bin := flag.String("bin", "bin", "directory of mayfly and mayfly-guest")
	only := flag.String("only", "", "measure only the sections that match: start, run, burst, volume, files, idle, gateway, replay, database")
	small := flag.Bool("quick", false, "measure little, to see that it works")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s := full
	if *small {
		s = quick
	}
	if err := run(ctx, *bin, *only, *output, s); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, bin, only, output string, s sizes) (err error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return fmt.Errorf("-only: %w", err)
	}
	if os.Geteuid() != 0 {
		return errors.New("environments need root: run it with sudo")
	}
	subject, err := newSubject(ctx, bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, subject.close()) }()
	b := &bench{subject: subject, sizes: s, out: os.Stdout}
	writeHeader(b.out)
	for _, section := range sections {
		if !match.MatchString(section.name) {
			continue
		}
		if err := section.run(b, ctx); err != nil {
			return fmt.Errorf("%s: %w", section.name, err)
		}
	}
	if output != "" {
		return writeJSON(output, b.results)
	}
	return nil
}
