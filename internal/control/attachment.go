package control

import (
	"sync"
	"time"

	"mayfly.dev/mayfly"
)

// attachPatience is how long the output of a run that is removed with its
// environment waits for the reader who was announced.
const attachPatience = 5 * time.Second

// attachment tells the engine when its reader has seen everything or has gone
// away.
type attachment struct {
	mayfly.Attachment
	release func()
}

func (a *attachment) Recv() (mayfly.Output, error) {
	o, err := a.Attachment.Recv()
	if err != nil {
		a.release()
	}
	return o, err
}

func (a *attachment) Close() error {
	a.release()
	return a.Attachment.Close()
}

// hold keeps the output of a run from being removed until it has been read.
func (e *Engine) hold(r *run, a mayfly.Attachment) mayfly.Attachment {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.readers[r.ID]++
	return &attachment{a, sync.OnceFunc(func() {
		e.mu.Lock()
		e.readers[r.ID]--
		e.mu.Unlock()
		e.wake(r.Environment)
	})}
}

// unread reports whether the environment of a run with Remove has to wait for
// readers of its output.
func (e *Engine) unread(s *situation) bool {
	if s.env.Why != whyRemove || !e.Now().Before(s.env.ExpiresAt) {
		return false
	}
	s.by(s.env.ExpiresAt)
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range s.runs {
		readers, came := e.readers[r.ID]
		if readers > 0 {
			return true // the end of reading wakes the environment
		}
		if due := r.EndedAt.Add(attachPatience); r.Attach && !came && e.Now().Before(due) {
			s.by(due)
			return true
		}
	}
	return false
}

func (e *Engine) forgetReaders(s *situation) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range s.runs {
		delete(e.readers, r.ID)
	}
}
