package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// Options say what a baseline is made of.
type Options struct {
	Dir string // PGDATA to make; does not exist, or is empty
	// Inside is what the directory that holds Dir is called in the Workshop,
	// where others than root can enter but not read it; empty: as it is here.
	Inside   string
	Workshop Workshop
	Install  Install
	Database string // made unless the source has it
	Role     string // owner of the database and everything in it; cannot log in
	Secret   string // of Admin, not guessable
	Source   Source
	// Cloner makes the Source, as a copy that is removed in the end; may be nil.
	Cloner Cloner
	// Inputs is the directory that the names of Source, SQL and Masking are
	// relative to, and that no link leads out of; empty: names are paths of
	// this machine.
	Inputs string
	// Extensions are created before anything is loaded.
	Extensions []string
	// SQL and Masking are files, or directories whose *.sql files are taken in
	// the order of their names, possibly compressed. They are executed by psql
	// in this order after the source is loaded. What Masking overwrites is in
	// no file of the baseline.
	SQL, Masking []string
	Settings     map[string]string // see CheckSettings
	// CreateDB lets the role make further databases.
	CreateDB bool
	// UID and GID are on disk those of the Workshop's programs, and have the
	// files. Outside is whom programs run as that talk to a live server, on
	// this machine.
	UID, GID, Outside uint32
	// Log gets a line for each thing that is otherwise than in the source; nil
	// discards.
	Log io.Writer

	cluster string // of tests: what initdb has made once
}

func (o Options) check() error {
	for what, name := range map[string]string{"database": o.Database, "role": o.Role} {
		if err := checkName(what, name); err != nil {
			return err
		}
	}
	if len(o.Secret) < 16 {
		return errors.New("prepare baseline: the superuser's secret is too short")
	}
	for _, name := range o.Extensions {
		if err := o.Install.HasExtension(name); err != nil {
			return err
		}
	}
	if entries, err := os.ReadDir(o.Dir); err == nil && len(entries) > 0 {
		return mayfly.Errorf(mayfly.Conflict, "%s is not empty", o.Dir)
	}
	return errors.Join(CheckSettings(o.Settings), o.Source.check())
}

// preparation is a baseline in the making, in a hidden directory beside the
// one that it becomes.
type preparation struct {
	Options
	work    string // data/, socket/ and input/ on the host
	inputs  inputs
	running Running
}

// Prepare makes a baseline. It leaves a directory that is complete, cleanly
// stopped and on disk, or nothing. The source is only read. What could act by
// itself or give more rights than a copy's users shall have is switched off;
// see the messages in Log. The same options give the same content, in files
// that differ in the identifier and times that Postgres gives every cluster.
func Prepare(ctx context.Context, o Options) error {
	if o.Log == nil {
		o.Log = io.Discard
	}
	if err := o.check(); err != nil {
		return err
	}
	p := &preparation{Options: o, work: filepath.Join(filepath.Dir(o.Dir), "."+filepath.Base(o.Dir)+".new")}
	if err := os.RemoveAll(p.work); err != nil {
		return err
	}
	var err error
	if p.inputs, err = openInputs(o.Inputs); err != nil {
		return err
	}
	defer p.inputs.close()
	err = p.makeDirs()
	if err == nil {
		err = p.clone(ctx)
	}
	if err == nil {
		err = p.prepare(ctx)
	}
	if err == nil {
		err = os.Rename(p.data(), o.Dir)
	}
	err = errors.Join(err, os.RemoveAll(p.work), p.removeClone(ctx))
	if err != nil && ctx.Err() == nil {
		return explainFull(err)
	}
	return err
}

// isFull reports whether a message of Postgres is about a full disk.
func isFull(message string) bool {
	return strings.Contains(message, "No space left on device") || strings.Contains(message, "Check free disk space")
}

// explainFull gives a full disk its kind.
func explainFull(err error) error {
	var known *mayfly.Error
	if errors.Is(err, unix.ENOSPC) || !errors.As(err, &known) && isFull(err.Error()) {
		return mayfly.Errorf(mayfly.Exhausted, "%w", err).Hint("free space on the disk, and try again")
	}
	return err
}

func (p *preparation) data() string { return filepath.Join(p.work, "data") }

// inside is what a path below the preparation's directory is called inside.
func (p *preparation) inside(name string) string {
	return filepath.Join(cmp.Or(p.Inside, filepath.Dir(p.work)), filepath.Base(p.work), name)
}

func (p *preparation) makeDirs() error {
	for _, name := range []string{".", "data", "socket", "input"} {
		dir := filepath.Join(p.work, name)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := os.Chown(dir, int(p.UID), int(p.GID)); err != nil {
			return err
		}
	}
	return errors.Join(os.Chown(p.work, 0, 0), os.Chmod(p.work, 0o711))
}

func (p *preparation) prepare(ctx context.Context) error {
	if err := p.fill(ctx); err != nil {
		return err
	}
	if err := p.start(ctx); err != nil {
		return err
	}
	err := p.load(ctx)
	if err == nil {
		err = p.tame(ctx)
	}
	if err == nil {
		err = p.compact(ctx)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		return errors.Join(err, p.running.Kill(undo))
	}
	if err := p.running.Stop(ctx); err != nil {
		return err
	}
	return p.finish(ctx)
}

// fill makes the data directory: a new one, or a copy of the source.
func (p *preparation) fill(ctx context.Context) error {
	switch {
	case p.Source.Directory != "":
		return p.takeDirectory()
	case p.Source.Server != nil && p.Source.Physical:
		return p.baseBackup(ctx)
	case p.cluster != "":
		return p.copyTree(ctx, inputs{}, p.cluster, ".")
	}
	out, err := p.tool(ctx, "initdb", "-D", p.inside("data"), "-U", Admin, "--auth=trust", "--encoding=UTF8",
		"--locale=C.UTF-8", "--no-sync", "--no-instructions")
	if err != nil {
		return fmt.Errorf("initdb: %w: %s", err, lastLines(out, 5))
	}
	return nil
}

// command is a program of Postgres beside the server that is being prepared.
func (p *preparation) command(name string, args ...string) Command {
	return Command{Argv: append([]string{p.Install.program(name)}, args...), Dir: "/tmp", Env: environment(
		"PGHOST="+p.inside("socket"), "PGUSER="+Admin, "PGDATABASE="+p.Database, "PGPASSFILE=/dev/null", "PGCONNECT_TIMEOUT=20",
		"PGOPTIONS=-c client_min_messages=warning -c synchronous_commit=off")}
}

// tool runs a program of Postgres to its end.
func (p *preparation) tool(ctx context.Context, name string, args ...string) (output string, err error) {
	var out tail
	status, err := p.Workshop.Run(ctx, p.command(name, args...), nil, &out)
	if err == nil && status != "" {
		err = errors.New(status)
	}
	return out.String(), err
}

// start starts the server on the data directory for those who are in the same
// place only.
func (p *preparation) start(ctx context.Context) error {
	root, err := os.OpenRoot(p.data())
	if err != nil {
		return err
	}
	defer root.Close()
	preload := map[string]string{}
	if list, ok := p.Settings["shared_preload_libraries"]; ok {
		preload["shared_preload_libraries"] = list
	}
	for name, content := range map[string][]byte{
		"postgresql.conf": render(preparing, preload), "postgresql.auto.conf": nil,
		"pg_hba.conf": []byte(trusting), "pg_ident.conf": nil,
	} {
		if err := replace(root, name, content); err != nil {
			return err
		}
	}
	if p.Source.physical() {
		if err := p.adopt(ctx); err != nil {
			return err
		}
	}
	p.running = Running{Instance: Instance{
		Install: p.Install, Database: p.Database, Secret: p.Secret,
		Data:   Dir{Host: p.data(), Inside: p.inside("data")},
		Socket: Dir{Host: filepath.Join(p.work, "socket"), Inside: p.inside("socket")},
	}}
	argv := []string{p.Install.program("postgres"), "-D", p.inside("data"), "-c", "unix_socket_directories=" + p.inside("socket"), "-c", "listen_addresses="}
	p.running.Process, err = p.Workshop.Launch(ctx, Command{Argv: argv, Env: environment(), Dir: p.inside("data")})
	if err != nil {
		return err
	}
	err = p.running.awaitReady(ctx)
	if err == nil {
		err = p.rename(ctx)
	}
	if err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		return errors.Join(err, p.running.Process.Kill(undo))
	}
	return nil
}

// load makes the database and fills it.
func (p *preparation) load(ctx context.Context) error {
	if err := p.createDatabase(ctx); err != nil {
		return err
	}
	err := p.in(ctx, p.Database, func(conn *pgconn.PgConn) error {
		for _, name := range p.Extensions {
			if err := execute(ctx, conn, "CREATE EXTENSION IF NOT EXISTS "+identifier(name)+" CASCADE"); err != nil {
				return mayfly.Errorf(mayfly.Invalid, "create extension %s: %w", name, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := p.loadDump(ctx); err != nil {
		return err
	}
	for _, files := range [][]string{p.SQL, p.Masking} {
		if err := p.runFiles(ctx, files); err != nil {
			return err
		}
	}
	return nil
}

// in calls fn with a superuser's connection whose names are resolved as in an
// ordinary one.
func (p *preparation) in(ctx context.Context, database string, fn func(*pgconn.PgConn) error) error {
	return p.running.withConn(ctx, database, func(conn *pgconn.PgConn) error {
		if err := execute(ctx, conn, "SET search_path = public"); err != nil {
			return err
		}
		return fn(conn)
	})
}

func (p *preparation) createDatabase(ctx context.Context) error {
	there := maintenance(p.Database)
	if p.Source.physical() {
		there = "template1"
	}
	return p.running.withConn(ctx, there, func(conn *pgconn.PgConn) error {
		names, err := column(ctx, conn, "SELECT datname FROM pg_database WHERE NOT datname IN ('template0', 'template1') ORDER BY 1")
		if err != nil {
			return err
		}
		has := map[string]bool{}
		for _, n := range names {
			has[n] = true
		}
		if p.Source.physical() && !has[p.Database] {
			return mayfly.Errorf(mayfly.Invalid, "the source has no database %q, but %q", p.Database, names).
				Hint("set the service's database to one of these")
		}
		statements := []string{"CREATE ROLE " + identifier(p.Role) + " NOLOGIN"}
		if roles, err := column(ctx, conn, "SELECT rolname FROM pg_roles WHERE rolname = $1", p.Role); err != nil || len(roles) > 0 {
			statements = nil
		}
		for _, name := range []string{"postgres", p.Database} {
			if !has[name] {
				statements = append(statements, "CREATE DATABASE "+identifier(name)+" TEMPLATE template0")
				has[name] = true
			}
		}
		for _, s := range statements {
			if err := execute(ctx, conn, s); err != nil {
				return err
			}
		}
		return nil
	})
}

// finish trims the stopped data directory and gives it its final form.
func (p *preparation) finish(ctx context.Context) error {
	if err := p.trimWAL(ctx); err != nil {
		return err
	}
	root, err := os.OpenRoot(p.data())
	if err != nil {
		return err
	}
	defer root.Close()
	for name, content := range map[string][]byte{
		"postgresql.conf": render(defaults, p.Settings), "postgresql.auto.conf": nil,
		"pg_hba.conf": []byte(access), "pg_ident.conf": nil,
	} {
		if err := replace(root, name, content); err != nil {
			return err
		}
	}
	if err := removeAll(root, "postmaster.pid", "postmaster.opts", "backup_label.old", "tablespace_map.old"); err != nil {
		return err
	}
	return syncFS(p.data())
}

// trimWAL removes the log before the last checkpoint, which ended the server:
// nothing needs it.
func (p *preparation) trimWAL(ctx context.Context) error {
	out, err := p.tool(ctx, "pg_controldata", "-D", p.inside("data"))
	if err != nil {
		return fmt.Errorf("pg_controldata: %w: %s", err, lastLines(out, 3))
	}
	state, segment := controlField(out, "Database cluster state"), controlField(out, "Latest checkpoint's REDO WAL file")
	if state != "shut down" || segment == "" {
		return fmt.Errorf("the server left its data directory %q", state)
	}
	root, err := os.OpenRoot(filepath.Join(p.data(), "pg_wal"))
	if err != nil {
		return err
	}
	defer root.Close()
	if _, err := root.Stat(segment); err != nil {
		return fmt.Errorf("last segment of the log: %w", err)
	}
	entries, err := fs.ReadDir(root.FS(), ".")
	for _, e := range entries {
		switch {
		case e.Name() == segment || strings.HasSuffix(e.Name(), ".history"):
		case e.IsDir():
			err = errors.Join(err, empty(root, e.Name()))
		default:
			err = errors.Join(err, root.Remove(e.Name()))
		}
	}
	return err
}

func controlField(out, name string) string {
	for line := range strings.Lines(out) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func giveTo(dir string, uid, gid uint32) error {
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(uid), int(gid))
	})
}

// syncFS writes all of the file system that holds dir to the disk.
func syncFS(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Syncfs(int(f.Fd()))
}

// note tells what is otherwise than in the source.
func (p *preparation) note(format string, args ...any) {
	if p.Log == nil {
		return
	}
	fmt.Fprintf(p.Log, "note: "+format+"\n", args...)
}
