package api

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"mayfly.dev/mayfly"
)

// listEvents sends a JSON list of what there is, or, with follow, server-sent
// events (HTML standard, section 9.2) that go on.
func (s *Server) listEvents(w http.ResponseWriter, r *http.Request) error {
	q := r.URL.Query()
	follow, err := queryBool(q, "follow")
	if err != nil {
		return err
	}
	f := mayfly.EventFilter{Environment: q.Get("environment"), Run: q.Get("run"), Follow: follow}
	if after := cmp.Or(r.Header.Get("Last-Event-ID"), q.Get("after")); after != "" {
		if f.After, err = strconv.ParseUint(after, 10, 64); err != nil {
			return mayfly.Errorf(mayfly.Invalid, "bad event number %q", after).Hint("use the seq of the last event that you have")
		}
	}
	if follow {
		return s.followEvents(w, r, f)
	}
	list := eventList{w: w}
	if err := s.svc.Events(r.Context(), f, list.add); err != nil {
		if errors.Is(err, errClientLeft) {
			return nil
		}
		return err
	}
	return list.end()
}

// eventList writes a JSON array one element at a time.
type eventList struct {
	w     http.ResponseWriter
	begun bool
}

func (l *eventList) add(e mayfly.Event) error {
	b, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event %d: %w", e.Seq, err)
	}
	sep := ",\n"
	if !l.begun {
		l.begun = true
		sep = "["
		if startStream(l.w, "application/json") != nil {
			return errClientLeft
		}
	}
	if _, err := io.WriteString(l.w, sep+string(b)); err != nil {
		return errClientLeft
	}
	return nil
}

func (l *eventList) end() error {
	end := "]\n"
	if !l.begun {
		l.w.Header().Set("Content-Type", "application/json")
		end = "[]\n"
	}
	io.WriteString(l.w, end) // a client that has left is nobody to tell
	return nil
}

func (s *Server) followEvents(w http.ResponseWriter, r *http.Request, f mayfly.EventFilter) error {
	ctx, done := s.streaming(r)
	defer done()
	sse := &eventStreamWriter{w: w}
	// Headers go out before the first event, unless the request is wrong:
	// the first keep-alive comes soon, so that a client knows it is heard.
	var wg sync.WaitGroup
	quit := make(chan struct{})
	wg.Go(func() {
		timer := time.NewTimer(50 * time.Millisecond)
		defer timer.Stop()
		for {
			select {
			case <-timer.C:
				sse.send(": keep-alive\n\n")
				timer.Reset(s.keepAlive)
			case <-quit:
				return
			}
		}
	})
	err := s.svc.Events(ctx, f, func(e mayfly.Event) error {
		b, err := json.Marshal(e)
		if err != nil {
			return fmt.Errorf("encode event %d: %w", e.Seq, err)
		}
		return sse.send(fmt.Sprintf("id: %d\ndata: %s\n\n", e.Seq, b))
	})
	close(quit)
	wg.Wait()
	if err = cause(ctx, err); err == nil || errors.Is(err, errClientLeft) || r.Context().Err() != nil {
		return nil
	}
	if !sse.begun {
		return err
	}
	b, _ := json.Marshal(s.explain(err, w.Header().Get("X-Request-Id"), "listEvents")) // strings only
	sse.send(fmt.Sprintf("event: end\ndata: %s\n\n", b))
	return nil
}

var errClientLeft = errors.New("the client has left")

// eventStreamWriter sends whole events at once.
type eventStreamWriter struct {
	mu    sync.Mutex // guards the rest
	w     http.ResponseWriter
	begun bool
}

func (s *eventStreamWriter) send(text string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.begun {
		s.begun = true
		s.w.Header().Set("Content-Type", eventStream)
		s.w.Header().Set("Cache-Control", "no-store")
	}
	if _, err := (flushWriter{s.w}).Write([]byte(text)); err != nil {
		return errClientLeft
	}
	return nil
}
