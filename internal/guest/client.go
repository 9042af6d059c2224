package guest

import (
	"context"
	"errors"
	"net"
	"syscall"

	"mayfly.dev/mayfly"
)

var errPending = errors.New("guest: not linked")

// Start starts a command, or does nothing when its run was started before. A
// command that cannot be started has an exit record that says why. Start
// closes conn.
func Start(ctx context.Context, conn net.Conn, c Command) error { return errPending }

// Wait returns the exit of a run when it has ended. The error is of kind
// mayfly.NotFound when the guest knows no such run and has no record of it.
// Wait closes conn.
func Wait(ctx context.Context, conn net.Conn, run string) (Exit, error) { return Exit{}, errPending }

// Signal sends a signal to the processes of a run; to one that has ended, it
// does nothing. Signal closes conn.
func Signal(ctx context.Context, conn net.Conn, run string, sig syscall.Signal) error {
	return errPending
}

// Attach streams a run's output from its beginning and passes on input. host
// is the environment's host directory. With follow false, the attachment ends
// at what is recorded now. The context bounds the making of the attachment,
// which owns conn from then on.
func Attach(ctx context.Context, conn net.Conn, host, run string, follow bool) (mayfly.Attachment, error) {
	return nil, errPending
}

// ReadExit reads a run's exit record; the error is fs.ErrNotExist when there
// is none.
func ReadExit(host, run string) (Exit, error) { return Exit{}, errPending }

// OpenLog replays what is recorded of a run, also after its guest is gone.
// Input to it fails.
func OpenLog(host, run string) (mayfly.Attachment, error) { return nil, errPending }
