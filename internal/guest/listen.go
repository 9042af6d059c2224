package guest

import (
	"context"
	"fmt"
	"net"
	"sync"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/guest/wire"
)

// listener is a port inside an environment. The guest listens and relays each
// connection over one of its own.
type listener struct {
	dial    func(context.Context) (net.Conn, error)
	control net.Conn // the guest listens while it is open
	port    int
	ctx     context.Context // ends when the listener is closed
	cancel  context.CancelFunc
	watch   sync.WaitGroup
}

// Listen has the guest listen at a port of the environment's loopback device.
// dial connects to the guest: once for the listener, and once for each
// connection. The listener closes itself when the guest ends.
func Listen(ctx context.Context, dial func(context.Context) (net.Conn, error), port int) (net.Listener, error) {
	if port < 1 || port > 65535 {
		return nil, mayfly.Errorf(mayfly.Invalid, "no such port: %d", port)
	}
	control, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	if _, err := request(ctx, control, wire.Request{Op: wire.OpListen, Port: uint16(port)}); err != nil {
		control.Close()
		return nil, fmt.Errorf("listen at port %d: %w", port, err)
	}
	l := &listener{dial: dial, control: control, port: port}
	l.ctx, l.cancel = context.WithCancel(context.WithoutCancel(ctx))
	l.watch.Go(func() {
		control.Read(make([]byte, 1)) // nothing comes but the end
		l.cancel()
	})
	return l, nil
}

// Accept waits for the next connection.
func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.dial(l.ctx)
	if err == nil {
		if _, err = request(l.ctx, conn, wire.Request{Op: wire.OpAccept, Port: uint16(l.port)}); err == nil {
			return conn, nil
		}
		conn.Close()
	}
	if l.ctx.Err() != nil {
		return nil, net.ErrClosed
	}
	return nil, fmt.Errorf("accept at port %d: %w", l.port, err)
}

// Close closes the port; what was accepted stays open.
func (l *listener) Close() error {
	l.cancel()
	err := l.control.Close()
	l.watch.Wait()
	return err
}

func (l *listener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: l.port} }
