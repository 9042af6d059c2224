package workspace

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"mayfly.dev/mayfly"
)

// ApplyOptions say how a change is brought back.
type ApplyOptions struct {
	// Branch to make. It must not exist. Not used by ApplyWorktree.
	Branch string
	// Base is the commit that the workspace was taken at. Not used by
	// ApplyWorktree.
	Base string
	// Uncommitted says that the workspace held changes that are not in Base, so
	// that a conflict can be explained.
	Uncommitted bool
	// Ignored takes also new files that the repository's ignore rules name,
	// such as build results, which are left out otherwise.
	Ignored bool
	// Message of the commit.
	Message string
	// AuthorName and AuthorEmail of the commit; the neutral identity of agents
	// when empty. The committer is who the repository's user is.
	AuthorName, AuthorEmail string
}

// Applied says what a change has become.
type Applied struct {
	Branch  string   // that was made, without refs/heads/
	Commit  string   // id
	Files   []string // changed paths
	Skipped []string // new files left out because the repository ignores them
}

// Apply makes a commit of the patch on a new branch of the repository that
// holds dir. It works beside the user: work tree, index, HEAD and settings are
// neither read nor written. A branch that exists, or a patch that does not
// apply to Base, is an error of kind mayfly.Conflict; a patch that reaches for
// git's own files or out of the workspace is one of kind mayfly.Forbidden. In
// both cases nothing was changed.
func Apply(ctx context.Context, dir string, patch io.Reader, o ApplyOptions) (Applied, error) {
	repo, _, err := openForApply(ctx, dir)
	if err != nil {
		return Applied{}, err
	}
	if repo == nil {
		return Applied{}, mayfly.Errorf(mayfly.Invalid, "%s is not in a git repository, so there is no branch to make", dir).
			Hint("apply the change to the directory itself instead")
	}
	if err := repo.checkNewBranch(ctx, o.Branch); err != nil {
		return Applied{}, err
	}
	base, err := repo.commit(ctx, o.Base)
	if err != nil {
		return Applied{}, err
	}
	if base.id == "" {
		return Applied{}, mayfly.Errorf(mayfly.Conflict, "the commit %q that the change starts from is not in %s", o.Base, repo.root).
			Hint("apply the change to the working tree instead")
	}
	c, err := repo.readChange(ctx, patch, o.Ignored)
	if err != nil {
		return Applied{}, err
	}
	defer c.Close()
	return c.commitTo(ctx, base.id, o)
}

// ApplyWorktree changes the files of the repository or plain directory that
// holds dir, and nothing else. A patch that does not apply as a whole is an
// error of kind mayfly.Conflict and changes nothing.
func ApplyWorktree(ctx context.Context, dir string, patch io.Reader, o ApplyOptions) (Applied, error) {
	repo, root, err := openForApply(ctx, dir)
	if err != nil {
		return Applied{}, err
	}
	plain := repo == nil
	if plain {
		repo = &repository{root: root}
	}
	c, err := repo.readChange(ctx, patch, o.Ignored || plain)
	if err != nil {
		return Applied{}, err
	}
	defer c.Close()
	if err := c.checkMovedLinks(); err != nil {
		return Applied{}, err
	}
	for _, check := range []string{"--check", "--apply"} {
		if _, err := repo.output(ctx, "apply", check, "--whitespace=nowarn", c.file); err != nil {
			return Applied{}, c.conflict(err, "the files in "+root,
				"save the change as a patch and resolve it by hand, or apply it to a branch")
		}
	}
	return Applied{Files: c.paths(), Skipped: c.skipped}, nil
}

// openForApply finds where a change goes to; repo is nil outside git.
func openForApply(ctx context.Context, dir string) (repo *repository, root string, err error) {
	root, err = realDirectory(dir)
	if err != nil {
		return nil, "", err
	}
	repo, err = find(root)
	if repo == nil || err != nil {
		return nil, root, err
	}
	if err := repo.loadConfig(ctx); err != nil {
		return nil, "", err
	}
	return repo, repo.root, nil
}

func (r *repository) checkNewBranch(ctx context.Context, name string) error {
	ref := "refs/heads/" + name
	if _, err := r.output(ctx, "check-ref-format", ref); err != nil || strings.HasPrefix(name, "-") {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return mayfly.Errorf(mayfly.Invalid, "bad branch name %q", name).Hint("git help check-ref-format says which are good")
	}
	if _, err := r.output(ctx, "rev-parse", "--verify", "--quiet", ref); err == nil {
		return branchExists(name)
	}
	return ctx.Err()
}

func branchExists(name string) error {
	return mayfly.Errorf(mayfly.Conflict, "the branch %s exists", visible(name)).
		Hint("name another one, or remove it: git branch -D %s", shellQuote(name))
}

// change is a patch that has been read and judged.
type change struct {
	repo     *repository
	dir      string // for temporary files
	file     string // the patch without what is skipped
	sections []section
	skipped  []string
}

func (c *change) Close() error { return os.RemoveAll(c.dir) }

func (c *change) paths() []string {
	var list []string
	for _, s := range c.sections {
		list = append(list, s.path())
		if s.oldPath != "" && s.newPath != "" && s.oldPath != s.newPath {
			list = append(list, s.oldPath)
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// readChange stores and judges a patch.
func (r *repository) readChange(ctx context.Context, patch io.Reader, ignored bool) (*change, error) {
	dir, err := os.MkdirTemp("", "mayfly-apply-")
	if err != nil {
		return nil, fmt.Errorf("keep the patch: %w", err)
	}
	c := &change{repo: r, dir: dir, file: filepath.Join(dir, "patch")}
	if err := c.judge(ctx, patch, ignored); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

func (c *change) judge(ctx context.Context, patch io.Reader, ignored bool) error {
	if err := c.read(patch); err != nil {
		return err
	}
	if !ignored {
		if err := c.skipIgnored(ctx); err != nil {
			return err
		}
	}
	if len(c.sections) == 0 {
		return mayfly.Errorf(mayfly.Conflict, "there is nothing to apply").
			Hint("mayfly diff shows what an environment has changed; ignored files are left out unless asked for")
	}
	if err := guard(c.sections); err != nil {
		return err
	}
	return c.compareWithGit(ctx)
}

// read copies the patch to a file while it is parsed.
func (c *change) read(patch io.Reader) error {
	f, err := os.Create(c.file)
	if err != nil {
		return fmt.Errorf("keep the patch: %w", err)
	}
	defer f.Close()
	limited := &io.LimitedReader{R: patch, N: maxPatchBytes}
	if c.sections, err = parsePatch(io.TeeReader(limited, f)); err != nil {
		return err
	}
	if limited.N == 0 {
		return mayfly.Errorf(mayfly.Exhausted, "the patch is larger than %d bytes", int64(maxPatchBytes)).
			Hint("remove large files inside the environment")
	}
	return f.Close()
}

// skipIgnored leaves out new files that the ignore rules of the work tree name.
func (c *change) skipIgnored(ctx context.Context) error {
	var created strings.Builder
	for _, s := range c.sections {
		if s.created && badPath(s.newPath) == "" {
			created.WriteString("./" + s.newPath + "\x00") // so that none is a pathspec with magic
		}
	}
	if created.Len() == 0 {
		return nil
	}
	cmd := c.repo.command(ctx, "check-ignore", "-z", "--stdin")
	cmd.Env = append(cmd.Env, "GIT_LITERAL_PATHSPECS=0") // which this command refuses
	cmd.Stdin = strings.NewReader(created.String())
	out, err := c.repo.outputOf(ctx, cmd)
	var g *gitError
	if errors.As(err, &g) && g.stderr == "" { // says so when nothing is ignored
		return nil
	}
	if err != nil {
		return mayfly.Errorf(mayfly.Conflict, "compare the change with the ignore rules of %s: %w", c.repo.root, err).
			Hint("apply it with ignored files included")
	}
	for p := range bytes.SplitSeq(bytes.TrimSuffix(out, []byte{0}), []byte{0}) {
		c.skipped = append(c.skipped, strings.TrimPrefix(string(p), "./"))
	}
	slices.Sort(c.skipped)
	return c.rewrite()
}

// rewrite makes a patch of the sections that are not skipped.
func (c *change) rewrite() error {
	in, err := os.Open(c.file)
	if err != nil {
		return err
	}
	defer in.Close()
	c.file += ".kept"
	f, err := os.Create(c.file)
	if err != nil {
		return err
	}
	defer f.Close()
	out := bufio.NewWriter(f)
	var kept []section
	for _, s := range c.sections {
		if _, skip := slices.BinarySearch(c.skipped, s.newPath); skip && s.created {
			continue
		}
		kept = append(kept, s)
		if _, err := io.Copy(out, io.NewSectionReader(in, s.start, s.end-s.start)); err != nil {
			return fmt.Errorf("keep the patch: %w", err)
		}
	}
	c.sections = kept
	if err := out.Flush(); err != nil {
		return fmt.Errorf("keep the patch: %w", err)
	}
	return f.Close()
}

// compareWithGit makes sure that git reads the same names in the patch.
func (c *change) compareWithGit(ctx context.Context) error {
	out, err := c.repo.output(ctx, "apply", "--numstat", "-z", c.file)
	if err != nil {
		return c.conflict(err, "anything", "make the change again")
	}
	var theirs, ours []string
	for record := range bytes.SplitSeq(bytes.TrimSuffix(out, []byte{0}), []byte{0}) {
		f := strings.SplitN(string(record), "\t", 3)
		theirs = append(theirs, f[len(f)-1])
	}
	for _, s := range c.sections {
		ours = append(ours, s.path())
	}
	slices.Sort(theirs)
	slices.Sort(ours)
	if !slices.Equal(ours, theirs) {
		return mayfly.Errorf(mayfly.Forbidden, "the change is refused: git reads other names in the patch than its headers say").
			Hint("look at it with: mayfly diff")
	}
	return nil
}

// checkMovedLinks judges links whose target the patch does not repeat.
func (c *change) checkMovedLinks() error {
	root, err := os.OpenRoot(c.repo.root)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, s := range c.sections {
		if s.oldPath == s.newPath || s.oldPath == "" || s.newPath == "" || s.content {
			continue
		}
		to, err := root.Readlink(filepath.FromSlash(s.oldPath))
		if err != nil {
			continue // no link; or nothing, which git will say
		}
		if why := badTarget(s.newPath, to); why != "" {
			return refuse(s.newPath, why)
		}
	}
	return nil
}

// conflict explains why git would not apply a patch.
func (c *change) conflict(err error, where, fix string) error {
	var g *gitError
	if !errors.As(err, &g) {
		return err
	}
	const most = 5
	var lines []string
	for line := range strings.Lines(g.stderr) {
		line = strings.TrimSpace(line)
		text, isError := strings.CutPrefix(line, "error: ")
		if !isError || strings.HasPrefix(text, "patch failed: ") {
			continue
		}
		lines = append(lines, oneLine(text))
	}
	if len(lines) == 0 {
		lines = []string{oneLine(g.stderr)}
	}
	if n := len(lines); n > most {
		lines = append(lines[:most], fmt.Sprintf("and %d more", n-most))
	}
	return mayfly.Errorf(mayfly.Conflict, "the change does not apply to %s: %s", where, strings.Join(lines, "; ")).Hint("%s", fix)
}

// oneLine makes text harmless to a terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x20 || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// commitTo makes the commit in an index of its own, and then the branch.
func (c *change) commitTo(ctx context.Context, base string, o ApplyOptions) (Applied, error) {
	index := "GIT_INDEX_FILE=" + filepath.Join(c.dir, "index")
	run := func(env []string, args ...string) (string, error) {
		cmd := c.repo.command(ctx, append([]string{"-c", "core.sparseCheckout=false"}, args...)...)
		cmd.Env = append(append(cmd.Env, index), env...)
		out, err := c.repo.outputOf(ctx, cmd)
		return strings.TrimSuffix(string(out), "\n"), err
	}
	if _, err := run(nil, "read-tree", base); err != nil {
		return Applied{}, err
	}
	if _, err := run(nil, "apply", "--cached", "--whitespace=nowarn", c.file); err != nil {
		fix := "apply it to the working tree instead, or save it as a patch"
		if o.Uncommitted {
			fix = "the workspace was taken with uncommitted changes, which that commit lacks: " + fix
		}
		return Applied{}, c.conflict(err, "commit "+base[:12], fix)
	}
	raw, err := run(nil, "diff-index", "--cached", "--raw", "-z", "--no-renames", "--no-abbrev", "--no-ext-diff", base)
	if err != nil {
		return Applied{}, err
	}
	files, err := c.judgeResult(ctx, raw)
	if err != nil {
		return Applied{}, err
	}
	tree, err := run(nil, "write-tree")
	if err != nil {
		return Applied{}, err
	}
	message := o.Message
	if message == "" {
		message = "Apply the change of an environment"
	}
	id, err := run(c.repo.identity(o), "commit-tree", tree, "-p", base, "-m", message)
	if err != nil {
		return Applied{}, err
	}
	if !isObjectID(id) {
		return Applied{}, errors.New("git commit-tree: unexpected output")
	}
	_, err = run(c.repo.identity(o), "update-ref", "-m", "mayfly apply", "refs/heads/"+o.Branch, id, strings.Repeat("0", len(id)))
	if err != nil {
		return Applied{}, c.refConflict(err, o.Branch)
	}
	return Applied{Branch: o.Branch, Commit: id, Files: files, Skipped: c.skipped}, nil
}

func (c *change) refConflict(err error, branch string) error {
	var g *gitError
	if !errors.As(err, &g) {
		return err
	}
	if strings.Contains(g.stderr, "already exists") {
		return branchExists(branch)
	}
	return mayfly.Errorf(mayfly.Conflict, "cannot make the branch %s: %s", visible(branch), oneLine(g.stderr)).
		Hint("name another one")
}

// judgeResult looks at what git made of the patch: the last word on paths,
// modes and links. raw is the output of git diff-index.
func (c *change) judgeResult(ctx context.Context, raw string) ([]string, error) {
	var files []string
	var links []file
	for raw != "" {
		meta, rest, ok := strings.Cut(raw, "\x00")
		p, rest, ok2 := strings.Cut(rest, "\x00")
		f := strings.Fields(meta) // :oldmode newmode oldid newid status
		if !ok || !ok2 || len(f) != 5 {
			return nil, errors.New("git diff-index: unexpected output")
		}
		raw = rest
		if why := badPath(p); why != "" {
			return nil, refuse(p, why)
		}
		switch f[1] {
		case "000000", "100644", "100755":
		case "120000":
			links = append(links, file{path: p, mode: modeLink, id: f[3]})
		default:
			return nil, refuse(p, "has the mode "+f[1])
		}
		files = append(files, p)
	}
	if len(files) == 0 {
		return nil, mayfly.Errorf(mayfly.Conflict, "the change leaves the files as they are in the commit").
			Hint("there is nothing to apply")
	}
	s := &Source{repo: c.repo, blobs: true}
	return files, s.contents(ctx, links, func(f file, content content) error {
		var to bytes.Buffer
		if content.size <= maxTarget {
			if err := content.copyTo(&to); err != nil {
				return err
			}
		}
		if why := badTarget(f.path, to.String()); why != "" {
			return refuse(f.path, why)
		}
		return nil
	})
}

// identity is the author and committer of a commit.
func (r *repository) identity(o ApplyOptions) []string {
	name, email := o.AuthorName, o.AuthorEmail
	if name == "" {
		name = AgentName
	}
	if email == "" {
		email = AgentEmail
	}
	committer, committerEmail := r.config["user.name"], r.config["user.email"]
	if committer == "" {
		committer = name
	}
	if committerEmail == "" {
		committerEmail = email
	}
	return []string{
		"GIT_AUTHOR_NAME=" + name, "GIT_AUTHOR_EMAIL=" + email,
		"GIT_COMMITTER_NAME=" + committer, "GIT_COMMITTER_EMAIL=" + committerEmail,
	}
}
