package workspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"mayfly.dev/mayfly"
)

// maxNesting bounds how deep repositories lie within repositories.
const maxNesting = 16

// readGit fills s from a repository.
func (s *Source) readGit(ctx context.Context, dir string) error {
	if s.repo.simple = s.repo.plain(); !s.repo.simple {
		if err := s.repo.loadConfig(ctx); err != nil {
			return fmt.Errorf("read workspace: %w", err)
		}
	}
	s.root = s.repo.root
	s.dir = "."
	if rel, err := filepath.Rel(s.root, dir); err == nil && filepath.IsLocal(rel) {
		s.dir = filepath.ToSlash(rel)
	}
	s.format = s.repo.objectFormat()
	read := s.readCommit
	if s.opts.Uncommitted {
		read = s.readWorkTree
	}
	if err := read(ctx); err != nil {
		return fmt.Errorf("read workspace: %w", err)
	}
	return nil
}

// readCommit takes the files of a commit as git stores them.
func (s *Source) readCommit(ctx context.Context) error {
	s.blobs = true
	rev := s.opts.Commit
	if rev == "" {
		rev = "HEAD"
	}
	c, err := s.repo.commit(ctx, rev)
	if err != nil {
		return err
	}
	if c.id == "" {
		return s.unknownRevision(rev)
	}
	s.commit, s.tree, s.epoch = c.id, c.tree, c.time
	head, err := s.repo.commit(ctx, "HEAD")
	if err != nil {
		return err
	}
	if head.id == c.id {
		s.branch = s.repo.branch(ctx)
	}
	out, err := s.repo.output(ctx, "ls-tree", "-r", "-t", "-z", "--full-tree", s.commit)
	if err != nil {
		return err
	}
	entries, _, err := parseListTree(out)
	if err != nil {
		return err
	}
	var submodules []string
	for _, e := range entries {
		if e.mode == modeSubmodule {
			submodules = append(submodules, e.path)
			s.dirs = append(s.dirs, e.path)
			continue
		}
		s.files = append(s.files, file{path: e.path, mode: e.mode, id: e.id, clean: true})
	}
	s.noteSome("submodules are not part of a commit's files and were left out", submodules)
	return nil
}

func (s *Source) unknownRevision(rev string) error {
	if s.opts.Commit == "" {
		return mayfly.Errorf(mayfly.Invalid, "%s has no commit yet", s.root).
			Hint("commit something, or include uncommitted files")
	}
	return mayfly.Errorf(mayfly.Invalid, "no commit %q in %s", rev, s.root).
		Hint("list them with: git -C %s log --oneline", shellQuote(s.root))
}

// branch is the checked out branch, empty when HEAD is detached.
func (r *repository) branch(ctx context.Context) string {
	out, err := r.output(ctx, "symbolic-ref", "-q", "HEAD")
	if err != nil {
		return ""
	}
	name, _ := strings.CutPrefix(strings.TrimSuffix(string(out), "\n"), "refs/heads/")
	return name
}

// commitInfo is a commit's id, the id of its tree, and the committer's time;
// the ids are empty when there is no such commit.
type commitInfo struct {
	id, tree string
	time     int64
}

// commit looks up a revision.
func (r *repository) commit(ctx context.Context, rev string) (commitInfo, error) {
	if strings.ContainsAny(rev, "\n\x00") {
		return commitInfo{}, nil
	}
	cmd := r.command(ctx, "cat-file", "--batch")
	cmd.Stdin = strings.NewReader(rev + "^{commit}\n")
	out, err := r.outputOf(ctx, cmd)
	if err != nil {
		return commitInfo{}, err
	}
	return parseCommit(out)
}

// parseCommit reads an answer of git cat-file --batch.
func parseCommit(out []byte) (commitInfo, error) {
	head, body, _ := bytes.Cut(out, []byte("\n"))
	f := strings.Fields(string(head))
	if len(f) != 3 || f[1] != "commit" || !isObjectID(f[0]) {
		return commitInfo{}, nil
	}
	header, _, _ := bytes.Cut(body, []byte("\n\n"))
	first, _, _ := bytes.Cut(header, []byte("\n"))
	tree := strings.TrimPrefix(string(first), "tree ")
	if !isObjectID(tree) {
		return commitInfo{}, errors.New("git cat-file: a commit without a tree")
	}
	for line := range bytes.SplitSeq(header, []byte("\n")) {
		if rest, ok := bytes.CutPrefix(line, []byte("committer ")); ok {
			words := strings.Fields(string(rest[bytes.LastIndexByte(rest, '>')+1:]))
			if len(words) == 0 {
				break
			}
			t, err := strconv.ParseInt(words[0], 10, 64)
			// Times before 1970 and after 9999 exist in odd histories only and
			// are none that a file could have everywhere.
			if err != nil || t < 0 || t > 253402300799 {
				t = FixedEpoch
			}
			return commitInfo{f[0], tree, t}, nil
		}
	}
	return commitInfo{}, errors.New("git cat-file: a commit without a committer")
}

// listing is what git says about one work tree.
type listing struct {
	repo    *repository
	status  *status
	tracked []treeEntry
	// attributes is set when attribute files could make git convert contents.
	attributes bool
}

// list asks git for the state of the work tree. The commands run beside each
// other; none of them writes.
func (r *repository) list(ctx context.Context) (*listing, error) {
	l := &listing{repo: r}
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		out, err := r.output(ctx, "status", "--porcelain=v2", "--branch", "-z", "--no-renames",
			"--no-ahead-behind", "--untracked-files=all", "--ignore-submodules=dirty")
		if err == nil {
			l.status, err = parseStatus(out)
		}
		return err
	})
	g.Go(func() (err error) {
		if l.tracked, err = r.tracked(ctx); err != nil {
			return err
		}
		l.attributes = r.hasConversionAttributes(l.tracked)
		return nil
	})
	return l, g.Wait()
}

// tracked lists the index.
func (r *repository) tracked(ctx context.Context) ([]treeEntry, error) {
	if r.simple {
		if entries, err := r.readIndex(); err == nil {
			return entries, nil
		}
	}
	out, err := r.output(ctx, "ls-files", "-s", "-v", "-z")
	if err != nil {
		return nil, err
	}
	return parseListFiles(out)
}

// listAndHead asks for the state of the work tree and the commit.
func (r *repository) listAndHead(ctx context.Context) (l *listing, head commitInfo, err error) {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		if loose, ok := r.looseHead(); ok && r.simple {
			head = loose
			return nil
		}
		head, err = r.commit(ctx, "HEAD")
		return err
	})
	g.Go(func() (err error) {
		l, err = r.list(ctx)
		return err
	})
	return l, head, g.Wait()
}

// readWorkTree takes the files as they are on disk.
func (s *Source) readWorkTree(ctx context.Context) error {
	l, head, err := s.repo.listAndHead(ctx)
	if err != nil {
		return err
	}
	if l.status.head != head.id {
		return mayfly.Errorf(mayfly.Conflict, "HEAD of %s moved while the workspace was read", s.root).
			Hint("try again when the other git command has ended")
	}
	s.commit, s.tree, s.branch = head.id, head.tree, l.status.branch
	if head.id != "" {
		s.epoch = head.time
	}
	w := &workTree{s: s, ctx: ctx}
	if err := w.take(l, "", 0); err != nil {
		return err
	}
	w.report()
	return nil
}

// workTree collects the files of a work tree and of the repositories in it.
type workTree struct {
	s          *Source
	ctx        context.Context
	special    []string // FIFOs, sockets, devices
	absolute   []string // links with absolute targets
	pointers   []string // LFS pointers without their content
	submodules []string
	empty      []string // submodules that are not checked out
	nested     []string
}

func (w *workTree) report() {
	w.s.noteSome("submodules were taken with their files but without their history", w.submodules)
	w.s.noteSome("submodules are not checked out and stay empty (git submodule update --init fetches them)", w.empty)
	w.s.noteSome("nested repositories were taken with their files but without their history", w.nested)
	w.s.noteSome("only LFS pointers are here instead of contents (git lfs pull fetches them)", w.pointers)
	w.s.noteSome("not files, directories or links, left out", w.special)
	w.s.noteSome("links with absolute targets point elsewhere inside an environment", w.absolute)
	if n := len(w.s.absent); n > 0 {
		w.s.note("sparse checkout: %d tracked files are not on disk and were left out", n)
	}
}

// take adds the files of one work tree, whose paths begin with prefix.
func (w *workTree) take(l *listing, prefix string, depth int) error {
	untracked, inner := l.status.untracked, []string(nil)
	var read []pendingFile
	foreign := l.repo.objectFormat() != w.s.format // its blob ids are of no use
	for _, e := range l.tracked {
		ch, changed := l.status.changed[e.path]
		f := file{path: prefix + e.path, mode: e.mode, id: e.id, clean: !changed}
		switch {
		case e.mode == modeSubmodule:
			if err := w.takeSubmodule(l, e.path, prefix, depth); err != nil {
				return err
			}
		case e.absent:
			w.s.absent = append(w.s.absent, f.path)
		// Links are read for the sake of the remark about absolute ones.
		case foreign || e.merging || !e.trusted || ch.onDisk || e.mode == modeLink:
			read = append(read, pendingFile{file: f, mode: ch.mode})
		default:
			w.s.files = append(w.s.files, f)
		}
	}
	for _, p := range untracked {
		if dir, ok := strings.CutSuffix(p, "/"); ok {
			inner = append(inner, dir)
			continue
		}
		read = append(read, pendingFile{file: file{path: prefix + p}})
	}
	w.count(l, prefix, depth)
	if err := w.readConverted(l, prefix, &read); err != nil {
		return err
	}
	if err := w.read(read); err != nil {
		return err
	}
	for _, dir := range inner {
		w.nested = append(w.nested, prefix+dir)
		if err := w.takeNested(prefix+dir, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// count adds the paths that differ from the commit. The lock file is none of
// them: writing it would change what it says.
func (w *workTree) count(l *listing, prefix string, depth int) {
	for p := range l.status.changed {
		if prefix+p != w.s.opts.LockFile {
			w.s.pending++
		}
	}
	for _, p := range l.status.untracked {
		if !strings.HasSuffix(p, "/") && prefix+p != w.s.opts.LockFile {
			w.s.pending++
		}
	}
	if depth > 0 && w.isNested(prefix) {
		w.s.pending += len(l.tracked)
	}
}

func (w *workTree) isNested(prefix string) bool {
	return slices.Contains(w.nested, strings.TrimSuffix(prefix, "/"))
}

// takeSubmodule takes the files of a submodule.
func (w *workTree) takeSubmodule(l *listing, name, prefix string, depth int) error {
	inner, err := find(filepath.Join(l.repo.root, filepath.FromSlash(name)))
	if err != nil {
		return err
	}
	if inner == nil || inner.root == l.repo.root {
		w.empty = append(w.empty, prefix+name)
		w.s.dirs = append(w.s.dirs, prefix+name) // or git would think it deleted
		return nil
	}
	w.submodules = append(w.submodules, prefix+name)
	return w.takeNested(prefix+name, depth+1)
}

// takeNested takes the files of the repository at path.
func (w *workTree) takeNested(path string, depth int) error {
	if depth > maxNesting {
		return mayfly.Errorf(mayfly.Invalid, "repositories are nested more than %d deep at %s", maxNesting, visible(path)).
			Hint("list the directory in .gitignore")
	}
	dir := filepath.Join(w.s.root, filepath.FromSlash(path))
	repo, err := find(dir)
	if err != nil {
		return err
	}
	if repo == nil || repo.root != dir {
		return mayfly.Errorf(mayfly.Conflict, "the repository at %s vanished while the workspace was read", visible(path))
	}
	if err := repo.loadConfig(w.ctx); err != nil {
		return fmt.Errorf("%s: %w", visible(path), err)
	}
	if repo.root != dir {
		return mayfly.Errorf(mayfly.Invalid, "the work tree of the repository at %s is elsewhere: %s", visible(path), repo.root).
			Hint("list it in .gitignore")
	}
	l, err := repo.list(w.ctx)
	if err != nil {
		return fmt.Errorf("%s: %w", visible(path), err)
	}
	return w.take(l, path+"/", depth)
}

// pendingFile is a file whose bytes must be read to know its id.
type pendingFile struct {
	file
	mode uint32 // as git sees it on disk; 0 when git did not say
	lfs  bool
}

// read identifies files on disk and adds those that are there.
func (w *workTree) read(files []pendingFile) error {
	paths := make([]string, len(files))
	for i, f := range files {
		paths[i] = f.path
	}
	found := make([]identity, len(files))
	err := identifyAll(w.ctx, w.s.root, w.s.format, paths, func(i int, id identity) { found[i] = id })
	if err != nil {
		return err
	}
	for i, f := range files {
		w.add(f, found[i])
	}
	return nil
}

func (w *workTree) add(f pendingFile, id identity) {
	if id.special {
		w.special = append(w.special, f.path)
	}
	if id.mode == 0 {
		return
	}
	mode := id.mode
	if mode != modeLink && (f.mode == modeFile || f.mode == modeExecutable) {
		mode = f.mode // where core.fileMode is off, git knows better than the disk
	}
	if mode == modeLink && len(id.head) > 0 && id.head[0] == '/' {
		w.absolute = append(w.absolute, f.path)
	}
	if f.lfs && bytes.HasPrefix(id.head, []byte("version https://git-lfs.github.com/spec/")) {
		w.pointers = append(w.pointers, f.path)
	}
	w.s.files = append(w.s.files, file{path: f.path, mode: mode, id: id.id, clean: f.clean})
}

// readConverted moves the files whose bytes on disk may differ from git's
// from those taken by id to those that are read.
func (w *workTree) readConverted(l *listing, prefix string, read *[]pendingFile) error {
	if !l.attributes && !l.repo.autocrlf() && l.repo.config["core.attributesfile"] == "" {
		return nil
	}
	var paths []string
	for _, e := range l.tracked {
		if e.mode == modeFile || e.mode == modeExecutable {
			paths = append(paths, e.path)
		}
	}
	converted, err := l.repo.converted(w.ctx, paths)
	if err != nil {
		return err
	}
	kept := w.s.files[:0]
	for _, f := range w.s.files {
		name, inside := strings.CutPrefix(f.path, prefix)
		how := converted[name]
		if !inside || how == asIs || f.mode == modeLink {
			kept = append(kept, f)
			continue
		}
		*read = append(*read, pendingFile{file: f, mode: f.mode, lfs: how == throughLFS})
	}
	w.s.files = kept
	for i := range *read {
		name, _ := strings.CutPrefix((*read)[i].path, prefix)
		(*read)[i].lfs = converted[name] == throughLFS
	}
	return nil
}
