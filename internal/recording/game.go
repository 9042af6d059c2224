package recording

import (
	"strings"
	"sync"

	"mayfly.dev/mayfly"
)

// game is how far a replay is in a recording. What it returns depends only on
// what it was asked before, so that it can be built again.
type game struct {
	mu       sync.Mutex // guards what follows
	sessions []*session
	byName   map[string]*session // by the replay's names
	sides    lane
}

// session is a recorded session with its agents, each in a lane of its own.
type session struct {
	lanes  []*lane
	byName map[string]*lane // by the replay's names of agents
	taken  bool
}

// lane is a sequence of exchanges.
type lane struct {
	agent  string // as recorded
	list   []mayfly.Exchange
	served []bool
	taken  bool
}

// newGame sorts a recording into lanes. Steps up to fromStep are left out.
func newGame(recorded []mayfly.Exchange, fromStep int) *game {
	g := &game{byName: map[string]*session{}}
	sessions := map[string]*session{}
	for _, x := range recorded {
		if x.Step == 0 {
			g.sides.add(x)
			continue
		}
		if x.Step <= fromStep {
			continue
		}
		s := sessions[x.Session]
		if s == nil {
			s = &session{byName: map[string]*lane{}}
			sessions[x.Session], g.sessions = s, append(g.sessions, s)
		}
		s.recorded(x.Agent).add(x)
	}
	for _, s := range g.sessions {
		for _, l := range s.lanes {
			l.dropUnanswered()
		}
	}
	g.sides.dropUnanswered()
	return g
}

// recorded is the lane of a recorded agent.
func (s *session) recorded(agent string) *lane {
	for _, l := range s.lanes {
		if l.agent == agent {
			return l
		}
	}
	s.lanes = append(s.lanes, &lane{agent: agent})
	return s.lanes[len(s.lanes)-1]
}

func (l *lane) add(x mayfly.Exchange) {
	l.list = append(l.list, x)
	l.served = append(l.served, false)
}

// dropUnanswered leaves out exchanges without an answer that were asked again:
// a client that was cut off, or a server that was not there.
func (l *lane) dropUnanswered() {
	again := map[string]bool{}
	for i := len(l.list) - 1; i >= 0; i-- {
		x := l.list[i]
		if x.Status == 0 && x.Answer == "" && again[x.Key] {
			l.served[i] = true
			continue
		}
		again[x.Key] = x.Key != ""
	}
}

// take returns the exchange that x repeats and remembers that it was asked
// for; nil when there is none. The caller compares the keys.
func (g *game) take(x mayfly.Exchange, side bool) *mayfly.Exchange {
	g.mu.Lock()
	defer g.mu.Unlock()
	if side {
		return g.sides.take(x, sameKind)
	}
	s := g.session(x)
	if s == nil {
		return nil
	}
	l := s.lane(x)
	if l == nil {
		return nil
	}
	return l.take(x, nil)
}

// sameKind reports whether two side calls are for the same thing.
func sameKind(a, b mayfly.Exchange) bool {
	left, _, _ := strings.Cut(a.Path, "?")
	right, _, _ := strings.Cut(b.Path, "?")
	return a.API == b.API && a.Method == b.Method && left == right
}

// take prefers the first exchange with the key of x that was not asked for,
// then the last one that was: a client that asks again what it was told
// already. After them comes the next one of the kind, which is a divergence.
// Side calls may be more than were recorded.
func (l *lane) take(x mayfly.Exchange, kind func(a, b mayfly.Exchange) bool) *mayfly.Exchange {
	next, again, more := -1, -1, -1
	for i := range l.list {
		same := l.list[i].Key == x.Key && l.list[i].API == x.API && x.Key != ""
		switch {
		case same && !l.served[i]:
			l.served[i] = true
			return &l.list[i]
		case same:
			again = i
		case kind != nil && !kind(l.list[i], x):
		case !l.served[i] && next < 0:
			next = i
		case kind != nil && l.served[i]:
			more = i
		}
	}
	for _, i := range []int{again, next, more} {
		if i >= 0 {
			l.served[i] = true
			return &l.list[i]
		}
	}
	return nil
}

// session is the recorded session that stands for the one of x: the one that
// begins with the same request, else the first that stands for none.
func (g *game) session(x mayfly.Exchange) *session {
	if s := g.byName[x.Session]; s != nil {
		return s
	}
	var found *session
	for _, s := range g.sessions {
		if s.taken {
			continue
		}
		if s.lanes[0].list[0].Key == x.Key {
			found = s
			break
		}
		if found == nil {
			found = s
		}
	}
	if found != nil {
		found.taken = true
		g.byName[x.Session] = found
	}
	return found
}

// lane is the recorded agent that stands for the one of x. The main agent
// stands for itself.
func (s *session) lane(x mayfly.Exchange) *lane {
	if l := s.byName[x.Agent]; l != nil {
		return l
	}
	var found *lane
	for _, l := range s.lanes {
		if l.taken || (l.agent == "") != (x.Agent == "") {
			continue
		}
		if l.list[0].Key == x.Key {
			found = l
			break
		}
		if found == nil {
			found = l
		}
	}
	if found != nil {
		found.taken = true
		s.byName[x.Agent] = found
	}
	return found
}

// missing lists what was not asked for, side calls apart.
func (g *game) missing() (list []mayfly.Exchange) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, s := range g.sessions {
		for _, l := range s.lanes {
			for i, x := range l.list {
				if !l.served[i] {
					list = append(list, x)
				}
			}
		}
	}
	return list
}
