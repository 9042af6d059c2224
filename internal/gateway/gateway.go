// Package gateway is the only way out of an environment: an HTTP server that
// listens on the environment's own loopback, lets requests of its runs pass to
// the model APIs with the real credentials, and records what passes.
package gateway

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"mayfly.dev/mayfly"
)

// Port is where the gateway listens on the loopback of every environment.
const Port = 2929

// Options configure New. Runs and Recorder are required; zero values of the
// rest are good for production.
type Options struct {
	Runs     Runs
	Recorder Recorder
	Player   Player // without one, replays are refused

	Providers *Providers       // default: the built-in ones, with keys from the server's environment
	TLS       *tls.Config      // for upstreams
	Log       *slog.Logger     // default slog.Default()
	Now       func() time.Time // default time.Now

	Silence   time.Duration // longest wait for an upstream's next byte; default 15 min
	Stall     time.Duration // longest wait for an agent to take or send bytes; default 60 s
	Durable   time.Duration // longest wait for the recording; default 30 s
	MaxBody   int64         // of a request, in bytes; default 32 MiB
	MaxBodies int64         // of all requests of an environment at once, in bytes; default 256 MiB
	MaxAnswer int64         // recorded of an answer, in bytes; default 64 MiB
	MaxConns  int           // connections at once, for each environment; default 1024
}

// Gateway serves one listener for each environment.
type Gateway struct {
	runs      Runs
	recorder  Recorder
	player    Player
	transport *http.Transport
	o         Options
	log       *slog.Logger
	now       func() time.Time

	mu     sync.Mutex // guards the rest
	doors  map[string]*door
	closed bool
}

// New makes a gateway that listens nowhere yet.
func New(o Options) *Gateway {
	o = o.withDefaults()
	return &Gateway{
		runs: o.Runs, recorder: o.Recorder, player: o.Player, o: o, log: o.Log, now: o.Now,
		transport: newTransport(o), doors: map[string]*door{},
	}
}

func (o Options) withDefaults() Options {
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	fallback(&o.Silence, 15*time.Minute)
	fallback(&o.Stall, time.Minute)
	fallback(&o.Durable, 30*time.Second)
	fallback(&o.MaxBody, 32<<20)
	fallback(&o.MaxAnswer, 64<<20)
	fallback(&o.MaxBodies, max(256<<20, o.MaxBody))
	fallback(&o.MaxConns, 1024)
	if o.Providers == nil {
		o.Providers, _ = OpenProviders("", o.Log) // nothing is read
	}
	return o
}

func fallback[T comparable](v *T, otherwise T) {
	var zero T
	if *v == zero {
		*v = otherwise
	}
}

// Open serves l for the environment, in the background, and owns it from now
// on. It is a Conflict when the environment has a listener already.
func (g *Gateway) Open(env string, l net.Listener) error {
	d := newDoor(g, env)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return errors.Join(mayfly.Errorf(mayfly.Unavailable, "the gateway is closed"), l.Close())
	}
	if g.doors[env] != nil {
		return errors.Join(mayfly.Errorf(mayfly.Conflict, "environment %s has a gateway already", env), l.Close())
	}
	g.doors[env] = d
	go d.serve(l)
	return nil
}

// Close stops listening for the environment, cuts what is passing, and returns
// when all of it is recorded. Closing what is not open is not an error.
func (g *Gateway) Close(env string) error {
	g.mu.Lock()
	d := g.doors[env]
	delete(g.doors, env)
	g.mu.Unlock()
	if d == nil {
		return nil
	}
	return d.close()
}

// Shutdown stops listening everywhere, lets what is passing end until ctx
// does, and cuts the rest.
func (g *Gateway) Shutdown(ctx context.Context) error {
	g.mu.Lock()
	g.closed = true
	doors := g.doors
	g.doors = map[string]*door{}
	g.mu.Unlock()
	var wg sync.WaitGroup
	errs := make(chan error, len(doors))
	for _, d := range doors {
		wg.Go(func() { errs <- d.shutdown(ctx) })
	}
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	g.transport.CloseIdleConnections()
	return errors.Join(all...)
}
