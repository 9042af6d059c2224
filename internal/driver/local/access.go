package local

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/postgres"
)

// openDatabase is a Postgres that runs in an environment, and who may use it.
type openDatabase struct {
	postgres.Running
	service service

	learned chan struct{} // closed when learn has looked

	mu      sync.Mutex // guards what follows
	logins  []string   // runs that have a role
	failure error      // why they are not known
	until   time.Time  // when their passwords end; of those of an earlier server nobody knows
}

// learn finds out who has a role.
func (o *openDatabase) learn(ctx context.Context) {
	defer close(o.learned)
	ctx, cancel := context.WithTimeout(ctx, learnTimeout)
	defer cancel()
	o.logins, o.failure = o.Logins(ctx, runPrefix)
}

// learnTimeout bounds how long learn waits for a database.
const learnTimeout = 10 * time.Second

// runPrefix begins the ids of runs, which are the names of their roles.
const runPrefix = "run-"

// password is that of a run, whose role is the only one that it fits.
func (d *Driver) password(v service, run string) string {
	return d.secret("password of a run for a database", v.h.Environment, v.Name, run)
}

// openDatabase returns the Postgres of an environment, nil when it has none.
func (d *Driver) openDatabase(h driver.Handle, s driver.Spec) (*openDatabase, error) {
	if _, ok := database(s.Services); !ok {
		return nil, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if o := d.databases[h.Environment]; o != nil {
		return o, nil
	}
	return nil, errNoDatabase
}

// errNoDatabase is for what needs a database whose server has ended.
var errNoDatabase = mayfly.Errorf(mayfly.Unavailable, "the database of the environment does not run").
	Hint("see why: mayfly env show ENV")

// unreachable is errNoDatabase where err comes of that.
func unreachable(err error) error {
	if errors.Is(err, syscall.ECONNREFUSED) {
		return errNoDatabase
	}
	return err
}

func (o *openDatabase) hasLearned() bool {
	select {
	case <-o.learned:
		return true
	default:
		return false
	}
}

// Admit implements driver.Servicer.
func (d *Driver) Admit(ctx context.Context, h driver.Handle, s driver.Spec, runs []string, until time.Time) error {
	o, err := d.openDatabase(h, s)
	if o == nil || err != nil {
		return err
	}
	if len(runs) == 0 && !o.hasLearned() {
		return nil // those who have a role of old are dealt with when one comes
	}
	<-o.learned
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.failure != nil {
		if o.logins, o.failure = o.Logins(ctx, runPrefix); o.failure != nil {
			return unreachable(o.failure)
		}
	}
	known := o.until.Equal(until)
	for _, run := range runs {
		there := slices.Contains(o.logins, run)
		if there && known {
			continue
		}
		if !there {
			o.logins = append(o.logins, run) // also when it fails half-way
		}
		if err := d.grant(ctx, o.Running, o.service, run, until); err != nil {
			if !there && !errors.Is(err, syscall.ECONNREFUSED) {
				err = errors.Join(err, d.revoke(context.WithoutCancel(ctx), o, run))
			}
			return unreachable(err)
		}
	}
	o.until = until
	for _, run := range slices.Clone(o.logins) {
		if !slices.Contains(runs, run) {
			err = errors.Join(err, d.revoke(ctx, o, run))
		}
	}
	return err
}

// grant gives a run a role.
func (d *Driver) grant(ctx context.Context, r postgres.Running, v service, run string, until time.Time) error {
	return r.Grant(ctx, postgres.Login{Name: run, Password: d.password(v, run), Owner: databaseOwner, Until: until})
}

// Dismiss implements driver.Servicer.
func (d *Driver) Dismiss(ctx context.Context, h driver.Handle, s driver.Spec, run string) error {
	o, err := d.openDatabase(h, s)
	if o == nil || err != nil {
		return nil // what does not run has no sessions, and starts with Admit
	}
	<-o.learned
	o.mu.Lock()
	defer o.mu.Unlock()
	if !slices.Contains(o.logins, run) {
		return nil
	}
	return d.revoke(ctx, o, run)
}

// revoke ends the role of a run, and its sessions. When a database does not
// let that happen, because its connections are exhausted for one, the whole
// server is ended, and its next start begins with this.
func (d *Driver) revoke(ctx context.Context, o *openDatabase, run string) error {
	err := o.Revoke(ctx, run, databaseOwner)
	if err == nil {
		o.logins = slices.DeleteFunc(o.logins, func(l string) bool { return l == run })
		return nil
	}
	if ctx.Err() != nil {
		return err
	}
	undo, cancel := context.WithTimeout(ctx, clearTimeout)
	defer cancel()
	return fmt.Errorf("the database is started anew: %w", errors.Join(err, d.clear(undo, o.service)))
}
