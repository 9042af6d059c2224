// Package local is the driver for one Linux machine: volumes on a
// copy-on-write pool, sandboxes upon them, and a guest in each.
package local

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/guest"
	"mayfly.dev/mayfly/internal/postgres"
	"mayfly.dev/mayfly/internal/sandbox"
	"mayfly.dev/mayfly/internal/volume"
)

// Options are the parts of a Driver.
type Options struct {
	Dir      string // for the descriptions of templates
	Pool     volume.Pool
	Runtimes map[mayfly.Isolation]func() (sandbox.Runtime, error) // made when first used
	// Files lie under every environment, below the template and above its base,
	// by absolute path: below the home directory they are the commands' own.
	Files map[string][]byte
	Key   []byte // of the passwords of databases
	// Sources says what databases may be copied from.
	Sources postgres.Sources
	Log     *slog.Logger
}

// Driver is a driver.Driver that can do all that the other interfaces of package
// driver ask for.
type Driver struct {
	dir      string
	pool     volume.Pool
	runtimes map[mayfly.Isolation]func() (sandbox.Runtime, error)
	log      *slog.Logger

	files      map[string][]byte
	filesLayer string
	templates  sync.Map // descriptions, by digest

	sources   postgres.Sources
	key       []byte
	preparing sync.Mutex               // held while a baseline is made
	mu        sync.Mutex               // guards what follows
	databases map[string]*openDatabase // by environment
	spares    map[string]*spare        // by environment
	building  map[uint32]bool          // first host ids of preparations
	learning  sync.WaitGroup           // those who look who may use a database
}

var (
	_ driver.Driver   = (*Driver)(nil)
	_ driver.Pauser   = (*Driver)(nil)
	_ driver.Preparer = (*Driver)(nil)
	_ driver.Listener = (*Driver)(nil)
	_ driver.Servicer = (*Driver)(nil)
	_ driver.Sparer   = (*Driver)(nil)
)

// New makes a driver.
func New(o Options) *Driver {
	return &Driver{
		dir: o.Dir, pool: o.Pool, runtimes: o.Runtimes, log: o.Log,
		files: o.Files, filesLayer: filesName(o.Files),
		sources: o.Sources, key: o.Key, databases: map[string]*openDatabase{}, spares: map[string]*spare{}, building: map[uint32]bool{},
	}
}

// Recover finishes or removes what a crash left half-made. It is called once,
// before anything else.
func (d *Driver) Recover(ctx context.Context) error {
	if err := d.pool.Recover(ctx); err != nil {
		return fmt.Errorf("recover volumes: %w", err)
	}
	half, err := filepath.Glob(filepath.Join(d.dir, halfWritten+"*"))
	for _, path := range half {
		err = errors.Join(err, os.Remove(path))
	}
	if err != nil {
		return fmt.Errorf("recover templates: %w", err)
	}
	envs, err := d.pool.Volumes(ctx)
	if err != nil {
		return fmt.Errorf("recover volumes: %w", err)
	}
	for _, env := range envs {
		snapshots, err := d.pool.SnapshotsOf(ctx, env)
		if err != nil {
			return fmt.Errorf("recover volumes: %w", err)
		}
		if strings.HasPrefix(env, baselinePrefix) && !slices.Contains(snapshots, baselineSnapshot) {
			if err := d.pool.Destroy(ctx, env); err != nil { // its sandbox is an environment that nobody knows
				return fmt.Errorf("remove half-made baseline: %w", err)
			}
			continue
		}
		for _, s := range snapshots {
			if !strings.HasPrefix(s, viewPrefix+"-") {
				continue
			}
			if err := d.pool.RemoveSnapshot(ctx, env, s); err != nil {
				return fmt.Errorf("recover volumes: %w", err)
			}
		}
	}
	return nil
}

// closePatience is how long Close waits for the kernel to let go of the mounts
// of environments that have ended, which it does a little later.
const closePatience = 5 * time.Second

// Close implements driver.Driver. A pool that environments use stays mounted
// for the next server.
func (d *Driver) Close() error {
	d.learning.Wait()
	handles, err := d.List(context.Background())
	if err != nil {
		return err
	}
	if len(handles) > 0 {
		d.log.Info("the pool stays mounted: environments use it", "environments", len(handles))
		return nil
	}
	for deadline := time.Now().Add(closePatience); ; time.Sleep(5 * time.Millisecond) {
		err := d.pool.Close()
		if mayfly.KindOf(err) != mayfly.Conflict || time.Now().After(deadline) {
			return err
		}
	}
}

// runtime returns the runtime of an isolation.
func (d *Driver) runtime(i mayfly.Isolation) (sandbox.Runtime, error) {
	open, ok := d.runtimes[cmp.Or(i, mayfly.Native)]
	if !ok {
		return nil, mayfly.Errorf(mayfly.Unsupported, "isolation %q is not built in", i)
	}
	return open()
}

// Create implements driver.Driver.
func (d *Driver) Create(ctx context.Context, h driver.Handle, s driver.Spec) error {
	if _, err := d.runtime(h.Isolation); err != nil {
		return err // before anything is made
	}
	var err error
	if _, ok := database(s.Services); s.From != nil {
		err = d.pool.Fork(ctx, h.Environment, s.From.Environment, s.From.Snapshot)
	} else if ok {
		err = d.pool.Fork(ctx, h.Environment, baselineVolume(s.Template), baselineSnapshot)
	} else {
		err = d.pool.Create(ctx, h.Environment)
	}
	if err != nil {
		return fmt.Errorf("create volume: %w", err)
	}
	return nil // Start limits it, before anything inside can write
}

// maxRoom bounds what a sandbox that starts has to write, in bytes, also when
// the snapshots of its environment use up the limit: without any, neither its
// overlay can be mounted nor its database started, and a rollback out of a
// full disk would lead nowhere.
const maxRoom = 64 << 20

// limit holds a volume to a number of bytes, where the pool can; 0 is none.
func (d *Driver) limit(ctx context.Context, volumeName string, disk int64) error {
	l, ok := d.pool.(volume.Limiter)
	if !ok || disk <= 0 {
		return nil
	}
	used, err := l.Used(ctx, volumeName)
	if err == nil {
		err = l.SetLimit(ctx, volumeName, max(disk, used+min(disk/2, maxRoom)))
	}
	if err != nil {
		return fmt.Errorf("limit volume: %w", err)
	}
	return nil
}

// copyOnWrite reports whether files are never overwritten in place.
func (d *Driver) copyOnWrite() bool { return d.pool.Kind() == volume.Btrfs }

// Prepare implements driver.Preparer.
func (d *Driver) Prepare(ctx context.Context, h driver.Handle, s driver.Spec) {
	rt, err := d.runtime(h.Isolation)
	p, ok := rt.(sandbox.Preparer)
	if err != nil || !ok {
		return
	}
	if spec, err := d.sandboxSpec(ctx, h, s); err == nil {
		p.Prepare(spec)
	}
}

// Start implements driver.Driver.
func (d *Driver) Start(ctx context.Context, h driver.Handle, s driver.Spec) error {
	rt, err := d.runtime(h.Isolation)
	if err != nil {
		return err
	}
	spec, err := d.sandboxSpec(ctx, h, s)
	if err != nil {
		return err
	}
	if err := d.limit(ctx, h.Environment, s.Limits.Disk); err != nil {
		return err
	}
	if err := rt.Start(ctx, spec); err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	return nil
}

// Inspect implements driver.Driver.
func (d *Driver) Inspect(ctx context.Context, h driver.Handle) (driver.Observed, error) {
	seen := driver.Observed{Sandbox: driver.SandboxGone}
	if _, err := os.Lstat(d.pool.Live(h.Environment).Upper); err == nil {
		seen.Volume = true
	} else if !errors.Is(err, fs.ErrNotExist) {
		return seen, fmt.Errorf("inspect volume: %w", err)
	}
	rt, err := d.runtime(h.Isolation)
	if err != nil {
		return seen, err
	}
	state, err := rt.Inspect(ctx, h.Environment)
	if err != nil {
		return seen, fmt.Errorf("inspect sandbox: %w", err)
	}
	seen.Sandbox = map[sandbox.State]driver.SandboxState{
		sandbox.Gone: driver.SandboxGone, sandbox.Alive: driver.SandboxAlive,
		sandbox.Frozen: driver.SandboxFrozen, sandbox.Remains: driver.SandboxRemains,
	}[state]
	return seen, nil
}

// Stop implements driver.Driver. Without a record of the isolation it stops
// whatever has the environment's name.
func (d *Driver) Stop(ctx context.Context, h driver.Handle) error {
	defer d.forgetDatabase(h.Environment, false)
	if h.Isolation != "" {
		rt, err := d.runtime(h.Isolation)
		if err == nil {
			err = rt.Stop(ctx, h.Environment)
		}
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			return fmt.Errorf("stop sandbox: %w", err)
		}
		if err == nil {
			return nil
		}
	}
	return d.eachRuntime(func(rt sandbox.Runtime) error { return rt.Stop(ctx, h.Environment) })
}

// eachRuntime calls do for every runtime that this machine can offer.
func (d *Driver) eachRuntime(do func(sandbox.Runtime) error) error {
	for _, isolation := range slices.Sorted(maps.Keys(d.runtimes)) {
		rt, err := d.runtimes[isolation]()
		if errors.Is(err, errors.ErrUnsupported) {
			continue
		}
		if err == nil {
			err = do(rt)
		}
		if err != nil {
			return fmt.Errorf("%s sandbox: %w", isolation, err)
		}
	}
	return nil
}

// Destroy implements driver.Driver.
func (d *Driver) Destroy(ctx context.Context, h driver.Handle) error {
	if err := d.Stop(ctx, h); err != nil {
		return err
	}
	if err := d.pool.Destroy(ctx, h.Environment); err != nil {
		return fmt.Errorf("destroy volume: %w", err)
	}
	return nil
}

// List implements driver.Driver.
func (d *Driver) List(ctx context.Context) ([]driver.Handle, error) {
	ids, err := d.pool.Volumes(ctx)
	if err != nil {
		return nil, fmt.Errorf("list volumes: %w", err)
	}
	err = d.eachRuntime(func(rt sandbox.Runtime) error {
		more, err := rt.List(ctx)
		ids = append(ids, more...)
		return err
	})
	if err != nil {
		return nil, err
	}
	slices.Sort(ids)
	var handles []driver.Handle
	for _, id := range slices.Compact(ids) {
		if strings.HasPrefix(id, baselinePrefix) {
			continue
		}
		handles = append(handles, driver.Handle{Environment: id})
	}
	return handles, nil
}

// Pause implements driver.Pauser.
func (d *Driver) Pause(ctx context.Context, h driver.Handle) error {
	rt, err := d.runtime(h.Isolation)
	if err != nil {
		return err
	}
	return rt.Freeze(ctx, h.Environment)
}

// Resume implements driver.Pauser.
func (d *Driver) Resume(ctx context.Context, h driver.Handle) error {
	rt, err := d.runtime(h.Isolation)
	if err != nil {
		return err
	}
	return rt.Thaw(ctx, h.Environment)
}

// Snapshot implements driver.Driver. What the environment has written is
// flushed before it is frozen, so that it stands still for the snapshot only,
// unless it ends thereafter.
func (d *Driver) Snapshot(ctx context.Context, h driver.Handle, snapshot string, ending bool) (time.Duration, error) {
	if _, err := os.Lstat(d.pool.At(h.Environment, snapshot).Upper); err == nil {
		return 0, nil
	}
	rt, err := d.runtime(h.Isolation)
	if err != nil {
		return 0, err
	}
	state, err := rt.Inspect(ctx, h.Environment)
	if err != nil {
		return 0, fmt.Errorf("inspect sandbox: %w", err)
	}
	if state != sandbox.Alive {
		return 0, d.pool.Snapshot(ctx, h.Environment, snapshot)
	}
	if !ending {
		if err := d.flush(ctx, h.Environment); err != nil {
			return 0, fmt.Errorf("flush volume: %w", err)
		}
	}
	began := time.Now()
	if err := rt.Freeze(ctx, h.Environment); err != nil {
		return 0, fmt.Errorf("freeze: %w", err)
	}
	err = d.pool.Snapshot(ctx, h.Environment, snapshot)
	if thaw := rt.Thaw(context.WithoutCancel(ctx), h.Environment); thaw != nil {
		err = errors.Join(err, fmt.Errorf("thaw: %w", thaw))
	}
	return time.Since(began), err
}

// flush has what an environment has written go to the disk.
func (d *Driver) flush(ctx context.Context, env string) error {
	d.checkpoint(ctx, env)
	if d.pool.Kind() != volume.Btrfs { // copies are read through the page cache
		return nil
	}
	return syncFilesystem(d.pool.Live(env).Upper)
}

func syncFilesystem(path string) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Syncfs(fd)
}

// RemoveSnapshot implements driver.Driver.
func (d *Driver) RemoveSnapshot(ctx context.Context, h driver.Handle, snapshot string) error {
	return d.pool.RemoveSnapshot(ctx, h.Environment, snapshot)
}

// Rollback implements driver.Driver.
func (d *Driver) Rollback(ctx context.Context, h driver.Handle, s driver.Spec, snapshot string, only mayfly.Side) error {
	switch only {
	case mayfly.FilesSide:
		return d.pool.RollbackUpper(ctx, h.Environment, snapshot)
	case mayfly.DatabaseSide:
		return d.rollBackData(ctx, h, s, snapshot)
	}
	return d.pool.Rollback(ctx, h.Environment, snapshot)
}

// dial connects to the guest of an environment.
func (d *Driver) dial(ctx context.Context, h driver.Handle) (net.Conn, error) {
	rt, err := d.runtime(h.Isolation)
	if err != nil {
		return nil, err
	}
	conn, err := rt.Dial(ctx, d.guestOf(h))
	if err != nil {
		return nil, fmt.Errorf("connect to guest: %w", err)
	}
	return conn, nil
}

// Listen implements driver.Listener.
func (d *Driver) Listen(ctx context.Context, h driver.Handle, port int) (net.Listener, error) {
	rt, err := d.runtime(h.Isolation)
	if err != nil {
		return nil, err
	}
	l, err := rt.Listen(ctx, d.guestOf(h), port)
	if errors.Is(err, errors.ErrUnsupported) {
		return d.listenThroughGuest(ctx, h, port)
	}
	return l, err
}

// listenThroughGuest is for sandboxes whose network only the guest is in.
func (d *Driver) listenThroughGuest(ctx context.Context, h driver.Handle, port int) (net.Listener, error) {
	seen, err := d.Inspect(ctx, h)
	if err != nil {
		return nil, err
	}
	if seen.Sandbox != driver.SandboxAlive && seen.Sandbox != driver.SandboxFrozen {
		return nil, mayfly.Errorf(mayfly.NotFound, "environment %s does not run", h.Environment)
	}
	return guest.Listen(ctx, func(ctx context.Context) (net.Conn, error) { return d.dial(ctx, h) }, port)
}

// guestOf is the part of a sandbox's description that its guest is found by.
func (d *Driver) guestOf(h driver.Handle) sandbox.Spec {
	return sandbox.Spec{Environment: h.Environment, Host: d.pool.Host(h.Environment), UIDBase: h.UIDBase}
}

// StartProcess implements driver.Driver.
func (d *Driver) StartProcess(ctx context.Context, h driver.Handle, s driver.Spec, p driver.Process) error {
	vars := map[string]string{}
	if p.TTY {
		vars["TERM"] = "xterm-256color"
	}
	if len(s.Services) > 0 {
		own, err := d.databaseVariables(h, s, p.Run)
		if err != nil {
			return err
		}
		maps.Copy(vars, own)
	}
	maps.Copy(vars, p.Env)
	conn, err := d.dial(ctx, h)
	if err != nil {
		return err
	}
	return guest.Start(ctx, conn, guest.Command{
		Run: p.Run, Argv: p.Command, Env: list(vars),
		Dir: cmp.Or(p.Dir, sandbox.Workspace), TTY: p.TTY, Rows: p.Rows, Cols: p.Cols,
		Stdin: p.Stdin, Output: p.Output,
	})
}

// WaitProcess implements driver.Driver.
func (d *Driver) WaitProcess(ctx context.Context, h driver.Handle, run string) (driver.Exit, error) {
	for {
		exit, err := guest.ReadExit(d.pool.Host(h.Environment), run)
		if err == nil {
			return driverExit(exit), nil
		}
		if !errors.Is(err, fs.ErrNotExist) { // the machine may have crashed while it was written
			d.log.Warn("read exit record", "run", run, "error", err)
		}
		seen, err := d.Inspect(ctx, h)
		if err != nil {
			return driver.Exit{}, err
		}
		if seen.Sandbox == driver.SandboxGone || seen.Sandbox == driver.SandboxRemains {
			// The record may have been written between the two looks.
			if exit, err := guest.ReadExit(d.pool.Host(h.Environment), run); err == nil {
				return driverExit(exit), nil
			}
			return driver.Exit{}, mayfly.Errorf(mayfly.NotFound, "nothing recorded the end of run %s", run)
		}
		if exit, err := d.askExit(ctx, h, run); err == nil || mayfly.KindOf(err) == mayfly.NotFound || ctx.Err() != nil {
			return exit, err
		}
		select { // the guest went away while it was asked: look again
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return driver.Exit{}, ctx.Err()
		}
	}
}

func (d *Driver) askExit(ctx context.Context, h driver.Handle, run string) (driver.Exit, error) {
	conn, err := d.dial(ctx, h)
	if err != nil {
		return driver.Exit{}, err
	}
	exit, err := guest.Wait(ctx, conn, run)
	return driverExit(exit), err
}

func driverExit(e guest.Exit) driver.Exit {
	reason := e.Reason
	if reason == "" && e.OOM {
		reason = "a process was killed: the memory limit was reached"
	}
	return driver.Exit{Code: e.Code, Reason: reason, Ended: e.Ended, Usage: e.Usage}
}

// SignalProcess implements driver.Driver.
func (d *Driver) SignalProcess(ctx context.Context, h driver.Handle, run string, signal int) error {
	if _, err := guest.ReadExit(d.pool.Host(h.Environment), run); err == nil {
		return nil
	}
	conn, err := d.dial(ctx, h)
	if err != nil {
		return err
	}
	return guest.Signal(ctx, conn, run, syscall.Signal(signal))
}

// Attach implements driver.Driver.
func (d *Driver) Attach(ctx context.Context, h driver.Handle, run string, follow bool) (mayfly.Attachment, error) {
	host := d.pool.Host(h.Environment)
	if follow {
		if conn, err := d.dial(ctx, h); err == nil {
			return guest.Attach(ctx, conn, host, run, true)
		} else if ctx.Err() != nil {
			return nil, err
		}
	}
	return guest.OpenLog(host, run)
}
