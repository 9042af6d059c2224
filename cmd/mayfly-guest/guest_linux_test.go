package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/guest"
	"mayfly.dev/mayfly/internal/sandbox"
)

func TestCommandRunsAndItsOutputArrives(t *testing.T) {
	e := newWorld(t).start("env-1")
	x, stdout, stderr := e.run("sh", "-c", "echo out; echo err >&2; exit 7")
	if x.Code != 7 || x.Reason != "" || stdout != "out\n" || stderr != "err\n" {
		t.Errorf("got = %d %q %q %q, want 7, out, err", x.Code, x.Reason, stdout, stderr)
	}
	if x.Started.IsZero() || x.Ended.Before(x.Started) || x.Usage.MaxRSS <= 0 {
		t.Errorf("implausible exit: %+v", x)
	}
	read, err := guest.ReadExit(e.spec.Host, x.Run)
	if err != nil || read != x {
		t.Errorf("ReadExit: got = %+v, %v, want %+v", read, err, x)
	}
}

func TestExitStatusIsThatOfAShell(t *testing.T) {
	e := newWorld(t).start("env-1")
	e.shell(`cd /workspace; printf 'echo no interpreter named; exit 3' >script; printf '#!/no/such\n' >orphan
		touch plain; chmod +x script orphan; mkdir dir`)
	for _, c := range []struct {
		name   string
		c      guest.Command
		code   int
		reason string // part of it
	}{
		{"ends well", guest.Command{Argv: []string{"true"}}, 0, ""},
		{"fails", guest.Command{Argv: []string{"sh", "-c", "exit 42"}}, 42, ""},
		{"killed", guest.Command{Argv: []string{"sh", "-c", "kill -9 $$"}}, 137, ""},
		{"terminated", guest.Command{Argv: []string{"sh", "-c", "kill $$"}}, 143, ""},
		{"script without interpreter", guest.Command{Argv: []string{"./script"}, Dir: "/workspace"}, 3, ""},
		{"not in PATH", guest.Command{Argv: []string{"no-such-command"}}, 127, "not found"},
		{"no such path", guest.Command{Argv: []string{"/no/such"}}, 127, "not found"},
		{"interpreter missing", guest.Command{Argv: []string{"/workspace/orphan"}}, 127, "interpreter"},
		{"not executable", guest.Command{Argv: []string{"/workspace/plain"}}, 126, "permission denied"},
		{"directory", guest.Command{Argv: []string{"/workspace/dir"}}, 126, "directory"},
		{"directory missing", guest.Command{Argv: []string{"true"}, Dir: "/no/such"}, 126, "/no/such"},
		{"directory forbidden", guest.Command{Argv: []string{"true"}, Dir: "/root"}, 126, "working directory"},
		{"own PATH", guest.Command{Argv: []string{"script"}, Env: []string{"PATH=/workspace"}}, 3, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := &env{world: e.world, t: t, spec: e.spec}
			c.c.Run = "exit-" + strings.ReplaceAll(strings.ToLower(c.name), " ", "-")
			x := e.wait(e.launch(c.c))
			if x.Code != c.code || !strings.Contains(x.Reason, c.reason) || c.reason == "" && x.Reason != "" {
				t.Errorf("got = %d %q, want %d %q", x.Code, x.Reason, c.code, c.reason)
			}
		})
	}
}

func TestStartingARunTwiceStartsItOnce(t *testing.T) {
	w := newWorld(t)
	e := w.start("env-1")
	c := guest.Command{Run: "once", Argv: []string{"sh", "-c", "echo x >>/workspace/count; sleep 0.2"}}
	for range 3 {
		e.launch(c)
	}
	e.wait("once")
	e.launch(c)
	interrupted := e.launch(guest.Command{Run: "interrupted", Argv: []string{"sleep", "1000"}})
	if err := w.runtime.Stop(t.Context(), "env-1"); err != nil {
		t.Fatal(err)
	}
	if err := w.runtime.Start(t.Context(), e.spec); err != nil {
		t.Fatal(err)
	}
	e.launch(c)
	if got := e.wait("once"); got.Code != 0 {
		t.Errorf("exit of the former guest's run: got = %d, want 0", got.Code)
	}
	if got := e.shell("cat /workspace/count"); got != "x" {
		t.Errorf("the command ran: got = %q, want once", got)
	}
	e.launch(guest.Command{Run: interrupted, Argv: []string{"true"}})
	if _, err := guest.Wait(t.Context(), e.dial(), interrupted); mayfly.KindOf(err) != mayfly.NotFound {
		t.Errorf("wait for a run that its guest did not survive: got = %v, want not found", err)
	}
}

func TestUnknownRunsAreNotFound(t *testing.T) {
	e := newWorld(t).start("env-1")
	if _, err := guest.Wait(t.Context(), e.dial(), "nobody"); mayfly.KindOf(err) != mayfly.NotFound {
		t.Errorf("wait: got = %v, want not found", err)
	}
	if err := guest.Signal(t.Context(), e.dial(), "nobody", syscall.SIGTERM); mayfly.KindOf(err) != mayfly.NotFound {
		t.Errorf("signal: got = %v, want not found", err)
	}
	if _, err := guest.Attach(t.Context(), e.dial(), e.spec.Host, "nobody", true); mayfly.KindOf(err) != mayfly.NotFound {
		t.Errorf("attach: got = %v, want not found", err)
	}
	if _, err := guest.ReadExit(e.spec.Host, "nobody"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("read exit: got = %v, want not exist", err)
	}
	for _, bad := range []string{"", "..", "a/b", "A", strings.Repeat("a", 65)} {
		if _, err := guest.ReadExit(e.spec.Host, bad); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("read exit of %q: got = %v, want invalid", bad, err)
		}
	}
}

func TestWaitEndsWithItsContext(t *testing.T) {
	e := newWorld(t).start("env-1")
	run := e.launch(guest.Command{Argv: []string{"sleep", "1000"}})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := guest.Wait(ctx, e.dial(), run); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got = %v, want deadline exceeded", err)
	}
}

func TestSignalReachesTheCommand(t *testing.T) {
	e := newWorld(t).start("env-1")
	run := e.launch(guest.Command{Argv: []string{"sh", "-c", "trap 'echo caught; exit 5' USR1; echo ready; while :; do sleep 0.01; done"}})
	a := e.attach(run)
	defer a.Close()
	if o, err := a.Recv(); err != nil || string(o.Data) != "ready\n" {
		t.Fatalf("got = %q %v, want ready", o.Data, err)
	}
	if err := guest.Signal(t.Context(), e.dial(), run, syscall.SIGUSR1); err != nil {
		t.Fatal(err)
	}
	stdout, _, _ := read(t, a)
	if x := e.wait(run); x.Code != 5 || stdout != "caught\n" {
		t.Errorf("got = %d %q, want 5 caught", x.Code, stdout)
	}
	if err := guest.Signal(t.Context(), e.dial(), run, syscall.SIGKILL); err != nil {
		t.Errorf("signal to an ended run: got = %v, want nil", err)
	}
}

func TestKillEndsTheWholeSession(t *testing.T) {
	e := newWorld(t).start("env-1")
	run := e.launch(guest.Command{TTY: true, Argv: []string{"bash", "-c", "set -m; sleep 1001 & sleep 1002 & echo go; wait"}})
	a := e.attach(run)
	defer a.Close()
	if _, err := a.Recv(); err != nil {
		t.Fatal(err)
	}
	if got := e.shell("pgrep -c sleep || true"); got != "2" {
		t.Fatalf("background jobs: got = %s, want 2", got)
	}
	if err := a.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if x := e.wait(run); x.Code != 137 {
		t.Errorf("got = %d, want 137", x.Code)
	}
	if got := e.shell("pgrep -c sleep || true"); got != "0" {
		t.Errorf("background jobs left: got = %s, want 0", got)
	}
}

func TestTerminalHasSizeAndFollowsResize(t *testing.T) {
	e := newWorld(t).start("env-1")
	run := e.launch(guest.Command{TTY: true, Rows: 30, Cols: 100, Env: []string{"TERM=xterm"},
		Argv: []string{"bash", "-c", `trap 'stty size; exit 0' WINCH; tty; stty size; test -w "$(tty)" && echo writable; echo on-tty >/dev/tty; while :; do sleep 0.01; done`}})
	a := e.attach(run)
	defer a.Close()
	var got strings.Builder
	for !strings.Contains(got.String(), "on-tty") {
		o, err := a.Recv()
		if err != nil {
			t.Fatal(err)
		}
		got.Write(o.Data)
	}
	if want := "/dev/pts/0\r\n30 100\r\nwritable\r\non-tty\r\n"; got.String() != want {
		t.Errorf("got = %q, want %q", got.String(), want)
	}
	if err := a.Resize(50, 132); err != nil {
		t.Fatal(err)
	}
	stdout, _, _ := read(t, a)
	if stdout != "50 132\r\n" {
		t.Errorf("after resize: got = %q, want 50 132", stdout)
	}
}

func TestTerminalInputInterruptsAndEnds(t *testing.T) {
	e := newWorld(t).start("env-1")
	run := e.launch(guest.Command{TTY: true, Argv: []string{"sleep", "1000"}})
	a := e.attach(run)
	defer a.Close()
	if _, err := a.Write([]byte{3}); err != nil {
		t.Fatal(err)
	}
	if x := e.wait(run); x.Code != 130 {
		t.Errorf("after interrupt: got = %d, want 130", x.Code)
	}
	run = e.launch(guest.Command{TTY: true, Argv: []string{"cat"}})
	b := e.attach(run)
	defer b.Close()
	if err := b.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if x := e.wait(run); x.Code != 0 {
		t.Errorf("after the end of input: got = %d, want 0", x.Code)
	}
}

func TestInputReachesTheCommand(t *testing.T) {
	e := newWorld(t).start("env-1")
	run := e.launch(guest.Command{Stdin: true, Argv: []string{"sha256sum"}})
	a := e.attach(run)
	defer a.Close()
	sent := bytes.Repeat([]byte("0123456789abcdef"), 100_000)
	if _, err := a.Write(sent); err != nil {
		t.Fatal(err)
	}
	if err := a.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	sum := exec.Command("sha256sum")
	sum.Stdin = bytes.NewReader(sent)
	want, err := sum.Output()
	if err != nil {
		t.Fatal(err)
	}
	if got, _, _ := read(t, a); got != string(want) {
		t.Errorf("got = %q, want %q", got, want)
	}
	if _, err := a.Write([]byte("more")); !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("input to an ended run: got = %v, want closed pipe", err)
	}
	if x, stdout, _ := e.run("sh", "-c", "cat; echo end"); x.Code != 0 || stdout != "end\n" {
		t.Errorf("without input: got = %d %q, want end", x.Code, stdout)
	}
}

func TestSlowReaderGetsEverythingAndHoldsNothingUp(t *testing.T) {
	e := newWorld(t).start("env-1")
	const size = 100 << 20
	run := e.launch(guest.Command{Output: 256 << 20, Argv: []string{"sh", "-c",
		fmt.Sprintf("head -c %d /dev/zero | tr '\\0' x | tee /dev/stderr | cksum >/workspace/sum", size)}})
	a := e.attach(run)
	defer a.Close()
	if x := e.wait(run); x.Code != 0 {
		t.Fatalf("exit %d", x.Code)
	}
	pipe := exec.Command("cksum")
	in, err := pipe.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var sum bytes.Buffer
	pipe.Stdout = &sum
	if err := pipe.Start(); err != nil {
		t.Fatal(err)
	}
	for {
		o, err := a.Recv()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		in.Write(o.Data)
	}
	in.Close()
	if err := pipe.Wait(); err != nil {
		t.Fatal(err)
	}
	if want := e.shell("cat /workspace/sum"); strings.TrimSpace(sum.String()) != want {
		t.Errorf("got = %q, want %q", sum.String(), want)
	}
}

func TestLogBombLeavesBeginningAndEnd(t *testing.T) {
	e := newWorld(t).start("env-1")
	const limit, size = 1 << 20, 200 << 20
	run := e.launch(guest.Command{Output: limit, Argv: []string{"sh", "-c",
		fmt.Sprintf("echo first; head -c %d /dev/zero; echo last", size)}})
	follower := e.attach(run)
	defer follower.Close()
	if x := e.wait(run); x.Code != 0 {
		t.Fatalf("exit %d", x.Code)
	}
	var onDisk int64
	filepath.Walk(filepath.Join(e.spec.Host, "runs", run), func(_ string, info os.FileInfo, err error) error {
		if err == nil && info.Mode().IsRegular() {
			onDisk += info.Size()
		}
		return err
	})
	if onDisk > limit+limit/8+64<<10 {
		t.Errorf("log takes %d bytes, want about %d", onDisk, limit)
	}
	replay, err := guest.OpenLog(e.spec.Host, run)
	if err != nil {
		t.Fatal(err)
	}
	defer replay.Close()
	for name, a := range map[string]mayfly.Attachment{"follower": follower, "replay": replay} {
		stdout, _, notice := read(t, a)
		if !strings.HasPrefix(stdout, "first\n") || !strings.HasSuffix(stdout, "last\n") {
			t.Errorf("%s: beginning or end is missing", name)
		}
		var dropped int
		for _, line := range strings.Split(strings.TrimSpace(notice), "\n") {
			var n int
			fmt.Sscanf(line, "[%d bytes of output dropped]", &n)
			dropped += n
		}
		if got, want := len(stdout)+dropped, size+len("first\nlast\n"); got != want {
			t.Errorf("%s: %d bytes and %d dropped: got = %d, want %d", name, len(stdout), dropped, got, want)
		}
	}
}

func TestDaemonDoesNotHoldBackTheEnd(t *testing.T) {
	w := newWorld(t)
	e := w.start("env-1")
	begin := time.Now()
	x, stdout, _ := e.run("sh", "-c", "setsid sh -c 'while :; do echo noise; sleep 0.01; done' & echo done")
	if took := time.Since(begin); took > 2*time.Second || x.Code != 0 || !strings.Contains(stdout, "done\n") {
		t.Errorf("got = %d %q after %v, want done within a moment", x.Code, stdout, took)
	}
	before, err := os.ReadDir(filepath.Join(e.spec.Host, "runs", x.Run))
	if err != nil {
		t.Fatal(err)
	}
	if got := e.shell("sleep 0.3; pgrep -f noise >/dev/null && echo alive"); got != "alive" {
		t.Errorf("daemon: got = %q, want alive", got)
	}
	after, _ := os.ReadDir(filepath.Join(e.spec.Host, "runs", x.Run))
	if len(after) != len(before) {
		t.Errorf("the log grew after the end: got = %d files, want %d", len(after), len(before))
	}
}

func TestOutputOfPipelineIsDrained(t *testing.T) {
	e := newWorld(t).start("env-1")
	for range 20 {
		x, stdout, _ := e.run("bash", "-c", "seq 20000 > >(cat); exit 3")
		if x.Code != 3 || strings.Count(stdout, "\n") != 20000 {
			t.Fatalf("got = %d with %d lines, want 3 with 20000", x.Code, strings.Count(stdout, "\n"))
		}
	}
}

func TestOutOfMemoryKillsTheCommandOnly(t *testing.T) {
	onHostKernel(t)
	w := newWorld(t)
	e := w.start("env-1", func(s *sandbox.Spec) { s.Limits.Memory = 64 << 20 })
	run := e.launch(guest.Command{Argv: []string{"/probe/" + filepath.Base(os.Args[0])}, Env: []string{probeVariable + "=eat:" + strconv.Itoa(256<<20)}})
	if x := e.wait(run); x.Code != 137 || !x.OOM {
		t.Errorf("got = %+v, want killed for memory", x)
	}
	u, err := w.runtime.Usage(t.Context(), "env-1")
	if err != nil || u.OOMKill < 1 || u.CPU <= 0 || u.PIDs < 1 || u.Memory <= 0 {
		t.Errorf("usage: got = %+v %v, want a kill", u, err)
	}
	if got := e.shell("echo alive"); got != "alive" {
		t.Errorf("got = %q, want alive", got)
	}
	if x, _, _ := e.run("sh", "-c", "kill -9 $$"); x.OOM {
		t.Error("a plain kill is reported as out of memory")
	}
}

func TestForkBombIsBoundedAndStops(t *testing.T) {
	onHostKernel(t)
	w := newWorld(t)
	e := w.start("env-1", func(s *sandbox.Spec) { s.Limits.PIDs = 64 })
	e.launch(guest.Command{Argv: []string{"bash", "-c", ":(){ :|:& };:; sleep 1000"}})
	e.launch(guest.Command{Argv: []string{"bash", "-c", "while :; do sleep 1000 & done"}})
	var most int64
	for range 50 {
		u, err := w.runtime.Usage(t.Context(), "env-1")
		if err != nil {
			t.Fatal(err)
		}
		most = max(most, u.PIDs)
		time.Sleep(10 * time.Millisecond)
	}
	if most < 40 || most > 64+reserveForGuest {
		t.Errorf("tasks: got = %d at most, want at least 40 and not above the limit", most)
	}
	run := e.launch(guest.Command{Argv: []string{"true"}})
	e.wait(run) // the guest lives, whether there was room for the command or not
	begin := time.Now()
	if err := w.runtime.Stop(t.Context(), "env-1"); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped in %v", time.Since(begin))
	if s, err := w.runtime.Inspect(t.Context(), "env-1"); s != sandbox.Gone {
		t.Errorf("got = %v %v, want gone", s, err)
	}
}

// reserveForGuest is how many tasks the guest may have beside its commands.
const reserveForGuest = 32
