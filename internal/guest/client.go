package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/guest/record"
	"mayfly.dev/mayfly/internal/guest/wire"
)

// Start starts a command, or does nothing when its run was started before. A
// command that cannot be started has an exit record that says why. Start
// closes conn.
func Start(ctx context.Context, conn net.Conn, c Command) error {
	if len(c.Argv) == 0 || c.Argv[0] == "" {
		conn.Close()
		return mayfly.Errorf(mayfly.Invalid, "no command").Hint("name the command after --, as in: mayfly run -- make test")
	}
	_, err := ask(ctx, conn, wire.Request{
		Op: wire.OpStart, Run: c.Run, Argv: c.Argv, Env: c.Env, Dir: c.Dir,
		TTY: c.TTY, Rows: c.Rows, Cols: c.Cols, Stdin: c.Stdin, Output: max(c.Output, 0),
		UID: c.UID,
	})
	if err != nil {
		return fmt.Errorf("start run %s: %w", c.Run, err)
	}
	return nil
}

// Wait returns the exit of a run when it has ended. The error is of kind
// mayfly.NotFound when the guest knows no such run and has no record of it.
// Wait closes conn.
func Wait(ctx context.Context, conn net.Conn, run string) (Exit, error) {
	text, err := ask(ctx, conn, wire.Request{Op: wire.OpWait, Run: run})
	if err != nil {
		return Exit{}, fmt.Errorf("wait for run %s: %w", run, err)
	}
	return parseExit(text, run)
}

// Signal sends a signal to the processes of a run; to one that has ended, it
// does nothing. Signals that end or stop reach the whole session, others the
// process group. With 0 it sends none, and an error of kind NotFound says that
// the guest has no such run to send one to. Signal closes conn.
func Signal(ctx context.Context, conn net.Conn, run string, sig syscall.Signal) error {
	_, err := ask(ctx, conn, wire.Request{Op: wire.OpSignal, Run: run, Signal: uint32(sig)})
	if err != nil {
		return fmt.Errorf("signal run %s: %w", run, err)
	}
	return nil
}

// Probe reports whether a process in the environment listens at a port of
// 127.0.0.1. Probe closes conn.
func Probe(ctx context.Context, conn net.Conn, port int) (bool, error) {
	if port < 1 || port > 65535 {
		conn.Close()
		return false, mayfly.Errorf(mayfly.Invalid, "no such port: %d", port)
	}
	_, err := ask(ctx, conn, wire.Request{Op: wire.OpProbe, Port: uint16(port)})
	if mayfly.KindOf(err) == mayfly.Conflict {
		return true, nil
	}
	return false, err
}

// Clear kills every process of a service's user and returns when none is
// left. Clear closes conn.
func Clear(ctx context.Context, conn net.Conn, uid uint32) error {
	if _, err := ask(ctx, conn, wire.Request{Op: wire.OpClear, UID: uid}); err != nil {
		return fmt.Errorf("end the processes of user %d: %w", uid, err)
	}
	return nil
}

// Kill kills every process of a service's user and does not wait for their
// ends. Kill closes conn.
func Kill(ctx context.Context, conn net.Conn, uid uint32) error {
	if _, err := ask(ctx, conn, wire.Request{Op: wire.OpKill, UID: uid}); err != nil {
		return fmt.Errorf("kill the processes of user %d: %w", uid, err)
	}
	return nil
}

// ReadExit reads a run's exit record; the error is fs.ErrNotExist when there
// is none.
func ReadExit(host, run string) (Exit, error) {
	if !wire.ValidRun(run) {
		return Exit{}, mayfly.Errorf(mayfly.Invalid, "bad run id %q", run)
	}
	dir, err := record.OpenRun(host, run)
	if err != nil {
		return Exit{}, fmt.Errorf("read exit of run %s: %w", run, err)
	}
	defer dir.Close()
	b, err := record.ReadExit(dir)
	if err != nil {
		return Exit{}, fmt.Errorf("read exit of run %s: %w", run, err)
	}
	return parseExit(b, run)
}

// parseExit takes an exit record apart and checks what can be checked.
func parseExit(b []byte, run string) (Exit, error) {
	var r record.Exit
	if err := json.Unmarshal(b, &r); err != nil {
		return Exit{}, fmt.Errorf("exit record of run %s: %w", run, err)
	}
	if r.Run != run || r.Code < 0 || r.Code > 255 || r.UserCPU < 0 || r.SystemCPU < 0 || r.MaxRSS < 0 {
		return Exit{}, fmt.Errorf("exit record of run %s: implausible values", run)
	}
	return Exit{
		Run: r.Run, Code: r.Code, Reason: r.Reason, OOM: r.OOM,
		Started: time.Unix(0, r.Started).UTC(), Ended: time.Unix(0, r.Ended).UTC(),
		Usage: mayfly.Usage{
			UserCPU:   time.Duration(r.UserCPU),
			SystemCPU: time.Duration(r.SystemCPU),
			MaxRSS:    r.MaxRSS,
		},
	}, nil
}

// ask makes one request and closes the connection.
func ask(ctx context.Context, conn net.Conn, r wire.Request) ([]byte, error) {
	defer conn.Close()
	return request(ctx, conn, r)
}

// request makes one request; the context bounds it.
func request(ctx context.Context, conn net.Conn, r wire.Request) (text []byte, err error) {
	if r.OfRun() && !wire.ValidRun(r.Run) {
		return nil, mayfly.Errorf(mayfly.Invalid, "bad run id %q", r.Run)
	}
	b := wire.AppendRequest(nil, r)
	if len(b)-4 > wire.MaxRequest {
		return nil, mayfly.Errorf(mayfly.Invalid, "command and environment take %d bytes", len(b)).
			Hint("pass large values in files; the limit is %d bytes", wire.MaxRequest)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer func() {
		if !stop() && err != nil {
			err = ctx.Err()
		}
	}()
	if _, err := conn.Write(b); err != nil {
		return nil, unavailable(err)
	}
	var hello [1]byte
	if _, err := conn.Read(hello[:]); err != nil {
		return nil, unavailable(err)
	}
	if hello[0] != wire.Hello {
		return nil, wire.ErrMalformed
	}
	status, text, err := wire.ReadReply(conn)
	if err != nil {
		return nil, unavailable(err)
	}
	switch status {
	case wire.OK:
		return text, nil
	case wire.Taken:
		return nil, mayfly.Errorf(mayfly.Conflict, "a process inside holds the port: %q", text)
	case wire.NotFound:
		return nil, mayfly.Errorf(mayfly.NotFound, "no run %s in this environment", r.Run)
	case wire.Invalid:
		return nil, mayfly.Errorf(mayfly.Invalid, "%q", text)
	}
	return nil, fmt.Errorf("guest: %q", text)
}

// unavailable says that the guest went away, unless time ran out.
func unavailable(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, wire.ErrMalformed) {
		return err
	}
	return mayfly.Errorf(mayfly.Unavailable, "the environment's guest does not answer: %w", err)
}

// notExist turns a missing record into an error for users.
func notExist(run string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return mayfly.Errorf(mayfly.NotFound, "nothing is recorded of run %s: %w", run, fs.ErrNotExist)
	}
	return err
}
