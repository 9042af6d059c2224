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
	"os"
	"slices"
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

// Store is a SQLite database in WAL mode, and the open objects in memory, which
// is where most look-ups end. The caller keeps other processes out. It is safe
// for concurrent use.
//
// SQLite is told not to sync its log: Update does that itself, so that it can
// leave it out; see Tx.Derived.
type Store struct {
	db        *sql.DB
	read      *statements
	mu        sync.Mutex // one writer at a time; guards the next four
	write     *sql.Conn
	writer    *statements   // of write
	log       *os.File      // SQLite's write-ahead log
	unsynced  bool          // the log holds commits that may not be on disk
	committed chan struct{} // receives a value after a commit that added events

	openMu sync.RWMutex // held by View; guards open
	open   index
}

// Open opens the database file and brings its schema up to date.
func Open(ctx context.Context, path string) (_ *Store, err error) {
	dsn := "file:" + (&url.URL{Path: path}).EscapedPath() +
		"?_pragma=busy_timeout(10000)&_pragma=journal_mode(WAL)&_pragma=synchronous(NORMAL)"
	s := &Store{committed: make(chan struct{}, 1)}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("open store %s: %w", path, err), s.Close())
		}
	}()
	if s.db, err = sql.Open("sqlite", dsn); err != nil {
		return nil, err
	}
	s.db.SetMaxOpenConns(5)
	s.db.SetMaxIdleConns(5)
	if s.write, err = s.db.Conn(ctx); err != nil {
		return nil, err
	}
	if err := s.migrate(ctx); err != nil {
		return nil, err
	}
	s.read, s.writer = newStatements(s.db), newStatements(s.write)
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	s.log, err = os.OpenFile(path+"-wal", os.O_RDWR, 0)
	return s, err
}

// load reads the open objects into memory.
func (s *Store) load(ctx context.Context) error {
	objects, err := list(ctx, s.read, `open = 1`)
	s.open = index{}
	for _, o := range objects {
		s.open.put(o)
	}
	return err
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
func (s *Store) Close() error {
	var errs []error
	for _, st := range []*statements{s.read, s.writer} {
		if st != nil {
			errs = append(errs, st.Close())
		}
	}
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.write != nil {
		errs = append(errs, s.write.Close())
	}
	if s.db != nil {
		errs = append(errs, s.db.Close())
	}
	return errors.Join(errs...)
}

// Committed receives a value after commits that added events.
func (s *Store) Committed() <-chan struct{} { return s.committed }

// Update calls do with a transaction and commits it, or rolls it back when do
// returns an error, which Update then returns. Updates run one at a time. What
// they save is on disk when Update returns, unless do says that it is derived.
func (s *Store) Update(ctx context.Context, do func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	ctx = context.WithoutCancel(ctx) // a transaction takes a moment; watching for its end costs more
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writer.exec(ctx, `BEGIN IMMEDIATE`); err != nil {
		return fmt.Errorf("begin update: %w", err)
	}
	// Nobody else writes: what is in memory is what is committed.
	tx := &Tx{ctx: ctx, store: s, q: s.writer, staged: map[key]Object{}}
	done := false
	defer func() {
		if !done { // also when do panics
			s.writer.exec(ctx, `ROLLBACK`)
		}
	}()
	if err := do(tx); err != nil {
		return err
	}
	if err := s.writer.exec(ctx, `COMMIT`); err != nil {
		return fmt.Errorf("commit update: %w", err)
	}
	done = true
	s.unsynced = true
	if !tx.derived {
		if err := s.sync(); err != nil {
			return fmt.Errorf("commit update: %w", err)
		}
	}
	s.openMu.Lock()
	for _, o := range tx.staged {
		s.open.put(o)
	}
	s.openMu.Unlock()
	if tx.emitted {
		select {
		case s.committed <- struct{}{}:
		default:
		}
	}
	return nil
}

// sync brings what has been committed to the disk. The caller holds mu.
func (s *Store) sync() error {
	if !s.unsynced {
		return nil
	}
	if err := s.log.Sync(); err != nil {
		return err
	}
	s.unsynced = false
	return nil
}

func (s *Store) syncNow() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sync()
}

// View calls do with a view that do must not keep. What is open is consistent
// in itself; what is closed may be a commit newer.
func (s *Store) View(ctx context.Context, do func(*Tx) error) error {
	s.openMu.RLock()
	defer s.openMu.RUnlock()
	return do(&Tx{ctx: context.WithoutCancel(ctx), store: s, q: s.read})
}

// Tx is a transaction; it is valid during the call that it was made for.
type Tx struct {
	ctx     context.Context
	store   *Store
	q       *statements
	staged  map[key]Object // what an update has put; closed objects stand for deleted ones, too
	emitted bool
	derived bool
}

// Derived says that what this update saves follows from what can be seen: had
// the machine lost it with its power, it would be found out anew. It survives
// the end of the server like everything else, and gets to the disk a moment
// later, in any case before its events reach the ledger.
func (tx *Tx) Derived() { tx.derived = true }

// ErrNameTaken says that another open object of the kind has the name.
var ErrNameTaken = errors.New("name is taken")

// Put saves an object, new or not.
func (tx *Tx) Put(o Object) error {
	err := tx.q.exec(tx.ctx, `
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
	tx.staged[key{o.Kind, o.ID}] = o
	return nil
}

// Delete forgets an object; its events stay.
func (tx *Tx) Delete(kind Kind, id string) error {
	if err := tx.q.exec(tx.ctx, `DELETE FROM objects WHERE kind = ? AND id = ?`, kind, id); err != nil {
		return fmt.Errorf("delete %s %s: %w", kind, id, err)
	}
	tx.staged[key{kind, id}] = Object{Kind: kind, ID: id}
	return nil
}

// Get returns an object, or sql.ErrNoRows.
func (tx *Tx) Get(kind Kind, id string) (Object, error) {
	_, staged := tx.staged[key{kind, id}]
	if !staged { // what is staged may be deleted: ask the database
		if o, ok := tx.store.open[kind][id]; ok {
			return o, nil
		}
	}
	return tx.one(`kind = ? AND id = ?`, kind, id)
}

// List returns the objects of a kind in the order of their ids.
func (tx *Tx) List(kind Kind) ([]Object, error) { return tx.list(`kind = ?`, kind) }

// ListOpen returns those that the engine has to look after.
func (tx *Tx) ListOpen(kind Kind) ([]Object, error) {
	return tx.listOpen(kind, func(Object) bool { return true }), nil
}

// ListOf returns those that belong to an environment.
func (tx *Tx) ListOf(kind Kind, parent string) ([]Object, error) {
	return tx.list(`kind = ? AND parent = ?`, kind, parent)
}

// ListOpenOf returns those of an environment that the engine has to look after.
func (tx *Tx) ListOpenOf(kind Kind, parent string) ([]Object, error) {
	return tx.listOpen(kind, func(o Object) bool { return o.Parent == parent }), nil
}

// ListPrefix returns those whose id begins with prefix.
func (tx *Tx) ListPrefix(kind Kind, prefix string) ([]Object, error) {
	return tx.list(`kind = ? AND id >= ? AND id < ?`, kind, prefix, prefix+"\x7f")
}

// Named returns the open object with the name, or sql.ErrNoRows.
func (tx *Tx) Named(kind Kind, name string) (Object, error) {
	found := tx.listOpen(kind, func(o Object) bool { return o.Name == name && name != "" })
	if len(found) == 0 {
		return Object{}, sql.ErrNoRows
	}
	return found[0], nil
}

// listOpen returns the open objects that match, in the order of their ids.
func (tx *Tx) listOpen(kind Kind, match func(Object) bool) []Object {
	var found []Object
	for id, o := range tx.store.open[kind] {
		if _, staged := tx.staged[key{kind, id}]; !staged && match(o) {
			found = append(found, o)
		}
	}
	for k, o := range tx.staged {
		if k.kind == kind && o.Open && match(o) {
			found = append(found, o)
		}
	}
	slices.SortFunc(found, func(a, b Object) int { return strings.Compare(a.ID, b.ID) })
	return found
}

func (tx *Tx) one(where string, args ...any) (Object, error) {
	objects, err := tx.list(where, args...)
	if err == nil && len(objects) == 0 {
		err = sql.ErrNoRows
	}
	if err != nil {
		return Object{}, err
	}
	return objects[0], nil
}

func (tx *Tx) list(where string, args ...any) ([]Object, error) {
	return list(tx.ctx, tx.q, where, args...)
}

func list(ctx context.Context, q *statements, where string, args ...any) ([]Object, error) {
	rows, err := q.query(ctx, `SELECT kind, id, parent, name, open, doc FROM objects WHERE `+where+` ORDER BY id`, args...)
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

// key names an object.
type key struct {
	kind Kind
	id   string
}

// index holds the open objects by kind and id.
type index map[Kind]map[string]Object

// put makes the index agree with a saved object.
func (x index) put(o Object) {
	if !o.Open {
		delete(x[o.Kind], o.ID)
		return
	}
	if x[o.Kind] == nil {
		x[o.Kind] = map[string]Object{}
	}
	x[o.Kind][o.ID] = o
}

// Emit adds an event to the transaction: it reaches the ledger if and only if
// the transaction commits.
func (tx *Tx) Emit(e mayfly.Event) error {
	text, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("emit %s: %w", e.Type, err)
	}
	if err := tx.q.exec(tx.ctx, `INSERT INTO outbox (event) VALUES (?)`, string(text)); err != nil {
		return fmt.Errorf("emit %s: %w", e.Type, err)
	}
	tx.emitted = true
	return nil
}

// Outgoing returns up to max events in the outbox with numbers above after,
// oldest first, and the number of the last. The ids of the events are their
// numbers. They are on disk: a number that the ledger has seen is not given to
// another event.
func (s *Store) Outgoing(ctx context.Context, after int64, max int) (events []mayfly.Event, last int64, err error) {
	rows, err := s.read.query(context.WithoutCancel(ctx), `SELECT number, event FROM outbox WHERE number > ? ORDER BY number LIMIT ?`, after, max)
	if err != nil {
		return nil, 0, fmt.Errorf("read outbox: %w", err)
	}
	defer rows.Close()
	for rows.Next() {
		var e mayfly.Event
		var text []byte
		if err := rows.Scan(&last, &text); err != nil {
			return nil, 0, fmt.Errorf("read outbox: %w", err)
		}
		if err := json.Unmarshal(text, &e); err != nil {
			return nil, 0, fmt.Errorf("read outbox: %w", err)
		}
		e.ID = EventID(last)
		events = append(events, e)
	}
	if err := errors.Join(rows.Err(), s.syncNow()); err != nil {
		return nil, 0, fmt.Errorf("read outbox: %w", err)
	}
	return events, last, nil
}

// Sent forgets the events up to number last: the ledger has them.
func (s *Store) Sent(ctx context.Context, last int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.writer.exec(context.WithoutCancel(ctx), `DELETE FROM outbox WHERE number <= ?`, last); err != nil {
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
