package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/attach"
)

// runHandler serves the methods that take nothing but a run's id. They may
// wait for long, so they end with the server.
func runHandler(do func(mayfly.Service, context.Context, string) (mayfly.Run, error)) func(*Server, http.ResponseWriter, *http.Request) error {
	return func(s *Server, w http.ResponseWriter, r *http.Request) error {
		ctx, done := s.streaming(r)
		defer done()
		run, err := do(s.svc, ctx, r.PathValue("id"))
		return answer(w, http.StatusOK)(run, cause(ctx, err))
	}
}

func (s *Server) startRun(w http.ResponseWriter, r *http.Request) error {
	var q mayfly.StartRun
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	return answer(w, http.StatusCreated)(s.svc.StartRun(r.Context(), q))
}

func (s *Server) listRuns(w http.ResponseWriter, r *http.Request) error {
	list, err := s.svc.Runs(r.Context(), mayfly.RunFilter{Environment: r.URL.Query().Get("environment")})
	return answerList(w, list, err)
}

func (s *Server) attachRun(w http.ResponseWriter, r *http.Request) error {
	return s.attach(w, r, "attachRun", func(ctx context.Context, follow bool) (mayfly.Attachment, error) {
		return s.svc.AttachRun(ctx, r.PathValue("id"), follow)
	})
}

func (s *Server) attachService(w http.ResponseWriter, r *http.Request) error {
	return s.attach(w, r, "attachService", func(ctx context.Context, follow bool) (mayfly.Attachment, error) {
		return s.svc.AttachService(ctx, r.PathValue("ref"), r.PathValue("service"), follow)
	})
}

// attach upgrades the connection of op and serves an attachment on it.
func (s *Server) attach(w http.ResponseWriter, r *http.Request, op string, open func(ctx context.Context, follow bool) (mayfly.Attachment, error)) error {
	if !strings.EqualFold(r.Header.Get("Upgrade"), attach.Protocol) {
		return mayfly.Errorf(mayfly.Invalid, "the request does not upgrade to %s", attach.Protocol).
			Hint("for plain output use /v1/runs/{id}/logs")
	}
	follow, err := queryBool(r.URL.Query(), "follow")
	if err != nil {
		return err
	}
	ctx, done := s.streaming(r)
	defer done()
	a, err := open(ctx, follow)
	if err != nil {
		return cause(ctx, err)
	}
	defer a.Close()
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return fmt.Errorf("take over the connection: %w", err)
	}
	defer conn.Close()
	w.(*reply).hijacked = true
	id := w.Header().Get("X-Request-Id")
	head := fmt.Sprintf("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\nX-Request-Id: %s\r\n\r\n", attach.Protocol, id)
	if _, err := io.WriteString(conn, head); err != nil {
		return nil // the client has left
	}
	attach.Serve(ctx, conn, rw.Reader, a, func(err error) *mayfly.Error { return s.explain(err, id, op) })
	return nil
}

// streams are the values of the parameter of that name.
var streams = map[string][]mayfly.Stream{
	"":       {mayfly.Stdout, mayfly.Stderr},
	"stdout": {mayfly.Stdout},
	"stderr": {mayfly.Stderr},
}

func (s *Server) getLogs(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	follow, err := queryBool(q, "follow")
	if err != nil {
		return err
	}
	want, ok := streams[q.Get("stream")]
	if !ok {
		return mayfly.Errorf(mayfly.Invalid, "unknown stream %q", q.Get("stream")).Hint("use stdout or stderr")
	}
	ctx, done := s.streaming(r)
	defer done()
	a, err := s.svc.AttachRun(ctx, r.PathValue("id"), follow)
	if err != nil {
		return cause(ctx, err)
	}
	defer a.Close()
	// Closing the attachment is what wakes a Recv that waits.
	defer context.AfterFunc(ctx, func() { a.Close() })()
	if err := startStream(w, octets); err != nil {
		return nil // the client has left
	}
	return cause(ctx, copyOutput(flushWriter{w}, a, want))
}

func copyOutput(w io.Writer, a mayfly.Attachment, want []mayfly.Stream) error {
	for {
		o, err := a.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, s := range want {
			if o.Stream == s {
				if _, err := w.Write(o.Data); err != nil {
					return nil // the client has left
				}
			}
		}
	}
}
