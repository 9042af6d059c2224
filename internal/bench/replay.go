package main

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"mayfly.dev/mayfly/internal/scriptedmodel"
)

// thinking is what a model takes before it answers, and each event of an
// answer after it, as fast models do.
const (
	thinking = time.Second
	perEvent = 20 // milliseconds
)

// replays measures a run of an agent whose model takes its time, and the
// replay of that run, from start to exit of the command line.
func (b *bench) replays(ctx context.Context) error {
	steps := b.few + 1
	stop, err := b.model(steps)
	if err != nil {
		return err
	}
	defer stop()
	dir, err := b.repository(ctx, "agent", 100)
	if err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", filepath.Join(dir, "agent"), "mayfly.dev/mayfly/internal/scriptedmodel/agent")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the agent: %w: %s", err, out)
	}
	cmd := b.command(ctx, "run", "--name", "replayed", "--", "./agent", "-p", "repair it")
	cmd.Dir = dir
	recorded, err := whole(cmd)
	if err != nil {
		return err
	}
	var again samples
	for range b.few {
		cmd := b.command(ctx, "replay", "--rm", "replayed")
		cmd.Dir = dir
		ms, err := whole(cmd)
		if err != nil {
			return err
		}
		again = append(again, ms)
	}
	b.report(again.result(fmt.Sprintf("replay of %d steps", steps), "ms").against("recorded run", recorded).ratioAtMost(1))
	_, err = b.DeleteEnvironment(ctx, "replayed")
	return err
}

// model starts a scripted model and tells the server where it is.
func (b *bench) model(steps int) (stop func(), err error) {
	s := &scriptedmodel.Script{}
	for i := range steps - 1 {
		step := scriptedmodel.Step{Say: fmt.Sprintf("This is part %d.", i)}
		step.Run = fmt.Sprintf("echo %d >>work.txt && cat work.txt", i)
		step.Trouble.Pause = perEvent
		s.Steps = append(s.Steps, step)
	}
	s.Steps = append(s.Steps, scriptedmodel.Step{Say: "Done."})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	model := &scriptedmodel.Server{Script: s}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(thinking)
		model.ServeHTTP(w, r)
	})}
	served := make(chan struct{})
	go func() {
		defer close(served)
		server.Serve(l)
	}()
	stop = func() { server.Close(); <-served }
	key := filepath.Join(b.dir, "model.key")
	providers := fmt.Sprintf("providers:\n  - name: anthropic\n    url: http://%s\n    key_file: %s\n", l.Addr(), key)
	for path, text := range map[string]string{key: "key-of-the-bench\n", filepath.Join(b.state, "providers.yaml"): providers} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			stop()
			return nil, err
		}
	}
	return stop, nil
}
