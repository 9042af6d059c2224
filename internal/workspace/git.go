package workspace

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mayfly.dev/mayfly"
)

// repository is a git work tree, and the one place that starts git in it.
//
// A repository can come from anywhere, and its own configuration can name
// programs: filters, monitors, hooks, merge drivers, transports. None of them
// may run on behalf of a command whose purpose is to keep strangers' code in a
// box. Everything that can be switched off by a fixed name is in hardening;
// filters and merge drivers have names of the repository's choosing, and
// loadConfig finds and switches them off before anything reads file contents.
type repository struct {
	root      string // absolute directory of the work tree
	gitDir    string
	commonDir string // differs from gitDir in linked work trees
	off       []string
	simple    bool              // see plain; the configuration has not been read
	config    map[string]string // last value wins; keys as git prints them
}

// hardening is passed to every git command. The command line outranks all
// configuration files.
var hardening = []string{
	"--no-pager", "--no-optional-locks",
	"-c", "core.fsmonitor=false",
	"-c", "core.hooksPath=/dev/null",
	"-c", "core.pager=cat",
	"-c", "core.sshCommand=false",
	"-c", "core.askPass=false",
	"-c", "core.protectHFS=true",
	"-c", "core.protectNTFS=true",
	"-c", "core.quotePath=true",
	"-c", "core.splitIndex=false",
	"-c", "core.warnAmbiguousRefs=false",
	"-c", "credential.helper=",
	"-c", "protocol.allow=never",
	"-c", "submodule.recurse=false",
	"-c", "gc.auto=0",
	"-c", "maintenance.auto=false",
	"-c", "commit.gpgSign=false",
	"-c", "gpg.program=false",
	"-c", "apply.whitespace=nowarn",
	"-c", "apply.ignoreWhitespace=no",
	"-c", "index.sparse=false",
	"-c", "pack.writeReverseIndex=false",
}

// gitEnv is the environment of every git command: nothing that redirects git
// (GIT_DIR, GIT_INDEX_FILE, GIT_CONFIG_…), and no way to a network.
func gitEnv(root string) []string {
	env := []string{
		"LC_ALL=C",
		"GIT_OPTIONAL_LOCKS=0",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_ALLOW_PROTOCOL=none",
		"GIT_NO_LAZY_FETCH=1",
		"GIT_NO_REPLACE_OBJECTS=1",
		"GIT_LITERAL_PATHSPECS=1",
		"GIT_CEILING_DIRECTORIES=" + filepath.Dir(root),
	}
	// SUDO_UID is how git knows the owner of a repository under sudo.
	for _, name := range []string{"PATH", "HOME", "XDG_CONFIG_HOME", "USER", "LOGNAME", "TMPDIR", "SUDO_UID"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

// command prepares git in the repository's root.
func (r *repository) command(ctx context.Context, args ...string) *exec.Cmd {
	argv := append(append(append([]string{}, hardening...), r.off...), args...)
	cmd := exec.CommandContext(ctx, "git", argv...)
	cmd.Dir = r.root
	cmd.Env = gitEnv(r.root)
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// output runs git and returns what it printed.
func (r *repository) output(ctx context.Context, args ...string) ([]byte, error) {
	return r.outputOf(ctx, r.command(ctx, args...))
}

func (r *repository) outputOf(ctx context.Context, cmd *exec.Cmd) ([]byte, error) {
	var out bytes.Buffer
	var complaint tail
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := cmd.Run(); err != nil {
		return nil, r.explain(ctx, cmd, err, complaint.String())
	}
	return out.Bytes(), nil
}

// explain turns a failed git command into an error that names the fix where
// there is a known one.
func (r *repository) explain(ctx context.Context, cmd *exec.Cmd, err error, stderr string) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, exec.ErrNotFound) {
		return errNoGit
	}
	sub := subcommand(cmd.Args)
	stderr = strings.TrimSpace(stderr)
	switch {
	case strings.Contains(stderr, "dubious ownership"):
		return mayfly.Errorf(mayfly.Forbidden, "git refuses to read %s: it belongs to another user", r.root).
			Hint("if you trust it: git config --global --add safe.directory %s", shellQuote(r.root))
	case strings.Contains(stderr, "promisor") || strings.Contains(stderr, "lazy fetching disabled") ||
		strings.Contains(stderr, "transport") && strings.Contains(stderr, "not allowed"):
		return mayfly.Errorf(mayfly.Invalid, "%s is a partial clone and lacks objects that are needed", r.root).
			Hint("fetch them first: git -C %s fetch --refetch --no-filter", shellQuote(r.root))
	case strings.Contains(stderr, "not a git repository"):
		return mayfly.Errorf(mayfly.Invalid, "%s has a .git that git does not accept: %s", r.root, stderr).
			Hint("repair it (git -C %s status tells more), or remove .git to use the plain directory", shellQuote(r.root))
	}
	return &gitError{sub: sub, stderr: stderr, err: err}
}

var errNoGit = mayfly.Errorf(mayfly.Unsupported, "git is not installed or not in PATH").
	Hint("install it: apt-get install git")

// gitError is a git command that failed for a reason of its own.
type gitError struct {
	sub, stderr string
	err         error
}

func (e *gitError) Error() string {
	if e.stderr == "" {
		return fmt.Sprintf("git %s: %v", e.sub, e.err)
	}
	return fmt.Sprintf("git %s: %s", e.sub, e.stderr)
}

func (e *gitError) Unwrap() error { return e.err }

// subcommand finds the word after git's own options.
func subcommand(argv []string) string {
	for i := 1; i < len(argv); i++ {
		switch {
		case argv[i] == "-c" || argv[i] == "-C":
			i++
		case !strings.HasPrefix(argv[i], "-"):
			return argv[i]
		}
	}
	return ""
}

// shellQuote makes s one word of a POSIX shell.
func shellQuote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@%") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

// tail keeps the end of what a program says.
type tail struct{ b []byte }

const tailSize = 16 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.b = append(t.b, p...)
	if len(t.b) > 2*tailSize {
		t.b = append(t.b[:0], t.b[len(t.b)-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) String() string { return strings.ToValidUTF8(string(t.b), "�") }

// find looks for the git work tree that holds dir, the way git does. It
// returns nil when there is none.
func find(dir string) (*repository, error) {
	for at := dir; ; at = filepath.Dir(at) {
		dot := filepath.Join(at, ".git")
		st, err := os.Stat(dot)
		if err == nil && st.IsDir() && isGitDir(dot) {
			return &repository{root: at, gitDir: dot, commonDir: dot}, nil
		}
		if err == nil && st.Mode().IsRegular() {
			return findLinked(at, dot)
		}
		if isGitDir(at) {
			return nil, mayfly.Errorf(mayfly.Invalid, "%s is in a bare git repository or a .git directory and has no files to work on", dir).
				Hint("name a work tree: git clone %s somewhere, or git worktree add", shellQuote(at))
		}
		if at == filepath.Dir(at) {
			return nil, nil
		}
	}
}

// findLinked follows a .git file, as linked work trees and submodules have.
func findLinked(root, dot string) (*repository, error) {
	b, err := readSmall(dot, 64<<10)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", dot, err)
	}
	to, ok := strings.CutPrefix(string(b), "gitdir: ")
	if !ok {
		return nil, mayfly.Errorf(mayfly.Invalid, "%s is a file, but not one of git's", dot).
			Hint("remove it to use the plain directory")
	}
	gitDir := absoluteFrom(root, strings.TrimRight(to, "\r\n"))
	common := gitDir
	if b, err := readSmall(filepath.Join(gitDir, "commondir"), 64<<10); err == nil {
		common = absoluteFrom(gitDir, strings.TrimRight(string(b), "\r\n"))
	}
	return &repository{root: root, gitDir: gitDir, commonDir: common}, nil
}

func absoluteFrom(base, p string) string {
	if filepath.IsAbs(p) {
		return filepath.Clean(p)
	}
	return filepath.Join(base, p)
}

// isGitDir applies git's own test for a git directory.
func isGitDir(dir string) bool {
	if _, err := os.Lstat(filepath.Join(dir, "HEAD")); err != nil {
		return false
	}
	for _, name := range []string{"objects", "refs"} {
		if st, err := os.Stat(filepath.Join(dir, name)); err != nil || !st.IsDir() {
			return false
		}
	}
	return true
}

// readSmall reads a regular file of at most limit bytes.
func readSmall(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", name)
	}
	b, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(b)) > limit {
		err = fmt.Errorf("%s is larger than %d bytes", name, limit)
	}
	return b, err
}

// loadConfig reads the effective configuration and switches off the programs
// that the repository's own part of it names. Programs that the user's or the
// system's configuration names, such as git-lfs, stay.
func (r *repository) loadConfig(ctx context.Context) error {
	out, err := r.output(ctx, "config", "--list", "--includes", "-z", "--show-scope")
	if err != nil {
		return err
	}
	own, err := r.parseConfig(out)
	if err != nil {
		return err
	}
	for name := range own {
		if strings.Contains(name, "=") {
			return mayfly.Errorf(mayfly.Invalid, "%s: the git configuration has a driver with the odd name %q", r.root, name).
				Hint("remove it from %s", filepath.Join(r.commonDir, "config"))
		}
		for _, key := range driverKeys[strings.SplitN(name, ".", 2)[0]] {
			r.off = append(r.off, "-c", name+key)
		}
	}
	if r.config["core.worktree"] == "" {
		return nil
	}
	top, err := r.output(ctx, "rev-parse", "--show-toplevel")
	if err != nil {
		return err
	}
	r.root = strings.TrimSuffix(string(top), "\n")
	return nil
}

// plain reports whether no configuration file says anything that decides how
// the work tree is read, so that git need not be asked for the configuration,
// which costs a process. Section names admit no escapes, so looking for words
// is enough. Merge drivers do not count: nothing that reads a work tree merges,
// and every clone says "merge".
func (r *repository) plain() bool {
	system, ok := systemConfig()
	if !ok {
		return false
	}
	words := []string{"include", "autocrlf", "attributesfile"}
	if home, err := os.UserHomeDir(); err == nil {
		system = append(system, filepath.Join(home, ".gitconfig"), filepath.Join(home, ".config", "git", "config"))
	}
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		system = append(system, filepath.Join(dir, "git", "config"))
	}
	for _, name := range system {
		if mentions(name, words...) {
			return false
		}
	}
	words = append(words, "filter", "worktree", "extensions") // another object format is an extension
	return !mentions(filepath.Join(r.commonDir, "config"), words...) &&
		!mentions(filepath.Join(r.gitDir, "config.worktree"), words...)
}

// systemConfig names the files that git as packaged reads for the whole
// machine; ok is false when the installed one may read others.
func systemConfig() (files []string, ok bool) {
	switch path, err := exec.LookPath("git"); {
	case err != nil:
		return nil, false
	case path == "/usr/bin/git" || path == "/bin/git":
		return []string{"/etc/gitconfig"}, true
	case path == "/usr/local/bin/git":
		return []string{"/usr/local/etc/gitconfig", "/etc/gitconfig"}, true
	}
	return nil, false
}

// mentions reports whether a file contains one of the words in any case, or
// cannot be read.
func mentions(name string, words ...string) bool {
	b, err := readSmall(name, 1<<20)
	if err != nil {
		return !errors.Is(err, os.ErrNotExist)
	}
	b = bytes.ToLower(b)
	return slices.ContainsFunc(words, func(w string) bool { return bytes.Contains(b, []byte(w)) })
}

// driverKeys are the settings that disarm a driver of each sort. An empty
// filter command is no filter to git; an empty merge driver is an error, so a
// program that does nothing but fail stands in.
var driverKeys = map[string][]string{
	"filter": {".clean=", ".smudge=", ".process=", ".required=false"},
	"merge":  {".driver=false"},
}

// parseConfig reads records "scope NUL key LF value NUL" and returns the
// drivers ("filter.x", "merge.y") that the repository itself defines.
func (r *repository) parseConfig(out []byte) (own map[string]bool, err error) {
	r.config, own = map[string]string{}, map[string]bool{}
	for len(out) > 0 {
		scope, rest, ok := bytes.Cut(out, []byte{0})
		record, rest, ok2 := bytes.Cut(rest, []byte{0})
		if !ok || !ok2 {
			return nil, errors.New("git config: unexpected output")
		}
		out = rest
		key, value, given := strings.Cut(string(record), "\n")
		if !given {
			value = "true"
		}
		r.config[key] = value
		last := strings.LastIndexByte(key, '.')
		sort, _, _ := strings.Cut(key, ".")
		if local := string(scope) == "local" || string(scope) == "worktree"; !local || driverKeys[sort] == nil {
			continue
		}
		if last > len(sort) { // three parts: section, name, variable
			own[key[:last]] = true
		}
	}
	return own, nil
}

// objectFormat is "sha1" or "sha256".
func (r *repository) objectFormat() string {
	if strings.EqualFold(r.config["extensions.objectformat"], "sha256") {
		return "sha256"
	}
	return "sha1"
}
