// Package rowdiff compares two states of a Postgres database: which rows were
// inserted, deleted and updated, which objects of the schema differ, where
// sequences stand, and which large objects changed. A difference can be read
// by a person, as JSON, or as SQL that makes one state from the other.
//
// The two states are instances that run from clones of one data directory: a
// snapshot and the live state, or two snapshots. What has not been touched
// since the clone was made is byte for byte the same on both sides, so the
// comparison looks for what is not:
//
//  1. With both data directories at hand, the files of a table that has the
//     same file name on both sides are compared after a checkpoint. Extents
//     that the file system still shares are skipped without being read; the
//     rest is compared page by page, and in pages that differ, tuple by tuple.
//     Hint bits and vacuum make a tuple differ without a change of its row,
//     which costs a little and hurts nothing.
//  2. A page can be equal on both sides and still show different rows, when a
//     transaction that wrote it was open at the time of the clone and ended
//     later. So the commit logs are compared, too, and where they disagree,
//     pages with a tuple of such a transaction count as changed.
//  3. Without the directories both sides send a SHA-256 of every row in the
//     order in which they lie; those that differ in their place have changed.
//  4. Rows at changed places are read from both sides by ranges of ctid, as a
//     SHA-256 of the row and one of its key. Equal rows cancel out; it does
//     not matter to which place an update or a vacuum moved them. Tables
//     without a key are compared as multisets. What is left has changed, and is
//     remembered by ctid alone. Values are read again when somebody asks.
//
// Tables whose file was replaced (TRUNCATE, VACUUM FULL, most rewrites) and
// tables that lost a column are compared in full. Memory is bounded by the
// number of changed rows: a large table is compared in several passes.
//
// Values are compared by the text that their type's output function gives, not
// by an operator of the database: 1.0 and 1.00 differ. No cast, operator or
// function that a user of the database could have defined is called.
//
// The schema comes from pg_dump, which knows every kind of object there is. Its
// table of contents is compared object by object.
//
// Not compared: roles, settings of the database and of roles, tablespaces, and
// the contents of foreign tables. Unlogged tables are empty in a clone of an
// instance that was not shut down.
package rowdiff

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"mayfly.dev/mayfly"
)

// Conn is a connection to one of the two instances, as a role that may read
// everything: a superuser.
type Conn = *pgx.Conn

// Options say how to compare. With Dump alone, that is exact and works over the
// connections.
type Options struct {
	// FromDir and ToDir are the data directories of the two instances. With
	// both, only what has changed is read. Nobody but the instance may be able
	// to write there: the comparison believes the files.
	FromDir, ToDir *os.Root
	// Redact hides the values of columns.
	Redact []Rule
	// CountedBytes is up to which size the rows of a table that differs are
	// counted, which reads it.
	CountedBytes int64
	// MaxValue is the size in bytes above which a value is handled in pieces
	// and shown as its size and digest; 0 means 64 KiB. What counts is the
	// length of text and bytea, and the stored size of other types.
	MaxValue int
	// Dump returns the output of pg_dump with the given arguments for the
	// database behind a connection. It has to be there.
	Dump func(ctx context.Context, c Conn, args ...string) ([]byte, error)
}

const defaultMaxValue = 64 << 10

// Diff is the difference between two states. It reads rows again when it is
// written, so the connections belong to it until Close.
type Diff struct {
	Tables       []*Table
	Schema       []SchemaChange
	Sequences    []SequenceChange
	LargeObjects []LargeObject

	from, to *side
	opts     Options
}

// Compare finds the differences. The connections must be idle, and stay in a
// transaction until Close. When a state is live, what commits later does not
// count; a table that is rewritten meanwhile gives Conflict.
func Compare(ctx context.Context, from, to Conn, o Options) (*Diff, error) {
	if err := checkRules(o.Redact); err != nil {
		return nil, err
	}
	if o.MaxValue <= 0 {
		o.MaxValue = defaultMaxValue
	}
	d := &Diff{opts: o, from: &side{conn: from, dir: o.FromDir}, to: &side{conn: to, dir: o.ToDir}}
	if err := d.compare(ctx); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// compare reads both schemas while it looks for changed rows.
func (d *Diff) compare(ctx context.Context) error {
	if err := both(ctx, d, (*side).begin); err != nil {
		return err
	}
	if d.from.version/10000 != d.to.version/10000 {
		return mayfly.Errorf(mayfly.Invalid, "the states are of different major versions of Postgres: %d and %d",
			d.from.version/10000, d.to.version/10000).Hint("compare clones of the same data directory")
	}
	g, gctx := errgroup.WithContext(ctx)
	for _, s := range d.sides() {
		g.Go(func() error { return s.dump(gctx, d.opts.Dump) })
	}
	rowsErr := d.compareRows(ctx)
	if err := g.Wait(); err != nil {
		return err
	}
	if rowsErr != nil {
		return rowsErr
	}
	d.Schema = compareObjects(d.from.objects, d.to.objects)
	return both(ctx, d, (*side).checkUnmoved)
}

func (d *Diff) compareRows(ctx context.Context) error {
	if err := both(ctx, d, (*side).readCatalog); err != nil {
		return err
	}
	blocks, err := d.newBlocks(ctx)
	if err != nil {
		return err
	}
	if err := d.compareTables(ctx, blocks); err != nil {
		return err
	}
	if err := d.compareLargeObjects(ctx, blocks); err != nil {
		return err
	}
	return d.compareSequences(ctx)
}

func (d *Diff) sides() []*side { return []*side{d.from, d.to} }

// both does f on both sides at the same time.
func both(ctx context.Context, d *Diff, f func(*side, context.Context) error) error {
	g, ctx := errgroup.WithContext(ctx)
	for i, s := range d.sides() {
		g.Go(func() error {
			if err := f(s, ctx); err != nil {
				return fmt.Errorf("%s state: %w", [...]string{"old", "new"}[i], err)
			}
			return nil
		})
	}
	return g.Wait()
}

// Empty reports whether the states are equal.
func (d *Diff) Empty() bool {
	changed := slices.ContainsFunc(d.Tables, func(t *Table) bool { return t.Changed() > 0 })
	return !changed && len(d.Schema)+len(d.Sequences)+len(d.LargeObjects) == 0
}

// Close ends the transactions. The connections stay open.
func (d *Diff) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, s := range d.sides() {
		if !s.conn.IsClosed() {
			s.conn.PgConn().Exec(ctx, "ROLLBACK").Close()
		}
	}
}

// Forward writes SQL that makes the new state from the old one, Reverse the
// old one from the new. The script is one transaction: it applies in full or
// not at all, and it fails when a row that it expects is not there. It is for
// psql, and for who owns all that changes, or a superuser. Where something cannot be written as SQL, or is
// hidden by a rule, the script says so and does nothing.
func (d *Diff) Forward(ctx context.Context, w io.Writer) error {
	return d.script(ctx, w, d.from, d.to, false)
}

// Reverse is explained at Forward.
func (d *Diff) Reverse(ctx context.Context, w io.Writer) error {
	return d.script(ctx, w, d.to, d.from, true)
}
