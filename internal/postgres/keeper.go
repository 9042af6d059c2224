package postgres

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// keeper keeps a connection of Admin between uses that follow each other: a
// new one costs the server a process, and that this reads the catalogs.
//
// The first connection of a new server is one to the database of interest, and
// what it reads there the first client need not. It is not kept for longer than
// whoever drops or renames that database waits for others to leave it.
type keeper struct {
	mu      sync.Mutex // held while the connection is in use
	conn    *pgconn.PgConn
	idle    *time.Timer // closes it
	fresh   bool        // nobody has connected yet
	limited bool        // to keepFirst
}

const (
	keepIdle  = 10 * time.Second // how long a connection that nobody uses is kept
	keepFirst = 3 * time.Second  // how long one to the database of interest is
)

// withAdmin calls fn with a connection of Admin, which may have been used
// before and will be again: what fn sets, it sets for its transaction. When
// the connection turns out to be broken, fn is called once more with another.
func (r Running) withAdmin(ctx context.Context, fn func(*pgconn.PgConn) error) error {
	k := r.kept
	if k == nil || !k.mu.TryLock() {
		return r.withConn(ctx, maintenance(r.Database), fn)
	}
	defer k.mu.Unlock()
	for {
		used := k.conn != nil
		if !used {
			if err := k.connect(ctx, r.Instance); err != nil {
				return err
			}
		}
		err := fn(k.conn)
		broken := k.conn.IsClosed()
		k.keep(broken)
		if !used || !broken || ctx.Err() != nil {
			return err
		}
	}
}

// connect connects to the database of interest for the first time, if that is
// there and lets anybody in.
func (k *keeper) connect(ctx context.Context, i Instance) (err error) {
	if k.fresh {
		k.fresh = false
		if k.conn, err = i.Connect(ctx, i.Database); err == nil {
			k.limited = true
			k.closeAfter(keepFirst)
			return nil
		}
	}
	if k.conn, err = i.Connect(ctx, maintenance(i.Database)); err != nil {
		k.conn = nil
	}
	return err
}

// Hold has a connection of Admin ready for the next use, however late that is,
// on which a Grant takes little time.
func (r Running) Hold(ctx context.Context, owner string) error {
	k := r.kept
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop()
	k.fresh = false
	if k.idle != nil {
		k.idle.Stop()
	}
	err := k.connect(ctx, r.Instance)
	if err == nil {
		err = rehearse(ctx, k.conn, owner)
	}
	if err != nil {
		return fmt.Errorf("hold a connection to the database: %w", err)
	}
	return nil
}

func (k *keeper) closeAfter(d time.Duration) {
	if k.idle == nil {
		k.idle = time.AfterFunc(d, k.close)
	}
	k.idle.Reset(d)
}

// keep puts the connection away, or lets go of a broken one.
func (k *keeper) keep(broken bool) {
	if !k.limited {
		k.closeAfter(keepIdle)
	}
	if broken || k.conn.TxStatus() != 'I' {
		k.drop()
	}
}

// close is called when nobody has used the connection for a while.
func (k *keeper) close() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.drop()
}

func (k *keeper) drop() {
	if k.conn == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	k.conn.Close(ctx)
	k.conn, k.limited = nil, false
}
