package mayfly

import (
	"context"
	"time"
)

// Phase is where an environment is in its life.
type Phase string

const (
	Pending  Phase = "pending"  // saved, not all there yet
	Ready    Phase = "ready"    // its sandbox runs
	Paused   Phase = "paused"   // frozen: keeps its memory, uses no CPU
	Stopped  Phase = "stopped"  // its sandbox ended by itself; the volume is intact
	Deleting Phase = "deleting" // its finalizer is at work
	Deleted  Phase = "deleted"  // nothing of it is left but its history
	Failed   Phase = "failed"   // could not be made; Reason says why
)

// Isolation names the runtime that holds an environment.
type Isolation string

const (
	Native Isolation = "native" // namespaces, seccomp, Landlock, cgroups
	GVisor Isolation = "gvisor" // a user-space kernel (runsc)
)

// Environment is an isolated, short-lived copy of a template.
type Environment struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Owner       string            `json:"owner"`            // who asked for it: a user name
	Labels      map[string]string `json:"labels,omitempty"` // branch, pr, team, …
	Template    string            `json:"template"`         // digest, "sha256:…"
	Source      string            `json:"source,omitempty"` // directory of the repository on the client's machine
	Commit      string            `json:"commit,omitempty"` // of the workspace; empty outside git
	From        *SnapshotRef      `json:"from,omitempty"`   // set on forks
	Isolation   Isolation         `json:"isolation"`
	Limits      Limits            `json:"limits"`
	Phase       Phase             `json:"phase"`
	Reason      string            `json:"reason,omitempty"` // why it failed, paused or was deleted
	CreatedAt   time.Time         `json:"created_at"`
	ReadyAt     time.Time         `json:"ready_at,omitzero"`
	ExpiresAt   time.Time         `json:"expires_at"`          // TTL: deleted then
	IdleTimeout time.Duration     `json:"idle_timeout"`        // nanoseconds; paused after this long without a process at work
	IdleSince   time.Time         `json:"idle_since,omitzero"` // zero while a run is alive
	DeletedAt   time.Time         `json:"deleted_at,omitzero"`
	Keep        bool              `json:"keep"` // the TTL pauses instead of deleting

	// Services is there where an environment is looked up or listed.
	Services []ServiceStatus `json:"services,omitempty"`
}

// ServiceStatus says how a service of an environment is.
type ServiceStatus struct {
	Name   string       `json:"name"`
	State  ServiceState `json:"state"`
	Reason string       `json:"reason,omitempty"` // why it is restarting or has failed
	Spare  int          `json:"spare,omitempty"`  // number of the snapshot for a rollback to which another is ready
}

// ServiceState is how a service is.
type ServiceState string

const (
	ServiceReady      ServiceState = "ready"
	ServiceRestarting ServiceState = "restarting" // it ended and is about to be started again
	ServiceFailed     ServiceState = "failed"     // it could not be started, or keeps ending; it is tried again
	ServiceStopped    ServiceState = "stopped"    // its environment does not run
)

// SnapshotRef names a snapshot of an environment.
type SnapshotRef struct {
	Environment string `json:"environment"`
	Snapshot    string `json:"snapshot"`
}

// Limits bound what an environment may use. Zero means the server's default;
// the saved environment carries the effective values.
type Limits struct {
	CPU    float64 `json:"cpu,omitempty"`    // cores
	Memory int64   `json:"memory,omitempty"` // bytes
	PIDs   int64   `json:"pids,omitempty"`   // tasks
	Disk   int64   `json:"disk,omitempty"`   // bytes on the volume, snapshots included
	Output int64   `json:"output,omitempty"` // bytes of output kept per run
}

// DefaultLimits apply where a manifest is silent.
var DefaultLimits = Limits{CPU: 2, Memory: 4 << 30, PIDs: 1024, Disk: 10 << 30, Output: 64 << 20}

// MinTTL and MaxTTL bound an environment's time to live, DefaultTTL applies
// where nobody asked for another.
const (
	MinTTL      = time.Second
	MaxTTL      = 30 * 24 * time.Hour
	DefaultTTL  = time.Hour
	DefaultIdle = 15 * time.Minute
)

// CreateEnvironment asks for an environment.
type CreateEnvironment struct {
	Name        string            `json:"name,omitempty"`     // the server makes one up when empty
	Template    string            `json:"template,omitempty"` // digest of a prepared template
	From        *SnapshotRef      `json:"from,omitempty"`     // fork: instead of Template; an empty Snapshot takes one now
	Source      string            `json:"source,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Env         map[string]string `json:"env,omitempty"` // on top of the template's
	Isolation   Isolation         `json:"isolation,omitempty"`
	Limits      Limits            `json:"limits,omitzero"`
	TTL         time.Duration     `json:"ttl,omitempty"`          // nanoseconds
	IdleTimeout time.Duration     `json:"idle_timeout,omitempty"` // nanoseconds
	Keep        bool              `json:"keep,omitempty"`
	Exact       ExactRecording    `json:"exact,omitempty"` // of its runs; default that of the template, or of the fork's origin
}

// EnvironmentFilter selects environments. The zero value selects those that
// are not deleted.
type EnvironmentFilter struct {
	Deleted bool              // also deleted ones
	Labels  map[string]string // all of these
}

// Environments creates, finds and ends environments. Wherever a method takes
// ref, an id, a unique prefix of an id, or the name of a live environment
// will do; a run's id stands for its environment.
type Environments interface {
	// CreateEnvironment returns when the environment is ready. An unknown
	// template gives a Missing error: upload it and ask again.
	CreateEnvironment(ctx context.Context, r CreateEnvironment) (Environment, error)
	Environment(ctx context.Context, ref string) (Environment, error)
	Environments(ctx context.Context, f EnvironmentFilter) ([]Environment, error)
	// AttachService streams what the last processes of a service wrote, from
	// the oldest on; with follow until the last has ended. It takes no input.
	AttachService(ctx context.Context, ref, service string, follow bool) (Attachment, error)
	// PauseEnvironment freezes every process; ResumeEnvironment undoes it.
	PauseEnvironment(ctx context.Context, ref string) (Environment, error)
	ResumeEnvironment(ctx context.Context, ref string) (Environment, error)
	// ExtendEnvironment moves the end of life to ttl from now.
	ExtendEnvironment(ctx context.Context, ref string, ttl time.Duration) (Environment, error)
	// DeleteEnvironment returns when everything of it is gone. Deleting a
	// deleted environment is not an error.
	DeleteEnvironment(ctx context.Context, ref string) (Environment, error)
}
