package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"mayfly.dev/mayfly"
)

// door is the gateway of one environment.
type door struct {
	g        *Gateway
	env      string
	server   *http.Server
	served   chan struct{} // closed when serve returned
	bodies   *semaphore.Weighted
	attempts attempts
	live     runSet // replays that went on with the upstream

	mu      sync.Mutex // guards the rest
	active  sync.WaitGroup
	closing bool
}

func newDoor(g *Gateway, env string) *door {
	d := &door{g: g, env: env, served: make(chan struct{}), bodies: semaphore.NewWeighted(g.o.MaxBodies)}
	var http1 http.Protocols
	http1.SetHTTP1(true)
	d.server = &http.Server{
		Handler:                      d,
		Protocols:                    &http1,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            g.o.Stall,
		IdleTimeout:                  5 * time.Minute,
		MaxHeaderBytes:               256 << 10,
		ErrorLog:                     slog.NewLogLogger(g.log.Handler(), slog.LevelDebug),
	}
	return d
}

func (d *door) serve(l net.Listener) {
	defer close(d.served)
	err := d.server.Serve(&limited{Listener: l, free: make(chan struct{}, d.g.o.MaxConns), closed: make(chan struct{})})
	if !errors.Is(err, http.ErrServerClosed) {
		d.g.log.Error("the gateway of an environment ended", "env", d.env, "err", err)
	}
}

func (d *door) close() error {
	d.mu.Lock()
	d.closing = true
	d.mu.Unlock()
	err := d.server.Close()
	<-d.served
	d.active.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("close gateway of %s: %w", d.env, err)
	}
	return nil
}

// shutdown waits for what is passing, until ctx ends, and closes.
func (d *door) shutdown(ctx context.Context) error {
	_ = d.server.Shutdown(ctx) // what does not end by itself is cut
	return d.close()
}

// enter counts a request in, unless the door is closing.
func (d *door) enter() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closing {
		d.active.Add(1)
	}
	return !d.closing
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !d.enter() {
		panic(http.ErrAbortHandler)
	}
	defer d.active.Done()
	defer d.catch()
	d.extend(w)
	rt, ok := findRoute(r.URL.EscapedPath())
	switch {
	case !ok || r.URL.IsAbs() || r.Method == http.MethodConnect:
		faultf(http.StatusNotFound, "nothing is at %s %s. Here are %s", r.Method, shorten(r.URL.Path), knownPaths).write(w, "")
	case rt.subject == reportSubject:
		d.report(w, r, rt)
	default:
		d.model(w, r, rt)
	}
}

// catch logs a defect, and lets the server cut the connection.
func (d *door) catch() {
	if p := recover(); p != nil {
		if p != http.ErrAbortHandler {
			d.g.log.Error("a defect of the gateway cut a request", "env", d.env, "panic", p, "stack", string(debug.Stack()))
		}
		panic(http.ErrAbortHandler)
	}
}

// extend gives the agent time to take what is written next.
func (d *door) extend(w http.ResponseWriter) {
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(d.g.o.Stall))
}

// shorten keeps what an error repeats of its request short.
func shorten(s string) string {
	const limit = 200 // bytes
	if len(s) > limit {
		return s[:limit] + "…"
	}
	return s
}

// admit finds the run that a request belongs to.
func (d *door) admit(r *http.Request) (Admission, *fault) {
	token := credential(r)
	adm, err := d.g.runs.Admit(r.Context(), d.env, token)
	switch {
	case err == nil:
		return adm, nil
	case mayfly.KindOf(err) != mayfly.Forbidden:
		d.g.log.Error("a token cannot be checked", "env", d.env, "err", err)
		return adm, faultf(http.StatusServiceUnavailable, "the token cannot be checked").again()
	case token == "":
		return adm, faultf(http.StatusUnauthorized, "the request shows no token: use the API key that this environment sets")
	}
	return adm, faultf(http.StatusUnauthorized, "the token is not one of an open run of this environment: use the API key that it sets")
}

// readBody reads a request's body whole. The caller calls done when it needs
// it no more.
func (d *door) readBody(w http.ResponseWriter, r *http.Request) ([]byte, *fault) {
	limit, size := d.g.o.MaxBody, r.ContentLength
	out := http.NewResponseController(w)
	if size > limit {
		return nil, d.tooLarge(out, r)
	}
	if size < 0 {
		size = limit
	}
	if err := d.bodies.Acquire(r.Context(), size); err != nil {
		return nil, faultf(http.StatusServiceUnavailable, "too many requests at once").again()
	}
	body, err := d.readAll(out, io.LimitReader(r.Body, limit+1), r.ContentLength)
	if int64(len(body)) > limit {
		d.bodies.Release(size)
		return nil, d.tooLarge(out, r)
	}
	d.bodies.Release(size - int64(len(body)))
	d.extend(w)
	switch {
	case err == nil:
		return body, nil
	case isTimeout(err):
		return nil, faultf(http.StatusRequestTimeout, "the body did not come in time")
	}
	return nil, faultf(http.StatusBadRequest, "the body is not what its header says: %v", err)
}

// tooLarge reads on for a while, since clients that are still writing would
// not see the answer. Those that asked before they write are told at once.
func (d *door) tooLarge(out *http.ResponseController, r *http.Request) *fault {
	limit := d.g.o.MaxBody
	if r.Header.Get("Expect") == "" {
		b := make([]byte, 64<<10)
		for left := 4 * limit; left > 0; {
			out.SetReadDeadline(time.Now().Add(min(time.Second, d.g.o.Stall)))
			n, err := r.Body.Read(b)
			if left -= int64(n); err != nil {
				break
			}
		}
	}
	out.SetReadDeadline(time.Now()) // of the rest
	out.SetWriteDeadline(time.Now().Add(d.g.o.Stall))
	return faultf(http.StatusRequestEntityTooLarge, "the body has more than %d bytes", limit)
}

// readAll reads r, which may pause for as long as agents may stall. Memory is
// for what came, not for what was announced.
func (d *door) readAll(out *http.ResponseController, r io.Reader, size int64) ([]byte, error) {
	const most = 1 << 20 // at first, in bytes
	if size < 0 {
		size = 0
	}
	b := make([]byte, 0, min(size, most)+1)
	for {
		if len(b) == cap(b) {
			b = append(b, 0)[:len(b)]
		}
		out.SetReadDeadline(time.Now().Add(d.g.o.Stall))
		n, err := r.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		if err == io.EOF {
			out.SetReadDeadline(time.Time{}) // it stays otherwise, for the rest of the body
			return b, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

// done gives back what the body took of the environment's share.
func (d *door) done(body []byte) { d.bodies.Release(int64(len(body))) }

// limited is a listener with a limit of open connections: further ones wait in
// the kernel.
type limited struct {
	net.Listener
	free   chan struct{} // has an element for each open connection
	once   sync.Once
	closed chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, free: l.free}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	once sync.Once
	free <-chan struct{}
}

func (c *limitedConn) Close() error {
	c.once.Do(func() { <-c.free })
	return c.Conn.Close()
}
