package workspace

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Agent is who commits inside an environment.
const (
	AgentName  = "mayfly agent"
	AgentEmail = "agent@mayfly.invalid"
)

// gitDir makes the .git of an environment: HEAD on the same branch, the
// history of that branch in one pack, and an index that says that files equal
// to the commit's are so without reading them. Nothing else of the user's
// repository gets in: no other branches, tags, stashes, unreachable objects,
// remotes, hooks, settings or logs.
type gitDir struct {
	s       *Source
	tmp     string
	pack    string // base name without extension; empty without a commit
	shallow []string
	files   []treeEntry // of the commit
	trees   []treeEntry
}

func newGitDir(s *Source) (*gitDir, error) {
	tmp, err := os.MkdirTemp("", "mayfly-git-")
	if err != nil {
		return nil, fmt.Errorf("spool the history: %w", err)
	}
	return &gitDir{s: s, tmp: tmp}, nil
}

func (g *gitDir) Close() error { return os.RemoveAll(g.tmp) }

// prepare packs the history and lists the commit's tree.
func (g *gitDir) prepare(ctx context.Context) error {
	if g.s.commit == "" {
		return nil
	}
	eg, ctx := errgroup.WithContext(ctx)
	eg.Go(func() error { return g.packHistory(ctx) })
	eg.Go(func() error { return g.listTree(ctx) })
	return eg.Wait()
}

func (g *gitDir) listTree(ctx context.Context) error {
	r := g.s.repo
	out, err := r.output(ctx, "ls-tree", "-r", "-t", "-z", "--full-tree", g.s.commit)
	if err != nil {
		return err
	}
	g.files, g.trees, err = parseListTree(out)
	return err
}

func (g *gitDir) packHistory(ctx context.Context) error {
	if err := g.findShallow(ctx); err != nil {
		return err
	}
	cmd := g.s.repo.command(ctx, "-c", "core.commitGraph=false", "-c", "core.fsync=none", "pack-objects", "--quiet", "--revs",
		"--threads=1", "--delta-base-offset", filepath.Join(g.tmp, "pack"))
	var in strings.Builder
	for _, id := range g.shallow {
		in.WriteString("--shallow " + id + "\n")
	}
	in.WriteString(g.s.commit + "\n")
	cmd.Stdin = strings.NewReader(in.String())
	out, err := g.s.repo.outputOf(ctx, cmd)
	if err != nil {
		return fmt.Errorf("pack the history: %w", err)
	}
	id := strings.TrimSuffix(string(out), "\n")
	if !isObjectID(id) {
		return fmt.Errorf("pack the history: git pack-objects: unexpected output %q", out)
	}
	g.pack = "pack-" + id
	return nil
}

// findShallow finds the commits whose parents stay behind: because of
// Options.Depth, or because the source is a shallow clone itself.
func (g *gitDir) findShallow(ctx context.Context) error {
	known := map[string]bool{}
	b, err := readSmall(filepath.Join(g.s.repo.commonDir, "shallow"), 64<<20)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for line := range strings.FieldsSeq(string(b)) {
		known[line] = true
	}
	if len(known) == 0 && g.s.opts.Depth == 0 {
		return nil
	}
	args := []string{"rev-list", "--parents"}
	if n := g.s.opts.Depth; n > 0 {
		args = append(args, fmt.Sprintf("--max-count=%d", n))
	}
	out, err := g.s.repo.output(ctx, append(args, g.s.commit)...)
	if err != nil {
		return err
	}
	parents := map[string][]string{}
	for line := range strings.Lines(string(out)) {
		if f := strings.Fields(line); len(f) > 0 {
			parents[f[0]] = f[1:]
		}
	}
	for id, ps := range parents {
		cut := slices.ContainsFunc(ps, func(p string) bool { _, in := parents[p]; return !in })
		if cut || known[id] {
			g.shallow = append(g.shallow, id)
		}
	}
	slices.Sort(g.shallow)
	return nil
}

// write adds .git to the archive. sizes are those of the files in it.
func (g *gitDir) write(t *archive, sizes map[string]int64) error {
	for _, dir := range []string{".git/objects/info", ".git/objects/pack", ".git/refs/heads", ".git/refs/tags", ".git/info"} {
		if err := t.directory(dir); err != nil {
			return err
		}
	}
	head := g.s.commit + "\n"
	if g.s.branch != "" {
		head = "ref: refs/heads/" + g.s.branch + "\n"
	}
	small := map[string]string{"HEAD": head, "config": g.config()}
	if g.s.branch != "" && g.s.commit != "" {
		small["packed-refs"] = "# pack-refs with: peeled fully-peeled sorted \n" +
			g.s.commit + " refs/heads/" + g.s.branch + "\n"
	}
	if len(g.shallow) > 0 {
		small["shallow"] = strings.Join(g.shallow, "\n") + "\n"
	}
	for _, name := range sortedKeys(small) {
		if err := t.bytes(".git/"+name, 0o644, []byte(small[name])); err != nil {
			return err
		}
	}
	if g.s.commit == "" {
		return nil
	}
	for _, ext := range []string{".pack", ".idx"} {
		if err := g.writePack(t, g.pack+ext); err != nil {
			return err
		}
	}
	return g.writeIndex(t, sizes)
}

// config makes git trust size and seconds of a file's times, the only parts of
// its state that are the same in every copy of the environment, and keeps it
// from repacking in the background.
func (g *gitDir) config() string {
	version, extensions := "0", ""
	if g.s.format == "sha256" {
		version, extensions = "1", "[extensions]\n\tobjectformat = sha256\n"
	}
	return "[core]\n\trepositoryformatversion = " + version + "\n\tfilemode = true\n\tbare = false\n" +
		"\tlogallrefupdates = true\n\tcheckstat = minimal\n\ttrustctime = false\n" + extensions +
		"[gc]\n\tauto = 0\n[maintenance]\n\tauto = false\n" +
		"[user]\n\tname = " + AgentName + "\n\temail = " + AgentEmail + "\n"
}

func (g *gitDir) writePack(t *archive, name string) error {
	f, err := os.Open(filepath.Join(g.tmp, name))
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	h := t.header(".git/objects/pack/"+name, tar.TypeReg, 0o444)
	h.Size = st.Size()
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(t.w, f)
	return err
}

func (g *gitDir) writeIndex(t *archive, sizes map[string]int64) error {
	f, err := os.Create(filepath.Join(g.tmp, "index"))
	if err != nil {
		return err
	}
	defer f.Close()
	if err := g.index(f, sizes); err != nil {
		return fmt.Errorf("make the index: %w", err)
	}
	size, err := f.Seek(0, io.SeekCurrent)
	if err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	h := t.header(".git/index", tar.TypeReg, 0o644)
	h.Size = size
	h.ModTime = time.Unix(t.at+2, 0)
	if err := t.w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.Copy(t.w, f)
	return err
}

// index writes a git index (gitformat-index(5), version 3 for the entries that
// a sparse checkout leaves out, else 2) of the commit's tree. Files that are
// equal to the commit's carry the size and time that they have in the archive,
// all others zeros, which make git read them.
func (g *gitDir) index(w io.Writer, sizes map[string]int64) error {
	absent := map[string]bool{}
	for _, p := range g.s.absent {
		absent[p] = true
	}
	version := uint32(2)
	if len(absent) > 0 {
		version = 3
	}
	h := newHash(g.s.format)
	out := bufio.NewWriterSize(io.MultiWriter(w, h), 64<<10)
	head := append([]byte("DIRC"), 0, 0, 0, 0, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(head[4:], version)
	binary.BigEndian.PutUint32(head[8:], uint32(len(g.files)))
	out.Write(head)
	var b []byte
	for _, e := range g.files {
		size, at := int64(0), int64(0)
		if f, ok := g.s.find(e.path); ok && e.mode == f.mode && (f.clean || f.id == e.id) {
			size, at = sizes[e.path], g.s.epoch
		}
		b = appendIndexEntry(b[:0], e, size, at, absent[e.path])
		out.Write(b)
	}
	tree := g.treeExtension()
	binary.BigEndian.PutUint32(head[4:], uint32(len(tree)))
	out.WriteString("TREE")
	out.Write(head[4:8])
	out.Write(tree)
	if err := out.Flush(); err != nil {
		return err
	}
	_, err := w.Write(h.Sum(nil))
	return err
}

func appendIndexEntry(b []byte, e treeEntry, size, at int64, absent bool) []byte {
	put := func(v uint32) { b = binary.BigEndian.AppendUint32(b, v) }
	for _, v := range []uint32{uint32(at), 0, uint32(at), 0, 0, 0} { // ctime, mtime, device, inode
		put(v)
	}
	put(e.mode)
	put(0) // owner
	put(0) // group
	put(uint32(size))
	b = append(b, unhex(e.id)...)
	flags := uint16(min(len(e.path), 0xfff))
	if absent {
		b = binary.BigEndian.AppendUint16(b, flags|0x4000) // extended
		b = binary.BigEndian.AppendUint16(b, 0x4000)       // skip-worktree
	} else {
		b = binary.BigEndian.AppendUint16(b, flags)
	}
	b = append(b, e.path...)
	for range 8 - len(b)%8 { // one to eight NULs
		b = append(b, 0)
	}
	return b
}

// treeExtension caches the tree ids, so that git status need not read a tree.
func (g *gitDir) treeExtension() []byte {
	children := map[string][]treeEntry{}
	for _, e := range g.trees {
		dir, _ := splitPath(e.path)
		children[dir] = append(children[dir], e)
	}
	files := map[string]int{} // in and below a directory
	for _, e := range g.files {
		for dir, _ := splitPath(e.path); ; dir, _ = splitPath(dir) {
			files[dir]++
			if dir == "" {
				break
			}
		}
	}
	var b []byte
	var add func(dir, name, id string)
	add = func(dir, name, id string) {
		b = append(append(b, name...), 0)
		b = fmt.Appendf(b, "%d %d\n", files[dir], len(children[dir]))
		b = append(b, unhex(id)...)
		for _, c := range children[dir] {
			_, base := splitPath(c.path)
			add(c.path, base, c.id)
		}
	}
	add("", "", g.s.tree)
	return b
}

func splitPath(p string) (dir, base string) {
	if i := strings.LastIndexByte(p, '/'); i >= 0 {
		return p[:i], p[i+1:]
	}
	return "", p
}
