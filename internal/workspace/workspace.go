// Package workspace is the client's side of an environment's files: it reads
// a source directory or git repository, names its state by a digest, streams
// it, and brings a change back.
//
// # What a workspace contains
//
// In a git repository: the files of the whole work tree, whichever
// subdirectory was named, tracked and untracked but not ignored, as they are
// on disk; or, on request, the files of a commit as git stores them. Files of
// submodules and of nested repositories are taken, their histories are not.
// Elsewhere: everything but editors' and desktops' droppings.
//
// # What the digest means
//
// The digest is the SHA-256 of a header and one record per file, sorted by
// path: mode (100644, 100755 or 120000), git blob id, path. The blob id is
// that of the bytes which get into the environment. For a tracked file that
// git reports as unmodified, it is taken from git's index without reading the
// file, unless an attribute or setting (filter, ident, text, eol, autocrlf,
// working-tree-encoding) makes the bytes on disk differ from those in git:
// such files are read. Streaming reads every file and compares, so what is
// sent is what was named. A repository that uses SHA-1 is trusted as far as
// git trusts SHA-1. The lock file is not part of the digest, as it holds the
// digest; it is part of the stream.
package workspace

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mayfly.dev/mayfly"
)

// LockFile is the default of Options.LockFile.
const LockFile = "mayfly.lock"

// FixedEpoch stands for a commit's time where there is no commit: the first
// second of 1980, which is also the first that a zip archive can hold.
const FixedEpoch = 315532800

// Options say what to take. The zero value takes the commit that is checked
// out, without what has not been committed.
type Options struct {
	// Uncommitted takes the files as they are on disk, with modified and
	// untracked but not ignored ones. Outside git it has no meaning.
	Uncommitted bool
	// Commit takes the files of this revision instead. It excludes
	// Uncommitted.
	Commit string
	// Depth is how many commits of history go along; 0 means all.
	Depth int
	// Pin chooses the files whose digests Lock returns, by their paths relative
	// to the workspace root with slashes.
	Pin func(path string) bool
	// LockFile is mayfly's own lock, relative to the workspace root with
	// slashes, which is left out of the digest. Empty means LockFile.
	LockFile string
}

// Source is a workspace as it was when it was opened.
type Source struct {
	root    string
	dir     string
	repo    *repository // nil outside git
	opts    Options
	format  string // object format of blob ids
	commit  string
	tree    string // of the commit
	branch  string
	epoch   int64
	files   []file   // sorted by path
	dirs    []string // to be made even if nothing is in them
	absent  []string // paths that a sparse checkout leaves out
	blobs   bool     // contents come from git's objects, not from the disk
	pending int      // how many paths differ from the commit
	digest  string
	pins    map[string]string
	notes   []string
}

// file is one file or symbolic link of a workspace.
type file struct {
	path  string
	mode  uint32
	id    string // blob id of the bytes that get into the environment
	clean bool   // git regards it as equal to the commit's
}

// Open reads the state of the workspace that holds dir. A bare repository, an
// unknown revision or an unreadable file is an error of kind mayfly.Invalid; a
// file that keeps changing is one of kind mayfly.Conflict.
func Open(ctx context.Context, dir string, o Options) (*Source, error) {
	if o.Commit != "" && o.Uncommitted {
		return nil, mayfly.Errorf(mayfly.Invalid, "a commit and uncommitted changes exclude each other").
			Hint("leave out one of the two")
	}
	if o.Depth < 0 {
		return nil, mayfly.Errorf(mayfly.Invalid, "bad history depth %d", o.Depth).Hint("0 means all of it")
	}
	if o.LockFile == "" {
		o.LockFile = LockFile
	}
	dir, err := realDirectory(dir)
	if err != nil {
		return nil, err
	}
	repo, err := find(dir)
	if err != nil {
		return nil, err
	}
	s := &Source{root: dir, repo: repo, opts: o, format: "sha256", epoch: FixedEpoch}
	if repo == nil {
		err = s.readPlain(ctx)
	} else {
		err = s.readGit(ctx, dir)
	}
	if err != nil {
		return nil, err
	}
	return s, s.seal(ctx)
}

func realDirectory(dir string) (string, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return "", fmt.Errorf("workspace: %w", err)
	}
	at, err := filepath.EvalSymlinks(abs)
	if err != nil {
		return "", mayfly.Errorf(mayfly.NotFound, "workspace %s: %w", abs, err).Hint("name a directory that exists")
	}
	st, err := os.Stat(at)
	if err != nil {
		return "", mayfly.Errorf(mayfly.NotFound, "workspace %s: %w", abs, err).Hint("name a directory that exists")
	}
	if !st.IsDir() {
		return "", mayfly.Errorf(mayfly.Invalid, "workspace: %s is not a directory", abs).Hint("name the directory that holds it")
	}
	return at, nil
}

// seal computes what the lock says once the files are known.
func (s *Source) seal(ctx context.Context) error {
	slices.SortFunc(s.files, func(a, b file) int { return strings.Compare(a.path, b.path) })
	h := sha256.New()
	fmt.Fprintf(h, "mayfly workspace 1 %s\n", s.format)
	var line []byte
	for _, f := range s.files {
		if f.path == s.opts.LockFile {
			continue
		}
		line = append(line[:0], modeName(f.mode)...)
		line = append(append(line, ' '), f.id...)
		line = append(append(append(line, '\t'), f.path...), 0)
		h.Write(line)
	}
	s.digest = "sha256:" + hex.EncodeToString(h.Sum(nil))
	return s.pinFiles(ctx)
}

func modeName(mode uint32) string {
	switch mode {
	case modeExecutable:
		return "100755"
	case modeLink:
		return "120000"
	}
	return "100644"
}

// pinFiles hashes the files that Options.Pin chooses.
func (s *Source) pinFiles(ctx context.Context) error {
	s.pins = map[string]string{}
	if s.opts.Pin == nil {
		return nil
	}
	var found []file
	for _, f := range s.files {
		if f.mode != modeLink && s.opts.Pin(f.path) {
			found = append(found, f)
		}
	}
	return s.contents(ctx, found, func(f file, c content) error {
		h := sha256.New()
		if err := c.copyTo(h); err != nil {
			return err
		}
		s.pins[f.path] = "sha256:" + hex.EncodeToString(h.Sum(nil))
		return nil
	})
}

// Lock is what mayfly.lock says of the workspace, and the SHA-256 digests of
// the files that Options.Pin chose, by path.
func (s *Source) Lock() (mayfly.LockedWorkspace, map[string]string) {
	n := len(s.files)
	if _, ok := s.find(s.opts.LockFile); ok {
		n--
	}
	return mayfly.LockedWorkspace{Commit: s.commit, Digest: s.digest, Files: n, Uncommitted: s.pending, Depth: s.opts.Depth}, s.pins
}

func (s *Source) find(path string) (file, bool) {
	i, ok := slices.BinarySearchFunc(s.files, path, func(f file, p string) int { return strings.Compare(f.path, p) })
	if !ok {
		return file{}, false
	}
	return s.files[i], true
}

// Root is the absolute directory whose content is the workspace.
func (s *Source) Root() string { return s.root }

// Dir is the directory that was named when opening, relative to Root with
// slashes; "." for Root itself.
func (s *Source) Dir() string { return s.dir }

// Git reports whether the workspace is a git repository.
func (s *Source) Git() bool { return s.repo != nil }

// Commit is the commit that the workspace starts from; empty outside git and
// before the first commit.
func (s *Source) Commit() string { return s.commit }

// Branch is the checked out branch; empty when there is none.
func (s *Source) Branch() string { return s.branch }

// Epoch is the commit's time in seconds since 1970, FixedEpoch without one.
func (s *Source) Epoch() int64 { return s.epoch }

// Notes are remarks for the user: what was left out and why. WriteTar may add
// some: git does not mention FIFOs, sockets and devices.
func (s *Source) Notes() []string { return s.notes }

func (s *Source) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(s.notes, n) {
		s.notes = append(s.notes, n)
	}
}

// noteSome adds one remark about several paths and names the first few.
func (s *Source) noteSome(what string, paths []string) {
	if len(paths) == 0 {
		return
	}
	const most = 5
	var names []string
	for _, p := range paths[:min(most, len(paths))] {
		names = append(names, visible(p))
	}
	more := ""
	if len(paths) > most {
		more = fmt.Sprintf(" and %d more", len(paths)-most)
	}
	s.note("%s: %s%s", what, strings.Join(names, ", "), more)
}

// visible shows a path on one line, quoted when it holds anything odd.
func visible(p string) string {
	q := fmt.Sprintf("%q", p)
	if q[1:len(q)-1] == p && !strings.ContainsAny(p, " ,") {
		return p
	}
	return q
}
