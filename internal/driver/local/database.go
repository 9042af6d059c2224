package local

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/guest"
	"mayfly.dev/mayfly/internal/postgres"
	"mayfly.dev/mayfly/internal/sandbox"
)

// databaseOwner is the role that what is made in a Postgres belongs to. Each
// run logs in as a role of its own, to act as the owner.
const databaseOwner = "owner"

// secret derives a secret from the server's key.
func (d *Driver) secret(what string, of ...string) string {
	mac := hmac.New(sha256.New, d.key)
	mac.Write([]byte(what))
	for _, s := range of {
		mac.Write([]byte("\x00" + s))
	}
	return hex.EncodeToString(mac.Sum(nil)[:20])
}

// adminSecret is that of the superuser in all databases of a template.
func (d *Driver) adminSecret(template string) string {
	return d.secret("administrator of databases", template)
}

// database returns the Postgres among services, and its place.
func database(services []mayfly.LockedService) (at int, found bool) {
	at = slices.IndexFunc(services, func(s mayfly.LockedService) bool { return s.Postgres != nil })
	return at, at >= 0
}

// instance describes the Postgres of an environment.
func (d *Driver) instance(v service) (postgres.Instance, error) {
	install, err := postgres.Find(v.Postgres.Version)
	if err != nil {
		return postgres.Instance{}, err
	}
	db := d.pool.Live(v.h.Environment).DB
	return postgres.Instance{
		Install: install, Database: v.Postgres.Database, Secret: d.adminSecret(v.spec.Template),
		Data:    postgres.Dir{Host: filepath.Join(db, v.Name), Inside: v.inside()},
		Socket:  postgres.Dir{Host: filepath.Join(db, v.socket()), Inside: filepath.Join(sandbox.DBDir, v.socket())},
		Address: databaseHost, CopyOnWrite: d.copyOnWrite(), NoSync: true,
	}, nil
}

// socket is the directory of a Postgres's socket, which commands may enter. No
// service has a name with a dot.
func (v service) socket() string { return "." + v.Name }

// startDatabase starts a Postgres, or takes over one that runs, and lets the
// environment's runs in.
func (d *Driver) startDatabase(ctx context.Context, v service, process string) (string, error) {
	i, err := d.instance(v)
	if err != nil {
		return "", err
	}
	if err := d.makeData(v, v.socket(), 0o755); err != nil {
		return "", err
	}
	if process == "" && v.hasSpare() {
		err := d.redirect(v.h, false)
		if err != nil && mayfly.KindOf(err) != mayfly.Unsupported { // else it has never been
			return "", err
		}
	}
	var r postgres.Running
	fresh := process == ""
	if fresh {
		l := &launcher{d, v, ""}
		i.Launcher = l
		r, err = postgres.Start(ctx, i)
		process = l.process
	} else {
		r, err = postgres.TakeOver(ctx, i, &serverProcess{d, v, process})
	}
	if err != nil {
		return "", fmt.Errorf("start service %s: %w", v.Name, err)
	}
	o := &openDatabase{Running: r, service: v, learned: make(chan struct{})}
	if fresh { // whoever is admitted waits for it
		ctx = context.WithoutCancel(ctx)
		d.learning.Go(func() { o.learn(ctx) })
	} else if o.learn(ctx); o.failure != nil {
		return "", o.failure
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.databases[v.h.Environment] = o
	return process, nil
}

// forgetDatabase comes after the end of the processes of an environment's
// services, but for a spare that goes on.
func (d *Driver) forgetDatabase(env string, spareGoesOn bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.databases, env)
	if sp := d.spares[env]; sp != nil && (sp.placed || !spareGoesOn) {
		sp.cancel()
		delete(d.spares, env)
	}
}

// checkpointTimeout bounds how long a snapshot waits for a database.
const checkpointTimeout = 5 * time.Second

// checkpoint has the database of an environment write what it holds in memory,
// so that what begins with the snapshot has little to recover. A snapshot
// without it is as sound.
func (d *Driver) checkpoint(ctx context.Context, env string) {
	d.mu.Lock()
	o, ok := d.databases[env]
	d.mu.Unlock()
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, checkpointTimeout)
	defer cancel()
	if err := o.Checkpoint(ctx); err != nil {
		d.log.Warn("checkpoint before a snapshot", "environment", env, "error", err)
	}
}

// databaseVariables are those by which the commands of an environment find its
// database, but for what its template or its owner sets.
func (d *Driver) databaseVariables(h driver.Handle, s driver.Spec, run string) (map[string]string, error) {
	at, ok := database(s.Services)
	if !ok {
		return nil, nil
	}
	t, err := d.template(s.Template)
	if err != nil {
		return nil, err
	}
	v, err := serviceOf(h, s, s.Services[at].Name)
	if err != nil {
		return nil, err
	}
	port, password := strconv.Itoa(postgres.Port), d.password(v, run)
	address := url.URL{
		Scheme: "postgres", User: url.UserPassword(run, password),
		Host: databaseHost + ":" + port, Path: "/" + v.Postgres.Database,
	}
	vars := map[string]string{
		"PGHOST": databaseHost, "PGPORT": port, "PGUSER": run, "PGPASSWORD": password,
		"PGDATABASE": v.Postgres.Database, "DATABASE_URL": address.String(),
	}
	for _, own := range []map[string]string{t.Lock.Env, s.Env} {
		maps.DeleteFunc(vars, func(name, _ string) bool { _, set := own[name]; return set })
	}
	return vars, nil
}

// launcher starts a Postgres in an environment; it is a postgres.Launcher.
type launcher struct {
	d       *Driver
	v       service
	process string // id; empty: a new one
}

func (l *launcher) Launch(ctx context.Context, c postgres.Command) (postgres.Process, error) {
	l.process = cmp.Or(l.process, mayfly.NewID(l.v.prefix(), time.Now()))
	if err := l.d.launch(ctx, l.v, guest.Command{Run: l.process, Argv: c.Argv, Env: c.Env, Dir: c.Dir}); err != nil {
		return nil, err
	}
	return &serverProcess{l.d, l.v, l.process}, nil
}

// Run makes the launcher a postgres.Workshop.
func (l *launcher) Run(ctx context.Context, c postgres.Command, stdin io.Reader, output io.Writer) (string, error) {
	run := mayfly.NewID(l.v.prefix(), time.Now())
	err := l.d.launch(ctx, l.v, guest.Command{Run: run, Argv: c.Argv, Env: c.Env, Dir: c.Dir, Stdin: stdin != nil, Output: mayfly.DefaultLimits.Output})
	if err != nil {
		return "", err
	}
	exit, err := l.d.follow(ctx, l.v.h, run, stdin, output)
	return status(exit), err
}

// serverProcess is a Postgres in an environment; it is a postgres.Process.
type serverProcess struct {
	d       *Driver
	v       service
	process string
}

func (p *serverProcess) Signal(ctx context.Context, sig syscall.Signal) error {
	return p.d.SignalProcess(ctx, p.v.h, p.process, int(sig))
}

func (p *serverProcess) Kill(ctx context.Context) error { return p.d.clear(ctx, p.v) }

func (p *serverProcess) Wait(ctx context.Context) (string, error) {
	exit, err := p.d.WaitProcess(ctx, p.v.h, p.process)
	if err != nil {
		return "", err
	}
	return status(exit), nil
}

// status says in words how a process ended, and nothing when it ended well.
func status(exit driver.Exit) string {
	if exit.Reason != "" || exit.Code == 0 {
		return exit.Reason
	}
	return "status " + strconv.Itoa(exit.Code)
}

func (p *serverProcess) Output(context.Context) string { return p.d.output(p.v.h, p.process) }
