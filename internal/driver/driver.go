// Package driver is the port between the engine and the place where
// environments exist: a Linux machine, a cluster, or memory in tests.
package driver

import (
	"context"
	"io"
	"net"
	"time"

	"mayfly.dev/mayfly"
)

// Handle names everything that a driver makes for one environment. It is
// saved before any of it exists, so that whatever a crash leaves can be found
// and finished or removed.
type Handle struct {
	Environment string           `json:"environment"`
	Isolation   mayfly.Isolation `json:"isolation"`
	UIDBase     uint32           `json:"uid_base"`
}

// Spec says what an environment is made of. It follows from saved state.
type Spec struct {
	Template string              // digest
	From     *mayfly.SnapshotRef // fork of this snapshot instead of an empty volume
	Env      map[string]string
	Limits   mayfly.Limits
	Services []mayfly.LockedService `json:",omitempty"`
}

// Observed is what is there of an environment.
type Observed struct {
	Volume  bool // the volume exists
	Sandbox SandboxState
}

// SandboxState is what is there of a sandbox.
type SandboxState string

const (
	SandboxGone    SandboxState = "gone"
	SandboxAlive   SandboxState = "alive"
	SandboxFrozen  SandboxState = "frozen"
	SandboxRemains SandboxState = "remains" // ended, not yet cleaned up
)

// Process is a command to start in an environment.
type Process struct {
	Run        string // id; starting the same one twice starts it once
	Command    []string
	Env        map[string]string
	Dir        string
	TTY        bool
	Rows, Cols uint16
	Stdin      bool
	Output     int64 // bytes of output to keep
}

// Exit says how a process ended.
type Exit struct {
	Code   int       // 128+n when signal n ended it
	Reason string    // set when it could not be started
	Ended  time.Time // by the guest's clock
	Usage  mayfly.Usage
}

// Driver makes, observes and removes environments. Every method may be
// repeated: after a crash in the middle of it, the repetition finishes the
// work. Unless said otherwise, one environment is handled by one caller at a
// time.
type Driver interface {
	// PutImage and PutTemplate prepare what environments are made of; see
	// mayfly.Templates. They are all or nothing.
	PutImage(ctx context.Context, digest string, layout io.Reader) error
	PutTemplate(ctx context.Context, l mayfly.Lock, workspace io.Reader, log io.Writer) error
	// HasTemplate reports whether the template is there.
	HasTemplate(ctx context.Context, digest string) (bool, error)

	// Create makes the volume; Start the sandbox upon it. Both do nothing when
	// it exists.
	Create(ctx context.Context, h Handle, s Spec) error
	Start(ctx context.Context, h Handle, s Spec) error
	Inspect(ctx context.Context, h Handle) (Observed, error)
	// Stop ends every process; the volume stays.
	Stop(ctx context.Context, h Handle) error
	// Destroy removes everything that Create and Start made. Destroying a
	// missing environment is not an error.
	Destroy(ctx context.Context, h Handle) error
	// List names every environment of which something is there.
	List(ctx context.Context) ([]Handle, error)

	// Snapshot captures the volume under the given id, freezing the sandbox
	// for the moment that it takes, which it returns. A snapshot that exists
	// is left as it is. With ending, what runs is ended next, so that the moment
	// may be longer if the whole takes less.
	Snapshot(ctx context.Context, h Handle, snapshot string, ending bool) (pause time.Duration, err error)
	RemoveSnapshot(ctx context.Context, h Handle, snapshot string) error
	// Rollback replaces the volume's live state, or one side of it; the sandbox
	// is stopped. For the data of services it may run: the processes of all
	// services are ended then.
	Rollback(ctx context.Context, h Handle, s Spec, snapshot string, only mayfly.Side) error
	// Diff and Hash read states of a volume; safe beside everything else. An
	// empty From means the template, an empty To the live state.
	Diff(ctx context.Context, h Handle, s Spec, r mayfly.DiffRequest) (io.ReadCloser, error)
	Hash(ctx context.Context, h Handle, s Spec, snapshot, path string) (string, error)

	// StartProcess starts a command. A command that cannot be started still
	// has an exit, with Reason.
	StartProcess(ctx context.Context, h Handle, s Spec, p Process) error
	// WaitProcess returns the exit of a process when it has ended, also when
	// it ended while no server was running. When the sandbox ended without a
	// record of the process, the error is of kind mayfly.NotFound. Safe beside
	// everything else.
	WaitProcess(ctx context.Context, h Handle, run string) (Exit, error)
	// SignalProcess sends a signal to the process group; to one that has
	// ended, it does nothing.
	SignalProcess(ctx context.Context, h Handle, run string, signal int) error
	// Attach streams a process; see mayfly.Runs. Safe beside everything else.
	Attach(ctx context.Context, h Handle, run string, follow bool) (mayfly.Attachment, error)

	// Close releases what the driver holds open. Environments live on.
	Close() error
}

// Pauser is a driver that can freeze an environment.
type Pauser interface {
	Pause(ctx context.Context, h Handle) error
	Resume(ctx context.Context, h Handle) error
}

// Preparer is a driver that can begin to start an environment before that is
// made.
type Preparer interface {
	// Prepare does not wait. Nothing of the environment's is there afterwards,
	// and nothing runs in it: Start goes on from here, Stop takes it back, and
	// it does not outlive this process. It needs no Create before it, so that
	// the environment can be saved and made meanwhile.
	Prepare(ctx context.Context, h Handle, s Spec)
}

// Servicer is a driver that runs services beside the commands of environments.
type Servicer interface {
	// StartService starts a service of s by its name, unless it runs, and
	// returns its process when it is ready, for WaitProcess. The sandbox runs.
	// A service that does not become ready has no process left.
	StartService(ctx context.Context, h Handle, s Spec, name string) (process string, err error)
	// AttachService streams what the last processes of a service wrote, and to
	// whoever follows what later ones write, until the sandbox ends; see
	// mayfly.Environments. Safe beside everything else.
	AttachService(ctx context.Context, h Handle, s Spec, name string, follow bool) (mayfly.Attachment, error)
	// Admit lets exactly the given runs use the services, whose processes
	// StartProcess tells how; none logs in after until. What others had of them
	// ends: passwords, and sessions that are open. When that is so already, it
	// does nothing. When a service has ended, the error is of kind
	// mayfly.Unavailable.
	Admit(ctx context.Context, h Handle, s Spec, runs []string, until time.Time) error
	// Dismiss ends what a run had of the services; with an error, Admit
	// completes it. Safe beside everything else.
	Dismiss(ctx context.Context, h Handle, s Spec, run string) error
}

// Sparer is a driver that can keep the databases of a snapshot ready for a
// Rollback of services' data to that snapshot, which then only puts them in the
// place of the others.
type Sparer interface {
	// Spare starts what the services of s that want it have in a snapshot,
	// beside what runs, in the place of what it has started for another
	// snapshot. Stop ends it, and StartService, unless a Rollback has put it in
	// place. It is safe beside everything else, but for Stop, Rollback, and the
	// StartService that comes after that. The error is of kind
	// mayfly.Unsupported where there can be no spares.
	Spare(ctx context.Context, h Handle, s Spec, snapshot string) error
}

// RowDiffer is a driver that can compare the databases of snapshots.
type RowDiffer interface {
	// DiffRows starts the databases of two states of an environment, the
	// template's for an empty From, under the names of places, and streams what
	// differs between them. The caller destroys the places afterwards, also
	// when there was an error. Safe beside everything else.
	DiffRows(ctx context.Context, h Handle, s Spec, r mayfly.RowsRequest, places [2]Handle) (io.ReadCloser, error)
}

// Listener is a driver that can open doors into an environment.
type Listener interface {
	// Listen opens a TCP port at 127.0.0.1 inside an environment that runs, for
	// its processes to connect to; nobody else reaches it. With a frozen
	// sandbox it may wait until that is let go on, or ctx ends. A port that was closed can be opened again, also by another
	// server. The listener closes when the sandbox is stopped. The error is of
	// kind mayfly.Conflict when a process inside has the port, and NotFound
	// when there is no sandbox.
	Listen(ctx context.Context, h Handle, port int) (net.Listener, error)
}
