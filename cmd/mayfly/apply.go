package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/terminal"
	"mayfly.dev/mayfly/internal/workspace"
)

const applyLong = `Bring the change of an environment back to the repository that it came from:
onto a new branch that starts at the commit of the workspace (mayfly/ENV unless
--branch names it), or into the files of the work tree, or as a patch.

A branch is made beside whatever you are doing: your files, index and current
branch stay as they are. When the change does not fit, or reaches out of the
repository or for git's own files, apply refuses and changes nothing. New files
that the repository's ignore rules name are left out, unless --ignored.`

const applyExample = `  mayfly apply swift-otter
  mayfly apply swift-otter --branch fix-parser
  mayfly apply swift-otter --worktree
  mayfly apply swift-otter --patch > change.patch
  mayfly apply swift-otter --patch change.patch`

// applyFlags say where a change goes to.
type applyFlags struct {
	branch   string
	patch    string
	worktree bool
	ignored  bool
	dir      string
	message  string
}

// applied is the output of apply --json.
type applied struct {
	Branch  string   `json:"branch,omitempty"`
	Commit  string   `json:"commit,omitempty"`
	Files   []string `json:"files"`             // changed paths
	Skipped []string `json:"skipped,omitempty"` // new files that the repository ignores
}

// branchName is the branch that keeps a change unless another is named.
func branchName(e mayfly.Environment) string { return "mayfly/" + e.Name }

func (a *app) applyCommand() *cobra.Command {
	c := &cobra.Command{
		Use:     "apply ENV",
		Short:   "Bring a change back to the repository",
		Long:    applyLong + "\n\nPrints the branch and its commit, or the changed files. With --json: an object\nwith the fields branch, commit, files and skipped.",
		Example: applyExample,
		Args:    arguments(1, 2, "ENV"), ValidArgsFunction: a.completeEnvironment,
	}
	var f applyFlags
	flags := c.Flags()
	flags.StringVarP(&f.branch, "branch", "b", "", "make a commit on this new `branch`")
	flags.StringVar(&f.patch, "patch", "", "write a patch to a new `file`, or to standard output")
	flags.Lookup("patch").NoOptDefVal = "-"
	flags.BoolVar(&f.worktree, "worktree", false, "change the files of the work tree, and make no commit")
	flags.BoolVar(&f.ignored, "ignored", false, "also new files that the repository ignores")
	flags.StringVarP(&f.dir, "dir", "C", "", "the repository, if it is not where the environment came from")
	flags.StringVarP(&f.message, "message", "m", "", "of the commit")
	asJSON := addJSON(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		if err := exclusive(c, "branch", "patch", "worktree"); err != nil {
			return err
		}
		if len(args) == 2 { // --patch FILE, which the flag alone does not take
			if f.patch != "-" {
				return usage(c, "unexpected argument %q", args[1])
			}
			f.patch = args[1]
		}
		e, err := a.environment(c.Context(), args[0])
		if err != nil {
			return err
		}
		body, err := a.svc().Diff(c.Context(), mayfly.DiffRequest{Environment: e.ID, Format: "patch"})
		if err != nil {
			return err
		}
		defer body.Close()
		if f.patch != "" {
			return writePatch(f.patch, body)
		}
		done, err := a.apply(c.Context(), e, f, body)
		if err != nil {
			return err
		}
		if *asJSON {
			return printJSON(done)
		}
		return printApplied(done)
	}
	return c
}

func (a *app) apply(ctx context.Context, e mayfly.Environment, f applyFlags, patch io.Reader) (applied, error) {
	dir := e.Source
	if f.dir != "" {
		dir = f.dir
	}
	if info, err := os.Stat(dir); err != nil || !info.IsDir() {
		return applied{}, mayfly.Errorf(mayfly.NotFound, "the repository %q, from which %s was made, is not there", dir, e.Name).
			Hint("name it with --dir, or take a patch: %s", a.self("apply "+e.Name+" --patch"))
	}
	o := workspace.ApplyOptions{Branch: f.branch, Base: e.Commit, Ignored: f.ignored, Message: f.message}
	if o.Branch == "" {
		o.Branch = branchName(e)
	}
	if o.Message == "" {
		o.Message = a.commitMessage(ctx, e)
	}
	if t, err := a.svc().Template(ctx, e.Template); err == nil {
		o.Uncommitted = t.Lock.Workspace.Uncommitted > 0
	}
	do := workspace.Apply
	if f.worktree {
		do = workspace.ApplyWorktree
	}
	done, err := do(ctx, dir, patch, o)
	files := done.Files
	if files == nil {
		files = []string{}
	}
	return applied{done.Branch, done.Commit, files, done.Skipped}, err
}

// commitMessage says where a change comes from.
func (a *app) commitMessage(ctx context.Context, e mayfly.Environment) string {
	message := "Apply the change of " + e.Name + "\n"
	if r, err := a.runOf(ctx, e.ID); err == nil {
		message += "\nMayfly-Run: " + r.ID + "\n"
	}
	return message + "Mayfly-Environment: " + e.ID + "\n"
}

func printApplied(done applied) error {
	for _, s := range done.Skipped {
		remark("%s is left out: the repository ignores it", s)
	}
	if done.Commit != "" {
		_, err := fmt.Printf("%s %s\n", terminal.Safe(done.Branch), done.Commit)
		return err
	}
	for _, f := range done.Files {
		if _, err := fmt.Println(terminal.Safe(f)); err != nil {
			return err
		}
	}
	return nil
}

// writePatch writes to a new file, all or nothing, or to standard output.
func writePatch(path string, patch io.Reader) error {
	if path == "-" {
		return writeDiff(os.Stdout, patch, "patch")
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".mayfly-*.patch")
	if err != nil {
		return mayfly.Errorf(mayfly.Invalid, "write the patch: %w", err)
	}
	defer os.Remove(tmp.Name())
	_, err = io.Copy(tmp, patch)
	if err = errors.Join(err, tmp.Chmod(0o644), tmp.Close()); err != nil {
		return err
	}
	err = os.Link(tmp.Name(), path)
	if errors.Is(err, fs.ErrExist) {
		return mayfly.Errorf(mayfly.Conflict, "%s exists", path).Hint("name a new file, or remove it first")
	}
	return err
}
