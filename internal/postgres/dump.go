package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"mayfly.dev/mayfly"
)

// archiveMagic begins pg_dump's custom format and the table of contents of its
// directory format.
const archiveMagic = "PGDMP"

// loadDump loads what the source gives as SQL: a dump, as a script where it is
// in another format, or what pg_dump says about a live server. Whatever it is,
// it takes the same way through the filter.
func (p *preparation) loadDump(ctx context.Context) error {
	switch {
	case p.Source.Dump != "":
		return p.loadFile(ctx, p.Source.Dump)
	case p.Source.Server != nil && !p.Source.Physical:
		return p.loadServer(ctx)
	}
	return nil
}

func (p *preparation) loadServer(ctx context.Context) error {
	if _, err := p.examine(ctx); err != nil {
		return err
	}
	server := *p.Source.Server
	name := fmt.Sprintf("dump of %s on %s", server.Database, server.Host)
	r, w := io.Pipe()
	var complaints tail
	cmd := p.outside("pg_dump", "--no-password")
	cmd.Env, cmd.Stdout, cmd.Stderr = server.environment(), w, &complaints
	ended := make(chan struct{})
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(ended)
		err := p.reaching(server).run(run, cmd)
		if err != nil && run.Err() == nil {
			err = mayfly.Errorf(mayfly.Unavailable, "%s: pg_dump: %s", name, server.redact(lastLines(complaints.String(), 4))).
				Hint("the source's user needs to read every table; try pg_dump with the same connection")
		}
		w.CloseWithError(err)
	}()
	err := p.loadScript(ctx, name, r)
	cancel()
	r.Close() // lets the program end, had it more to say
	<-ended
	return err
}

func (p *preparation) loadFile(ctx context.Context, name string) error {
	if p.inputs.isDirectory(name) {
		return p.loadDirectory(ctx, name)
	}
	r, err := p.inputs.script(name)
	if err != nil {
		return err
	}
	defer r.Close()
	head, _ := r.Peek(512)
	if !strings.HasPrefix(string(head), archiveMagic) && !(len(head) == 512 && string(head[257:262]) == "ustar") {
		return p.loadScript(ctx, name, r)
	}
	if err := p.copyArchive(r); err != nil {
		return fmt.Errorf("copy dump: %w", err)
	}
	return p.restore(ctx, name)
}

// archive is what the copy of a dump is called, in the directory of inputs.
const archive = "dump"

// loadDirectory copies the dump to where pg_restore, as a user that may read
// nothing else, can read it.
func (p *preparation) loadDirectory(ctx context.Context, name string) error {
	if _, err := p.inputs.stat(filepath.Join(name, "toc.dat")); err != nil {
		return mayfly.Errorf(mayfly.Invalid, "%s is no dump: it has no toc.dat", name).Hint("name what pg_dump made, or a directory of SQL files as sql")
	}
	src, err := p.inputs.openRoot(name)
	if err != nil {
		return err
	}
	defer src.Close()
	dst, err := os.OpenRoot(filepath.Join(p.work, "input"))
	if err != nil {
		return err
	}
	defer dst.Close()
	if err := p.makeDir(dst, archive); err != nil {
		return err
	}
	err = fs.WalkDir(src.FS(), ".", func(file string, d fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil || !d.Type().IsRegular() {
			return err
		}
		if strings.Contains(file, "/") {
			return fs.SkipDir
		}
		return p.copyFile(src, dst, file, archive+"/"+file)
	})
	if err != nil {
		return fmt.Errorf("copy dump: %w", err)
	}
	return p.restore(ctx, name)
}

// copyArchive copies a dump of one file.
func (p *preparation) copyArchive(r io.Reader) error {
	f, err := os.OpenFile(filepath.Join(p.work, "input", archive), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Chown(int(p.UID), int(p.GID)), f.Close())
}

// restore loads the script that pg_restore makes of the archive.
func (p *preparation) restore(ctx context.Context, name string) error {
	const script = "script.sql"
	said, err := p.tool(ctx, "pg_restore", "-f", p.inside("input/"+script), p.inside("input/"+archive))
	switch said = lastLines(said, 4); {
	case ctx.Err() != nil:
		return ctx.Err()
	case err != nil && isFull(said):
		return fmt.Errorf("%s: %s", name, said)
	case err != nil && strings.Contains(said, "unsupported version"):
		return mayfly.Errorf(mayfly.Invalid, "%s: %s, and Postgres %d is to load it", name, said, p.Install.Major).
			Hint("the dump was made by a newer version: set the service's version to that one")
	case err != nil:
		return mayfly.Errorf(mayfly.Invalid, "%s: %s", name, said).Hint("the dump is damaged or cut short: make it anew")
	}
	here, err := openInputs(filepath.Join(p.work, "input"))
	if err != nil {
		return err
	}
	defer here.close()
	if err := here.root.RemoveAll(archive); err != nil {
		return err
	}
	r, err := here.script(script)
	if err != nil {
		return err
	}
	defer r.Close()
	return p.loadScript(ctx, name, r)
}

// loadScript loads a plain dump through the filter.
func (p *preparation) loadScript(ctx context.Context, name string, r io.Reader) error {
	roles, err := p.roles(ctx)
	if err != nil {
		return err
	}
	f := newFilter(r, p.Install, p.Database, roles)
	f.note = func(format string, args ...any) { p.note(format, args...) }
	err = p.psql(ctx, name, f)
	if f.err != nil && ctx.Err() == nil { // what the dump is matters more than what psql said
		return damaged(name, f.err)
	}
	return err
}

// damaged says that a file cannot be read to its end.
func damaged(name string, err error) error {
	var known *mayfly.Error
	if errors.As(err, &known) {
		return fmt.Errorf("%s: %w", name, err)
	}
	return mayfly.Errorf(mayfly.Invalid, "read %s: %w", name, err).Hint("the file is damaged or cut short: make it anew")
}

func (p *preparation) roles(ctx context.Context) (names []string, err error) {
	err = p.running.withConn(ctx, maintenance(p.Database), func(conn *pgconn.PgConn) error {
		names, err = column(ctx, conn, "SELECT rolname FROM pg_roles")
		return err
	})
	return names, err
}
