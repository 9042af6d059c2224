package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/unixsock"
)

// Instance says how to start a server on a copy of a baseline, or on what an
// earlier instance left of one. No process of an earlier instance on the same
// directory may be alive: what Postgres would recognise one by is removed.
type Instance struct {
	Install  Install
	Data     Dir               // PGDATA
	Socket   Dir               // where its socket is made; on the host, others cannot enter it
	Database string            // the one of interest
	Secret   string            // of Admin, as given to Prepare
	Settings map[string]string // on top of the baseline's; see CheckSettings
	Address  string            // IP address to listen at, too; empty: none
	// CopyOnWrite says that the file system never overwrites a page in place,
	// so that pages need not be written twice.
	CopyOnWrite bool
	// Moves says that the data directory is going to be renamed while the server
	// runs.
	Moves bool
	// Closed lets nobody but Admin in, until Open.
	Closed bool
	// NoSync leaves writing to the disk to the kernel. A snapshot is sound
	// then if every process of the instance stands still while it is taken.
	NoSync bool
	// KeepSlots keeps replication slots. They pin WAL for readers that a copy
	// does not have.
	KeepSlots bool
	Launcher  Launcher
}

// Running is an instance whose server process has been started.
type Running struct {
	Instance
	Process Process
	kept    *keeper // nil: every use connects anew
}

// socketName is what the server calls its socket.
var socketName = ".s.PGSQL." + strconv.Itoa(Port)

// maxSocketPath is what fits into a socket address; see unix(7).
const maxSocketPath = 107

// Path is where the instance's socket is on the host.
func (i Instance) Path() string { return filepath.Join(i.Socket.Host, socketName) }

// Start starts the server and returns when it accepts connections, after
// recovery where it is needed. When it does not come up, nothing of it is left.
func Start(ctx context.Context, i Instance) (Running, error) {
	if err := i.check(); err != nil {
		return Running{}, err
	}
	if err := i.clean(); err != nil {
		return Running{}, fmt.Errorf("prepare data directory: %w", err)
	}
	p, err := i.Launcher.Launch(ctx, Command{Argv: i.arguments(), Env: environment(), Dir: i.Data.inside()})
	if err != nil {
		return Running{}, fmt.Errorf("start postgres: %w", err)
	}
	r := Running{i, p, &keeper{fresh: true}}
	var reading sync.WaitGroup
	reading.Go(i.prefetch)
	defer reading.Wait()
	if err := r.awaitReady(ctx); err != nil {
		undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
		defer cancel()
		return Running{}, errors.Join(err, p.Kill(undo))
	}
	return r, nil
}

// TakeOver returns the server whose process another has started, when it
// accepts connections.
func TakeOver(ctx context.Context, i Instance, p Process) (Running, error) {
	r := Running{i, p, &keeper{}}
	return r, r.awaitReady(ctx)
}

// At is a server after what i tells the places of has been moved there.
func (r Running) At(i Instance) Running { return Running{i, r.Process, r.kept} }

// Open lets everybody in who has a login.
func (r Running) Open(ctx context.Context) error {
	if err := r.open(ctx); err != nil {
		return fmt.Errorf("let users into the database: %w", err)
	}
	return nil
}

func (r Running) open(ctx context.Context) error {
	root, err := os.OpenRoot(r.Data.Host)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := replace(root, "pg_hba.conf", []byte(access)); err != nil {
		return err
	}
	loaded := func() (at string, err error) { // as a connection that begins now knows it
		err = r.withConn(ctx, maintenance(r.Database), func(conn *pgconn.PgConn) error {
			values, err := column(ctx, conn, "SELECT pg_conf_load_time()")
			if err == nil {
				at = values[0]
			}
			return err
		})
		return at, err
	}
	before, err := loaded()
	if err != nil {
		return err
	}
	if err := r.Process.Signal(ctx, syscall.SIGHUP); err != nil {
		return err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if now, err := loaded(); err != nil || now != before {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Listening asks a server for the addresses that it listens at.
func (r Running) Listening(ctx context.Context) (addresses string, err error) {
	err = r.withAdmin(ctx, func(conn *pgconn.PgConn) error {
		values, err := column(ctx, conn, "SHOW listen_addresses")
		if err == nil && len(values) == 1 {
			addresses = values[0]
		}
		return err
	})
	if err != nil {
		return "", fmt.Errorf("ask postgres where it listens: %w", err)
	}
	return addresses, nil
}

// environment is that of every program of Postgres: messages in English, and
// nothing of this process's own.
func environment(more ...string) []string {
	return append([]string{"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", "LC_MESSAGES=C", "TZ=UTC", "HOME=/tmp", "PGTZ=UTC"}, more...)
}

func (i Instance) check() error {
	if err := CheckSettings(i.Settings); err != nil {
		return err
	}
	if path := filepath.Join(i.Socket.inside(), socketName); len(path) > maxSocketPath {
		return mayfly.Errorf(mayfly.Invalid, "the socket's path %s has %d bytes", path, len(path)).
			Hint("use a directory with a shorter name: a socket address holds %d bytes", maxSocketPath)
	}
	if i.Secret == "" {
		return errors.New("start postgres: no secret of the superuser")
	}
	return checkName("database", i.Database)
}

// probeEvery is how often a starting server is looked at.
const probeEvery = time.Millisecond

// awaitReady returns when the server has written that it accepts connections.
// To ask it with connections would cost it a process for each.
func (r Running) awaitReady(ctx context.Context) error {
	if err := r.whileAlive(ctx, r.awaitStatus); err != nil {
		return fmt.Errorf("wait for postgres: %w", err)
	}
	return nil
}

// whileAlive calls fn with a context that ends with the server, and then
// returns why that ended.
func (r Running) whileAlive(ctx context.Context, fn func(context.Context) error) error {
	watch, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if status, err := r.Process.Wait(watch); err == nil {
			cancel(r.died(ctx, status))
		}
	}()
	err := fn(watch)
	if cause := context.Cause(watch); err != nil && cause != nil {
		return cause
	}
	return err
}

func (r Running) awaitStatus(ctx context.Context) error {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for !r.ready() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// died explains why the server ended.
func (r Running) died(ctx context.Context, status string) error {
	output := strings.TrimSpace(r.Process.Output(ctx))
	if isFull(output) {
		return mayfly.Errorf(mayfly.Exhausted, "the disk is full: %s", lastLines(output, 3)).Hint("free space, or raise the disk limit")
	}
	return mayfly.Errorf(mayfly.Unavailable, "postgres ended (%s): %s", cmp.Or(status, "status 0"), lastLines(output, 8)).
		Hint("correct its settings, or raise the memory limit, in mayfly.yaml")
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Connect connects as Admin. Nothing that users of the instance have set has
// an effect on such a connection: not the settings of a database, not names
// that hide those of the system, not triggers.
func (i Instance) Connect(ctx context.Context, database string) (*pgconn.PgConn, error) {
	config, err := i.adminConfig(database)
	if err != nil {
		return nil, err
	}
	return i.connect(ctx, config)
}

// Session is Connect to the database of interest, for those who want more than
// the protocol.
func (i Instance) Session(ctx context.Context) (*pgx.Conn, error) {
	config, err := i.adminConfig(i.Database)
	if err != nil {
		return nil, err
	}
	session, err := pgx.ParseConfig(noConfig)
	if err != nil {
		return nil, err
	}
	session.Config = *config
	conn, err := pgx.ConnectConfig(ctx, session)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	return conn, nil
}

// ClientEnvironment is for programs of Postgres that connect inside as Admin
// does with Connect.
func (i Instance) ClientEnvironment() []string {
	var options strings.Builder
	settings := i.adminSettings()
	for _, name := range slices.Sorted(maps.Keys(settings)) {
		value := strings.NewReplacer(`\`, `\\`, " ", `\ `).Replace(settings[name])
		fmt.Fprintf(&options, "-c %s=%s ", name, value)
	}
	return environment("PGHOST="+i.Socket.inside(), "PGPORT="+strconv.Itoa(Port), "PGUSER="+Admin, "PGPASSWORD="+i.Secret,
		"PGDATABASE="+i.Database, "PGOPTIONS="+options.String())
}

func (i Instance) adminConfig(database string) (*pgconn.Config, error) {
	config, err := i.config(Admin, i.Secret, database)
	if err != nil {
		return nil, err
	}
	config.RuntimeParams = i.adminSettings()
	return config, nil
}

// adminSettings take the place of all that users of the instance could set.
func (i Instance) adminSettings() map[string]string {
	settings := map[string]string{
		"application_name": "mayfly", "client_encoding": "UTF8", "search_path": "pg_catalog, pg_temp",
		"session_replication_role": "replica", "role": "none", "default_transaction_read_only": "off",
		"default_transaction_isolation": "read committed", "statement_timeout": "0", "lock_timeout": "0",
		"idle_in_transaction_session_timeout": "0", "standard_conforming_strings": "on", "DateStyle": "ISO, MDY",
		"TimeZone": "UTC", "bytea_output": "hex", "IntervalStyle": "iso_8601", "extra_float_digits": "1", "row_security": "off",
		"client_min_messages": "notice", "log_statement": "none", "log_min_duration_statement": "-1",
		"log_min_error_statement": "panic", "temp_tablespaces": "", "default_tablespace": "",
		"local_preload_libraries": "",
	}
	if i.Install.Major >= 14 {
		settings["idle_session_timeout"] = "0"
	}
	if i.Install.Major >= 17 {
		settings["event_triggers"] = "off"
		settings["transaction_timeout"] = "0"
	}
	return settings
}

// noConfig is a configuration that needs neither variables nor files.
const noConfig = "host=/ port=5432 user=x password=x dbname=x sslmode=disable passfile=/dev/null servicefile=/dev/null"

// config is for a connection over the socket that this process's environment
// variables and files have no part in.
func (i Instance) config(user, password, database string) (*pgconn.Config, error) {
	config, err := pgconn.ParseConfig(noConfig)
	if err != nil {
		return nil, err
	}
	config.User, config.Password, config.Database = user, password, database
	config.Fallbacks, config.RuntimeParams, config.ConnectTimeout = nil, map[string]string{}, time.Minute
	config.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) { return unixsock.Dial(ctx, i.Path()) }
	return config, nil
}

// recoveryTimeout is how long a connection waits for a server that recovers:
// one of its processes was killed.
const recoveryTimeout = 10 * time.Second

// cannotConnectNow is the SQLSTATE of a server that recovers.
const cannotConnectNow = "57P03"

func (i Instance) connect(ctx context.Context, config *pgconn.Config) (*pgconn.PgConn, error) {
	for end := time.Now().Add(recoveryTimeout); ; {
		conn, err := pgconn.ConnectConfig(ctx, config)
		if err == nil {
			return conn, nil
		}
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != cannotConnectNow || ctx.Err() != nil || time.Now().After(end) {
			return nil, fmt.Errorf("connect to the database: %w", err)
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// withConn calls fn with a connection of Admin.
func (i Instance) withConn(ctx context.Context, database string, fn func(*pgconn.PgConn) error) error {
	conn, err := i.Connect(ctx, database)
	if err != nil {
		return err
	}
	err = fn(conn)
	ended, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	conn.Close(ended)
	return err
}

// execute executes statements, which share a transaction unless they say
// otherwise.
func execute(ctx context.Context, conn *pgconn.PgConn, sql string) error {
	_, err := conn.Exec(ctx, sql).ReadAll()
	return err
}

// column returns the first column of the rows of a query.
func column(ctx context.Context, conn *pgconn.PgConn, sql string, args ...string) ([]string, error) {
	params := make([][]byte, len(args))
	for n, a := range args {
		params[n] = []byte(a)
	}
	result := conn.ExecParams(ctx, sql, params, nil, nil, nil).Read()
	var values []string
	for _, row := range result.Rows {
		values = append(values, string(row[0]))
	}
	return values, result.Err
}

// Checkpoint writes all that is changed to the files.
func (r Running) Checkpoint(ctx context.Context) error {
	err := r.withAdmin(ctx, func(conn *pgconn.PgConn) error { return execute(ctx, conn, "CHECKPOINT") })
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	return nil
}

const (
	stopTimeout = 30 * time.Second
	killTimeout = 10 * time.Second
)

// Stop disconnects everybody, writes a last checkpoint and ends the server:
// the directory needs no recovery then. The error says when it had to be
// killed instead.
func (r Running) Stop(ctx context.Context) error {
	if err := r.Process.Signal(ctx, syscall.SIGINT); err != nil {
		return fmt.Errorf("stop postgres: %w", err)
	}
	limited, cancel := context.WithTimeout(ctx, stopTimeout)
	defer cancel()
	_, err := r.Process.Wait(limited)
	if err == nil {
		return nil
	}
	undo, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTimeout)
	defer cancel()
	return errors.Join(fmt.Errorf("stop postgres: %w", err), r.Kill(undo))
}

// Kill ends the server at once. What was committed is in the directory.
func (r Running) Kill(ctx context.Context) error {
	if err := r.Process.Kill(ctx); err != nil {
		return fmt.Errorf("kill postgres: %w", err)
	}
	return nil
}
