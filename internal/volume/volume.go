// Package volume keeps the copy-on-write volumes that environments live in.
//
// A volume is what one environment may change: the upper directory of an
// overlay whose lower layers are read-only and shared, and a directory for
// databases beside it. Both lie in one btrfs subvolume where btrfs is to be
// had, so that one ioctl captures them at the same instant; elsewhere a
// snapshot is a copy made while the environment is frozen.
package volume

import (
	"context"
	"time"
)

// Kind names an implementation.
type Kind string

const (
	Btrfs   Kind = "btrfs"   // atomic snapshots in constant time, disk limits
	Reflink Kind = "reflink" // copies that share extents (xfs, bcachefs)
	Plain   Kind = "plain"   // full copies
)

// Tree is one state of a volume.
type Tree struct {
	Upper string // overlay's upper directory: changes, whiteouts, redirects
	Work  string // overlay's work directory; empty for snapshots
	DB    string // data directories of databases
}

// Pool keeps layers and volumes below one directory, which only root can
// enter. The layers of a pool in an image are in a directory beside it, base/,
// so that they are on another file system than the volumes:
//
//	layers/<name>/tree            shared, never changed
//	envs/<id>/live/{upper,work,db}
//	envs/<id>/snapshots/<snapshot>/{upper,db}
//	envs/<id>/host/               logs, sockets and exit records; not part of snapshots
//	trash/                        on its way out
//
// Identifiers are checked by the pool: [a-z0-9-]{1,64}. Every method may be
// repeated after a crash in the middle of it and then finishes the work.
// Owner ids on disk are those seen inside the environment (0, 1000): overlays
// map them (see sandbox).
type Pool interface {
	Kind() Kind

	// Layer returns the directory of a committed layer, or an error that is
	// fs.ErrNotExist.
	Layer(name string) (dir string, err error)
	// BuildLayer calls fill with a new directory and commits what it leaves as
	// a read-only layer. When the layer exists, fill is not called. Two
	// concurrent builds of one name share the work of the first. A failed or
	// interrupted build leaves nothing.
	BuildLayer(ctx context.Context, name string, fill func(ctx context.Context, dir string) error) (dir string, err error)
	// CommitLayer makes the upper directory of a volume's snapshot a layer: a
	// copy of it, unless volumes and layers lie on one btrfs.
	CommitLayer(ctx context.Context, name, env, snapshot string) (dir string, err error)
	RemoveLayer(ctx context.Context, name string) error
	Layers(ctx context.Context) ([]string, error)

	// Create makes the empty volume of an environment.
	Create(ctx context.Context, env string) error
	// Fork makes the volume of env from a snapshot of another one.
	Fork(ctx context.Context, env, fromEnv, fromSnapshot string) error
	// Snapshot captures the live state. The caller has frozen the writers.
	Snapshot(ctx context.Context, env, snapshot string) error
	// Rollback replaces the live state by a snapshot, atomically with respect
	// to crashes: afterwards live is the one or the other, never a mixture.
	// The caller has ended every process and unmounted the overlay.
	Rollback(ctx context.Context, env, snapshot string) error
	// RollbackUpper and RollbackDB replace one side of the live state; the other
	// stays as it is. RollbackUpper is as atomic as Rollback. RollbackDB replaces
	// the files that differ, none before all are copied, and works while the
	// directory is mounted; the processes that write to it have ended. After a
	// crash among the files it is repeated before any is used. Data directories
	// that except names stay.
	RollbackUpper(ctx context.Context, env, snapshot string) error
	RollbackDB(ctx context.Context, env, snapshot string, except ...string) error
	// ReadAheadDB has the kernel read what RollbackDB compares, which nobody has
	// looked at for long. It may be called before what writes has ended, and be
	// under way beside RollbackDB.
	ReadAheadDB(ctx context.Context, env, snapshot string)
	// CopyDB makes a spare of a data directory beside it: a copy of what it was
	// in a snapshot, in the place of a spare that is there, with another owner.
	// ExchangeDB exchanges the spare and the directory, at once.
	CopyDB(ctx context.Context, env, snapshot, name string, owner uint32) error
	ExchangeDB(ctx context.Context, env, name string) error
	// RemoveSnapshot of a missing snapshot is not an error.
	RemoveSnapshot(ctx context.Context, env, snapshot string) error
	// Destroy removes everything of an environment, snapshots and host
	// directory included. Destroying a missing one is not an error.
	Destroy(ctx context.Context, env string) error

	// Live, At and SpareDB return paths without touching the disk.
	Live(env string) Tree
	SpareDB(env, name string) string
	At(env, snapshot string) Tree
	// Host is the environment's directory for logs, sockets and records.
	Host(env string) string
	// Volumes and SnapshotsOf list what is on disk.
	Volumes(ctx context.Context) ([]string, error)
	SnapshotsOf(ctx context.Context, env string) ([]string, error)

	// Recover finishes or removes what a crash left half-made. It is called
	// once, before anything else.
	Recover(ctx context.Context) error
	// Close unmounts the pool and detaches its device. It fails, harmlessly,
	// while an environment uses the pool.
	Close() error
}

// Limiter is a pool that can hold an environment to a number of bytes on
// disk, over its live state and its snapshots together.
type Limiter interface {
	SetLimit(ctx context.Context, env string, bytes int64) error
	Used(ctx context.Context, env string) (bytes int64, err error)
}

// Options configure Open.
type Options struct {
	Dir  string // of the pool
	Kind Kind   // force an implementation; empty picks the best to be had
	// ImageSize is the largest size of a loop-mounted image in bytes; it is
	// sparse and begins small. 0: as large as the file system below it.
	ImageSize int64
	Now       func() time.Time

	fault func(step string) error // of tests: called before each step, which it can make fail
}
