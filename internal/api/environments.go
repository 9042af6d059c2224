package api

import (
	"cmp"
	"context"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"mayfly.dev/mayfly"
)

// answer returns a function that takes a service's results and sends them.
func answer(w http.ResponseWriter, status int) func(v any, err error) error {
	return func(v any, err error) error {
		if err != nil {
			return err
		}
		return writeJSON(w, status, v)
	}
}

// answerList sends a list, [] when it is empty.
func answerList[T any](w http.ResponseWriter, list []T, err error) error {
	if err != nil {
		return err
	}
	if list == nil {
		list = []T{}
	}
	return writeJSON(w, http.StatusOK, list)
}

// environmentHandler serves the methods that take nothing but a reference.
func environmentHandler(do func(mayfly.Environments, context.Context, string) (mayfly.Environment, error)) func(*Server, http.ResponseWriter, *http.Request) error {
	return func(s *Server, w http.ResponseWriter, r *http.Request) error {
		return answer(w, http.StatusOK)(do(s.svc, r.Context(), r.PathValue("ref")))
	}
}

func (s *Server) createEnvironment(w http.ResponseWriter, r *http.Request) error {
	var q mayfly.CreateEnvironment
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	return answer(w, http.StatusCreated)(s.svc.CreateEnvironment(r.Context(), q))
}

func (s *Server) listEnvironments(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	deleted, err := queryBool(q, "deleted")
	if err != nil {
		return err
	}
	f := mayfly.EnvironmentFilter{Deleted: deleted}
	for _, l := range q["label"] {
		k, v, ok := strings.Cut(l, "=")
		if !ok {
			return mayfly.Errorf(mayfly.Invalid, "bad label %q", l).Hint("write label=KEY=VALUE")
		}
		if f.Labels == nil {
			f.Labels = map[string]string{}
		}
		f.Labels[k] = v
	}
	list, err := s.svc.Environments(r.Context(), f)
	return answerList(w, list, err)
}

func (s *Server) extendEnvironment(w http.ResponseWriter, r *http.Request) error {
	var q ExtendRequest
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	ttl := time.Duration(q.TTL)
	if err := mayfly.CheckTTL(ttl); err != nil {
		return err
	}
	return answer(w, http.StatusOK)(s.svc.ExtendEnvironment(r.Context(), r.PathValue("ref"), ttl))
}

func (s *Server) createSnapshot(w http.ResponseWriter, r *http.Request) error {
	var q SnapshotRequest
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	return answer(w, http.StatusCreated)(s.svc.CreateSnapshot(r.Context(), r.PathValue("ref"), q.Label))
}

func (s *Server) listSnapshots(w http.ResponseWriter, r *http.Request) error {
	list, err := s.svc.Snapshots(r.Context(), r.PathValue("ref"))
	return answerList(w, list, err)
}

func (s *Server) deleteSnapshot(w http.ResponseWriter, r *http.Request) error {
	return answer(w, http.StatusOK)(s.svc.DeleteSnapshot(r.Context(), r.PathValue("ref"), r.PathValue("snapshot")))
}

func (s *Server) rollback(w http.ResponseWriter, r *http.Request) error {
	var q RollbackRequest
	if err := decodeBody(r, &q); err != nil {
		return err
	}
	return answer(w, http.StatusOK)(s.svc.Rollback(r.Context(), r.PathValue("ref"), q.Snapshot, q.Only))
}

// diffTypes are the formats of a difference. A patch holds the bytes of the
// files, whatever their encoding.
var diffTypes = map[string]string{"patch": octets, "stat": plainText, "json": "application/json"}

func (s *Server) diff(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	format := cmp.Or(q.Get("format"), "patch")
	contentType, ok := diffTypes[format]
	if !ok {
		return mayfly.Errorf(mayfly.Invalid, "unknown diff format %q", format).Hint("use patch, stat or json")
	}
	return s.send(w, r, contentType, func(ctx context.Context) (io.ReadCloser, error) {
		return s.svc.Diff(ctx, mayfly.DiffRequest{
			Environment: r.PathValue("ref"), From: q.Get("from"), To: q.Get("to"), Path: q.Get("path"), Format: format,
		})
	})
}

// rowTypes are the formats of a difference between databases.
var rowTypes = map[string]string{"text": plainText, "json": "application/json", "forward": octets, "reverse": octets}

func (s *Server) diffRows(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	format := cmp.Or(q.Get("format"), "text")
	contentType, ok := rowTypes[format]
	if !ok {
		return mayfly.Errorf(mayfly.Invalid, "unknown format %q", format).Hint("use text, json, forward or reverse")
	}
	return s.send(w, r, contentType, func(ctx context.Context) (io.ReadCloser, error) {
		return s.svc.DiffRows(ctx, mayfly.RowsRequest{Environment: r.PathValue("ref"), From: q.Get("from"), To: q.Get("to"), Format: format})
	})
}

// send streams what open returns.
func (s *Server) send(w http.ResponseWriter, r *http.Request, contentType string, open func(context.Context) (io.ReadCloser, error)) error {
	ctx, done := s.streaming(r)
	defer done()
	body, err := open(ctx)
	if err != nil {
		return cause(ctx, err)
	}
	defer body.Close()
	if err := startStream(w, contentType); err != nil {
		return nil // the client has left
	}
	_, err = io.Copy(flushWriter{w}, body)
	return cause(ctx, err)
}

func (s *Server) hash(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	digest, err := s.svc.Hash(r.Context(), r.PathValue("ref"), q.Get("snapshot"), q.Get("path"))
	return answer(w, http.StatusOK)(HashResponse{digest}, err)
}

func queryBool(q url.Values, name string) (bool, error) {
	v := q.Get(name)
	if v == "" {
		return false, nil
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		return false, mayfly.Errorf(mayfly.Invalid, "bad value %q of query parameter %q", v, name).Hint("use true or false")
	}
	return b, nil
}
