package mayfly

import (
	"context"
	"io"
	"time"
)

// SnapshotKind says why a snapshot was taken.
type SnapshotKind string

const (
	BaselineSnapshot SnapshotKind = "baseline" // before a run
	FinalSnapshot    SnapshotKind = "final"    // after a run
	ManualSnapshot   SnapshotKind = "manual"   // on request
	ForkSnapshot     SnapshotKind = "fork"     // for a fork of a live environment
	RollbackSnapshot SnapshotKind = "rollback" // what a rollback replaced
	StepSnapshot     SnapshotKind = "step"     // when a step of a run began
)

// Snapshot is an immutable point in time of a whole environment.
type Snapshot struct {
	ID          string        `json:"id"`
	Environment string        `json:"environment"`
	Number      int           `json:"number"` // 1, 2, … within the environment
	Kind        SnapshotKind  `json:"kind"`
	Run         string        `json:"run,omitempty"`
	Step        int           `json:"step,omitempty"` // that begins with it
	Label       string        `json:"label,omitempty"`
	Ready       bool          `json:"ready"` // false until it is on disk
	Pause       time.Duration `json:"pause"` // nanoseconds that the environment stood still
	CreatedAt   time.Time     `json:"created_at"`
	DeletedAt   time.Time     `json:"deleted_at,omitzero"` // its files are gone
}

// ChangeKind says what became of a path.
type ChangeKind string

const (
	Added    ChangeKind = "added"
	Modified ChangeKind = "modified" // content, mode, owner, target or attributes
	Removed  ChangeKind = "removed"
	Renamed  ChangeKind = "renamed" // From has the old path; the content may differ too
)

// Change is one path that differs between two trees. Paths are relative to
// the compared directory and are arbitrary bytes without NUL.
type Change struct {
	Kind     ChangeKind `json:"kind"`
	Path     string     `json:"path"`
	From     string     `json:"from,omitempty"`
	OldMode  uint32     `json:"old_mode,omitempty"` // as st_mode; 0 when absent
	NewMode  uint32     `json:"new_mode,omitempty"`
	OldSize  int64      `json:"old_size"`
	NewSize  int64      `json:"new_size"`
	Binary   bool       `json:"binary,omitempty"`
	Inserted int        `json:"inserted"` // lines
	Deleted  int        `json:"deleted"`  // lines
}

// DiffRequest names two states of one environment and what to compare.
type DiffRequest struct {
	Environment string `json:"environment"`      // ref
	From        string `json:"from,omitempty"`   // snapshot; empty: the template
	To          string `json:"to,omitempty"`     // snapshot; empty: the live state
	Path        string `json:"path,omitempty"`   // default /workspace; "/" for everything
	Format      string `json:"format,omitempty"` // "patch" (git's, binary safe), "stat" (text) or "json" ([]Change)
}

// RowsRequest names two states of one environment whose databases to compare.
type RowsRequest struct {
	Environment string `json:"environment"`      // ref
	From        string `json:"from,omitempty"`   // snapshot; empty: what the template's database began with
	To          string `json:"to,omitempty"`     // snapshot; empty: the live state
	Format      string `json:"format,omitempty"` // "text" (for a person), "json", or SQL: "forward" makes To of From, "reverse" From of To
}

// Side is a part of an environment that can be rolled back by itself; empty
// for all.
type Side string

const (
	FilesSide    Side = "files" // all files but the data of services
	DatabaseSide Side = "db"    // the data of services
)

// Snapshots takes, lists, restores and compares snapshots. A snapshot's ref
// is its id or, within an environment, its number.
type Snapshots interface {
	CreateSnapshot(ctx context.Context, env, label string) (Snapshot, error)
	// Snapshots lists them, the oldest first, with those that were deleted.
	Snapshots(ctx context.Context, env string) ([]Snapshot, error)
	// DeleteSnapshot removes the files of a snapshot and returns when they are
	// gone. Forks of it live on.
	DeleteSnapshot(ctx context.Context, env, snapshot string) (Snapshot, error)
	// Rollback ends every process of the environment and puts its files back
	// to the snapshot; an empty snapshot means the baseline of its last run.
	// What was there is kept as a snapshot of kind rollback, which it returns.
	// With only one side, the other stays as it is; when that is the files, an
	// environment with native isolation keeps its processes, but for those of
	// its services, which are started again.
	Rollback(ctx context.Context, env, snapshot string, only Side) (Snapshot, error)
	// Diff streams the difference in the requested format.
	Diff(ctx context.Context, r DiffRequest) (io.ReadCloser, error)
	// DiffRows streams the difference between databases, row by row, in the
	// requested format.
	DiffRows(ctx context.Context, r RowsRequest) (io.ReadCloser, error)
	// Hash is the digest of a tree: paths, types, modes, contents and link
	// targets below path (default /workspace without .git), no times.
	Hash(ctx context.Context, env, snapshot, path string) (string, error)
}

// AfterStep finds among the snapshots of an environment the one that has what
// a step of the run left: the next step of the run began with it, or it is the
// run's final one. Step 0 stands for what was there before the run.
func AfterStep(snapshots []Snapshot, run string, step int) (Snapshot, error) {
	begun := step == 0
	for _, s := range snapshots {
		switch {
		case s.Run != run:
		case step == 0 && s.Kind == BaselineSnapshot:
			return s, s.Present()
		case begun && step > 0 && (s.Kind == StepSnapshot || s.Kind == FinalSnapshot):
			return s, s.Present()
		case s.Kind == StepSnapshot && s.Step == step:
			begun = true
		}
	}
	if begun && step > 0 {
		return Snapshot{}, Errorf(Conflict, "step %d of run %s has not ended", step, run).
			Hint("wait for the next one, or for the end of the run: mayfly graph %s", run)
	}
	return Snapshot{}, Errorf(NotFound, "run %s has no step %d", run, step).
		Hint("list them with: mayfly graph %s", run)
}

// Present is an error when the snapshot was deleted.
func (s Snapshot) Present() error {
	if s.DeletedAt.IsZero() {
		return nil
	}
	return Errorf(NotFound, "snapshot %d was deleted at %s", s.Number, s.DeletedAt.Format(time.RFC3339)).
		Hint("list those that are left with: mayfly snapshot list %s", s.Environment)
}

// BeforeStep finds the snapshot with which a step of a run began.
func BeforeStep(snapshots []Snapshot, run string, step int) (Snapshot, error) {
	for _, s := range snapshots {
		if s.Run == run && s.Kind == StepSnapshot && s.Step == step {
			return s, s.Present()
		}
	}
	return Snapshot{}, Errorf(NotFound, "run %s has no step %d", run, step).
		Hint("list them with: mayfly graph %s", run)
}
