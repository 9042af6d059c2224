package mayfly

import (
	"context"
	"io"
	"syscall"
	"time"
)

// RunPhase is where a run is in its life.
type RunPhase string

const (
	RunPending  RunPhase = "pending"  // saved, not started
	RunRunning  RunPhase = "running"  // its process lives
	RunExited   RunPhase = "exited"   // ended by itself; ExitCode says how
	RunKilled   RunPhase = "killed"   // ended from outside; Reason says why
	RunTimedOut RunPhase = "timedout" // ended by its own timeout
	RunFailed   RunPhase = "failed"   // could not be started; Reason says why
)

// Ended reports whether the run is over.
func (p RunPhase) Ended() bool { return p != RunPending && p != RunRunning }

// RunKind tells an agent's run from commands that a person executes beside it.
type RunKind string

const (
	AgentRun RunKind = "run"  // snapshotted before and after
	ExecRun  RunKind = "exec" // mayfly exec and mayfly shell
)

// Run is one command in an environment.
type Run struct {
	ID          string        `json:"id"`
	Environment string        `json:"environment"`
	Kind        RunKind       `json:"kind"`
	Command     []string      `json:"command"`
	Dir         string        `json:"dir,omitempty"` // default /workspace
	TTY         bool          `json:"tty,omitempty"`
	Timeout     time.Duration `json:"timeout,omitempty"` // nanoseconds
	Actor       string        `json:"actor"`
	Phase       RunPhase      `json:"phase"`
	Reason      string        `json:"reason,omitempty"`
	ExitCode    int           `json:"exit_code"`          // 128+n when signal n ended it
	Baseline    string        `json:"baseline,omitempty"` // snapshot taken before it started
	Final       string        `json:"final,omitempty"`    // snapshot taken after it ended
	Usage       Usage         `json:"usage"`
	Replay      *Replay       `json:"replay,omitempty"`    // its model answers come from a recording
	Model       string        `json:"model,omitempty"`     // entry of the registry that it is meant to use, NAME@VERSION
	Locked      bool          `json:"locked,omitempty"`    // what differs from Model is refused
	Steps       int           `json:"steps,omitempty"`     // turns of its conversations so far
	Exchanges   int           `json:"exchanges,omitempty"` // with models, side calls included
	Tokens      TokenUsage    `json:"tokens,omitzero"`     // of its exchanges
	Divergences int           `json:"divergences,omitempty"`
	Tree        string        `json:"tree,omitempty"`   // hash of the final workspace, when there were exchanges
	Remove      bool          `json:"remove,omitempty"` // delete the environment when it ends
	CreatedAt   time.Time     `json:"created_at"`
	StartedAt   time.Time     `json:"started_at,omitzero"`
	EndedAt     time.Time     `json:"ended_at,omitzero"`
}

// Usage is what a run's processes used.
type Usage struct {
	UserCPU   time.Duration `json:"user_cpu"`   // nanoseconds
	SystemCPU time.Duration `json:"system_cpu"` // nanoseconds
	MaxRSS    int64         `json:"max_rss"`    // bytes, of the largest process
}

// StartRun asks for a command in an environment.
type StartRun struct {
	Environment string             `json:"environment,omitempty"` // ref of an existing one
	Create      *CreateEnvironment `json:"create,omitempty"`      // or make one
	Kind        RunKind            `json:"kind,omitempty"`        // default AgentRun
	Command     []string           `json:"command,omitempty"`
	Env         map[string]string  `json:"env,omitempty"`
	Dir         string             `json:"dir,omitempty"`
	TTY         bool               `json:"tty,omitempty"`
	Rows        uint16             `json:"rows,omitempty"`
	Cols        uint16             `json:"cols,omitempty"`
	Stdin       bool               `json:"stdin,omitempty"` // keep standard input open for an attachment
	Timeout     time.Duration      `json:"timeout,omitempty"`
	Remove      bool               `json:"remove,omitempty"` // delete the environment when the run ends
	Attach      bool               `json:"attach,omitempty"` // the caller is going to attach: with Remove, wait for that a moment
	Model       string             `json:"model,omitempty"`  // entry of the registry that it is meant to use
	Locked      bool               `json:"locked,omitempty"` // refuse what differs from Model, instead of noting it
	// Replay makes the answers come from a recording. What else the request
	// leaves open is then as in the recorded run; without Environment and
	// Create, it begins where that began.
	Replay *Replay `json:"replay,omitempty"`
}

// RunFilter selects runs.
type RunFilter struct {
	Environment string // ref; empty for all
}

// Stream says where output came from.
type Stream byte

const (
	Stdout Stream = 1
	Stderr Stream = 2
	Notice Stream = 3 // a remark of mayfly's, such as dropped output
)

// Output is one piece of what a run wrote.
type Output struct {
	Stream Stream
	Time   time.Time
	Data   []byte
}

// Attachment connects a terminal or a pipe to a run. Closing it leaves the
// run alone.
type Attachment interface {
	// Recv returns the next output, and io.EOF after the last one of a run
	// that has ended.
	Recv() (Output, error)
	io.Writer // to the run's standard input
	CloseWrite() error
	Resize(rows, cols uint16) error
	Signal(sig syscall.Signal) error
	Close() error
}

// Runs starts, finds and ends runs.
type Runs interface {
	// StartRun returns when the command has started (or could not be). The
	// environment, when it made one, is in the run. An unknown model gives a
	// NotFound error.
	StartRun(ctx context.Context, r StartRun) (Run, error)
	Run(ctx context.Context, id string) (Run, error)
	Runs(ctx context.Context, f RunFilter) ([]Run, error)
	// WaitRun returns when the run has ended and its final snapshot is taken;
	// for a run with Remove, when its environment is gone.
	WaitRun(ctx context.Context, id string) (Run, error)
	// KillRun ends the run: SIGTERM, and SIGKILL after a grace period.
	KillRun(ctx context.Context, id string) (Run, error)
	// AttachRun streams the run's output from its beginning and accepts
	// input. With follow false it ends at what is there now.
	AttachRun(ctx context.Context, id string, follow bool) (Attachment, error)
}
