package postgres

import (
	"context"
	"io"
	"syscall"
)

// Command is a program of Postgres. Its paths are those inside.
type Command struct {
	Argv []string
	Env  []string // all of it, "K=V"
	Dir  string
}

// Launcher starts the server process where an instance is to live: under a
// user id of its own that owns the data directory, in an IPC namespace that
// goes away with it.
type Launcher interface {
	// Launch returns when the process exists. It lives on when ctx ends.
	Launch(ctx context.Context, c Command) (Process, error)
}

// Workshop is where a baseline is made: a Launcher that runs programs beside
// the server, as the same user. SQL that a superuser executes can start
// anything there, so that nothing of what is there may reach further.
type Workshop interface {
	Launcher
	// Run runs a program to its end, with stdin for its input, nil for none,
	// and output for all that it says. It has read what it wants of stdin, and
	// nobody reads more of that, when Run returns. The status is as Wait's.
	Run(ctx context.Context, c Command, stdin io.Reader, output io.Writer) (status string, err error)
}

// Process is a server process.
type Process interface {
	// Signal sends a signal to the process alone. To one that has ended, it
	// does nothing.
	Signal(ctx context.Context, sig syscall.Signal) error
	// Kill ends the process and all that it started, at once, and returns when
	// none of them is left.
	Kill(ctx context.Context) error
	// Wait returns when the process has ended, with how it did in words; there
	// are none when it ended with status 0.
	Wait(ctx context.Context) (status string, err error)
	// Output is the end of what the process has written, for error messages.
	Output(ctx context.Context) string
}
