package diff

import (
	"context"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"strconv"

	"mayfly.dev/mayfly"
)

// HashOptions say what a digest covers.
type HashOptions struct {
	SkipGit bool // leave everything named .git out
}

// Hash is the digest ("sha256:…") of the tree at p, relative to root; "" and
// "." mean all of it. It covers types, permission bits, names, contents, link
// targets and device numbers of everything below p, but neither times, owners,
// extended attributes nor hard links, which differ between copies that a
// program could not tell apart, and not p's own name and permissions. The
// digest is the SHA-256 of one record per entry, in the order of a depth-first
// walk with names sorted by their bytes:
//
//	st_mode in octal, space, length of path, space, path, LF, 32 bytes
//
// The 32 bytes are the SHA-256 of a file's content, of a link's target or of a
// device's number in decimal, and zeros for everything else.
func Hash(ctx context.Context, root *os.Root, p string, o HashOptions) (string, error) {
	if p == "" {
		p = "."
	}
	top, err := root.Lstat(p)
	if errors.Is(err, fs.ErrNotExist) {
		return "", mayfly.Errorf(mayfly.NotFound, "no %s in the tree", Quote(p)).Hint("name a path that exists")
	}
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", Quote(p), err)
	}
	h := &hasher{sum: sha256.New(), buf: make([]byte, 128<<10)}
	if !top.IsDir() {
		h.tree = newTree(root, true)
		defer h.tree.close()
		n, err := h.tree.lookup(p)
		if err != nil {
			return "", err
		}
		if n == nil {
			return "", changedError(p)
		}
		if err := h.add("", p, n); err != nil {
			return "", err
		}
		return h.result(), nil
	}
	sub, err := root.OpenRoot(p)
	if err != nil {
		return "", fmt.Errorf("open %s: %w", Quote(p), err)
	}
	defer sub.Close()
	h.tree = newTree(sub, !o.SkipGit)
	defer h.tree.close()
	err = h.tree.walk(".", func(p string, n *node) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		return h.add(p, p, n)
	})
	if err != nil {
		return "", err
	}
	return h.result(), nil
}

type hasher struct {
	tree *tree
	sum  hash.Hash
	buf  []byte
}

func (h *hasher) result() string { return "sha256:" + hex.EncodeToString(h.sum.Sum(nil)) }

func (h *hasher) add(name, p string, n *node) error {
	var content [32]byte
	switch n.kind() {
	case typeFile:
		if err := h.file(p, &content); err != nil {
			return err
		}
	case typeLink:
		l, err := h.tree.lookup(p)
		if err != nil {
			return err
		}
		if !l.isLink() {
			return changedError(p)
		}
		content = sha256.Sum256([]byte(l.target))
	case typeChar, typeBlock:
		content = sha256.Sum256(strconv.AppendUint(nil, n.device, 10))
	}
	fmt.Fprintf(h.sum, "%06o %d %s\n", n.mode, len(name), name)
	h.sum.Write(content[:])
	return nil
}

func (h *hasher) file(p string, sum *[32]byte) error {
	f, err := h.tree.open(p)
	if err != nil {
		return err
	}
	defer f.Close()
	s := sha256.New()
	if _, err := io.CopyBuffer(s, struct{ io.Reader }{f}, h.buf); err != nil {
		return fmt.Errorf("read %s: %w", Quote(p), err)
	}
	s.Sum(sum[:0])
	return nil
}

// blobHash begins a git blob id.
func blobHash(format string, size int64) hash.Hash {
	h := sha1.New()
	if format == "sha256" {
		h = sha256.New()
	}
	fmt.Fprintf(h, "blob %d\x00", size)
	return h
}

// zeroID stands for a side that does not exist.
func zeroID(format string) string {
	return hex.EncodeToString(make([]byte, blobHash(format, 0).Size()))
}

func blobID(format string, b []byte) string {
	h := blobHash(format, int64(len(b)))
	h.Write(b)
	return hex.EncodeToString(h.Sum(nil))
}

// id is the blob id of what is at p.
func (t *tree) id(format, p string, n *node) (string, error) {
	if n.isLink() {
		return blobID(format, []byte(n.target)), nil
	}
	f, err := t.open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := blobHash(format, n.size)
	m, err := io.Copy(h, io.LimitReader(f, n.size+1))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", Quote(p), err)
	}
	if m != n.size {
		return "", changedError(p)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
