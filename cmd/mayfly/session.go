package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/terminal"
)

func terminalSize() (rows, cols uint16) { return terminal.Size(os.Stdout) }

// attend connects this process's standard streams and signals to a run until
// it has ended, and returns how.
func (a *app) attend(ctx context.Context, r mayfly.Run, stdin bool) (mayfly.Run, error) {
	att, err := a.attachLasting(ctx, r.ID)
	if err != nil {
		return r, err
	}
	defer att.Close()
	if r.TTY {
		err = a.interactive(att)
	} else {
		err = a.piped(ctx, r, att, stdin)
	}
	if err != nil {
		return r, err
	}
	return a.waitRun(ctx, r.ID)
}

// interactive hands the terminal over. Whatever happens, it is given back as
// it was.
func (a *app) interactive(att *lasting) error {
	restore, err := terminal.Raw(os.Stdin)
	if err != nil {
		return fmt.Errorf("switch the terminal to raw mode: %w", err)
	}
	defer restore()
	// In raw mode Ctrl-C is a byte like others; a signal comes from elsewhere
	// and means this process.
	defer a.forwardSignals(func(s syscall.Signal) {
		restore()
		a.cancel(interruption{s})
		att.Close()
	})()
	att.Resize(terminalSize())
	defer terminal.OnResize(os.Stdout, func(rows, cols uint16) { att.Resize(rows, cols) })()
	go func() {
		io.Copy(att, struct{ io.Reader }{os.Stdin})
		att.CloseWrite()
	}()
	return copyOutput(att, os.Stdout, os.Stdout)
}

func (a *app) piped(ctx context.Context, r mayfly.Run, att *lasting, stdin bool) error {
	var signals atomic.Int32
	defer a.forwardSignals(func(s syscall.Signal) {
		switch signals.Add(1) {
		case 1:
			att.Signal(s)
			if onTerminal(os.Stderr) {
				fmt.Fprintln(os.Stderr, "mayfly: told the command to stop; again to kill it")
			}
		case 2:
			go a.svc().KillRun(context.WithoutCancel(ctx), r.ID)
		default:
			a.cancel(interruption{s})
			att.Close()
		}
	})()
	if stdin {
		att.sending.Store(true)
		go func() {
			io.Copy(att, struct{ io.Reader }{os.Stdin})
			att.sending.Store(false)
			att.CloseWrite()
		}()
	}
	stdout, finishOut := outputWriter(os.Stdout)
	defer finishOut()
	stderr, finishErr := outputWriter(os.Stderr)
	defer finishErr()
	return copyOutput(att, stdout, stderr)
}

// copyOutput writes what a run writes until it ends. Nobody reading standard
// output any more is no error: the run goes on.
func copyOutput(att mayfly.Attachment, stdout, stderr io.Writer) error {
	for {
		o, err := att.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		switch o.Stream {
		case mayfly.Stdout:
			_, err = stdout.Write(o.Data)
		case mayfly.Stderr:
			_, err = stderr.Write(o.Data)
		case mayfly.Notice:
			fmt.Fprintf(os.Stderr, "mayfly: %s\n", safeLines(string(o.Data)))
		}
		if errors.Is(err, syscall.EPIPE) {
			return statusError(128 + int(syscall.SIGPIPE))
		}
		if err != nil {
			return fmt.Errorf("write output: %w", err)
		}
	}
}

// Reconnecting to a server that went away: how often, and how long between.
const (
	reconnectTries = 20
	reconnectPause = 250 * time.Millisecond
)

// lasting is an attachment that outlives the server: when that goes away, it
// goes on with the next one, where it was. Runs live on without a server.
type lasting struct {
	a       *app
	ctx     context.Context
	run     string
	current atomic.Pointer[mayfly.Attachment]
	seen    map[mayfly.Stream]int64 // bytes
	skip    map[mayfly.Stream]int64 // bytes of the new attachment that have been seen
	sending atomic.Bool             // input that cannot be sent again is on its way
	closed  atomic.Bool
}

func (a *app) attachLasting(ctx context.Context, run string) (*lasting, error) {
	l := &lasting{a: a, ctx: ctx, run: run, seen: map[mayfly.Stream]int64{}, skip: map[mayfly.Stream]int64{}}
	return l, l.attach()
}

func (l *lasting) attach() error {
	att, err := l.a.svc().AttachRun(l.ctx, l.run, true)
	if err != nil {
		return err
	}
	l.current.Store(&att)
	return nil
}

func (l *lasting) get() mayfly.Attachment { return *l.current.Load() }

func (l *lasting) Recv() (mayfly.Output, error) {
	for {
		o, err := l.get().Recv()
		if mayfly.KindOf(err) == mayfly.Unavailable && !l.closed.Load() && l.ctx.Err() == nil {
			if err := l.reattach(err); err != nil {
				return mayfly.Output{}, err
			}
			continue
		}
		if err != nil {
			return o, err
		}
		known := min(l.skip[o.Stream], int64(len(o.Data)))
		l.skip[o.Stream] -= known
		if o.Data = o.Data[known:]; len(o.Data) == 0 {
			continue
		}
		l.seen[o.Stream] += int64(len(o.Data))
		return o, nil
	}
}

func (l *lasting) reattach(cause error) error {
	l.get().Close()
	for range reconnectTries {
		if !sleep(l.ctx, reconnectPause) {
			return context.Cause(l.ctx)
		}
		err := l.attach()
		if err == nil {
			for s, n := range l.seen {
				l.skip[s] = n
			}
			if l.sending.Load() {
				fmt.Fprint(os.Stderr, "mayfly: the server was restarted while input was being passed on; some may be missing\n")
			}
			return nil
		}
		if mayfly.KindOf(err) != mayfly.Unavailable {
			return err
		}
		cause = err
	}
	return cause
}

func (l *lasting) Write(p []byte) (int, error) {
	for range reconnectTries {
		n, err := l.get().Write(p)
		if err == nil || n > 0 || l.closed.Load() {
			return n, err
		}
		if !sleep(l.ctx, reconnectPause) {
			break
		}
	}
	return 0, io.ErrClosedPipe
}

func (l *lasting) CloseWrite() error              { return l.get().CloseWrite() }
func (l *lasting) Resize(rows, cols uint16) error { return l.get().Resize(rows, cols) }
func (l *lasting) Signal(s syscall.Signal) error  { return l.get().Signal(s) }

func (l *lasting) Close() error {
	l.closed.Store(true)
	return l.get().Close()
}

// waitRun waits for a run's end, across servers.
func (a *app) waitRun(ctx context.Context, id string) (mayfly.Run, error) {
	for tries := 0; ; tries++ {
		r, err := a.svc().WaitRun(ctx, id)
		if mayfly.KindOf(err) != mayfly.Unavailable || tries == reconnectTries {
			return r, err
		}
		if !sleep(ctx, reconnectPause) {
			return r, context.Cause(ctx)
		}
	}
}
