package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"

	"mayfly.dev/mayfly"
)

// frozenName marks, beside runsc's state, a sandbox that is frozen or about to
// be. It is there before the sandbox stands still and until it goes on, so
// that a server that ends in between leaves a sandbox to thaw.
const frozenName = "frozen"

// Freeze implements Runtime. gVisor's kernel stops its tasks itself: each
// finishes the system call that it is in, or the part of it that cannot be
// interrupted, and starts no other. The control group's freezer is not for
// gVisor: the host processes that run the code of commands do not survive that
// their own system calls are interrupted and restarted.
//
// It is not cut short when ctx ends: a request that runsc has sent, and not
// noted as done, cannot be taken back.
func (g *GVisor) Freeze(ctx context.Context, env string) error {
	dir, _, err := g.live(env)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, frozenName), nil, 0o600); err != nil {
		return fmt.Errorf("freeze: %w", err)
	}
	err = g.ask(dir, env, "pause", "paused")
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("freeze: %w", errors.Join(err, g.Thaw(context.WithoutCancel(ctx), env)))
	}
	return nil
}

// Thaw implements Runtime. That the guest answers is looked at when there was
// nothing to resume: runsc may have ended before it noted that it paused.
func (g *GVisor) Thaw(ctx context.Context, env string) error {
	dir, frozen, err := g.live(env)
	if err != nil {
		return err
	}
	if frozen { // by a server that used the control group
		if err := g.cgroups.Thaw(ctx, env); err != nil {
			return missing(env, err)
		}
	}
	marked, err := isMarked(dir)
	if err != nil || !marked {
		return err
	}
	if _, err := g.tell(dir, "resume", env); err != nil {
		if err := errors.Join(g.expect(dir, env, "running", err), g.goesOn(ctx, env)); err != nil {
			return fmt.Errorf("thaw: %w", err)
		}
	}
	if err := os.Remove(filepath.Join(dir, frozenName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("thaw: %w", err)
	}
	return nil
}

// Inspect implements Runtime.
func (g *GVisor) Inspect(ctx context.Context, env string) (State, error) {
	state, err := g.Native.Inspect(ctx, env)
	if err != nil || state != Alive {
		return state, err
	}
	marked, err := isMarked(g.dir(env))
	if err != nil {
		return "", fmt.Errorf("inspect sandbox: %w", err)
	}
	if marked {
		return Frozen, nil
	}
	return Alive, nil
}

// live finds the directory of a sandbox that has processes, and whether their
// control group is frozen.
func (g *GVisor) live(env string) (dir string, frozen bool, err error) {
	_, populated, frozen, err := g.cgroups.Look(env)
	if err == nil && !populated {
		err = fs.ErrNotExist
	}
	return g.dir(env), frozen, missing(env, err)
}

func (g *GVisor) dir(env string) string { return filepath.Join(g.host(env), gvisorName) }

func isMarked(dir string) (bool, error) {
	_, err := os.Lstat(filepath.Join(dir, frozenName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// ask tells runsc to do something to a sandbox, unless it was done before.
func (g *GVisor) ask(dir, env, command, status string) error {
	_, err := g.tell(dir, command, env)
	if err != nil {
		return g.expect(dir, env, status, err)
	}
	return nil
}

// expect returns refused unless the sandbox has the status.
func (g *GVisor) expect(dir, env, status string, refused error) error {
	text, err := g.tell(dir, "state", env)
	if err != nil {
		return errors.Join(refused, err)
	}
	var state struct {
		Status string `json:"status"`
	}
	if err := json.Unmarshal(text, &state); err != nil {
		return errors.Join(refused, err)
	}
	if state.Status != status {
		return refused
	}
	return nil
}

// goesOn returns nil when the guest answers.
func (g *GVisor) goesOn(ctx context.Context, env string) error {
	alive, err := answers(ctx, Spec{Environment: env, Host: g.host(env)}, g.Dial)
	if err == nil && !alive {
		err = mayfly.Errorf(mayfly.Unavailable, "the guest of environment %s does not answer", env)
	}
	return err
}

// tell runs a command of runsc about the sandbox and returns its output.
func (g *GVisor) tell(dir, command, env string) ([]byte, error) {
	cmd := exec.Command(g.runsc, "--root="+filepath.Join(dir, stateName), command, env)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a signal to the server's group is not for it
	var words bytes.Buffer
	cmd.Stderr = &words
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("runsc %s: %w: %s", command, err, bytes.TrimSpace(words.Bytes()))
	}
	return out, nil
}
