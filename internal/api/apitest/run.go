package apitest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
)

// Program is a command of the service: it returns its exit status.
type Program func(p *Process) int

// Process is what a program gets.
type Process struct {
	Args    []string
	Env     map[string]string
	Stdin   io.Reader // at its end at once, unless the run keeps it open
	Stdout  io.Writer
	Stderr  io.Writer
	Signals <-chan syscall.Signal
	// Size is the terminal's.
	Size func() (rows, cols uint16)
	// WriteFile changes the environment's workspace; empty content removes.
	WriteFile func(path, content string)
}

// Programs come with every service.
var Programs = map[string]Program{
	"true":  func(*Process) int { return 0 },
	"false": func(*Process) int { return 1 },
	"echo": func(p *Process) int {
		fmt.Fprintln(p.Stdout, strings.Join(p.Args[1:], " "))
		return 0
	},
	"complain": func(p *Process) int {
		fmt.Fprintln(p.Stderr, strings.Join(p.Args[1:], " "))
		return 3
	},
	"cat": func(p *Process) int {
		io.Copy(p.Stdout, p.Stdin)
		return 0
	},
	"write": func(p *Process) int {
		p.WriteFile(p.Args[1], strings.Join(p.Args[2:], " ")+"\n")
		return 0
	},
	"size": func(p *Process) int {
		<-p.Signals
		rows, cols := p.Size()
		fmt.Fprintf(p.Stdout, "%d %d\n", rows, cols)
		return 0
	},
	"sizes": func(p *Process) int {
		for {
			rows, cols := p.Size()
			fmt.Fprintf(p.Stdout, "%d %d\r\n", rows, cols)
			if rows == 50 {
				return 0
			}
			<-p.Signals
		}
	},
	"key": func(p *Process) int {
		var b [1]byte
		io.ReadFull(p.Stdin, b[:])
		fmt.Fprintf(p.Stdout, "key %d\r\n", b[0])
		return 0
	},
	"wait": func(p *Process) int {
		for sig := range p.Signals {
			if sig != syscall.SIGWINCH {
				return 128 + int(sig)
			}
		}
		return 0
	},
	"exit": func(p *Process) int {
		n, _ := strconv.Atoi(p.Args[1])
		return n
	},
}

type run struct {
	mayfly.Run
	output     []mayfly.Output // guarded by Service.mu, like all below
	stdin      bytes.Buffer
	closed     bool // standard input has ended
	rows, cols uint16
	signals    chan syscall.Signal
	killed     bool
}

func (r *run) signal(sig syscall.Signal) {
	select {
	case r.signals <- sig:
	default: // nobody listens to so many
	}
}

func (r *run) kill() {
	r.killed, r.closed = true, true
	r.signal(syscall.SIGKILL)
}

func (s *Service) run(id string) *run {
	i := slices.IndexFunc(s.runs, func(r *run) bool { return r.ID == id })
	if i < 0 {
		return nil
	}
	return s.runs[i]
}

func (s *Service) findRun(id string) (*run, error) {
	if r := s.run(id); r != nil {
		return r, nil
	}
	return nil, mayfly.Errorf(mayfly.NotFound, "no run %q", id)
}

func (s *Service) StartRun(ctx context.Context, q mayfly.StartRun) (mayfly.Run, error) {
	if err := s.enter(ctx, "StartRun"); err != nil {
		return mayfly.Run{}, err
	}
	defer s.mu.Unlock()
	if len(q.Command) == 0 {
		return mayfly.Run{}, mayfly.Errorf(mayfly.Invalid, "the command is missing")
	}
	if (q.Create == nil) == (q.Environment == "") {
		return mayfly.Run{}, mayfly.Errorf(mayfly.Invalid, "exactly one of environment and create is needed")
	}
	var e *environment
	var err error
	if q.Create != nil {
		e, err = s.create(ctx, *q.Create)
	} else {
		e, err = s.live(q.Environment)
	}
	if err != nil {
		return mayfly.Run{}, err
	}
	return s.start(ctx, e, q).Run, nil
}

func (s *Service) start(ctx context.Context, e *environment, q mayfly.StartRun) *run {
	now := s.Now()
	kind := q.Kind
	if kind == "" {
		kind = mayfly.AgentRun
	}
	r := &run{Run: mayfly.Run{
		ID: mayfly.NewID("run", now), Environment: e.ID, Kind: kind, Command: q.Command, Dir: q.Dir, TTY: q.TTY,
		Timeout: q.Timeout, Actor: mayfly.Actor(ctx), Phase: mayfly.RunRunning, Remove: q.Remove, CreatedAt: now, StartedAt: now,
	}, closed: !q.Stdin, rows: q.Rows, cols: q.Cols, signals: make(chan syscall.Signal, 16)}
	if kind == mayfly.AgentRun {
		r.Baseline = s.take(ctx, e, mayfly.BaselineSnapshot, r.ID, "").ID
	}
	s.runs = append(s.runs, r)
	e.IdleSince = time.Time{}
	s.emit(ctx, "run.started", e.ID, r.ID)
	program, ok := s.Programs[q.Command[0]]
	if !ok {
		r.Phase, r.Reason, r.ExitCode, r.EndedAt = mayfly.RunFailed, fmt.Sprintf("%s: not found", q.Command[0]), 127, s.Now()
		s.emit(ctx, "run.failed", e.ID, r.ID)
		return r
	}
	p := &Process{
		Args: q.Command, Env: q.Env, Signals: r.signals,
		Stdin:  &stdinReader{s, r},
		Stdout: &outputWriter{s, r, mayfly.Stdout},
		Stderr: &outputWriter{s, r, mayfly.Stderr},
		Size: func() (uint16, uint16) {
			s.mu.Lock()
			defer s.mu.Unlock()
			return r.rows, r.cols
		},
		WriteFile: func(path, content string) {
			s.mu.Lock()
			defer s.mu.Unlock()
			if content == "" {
				delete(e.files, path)
			} else if e.files != nil {
				e.files[path] = content
			}
		},
	}
	if r.Timeout > 0 {
		time.AfterFunc(r.Timeout, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			if !r.Phase.Ended() {
				r.Reason = "timeout"
				r.kill()
				s.changed.Broadcast()
			}
		})
	}
	go func() {
		code := program(p)
		s.mu.Lock()
		defer s.mu.Unlock()
		s.finish(context.WithoutCancel(ctx), e, r, code)
	}()
	return r
}

func (s *Service) finish(ctx context.Context, e *environment, r *run, code int) {
	r.ExitCode, r.EndedAt, r.Phase = code, s.Now(), mayfly.RunExited
	switch {
	case r.killed && r.Reason == "timeout":
		r.Phase = mayfly.RunTimedOut
	case r.killed:
		r.Phase, r.Reason = mayfly.RunKilled, "killed"
	}
	if r.Kind == mayfly.AgentRun && e.Phase != mayfly.Deleted {
		r.Final = s.take(ctx, e, mayfly.FinalSnapshot, r.ID, "").ID
	}
	e.IdleSince = r.EndedAt
	s.emit(ctx, "run.exited", e.ID, r.ID)
	if r.Remove {
		s.remove(ctx, e)
	}
}

type outputWriter struct {
	s      *Service
	r      *run
	stream mayfly.Stream
}

func (w *outputWriter) Write(p []byte) (int, error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	w.r.output = append(w.r.output, mayfly.Output{Stream: w.stream, Time: w.s.Now(), Data: bytes.Clone(p)})
	w.s.changed.Broadcast()
	return len(p), nil
}

type stdinReader struct {
	s *Service
	r *run
}

func (r *stdinReader) Read(p []byte) (int, error) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	for r.r.stdin.Len() == 0 && !r.r.closed {
		r.s.changed.Wait()
	}
	n, err := r.r.stdin.Read(p)
	r.s.changed.Broadcast()
	return n, err
}

func (s *Service) Run(ctx context.Context, id string) (mayfly.Run, error) {
	if err := s.enter(ctx, "Run"); err != nil {
		return mayfly.Run{}, err
	}
	defer s.mu.Unlock()
	r, err := s.findRun(id)
	if err != nil {
		return mayfly.Run{}, err
	}
	return r.Run, nil
}

func (s *Service) Runs(ctx context.Context, f mayfly.RunFilter) ([]mayfly.Run, error) {
	if err := s.enter(ctx, "Runs"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	var id string
	if f.Environment != "" {
		e, err := s.find(f.Environment)
		if err != nil {
			return nil, err
		}
		id = e.ID
	}
	var list []mayfly.Run
	for _, r := range s.runs {
		if id == "" || r.Environment == id {
			list = append(list, r.Run)
		}
	}
	return list, nil
}

func (s *Service) WaitRun(ctx context.Context, id string) (mayfly.Run, error) {
	if err := s.enter(ctx, "WaitRun"); err != nil {
		return mayfly.Run{}, err
	}
	defer s.mu.Unlock()
	r, err := s.findRun(id)
	if err == nil {
		err = s.await(ctx, func() bool { return r.Phase.Ended() })
	}
	if err != nil {
		return mayfly.Run{}, err
	}
	return r.Run, nil
}

func (s *Service) KillRun(ctx context.Context, id string) (mayfly.Run, error) {
	if err := s.enter(ctx, "KillRun"); err != nil {
		return mayfly.Run{}, err
	}
	defer s.mu.Unlock()
	r, err := s.findRun(id)
	if err == nil && !r.Phase.Ended() {
		r.kill()
		s.changed.Broadcast()
		err = s.await(ctx, func() bool { return r.Phase.Ended() })
	}
	if err != nil {
		return mayfly.Run{}, err
	}
	return r.Run, nil
}

func (s *Service) AttachRun(ctx context.Context, id string, follow bool) (mayfly.Attachment, error) {
	if err := s.enter(ctx, "AttachRun"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	r, err := s.findRun(id)
	if err != nil {
		return nil, err
	}
	return &attachment{s: s, r: r, follow: follow}, nil
}

// AttachService implements mayfly.Environments. No environment has services.
func (s *Service) AttachService(ctx context.Context, ref, service string, _ bool) (mayfly.Attachment, error) {
	if err := s.enter(ctx, "AttachService"); err != nil {
		return nil, err
	}
	defer s.mu.Unlock()
	if _, err := s.find(ref); err != nil {
		return nil, err
	}
	return nil, mayfly.Errorf(mayfly.NotFound, "no service %q", service)
}

type attachment struct {
	s      *Service
	r      *run
	follow bool
	next   int
	once   sync.Once
	closed bool // guarded by Service.mu
}

func (a *attachment) Recv() (mayfly.Output, error) {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	if err := a.s.fail["Attachment.Recv"]; err != nil {
		return mayfly.Output{}, err
	}
	for a.next == len(a.r.output) {
		if a.closed {
			return mayfly.Output{}, io.ErrClosedPipe
		}
		if !a.follow || a.r.Phase.Ended() {
			return mayfly.Output{}, io.EOF
		}
		a.s.changed.Wait()
	}
	a.next++
	return a.r.output[a.next-1], nil
}

// stdinBuffer is how much input waits for a program before Write does too.
const stdinBuffer = 64 << 10

func (a *attachment) Write(p []byte) (int, error) {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	for {
		switch {
		case a.closed || a.r.closed || a.r.Phase.Ended():
			return 0, io.ErrClosedPipe
		case a.r.stdin.Len() < stdinBuffer:
			a.s.changed.Broadcast()
			return a.r.stdin.Write(p)
		}
		a.s.changed.Wait()
	}
}

func (a *attachment) do(f func()) error {
	a.s.mu.Lock()
	defer a.s.mu.Unlock()
	f()
	a.s.changed.Broadcast()
	return nil
}

func (a *attachment) CloseWrite() error { return a.do(func() { a.r.closed = true }) }

func (a *attachment) Resize(rows, cols uint16) error {
	return a.do(func() {
		a.r.rows, a.r.cols = rows, cols
		a.r.signal(syscall.SIGWINCH)
	})
}

func (a *attachment) Signal(sig syscall.Signal) error { return a.do(func() { a.r.signal(sig) }) }

func (a *attachment) Close() error {
	a.once.Do(func() { a.do(func() { a.closed = true }) })
	return nil
}
