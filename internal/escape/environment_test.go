//go:build linux

package escape

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/guest"
	"mayfly.dev/mayfly/internal/sandbox"
)

// environment is a sandbox among the things of a world.
type environment struct {
	runtime sandbox.Runtime
	spec    sandbox.Spec
	runs    int
}

// skeleton makes the lowest layer of every environment: the directories that
// programs expect, and what a layer may hold to raise privileges.
func (w *world) skeleton(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(w.dir, "skeleton")
	if _, err := os.Stat(dir); err == nil {
		return dir
	}
	for _, d := range []string{"", "usr", "etc", "proc", "sys", "dev", "run", "var/tmp", "var/lib/mayfly-db", "tmp", "root", "workspace", "home/agent", "probe"} {
		check(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for _, d := range []string{"bin", "sbin", "lib", "lib64"} {
		check(t, os.Symlink("usr/"+d, filepath.Join(dir, d)))
	}
	check(t, os.Chmod(filepath.Join(dir, "tmp"), 0o777|os.ModeSticky))
	for _, d := range []string{"workspace", "home/agent"} {
		check(t, os.Chown(filepath.Join(dir, d), sandbox.UID, sandbox.GID))
	}
	program, err := os.ReadFile(w.probe)
	check(t, err)
	put(t, filepath.Join(dir, "probe/probe"), string(program), 0o755)
	plant(t, w.probe, filepath.Join(dir, "probe"))
	return dir
}

// newEnvironment starts an environment; change may alter what it is made of.
func (w *world) newEnvironment(t *testing.T, rt sandbox.Runtime, name string, base uint32, change func(*sandbox.Spec)) *environment {
	t.Helper()
	dir := filepath.Join(w.dir, "environments", name)
	s := sandbox.Spec{
		Environment: "env-" + name,
		Host:        filepath.Join(dir, "host"),
		Lower:       []string{w.skeleton(t)},
		Upper:       filepath.Join(dir, "live/upper"),
		Work:        filepath.Join(dir, "live/work"),
		DB:          filepath.Join(dir, "live/db"),
		Binds:       []sandbox.Bind{{Source: "/usr", Target: "/usr"}, {Source: "/etc", Target: "/etc"}},
		Env:         []string{"PATH=/usr/local/bin:/usr/bin:/bin", "HOME=" + sandbox.Home, "TZ=UTC"},
		Limits:      mayfly.Limits{CPU: 2, Memory: 1 << 30, PIDs: 512, Output: 16 << 20},
		UIDBase:     base,
	}
	if change != nil {
		change(&s)
	}
	hosts.Store(s.Environment, s.Host)
	for _, d := range []string{s.Host, s.Upper, s.Work, s.DB} {
		check(t, os.MkdirAll(d, 0o755))
	}
	check(t, os.Chmod(s.Host, 0o700))
	e := &environment{runtime: rt, spec: s}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := rt.Stop(ctx, s.Environment); err != nil {
			t.Errorf("stop %s: %v", s.Environment, err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := rt.Start(ctx, s); err != nil {
		t.Fatalf("start %s: %v", s.Environment, err)
	}
	return e
}

// run runs a command as the agent does and returns its standard output. On a
// terminal, that is all of its output.
func (e *environment) run(ctx context.Context, c guest.Command) (out []byte, exit guest.Exit, err error) {
	e.runs++
	c.Run = fmt.Sprintf("run-%d", e.runs)
	if c.Dir == "" {
		c.Dir = "/workspace"
	}
	conn, err := e.dial(ctx)
	if err != nil {
		return nil, exit, err
	}
	if err := guest.Start(ctx, conn, c); err != nil {
		return nil, exit, err
	}
	if conn, err = e.dial(ctx); err != nil {
		return nil, exit, err
	}
	if exit, err = guest.Wait(ctx, conn, c.Run); err != nil {
		return nil, exit, err
	}
	log, err := guest.OpenLog(e.spec.Host, c.Run)
	if err != nil {
		return nil, exit, err
	}
	defer log.Close()
	var b bytes.Buffer
	for {
		o, err := log.Recv()
		if errors.Is(err, io.EOF) {
			return b.Bytes(), exit, nil
		}
		if err != nil {
			return nil, exit, err
		}
		if o.Stream == mayfly.Stdout {
			b.Write(o.Data)
		}
	}
}

func (e *environment) dial(ctx context.Context) (net.Conn, error) {
	return e.runtime.Dial(ctx, e.spec)
}

// try runs a probe inside.
func (e *environment) try(t *testing.T, tty bool, args []string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, exit, err := e.run(ctx, guest.Command{Argv: append([]string{"/probe/probe"}, args...), TTY: tty})
	if err != nil {
		t.Fatalf("run the probe: %v", err)
	}
	if exit.Reason != "" {
		t.Fatalf("start the probe: %s", exit.Reason)
	}
	return parse(out, fmt.Sprintf("exit status %d %q", exit.Code, out))
}
