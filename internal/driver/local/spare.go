package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/postgres"
	"mayfly.dev/mayfly/internal/sandbox"
	"mayfly.dev/mayfly/internal/volume"
)

// spare is a Postgres that runs beside that of an environment, on a copy of what
// this had in a snapshot. It has the other one of two users, and listens at the
// other one of two addresses, so that neither can reach what is the other's, and
// each can be ended alone.
type spare struct {
	service  service // with the spare's user
	snapshot string
	process  string
	cancel   context.CancelFunc // of the making
	done     chan struct{}      // closed when what follows is known

	running postgres.Running
	failure error
	placed  bool     // its data are the environment's
	logins  []string // runs that could use the database whose place it takes
	until   time.Time
}

// The addresses that commands know, and to which connections to that are led
// while a former spare serves them.
const (
	databaseHost      = "127.0.0.1"
	otherDatabaseHost = "127.0.0.2"
)

// spareUsers is how far the two users of a service are apart: more than an
// environment has services.
const spareUsers = 500

// service is a service of an environment with the user that its data belong to.
func (d *Driver) service(h driver.Handle, s driver.Spec, name string) (service, error) {
	v, err := serviceOf(h, s, name)
	if err != nil || !v.hasSpare() {
		return v, err
	}
	var st syscall.Stat_t
	if err := syscall.Lstat(filepath.Join(d.pool.Live(h.Environment).DB, name), &st); err == nil && st.Uid == v.uid+spareUsers {
		v.uid = st.Uid
	}
	return v, nil
}

func (v service) hasSpare() bool { return v.Postgres != nil && v.Postgres.Spare }

// other is the service with the other one of its users.
func (v service) other() service {
	first, _ := serviceOf(v.h, v.spec, v.Name)
	if v.uid == first.uid {
		v.uid += spareUsers
	} else {
		v.uid = first.uid
	}
	return v
}

// Spare implements driver.Sparer.
func (d *Driver) Spare(ctx context.Context, h driver.Handle, s driver.Spec, snapshot string) error {
	at, ok := database(s.Services)
	if !ok || !s.Services[at].Postgres.Spare {
		return nil
	}
	v, err := d.service(h, s, s.Services[at].Name)
	if err != nil {
		return err
	}
	if err := d.dropSpare(ctx, v); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, v.Timeout)
	defer cancel()
	sp := &spare{
		service: v.other(), snapshot: snapshot, process: mayfly.NewID(v.prefix(), time.Now()),
		cancel: cancel, done: make(chan struct{}),
	}
	d.mu.Lock()
	d.spares[h.Environment] = sp
	d.mu.Unlock()
	sp.failure = d.makeSpare(ctx, sp)
	close(sp.done)
	d.mu.Lock()
	own := d.spares[h.Environment] == sp // else whoever took it clears up
	d.mu.Unlock()
	if sp.failure != nil && own {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), clearTimeout)
		defer cancel()
		return errors.Join(sp.failure, d.dropSpare(undo, v))
	}
	return sp.failure
}

func (d *Driver) makeSpare(ctx context.Context, sp *spare) error {
	v := sp.service
	current, err := d.openDatabase(v.h, v.spec)
	if err != nil {
		return err
	}
	if d.pool.Kind() == volume.Plain {
		return mayfly.Errorf(mayfly.Unsupported, "a spare database would be a whole copy on this file system").
			Hint("keep the state directory on btrfs, or where it can have an image")
	}
	i, err := d.instance(v)
	if err != nil {
		return err
	}
	taken, err := current.Listening(ctx)
	if err != nil {
		return unreachable(err)
	}
	if i.Address = otherDatabaseHost; taken == i.Address {
		i.Address = databaseHost
	}
	if err := d.redirect(v.h, taken == otherDatabaseHost); err != nil { // as it is: to see whether that is to be had
		return err
	}
	if err := d.pool.CopyDB(ctx, v.h.Environment, sp.snapshot, v.Name, v.uid); err != nil {
		return err
	}
	data := d.pool.SpareDB(v.h.Environment, v.Name)
	socket := filepath.Base(data) + ".socket"
	if err := d.makeData(v, socket, 0o755); err != nil {
		return err
	}
	i.Data = postgres.Dir{Host: data, Inside: path.Join(sandbox.DBDir, filepath.Base(data))}
	i.Socket = postgres.Dir{Host: filepath.Join(filepath.Dir(data), socket), Inside: path.Join(sandbox.DBDir, socket)}
	i.Moves, i.Closed, i.Launcher = true, true, &launcher{d, v, sp.process}
	if sp.running, err = postgres.Start(ctx, i); err != nil {
		return fmt.Errorf("start spare of service %s: %w", v.Name, err)
	}
	// Those who ran when the snapshot was taken may run still, and must not
	// change what a rollback brings back.
	logins, err := sp.running.Logins(ctx, runPrefix)
	for _, login := range logins {
		err = errors.Join(err, sp.running.Revoke(ctx, login, databaseOwner))
	}
	if err != nil {
		return err
	}
	if err := errors.Join(sp.running.Open(ctx), sp.running.Hold(ctx, databaseOwner)); err != nil {
		return err
	}
	// The next snapshot would wait for it.
	return syncFilesystem(data)
}

// dropSpare ends the spare of a service that is not in place, also one that an
// earlier server has started.
func (d *Driver) dropSpare(ctx context.Context, v service) error {
	d.mu.Lock()
	sp := d.spares[v.h.Environment]
	delete(d.spares, v.h.Environment)
	d.mu.Unlock()
	if sp != nil {
		sp.cancel()
		<-sp.done
	}
	if err := d.clear(ctx, v.other()); err != nil {
		return fmt.Errorf("end spare of service %s: %w", v.Name, err)
	}
	if sp == nil {
		return nil
	}
	runs, err := os.OpenRoot(d.runsDir(v.h))
	if err != nil {
		return err
	}
	defer runs.Close()
	return runs.RemoveAll(sp.process)
}

// waiting is the process of a spare that is not in place.
func (d *Driver) waiting(env string) string {
	d.mu.Lock()
	defer d.mu.Unlock()
	if sp := d.spares[env]; sp != nil && !sp.placed {
		return sp.process
	}
	return ""
}

// spareTimeout is how long a spare may take to answer.
const spareTimeout = time.Second

// readySpare returns the spare of an environment if it has the data of a
// snapshot, and lives.
func (d *Driver) readySpare(ctx context.Context, env, snapshot string) *spare {
	d.mu.Lock()
	sp := d.spares[env]
	d.mu.Unlock()
	if sp == nil {
		return nil
	}
	select {
	case <-sp.done:
	default:
		return nil
	}
	if sp.failure != nil || sp.snapshot != snapshot {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, spareTimeout)
	defer cancel()
	if _, err := sp.running.Listening(ctx); err != nil {
		d.log.Warn("a spare database does not answer", "environment", env, "error", err)
		return nil
	}
	return sp
}

// rollBackData ends what services run, and makes their data what they were in a
// snapshot.
func (d *Driver) rollBackData(ctx context.Context, h driver.Handle, s driver.Spec, snapshot string) error {
	env := h.Environment
	sp := d.readySpare(ctx, env, snapshot)
	if sp != nil && sp.placed {
		return nil
	}
	if sp == nil {
		var reading sync.WaitGroup
		defer reading.Wait()
		reading.Go(func() { d.pool.ReadAheadDB(ctx, env, snapshot) })
		if err := d.stopServices(ctx, h, s, nil); err != nil {
			return err
		}
		return d.pool.RollbackDB(ctx, env, snapshot)
	}
	sp.logins, sp.until = d.admitted(env)
	granted := make(chan error, 1)
	go func() { granted <- d.grantAll(ctx, sp) }()
	if err := errors.Join(d.stopServices(ctx, h, s, sp), <-granted); err != nil {
		return err
	}
	if err := d.pool.RollbackDB(ctx, env, snapshot, sp.service.Name, sp.service.socket()); err != nil {
		return err
	}
	if err := d.pool.ExchangeDB(ctx, env, sp.service.Name); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	sp.placed = true
	return nil
}

// grantAll gives the logins of the database whose place a spare takes.
func (d *Driver) grantAll(ctx context.Context, sp *spare) error {
	for _, run := range sp.logins {
		if err := d.grant(ctx, sp.running, sp.service, run, sp.until); err != nil {
			return err
		}
	}
	return nil
}

// admitted tells who may use the Postgres of an environment.
func (d *Driver) admitted(env string) (runs []string, until time.Time) {
	d.mu.Lock()
	o := d.databases[env]
	d.mu.Unlock()
	if o == nil || !o.hasLearned() {
		return nil, time.Time{}
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Clone(o.logins), o.until
}

// takeSpare makes a spare whose data are in place the Postgres of an
// environment. Without one, it returns no process.
func (d *Driver) takeSpare(ctx context.Context, v service) (process string, err error) {
	env := v.h.Environment
	d.mu.Lock()
	sp := d.spares[env]
	if sp == nil || !sp.placed {
		d.mu.Unlock()
		return "", nil
	}
	delete(d.spares, env)
	d.mu.Unlock()
	i, err := d.instance(v)
	if err == nil {
		err = sp.running.Swap(i.Path())
	}
	if err == nil {
		err = d.redirect(v.h, sp.running.Address == otherDatabaseHost)
	}
	if err != nil {
		d.log.Warn("a spare database cannot take over, and another is started on its data", "environment", env, "error", err)
		return "", d.clear(ctx, v)
	}
	i.Address, i.Launcher = sp.running.Address, sp.running.Launcher
	o := &openDatabase{Running: sp.running.At(i), service: v, learned: make(chan struct{}), logins: sp.logins, until: sp.until}
	close(o.learned)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.databases[env] = o
	return sp.process, nil
}

// redirect has connections to the database reach the former spare that listens
// at the other address, or not any more. The error is of kind
// mayfly.Unsupported where they cannot.
func (d *Driver) redirect(h driver.Handle, on bool) error {
	rt, err := d.runtime(h.Isolation)
	if err != nil {
		return err
	}
	r, ok := rt.(sandbox.Redirector)
	if !ok {
		return mayfly.Errorf(mayfly.Unsupported, "isolation %q does not let a spare database take over connections", h.Isolation)
	}
	return r.Redirect(h.Environment, postgres.Port, on)
}
