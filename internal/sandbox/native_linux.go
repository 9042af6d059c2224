package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/sandbox/boot"
)

// Cgroups keeps the control groups of environments, by name.
type Cgroups interface {
	// Create makes the groups of an environment and sets its limits.
	Create(env string, l mayfly.Limits) error
	// Directory opens the group that a process can be cloned into; nil when
	// there is no such hierarchy.
	Directory(env string) (*os.File, error)
	// Doors opens the files into which a thread writes "0" to enter those
	// groups that a process cannot be cloned into, and to come back.
	Doors(env string) (in, out []*os.File, err error)
	// OpenKills opens the file that counts processes killed for memory.
	OpenKills(env string) (*os.File, error)
	Look(env string) (exists, populated, frozen bool, err error)
	Freeze(ctx context.Context, env string) error
	Thaw(ctx context.Context, env string) error
	// Kill returns when no process is left.
	Kill(ctx context.Context, env string) error
	// Processes lists the processes in the groups.
	Processes(env string) ([]int, error)
	Remove(ctx context.Context, env string) error
	Usage(env string) (cpu time.Duration, memory, tasks, killed int64, err error)
	List() ([]string, error)
}

// Options configure NewNative.
type Options struct {
	Cgroups Cgroups
	Guest   string // the guest program; empty: mayfly-guest beside this one
	// Host returns an environment's Spec.Host, which GVisor finds its state by.
	Host func(env string) string
}

// Native is the Runtime that consists of the kernel's own namespaces. It needs
// root and Linux 6.13.
type Native struct {
	cgroups Cgroups
	guest   *os.File // the program, sealed
	filters [2][]byte
	reapers sync.WaitGroup

	listeners listeners

	launching sync.Mutex // guards launcher
	launcher  *launcher

	mu       sync.Mutex           // guards what follows
	guests   map[string]*process  // those that this process started and that live, by environment
	prepared map[string]*prepared // those that wait for Start, by environment
}

// reserve is how many tasks the guest may have beside its commands.
const reserve = 32

// minTasks is the smallest number of tasks that commands are held to.
const minTasks = 32

// startTimeout bounds how long a guest may take until it is ready.
const startTimeout = 30 * time.Second

// NewNative loads the guest program. The error is errors.ErrUnsupported
// without root.
func NewNative(o Options) (*Native, error) {
	if os.Geteuid() != 0 {
		return nil, mayfly.Errorf(mayfly.Unsupported, "making namespaces and overlays needs root: %w", errors.ErrUnsupported).
			Hint("run the server with sudo")
	}
	// Whoever started this process may have left descriptors open that every
	// program it starts inherits. None of them may get into an environment.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("keep descriptors from environments: close_range: %w", err)
	}
	if o.Guest == "" {
		self, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("find the guest program: %w", err)
		}
		o.Guest = filepath.Join(filepath.Dir(self), "mayfly-guest")
	}
	program, err := load(o.Guest)
	if err != nil {
		return nil, err
	}
	return &Native{
		cgroups:  o.Cgroups,
		guest:    program,
		filters:  [2][]byte{filter(false), filter(true)},
		guests:   map[string]*process{},
		prepared: map[string]*prepared{},
	}, nil
}

// load copies the guest program into memory that nobody can change any more,
// not even through /proc/<pid>/exe of a process that runs it.
func load(path string) (*os.File, error) {
	src, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, mayfly.Errorf(mayfly.Unsupported, "no guest program at %s: %w", path, err).
			Hint("keep mayfly-guest beside mayfly; make build puts it there")
	}
	if err != nil {
		return nil, fmt.Errorf("load guest program: %w", err)
	}
	defer src.Close()
	fd, err := unix.MemfdCreate("mayfly-guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("mayfly-guest", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, fmt.Errorf("load guest program: memfd_create: %w", err)
	}
	// A high number, so that the descriptors handed to the guest, which count
	// from 0, do not get in its way.
	high, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 64)
	unix.Close(fd)
	if err != nil {
		return nil, fmt.Errorf("load guest program: %w", err)
	}
	f := os.NewFile(uintptr(high), "mayfly-guest")
	_, err = io.Copy(f, src)
	if err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS,
			unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("load guest program: %w", err)
	}
	return f, nil
}

// Close releases what the runtime holds open. Sandboxes live on.
func (n *Native) Close() error {
	n.listeners.closeAll()
	n.dropAll()
	n.mu.Lock()
	for _, p := range n.guests {
		p.forget()
	}
	n.mu.Unlock()
	n.reapers.Wait()
	n.launching.Lock()
	defer n.launching.Unlock()
	n.closeLauncher()
	return n.guest.Close()
}

func (n *Native) Start(ctx context.Context, s Spec) error {
	if err := s.check(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if p := n.take(s.Environment); p != nil {
		return n.finish(ctx, s, p)
	}
	exists, populated, frozen, err := n.cgroups.Look(s.Environment)
	if err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	if frozen {
		return nil
	}
	if populated {
		alive, err := answers(ctx, s, n.Dial)
		if alive || err != nil {
			return err
		}
	}
	if exists {
		if err := n.Stop(ctx, s.Environment); err != nil {
			return fmt.Errorf("start sandbox: %w", err)
		}
	}
	return n.finish(ctx, s, n.prepare(s))
}

// finish gives a guest that has begun what it lacks, or cleans up.
func (n *Native) finish(ctx context.Context, s Spec, p *prepared) error {
	if err := n.furnish(ctx, s, p); err != nil {
		p.drop()
		err = fmt.Errorf("start sandbox: %w", err)
		return errors.Join(err, n.Stop(context.WithoutCancel(ctx), s.Environment))
	}
	return nil
}

// check refuses what would be misunderstood further on.
func (s Spec) check() error {
	if s.UIDBase < 65536 || s.UIDBase > math.MaxUint32-65536 {
		return fmt.Errorf("start sandbox: the range of user ids at %d overlaps the machine's", s.UIDBase)
	}
	if len(s.Lower) == 0 {
		return errors.New("start sandbox: no lower layer")
	}
	if filepath.Dir(s.Upper) != filepath.Dir(s.Work) {
		return fmt.Errorf("start sandbox: %s and %s are not beside each other", s.Upper, s.Work)
	}
	if len(s.Binds) >= boot.MaxBinds {
		return mayfly.Errorf(mayfly.Invalid, "%d directories to show, %d at most", len(s.Binds), boot.MaxBinds)
	}
	for _, b := range s.Binds {
		if !filepath.IsAbs(b.Target) || strings.Contains(b.Target, "\x00") {
			return mayfly.Errorf(mayfly.Invalid, "cannot show %s at %q", b.Source, b.Target)
		}
	}
	for _, e := range s.Env {
		if strings.Contains(e, "\x00") {
			return mayfly.Errorf(mayfly.Invalid, "environment variable %q holds a NUL", e)
		}
	}
	return nil
}

// answers reports whether a guest is there and speaks. One that is there and
// is slow, on a machine that is, must not be taken for dead: that is an error.
func answers(ctx context.Context, s Spec, dial func(context.Context, Spec) (net.Conn, error)) (bool, error) {
	conn, err := dial(ctx, s)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		// Closed by a guest that ends because its server did, halfway.
		if ctx.Err() == nil {
			return false, nil
		}
		return false, mayfly.Errorf(mayfly.Unavailable, "the guest of environment %s is there and does not answer: %w", s.Environment, ctx.Err())
	}
	return true, nil
}

func (n *Native) Inspect(_ context.Context, env string) (State, error) {
	if n.isPrepared(env) {
		return Remains, nil
	}
	exists, populated, frozen, err := n.cgroups.Look(env)
	switch {
	case err != nil:
		return "", fmt.Errorf("inspect sandbox: %w", err)
	case !exists:
		return Gone, nil
	case !populated:
		return Remains, nil
	case frozen:
		return Frozen, nil
	}
	return Alive, nil
}

func (n *Native) Freeze(ctx context.Context, env string) error {
	return missing(env, n.cgroups.Freeze(ctx, env))
}

func (n *Native) Thaw(ctx context.Context, env string) error {
	return missing(env, n.cgroups.Thaw(ctx, env))
}

func (n *Native) Stop(ctx context.Context, env string) error {
	n.listeners.closeOf(env)
	n.take(env).drop()
	exists, _, _, err := n.cgroups.Look(env)
	if err == nil && exists {
		err = n.cgroups.Kill(ctx, env)
	}
	if err == nil {
		err = n.reaped(ctx, env)
	}
	if err == nil && exists {
		err = n.cgroups.Remove(ctx, env)
	}
	if err != nil {
		return fmt.Errorf("stop sandbox: %w", err)
	}
	return nil
}

// reaped waits until the guest is no zombie any more, if it was this
// process's child.
func (n *Native) reaped(ctx context.Context, env string) error {
	n.mu.Lock()
	p := n.guests[env]
	n.mu.Unlock()
	if p == nil {
		return nil
	}
	select {
	case <-p.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (n *Native) Dial(ctx context.Context, s Spec) (net.Conn, error) {
	path, dir, err := socketPath(s.Host)
	if err != nil {
		return nil, fmt.Errorf("dial guest: %w", err)
	}
	defer dir.Close()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return nil, mayfly.Errorf(mayfly.Unavailable, "no guest answers in environment %s: %w", s.Environment, err)
	}
	return conn, nil
}

func (n *Native) Usage(_ context.Context, env string) (Usage, error) {
	cpu, memory, tasks, killed, err := n.cgroups.Usage(env)
	if err != nil {
		return Usage{}, missing(env, err)
	}
	return Usage{CPU: cpu, Memory: memory, PIDs: tasks, OOMKill: killed}, nil
}

func (n *Native) List(context.Context) ([]string, error) {
	names, err := n.cgroups.List()
	if err != nil {
		return nil, fmt.Errorf("list sandboxes: %w", err)
	}
	return names, nil
}

// missing turns a control group that is not there into an error for users.
func missing(env string, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return mayfly.Errorf(mayfly.NotFound, "environment %s does not run: %w", env, err)
	}
	return err
}
