// Package store keeps the state of a server: what it looks after now, and the
// events that belong to each change until the ledger has them. A change and
// its events are one transaction.
package store

import (
	"context"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"strings"
	"sync"

	_ "modernc.org/sqlite" // the driver "sqlite", without cgo

	"mayfly.dev/mayfly"
)

//go:embed migration/*.sql
var migrations embed.FS

// Kind is a kind of object.
type Kind string

// Object is one saved thing. Doc is its JSON form; the other fields are what
// it is found by.
type Object struct {
	Kind   Kind
	ID     string
	Parent string // id of the environment that it belongs to
	Name   string // unique among open objects of the kind, unless empty
	Open   bool   // the engine has to look after it
	Doc    []byte
}

// Store is a SQLite database in WAL mode with every commit synced. It is safe
// for concurrent use.
type Store struct {
	read  *sql.DB
	write *sql.DB    // one connection
	mu    sync.Mutex // held by Update: one writer at a time
	// committed receives a value after a commit that added events.
	committed chan struct{}
}

// Open opens the database file and brings its schema up to date.
func Open(ctx context.Context, path string) (*Store, error) {
	dsn := func(extra string) string {
		return "file:" + (&url.URL{Path: path}).EscapedPath() +
			"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(FULL)" + extra
	}
	write, err := sql.Open("sqlite", dsn("&_txlock=immediate"))
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	write.SetMaxOpenConns(1)
	s := &Store{write: write, committed: make(chan struct{}, 1)}
	if err := s.migrate(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("open store %s: %w", path, err), write.Close())
	}
	if s.read, err = sql.Open("sqlite", dsn("&_pragma=query_only(1)")); err != nil {
		return nil, errors.Join(fmt.Errorf("open store: %w", err), write.Close())
	}
	s.read.SetMaxOpenConns(4)
	return s, nil
}

// migrate applies the migrations that user_version says are missing.
func (s *Store) migrate(ctx context.Context) error {
	names, err := fs.Glob(migrations, "migration/*.sql")
	if err != nil {
		return err
	}
	var version int
	if err := s.write.QueryRowContext(ctx, "PRAGMA user_version").Scan(&version); err != nil {
		return err
	}
	if version > len(names) {
		return mayfly.Errorf(mayfly.Unsupported, "the state has schema version %d, this server knows %d", version, len(names)).
			Hint("run the newer mayfly that made it")
	}
	for i := version; i < len(names); i++ {
		text, err := migrations.ReadFile(names[i])
		if err != nil {
			return err
		}
		tx, err := s.write.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, string(text)+fmt.Sprintf("\nPRAGMA user_version = %d;", i+1))
		if err != nil {
			return errors.Join(fmt.Errorf("migration %s: %w", names[i], err), tx.Rollback())
		}
		if err := tx.Commit(); err != nil {
			return fmt.Errorf("migration %s: %w", names[i], err)
		}
	}
	return nil
}

// Close closes the database.
func (s *Store) Close() error { return errors.Join(s.read.Close(), s.write.Close()) }

// Committed receives a value after commits that added events.
func (s *Store) Committed() <-chan struct{} { return s.committed }

// Update calls do with a transaction and commits it, or rolls it back when do
// returns an error, which Update then returns. Updates run one at a time.
func (s *Store) Update(ctx context.Context, do func(*Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	sqlTx, err := s.write.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("begin update: %w", err)
	}
	defer sqlTx.Rollback() // does nothing after Commit
	tx := &Tx{ctx: ctx, q: sqlTx}
	if err := do(tx); err != nil {
		return err
	}
	if err := sqlTx.Commit(); err != nil {
		return fmt.Errorf("commit update: %w", err)
	}
	if tx.emitted {
		select {
		case s.committed <- struct{}{}:
		default:
		}
	}
	return nil
}

// View calls do with a consistent, read-only view.
func (s *Store) View(ctx context.Context, do func(*Tx) error) error {
	sqlTx, err := s.read.BeginTx(ctx, &sql.TxOptions{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("begin view: %w", err)
	}
	defer sqlTx.Rollback()
	return do(&Tx{ctx: ctx, q: sqlTx})
}

// Tx is a transaction; it is valid during the call that it was made for.
type Tx struct {
	ctx     context.Context
	q       *sql.Tx
	emitted bool
}

// ErrNameTaken says that another open object of the kind has the name.
var ErrNameTaken = errors.New("name is taken")

// Put saves an object, new or not.
func (tx *Tx) Put(o Object) error {
	_, err := tx.q.ExecContext(tx.ctx, `
		INSERT INTO objects (kind, id, parent, name, open, doc) VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (kind, id) DO UPDATE SET
			parent = excluded.parent, name = excluded.name, open = excluded.open, doc = excluded.doc`,
		o.Kind, o.ID, o.Parent, o.Name, o.Open, string(o.Doc))
	if err != nil && strings.Contains(err.Error(), "objects.name") {
		return fmt.Errorf("save %s %s: %w", o.Kind, o.ID, ErrNameTaken)
	}
	if err != nil {
		return fmt.Errorf("save %s %s: %w", o.Kind, o.ID, err)
	}
	return nil
}

// Delete forgets an object; its events stay.
func (tx *Tx) Delete(kind Kind, id string) error {
	if _, err := tx.q.ExecContext(tx.ctx, `DELETE FROM objects WHERE kind = ? AND id = ?`, kind, id); err != nil {
		return fmt.Errorf("delete %s %s: %w", kind, id, err)
	}
	return nil
}

// Get returns an object, or sql.ErrNoRows.
func (tx *Tx) Get(kind Kind, id string) (Object, error) {
	objects, err := tx.list(`kind = ? AND id = ?`, kind, id)
	if err == nil && len(objects) == 0 {
		err = sql.ErrNoRows
	}
	if err != nil {
		return Object{}, err
	}
	return objects[0], nil
}

// List returns the objects of a kind in the order of their ids.
func (tx *Tx) List(kind Kind) ([]Object, error) { return tx.list(`kind = ?`, kind) }

// ListOpen returns those that the engine has to look after.
func (tx *Tx) ListOpen(kind Kind) ([]Object, error) { return tx.list(`kind = ? AND open = 1`, kind) }

// ListOf returns those that belong to an environment.
func (tx *Tx) ListOf(kind Kind, parent string) ([]Object, error) {
	return tx.list(`kind = ? AND parent = ?`, kind, parent)
}

// ListOpenOf returns those of an environment that the engine has to look after.
func (tx *Tx) ListOpenOf(kind Kind, parent string) ([]Object, error) {
	return tx.list(`kind = ? AND parent = ? AND open = 1`, kind, parent)
}

// ListPrefix returns those whose id begins with prefix.
func (tx *Tx) ListPrefix(kind Kind, prefix string) ([]Object, error) {
	return tx.list(`kind = ? AND id >= ? AND id < ?`, kind, prefix, prefix+"\x7f")
}

// Named returns the open object with the name, or sql.ErrNoRows.
func (tx *Tx) Named(kind Kind, name string) (Object, error) {
	objects, err := tx.list(`kind = ? AND name = ? AND open = 1`, kind, name)
	if err == nil && len(objects) == 0 {
		err = sql.ErrNoRows
	}
	if err != nil {
		return Object{}, err
	}
	return objects[0], nil
}

func (tx *Tx) list(where string, args ...any) ([]Object, error) {
	rows, err := tx.q.QueryContext(tx.ctx, `SELECT kind, id, parent, name, open, doc FROM objects WHERE `+where+` ORDER BY id`, args...)
	if err != nil {
		return nil, fmt.Errorf("list objects: %w", err)
	}
	defer rows.Close()
	var objects []Object
	for rows.Next() {
		var o Object
		if err := rows.Scan(&o.Kind, &o.ID, &o.Parent, &o.Name, &o.Open, &o.Doc); err != nil {
			return nil, fmt.Errorf("list objects: %w", err)
		}
		objects = append(objects, o)
	}
	return objects, rows.Err()
}

// Emit adds an event to the transaction: it reaches the ledger if and only if
// the transaction commits.
func (tx *Tx) Emit(e mayfly.Event) error {
	text, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("emit %s: %w", e.Type, err)
	}
	if _, err := tx.q.ExecContext(tx.ctx, `INSERT INTO outbox (event) VALUES (?)`, string(text)); err != nil {
		return fmt.Errorf("emit %s: %w", e.Type, err)
	}
	tx.emitted = true
	return nil
}

// Outgoing returns up to max events in the outbox with numbers above after,
// oldest first, and the number of the last. The ids of the events are their
// numbers.
func (s *Store) Outgoing(ctx context.Context, after int64, max int) (events []mayfly.Event, last int64, err error) {
	err = s.View(ctx, func(tx *Tx) error {
		rows, err := tx.q.QueryContext(ctx, `SELECT number, event FROM outbox WHERE number > ? ORDER BY number LIMIT ?`, after, max)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var e mayfly.Event
			var text []byte
			if err := rows.Scan(&last, &text); err != nil {
				return err
			}
			if err := json.Unmarshal(text, &e); err != nil {
				return err
			}
			e.ID = EventID(last)
			events = append(events, e)
		}
		return rows.Err()
	})
	if err != nil {
		return nil, 0, fmt.Errorf("read outbox: %w", err)
	}
	return events, last, nil
}

// Sent forgets the events up to number last: the ledger has them.
func (s *Store) Sent(ctx context.Context, last int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, err := s.write.ExecContext(ctx, `DELETE FROM outbox WHERE number <= ?`, last); err != nil {
		return fmt.Errorf("trim outbox: %w", err)
	}
	return nil
}

// EventID is the id of the event with an outbox number.
func EventID(number int64) string { return fmt.Sprintf("evt-%016x", number) }

// EventNumber is the inverse of EventID; ok is false for other ids.
func EventNumber(id string) (number int64, ok bool) {
	n, err := fmt.Sscanf(id, "evt-%016x", &number)
	return number, n == 1 && err == nil && EventID(number) == id
}
