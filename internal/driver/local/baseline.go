package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/guest/wire"
	"mayfly.dev/mayfly/internal/postgres"
	"mayfly.dev/mayfly/internal/sandbox"
)

// baselineSnapshot is the state of a template's volume of databases that
// environments begin with.
const baselineSnapshot = "baseline"

// baselineVolume is the name of a template's volume of databases.
func baselineVolume(template string) string { return layerName(baselinePrefix, template) }

// baselinePrefix begins the names of volumes that no environment has.
const baselinePrefix = "tpl-"

// copyUID is, in the range of a preparation, the user of programs that copy from
// a live server, which the sandbox has not got.
const copyUID = wire.LastUID + 1

// prepareDatabase makes the volume that environments of a template are forked
// from, in a sandbox with host ids of its own from base on. workspace is a
// directory of the host. A failure leaves nothing.
func (d *Driver) prepareDatabase(ctx context.Context, t description, base uint32, workspace string, limits mayfly.Limits, log io.Writer) error {
	l := t.Lock
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
	name := baselineVolume(l.Template)
	if err := d.pool.Destroy(ctx, name); err != nil { // of a preparation that a crash ended
		return fmt.Errorf("remove old baseline: %w", err)
	}
	fmt.Fprintf(log, "database: preparing %s on Postgres %s\n", s.Postgres.Database, install.Version)
	uid := wire.FirstUID + uint32(at)
	source, cloner, err := d.source(*s.Postgres, workspace, d.pool.Live(name).DB)
	if err != nil {
		return fmt.Errorf("prepare database: %w", err)
	}
	v := service{LockedService: s, uid: uid}
	v.h = driver.Handle{Environment: mayfly.NewID("build", time.Now()), Isolation: mayfly.Native, UIDBase: base}
	err = d.fillBaseline(ctx, name, t, limits, v, postgres.Options{
		Dir: filepath.Join(d.pool.Live(name).DB, s.Name), Inside: sandbox.DBDir, Install: install,
		Database: s.Postgres.Database, Role: databaseOwner, Secret: d.adminSecret(l.Template),
		Source: source, Cloner: cloner, Inputs: workspace,
		Extensions: s.Postgres.Extensions, SQL: s.Postgres.SQL, Masking: optional(s.Postgres.Mask), Settings: s.Postgres.Settings,
		UID: uid, GID: uid, Outside: base + copyUID, Log: log,
	})
	if err != nil {
		return errors.Join(fmt.Errorf("prepare database: %w", err), d.pool.Destroy(context.WithoutCancel(ctx), name))
	}
	return nil
}

// source is what a database begins with; copies that it takes are made at a
// directory.
func (d *Driver) source(p mayfly.LockedPostgres, workspace, copies string) (postgres.Source, postgres.Cloner, error) {
	switch {
	case p.Server != nil:
		server, err := d.sources.Server(p.Server.Secret)
		return postgres.Source{Server: &server, Physical: p.Server.Physical}, nil, err
	case filepath.IsAbs(p.Directory):
		return postgres.Source{}, postgres.DirectoryCloner{Directory: p.Directory, Root: copies}, d.sources.Directory(p.Directory)
	case p.Directory != "":
		return postgres.Source{}, postgres.DirectoryCloner{Directory: p.Directory, Inputs: workspace, Root: copies}, nil
	}
	return postgres.Source{Dump: p.Dump}, nil, nil
}

func optional(s string) []string {
	if s == "" {
		return nil
	}
	return []string{s}
}

// fillBaseline makes a baseline in a sandbox of its own, whose volume goes away
// with it: nothing but the data directory is in the baseline.
func (d *Driver) fillBaseline(ctx context.Context, name string, t description, limits mayfly.Limits, v service, o postgres.Options) (err error) {
	if err := d.pool.Create(ctx, name); err != nil {
		return err
	}
	if err := d.limit(ctx, name, limits.Disk); err != nil {
		return err
	}
	v.spec = driver.Spec{Limits: limits}
	defer func() { err = errors.Join(err, d.Destroy(context.WithoutCancel(ctx), v.h)) }()
	if err := d.Create(ctx, v.h, v.spec); err != nil {
		return err
	}
	if err := introduce(d.pool.Live(v.h.Environment).Upper, v); err != nil {
		return err
	}
	rt, err := d.runtime(v.h.Isolation)
	if err != nil {
		return err
	}
	under, err := d.under(ctx, t.Base)
	if err != nil {
		return err
	}
	place := d.assemble(v.h, t, under, v.spec)
	place.DB = d.pool.Live(name).DB
	if err := rt.Start(ctx, place); err != nil {
		return fmt.Errorf("start sandbox: %w", err)
	}
	o.Workshop = &launcher{d: d, v: v}
	if err := postgres.Prepare(ctx, o); err != nil {
		return err
	}
	if err := d.Stop(ctx, v.h); err != nil { // what SQL has left behind writes no more
		return err
	}
	return d.pool.Snapshot(ctx, name, baselineSnapshot)
}

// introduce gives the user of a service a name, without which initdb does not
// run.
func introduce(upper string, v service) error {
	etc := filepath.Join(upper, "etc")
	if err := os.Mkdir(etc, 0o755); err != nil {
		return err
	}
	users := fmt.Sprintf("root:x:0:0::/root:/bin/sh\npostgres:x:%d:%d::/tmp:/bin/sh\n", v.uid, v.uid)
	return os.WriteFile(filepath.Join(etc, "passwd"), []byte(users), 0o644)
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
