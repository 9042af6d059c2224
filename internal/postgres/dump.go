package postgres

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
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
	cmd := p.command("pg_dump", "--no-password")
	cmd.Env = server.environment()
	name := fmt.Sprintf("dump of %s on %s", server.Database, server.Host)
	return p.loadFrom(ctx, name, p.local(true).reaching(server), cmd, func(said string) error {
		return mayfly.Errorf(mayfly.Unavailable, "%s: pg_dump: %s", name, server.redact(said)).
			Hint("the source's user needs to read every table; try pg_dump with the same connection")
	})
}

func (p *preparation) loadFile(ctx context.Context, name string) error {
	if p.inputs.isDirectory(name) {
		return p.loadDirectory(ctx, name)
	}
	r, err := p.open(name)
	if err != nil {
		return err
	}
	defer r.Close()
	head, _ := r.Peek(512)
	switch {
	case strings.HasPrefix(string(head), archiveMagic):
		return p.restore(ctx, name, r, "--format=custom")
	case len(head) == 512 && string(head[257:262]) == "ustar":
		return p.loadTar(ctx, name, r)
	}
	return p.loadScript(ctx, name, r)
}

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
	err = fs.WalkDir(src.FS(), ".", func(file string, d fs.DirEntry, err error) error {
		if err = errors.Join(err, ctx.Err()); err != nil || !d.Type().IsRegular() {
			return err
		}
		if strings.Contains(file, "/") {
			return fs.SkipDir
		}
		return p.copyFile(src, dst, file, file)
	})
	if err != nil {
		return fmt.Errorf("copy dump: %w", err)
	}
	return p.restore(ctx, name, nil, "--format=directory", insideInput)
}

// loadTar needs a file that can be read in any order.
func (p *preparation) loadTar(ctx context.Context, name string, r io.Reader) error {
	path := filepath.Join(p.work, "input", "dump.tar")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	if err = errors.Join(err, f.Chown(int(p.UID), int(p.GID)), f.Close()); err != nil {
		return fmt.Errorf("copy dump: %w", err)
	}
	defer os.Remove(path)
	return p.restore(ctx, name, nil, "--format=tar", insideInput+"/dump.tar")
}

// restore loads the script that pg_restore makes of an archive.
func (p *preparation) restore(ctx context.Context, name string, stdin io.Reader, args ...string) error {
	cmd := p.command("pg_restore", append(args, "-f", "-")...)
	cmd.Stdin = stdin
	return p.loadFrom(ctx, name, p.local(false), cmd, func(said string) error {
		if strings.Contains(said, "unsupported version") {
			return mayfly.Errorf(mayfly.Invalid, "%s: %s, and Postgres %d is to load it", name, said, p.Install.Major).
				Hint("the dump was made by a newer version: set the service's version to that one")
		}
		return mayfly.Errorf(mayfly.Invalid, "%s: %s", name, said).Hint("the dump is damaged or cut short: make it anew")
	})
}

// loadFrom loads the script that a program writes. When that ends in an error,
// explain makes one of what it said.
func (p *preparation) loadFrom(ctx context.Context, name string, local Local, cmd *exec.Cmd, explain func(said string) error) error {
	r, w := io.Pipe()
	var complaints tail
	cmd.Stdout, cmd.Stderr = w, &complaints
	ended := make(chan struct{})
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(ended)
		err := local.run(run, cmd)
		if err != nil && run.Err() == nil {
			err = explain(lastLines(complaints.String(), 4))
		}
		w.CloseWithError(err)
	}()
	err := p.loadScript(ctx, name, r)
	cancel()
	r.Close() // lets the program end, had it more to say
	<-ended
	return err
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
