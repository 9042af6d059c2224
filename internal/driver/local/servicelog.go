package local

import (
	"context"
	"errors"
	"io"
	"syscall"

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
	ids, err := d.processes(v)
	if err != nil {
		return nil, err
	}
	l := &serviceLog{}
	for i, id := range ids {
		var a mayfly.Attachment
		if follow && i == len(ids)-1 {
			a, err = d.Attach(ctx, h, id, true)
		} else {
			a, err = guest.OpenLog(d.pool.Host(h.Environment), id)
		}
		if mayfly.KindOf(err) == mayfly.NotFound {
			continue // forgotten meanwhile
		}
		if err != nil {
			return nil, errors.Join(err, l.Close())
		}
		l.logs = append(l.logs, a)
	}
	return l, nil
}

// serviceLog is what several processes wrote, one after the other.
type serviceLog struct {
	logs []mayfly.Attachment
	at   int // the one that is read
}

func (l *serviceLog) Recv() (mayfly.Output, error) {
	for l.at < len(l.logs) {
		o, err := l.logs[l.at].Recv()
		if err != io.EOF {
			return o, err
		}
		l.at++
	}
	return mayfly.Output{}, io.EOF
}

func (l *serviceLog) Close() error {
	var err error
	for _, a := range l.logs {
		err = errors.Join(err, a.Close())
	}
	return err
}

// errNoInput answers whatever would reach the processes of a service.
var errNoInput = mayfly.Errorf(mayfly.Unsupported, "a service takes no input and no signals from outside")

func (l *serviceLog) Write([]byte) (int, error)   { return 0, errNoInput }
func (l *serviceLog) CloseWrite() error           { return nil }
func (l *serviceLog) Resize(_, _ uint16) error    { return nil }
func (l *serviceLog) Signal(syscall.Signal) error { return errNoInput }
