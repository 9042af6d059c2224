package workspace

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
)

// errOtherIndex says that an index is of a sort that is left to git.
var errOtherIndex = errors.New("not a plain index")

// maxIndex bounds how large an index is read here, in bytes.
const maxIndex = 256 << 20

// readIndex lists the tracked files from the index of a repository that uses
// SHA-1, without the process that git ls-files is.
func (r *repository) readIndex() ([]treeEntry, error) {
	b, err := readSmall(filepath.Join(r.gitDir, "index"), maxIndex)
	if err != nil {
		return nil, err
	}
	return parseIndex(b)
}

// Sizes and flags of an index entry; see gitformat-index(5).
const (
	indexIDAt     = 40
	indexFlagsAt  = indexIDAt + 20
	indexPathAt   = indexFlagsAt + 2
	indexModeAt   = 24
	assumeValid   = 0x8000
	extendedFlags = 0x4000
	stageMask     = 0x3000
	skipWorktree  = 0x4000 // of the extended flags
)

// parseIndex reads versions 2 and 3 without extensions that change what the
// entries mean. Everything else is errOtherIndex.
func parseIndex(b []byte) ([]treeEntry, error) {
	if len(b) < 12+20 || string(b[:4]) != "DIRC" {
		return nil, errOtherIndex
	}
	version, n := binary.BigEndian.Uint32(b[4:]), int(binary.BigEndian.Uint32(b[8:]))
	if version != 2 && version != 3 || n > len(b)/indexPathAt {
		return nil, errOtherIndex
	}
	rest := b[12 : len(b)-20]
	entries := make([]treeEntry, 0, n)
	for range n {
		e, size, err := parseIndexEntry(rest, version)
		if err != nil {
			return nil, err
		}
		rest = rest[size:]
		if last := len(entries) - 1; e.merging && last >= 0 && entries[last].path == e.path {
			continue
		}
		entries = append(entries, e)
	}
	return entries, checkExtensions(rest)
}

func parseIndexEntry(b []byte, version uint32) (e treeEntry, size int, err error) {
	if len(b) < indexPathAt {
		return e, 0, errOtherIndex
	}
	flags, at := binary.BigEndian.Uint16(b[indexFlagsAt:]), indexPathAt
	var more uint16
	if flags&extendedFlags != 0 {
		if version < 3 || len(b) < at+2 {
			return e, 0, errOtherIndex
		}
		more = binary.BigEndian.Uint16(b[at:])
		at += 2
	}
	length := bytes.IndexByte(b[at:], 0)
	size = (at + length + 8) &^ 7 // one to eight NULs
	if length < 0 || size > len(b) {
		return e, 0, errOtherIndex
	}
	mode := fmt.Sprintf("%o", binary.BigEndian.Uint32(b[indexModeAt:]))
	e, err = newTreeEntry(mode, hex.EncodeToString(b[indexIDAt:indexFlagsAt]), string(b[at:at+length]))
	if err != nil {
		return e, 0, fmt.Errorf("git index: %w", err)
	}
	e.absent = more&skipWorktree != 0
	e.trusted = flags&assumeValid == 0
	e.merging = flags&stageMask != 0
	return e, size, nil
}

// checkExtensions refuses extensions that a reader must understand, whose
// names begin with a small letter: split and sparse indexes.
func checkExtensions(b []byte) error {
	for len(b) > 0 {
		if len(b) < 8 || b[0] < 'A' || b[0] > 'Z' {
			return errOtherIndex
		}
		size := uint64(binary.BigEndian.Uint32(b[4:]))
		if size > uint64(len(b)-8) {
			return errOtherIndex
		}
		b = b[8+size:]
	}
	return nil
}
