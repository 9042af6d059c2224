package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/user"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/api"
	"mayfly.dev/mayfly/internal/autostart"
	"mayfly.dev/mayfly/internal/doctor"
	"mayfly.dev/mayfly/internal/unixsock"
)

type serveFlags struct {
	listen   string
	idleExit durationFlag
	daemon   bool
	verbose  bool
}

func (a *app) serveCommand() *cobra.Command {
	c := &cobra.Command{
		Use:   "serve",
		Short: "Run the server in the foreground",
		Long: `Run the server. Commands start one by themselves when they need it and are
root; this is for everything else: a service of the machine, another socket, a
look at the log. It needs root. Members of the group mayfly may use its socket,
when there is such a group.

SIGTERM and SIGINT stop it; what runs in environments goes on, and the next
server takes it up again.`,
		Example: `  sudo mayfly serve
  sudo mayfly serve --daemon
  sudo mayfly serve --state /srv/mayfly --listen /run/mayfly.sock`,
		Args: arguments(0, 0),
	}
	var f serveFlags
	c.Flags().StringVar(&f.listen, "listen", "", "`path` of the socket (default mayfly.sock in the state directory)")
	c.Flags().Var(&f.idleExit, "idle-exit", "leave after this long with nothing to look after (default never)")
	c.Flags().BoolVar(&f.daemon, "daemon", false, "start it in the background and return when it answers")
	c.Flags().BoolVarP(&f.verbose, "verbose", "v", false, "log every request")
	c.RunE = func(c *cobra.Command, _ []string) error {
		if os.Geteuid() != 0 {
			return mayfly.Errorf(mayfly.Forbidden, "the server needs root: it makes namespaces, mounts and cgroups").
				Hint("sudo mayfly serve")
		}
		if f.listen != "" {
			a.socket = f.listen
			if err := a.settle(); err != nil {
				return err
			}
		}
		if f.daemon {
			return a.daemon(c.Context(), f)
		}
		return a.serve(c.Context(), f)
	}
	return c
}

func (a *app) daemon(ctx context.Context, f serveFlags) error {
	if f.listen != "" || f.verbose || f.idleExit.d != 0 {
		return mayfly.Errorf(mayfly.Invalid, "--daemon excludes --listen, --idle-exit and --verbose").
			Hint("run the server in the foreground, for example under systemd")
	}
	if _, err := a.running(); err == nil {
		return nil
	}
	return a.startServer(ctx)
}

// serve is the server's life: the state directory is locked before anything is
// looked at, and the socket appears when requests can be answered.
func (a *app) serve(ctx context.Context, f serveFlags) error {
	if err := os.MkdirAll(a.state, 0o755); err != nil {
		return mayfly.Errorf(mayfly.Invalid, "make the state directory: %w", err)
	}
	lock, err := a.lockState(ctx)
	if err != nil {
		return err
	}
	defer lock.Close()
	level := slog.LevelInfo
	if f.verbose {
		level = slog.LevelDebug
	}
	log := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: level}))
	s, err := newServer(ctx, a.state, log)
	if err != nil {
		return err
	}
	log.Info("serving", "version", version, "state", a.state, "socket", a.socketPath(), "pid", os.Getpid())
	for {
		l, err := listen(a.socketPath())
		if err == nil {
			err = serveUntilIdle(ctx, s, l, f.idleExit.d, log)
		}
		// A request may have come in just when the server was about to leave.
		if err == nil && ctx.Err() == nil && s.Busy() {
			continue
		}
		log.Info("stopping")
		return errors.Join(err, s.Close())
	}
}

// lockWait is how long a new server waits for one that is stopping.
const lockWait = 10 * time.Second

// lockState takes the state directory. A server that has it and answers stays;
// one that does not answer may be about to leave.
func (a *app) lockState(ctx context.Context) (io.Closer, error) {
	for end := time.Now().Add(lockWait); ; {
		lock, err := autostart.Lock(a.state)
		if mayfly.KindOf(err) != mayfly.Conflict || time.Now().After(end) {
			return lock, err
		}
		if _, pingErr := a.running(); pingErr == nil || !sleep(ctx, 20*time.Millisecond) {
			return nil, err
		}
	}
}

// server is what answers requests.
type server interface {
	mayfly.Service
	// Busy reports whether there is something to look after: environments
	// whose time will come, runs, work in progress.
	Busy() bool
	// Close releases everything; what runs in environments goes on.
	Close() error
}

// serveUntilIdle answers requests on l until ctx ends, or, unless idle is 0,
// until there has been nothing to look after for that long.
func serveUntilIdle(ctx context.Context, s server, l net.Listener, idle time.Duration, log *slog.Logger) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	h := api.New(s, api.Options{Log: log})
	if idle > 0 {
		go func() {
			awaitIdle(ctx, h, s, idle)
			stop()
		}()
	}
	return h.Serve(ctx, l)
}

// awaitIdle returns when nothing has been asked and nothing has been looked
// after for the given time.
func awaitIdle(ctx context.Context, h *api.Server, s server, idle time.Duration) {
	busy := time.Now()
	for tick := min(idle/4+time.Millisecond, 5*time.Second); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(tick):
		}
		quiet := h.QuietSince()
		if quiet.IsZero() || s.Busy() {
			busy = time.Now()
		}
		if time.Since(busy) >= idle && time.Since(quiet) >= idle {
			return
		}
	}
}

// listen opens the socket for root and, where there is one, the group mayfly.
func listen(path string) (net.Listener, error) {
	l, err := unixsock.Listen(path, 0o600)
	if err != nil {
		return nil, err
	}
	g, err := user.LookupGroup(doctor.Group)
	if err != nil {
		return l, nil // root alone
	}
	gid, err := strconv.Atoi(g.Gid)
	if err == nil {
		err = os.Chown(path, -1, gid)
	}
	if err == nil {
		err = os.Chmod(path, 0o660)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("give the socket to the group %s: %w", doctor.Group, err)
	}
	return l, nil
}
