package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/client"
	"mayfly.dev/mayfly/internal/autostart"
	"mayfly.dev/mayfly/internal/nearest"
	"mayfly.dev/mayfly/internal/terminal"
)

// defaultState is the state directory where nobody names another.
const defaultState = "/var/lib/mayfly"

// app is what the commands share.
type app struct {
	ctx    context.Context // ends with an interruption
	cancel context.CancelCauseFunc
	state  string // absolute after settle
	socket string
	given  bool // --state is on the command line

	service mayfly.Service // made when it is first used

	mu      sync.Mutex // guards what follows
	forward func(syscall.Signal)
	held    []syscall.Signal // for a run that is about to start
}

// interruption is the end of a command by a signal.
type interruption struct{ signal syscall.Signal }

func (i interruption) Error() string { return i.signal.String() }

func newApp() *app {
	a := &app{state: os.Getenv("MAYFLY_STATE"), socket: os.Getenv("MAYFLY_SOCKET")}
	if a.state == "" {
		a.state = defaultState
	}
	a.ctx, a.cancel = context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		for s := range signals {
			a.signalled(s.(syscall.Signal))
		}
	}()
	return a
}

func (a *app) close() { a.cancel(nil) }

// signalled passes a signal on to whoever asked for it, and otherwise ends the
// command.
func (a *app) signalled(s syscall.Signal) {
	a.mu.Lock()
	forward := a.forward
	a.mu.Unlock()
	if forward != nil {
		forward(s)
		return
	}
	a.cancel(interruption{s})
}

// forwardSignals has signals passed on until the returned function is called,
// those first that were held back.
func (a *app) forwardSignals(to func(syscall.Signal)) (stop func()) {
	for _, s := range a.setForward(to) {
		to(s)
	}
	return func() { a.setForward(nil) }
}

func (a *app) setForward(to func(syscall.Signal)) (held []syscall.Signal) {
	a.mu.Lock()
	defer a.mu.Unlock()
	held, a.held, a.forward = a.held, nil, to
	return held
}

// startRun starts a run that is going to be attended. A signal that comes
// meanwhile is held back for its command, a second one ends this one.
func (a *app) startRun(ctx context.Context, q mayfly.StartRun) (mayfly.Run, error) {
	a.setForward(func(s syscall.Signal) {
		a.mu.Lock()
		defer a.mu.Unlock()
		if a.held = append(a.held, s); len(a.held) > 1 {
			a.cancel(interruption{s})
		}
	})
	r, err := a.svc().StartRun(ctx, q)
	if err != nil {
		a.releaseSignals()
	}
	return r, err
}

// releaseSignals lets signals end this command again, also those held back.
func (a *app) releaseSignals() {
	for _, s := range a.setForward(nil) {
		a.cancel(interruption{s})
	}
}

// settle makes paths absolute once the flags are known.
func (a *app) settle() error {
	a.given = a.state != os.Getenv("MAYFLY_STATE") && a.state != defaultState
	if a.state == "" {
		return mayfly.Errorf(mayfly.Invalid, "--state is empty").Hint("name a directory, or leave it out for %s", defaultState)
	}
	abs, err := filepath.Abs(a.state)
	if err != nil {
		return fmt.Errorf("state directory: %w", err)
	}
	a.state = abs
	if a.socket != "" {
		a.socket, err = filepath.Abs(a.socket)
	}
	return err
}

func (a *app) socketPath() string {
	if a.socket != "" {
		return a.socket
	}
	return filepath.Join(a.state, autostart.SocketName)
}

// svc is the server, which is started when the first request finds none.
func (a *app) svc() mayfly.Service {
	if a.service == nil {
		c := client.New(a.socketPath())
		if a.socket == "" {
			c.Start = a.startServer
		}
		a.service = c
	}
	return a.service
}

// running is the server if there is one.
func (a *app) running() (mayfly.Service, error) {
	c := client.New(a.socketPath())
	return c, c.Ping(a.ctx)
}

// self is how another command of mayfly reads in a hint.
func (a *app) self(command string) string {
	if a.given {
		return "mayfly --state " + shellWord(a.state) + " " + command
	}
	return "mayfly " + command
}

// addJSON gives a command the flag --json.
func addJSON(c *cobra.Command) *bool {
	return c.Flags().Bool("json", false, "print JSON")
}

// printJSON prints v as indented JSON. Its field names are those of the HTTP
// API, described in openapi.yaml.
func printJSON(v any) error {
	e := json.NewEncoder(os.Stdout)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(v)
}

// printList prints a list as JSON, [] when it is empty.
func printList[T any](list []T) error {
	if list == nil {
		list = []T{}
	}
	return printJSON(list)
}

// environment finds an environment; an unknown one gives an error with the
// name that is nearest.
func (a *app) environment(ctx context.Context, ref string) (mayfly.Environment, error) {
	e, err := a.svc().Environment(ctx, ref)
	return e, a.nearest(ctx, ref, err)
}

// nearest adds to a NotFound error which name may have been meant.
func (a *app) nearest(ctx context.Context, ref string, err error) error {
	var e *mayfly.Error
	if !errors.As(err, &e) || e.Kind != mayfly.NotFound {
		return err
	}
	list, listErr := a.svc().Environments(ctx, mayfly.EnvironmentFilter{})
	if listErr != nil {
		return err
	}
	best, least := "", max(2, len(ref)/3)+1
	for _, env := range list {
		if env.Name == ref || env.ID == ref {
			return err // what was not found is something else
		}
		if d := nearest.Distance(ref, env.Name); d < least {
			best, least = env.Name, d
		}
	}
	if best != "" {
		return e.Hint("did you mean %s? list them with: %s", best, a.self("env list"))
	}
	return e.Hint("list them with: %s", a.self("env list"))
}

// completeEnvironment completes the first argument with names of environments,
// without starting a server.
func (a *app) completeEnvironment(c *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 || a.settle() != nil {
		return nil, cobra.ShellCompDirectiveDefault
	}
	svc, err := a.running()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	list, err := svc.Environments(c.Context(), mayfly.EnvironmentFilter{})
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name+"\t"+string(e.Phase))
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// onTerminal reports whether a person sees what is written to f.
func onTerminal(f *os.File) bool { return terminal.Is(f) }

// stdoutWriter is standard output for text that comes from inside
// environments: byte-exact into a pipe, filtered on a terminal.
func outputWriter(f *os.File) (w io.Writer, finish func()) {
	if !onTerminal(f) {
		return f, func() {}
	}
	filter := terminal.NewFilter(f)
	return filter, func() { filter.Close() }
}
