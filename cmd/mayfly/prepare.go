package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/manifest"
	"mayfly.dev/mayfly/internal/terminal"
	"mayfly.dev/mayfly/internal/workspace"
)

// sourceFlags say what an environment is made of: run, env create and lock.
type sourceFlags struct {
	dir           string
	noUncommitted bool
	locked        bool
	renew         bool // copies of databases, of mayfly lock
}

func (f *sourceFlags) add(c *cobra.Command) {
	c.Flags().StringVarP(&f.dir, "dir", "C", ".", "take the repository that this `directory` is in")
	c.Flags().BoolVar(&f.noUncommitted, "no-uncommitted", false, "leave out changes that are not committed")
	c.Flags().BoolVar(&f.locked, "locked", false, "refuse when anything is not as mayfly.lock says")
	c.MarkFlagDirname("dir")
}

// prepared is a repository's state, pinned and ready to be uploaded.
type prepared struct {
	manifest manifest.Manifest
	source   *workspace.Source
	base     base
	lock     mayfly.Lock
	old      *mayfly.Lock // what mayfly.lock holds; nil without one
}

func (p *prepared) lockPath() string { return filepath.Join(p.source.Root(), manifest.LockFile) }

// pin reads a repository's state.
func pin(ctx context.Context, f sourceFlags) (*prepared, error) {
	if info, err := os.Stat(f.dir); err != nil || !info.IsDir() {
		return nil, mayfly.Errorf(mayfly.Invalid, "%s is no directory", f.dir).Hint("name a repository with --dir, or change into it")
	}
	m, err := manifest.Load(repositoryRoot(f.dir))
	if err != nil {
		return nil, err
	}
	p := &prepared{manifest: m}
	found := make(chan error, 1) // the base is looked for beside the workspace
	go func() {
		var err error
		p.base, err = findBase(ctx, m)
		found <- err
	}()
	p.source, err = workspace.Open(ctx, f.dir, workspace.Options{
		Uncommitted: m.Workspace.Uncommitted && !f.noUncommitted,
		Depth:       m.Workspace.Depth,
		Pin:         m.IsPinned,
	})
	if baseErr := <-found; err == nil {
		err = baseErr
	}
	if err != nil {
		return nil, err
	}
	epoch := p.source.Epoch()
	switch old, err := manifest.ReadLock(p.lockPath()); {
	case err == nil:
		p.old, epoch = &old, old.Epoch
		m.Keep(old.Services)
	case !errors.Is(err, fs.ErrNotExist) || f.locked:
		return nil, err
	}
	if f.renew {
		m.Renew(time.Now())
	}
	ws, lockfiles := p.source.Lock()
	p.lock, err = manifest.Resolve(m, p.base.lock, ws, lockfiles, epoch)
	return p, err
}

// pinModel pins the entry of the model registry that the manifest names.
func (a *app) pinModel(ctx context.Context, p *prepared) error {
	if p.manifest.Model == "" {
		return nil
	}
	m, err := a.svc().Model(ctx, p.manifest.Model)
	if mayfly.KindOf(err) == mayfly.NotFound {
		name, _, _ := strings.Cut(p.manifest.Model, "@")
		return mayfly.Errorf(mayfly.NotFound, "%s names the model %s, which is not in the registry", p.manifest.Path, p.manifest.Model).
			Hint("add it: %s", a.self("model add "+name+" --provider PROVIDER --id ID"))
	}
	if err != nil {
		return err
	}
	p.lock.Model = &mayfly.LockedModel{Ref: modelName(m), Digest: m.Digest}
	return nil
}

// prepare pins a repository's state for a new environment: it refuses drift
// when asked to, and remarks upon it otherwise.
func (a *app) prepare(ctx context.Context, f sourceFlags) (*prepared, error) {
	p, err := pin(ctx, f)
	if err == nil {
		err = a.pinModel(ctx, p)
	}
	if err != nil {
		return nil, err
	}
	if p.old != nil {
		differences := manifest.Drift(*p.old, p.lock)
		if f.locked {
			if err := manifest.DriftError(differences); err != nil {
				return nil, err
			}
		} else if len(differences) > 0 {
			remark("%s differs from mayfly.lock: %s; mayfly lock renews it", plural(len(differences), "thing"), listed(differences))
		}
	}
	for _, n := range p.source.Notes() {
		remark("%s", n)
	}
	return p, nil
}

// listed names the first few differences in one line.
func listed(differences []manifest.Difference) string {
	text := ""
	for i, d := range differences {
		switch {
		case i == 3:
			return text + ", …"
		case i > 0:
			text += ", "
		}
		text += d.What
	}
	return text
}

// repositoryRoot is the directory whose manifest counts: that of the git work
// tree that holds dir, and otherwise dir itself.
func repositoryRoot(dir string) string {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return dir
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	for at := abs; ; at = filepath.Dir(at) {
		if _, err := os.Stat(filepath.Join(at, ".git")); err == nil {
			return at
		}
		if at == filepath.Dir(at) {
			return abs
		}
	}
}

// remark tells a person something that is no error.
func remark(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "mayfly: %s\n", terminal.Safe(fmt.Sprintf(format, args...)))
}

// complete fills what the flags left open in a request from the manifest.
func (p *prepared) complete(r *mayfly.CreateEnvironment) {
	r.Template, r.Source = p.lock.Template, p.source.Root()
	r.Exact = cmp.Or(p.lock.Exact, mayfly.ExactEncrypted)
	if r.TTL == 0 {
		r.TTL = p.lock.TTL
	}
	if r.IdleTimeout == 0 {
		r.IdleTimeout = p.lock.Idle
	}
	l := p.lock.Limits
	for _, f := range []struct{ to, from *int64 }{
		{&r.Limits.Memory, &l.Memory}, {&r.Limits.PIDs, &l.PIDs}, {&r.Limits.Disk, &l.Disk}, {&r.Limits.Output, &l.Output},
	} {
		if *f.to == 0 {
			*f.to = *f.from
		}
	}
	if r.Limits.CPU == 0 {
		r.Limits.CPU = l.CPU
	}
	p.label(r)
}

// label adds the branch, so that environments can be found by it.
func (p *prepared) label(r *mayfly.CreateEnvironment) {
	branch := p.source.Branch()
	if _, given := r.Labels["branch"]; given || branch == "" || mayfly.CheckLabel("branch", branch) != nil {
		return
	}
	if r.Labels == nil {
		r.Labels = map[string]string{}
	}
	r.Labels["branch"] = branch
}

// withTemplate does what needs the template, uploading that when the server
// has not got it.
func (a *app) withTemplate(ctx context.Context, p *prepared, do func() error) error {
	err := do()
	if mayfly.KindOf(err) != mayfly.Missing {
		return err
	}
	if err := a.upload(ctx, p); err != nil {
		return err
	}
	return do()
}

// upload has the server prepare the template, and gives it the image first
// when it asks for that.
func (a *app) upload(ctx context.Context, p *prepared) error {
	err := a.putTemplate(ctx, p)
	if mayfly.KindOf(err) != mayfly.Missing || p.base.writeLayout == nil {
		return err
	}
	progress := newProgress("uploading the image")
	layout := newStream(func(w io.Writer) error { return p.base.writeLayout(ctx, io.MultiWriter(w, progress)) })
	err = a.svc().PutImage(ctx, p.base.lock.Digest, layout)
	layout.stop()
	progress.done()
	if err != nil {
		return fmt.Errorf("upload the image: %w", err)
	}
	return a.putTemplate(ctx, p)
}

func (a *app) putTemplate(ctx context.Context, p *prepared) error {
	progress := newProgress("preparing a template")
	setup := &setupLog{progress: progress}
	files := newStream(func(w io.Writer) error { return p.source.WriteTar(ctx, io.MultiWriter(w, progress)) })
	_, err := a.svc().PutTemplate(ctx, p.lock, files, setup)
	files.stop()
	progress.done()
	setup.finish(err)
	return err
}

// stream makes a reader of a function that writes, which is called when
// somebody reads.
type stream struct {
	*io.PipeReader
	w     *io.PipeWriter
	write func(io.Writer) error
	mu    sync.Mutex    // guards ended
	ended chan struct{} // nil until somebody reads
}

func newStream(write func(io.Writer) error) *stream {
	r, w := io.Pipe()
	return &stream{PipeReader: r, w: w, write: write}
}

func (s *stream) Read(p []byte) (int, error) {
	s.begin()
	return s.PipeReader.Read(p)
}

func (s *stream) begin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		return
	}
	s.ended = make(chan struct{})
	go func() {
		defer close(s.ended)
		s.w.CloseWithError(s.write(s.w))
	}()
}

// stop ends the function, if it was called, and waits for it.
func (s *stream) stop() {
	s.PipeReader.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended != nil {
		<-s.ended
	}
}
