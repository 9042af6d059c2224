package local

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"errors"
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
	"mayfly.dev/mayfly/internal/guest/wire"
	"mayfly.dev/mayfly/internal/postgres"
	"mayfly.dev/mayfly/internal/sandbox"
)

// Roles of every Postgres: what is made belongs to the owner, whom commands
// log in as somebody else to act as.
const (
	databaseOwner = "owner"
	databaseLogin = "agent"
)

// baselineSnapshot is the state of a template's volume of databases that
// environments begin with.
const baselineSnapshot = "baseline"

// baselineVolume is the name of a template's volume of databases.
func baselineVolume(template string) string { return layerName(baselinePrefix, template) }

// baselinePrefix begins the names of volumes that no environment has.
const baselinePrefix = "tpl-"

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

// prepareDatabase makes the volume that environments of a template are forked
// from. workspace is a directory of the host. A failure leaves nothing.
func (d *Driver) prepareDatabase(ctx context.Context, l mayfly.Lock, workspace string, disk int64, log io.Writer) error {
	at, ok := database(l.Services)
	if !ok {
		return nil
	}
	if l.Base.Kind != "host" {
		return mayfly.Errorf(mayfly.Unsupported, "a Postgres service needs the machine itself as its base").
			Hint("use base: host, or start the image's own Postgres as a service with a command")
	}
	if len(d.key) == 0 {
		return errors.New("prepare database: no key to derive passwords from")
	}
	s := l.Services[at]
	install, err := postgres.Find(s.Postgres.Version)
	if err != nil {
		return err
	}
	d.preparing.Lock()
	defer d.preparing.Unlock()
	if there, err := d.hasBaseline(ctx, l); there || err != nil {
		return err
	}
	volume := baselineVolume(l.Template)
	if err := d.pool.Destroy(ctx, volume); err != nil { // of a preparation that a crash ended
		return fmt.Errorf("remove old baseline: %w", err)
	}
	fmt.Fprintf(log, "database: preparing %s on Postgres %s\n", s.Postgres.Database, install.Version)
	err = d.fillBaseline(ctx, volume, disk, postgres.Options{
		Dir: filepath.Join(d.pool.Live(volume).DB, s.Name), Install: install,
		Database: s.Postgres.Database, Role: databaseOwner, Secret: d.adminSecret(l.Template),
		Source: postgres.Source{Dump: s.Postgres.Dump}, Inputs: workspace,
		Extensions: s.Postgres.Extensions, SQL: s.Postgres.SQL, Masking: optional(s.Postgres.Mask), Settings: s.Postgres.Settings,
		UID: buildUIDBase + wire.FirstUID, GID: buildUIDBase + wire.FirstUID,
		Owner: wire.FirstUID + uint32(at), Group: wire.FirstUID + uint32(at), Log: log,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("prepare database: %w", err), d.pool.Destroy(context.WithoutCancel(ctx), volume))
	}
	return nil
}

func optional(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

func (d *Driver) fillBaseline(ctx context.Context, name string, disk int64, o postgres.Options) error {
	if err := d.pool.Create(ctx, name); err != nil {
		return err
	}
	if err := d.limit(ctx, name, disk); err != nil {
		return err
	}
	if err := postgres.Prepare(ctx, o); err != nil {
		return err
	}
	return d.pool.Snapshot(ctx, name, baselineSnapshot)
}

// hasBaseline reports whether the volume that a template's environments are
// forked from is there, if they need one.
func (d *Driver) hasBaseline(ctx context.Context, l mayfly.Lock) (bool, error) {
	if _, ok := database(l.Services); !ok {
		return true, nil
	}
	volumes, err := d.pool.Volumes(ctx)
	if err != nil || !slices.Contains(volumes, baselineVolume(l.Template)) {
		return false, err
	}
	snapshots, err := d.pool.SnapshotsOf(ctx, baselineVolume(l.Template))
	return slices.Contains(snapshots, baselineSnapshot), err
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
		Data:   postgres.Dir{Host: filepath.Join(db, v.Name), Inside: v.inside()},
		Socket: postgres.Dir{Host: filepath.Join(db, v.socket()), Inside: filepath.Join(sandbox.DBDir, v.socket())},
		TCP:    true, CopyOnWrite: d.copyOnWrite(), NoSync: true,
	}, nil
}

// socket is the directory of a Postgres's socket, which commands may enter. No
// service has a name with a dot.
func (v service) socket() string { return "." + v.Name }

// startDatabase starts a Postgres, or takes over one that runs, and lets the
// environment's commands in.
func (d *Driver) startDatabase(ctx context.Context, v service, process string) (string, error) {
	i, err := d.instance(v)
	if err != nil {
		return "", err
	}
	if err := d.makeData(v, v.socket(), 0o755); err != nil {
		return "", err
	}
	r := postgres.Running{Instance: i, Process: &serverProcess{d, v, process}}
	if process == "" {
		l := &launcher{d, v, ""}
		i.Launcher = l
		if r, err = postgres.Start(ctx, i); err != nil {
			return "", fmt.Errorf("start service %s: %w", v.Name, err)
		}
		process = l.process
	}
	login := postgres.Login{Name: databaseLogin, Password: d.password(v), Owner: databaseOwner}
	if err := r.Grant(ctx, login); err != nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.databases[v.h.Environment] = r
	return process, nil
}

func (d *Driver) password(v service) string {
	return d.secret("password of a database", v.h.Environment, v.Name)
}

// forgetDatabase comes after the end of an environment's processes.
func (d *Driver) forgetDatabase(env string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.databases, env)
}

// checkpointTimeout bounds how long a snapshot waits for a database.
const checkpointTimeout = 5 * time.Second

// checkpoint has the database of an environment write what it holds in memory,
// so that what begins with the snapshot has little to recover. A snapshot
// without it is as sound.
func (d *Driver) checkpoint(ctx context.Context, env string) {
	d.mu.Lock()
	r, ok := d.databases[env]
	d.mu.Unlock()
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, checkpointTimeout)
	defer cancel()
	if err := r.Checkpoint(ctx); err != nil {
		d.log.Warn("checkpoint before a snapshot", "environment", env, "error", err)
	}
}

// databaseVariables are those by which the commands of an environment find its
// database, but for what its template or its owner sets.
func (d *Driver) databaseVariables(h driver.Handle, s driver.Spec) (map[string]string, error) {
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
	const host = "127.0.0.1"
	port, password := strconv.Itoa(postgres.Port), d.password(v)
	address := url.URL{
		Scheme: "postgres", User: url.UserPassword(databaseLogin, password),
		Host: host + ":" + port, Path: "/" + v.Postgres.Database,
	}
	vars := map[string]string{
		"PGHOST": host, "PGPORT": port, "PGUSER": databaseLogin, "PGPASSWORD": password,
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
	process string
}

func (l *launcher) Launch(ctx context.Context, c postgres.Command) (postgres.Process, error) {
	l.process = mayfly.NewID(l.v.prefix(), time.Now())
	if err := l.d.launch(ctx, l.v, guest.Command{Run: l.process, Argv: c.Argv, Env: c.Env, Dir: c.Dir}); err != nil {
		return nil, err
	}
	return &serverProcess{l.d, l.v, l.process}, nil
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
	if exit.Reason != "" {
		return exit.Reason, nil
	}
	return "status " + strconv.Itoa(exit.Code), nil
}

func (p *serverProcess) Output(context.Context) string { return p.d.output(p.v.h, p.process) }
