package workspace

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"io"
	"path/filepath"
	"strings"
)

// maxCommit bounds the size of a commit that is read here, in bytes.
const maxCommit = 1 << 20

// looseHead reads the commit that is checked out from a loose object, as new
// commits are, without a process of git's. ok is false when git has to look.
func (r *repository) looseHead() (c commitInfo, ok bool) {
	head, err := readSmall(filepath.Join(r.gitDir, "HEAD"), 4096)
	if err != nil {
		return c, false
	}
	id := strings.TrimSuffix(string(head), "\n")
	if ref, symbolic := strings.CutPrefix(id, "ref: "); symbolic {
		if !strings.HasPrefix(ref, "refs/heads/") || !filepath.IsLocal(ref) {
			return c, false
		}
		b, err := readSmall(filepath.Join(r.commonDir, ref), 4096)
		if err != nil {
			return c, false
		}
		id = strings.TrimSuffix(string(b), "\n")
	}
	body, err := r.looseCommit(id)
	if err != nil {
		return c, false
	}
	c, err = parseCommit(fmt.Appendf(nil, "%s commit %d\n%s", id, len(body), body))
	return c, err == nil && c.id != ""
}

// looseCommit returns the content of a commit whose SHA-1 name is id, and
// checks that it is.
func (r *repository) looseCommit(id string) ([]byte, error) {
	if !isObjectID(id) {
		return nil, fmt.Errorf("bad object id %q", id)
	}
	packed, err := readSmall(filepath.Join(r.commonDir, "objects", id[:2], id[2:]), maxCommit)
	if err != nil {
		return nil, err
	}
	z, err := zlib.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, err
	}
	object, err := io.ReadAll(io.LimitReader(z, maxCommit))
	if err != nil {
		return nil, err
	}
	header, body, _ := bytes.Cut(object, []byte{0})
	sum := sha1.Sum(object)
	if !bytes.HasPrefix(header, []byte("commit ")) || hex.EncodeToString(sum[:]) != id {
		return nil, fmt.Errorf("object %s is not what its name says", id)
	}
	return body, nil
}
