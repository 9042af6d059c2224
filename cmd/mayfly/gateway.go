package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/control"
	"mayfly.dev/mayfly/internal/gateway"
	"mayfly.dev/mayfly/internal/graph"
	"mayfly.dev/mayfly/internal/recording"
	"mayfly.dev/mayfly/internal/recording/redact"
)

// providersFile says where the model APIs are, in the state directory.
const providersFile = "providers.yaml"

// openRecordings opens what has passed the gateway. The server's own secrets
// are never written.
func openRecordings(stateDir string, p *gateway.Providers) (*recording.Store, error) {
	secrets := redact.FromEnvironment(os.Environ())
	for name, values := range p.Secrets() {
		for _, v := range values {
			secrets = append(secrets, redact.Secret{Name: name, Value: v})
		}
	}
	return recording.Open(filepath.Join(stateDir, "recordings"), recording.Options{Secrets: secrets})
}

// tokenKey returns the key of the runs' tokens; it makes one the first time.
func tokenKey(stateDir string) ([]byte, error) {
	path := filepath.Join(stateDir, "token.key")
	key, err := os.ReadFile(path)
	if err == nil && len(key) == 32 {
		return key, nil
	}
	if err == nil {
		return nil, mayfly.Errorf(mayfly.Invalid, "%s has %d bytes, not 32", path, len(key)).
			Hint("remove it: a new one is made, and runs that are open lose access to their models")
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read token key: %w", err)
	}
	key = make([]byte, 32)
	rand.Read(key) // never fails
	return key, writeSecret(path, key)
}

// writeSecret writes a file for root alone, all or nothing.
func writeSecret(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// runs is the engine as the gateway sees it. The gateway is made before the
// engine, which opens doors as soon as it is there.
type runs struct {
	*control.Engine
	ready chan struct{} // closed when Engine is set
}

func (r *runs) set(e *control.Engine) {
	r.Engine = e
	close(r.ready)
}

// Admit implements gateway.Runs. Every request comes here first.
func (r *runs) Admit(ctx context.Context, env, token string) (gateway.Admission, error) {
	select {
	case <-r.ready:
	case <-ctx.Done():
		return gateway.Admission{}, ctx.Err()
	}
	run, err := r.Engine.Admit(ctx, env, token)
	return gateway.Admission{Environment: run.Environment, Run: run.ID, Locked: run.Locked, Replay: run.Replay}, err
}

// player makes a recording.Player one of the gateway's.
type player struct{ *recording.Player }

func (p player) Answer(ctx context.Context, a gateway.Admission, x mayfly.Exchange, request mayfly.Content) (gateway.Played, error) {
	recorded, content, d, err := p.Player.Answer(ctx, *a.Replay, a.Run, x, request)
	return gateway.Played{Exchange: recorded, Content: content, Divergence: d}, err
}

// keeper makes a recording.Store the engine's recorder.
type keeper struct {
	*recording.Store
	player *recording.Player
}

func (k keeper) Begin(ctx context.Context, run string, exact mayfly.ExactRecording) error {
	mode := recording.Encrypted
	if exact == mayfly.ExactNone {
		mode = recording.None
	}
	return k.Store.Begin(ctx, run, mode)
}

func (k keeper) Ended(run string)                             { k.player.Forget(run) }
func (k keeper) Forget(ctx context.Context, run string) error { return k.DestroyKey(ctx, run) }

// shutdownGrace is how long model calls may go on when the server stops.
const shutdownGrace = 5 * time.Second

func shutdown(g *gateway.Gateway) func() error {
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), shutdownGrace)
		defer cancel()
		return g.Shutdown(ctx)
	}
}

// draw makes the decision graph of a run from its history.
func draw(ctx context.Context, h control.History) (mayfly.Graph, error) {
	in := graph.Input{
		Exchanges: h.Exchanges,
		Content:   func(digest string) (mayfly.Content, error) { return h.Content(ctx, digest) },
		Snapshots: boundaries(h.Snapshots),
	}
	for _, e := range h.Events {
		kind, report := strings.CutPrefix(e.Type, "agent.")
		switch {
		case report:
			in.Reports = append(in.Reports, graph.Report{Kind: kind, Time: e.Time, Content: e.Content})
		case e.Type == "process.started":
			var batch struct{ Processes []mayfly.Process }
			if err := json.Unmarshal(e.Data, &batch); err != nil {
				return mayfly.Graph{}, fmt.Errorf("read event %d: %w", e.Seq, err)
			}
			in.Processes = append(in.Processes, batch.Processes...)
		}
	}
	g, err := graph.Build(h.Run.ID, in)
	if err != nil {
		return g, err
	}
	return g, addFiles(ctx, g.Steps, h)
}

// boundaries finds the snapshots around each step: the next step begins with
// what the one before left, and the last ends with the run.
func boundaries(snapshots []mayfly.Snapshot) map[int]graph.Boundary {
	around := map[int]graph.Boundary{}
	last := 0
	for _, s := range snapshots {
		if s.Kind != mayfly.StepSnapshot && s.Kind != mayfly.FinalSnapshot {
			continue
		}
		if b, ok := around[last]; ok {
			b.After = s.ID
			around[last] = b
		}
		if last = s.Step; last > 0 {
			around[last] = graph.Boundary{Before: s.ID}
		}
	}
	return around
}

// comparing is how many steps are compared at a time.
const comparing = 4

// addFiles says what each step changed.
func addFiles(ctx context.Context, steps []mayfly.Step, h control.History) error {
	errs := make([]error, len(steps))
	places := make(chan struct{}, comparing)
	var wg sync.WaitGroup
	for i := range steps {
		s := &steps[i]
		if files, ok := h.Files[s.Number]; ok {
			s.Files = files
			continue
		}
		if s.Before == "" || s.After == "" {
			continue
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			s.Files, errs[i] = h.Changes(ctx, s.Before, s.After)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
