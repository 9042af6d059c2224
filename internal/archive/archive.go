// Package archive unpacks tar streams that nobody vouches for: workspaces that
// clients send and layers of images.
//
// Whatever the stream holds, nothing outside the destination changes: every
// path is resolved by the kernel relative to the destination, and the process
// never follows a symbolic link that the stream could have planted out of it.
package archive

import (
	"time"

	"mayfly.dev/mayfly"
)

// Options say what Extract accepts. The zero value is the strictest.
type Options struct {
	MaxBytes int64 // of file contents together, holes included; 0: DefaultMaxBytes
	MaxFiles int   // entries and directories made for them; 0: DefaultMaxFiles
	MaxPath  int   // bytes of one path; 0, or more than the kernel takes: 4095

	// Owner, when set, owns everything. Otherwise the numeric owners of the
	// stream are kept, which must lie within 0..65535.
	Owner *Owner
	// Setuid keeps set-user-id and set-group-id bits, which are cleared
	// otherwise. Environments mount everything nosuid or run with
	// no_new_privs, so that the bits are data there.
	Setuid bool
	// FIFOs accepts named pipes.
	FIFOs bool
	// SkipDevices leaves out device nodes below dev/, which many images have
	// and no environment needs. All others are refused, always.
	SkipDevices bool
	// FollowParents resolves symbolic links among the directories of a path,
	// with the destination as the root, as layers expect that put lib/x where a
	// lower layer has lib -> usr/lib. Otherwise such a path is refused.
	FollowParents bool
	// Whiteouts applies the whiteouts and opaque directories of OCI layers to
	// what was in the destination before. See the section "Whiteouts" of
	// https://github.com/opencontainers/image-spec/blob/main/layer.md.
	Whiteouts bool
	// Unterminated accepts streams without the two zero blocks that end an
	// archive. Otherwise such a stream counts as cut off; pass true when
	// something else tells whether it is whole, such as a digest.
	Unterminated bool
}

// Owner is a user and a group id.
type Owner struct{ UID, GID int }

// Limits that apply where Options are silent.
const (
	DefaultMaxBytes = 64 << 30
	DefaultMaxFiles = 4_000_000
	maxPath         = 4095 // PATH_MAX without the final NUL
	maxID           = 65535
)

// Stats count what Extract did.
type Stats struct {
	Files   int   // entries, and directories made for them
	Bytes   int64 // of file contents, holes included
	Removed int   // by whiteouts
	Skipped int   // device nodes left out
	Dropped int   // extended attributes left out: security.*, system.*, and all of links and pipes
}

// entryError is an error about one entry of the stream.
func entryError(name, format string, args ...any) *mayfly.Error {
	e := mayfly.Errorf(mayfly.Invalid, format, args...)
	return mayfly.Errorf(mayfly.Invalid, "archive entry %.200q: %w", name, e).
		Hint("the archive is damaged or hostile; make it anew from a source that you trust")
}

func limitError(what string, limit int64) error {
	return mayfly.Errorf(mayfly.Exhausted, "the archive has more than %d %s", limit, what).
		Hint("make it smaller; it may also be a decompression bomb")
}

// clamp keeps times within what every file system can hold.
func clamp(t time.Time) time.Time {
	if t.Unix() < 0 {
		return time.Unix(0, 0)
	}
	if last := time.Unix(1<<33, 0); t.After(last) {
		return last
	}
	return t
}
