package gateway

import (
	"context"
	"sync"

	"mayfly.dev/mayfly"
)

// attempts remembers the last requests of an environment's runs, to recognise
// those that repeat one that failed.
type attempts struct {
	mu   sync.Mutex // guards the rest, and the attempts themselves
	ring [64]*attempt
	next int
}

// attempt is one request that may be repeated.
type attempt struct {
	all      *attempts
	run, key string
	session  string
	agent    string
	number   int // of its exchange; 0 until it began
	repeats  int // number of the exchange that it repeats; 0 when none
	over     bool
	failed   bool
	waiting  context.Context // ends when the agent no longer waits
}

// open notes a request, and finds the one that it repeats: the last equal one,
// if that failed or its agent went away.
func (a *attempts) open(ctx context.Context, run string, x mayfly.Exchange) *attempt {
	a.mu.Lock()
	defer a.mu.Unlock()
	t := &attempt{all: a, run: run, key: x.Key, session: x.Session, agent: x.Agent, waiting: ctx}
	for i := range a.ring {
		last := a.ring[(a.next-1-i+2*len(a.ring))%len(a.ring)]
		if last == nil || last.key == "" || last.run != run || last.key != x.Key || last.session != x.Session || last.agent != x.Agent {
			continue
		}
		if last.number != 0 && (last.over && last.failed || !last.over && last.waiting.Err() != nil) {
			t.repeats = last.number
		}
		break
	}
	a.ring[a.next] = t
	a.next = (a.next + 1) % len(a.ring)
	return t
}

// began notes the number of the attempt's exchange.
func (t *attempt) began(number int) {
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	t.number = number
}

// end notes how the attempt ended.
func (t *attempt) end(failed bool) {
	t.all.mu.Lock()
	defer t.all.mu.Unlock()
	t.over, t.failed, t.waiting = true, failed, nil
}

// runSet is a set of runs that is safe for use at once.
type runSet struct {
	mu  sync.Mutex
	set map[string]bool
}

func (s *runSet) has(run string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.set[run]
}

func (s *runSet) add(run string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.set == nil {
		s.set = map[string]bool{}
	}
	s.set[run] = true
}
