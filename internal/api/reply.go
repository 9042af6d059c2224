package api

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"mayfly.dev/mayfly"
)

// trailerError carries a mayfly.Error as JSON behind a streamed body that
// could not be completed.
const trailerError = "Mayfly-Error"

// reply remembers whether the answer has begun, for an error that comes late.
type reply struct {
	http.ResponseWriter
	status   int // 0: not begun
	hijacked bool
}

func (w *reply) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *reply) Write(p []byte) (int, error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	return w.ResponseWriter.Write(p)
}

// Unwrap lets http.ResponseController reach the connection.
func (w *reply) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// fail answers with an error, in the trailer when the body has begun.
func (w *reply) fail(e *mayfly.Error) {
	switch {
	case w.hijacked:
	case w.status == 0:
		w.Header().Del("Cache-Control")
		writeJSON(w, e.Kind.HTTPStatus(), e)
	default:
		b, _ := json.Marshal(e) // strings only
		w.Header().Set(http.TrailerPrefix+trailerError, string(b))
	}
}

func writeJSON(w http.ResponseWriter, status int, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode answer: %w", err)
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	w.Write(append(b, '\n')) // a client that has left is nobody to tell
	return nil
}

// flushWriter hands every write to the client at once.
type flushWriter struct {
	w http.ResponseWriter
}

func (f flushWriter) Write(p []byte) (int, error) {
	n, err := f.w.Write(p)
	if err != nil {
		return n, err
	}
	return n, http.NewResponseController(f.w).Flush()
}

// startStream sends the headers of a streamed answer, so that a trailer can
// follow whatever the body's length.
func startStream(w http.ResponseWriter, contentType string) error {
	w.Header().Set("Content-Type", contentType)
	w.WriteHeader(http.StatusOK)
	return http.NewResponseController(w).Flush()
}

// streaming returns the request's context, ended also when the server stops.
func (s *Server) streaming(r *http.Request) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(r.Context())
	stop := context.AfterFunc(s.stopping, func() { cancel(context.Cause(s.stopping)) })
	return ctx, func() { stop(); cancel(nil) }
}

// cause prefers the reason why ctx ended over what it made of err.
func cause(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}
