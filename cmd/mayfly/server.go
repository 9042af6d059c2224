package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/agentconfig"
	"mayfly.dev/mayfly/internal/cgroup"
	"mayfly.dev/mayfly/internal/control"
	"mayfly.dev/mayfly/internal/driver/local"
	"mayfly.dev/mayfly/internal/gateway"
	"mayfly.dev/mayfly/internal/ledger"
	"mayfly.dev/mayfly/internal/postgres"
	"mayfly.dev/mayfly/internal/recording"
	"mayfly.dev/mayfly/internal/sandbox"
	"mayfly.dev/mayfly/internal/store"
	"mayfly.dev/mayfly/internal/volume"
)

// localServer is everything that a server on this machine consists of.
type localServer struct {
	*control.Engine
	door    func() error   // lets what passes the gateway end
	unwatch func()         // ends the watching of processes
	closers []func() error // in the order of opening
}

// newServer puts the parts of the server together upon a state directory that
// the caller has locked. It takes up the environments that it finds there.
func newServer(ctx context.Context, stateDir string, log *slog.Logger) (_ server, err error) {
	s := &localServer{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.closeParts())
		}
	}()
	installation, err := installationID(stateDir)
	if err != nil {
		return nil, err
	}
	state, err := store.Open(ctx, filepath.Join(stateDir, "mayfly.db"))
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, state.Close)
	journal, err := ledger.Open(filepath.Join(stateDir, "ledger"))
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, journal.Close)
	groups, err := cgroup.Open(cgroup.Options{Installation: installation, Root: os.Getenv("MAYFLY_CGROUP")})
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, groups.Close)
	providers, err := gateway.OpenProviders(filepath.Join(stateDir, providersFile), log)
	if err != nil {
		return nil, err
	}
	kept, err := openRecordings(stateDir, providers)
	if err != nil {
		return nil, err
	}
	s.closers = append(s.closers, kept.Close)
	key, err := tokenKey(stateDir)
	if err != nil {
		return nil, err
	}
	pool, err := volume.Open(ctx, volume.Options{Dir: filepath.Join(stateDir, "pool"), Kind: volume.Kind(os.Getenv("MAYFLY_VOLUME"))})
	if err != nil {
		return nil, err
	}
	drv := local.New(local.Options{
		Dir:      filepath.Join(stateDir, "templates"),
		Pool:     pool,
		Runtimes: runtimes(sandbox.Options{Cgroups: groups, Host: pool.Host}),
		Files:    agentconfig.Files(agentconfig.Options{Port: gateway.Port, Hooks: true, ProjectHooks: os.Getenv("MAYFLY_PROJECT_HOOKS") == "1"}),
		Key:      key,
		Sources:  postgres.Sources(filepath.Join(stateDir, "databases.yaml")),
		Log:      log,
	})
	s.closers = append(s.closers, drv.Close)
	if err := drv.Recover(ctx); err != nil {
		return nil, err
	}
	known := &runs{ready: make(chan struct{})}
	played := recording.NewPlayer(kept, func(ctx context.Context, run string) ([]mayfly.Exchange, error) {
		return known.Exchanges(ctx, run)
	})
	door := gateway.New(gateway.Options{Runs: known, Recorder: kept, Player: player{played}, Providers: providers, Log: log})
	watched := &watcher{Doors: door, groups: groups, redact: kept.Redact, log: log, open: map[string]bool{}}
	s.Engine, err = control.New(ctx, control.Options{
		Store: state, Ledger: journal, Driver: drv, Log: log,
		Doors: watched, Port: gateway.Port, TokenKey: key, Variables: agentconfig.Variables,
		Recorder: keeper{kept, played}, Draw: draw,
		Info: mayfly.Info{
			Version: version, Installation: installation, State: stateDir,
			PID: os.Getpid(), Volume: string(pool.Kind()),
		},
	})
	if err != nil {
		return nil, err
	}
	known.set(s.Engine)
	s.door = shutdown(door)
	s.unwatch = background(ctx, func(ctx context.Context) { watched.run(ctx, s.Engine) })
	return s, nil
}

// runtimes lists the isolations, each made when first asked for.
func runtimes(o sandbox.Options) map[mayfly.Isolation]func() (sandbox.Runtime, error) {
	return map[mayfly.Isolation]func() (sandbox.Runtime, error){
		mayfly.Native: sync.OnceValues(func() (sandbox.Runtime, error) {
			return sandbox.NewNative(o)
		}),
		mayfly.GVisor: sync.OnceValues(func() (sandbox.Runtime, error) {
			return sandbox.NewGVisor(o, "")
		}),
	}
}

// Close stops the engine and closes the parts. Environments live on.
func (s *localServer) Close() error {
	err := s.door()
	s.unwatch()
	return errors.Join(err, s.Engine.Close(), s.closeParts())
}

// background runs f until the function that it returns is called, which waits
// for its end.
func background(ctx context.Context, f func(context.Context)) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	wg.Go(func() { f(ctx) })
	return func() {
		cancel()
		wg.Wait()
	}
}

func (s *localServer) closeParts() error {
	var errs []error
	for i := len(s.closers) - 1; i >= 0; i-- {
		errs = append(errs, s.closers[i]())
	}
	s.closers = nil
	return errors.Join(errs...)
}

// installationID returns the random name of a state directory, which names
// its cgroups; it makes one the first time.
func installationID(stateDir string) (string, error) {
	path := filepath.Join(stateDir, "installation")
	text, err := os.ReadFile(path)
	if err == nil {
		return strings.TrimSpace(string(text)), nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read installation id: %w", err)
	}
	var b [4]byte
	rand.Read(b[:]) // never fails
	id := hex.EncodeToString(b[:])
	if err := os.WriteFile(path+".new", []byte(id+"\n"), 0o600); err != nil {
		return "", fmt.Errorf("write installation id: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return "", fmt.Errorf("write installation id: %w", err)
	}
	return id, nil
}
