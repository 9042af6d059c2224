package postgres

import (
	"context"
	"syscall"
)

// Command is the server process of an instance. Its paths are those inside.
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

// Process is a server process.
type Process interface {
	// Signal sends a signal to the process alone. To one that has ended, it
	// does nothing.
	Signal(ctx context.Context, sig syscall.Signal) error
	// Kill ends the process and all that it started, at once, and returns when
	// none of them is left.
	Kill(ctx context.Context) error
	// Wait returns when the process has ended, with how it did in words.
	Wait(ctx context.Context) (status string, err error)
	// Output is the end of what the process has written, for error messages.
	Output(ctx context.Context) string
}
