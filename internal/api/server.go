// Package api serves a mayfly.Service as JSON over HTTP, with server-sent
// events and attachments that upgrade the connection. openapi.yaml describes
// it.
package api

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"

	"mayfly.dev/mayfly"
)

// Options configure New. The zero value is good for production.
type Options struct {
	Log       *slog.Logger  // default slog.Default()
	KeepAlive time.Duration // between comments on quiet event streams; default 15 s
	Grace     time.Duration // for requests in flight at shutdown; default 10 s
	Now       func() time.Time
}

// Server answers HTTP requests out of a service.
type Server struct {
	svc       mayfly.Service
	log       *slog.Logger
	keepAlive time.Duration
	grace     time.Duration
	now       func() time.Time
	mux       *http.ServeMux

	stopping context.Context // ends streams and waits when the server stops
	stop     context.CancelCauseFunc

	mu     sync.Mutex // guards the rest
	active int        // requests in flight
	quiet  time.Time  // since when active is 0
}

// New makes a server for svc.
func New(svc mayfly.Service, o Options) *Server {
	s := &Server{svc: svc, log: o.Log, keepAlive: o.KeepAlive, grace: o.Grace, now: o.Now, mux: http.NewServeMux()}
	if s.log == nil {
		s.log = slog.Default()
	}
	if s.keepAlive == 0 {
		s.keepAlive = 15 * time.Second
	}
	if s.grace == 0 {
		s.grace = 10 * time.Second
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.quiet = s.now()
	s.stopping, s.stop = context.WithCancelCause(context.Background())
	for _, rt := range routes {
		s.mux.HandleFunc(rt.method+" "+rt.pattern, func(w http.ResponseWriter, r *http.Request) {
			s.serve(w, r, rt.op, func(w http.ResponseWriter, r *http.Request) error {
				if err := knownQuery(r.URL.Query(), rt.query); err != nil {
					return err
				}
				return rt.handle(s, w, r)
			})
		})
	}
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.serve(w, r, "unknown", func(http.ResponseWriter, *http.Request) error { return noRoute(r) })
	})
	return s
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) { s.mux.ServeHTTP(w, r) }

// Serve answers on l until ctx ends. Then requests in flight may finish within
// the grace period, and streams are told that the server is stopping.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	hs := &http.Server{
		Handler:           s,
		ConnContext:       withPeer,
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: 10 * time.Second,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	served := make(chan error, 1)
	go func() { served <- hs.Serve(l) }()
	select {
	case err := <-served:
		return fmt.Errorf("serve: %w", err)
	case <-ctx.Done():
	}
	s.stop(errStopping)
	grace, done := context.WithTimeout(base, s.grace)
	defer done()
	if hs.Shutdown(grace) != nil {
		cancel() // what does not finish by itself is told to
		hs.Close()
	}
	<-served
	s.awaitQuiet(s.grace)
	return nil
}

// awaitQuiet waits for attachments, which http.Server knows nothing about.
func (s *Server) awaitQuiet(limit time.Duration) {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if !s.QuietSince().IsZero() {
			return
		}
	}
}

// QuietSince says since when no request has been in flight; zero when there
// is one now. Attachments and followed streams count as requests.
func (s *Server) QuietSince() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active > 0 {
		return time.Time{}
	}
	return s.quiet
}

func (s *Server) enter() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.active++
}

func (s *Server) leave() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.active--; s.active == 0 {
		s.quiet = s.now()
	}
}

// serve is what all requests have in common.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, op string, handle handlerFunc) {
	s.enter()
	defer s.leave()
	id := requestID(r, s.now())
	w.Header().Set("X-Request-Id", id)
	w.Header().Set("X-Content-Type-Options", "nosniff")
	actor := peer(r.Context())
	rw := &reply{ResponseWriter: w}
	start := s.now()
	err := guarded(handle, rw, r.WithContext(mayfly.WithActor(r.Context(), actor)))
	status := rw.status
	if err != nil {
		e := s.explain(err, id, op)
		status = e.Kind.HTTPStatus()
		rw.fail(e)
	}
	s.log.Debug("request", "id", id, "op", op, "actor", actor, "status", status, "took", s.now().Sub(start))
}

// guarded turns a panic into an error, so that it is answered and logged like
// every other defect.
func guarded(handle handlerFunc, w http.ResponseWriter, r *http.Request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
		}
	}()
	return handle(w, r)
}

type handlerFunc func(w http.ResponseWriter, r *http.Request) error

// requestID is the client's own when it is a short plain word.
func requestID(r *http.Request, now time.Time) string {
	id := r.Header.Get("X-Request-Id")
	plain := func(c rune) bool {
		return c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '-' || c == '_' || c == '.'
	}
	if id != "" && len(id) <= 64 && strings.IndexFunc(id, func(c rune) bool { return !plain(c) }) < 0 {
		return id
	}
	return mayfly.NewID("req", now)
}

func knownQuery(q url.Values, known []string) error {
	for name, values := range q {
		if !slices.Contains(known, name) {
			return mayfly.Errorf(mayfly.Invalid, "unknown query parameter %q", name)
		}
		if name != "label" && len(values) > 1 {
			return mayfly.Errorf(mayfly.Invalid, "query parameter %q occurs %d times", name, len(values))
		}
	}
	return nil
}

// noRoute says what there is when the path is right and the method wrong.
func noRoute(r *http.Request) error {
	err := mayfly.Errorf(mayfly.NotFound, "no such resource: %s %s", r.Method, r.URL.Path)
	segments := strings.Split(r.URL.Path, "/")
	var methods []string
	for _, rt := range routes {
		if matches(strings.Split(rt.pattern, "/"), segments) {
			methods = append(methods, rt.method)
		}
	}
	if methods != nil {
		return err.Hint("it answers to %s", strings.Join(methods, ", "))
	}
	return err.Hint("see /v1/openapi.yaml")
}

func matches(pattern, segments []string) bool {
	return slices.EqualFunc(pattern, segments, func(p, s string) bool {
		return p == s || strings.HasPrefix(p, "{") && s != ""
	})
}

var errStopping = mayfly.Errorf(mayfly.Unavailable, "the server is stopping").
	Hint("try again: the next command starts a new one")

// errInternal is all that a client learns of a defect.
const errInternal = "internal error"

// explain makes of any error one that the client may see, and logs those that
// it may not.
func (s *Server) explain(err error, id, op string) *mayfly.Error {
	var e *mayfly.Error
	switch {
	case errors.As(err, &e) && e.Kind != mayfly.Internal:
		return e
	case errors.Is(err, context.DeadlineExceeded):
		return mayfly.Errorf(mayfly.Timeout, "the request took too long")
	case errors.Is(err, context.Canceled), errors.Is(err, errClientLeft):
		return mayfly.Errorf(mayfly.Unavailable, "the request was given up")
	case errors.Is(err, errors.ErrUnsupported):
		return mayfly.Errorf(mayfly.Unsupported, "%w", err).Hint("see what this machine can do: mayfly doctor")
	}
	s.log.Error("request failed", "id", id, "op", op, "err", err)
	internal := mayfly.Errorf(mayfly.Internal, errInternal).Hint("the server's log has the cause under the id %s", id)
	internal.ID = id
	return internal
}
