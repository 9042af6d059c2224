package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/postgres"
	"mayfly.dev/mayfly/internal/rowdiff"
)

const (
	// spareDisk is what an instance may write beyond the limit of the
	// environment, which may be full.
	spareDisk = 1 << 30
	// maxSchema bounds the output of pg_dump.
	maxSchema = 256 << 20
	// countedBytes is up to which size the rows of a changed table are counted.
	countedBytes = 256 << 20
)

// DiffRows implements driver.RowDiffer.
func (d *Driver) DiffRows(ctx context.Context, h driver.Handle, s driver.Spec, r mayfly.RowsRequest, places [2]driver.Handle) (io.ReadCloser, error) {
	write, ok := map[string]func(*rowdiff.Diff, context.Context, io.Writer) error{
		"": (*rowdiff.Diff).Summary, "text": (*rowdiff.Diff).Summary, "json": (*rowdiff.Diff).JSON,
		"forward": (*rowdiff.Diff).Forward, "reverse": (*rowdiff.Diff).Reverse,
	}[r.Format]
	if !ok {
		return nil, mayfly.Errorf(mayfly.Invalid, "unknown format %q", r.Format).Hint("use text, json, forward or reverse")
	}
	ctx, cancel := context.WithCancel(ctx)
	states, err := d.startCopies(ctx, h, s, r, places)
	done := func() {
		cancel()
		for _, c := range states {
			c.close()
		}
	}
	if err != nil {
		done()
		return nil, err
	}
	diff, err := compareRows(ctx, states)
	if err != nil {
		done()
		return nil, fmt.Errorf("compare rows: %w", err)
	}
	reader, writer := io.Pipe()
	go func() {
		defer done()
		writer.CloseWithError(write(diff, ctx, writer))
	}()
	return &comparison{reader, cancel}, nil
}

// startCopies starts the databases of two states at the same time. What it
// returns is to be closed, also when there is an error.
func (d *Driver) startCopies(ctx context.Context, h driver.Handle, s driver.Spec, r mayfly.RowsRequest, places [2]driver.Handle) (states [2]databaseCopy, err error) {
	g, ctx := errgroup.WithContext(ctx)
	for i, snapshot := range []string{r.From, r.To} {
		spec := s
		spec.From, spec.Limits.Disk = nil, s.Limits.Disk+spareDisk
		if snapshot != "" {
			spec.From = &mayfly.SnapshotRef{Environment: h.Environment, Snapshot: snapshot}
		}
		g.Go(func() error {
			err := d.startCopy(ctx, places[i], spec, &states[i])
			if err != nil {
				return fmt.Errorf("start the database of the %s state: %w", [...]string{"old", "new"}[i], err)
			}
			return nil
		})
	}
	return states, g.Wait()
}

func compareRows(ctx context.Context, states [2]databaseCopy) (*rowdiff.Diff, error) {
	from, to := states[0], states[1]
	return rowdiff.Compare(ctx, from.conn, to.conn, rowdiff.Options{
		FromDir: from.data, ToDir: to.data, Redact: redactRules(to.service.Postgres.Redact), CountedBytes: countedBytes,
		Dump: func(ctx context.Context, conn rowdiff.Conn, args ...string) ([]byte, error) {
			if conn == from.conn {
				return from.dump(ctx, args)
			}
			return to.dump(ctx, args)
		},
	})
}

// redactRules reads patterns of [SCHEMA.]TABLE.COLUMN.
func redactRules(patterns []string) (rules []rowdiff.Rule) {
	for _, p := range patterns {
		parts := strings.Split(p, ".")
		if len(parts) < 3 {
			parts = append([]string{""}, parts...)
		}
		rules = append(rules, rowdiff.Rule{Schema: parts[0], Table: parts[1], Column: parts[2]})
	}
	return rules
}

// databaseCopy is the database of a snapshot, running in a sandbox of its own.
type databaseCopy struct {
	driver   *Driver
	service  service
	instance postgres.Instance
	conn     *pgx.Conn
	data     *os.Root
}

func (d *Driver) startCopy(ctx context.Context, h driver.Handle, s driver.Spec, into *databaseCopy) error {
	at, _ := database(s.Services)
	ctx, cancel := context.WithTimeout(ctx, s.Services[at].Timeout)
	defer cancel()
	if err := d.Create(ctx, h, s); err != nil {
		return err
	}
	v, err := d.service(h, s, s.Services[at].Name)
	if err != nil {
		return err
	}
	i, err := d.instance(v)
	if err != nil {
		return err
	}
	i.Address, i.Launcher = "", &launcher{d, v, ""}
	if err := d.Start(ctx, h, s); err != nil {
		return err
	}
	if err := d.makeData(v, v.socket(), 0o755); err != nil {
		return err
	}
	if _, err := postgres.Start(ctx, i); err != nil {
		return err
	}
	into.driver, into.service, into.instance = d, v, i
	if into.data, err = os.OpenRoot(i.Data.Host); err != nil {
		return err
	}
	into.conn, err = i.Session(ctx)
	return err
}

// close lets go of what this process has open.
func (c *databaseCopy) close() {
	if c.data != nil {
		c.data.Close()
	}
	if c.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		c.conn.Close(ctx)
	}
}

// dump runs pg_dump beside the instance and returns what it writes.
func (c *databaseCopy) dump(ctx context.Context, args []string) ([]byte, error) {
	const name = "dump"
	i := c.instance
	argv := append([]string{filepath.Join(i.Install.Bin, "pg_dump")}, args...)
	argv = append(argv, "--no-password", "--file="+path.Join(i.Socket.Inside, name))
	var said tail
	l := &launcher{c.driver, c.service, ""}
	status, err := l.Run(ctx, postgres.Command{Argv: argv, Env: i.ClientEnvironment(), Dir: i.Data.Inside}, nil, &said)
	if err != nil {
		return nil, fmt.Errorf("run pg_dump: %w", err)
	}
	if status != "" {
		return nil, fmt.Errorf("pg_dump ended with %s: %.1000q", status, said.String())
	}
	return readBelow(i.Socket.Host, name, maxSchema)
}

// readBelow reads a regular file that processes inside have made.
func readBelow(dir, name string, most int64) ([]byte, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, errors.New(name + " is no regular file")
	}
	if info.Size() > most {
		return nil, mayfly.Errorf(mayfly.Exhausted, "the schema of the database takes %d MiB as SQL", info.Size()>>20).
			Hint("at most %d MiB can be compared", most>>20)
	}
	return io.ReadAll(io.LimitReader(f, most))
}
