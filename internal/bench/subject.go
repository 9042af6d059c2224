package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/client"
)

// subject is a server that is measured, and a directory for baselines on the
// same file system.
type subject struct {
	mayfly.Service
	dir      string // everything of this run lies below it
	state    string
	program  string // bin/mayfly
	work     string // the program of package work, built
	template string // of the small repository, once it is prepared
	server   *exec.Cmd
	ended    chan error   // the server has ended
	log      bytes.Buffer // of the server; read only after its end
}

// newSubject starts a server with a new state directory.
func newSubject(ctx context.Context, bin string) (_ *subject, err error) {
	dir, err := os.MkdirTemp("", "mayfly-bench-")
	if err != nil {
		return nil, fmt.Errorf("make directory: %w", err)
	}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	program, err := filepath.Abs(filepath.Join(bin, "mayfly"))
	if err != nil {
		return nil, err
	}
	s := &subject{dir: dir, state: filepath.Join(dir, "state"), program: program, work: filepath.Join(dir, "work")}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", s.work, "mayfly.dev/mayfly/internal/bench/work")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the workload: %w: %s", err, out)
	}
	// Whoever listens in the directory of a stopping server is not this one.
	s.server = exec.Command(program, "serve", "--state", s.state)
	s.server.Stdout, s.server.Stderr = &s.log, &s.log
	if err := s.server.Start(); err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	s.ended = make(chan error, 1)
	go func() { s.ended <- s.server.Wait() }()
	c := client.New(filepath.Join(s.state, socketName))
	s.Service = c
	for patience := time.After(30 * time.Second); c.Ping(ctx) != nil; {
		select {
		case <-s.ended:
			return nil, fmt.Errorf("the server ended at its start:\n%s", s.log.String())
		case <-patience:
			s.server.Process.Kill()
			<-s.ended
			return nil, fmt.Errorf("the server does not answer:\n%s", s.log.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
	return s, nil
}

// socketName is where the server listens in its state directory.
const socketName = "mayfly.sock"

// close deletes every environment, stops the server and removes the
// directory.
func (s *subject) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	environments, err := s.Environments(ctx, mayfly.EnvironmentFilter{})
	for _, e := range environments {
		_, deleteErr := s.DeleteEnvironment(ctx, e.ID)
		err = errors.Join(err, deleteErr)
	}
	s.server.Process.Signal(syscall.SIGTERM)
	if waitErr := <-s.ended; waitErr != nil {
		err = errors.Join(err, fmt.Errorf("server: %w\n%s", waitErr, s.log.String()))
	}
	return errors.Join(err, os.RemoveAll(s.dir))
}

// repository makes a git repository of n files of about 2 KB in 100 files a
// directory, plus the workload program, and returns its directory.
func (s *subject) repository(ctx context.Context, name string, n int) (string, error) {
	dir := filepath.Join(s.dir, name)
	if err := fill(dir, n); err != nil {
		return "", err
	}
	program, err := os.ReadFile(s.work)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "work"), program, 0o755); err != nil {
		return "", err
	}
	// Files as young as the index are read by every git status there will be,
	// which nobody's repository is like for long.
	time.Sleep(time.Second + 100*time.Millisecond)
	for _, args := range [][]string{
		{"init", "-q"}, {"add", "-A"},
		{"-c", "user.name=bench", "-c", "user.email=bench@example.com", "-c", "gc.auto=0", "commit", "-q", "-m", "files"},
	} {
		cmd := exec.CommandContext(ctx, "git", append([]string{"-C", dir}, args...)...)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("git %s: %w: %s", args[0], err, out)
		}
	}
	return dir, nil
}

// fill writes n files of text that differ from each other.
func fill(dir string, n int) error {
	var content []byte
	for i := range n {
		sub := filepath.Join(dir, fmt.Sprintf("d%04d", i/100))
		if i%100 == 0 {
			if err := os.MkdirAll(sub, 0o755); err != nil {
				return err
			}
		}
		content = fmt.Appendf(content[:0], "file %d\n", i)
		for len(content) < 1000+i%2000 {
			content = fmt.Appendf(content, "line %d of %d: nothing in particular\n", len(content), i)
		}
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("f%02d.txt", i%100)), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// environment makes one from a repository through the command line, which
// prepares the template.
func (s *subject) environment(ctx context.Context, dir string) (mayfly.Environment, error) {
	var e mayfly.Environment
	cmd := s.command(ctx, "env", "create", "--json", "--ttl", "2h")
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return e, fmt.Errorf("mayfly env create: %w: %s", err, stderr.String())
	}
	if err := json.Unmarshal(out, &e); err != nil {
		return e, fmt.Errorf("mayfly env create: %w in %q", err, out)
	}
	return e, nil
}

func (s *subject) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.program, args...)
	cmd.Env = append(os.Environ(), "MAYFLY_STATE="+s.state)
	return cmd
}

// exec runs a command inside and returns its standard output.
func (s *subject) exec(ctx context.Context, env string, command ...string) (string, error) {
	return s.started(ctx, mayfly.StartRun{Environment: env, Kind: mayfly.ExecRun, Command: command})
}

// started starts a run and returns its standard output when it has ended.
func (s *subject) started(ctx context.Context, r mayfly.StartRun) (string, error) {
	run, err := s.StartRun(ctx, r)
	if err != nil {
		return "", err
	}
	return s.output(ctx, run)
}

func (s *subject) output(ctx context.Context, run mayfly.Run) (string, error) {
	a, err := s.AttachRun(ctx, run.ID, true)
	if err != nil {
		return "", err
	}
	defer a.Close()
	var out, rest strings.Builder
	for {
		o, err := a.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return "", err
		}
		if o.Stream == mayfly.Stdout {
			out.Write(o.Data)
		} else {
			rest.Write(o.Data)
		}
	}
	run, err = s.WaitRun(ctx, run.ID)
	if err != nil {
		return "", err
	}
	if run.Phase.Ended() && (run.Phase != mayfly.RunExited || run.ExitCode != 0) {
		return "", fmt.Errorf("%v: %s, status %d: %s %s", run.Command, run.Phase, run.ExitCode, run.Reason, rest.String())
	}
	return out.String(), nil
}
