package workspace

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"sort"
	"time"

	"golang.org/x/sync/errgroup"

	"mayfly.dev/mayfly"
)

// Owner of everything in a stream.
const (
	owner = 1000
	group = 1000
)

// WriteTar streams the workspace as a tar archive whose paths are relative to
// the workspace root: directories before what they hold, files with modes
// 0644 and 0755, links as data, and in a git repository a new .git at the end
// (see gitDir). Every time is that of the commit, but for .git/index, which is
// two seconds younger, because git reads a file again that is not older than
// its index. A file that no longer has the content that the digest names is an
// error of kind mayfly.Conflict; what was written by then is of no use.
//
// The same source gives the same bytes, as long as the repository's packs are
// the same: deltas are taken from them as they are.
func (s *Source) WriteTar(ctx context.Context, w io.Writer) error {
	t := &archive{w: tar.NewWriter(w), at: s.epoch, made: map[string]bool{"": true}}
	var dot *gitDir
	if s.repo != nil {
		var err error
		if dot, err = newGitDir(s); err != nil {
			return err
		}
		defer dot.Close()
	}
	sizes := make(map[string]int64, len(s.files)) // git's index holds the size of every file
	g, gctx := errgroup.WithContext(ctx)
	if dot != nil {
		g.Go(func() error { return dot.prepare(gctx) })
	}
	g.Go(func() error {
		err := s.contents(gctx, s.files, func(f file, c content) error {
			if dot != nil {
				sizes[f.path] = c.size
			}
			return t.file(f, c)
		})
		if err != nil {
			return err
		}
		for _, dir := range s.dirs {
			if err := t.directory(dir); err != nil {
				return err
			}
		}
		return s.noteSpecial(t.made)
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if dot != nil {
		if err := dot.write(t, sizes); err != nil {
			return err
		}
	}
	return t.w.Close()
}

// noteSpecial looks for FIFOs, sockets and devices, of which git says nothing,
// in the directories that hold files of the workspace.
func (s *Source) noteSpecial(dirs map[string]bool) error {
	if s.repo == nil || s.blobs {
		return nil
	}
	root, err := os.OpenRoot(s.root)
	if err != nil {
		return err
	}
	defer root.Close()
	var special []string
	for _, dir := range sortedKeys(dirs) {
		list, err := readDirectory(root, path.Join(".", dir))
		if err != nil {
			continue // what matters of it has been read
		}
		for _, e := range list {
			if e.Type()&(fs.ModeNamedPipe|fs.ModeSocket|fs.ModeDevice) != 0 {
				special = append(special, path.Join(dir, e.Name()))
			}
		}
	}
	s.noteSome("not files, directories or links, left out", special)
	return nil
}

// archive writes entries of a reproducible tar stream.
type archive struct {
	w    *tar.Writer
	at   int64 // seconds since 1970, of every entry
	made map[string]bool
}

func (t *archive) header(name string, kind byte, mode int64) *tar.Header {
	return &tar.Header{
		Typeflag: kind, Name: name, Mode: mode, Uid: owner, Gid: group,
		ModTime: time.Unix(t.at, 0),
	}
}

// parents writes the directories above name that are not there yet.
func (t *archive) parents(name string) error {
	if dir := path.Dir(name); dir != "." {
		return t.directory(dir)
	}
	return nil
}

func (t *archive) directory(name string) error {
	if t.made[name] {
		return nil
	}
	t.made[name] = true
	if err := t.parents(name); err != nil {
		return err
	}
	return t.w.WriteHeader(t.header(name+"/", tar.TypeDir, 0o755))
}

func (t *archive) file(f file, c content) error {
	if err := t.parents(f.path); err != nil {
		return err
	}
	if f.mode == modeLink {
		return t.link(f, c)
	}
	mode := int64(0o644)
	if f.mode == modeExecutable {
		mode = 0o755
	}
	h := t.header(f.path, tar.TypeReg, mode)
	h.Size = c.size
	if err := t.w.WriteHeader(h); err != nil {
		return fmt.Errorf("write %s: %w", visible(f.path), err)
	}
	return c.copyTo(t.w)
}

// maxTarget is longer than the target of any link that a kernel makes.
const maxTarget = 4096

func (t *archive) link(f file, c content) error {
	var to bytes.Buffer
	if c.size <= maxTarget {
		if err := c.copyTo(&to); err != nil {
			return err
		}
	}
	if to.Len() == 0 || bytes.IndexByte(to.Bytes(), 0) >= 0 {
		return mayfly.Errorf(mayfly.Invalid, "%s is a link with a target that no file system can hold", visible(f.path)).
			Hint("remove it from the repository")
	}
	h := t.header(f.path, tar.TypeSymlink, 0o777)
	h.Linkname = to.String()
	return t.w.WriteHeader(h)
}

// bytes writes a small file.
func (t *archive) bytes(name string, mode int64, content []byte) error {
	h := t.header(name, tar.TypeReg, mode)
	h.Size = int64(len(content))
	if err := t.parents(name); err != nil {
		return err
	}
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	_, err := t.w.Write(content)
	return err
}

// sortedKeys is for output that must not depend on the order of a map.
func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
