package drivertest

import (
	"context"
	"net"
	"strings"
	"sync"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
)

// pipes is a listener whose connections are pairs of net.Pipe.
type pipes struct {
	port   int
	queue  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case conn := <-p.queue:
		return conn, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: p.port} }

func (p *pipes) isOpen() bool {
	select {
	case <-p.closed:
		return false
	default:
		return true
	}
}

// Listen implements driver.Listener; Dial connects as a process inside would.
func (m *Memory) Listen(ctx context.Context, h driver.Handle, port int) (l net.Listener, err error) {
	err = m.do("listen", func() error {
		e := m.envs[h.Environment]
		if e == nil || e.sandbox != driver.SandboxAlive && e.sandbox != driver.SandboxFrozen {
			return mayfly.Errorf(mayfly.NotFound, "environment %s does not run", h.Environment)
		}
		if old := e.listeners[port]; old != nil && old.isOpen() {
			return mayfly.Errorf(mayfly.Conflict, "port %d of environment %s is taken", port, h.Environment)
		}
		p := &pipes{port: port, queue: make(chan net.Conn), closed: make(chan struct{})}
		e.listeners[port] = p
		l = p
		return nil
	})
	if err != nil && l != nil { // it failed behind the effect: a socket nobody has is closed
		l.Close()
		return nil, err
	}
	return l, err
}

// Dial connects to a port inside an environment, as a process in it would.
func (m *Memory) Dial(ctx context.Context, env string, port int) (net.Conn, error) {
	m.mu.Lock()
	var p *pipes
	if e := m.envs[env]; e != nil {
		p = e.listeners[port]
	}
	m.mu.Unlock()
	refused := mayfly.Errorf(mayfly.Unavailable, "nobody listens at port %d of environment %s", port, env)
	if p == nil || !p.isOpen() {
		return nil, refused
	}
	ours, theirs := net.Pipe()
	select {
	case p.queue <- theirs:
		return ours, nil
	case <-p.closed:
		return nil, refused
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// hear is the command that ends with 0 when it hears the word at the port.
func (m *Memory) hear(env string, port int, word string, p *process) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		select {
		case <-p.ended:
			cancel()
		case <-ctx.Done():
		}
	}()
	code := 1
	if conn, err := m.Dial(ctx, env, port); err == nil {
		stop := context.AfterFunc(ctx, func() { conn.Close() })
		b := make([]byte, len(word)+1)
		if n, _ := conn.Read(b); strings.TrimSpace(string(b[:n])) == word {
			code = 0
		}
		stop()
		conn.Close()
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p.end(code, "")
}
