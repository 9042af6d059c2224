// Package sandbox holds an environment's processes: namespaces, a root file
// system assembled from a volume, limits, and a guest as their first process.
//
// Everything a sandbox consists of is named after the installation and the
// environment, so that a server that lost its memory finds it again: the
// cgroups mayfly-<installation>/<environment>, and the guest's socket in the
// environment's host directory.
package sandbox

import (
	"context"
	"net"
	"time"

	"mayfly.dev/mayfly"
)

// Spec says how to start a sandbox. It follows from saved state alone.
type Spec struct {
	Environment string   // id
	Host        string   // directory on the host for the guest's socket, logs and exit records; exists, and only root can enter it
	Lower       []string // read-only layers, topmost first, absolute
	Upper       string   // exists
	Work        string   // beside Upper; Start makes it anew
	DB          string   // mounted at /var/lib/mayfly-db, not on the overlay; may be empty
	Binds       []Bind
	Env         []string // of every process, "K=V"
	Limits      mayfly.Limits
	UIDBase     uint32 // first of the 65536 host ids that the environment's ids map to; no two live environments share any
	Nested      bool   // allow user namespaces inside
}

// Bind shows a host directory inside, read-only, nosuid and nodev.
type Bind struct {
	Source string
	Target string // absolute; exists in a lower layer
}

// State is what can be seen of a sandbox.
type State string

const (
	Gone    State = "gone"    // nothing is left of it
	Alive   State = "alive"   // its guest answers or can answer
	Frozen  State = "frozen"  // alive, but stopped by Freeze
	Remains State = "remains" // no guest, but something to clean up
)

// Runtime starts and ends sandboxes of one isolation.
type Runtime interface {
	// Start returns when the guest is ready to start commands. Starting a
	// sandbox that is alive is not an error; remains are cleaned up first.
	Start(ctx context.Context, s Spec) error
	Inspect(ctx context.Context, env string) (State, error)
	// Freeze stops every process of the sandbox at once and returns when they
	// stand still; Thaw lets them go on. Both may be repeated.
	Freeze(ctx context.Context, env string) error
	Thaw(ctx context.Context, env string) error
	// Stop kills every process and removes all that Start made: processes,
	// cgroups, namespaces, mounts. Files of the volume stay. Stopping a
	// missing sandbox is not an error.
	Stop(ctx context.Context, env string) error
	// Dial connects to the guest (see package guest).
	Dial(ctx context.Context, s Spec) (net.Conn, error)
	// Listen opens a port of the sandbox's own loopback device, 127.0.0.1,
	// for commands inside to connect to; from elsewhere nobody reaches it.
	// Stop closes the listener. The error is of kind mayfly.Conflict when a
	// process inside has the port, and errors.ErrUnsupported when the sandbox's
	// network is not the kernel's, so that only its guest can listen there.
	Listen(ctx context.Context, s Spec, port int) (net.Listener, error)
	// Usage reads the resource counters of a live sandbox.
	Usage(ctx context.Context, env string) (Usage, error)
	// List names the environments of which something is there.
	List(ctx context.Context) ([]string, error)
}

// Preparer is a Runtime that can begin with a start ahead of Start.
type Preparer interface {
	// Prepare begins to start a sandbox and does not wait: Start finishes it.
	// Until then it counts as Remains. It needs nothing of the volume; what
	// goes wrong Start says. It ends with Stop, or with this process.
	Prepare(s Spec)
}

// Redirector is a Runtime that can lead what its processes connect to elsewhere.
type Redirector interface {
	// Redirect makes connections to 127.0.0.1:port reach 127.0.0.2:port, or
	// ends that, from one connection to the next. Both may be repeated. It
	// lasts until Stop. The error is of kind mayfly.Unsupported where the kernel
	// cannot.
	Redirect(env string, port uint16, on bool) error
}

// Usage is what a sandbox has used so far and uses now.
type Usage struct {
	CPU     time.Duration
	Memory  int64 // bytes now
	PIDs    int64 // tasks now
	OOMKill int64 // processes killed for memory so far
}

// Paths and ids inside every environment.
const (
	Hostname  = "mayfly"
	UID       = 1000
	GID       = 1000
	User      = "agent"
	Home      = "/home/agent"
	Workspace = "/workspace"
	DBDir     = "/var/lib/mayfly-db"
)
