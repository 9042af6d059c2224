package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// installation is a Postgres on this machine.
type installation struct {
	version string // major
	bin     string
}

func (i installation) program(name string) string { return filepath.Join(i.bin, name) }

// installed finds the newest Postgres, where Debian puts it.
func installed() (installation, error) {
	list, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	if err != nil || len(list) == 0 {
		return installation{}, errors.Join(err, errors.New("there is no Postgres in /usr/lib/postgresql: install the package postgresql"))
	}
	version := func(path string) int {
		n, _ := strconv.Atoi(filepath.Base(filepath.Dir(filepath.Dir(path))))
		return n
	}
	newest := slices.MaxFunc(list, func(a, b string) int { return version(a) - version(b) })
	return installation{strconv.Itoa(version(newest)), filepath.Dir(newest)}, nil
}

// plainPostgres is an instance outside of mayfly, on the file system that
// holds the state directory, with the settings of those in environments.
type plainPostgres struct {
	installation
	dir       string // sockets, data
	work      string
	settings  []string
	as        *syscall.Credential
	server    *exec.Cmd
	templates samples // times of createFromTemplate
}

// ownSettings say where an instance is.
const ownSettings = `'config_file', 'data_directory', 'hba_file', 'ident_file', 'external_pid_file', 'listen_addresses', 'port',
	'unix_socket_directories', 'unix_socket_group', 'unix_socket_permissions'`

// plainPostgres starts an instance like those of a template.
func (b *bench) plainPostgres(ctx context.Context, pg installation, like database) (p *plainPostgres, err error) {
	e, _, err := b.clone(ctx, like)
	if err != nil {
		return nil, err
	}
	out, err := b.exec(ctx, e.ID, "/workspace/work", "query", `SELECT string_agg(name || '=' || setting, chr(9))
		FROM pg_settings WHERE source IN ('configuration file', 'command line') AND name NOT IN (`+ownSettings+`)`)
	if err != nil {
		return nil, err
	}
	if _, err := b.DeleteEnvironment(ctx, e.ID); err != nil {
		return nil, err
	}
	_, list, _ := strings.Cut(strings.TrimSpace(out), " ")
	p = &plainPostgres{installation: pg, settings: strings.Split(list, "\t")}
	defer func() {
		if err != nil {
			p.close()
		}
	}()
	return p, p.begin(ctx, b.work)
}

// begin makes the directory and the data, and starts the instance. Postgres
// does not run as root.
func (p *plainPostgres) begin(ctx context.Context, work string) error {
	account, err := user.Lookup("postgres")
	if err != nil {
		return err
	}
	uid, err := strconv.Atoi(account.Uid)
	if err != nil {
		return err
	}
	gid, err := strconv.Atoi(account.Gid)
	if err != nil {
		return err
	}
	p.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	if p.dir, err = os.MkdirTemp("", "mayfly-bench-pg-"); err != nil {
		return err
	}
	// The program is in a directory that only root enters.
	program, err := os.ReadFile(work)
	if err != nil {
		return err
	}
	p.work = filepath.Join(p.dir, "work")
	if err := os.WriteFile(p.work, program, 0o755); err != nil {
		return err
	}
	if err := os.Chown(p.dir, uid, gid); err != nil {
		return err
	}
	if _, err := p.run(ctx, "", "initdb", "-D", p.data(), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"); err != nil {
		return err
	}
	p.server, err = p.start(ctx, p.data(), p.dir)
	return err
}

func (p *plainPostgres) data() string { return filepath.Join(p.dir, "data") }

// command is one that runs as the owner of the data.
func (p *plainPostgres) command(ctx context.Context, socket, database, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Dir = p.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.as}
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LANG=C", "PGHOST=" + socket, "PGUSER=postgres", "PGDATABASE=" + database}
	return cmd
}

// run runs a program of Postgres and returns its standard output.
func (p *plainPostgres) run(ctx context.Context, database, program string, args ...string) (string, error) {
	cmd := p.command(ctx, p.dir, database, p.program(program), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", program, err, stderr.String())
	}
	return string(out), nil
}

// start starts an instance and waits until it answers.
func (p *plainPostgres) start(ctx context.Context, data, socket string) (*exec.Cmd, error) {
	args := []string{"-D", data, "-c", "listen_addresses=", "-c", "unix_socket_directories=" + socket}
	for _, s := range p.settings {
		args = append(args, "-c", s)
	}
	cmd := p.command(context.WithoutCancel(ctx), socket, "", p.program("postgres"), args...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for range 10000 {
		if p.command(ctx, socket, "postgres", p.work, "query", "SELECT 1").Run() == nil {
			return cmd, nil
		}
		if err := ctx.Err(); err != nil {
			break
		}
	}
	stop(cmd)
	return nil, fmt.Errorf("a plain Postgres does not answer: %s", stderr.String())
}

// stop ends an instance at once; what it has is thrown away.
func stop(cmd *exec.Cmd) {
	if cmd != nil {
		cmd.Process.Signal(syscall.SIGQUIT)
		cmd.Wait() // its status says that it was killed
	}
}

func (p *plainPostgres) pid() int { return p.server.Process.Pid }

func (p *plainPostgres) close() {
	stop(p.server)
	if p.dir != "" {
		os.RemoveAll(p.dir)
	}
}

// roomFor reports whether that many megabytes are free.
func (p *plainPostgres) roomFor(megabytes int) bool {
	var fs syscall.Statfs_t
	return syscall.Statfs(p.dir, &fs) == nil && fs.Bavail*uint64(fs.Bsize) > uint64(megabytes)<<20
}

func (p *plainPostgres) sql(ctx context.Context, database, sql string) error {
	out, err := p.command(ctx, p.dir, database, p.work, "query", sql).CombinedOutput()
	if err != nil {
		return fmt.Errorf("plain Postgres: %w: %s", err, out)
	}
	return nil
}

// fill makes the database shop.
func (p *plainPostgres) fill(ctx context.Context, sql string) error {
	if err := p.sql(ctx, "postgres", "CREATE DATABASE shop"); err != nil {
		return err
	}
	if err := p.sql(ctx, "shop", sql); err != nil {
		return err
	}
	return p.sql(ctx, "postgres", "CHECKPOINT")
}

func (p *plainPostgres) createBench(ctx context.Context) error {
	if err := p.sql(ctx, "postgres", "CREATE DATABASE bench"); err != nil {
		return err
	}
	_, err := p.run(ctx, "bench", "pgbench", "-i", "-q", "-s", "10")
	return err
}

// first is the time from start to the answer of the first query.
func (p *plainPostgres) first(ctx context.Context, start time.Time, socket, database string, s *samples) error {
	out, err := p.command(ctx, socket, database, p.work, "query", firstSelect).Output()
	if err != nil {
		return err
	}
	ms, err := answered(start, string(out), firstAnswer)
	*s = append(*s, ms)
	return err
}

// copy measures a copy of the whole data directory, file by file, with an
// instance on it. The original rests meanwhile.
func (p *plainPostgres) copy(ctx context.Context, s *samples) error {
	if err := p.sql(ctx, "postgres", "CHECKPOINT"); err != nil {
		return err
	}
	socket := filepath.Join(p.dir, "copy")
	data := filepath.Join(socket, "data")
	if err := os.Mkdir(socket, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(socket)
	if err := os.Chown(socket, int(p.as.Uid), int(p.as.Gid)); err != nil {
		return err
	}
	start := time.Now()
	if out, err := exec.CommandContext(ctx, "cp", "-a", "--reflink=never", p.data(), data).CombinedOutput(); err != nil {
		return fmt.Errorf("cp -a: %w: %s", err, out)
	}
	if err := os.Remove(filepath.Join(data, "postmaster.pid")); err != nil {
		return err
	}
	server, err := p.start(ctx, data, socket)
	if err != nil {
		return err
	}
	defer stop(server)
	return p.first(ctx, start, socket, "shop", s)
}

// createFromTemplate measures what Postgres itself has for copies.
func (p *plainPostgres) createFromTemplate(ctx context.Context) error {
	start := time.Now()
	if err := p.sql(ctx, "postgres", "CREATE DATABASE copy TEMPLATE shop"); err != nil {
		return err
	}
	if err := p.first(ctx, start, p.dir, "copy", &p.templates); err != nil {
		return err
	}
	return p.sql(ctx, "postgres", "DROP DATABASE copy")
}

// dumpAndRestore measures the way that always works.
func (p *plainPostgres) dumpAndRestore(ctx context.Context, s *samples) error {
	dump := filepath.Join(p.dir, "dump")
	defer os.Remove(dump)
	start := time.Now()
	if _, err := p.run(ctx, "shop", "pg_dump", "-Fc", "-Z0", "-f", dump); err != nil {
		return err
	}
	if err := p.sql(ctx, "postgres", "CREATE DATABASE copy"); err != nil {
		return err
	}
	if _, err := p.run(ctx, "copy", "pg_restore", "-d", "copy", dump); err != nil {
		return err
	}
	if err := p.first(ctx, start, p.dir, "copy", s); err != nil {
		return err
	}
	return p.sql(ctx, "postgres", "DROP DATABASE copy")
}
