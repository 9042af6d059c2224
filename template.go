package mayfly

import (
	"context"
	"io"
	"time"
)

// Lock pins everything that decides what a template contains and how its runs
// behave. It is what mayfly.lock holds.
type Lock struct {
	Version   int               `json:"version"` // 1
	Name      string            `json:"name"`
	Base      LockedBase        `json:"base"`
	Workspace LockedWorkspace   `json:"workspace"`
	Lockfiles map[string]string `json:"lockfiles,omitempty"` // path in the workspace to sha256 digest
	Setup     []string          `json:"setup,omitempty"`     // shell commands, in order
	Env       map[string]string `json:"env,omitempty"`
	Seed      uint64            `json:"seed"`
	Epoch     int64             `json:"epoch"` // SOURCE_DATE_EPOCH: seconds since 1970
	Limits    Limits            `json:"limits"`
	TTL       time.Duration     `json:"ttl"`                        // nanoseconds
	Idle      time.Duration     `json:"idle_timeout"`               // nanoseconds
	Nested    bool              `json:"nested_sandboxes,omitempty"` // let agents make user namespaces of their own
	Model     *LockedModel      `json:"model,omitempty"`            // that its runs are meant to use
	Exact     ExactRecording    `json:"exact,omitempty"`            // what becomes of the bytes that redaction took out
	Services  []LockedService   `json:"services,omitempty"`         // sorted by name
	Template  string            `json:"template"`                   // digest over all that the volume depends on
}

// LockedBase is the root filesystem below the workspace.
type LockedBase struct {
	Kind      string `json:"kind"`                // "host" or "image"
	Reference string `json:"reference,omitempty"` // of the image, as written
	Digest    string `json:"digest"`              // manifest digest, or of the host's package database
}

// LockedModel is an entry of the model registry.
type LockedModel struct {
	Ref    string `json:"ref"`    // NAME@VERSION
	Digest string `json:"digest"` // of the entry
}

// ExactRecording says what becomes of those bytes of an exchange that its
// redacted recording does not have.
type ExactRecording string

const (
	ExactEncrypted ExactRecording = "encrypted" // kept under a key of the run, for exact replay; the default
	ExactNone      ExactRecording = "none"      // forgotten
)

// LockedWorkspace is the source tree.
type LockedWorkspace struct {
	Commit      string `json:"commit,omitempty"`      // empty outside git
	Digest      string `json:"digest"`                // over paths, modes and contents, mayfly.lock left out
	Files       int    `json:"files"`                 // how many
	Uncommitted int    `json:"uncommitted,omitempty"` // how many of them differ from the commit
	Depth       int    `json:"depth,omitempty"`       // commits of history that go along; 0 means all
}

// Template is a lock made real, as a read-only volume named by its digest.
type Template struct {
	Digest    string    `json:"digest"`
	Lock      Lock      `json:"lock"`
	CreatedAt time.Time `json:"created_at"`
}

// Templates receives what environments are made of. Everything comes as a
// stream from the client, so that the server never reads a path or a registry
// on somebody else's behalf.
type Templates interface {
	// PutImage unpacks an OCI image layout in a tar stream; digest is that of
	// the image's manifest and is verified. Putting it again is harmless.
	PutImage(ctx context.Context, digest string, layout io.Reader) error
	// PutTemplate prepares a template: base, workspace (a tar stream whose
	// entries are relative to /workspace), then the setup commands, whose
	// output goes to log. A missing image gives a Missing error.
	PutTemplate(ctx context.Context, l Lock, workspace io.Reader, log io.Writer) (Template, error)
	Template(ctx context.Context, digest string) (Template, error)
	Templates(ctx context.Context) ([]Template, error)
}
