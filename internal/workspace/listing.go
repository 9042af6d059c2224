package workspace

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// File modes as git writes them.
const (
	modeFile       = 0o100644
	modeExecutable = 0o100755
	modeLink       = 0o120000
	modeSubmodule  = 0o160000
	modeTree       = 0o040000
)

// treeEntry is a line of git ls-tree or git ls-files.
type treeEntry struct {
	path string
	mode uint32
	id   string // object id in hexadecimal
	// Of ls-files only:
	absent  bool // left out by a sparse checkout
	trusted bool // git compares it with the disk; false for assume-unchanged
	merging bool // has conflicting stages
}

// parseListFiles reads git ls-files -s -v -z. An entry with conflicting
// stages comes once.
func parseListFiles(out []byte) ([]treeEntry, error) {
	entries := make([]treeEntry, 0, bytes.Count(out, []byte{0}))
	for len(out) > 0 {
		record, rest, ok := bytes.Cut(out, []byte{0})
		head, path, ok2 := strings.Cut(string(record), "\t")
		f := strings.Split(head, " ")
		if !ok || !ok2 || len(f) != 4 || len(f[0]) != 1 || len(f[3]) != 1 {
			return nil, fmt.Errorf("git ls-files: unexpected line %q", record)
		}
		out = rest
		e, err := newTreeEntry(f[1], f[2], path)
		if err != nil {
			return nil, fmt.Errorf("git ls-files: %w", err)
		}
		tag := f[0][0]
		e.absent = tag == 'S' || tag == 's'
		e.trusted = tag >= 'A' && tag <= 'Z'
		e.merging = f[3] != "0"
		if n := len(entries); e.merging && n > 0 && entries[n-1].path == path {
			continue
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// parseListTree reads git ls-tree -r -t -z; trees are returned apart, each
// before what it contains.
func parseListTree(out []byte) (files, trees []treeEntry, err error) {
	for len(out) > 0 {
		record, rest, ok := bytes.Cut(out, []byte{0})
		head, path, ok2 := strings.Cut(string(record), "\t")
		f := strings.Split(head, " ")
		if !ok || !ok2 || len(f) != 3 {
			return nil, nil, fmt.Errorf("git ls-tree: unexpected line %q", record)
		}
		out = rest
		e, err := newTreeEntry(f[0], f[2], path)
		if err != nil {
			return nil, nil, fmt.Errorf("git ls-tree: %w", err)
		}
		if e.mode == modeTree {
			trees = append(trees, e)
		} else {
			files = append(files, e)
		}
	}
	return files, trees, nil
}

func newTreeEntry(mode, id, path string) (treeEntry, error) {
	m, err := strconv.ParseUint(mode, 8, 32)
	if err != nil || !isObjectID(id) {
		return treeEntry{}, fmt.Errorf("unexpected entry %q %q", mode, id)
	}
	e := treeEntry{path: path, mode: uint32(m), id: id, trusted: true}
	if e.mode&0o170000 == 0o100000 { // histories of old hold 0100664
		e.mode = modeFile | e.mode&0o111
		if e.mode != modeFile {
			e.mode = modeExecutable
		}
	}
	switch e.mode {
	case modeFile, modeExecutable, modeLink, modeSubmodule, modeTree:
	default:
		return treeEntry{}, fmt.Errorf("%q has the unknown mode %o", path, e.mode)
	}
	return e, checkPath(path)
}

// checkPath refuses what cannot be a path inside a work tree.
func checkPath(path string) error {
	if path == "" || path[0] == '/' || strings.IndexByte(path, 0) >= 0 {
		return fmt.Errorf("bad path %q", path)
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "" || part == "." || part == ".." || strings.EqualFold(part, ".git") {
			return fmt.Errorf("bad path %q", path)
		}
	}
	return nil
}

func isObjectID(s string) bool {
	if len(s) != 40 && len(s) != 64 {
		return false
	}
	return strings.Trim(s, "0123456789abcdef") == ""
}

// status is what git status --porcelain=v2 says.
type status struct {
	head    string // commit, empty before the first one
	branch  string // empty when HEAD is detached
	changed map[string]statusEntry
	// untracked files; those that end in a slash are nested repositories
	untracked []string
}

type statusEntry struct {
	onDisk bool   // the file on disk differs from the index
	mode   uint32 // on disk; 0 when it is gone
}

var errStatus = errors.New("git status: unexpected output")

// parseStatus reads git status --porcelain=v2 --branch -z --no-renames.
func parseStatus(out []byte) (*status, error) {
	s := &status{changed: map[string]statusEntry{}}
	for len(out) > 0 {
		record, rest, ok := bytes.Cut(out, []byte{0})
		if !ok || len(record) < 2 || record[1] != ' ' {
			return nil, errStatus
		}
		out = rest
		text := string(record[2:])
		var err error
		switch record[0] {
		case '#':
			s.header(text)
		case '?':
			s.untracked = append(s.untracked, text)
			err = checkPath(strings.TrimSuffix(text, "/"))
		case '1': // XY sub mH mI mW hH hI path
			err = s.change(text, 7, 4)
		case 'u': // XY sub m1 m2 m3 mW h1 h2 h3 path
			err = s.change(text, 9, 5)
		case '!':
		default:
			err = errStatus
		}
		if err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *status) header(text string) {
	key, value, _ := strings.Cut(text, " ")
	switch key {
	case "branch.oid":
		if isObjectID(value) {
			s.head = value
		}
	case "branch.head":
		if value != "(detached)" {
			s.branch = value
		}
	}
}

// change reads a record of n fields and a path; the field at modeAt is the
// mode on disk.
func (s *status) change(text string, n, modeAt int) error {
	f := strings.SplitN(text, " ", n+1)
	if len(f) != n+1 || len(f[0]) != 2 {
		return errStatus
	}
	mode, err := strconv.ParseUint(f[modeAt], 8, 32)
	if err != nil {
		return errStatus
	}
	// In an unmerged record both letters speak of stages.
	s.changed[f[n]] = statusEntry{onDisk: f[0][1] != '.' || n == 9, mode: uint32(mode)}
	return checkPath(f[n])
}
