package sandbox

// prepared is a start that has begun. Its guest holds nothing of the
// environment's but its variables, and nobody can reach it.
type prepared struct {
	done  chan struct{} // closed when the rest is set
	guest *begun
	err   error
}

// Prepare implements Preparer.
func (n *Native) Prepare(s Spec) {
	if s.check() != nil {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.prepared[s.Environment] == nil {
		n.prepared[s.Environment] = n.prepare(s)
	}
}

// prepare begins a start beside its caller.
func (n *Native) prepare(s Spec) *prepared {
	p := &prepared{done: make(chan struct{})}
	go func() {
		defer close(p.done)
		p.guest, p.err = n.begin(s)
	}()
	return p
}

// wait returns the guest when it has begun.
func (p *prepared) wait() (*begun, error) {
	<-p.done
	return p.guest, p.err
}

// drop lets the guest end; nil does nothing.
func (p *prepared) drop() {
	if p == nil {
		return
	}
	if guest, err := p.wait(); err == nil {
		guest.release()
	}
}

// take returns what Prepare has begun, if anything, for the caller to finish
// or drop.
func (n *Native) take(env string) *prepared {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.prepared[env]
	delete(n.prepared, env)
	return p
}

func (n *Native) isPrepared(env string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.prepared[env] != nil
}

// dropAll lets all guests end that wait for Start.
func (n *Native) dropAll() {
	n.mu.Lock()
	all := n.prepared
	n.prepared = map[string]*prepared{}
	n.mu.Unlock()
	for _, p := range all {
		p.drop()
	}
}
