package sandbox

import (
	"net"
	"sync"
)

// listeners are those open in environments. They end with the environment's
// processes: an open socket would keep its network namespace.
type listeners struct {
	mu   sync.Mutex
	open map[string]map[*listener]struct{} // by environment
}

// listener is one of them.
type listener struct {
	net.Listener
	all *listeners
	env string
}

func (all *listeners) keep(env string, l net.Listener) *listener {
	kept := &listener{Listener: l, all: all, env: env}
	all.mu.Lock()
	defer all.mu.Unlock()
	if all.open == nil {
		all.open = map[string]map[*listener]struct{}{}
	}
	if all.open[env] == nil {
		all.open[env] = map[*listener]struct{}{}
	}
	all.open[env][kept] = struct{}{}
	return kept
}

// Close closes the listener; what it accepted stays open.
func (l *listener) Close() error {
	l.all.mu.Lock()
	delete(l.all.open[l.env], l)
	if len(l.all.open[l.env]) == 0 {
		delete(l.all.open, l.env)
	}
	l.all.mu.Unlock()
	return l.Listener.Close()
}

// closeOf closes the listeners of an environment.
func (all *listeners) closeOf(env string) {
	all.mu.Lock()
	open := all.open[env]
	delete(all.open, env)
	all.mu.Unlock()
	for l := range open {
		l.Listener.Close() // who listens hears of it
	}
}

// closeAll closes the listeners of every environment.
func (all *listeners) closeAll() {
	all.mu.Lock()
	var envs []string
	for env := range all.open {
		envs = append(envs, env)
	}
	all.mu.Unlock()
	for _, env := range envs {
		all.closeOf(env)
	}
}
