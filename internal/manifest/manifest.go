// Package manifest reads mayfly.yaml, pins what it names in mayfly.lock, and
// says what has drifted since.
package manifest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
)

// File and LockFile are the names that mayfly looks for in the directory of a
// repository.
const (
	File     = "mayfly.yaml"
	LockFile = "mayfly.lock"
)

// MaxBytes bounds the size of a manifest and of a lock.
const MaxBytes = 1 << 20

// Manifest is what a repository says about its environments, with defaults in
// place of what it leaves out. docs/manifest.md describes every field.
type Manifest struct {
	Path      string // of the file, as in error messages; empty when there is none
	Dir       string // where it lies: relative paths in it start here
	Name      string
	Base      Base
	Workspace Workspace
	Lockfiles []string // patterns, see IsLockfile; nil for the well-known names
	Setup     []string // shell commands, in order
	Env       map[string]string
	Seed      uint64
	Limits    mayfly.Limits // effective: no field is zero
	TTL       time.Duration
	Idle      time.Duration
	Nested    bool                  // let agents make user namespaces of their own
	Model     string                // entry of the model registry that runs are meant to use: NAME or NAME@VERSION
	Exact     mayfly.ExactRecording // what becomes of what redaction takes out of recordings
	// Services are sorted by name. The SQL of a Postgres is patterns still, and
	// its Files are missing.
	Services []mayfly.LockedService
}

// BaseKind says where the root filesystem comes from.
type BaseKind string

const (
	HostBase  BaseKind = "host"
	ImageBase BaseKind = "image"
)

// Base is the root filesystem below the workspace.
type Base struct {
	Kind BaseKind
	// Image is the reference as written: a registry reference, or a path after
	// "oci:", "oci-archive:" or "docker-archive:".
	Image string
}

// Workspace says which part of the repository comes along.
type Workspace struct {
	Uncommitted bool // changes that are not committed, and new files that are not ignored
	Depth       int  // commits of history that go along; 0 means all
}

// transports are the prefixes of image references that name a path.
var transports = []string{"oci:", "oci-archive:", "docker-archive:"}

// ImageReference is the image's reference with a relative path made relative
// to the manifest's directory instead of the working directory.
func (m Manifest) ImageReference() string {
	for _, t := range transports {
		if p, ok := strings.CutPrefix(m.Base.Image, t); ok && !filepath.IsAbs(p) {
			return t + filepath.Join(m.Dir, p)
		}
	}
	return m.Base.Image
}

// Load reads the manifest of a directory. Without one it returns the
// defaults, with a name made from the directory's. Every error names the
// file; those about its content also the line and column.
func Load(dir string) (Manifest, error) {
	path := filepath.Join(dir, File)
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		if other := filepath.Join(dir, "mayfly.yml"); exists(other) {
			return Manifest{}, mayfly.Errorf(mayfly.Invalid, "%s is not read: the manifest's name is %s", other, File).
				Hint("rename it: mv %s %s", other, path)
		}
		m := defaults(dir)
		return m, nil
	}
	if err != nil {
		return Manifest{}, err
	}
	return parse(path, dir, data)
}

// Parse reads a manifest from memory; name stands for it in error messages
// and its directory gives the default name.
func Parse(name string, data []byte) (Manifest, error) {
	return parse(name, filepath.Dir(name), data)
}

func parse(path, dir string, data []byte) (Manifest, error) {
	m := defaults(dir)
	m.Path = path
	root, err := parseYAML(path, data)
	if err != nil || root == nil {
		return m, err
	}
	d := decoder{file: path}
	d.manifest(root, &m)
	if d.err != nil {
		return Manifest{}, d.err
	}
	return m, nil
}

func defaults(dir string) Manifest {
	return Manifest{
		Dir:       dir,
		Name:      nameOf(dir),
		Base:      Base{Kind: HostBase},
		Workspace: Workspace{Uncommitted: true},
		Limits:    mayfly.DefaultLimits,
		TTL:       mayfly.DefaultTTL,
		Idle:      mayfly.DefaultIdle,
		Exact:     mayfly.ExactEncrypted,
	}
}

// nameOf makes a valid name from a directory's: lower case, with a dash for
// each run of other characters.
func nameOf(dir string) string {
	if abs, err := filepath.Abs(dir); err == nil {
		dir = abs
	}
	var b strings.Builder
	for _, c := range strings.ToLower(filepath.Base(dir)) {
		switch {
		case c >= 'a' && c <= 'z' || c >= '0' && c <= '9':
			b.WriteRune(c)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() == 63 {
			break
		}
	}
	if name := strings.Trim(b.String(), "-"); name != "" {
		return name
	}
	return "workspace"
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// readFile reads a small regular file and nothing else: it neither waits for
// the writer of a pipe nor reads a device.
func readFile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	switch {
	case errors.Is(err, syscall.ELOOP):
		return nil, mayfly.Errorf(mayfly.Invalid, "%s is a symbolic link that leads to itself", path).
			Hint("remove it: rm %s", path)
	case errors.Is(err, fs.ErrPermission):
		return nil, mayfly.Errorf(mayfly.Invalid, "%s may not be read: %w", path, err).
			Hint("make it readable: chmod u+r %s", path)
	case errors.Is(err, syscall.ENXIO): // a socket
		return nil, notAFile(path, fs.ModeSocket)
	case err != nil:
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, notAFile(path, info.Mode().Type())
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	if len(data) > MaxBytes {
		return nil, mayfly.Errorf(mayfly.Invalid, "%s has %d bytes, more than the %d that are read", path, max(info.Size(), int64(len(data))), MaxBytes).
			Hint("keep large content in files of the repository, and name them in setup commands")
	}
	return data, nil
}

func notAFile(path string, mode fs.FileMode) error {
	what := "a device"
	switch mode {
	case fs.ModeDir:
		what = "a directory"
	case fs.ModeNamedPipe:
		what = "a named pipe"
	case fs.ModeSocket:
		what = "a socket"
	}
	return mayfly.Errorf(mayfly.Invalid, "%s is %s, not a file", path, what).
		Hint("move it away, or write the file in its place")
}
