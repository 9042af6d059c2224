package local

import (
	"context"
	"io"
	"sync"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/guest"
)

// AttachService implements driver.Servicer.
func (d *Driver) AttachService(ctx context.Context, h driver.Handle, s driver.Spec, name string, follow bool) (mayfly.Attachment, error) {
	v, err := serviceOf(h, s, name)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx)) // until it is closed
	return &serviceLog{d: d, v: v, follow: follow, ctx: ctx, cancel: cancel}, nil
}

// serviceLog is what several processes wrote, one after the other.
type serviceLog struct {
	d      *Driver
	v      service
	follow bool
	ctx    context.Context // ends with the log
	cancel context.CancelFunc
	last   string // the process that is read, or was

	mu  sync.Mutex        // guards log
	log mayfly.Attachment // of last; nil before its first output and after its end
}

// newProcessEvery is how often a follower looks for the next process.
const newProcessEvery = 100 * time.Millisecond

func (l *serviceLog) Recv() (mayfly.Output, error) {
	for {
		if l.log == nil {
			if err := l.next(); err != nil {
				return mayfly.Output{}, err
			}
		}
		o, err := l.log.Recv()
		if err != io.EOF {
			return o, err
		}
		l.log.Close()
		l.set(nil)
	}
}

// set takes over the log of a process, which is closed with the whole.
func (l *serviceLog) set(log mayfly.Attachment) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log = log
	if log != nil && l.ctx.Err() != nil {
		log.Close()
	}
}

// next opens the log of the process after the last. A follower waits for it,
// until the sandbox has ended.
func (l *serviceLog) next() error {
	for {
		// Looked at first: what has ended since then starts nothing more.
		seen, err := l.d.Inspect(l.ctx, l.v.h)
		if err != nil {
			return l.cause(err)
		}
		ids, err := l.d.processes(l.v)
		if err != nil {
			return err
		}
		for i, id := range ids {
			if id <= l.last {
				continue
			}
			log, err := l.open(id, i == len(ids)-1)
			if mayfly.KindOf(err) == mayfly.NotFound {
				continue // forgotten meanwhile
			}
			if err != nil {
				return l.cause(err)
			}
			l.last = id
			l.set(log)
			return nil
		}
		if !l.follow || seen.Sandbox == driver.SandboxGone || seen.Sandbox == driver.SandboxRemains {
			return io.EOF
		}
		select {
		case <-time.After(newProcessEvery):
		case <-l.ctx.Done():
			return io.EOF
		}
	}
}

// open opens the log of a process, of which more may come if it is the newest.
func (l *serviceLog) open(process string, newest bool) (mayfly.Attachment, error) {
	if l.follow && newest {
		log, err := l.d.Attach(l.ctx, l.v.h, process, true)
		if mayfly.KindOf(err) != mayfly.NotFound {
			return log, err
		}
	}
	return guest.OpenLog(l.d.pool.Host(l.v.h.Environment), process)
}

// cause is the end for whoever has closed the log.
func (l *serviceLog) cause(err error) error {
	if l.ctx.Err() != nil {
		return io.EOF
	}
	return err
}

func (l *serviceLog) Close() error {
	l.cancel()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.log == nil {
		return nil
	}
	return l.log.Close()
}

// errNoInput answers whatever would reach the processes of a service.
var errNoInput = mayfly.Errorf(mayfly.Unsupported, "a service takes no input and no signals from outside")

func (l *serviceLog) Write([]byte) (int, error)   { return 0, errNoInput }
func (l *serviceLog) CloseWrite() error           { return nil }
func (l *serviceLog) Resize(_, _ uint16) error    { return nil }
func (l *serviceLog) Signal(syscall.Signal) error { return errNoInput }
