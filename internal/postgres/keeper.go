package postgres

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// keeper keeps a connection of Admin between uses that follow each other: a
// new one costs the server a process, and that this reads the catalogs.
type keeper struct {
	mu   sync.Mutex // held while the connection is in use
	conn *pgconn.PgConn
	idle *time.Timer // closes it
}

// keepIdle is how long a connection that nobody uses is kept.
const keepIdle = 10 * time.Second

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
			var err error
			if k.conn, err = r.Connect(ctx, maintenance(r.Database)); err != nil {
				k.conn = nil
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

// keep puts the connection away, or lets go of a broken one.
func (k *keeper) keep(broken bool) {
	if k.idle == nil {
		k.idle = time.AfterFunc(keepIdle, k.close)
	}
	k.idle.Reset(keepIdle)
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
	k.conn = nil
}
