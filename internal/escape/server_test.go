//go:build linux

package escape

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// server is the whole program: a server with a state directory, and the
// command line as a person uses it.
type server struct {
	w     *world
	iso   string
	bin   string
	state string
	repo  string
}

// newServer starts a server that has the marker in its environment variables
// and a repository whose only file is the probe.
func newServer(t *testing.T, w *world) *server {
	t.Helper()
	s := &server{w: w, iso: newIsolation(t).name, bin: filepath.Join(w.dir, "bin"), state: filepath.Join(w.dir, "state"), repo: filepath.Join(w.dir, "repo")}
	build := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", s.bin+"/", "mayfly.dev/mayfly/cmd/mayfly", "mayfly.dev/mayfly/cmd/mayfly-guest")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build mayfly: %v\n%s", err, out)
	}
	check(t, os.Mkdir(s.repo, 0o755))
	program, err := os.ReadFile(w.probe)
	check(t, err)
	put(t, filepath.Join(s.repo, "probe"), string(program), 0o755)
	for _, args := range [][]string{{"init", "-q"}, {"add", "."}, {"-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", "probe"}} {
		cmd := exec.Command("git", args...)
		cmd.Dir = s.repo
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("git %v: %v\n%s", args, err, out)
		}
	}
	var log bytes.Buffer
	serve := s.command(context.Background(), "serve")
	serve.Env = append(serve.Env, "SECRET="+w.vars["marker"])
	serve.Stdout, serve.Stderr = &log, &log
	check(t, serve.Start())
	t.Cleanup(func() {
		serve.Process.Signal(syscall.SIGTERM)
		if err := serve.Wait(); err != nil {
			t.Errorf("serve: %v\n%s", err, log.String())
		}
	})
	w.vars["socket"] = filepath.Join(s.state, "mayfly.sock")
	for range 500 {
		if _, err := os.Stat(w.vars["socket"]); err == nil {
			return s
		}
		time.Sleep(20 * time.Millisecond)
	}
	t.Fatalf("no server came up\n%s", log.String())
	return nil
}

func (s *server) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(s.bin, "mayfly"), append([]string{"--state", s.state}, args...)...)
	cmd.Dir = s.repo
	cmd.Env = os.Environ()
	return cmd
}

// mayfly runs a command that must succeed and returns its standard output.
func (s *server) mayfly(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := s.command(ctx, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("mayfly %s: %v\n%s", strings.Join(args, " "), err, stderr.String())
	}
	return string(out)
}

func (s *server) create(t *testing.T, name string) {
	t.Helper()
	s.mayfly(t, "env", "create", "--isolation", s.iso, "--name", name, "--ttl", "20m")
	t.Cleanup(func() {
		if out, err := s.command(context.Background(), "env", "delete", name).CombinedOutput(); err != nil {
			t.Errorf("delete %s: %v\n%s", name, err, out)
		}
	})
}

// TestEveryDoorIsShutThroughTheServer tries the doors from an environment as
// the whole program makes it. What needs a layer of the suite's own is left
// to TestEveryDoorIsShut.
func TestEveryDoorIsShutThroughTheServer(t *testing.T) {
	w := newWorld(t)
	s := newServer(t, w)
	s.create(t, "escape-a")
	s.create(t, "escape-b")
	w.vars["marker-b"], w.vars["file-b"] = "neighbour-"+w.vars["name"], "/workspace/secret-b"
	s.mayfly(t, "exec", "escape-b", "--", "sh", "-c", `printf %s "$0" >secret-b; setsid ./probe -marker "$0" -count 600 sleep >/dev/null 2>&1 &`, w.vars["marker-b"])
	found, err := filepath.Glob(filepath.Join(s.state, "pool/envs/*/live/upper/workspace/secret-b"))
	if err != nil || len(found) != 1 {
		t.Fatalf("the neighbour's file on disk: got = %v, %v", found, err)
	}
	w.vars["file-b-host"] = found[0]
	for _, d := range doors {
		if d.tty || strings.Contains(d.in, "/probe/") {
			continue
		}
		t.Run(d.row(), func(t *testing.T) {
			args := append([]string{"exec", "escape-a", "--", "/workspace/probe"}, append(w.expand(d.args+" "+d.in), d.name)...)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			out, err := s.command(ctx, args...).Output()
			inside := parse(out, fmt.Sprint(err))
			emulated := s.iso == "gvisor" && d.emulated != ""
			report.add(s.iso+", server", d.row(), d.inside(isolation{emulate: s.iso == "gvisor"}, inside), "as above")
			if inside.Open && !emulated {
				t.Errorf("open inside: %s", inside.Detail)
			}
		})
	}
}

// TestServerFollowsNoLinkOfAVolume has the server read a volume while a command inside makes files and links change places. The
// control reads as a careless server would, and gets out.
func TestServerFollowsNoLinkOfAVolume(t *testing.T) {
	w := newWorld(t)
	s := newServer(t, w)
	s.create(t, "race")
	s.mayfly(t, "exec", "-d", "race", "--", "/workspace/probe", "-path", w.vars["secret"], "-count", "20", "swap-links")
	var upper []string
	for range 200 {
		if upper, _ = filepath.Glob(filepath.Join(s.state, "pool/envs/*/live/upper/workspace/tree-link")); len(upper) == 1 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if len(upper) != 1 {
		t.Fatalf("the volume on disk: got = %v", upper)
	}
	workspace, careless := filepath.Dir(upper[0]), 0
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); {
		for _, p := range []string{"tree/secret", "file"} {
			if b, err := os.ReadFile(filepath.Join(workspace, p)); err == nil && strings.Contains(string(b), w.vars["marker"]) {
				careless++
			}
		}
	}
	if careless == 0 {
		t.Error("a careless reader was never led out: the race proves nothing")
	}
	reads := 0
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); reads++ {
		for _, args := range [][]string{{"diff", "race"}, {"diff", "race", "--all"}, {"diff", "race", "--path", "/workspace/tree"}} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			out, err := s.command(ctx, args...).CombinedOutput()
			cancel()
			// That a path is a link or gone at the moment is a fair answer.
			if strings.Contains(string(out), w.vars["marker"]) {
				t.Fatalf("mayfly %v was led out of the volume: %q, %v", args, out, err)
			}
		}
	}
	report.add(s.iso+", server", "link-race", fmt.Sprintf("shut: %d rounds of diff", reads), fmt.Sprintf("open: led out %d times", careless))
}
