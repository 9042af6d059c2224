// Package drivertest has a driver that keeps environments in memory, with
// knobs for failure. It holds to the contract of driver.Driver: idempotent
// methods, processes that outlive the engine, exits that are remembered.
package drivertest

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
)

// Memory is a driver.Driver, driver.Pauser, driver.Preparer and driver.Listener. Its "files" are what Write
// put there.
type Memory struct {
	// Fault is called before and after each effect with its name
	// ("create.before", "create.after", …); an error it returns makes the
	// method fail there. Set it before use.
	Fault func(step string) error

	mu        sync.Mutex
	templates map[string]bool
	envs      map[string]*machine
}

type machine struct {
	handle    driver.Handle
	files     map[string]string // nil: no volume
	snapshots map[string]map[string]string
	sandbox   driver.SandboxState
	processes map[string]*process
	listeners map[int]*pipes
}

type process struct {
	exit  driver.Exit
	ended chan struct{} // closed when it has ended; exit is set if it is on record
	deaf  bool          // ignores SIGTERM
}

// end records the end of a process, unless it has one.
func (p *process) end(code int, reason string) {
	select {
	case <-p.ended:
	default:
		p.exit = driver.Exit{Code: code, Reason: reason, Ended: time.Now()}
		close(p.ended)
	}
}

// New makes an empty machine room.
func New() *Memory {
	return &Memory{templates: map[string]bool{}, envs: map[string]*machine{}}
}

var (
	_ driver.Driver   = (*Memory)(nil)
	_ driver.Pauser   = (*Memory)(nil)
	_ driver.Preparer = (*Memory)(nil)
	_ driver.Listener = (*Memory)(nil)
)

// do runs an effect between its two fault points.
func (m *Memory) do(step string, effect func() error) error {
	if m.Fault != nil {
		if err := m.Fault(step + ".before"); err != nil {
			return err
		}
	}
	m.mu.Lock()
	err := effect()
	m.mu.Unlock()
	if err == nil && m.Fault != nil {
		err = m.Fault(step + ".after")
	}
	return err
}

func (m *Memory) machine(h driver.Handle) *machine {
	if m.envs[h.Environment] == nil {
		m.envs[h.Environment] = &machine{
			handle: h, snapshots: map[string]map[string]string{},
			sandbox: driver.SandboxGone, processes: map[string]*process{},
			listeners: map[int]*pipes{},
		}
	}
	return m.envs[h.Environment]
}

// Write puts a file into an environment.
func (m *Memory) Write(env, name, content string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.envs[env].files[name] = content
}

// Read returns a file of an environment.
func (m *Memory) Read(env, name string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.envs[env] == nil {
		return ""
	}
	return m.envs[env].files[name]
}

// Crash ends the sandbox of an environment as a dying guest would.
func (m *Memory) Crash(env string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.envs[env].kill(driver.SandboxRemains)
}

// Empty reports whether nothing is left of any environment.
func (m *Memory) Empty() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.envs) == 0
}

func (e *machine) kill(left driver.SandboxState) {
	e.sandbox = left
	for _, l := range e.listeners {
		l.Close()
	}
	for run, p := range e.processes {
		select {
		case <-p.ended:
		default:
			delete(e.processes, run) // no record: nobody was there to write one
			close(p.ended)
		}
	}
}

// PutImage implements driver.Driver.
func (m *Memory) PutImage(ctx context.Context, digest string, layout io.Reader) error {
	return m.do("image", func() error { _, err := io.Copy(io.Discard, layout); return err })
}

// PutTemplate implements driver.Driver.
func (m *Memory) PutTemplate(ctx context.Context, l mayfly.Lock, workspace io.Reader, log io.Writer) error {
	return m.do("template", func() error {
		m.templates[l.Template] = true
		_, err := io.Copy(io.Discard, workspace)
		return err
	})
}

// HasTemplate implements driver.Driver.
func (m *Memory) HasTemplate(ctx context.Context, digest string) (bool, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.templates[digest], nil
}

// Create implements driver.Driver.
func (m *Memory) Create(ctx context.Context, h driver.Handle, s driver.Spec) error {
	return m.do("create", func() error {
		e := m.machine(h)
		if e.files != nil {
			return nil
		}
		e.files = map[string]string{}
		if s.From != nil {
			from := m.envs[s.From.Environment]
			if from == nil || from.snapshots[s.From.Snapshot] == nil {
				return mayfly.Errorf(mayfly.NotFound, "no snapshot %s", s.From.Snapshot)
			}
			e.files = maps.Clone(from.snapshots[s.From.Snapshot])
		}
		return nil
	})
}

// Prepare implements driver.Preparer.
func (m *Memory) Prepare(ctx context.Context, h driver.Handle, s driver.Spec) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.machine(h).sandbox = driver.SandboxRemains
}

// Start implements driver.Driver.
func (m *Memory) Start(ctx context.Context, h driver.Handle, s driver.Spec) error {
	return m.do("start", func() error {
		if e := m.machine(h); e.sandbox != driver.SandboxFrozen {
			e.sandbox = driver.SandboxAlive
		}
		return nil
	})
}

// Inspect implements driver.Driver.
func (m *Memory) Inspect(ctx context.Context, h driver.Handle) (driver.Observed, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.envs[h.Environment]
	if e == nil {
		return driver.Observed{Sandbox: driver.SandboxGone}, nil
	}
	return driver.Observed{Volume: e.files != nil, Sandbox: e.sandbox}, nil
}

// Stop implements driver.Driver.
func (m *Memory) Stop(ctx context.Context, h driver.Handle) error {
	return m.do("stop", func() error {
		if e := m.envs[h.Environment]; e != nil {
			e.kill(driver.SandboxGone)
			if e.files == nil {
				delete(m.envs, h.Environment)
			}
		}
		return nil
	})
}

// Destroy implements driver.Driver.
func (m *Memory) Destroy(ctx context.Context, h driver.Handle) error {
	return m.do("destroy", func() error {
		if e := m.envs[h.Environment]; e != nil {
			e.kill(driver.SandboxGone)
		}
		delete(m.envs, h.Environment)
		return nil
	})
}

// List implements driver.Driver.
func (m *Memory) List(ctx context.Context) ([]driver.Handle, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var handles []driver.Handle
	for _, id := range slices.Sorted(maps.Keys(m.envs)) {
		handles = append(handles, m.envs[id].handle)
	}
	return handles, nil
}

// Snapshot implements driver.Driver.
func (m *Memory) Snapshot(ctx context.Context, h driver.Handle, snapshot string, _ bool) (time.Duration, error) {
	return time.Millisecond, m.do("snapshot", func() error {
		e := m.machine(h)
		if e.files == nil {
			return fmt.Errorf("environment %s has no volume", h.Environment)
		}
		if e.snapshots[snapshot] == nil {
			e.snapshots[snapshot] = maps.Clone(e.files)
		}
		return nil
	})
}

// RemoveSnapshot implements driver.Driver.
func (m *Memory) RemoveSnapshot(ctx context.Context, h driver.Handle, snapshot string) error {
	return m.do("remove-snapshot", func() error {
		delete(m.machine(h).snapshots, snapshot)
		return nil
	})
}

// Rollback implements driver.Driver.
func (m *Memory) Rollback(ctx context.Context, h driver.Handle, _ driver.Spec, snapshot string, only mayfly.Side) error {
	return m.do("rollback", func() error {
		e := m.machine(h)
		if e.sandbox == driver.SandboxAlive || e.sandbox == driver.SandboxFrozen {
			return fmt.Errorf("environment %s is not stopped", h.Environment)
		}
		if e.snapshots[snapshot] == nil {
			return mayfly.Errorf(mayfly.NotFound, "no snapshot %s", snapshot)
		}
		restored := maps.Clone(e.snapshots[snapshot])
		for name, content := range e.files {
			if only != "" && sideOf(name) != only {
				restored[name] = content
			}
		}
		maps.DeleteFunc(restored, func(name, _ string) bool {
			_, there := e.files[name]
			return only != "" && sideOf(name) != only && !there
		})
		e.files = restored
		return nil
	})
}

// sideOf is where a "file" lies: those of services begin with db/.
func sideOf(name string) mayfly.Side {
	if strings.HasPrefix(name, "db/") {
		return mayfly.DatabaseSide
	}
	return mayfly.FilesSide
}

// Diff implements driver.Driver: a JSON list of changed names.
func (m *Memory) Diff(ctx context.Context, h driver.Handle, s driver.Spec, r mayfly.DiffRequest) (io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.machine(h)
	changes, files := []mayfly.Change{}, e.files
	if r.To != "" {
		files = e.snapshots[r.To]
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if e.snapshots[r.From][name] != files[name] {
			changes = append(changes, mayfly.Change{Kind: mayfly.Modified, Path: name})
		}
	}
	text, err := json.Marshal(changes)
	return io.NopCloser(strings.NewReader(string(text))), err
}

// Hash implements driver.Driver.
func (m *Memory) Hash(ctx context.Context, h driver.Handle, s driver.Spec, snapshot, path string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	files := m.machine(h).files
	if snapshot != "" {
		files = m.machine(h).snapshots[snapshot]
	}
	text, err := json.Marshal(files)
	sum := sha256.Sum256(text)
	return "sha256:" + hex.EncodeToString(sum[:]), err
}

// StartProcess implements driver.Driver. The commands are: "true", "false",
// "sleep" (until it is ended), "deaf" (the same, but ignores SIGTERM),
// "write NAME CONTENT", and "hear PORT WORD" (ends with 0 when whoever listens
// there says the word, else with 1).
func (m *Memory) StartProcess(ctx context.Context, h driver.Handle, s driver.Spec, p driver.Process) error {
	return m.do("process", func() error {
		e := m.machine(h)
		if e.sandbox != driver.SandboxAlive {
			return fmt.Errorf("environment %s is %s", h.Environment, e.sandbox)
		}
		if e.processes[p.Run] != nil {
			return nil
		}
		q := &process{ended: make(chan struct{})}
		e.processes[p.Run] = q
		switch p.Command[0] {
		case "true":
			q.end(0, "")
		case "false":
			q.end(1, "")
		case "write":
			e.files[p.Command[1]] = p.Command[2]
			q.end(0, "")
		case "hear":
			port, err := strconv.Atoi(p.Command[1])
			if err != nil {
				return err
			}
			go m.hear(h.Environment, port, p.Command[2], q)
		case "sleep":
		case "deaf":
			q.deaf = true
		default:
			q.end(127, "not found")
		}
		return nil
	})
}

// WaitProcess implements driver.Driver.
func (m *Memory) WaitProcess(ctx context.Context, h driver.Handle, run string) (driver.Exit, error) {
	missing := mayfly.Errorf(mayfly.NotFound, "no process of run %s", run)
	m.mu.Lock()
	var p *process
	if e := m.envs[h.Environment]; e != nil {
		p = e.processes[run]
	}
	m.mu.Unlock()
	if p == nil {
		return driver.Exit{}, missing
	}
	select {
	case <-p.ended:
	case <-ctx.Done():
		return driver.Exit{}, ctx.Err()
	}
	if p.exit.Ended.IsZero() {
		return driver.Exit{}, missing
	}
	return p.exit, nil
}

// SignalProcess implements driver.Driver.
func (m *Memory) SignalProcess(ctx context.Context, h driver.Handle, run string, signal int) error {
	return m.do("signal", func() error {
		e := m.machine(h)
		p := e.processes[run]
		if p == nil || p.deaf && signal == int(syscall.SIGTERM) {
			return nil
		}
		p.end(128+signal, "")
		return nil
	})
}

// Attach implements driver.Driver. There is never any output.
func (m *Memory) Attach(ctx context.Context, h driver.Handle, run string, follow bool) (mayfly.Attachment, error) {
	return nil, mayfly.Errorf(mayfly.Unsupported, "environments in memory have no output")
}

// Pause implements driver.Pauser.
func (m *Memory) Pause(ctx context.Context, h driver.Handle) error {
	return m.do("pause", func() error { m.machine(h).sandbox = driver.SandboxFrozen; return nil })
}

// Resume implements driver.Pauser.
func (m *Memory) Resume(ctx context.Context, h driver.Handle) error {
	return m.do("resume", func() error { m.machine(h).sandbox = driver.SandboxAlive; return nil })
}

// Close implements driver.Driver.
func (m *Memory) Close() error { return nil }
