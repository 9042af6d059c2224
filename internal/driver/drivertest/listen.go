package drivertest

import (
	"net"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
)

const port = 2929

// listener opens the port of an environment.
func (s *suite) listener(h driver.Handle) (net.Listener, error) {
	s.t.Helper()
	d, ok := s.Driver.(driver.Listener)
	if !ok {
		s.t.Fatal("the driver cannot listen") // both that exist can
	}
	return d.Listen(s.ctx, h, port)
}

// say answers everyone at the port of an environment with the word.
func (s *suite) say(h driver.Handle, word string) net.Listener {
	s.t.Helper()
	l, err := s.listener(h)
	s.ok(err)
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			conn.Write([]byte(word + "\n"))
			conn.Close()
		}
	}()
	return l
}

func (s *suite) listen() {
	h, spec := s.up(nil)
	if got := s.run(h, spec, s.Hear(port, "one")...).Code; got == 0 {
		s.t.Error("somebody answered before there was a listener")
	}
	l := s.say(h, "one")
	if _, err := s.listener(h); mayfly.KindOf(err) != mayfly.Conflict {
		s.t.Errorf("listen twice: got = %v, want kind %s", err, mayfly.Conflict)
	}
	for range 3 {
		if got := s.run(h, spec, s.Hear(port, "one")...).Code; got != 0 {
			s.t.Errorf("got = %d, want 0", got)
		}
	}
	s.ok(l.Close())
	if got := s.run(h, spec, s.Hear(port, "one")...).Code; got == 0 {
		s.t.Error("the closed listener answered")
	}
	s.say(h, "two")
	if got := s.run(h, spec, s.Hear(port, "two")...).Code; got != 0 {
		s.t.Errorf("opened again: got = %d, want 0", got)
	}
}

func (s *suite) listenAlone() {
	h, spec := s.up(nil)
	other, otherSpec := s.up(nil)
	s.say(h, "one")
	if got := s.run(other, otherSpec, s.Hear(port, "one")...).Code; got == 0 {
		s.t.Error("another environment reached the listener")
	}
	s.say(other, "other")
	for word, of := range map[string]driver.Handle{"one": h, "other": other} {
		if got := s.run(of, spec, s.Hear(port, word)...).Code; got != 0 {
			s.t.Errorf("%s: got = %d, want 0", word, got)
		}
	}
}

func (s *suite) listenStop() {
	h, spec := s.up(nil)
	l, err := s.listener(h)
	s.ok(err)
	accepted := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		accepted <- err
	}()
	s.ok(s.Driver.Stop(s.ctx, h))
	select {
	case err := <-accepted:
		if err == nil {
			s.t.Error("somebody connected")
		}
	case <-time.After(5 * time.Second):
		s.t.Error("the listener is open after the sandbox was stopped")
	}
	if _, err := s.listener(h); mayfly.KindOf(err) != mayfly.NotFound {
		s.t.Errorf("listen without a sandbox: got = %v, want kind %s", err, mayfly.NotFound)
	}
	s.ok(s.Driver.Start(s.ctx, h, spec))
	s.say(h, "again")
	if got := s.run(h, spec, s.Hear(port, "again")...).Code; got != 0 {
		s.t.Errorf("after the next start: got = %d, want 0", got)
	}
}
