package main

import (
	"math"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/manifest"
)

// ttlFlag is a time to live within its bounds.
type ttlFlag struct{ d time.Duration }

func (f *ttlFlag) Set(s string) error {
	d, err := manifest.ParseDuration(s)
	if err != nil {
		return err
	}
	if err := mayfly.CheckTTL(d); err != nil {
		return err
	}
	f.d = d
	return nil
}

func (f *ttlFlag) Type() string { return "duration" }

func (f *ttlFlag) String() string {
	if f.d == 0 {
		return ""
	}
	return manifest.FormatDuration(f.d)
}

// durationFlag is a duration of more than zero.
type durationFlag struct{ d time.Duration }

func (f *durationFlag) Set(s string) error {
	d, err := manifest.ParseDuration(s)
	if err != nil {
		return err
	}
	if d <= 0 {
		return mayfly.Errorf(mayfly.Invalid, "bad duration %q: use something over 0, such as 90s or 2h", s)
	}
	f.d = d
	return nil
}

func (f *durationFlag) Type() string { return "duration" }

func (f *durationFlag) String() string {
	if f.d == 0 {
		return ""
	}
	return manifest.FormatDuration(f.d)
}

// sizeFlag is a number of bytes over zero.
type sizeFlag struct{ n int64 }

func (f *sizeFlag) Set(s string) error {
	n, err := manifest.ParseSize(s)
	if err != nil {
		return err
	}
	if n <= 0 {
		return mayfly.Errorf(mayfly.Invalid, "bad size %q: use something over 0, such as 512MiB or 4GiB", s)
	}
	f.n = n
	return nil
}

func (f *sizeFlag) Type() string { return "size" }

func (f *sizeFlag) String() string {
	if f.n == 0 {
		return ""
	}
	return manifest.FormatSize(f.n)
}

// isolationFlag is one that mayfly knows.
type isolationFlag struct{ i mayfly.Isolation }

func (f *isolationFlag) Set(s string) error {
	f.i = mayfly.Isolation(s)
	if f.i != mayfly.Native && f.i != mayfly.GVisor {
		return mayfly.Errorf(mayfly.Invalid, "unknown isolation %q: use native or gvisor", s)
	}
	return nil
}

func (f *isolationFlag) Type() string   { return "isolation" }
func (f *isolationFlag) String() string { return string(f.i) }

// environmentFlags say how to make an environment: run, env create and fork.
type environmentFlags struct {
	name      string
	labels    []string
	env       []string
	ttl       ttlFlag
	idle      durationFlag
	keep      bool
	isolation isolationFlag
	cpu       float64
	pids      int64
	memory    sizeFlag
	disk      sizeFlag
}

func (f *environmentFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.StringVar(&f.name, "name", "", "`name` of the environment; one is made up otherwise")
	flags.StringArrayVarP(&f.labels, "label", "l", nil, "`KEY=VALUE` to find the environment by; may be repeated")
	flags.StringArrayVarP(&f.env, "env", "e", nil, "set `NAME=VALUE`, or pass on the caller's NAME; may be repeated")
	flags.Var(&f.ttl, "ttl", "time to live, such as 90m, 8h or 7d; at most 30 days (default 1h)")
	flags.Var(&f.idle, "idle", "pause after this long without a process at work (default 15m)")
	flags.BoolVar(&f.keep, "keep", false, "at the end of its life, pause the environment instead of deleting it")
	flags.Var(&f.isolation, "isolation", "native (namespaces) or gvisor (a user-space kernel) (default native)")
	flags.Float64Var(&f.cpu, "cpu", 0, "`cores` that it may use")
	flags.Var(&f.memory, "memory", "memory that it may use, such as 2GiB")
	flags.Int64Var(&f.pids, "pids", 0, "processes and threads that it may have")
	flags.Var(&f.disk, "disk", "disk space that it may use, such as 10GiB")
	c.RegisterFlagCompletionFunc("isolation", cobra.FixedCompletions([]string{"native", "gvisor"}, cobra.ShellCompDirectiveNoFileComp))
}

// request is what the flags ask for.
func (f *environmentFlags) request(c *cobra.Command) (mayfly.CreateEnvironment, error) {
	r := mayfly.CreateEnvironment{
		Name: f.name, Isolation: f.isolation.i, TTL: f.ttl.d, IdleTimeout: f.idle.d, Keep: f.keep,
		Limits: mayfly.Limits{CPU: f.cpu, Memory: f.memory.n, PIDs: f.pids, Disk: f.disk.n},
	}
	if c.Flags().Changed("name") {
		if err := mayfly.CheckName(f.name); err != nil {
			return r, err
		}
	}
	if c.Flags().Changed("cpu") && !(f.cpu > 0 && !math.IsInf(f.cpu, 0)) {
		return r, usage(c, "bad --cpu %v: use a number over 0, such as 1.5", f.cpu)
	}
	if c.Flags().Changed("pids") && f.pids <= 0 {
		return r, usage(c, "bad --pids %d: use a number over 0", f.pids)
	}
	var err error
	if r.Labels, err = parseLabels(f.labels); err != nil {
		return r, err
	}
	r.Env, err = parseEnv(f.env)
	return r, err
}

func parseLabels(list []string) (map[string]string, error) {
	var labels map[string]string
	for _, l := range list {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			return nil, mayfly.Errorf(mayfly.Invalid, "bad label %q", l).Hint("write --label KEY=VALUE, such as --label pr=7")
		}
		if err := mayfly.CheckLabel(k, v); err != nil {
			return nil, err
		}
		if labels == nil {
			labels = map[string]string{}
		}
		labels[k] = v
	}
	return labels, nil
}

func parseEnv(list []string) (map[string]string, error) {
	var env map[string]string
	for _, kv := range list {
		k, v, ok := strings.Cut(kv, "=")
		if !ok {
			if v, ok = os.LookupEnv(k); !ok {
				return nil, mayfly.Errorf(mayfly.Invalid, "--env %s: the variable is not set here", k).Hint("write --env NAME=VALUE, or set it first")
			}
		}
		if err := manifest.CheckEnv(k, v); err != nil {
			return nil, err
		}
		if env == nil {
			env = map[string]string{}
		}
		env[k] = v
	}
	return env, nil
}

// processFlags say how to start a command: run, exec and fork.
type processFlags struct {
	stdin   bool
	tty     bool
	detach  bool
	timeout durationFlag
	cwd     string
}

func (f *processFlags) add(c *cobra.Command) {
	flags := c.Flags()
	flags.SetInterspersed(false) // what follows the command is its own
	flags.BoolVarP(&f.stdin, "interactive", "i", false, "pass standard input on to the command")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give the command a terminal")
	flags.BoolVarP(&f.detach, "detach", "d", false, "do not wait; print the id of the run")
	flags.Var(&f.timeout, "timeout", "end the command after this long, with exit status 124")
	flags.StringVar(&f.cwd, "cwd", "", "`directory` inside to start in (default /workspace)")
}

// request is what the flags ask for, given the command.
func (f *processFlags) request(c *cobra.Command, command []string) (mayfly.StartRun, error) {
	if len(command) == 0 {
		return mayfly.StartRun{}, usage(c, "the command is missing")
	}
	if f.detach && (f.stdin || f.tty) {
		return mayfly.StartRun{}, usage(c, "--detach excludes --interactive and --tty")
	}
	if f.tty && !(onTerminal(os.Stdin) && onTerminal(os.Stdout)) {
		return mayfly.StartRun{}, mayfly.Errorf(mayfly.Invalid, "--tty needs a terminal as standard input and output").
			Hint("leave out -t to run without one")
	}
	q := mayfly.StartRun{Command: command, Dir: f.cwd, TTY: f.tty, Stdin: f.stdin, Timeout: f.timeout.d, Attach: !f.detach}
	if f.tty {
		q.Rows, q.Cols = terminalSize()
	}
	return q, nil
}
