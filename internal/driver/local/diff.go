package local

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/diff"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/sandbox"
	"mayfly.dev/mayfly/internal/volume"
)

// state is one state of an environment, held still for reading.
type state struct {
	upper string // empty: the template
	view  *volume.View
	done  func()
}

func (s *state) close() {
	if s.view != nil {
		s.view.Close()
	}
	s.done()
}

// viewPrefix begins the names of snapshots that hold a live state for reading.
const viewPrefix = "view"

// open holds a state of an environment for reading: a snapshot, the template,
// or the live state, of which it makes a snapshot where that costs nothing.
func (d *Driver) open(ctx context.Context, h driver.Handle, lower []string, snapshot string, live bool) (*state, error) {
	s := &state{done: func() {}}
	switch {
	case snapshot != "":
		s.upper = d.pool.At(h.Environment, snapshot).Upper
	case live && d.pool.Kind() == volume.Btrfs:
		id := mayfly.NewID(viewPrefix, time.Now())
		if err := d.pool.Snapshot(ctx, h.Environment, id); err != nil {
			return nil, fmt.Errorf("hold live state: %w", err)
		}
		s.upper = d.pool.At(h.Environment, id).Upper
		s.done = func() {
			if err := d.pool.RemoveSnapshot(context.WithoutCancel(ctx), h.Environment, id); err != nil {
				d.log.Error("remove snapshot of a view", "environment", h.Environment, "error", err)
			}
		}
	case live:
		s.upper = d.pool.Live(h.Environment).Upper
	}
	layers := lower
	if s.upper != "" {
		layers = append([]string{s.upper}, lower...)
	}
	view, err := volume.OpenView(ctx, layers)
	if err != nil {
		s.done()
		return nil, fmt.Errorf("open view: %w", err)
	}
	s.view = view
	return s, nil
}

// below opens a directory of a state.
func (s *state) below(prefix string) (*os.Root, error) {
	root, err := s.view.Root().OpenRoot(cmp.Or(prefix, "."))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, mayfly.Errorf(mayfly.NotFound, "there is no directory /%s in one of the states", prefix)
	}
	if err != nil {
		return nil, fmt.Errorf("open /%s: %w", prefix, err)
	}
	return root, nil
}

// relative makes a path inside an environment relative to its root.
func relative(p string) (string, error) {
	if p == "" {
		p = sandbox.Workspace
	}
	if !path.IsAbs(p) || strings.ContainsRune(p, 0) {
		return "", mayfly.Errorf(mayfly.Invalid, "bad path %q", p).Hint("use an absolute path inside the environment")
	}
	return strings.TrimPrefix(path.Clean(p), "/"), nil
}

// Diff implements driver.Driver.
func (d *Driver) Diff(ctx context.Context, h driver.Handle, s driver.Spec, r mayfly.DiffRequest) (io.ReadCloser, error) {
	prefix, err := relative(r.Path)
	if err != nil {
		return nil, err
	}
	write, ok := map[string]func(*diff.Diff, io.Writer) error{
		"": (*diff.Diff).WritePatch, "patch": (*diff.Diff).WritePatch, "json": writeJSON,
		"stat": func(d *diff.Diff, w io.Writer) error { return d.WriteStat(w, 80, false) },
	}[r.Format]
	if !ok {
		return nil, mayfly.Errorf(mayfly.Invalid, "unknown format %q", r.Format).Hint("use patch, stat or json")
	}
	t, err := d.template(s.Template)
	if err != nil {
		return nil, err
	}
	lower, err := d.layers(ctx, t, s.Template)
	if err != nil {
		return nil, err
	}
	from, err := d.open(ctx, h, lower, r.From, false)
	if err != nil {
		return nil, err
	}
	to, err := d.open(ctx, h, lower, r.To, true)
	if err != nil {
		from.close()
		return nil, err
	}
	done := func() { to.close(); from.close() }
	ctx, cancel := context.WithCancel(ctx)
	result, err := compare(ctx, from, to, lower, prefix, diff.Options{ObjectFormat: objectFormat(t.Lock.Workspace.Commit)})
	if err != nil {
		cancel()
		done()
		return nil, err
	}
	reader, writer := io.Pipe()
	go func() {
		defer done()
		defer result.close()
		writer.CloseWithError(write(result.Diff, writer))
	}()
	return &comparison{reader, cancel}, nil
}

// comparison is the output of a diff being made; closing it ends the making.
type comparison struct {
	*io.PipeReader
	cancel context.CancelFunc
}

func (c *comparison) Close() error {
	c.cancel()
	return c.PipeReader.Close()
}

// objectFormat is the kind of object ids in the repository of a commit.
func objectFormat(commit string) string {
	if len(commit) == 64 {
		return "sha256"
	}
	return "sha1"
}

// difference is a diff that reads from two open directories.
type difference struct {
	*diff.Diff
	from, to *os.Root
}

func (d *difference) close() {
	d.from.Close()
	d.to.Close()
}

func compare(ctx context.Context, from, to *state, lower []string, prefix string, o diff.Options) (*difference, error) {
	paths, err := volume.Candidates(ctx, from.upper, to.upper, lower, lower, prefix)
	if err != nil {
		return nil, fmt.Errorf("find what changed: %w", err)
	}
	if paths == nil {
		paths = []string{} // nil would mean all of them
	}
	a, err := from.below(prefix)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", prefix, err)
	}
	b, err := to.below(prefix)
	if err != nil {
		a.Close()
		return nil, fmt.Errorf("open %s: %w", prefix, err)
	}
	d := &difference{from: a, to: b}
	if d.Diff, err = diff.Compare(ctx, a, b, paths, o); err != nil {
		d.close()
		return nil, fmt.Errorf("compare: %w", err)
	}
	return d, nil
}

func writeJSON(d *diff.Diff, w io.Writer) error {
	var buf bytes.Buffer
	changes := d.Changes()
	if changes == nil {
		changes = []mayfly.Change{}
	}
	if err := json.NewEncoder(&buf).Encode(changes); err != nil {
		return err
	}
	_, err := buf.WriteTo(w)
	return err
}

// Hash implements driver.Driver.
func (d *Driver) Hash(ctx context.Context, h driver.Handle, s driver.Spec, snapshot, p string) (string, error) {
	prefix, err := relative(p)
	if err != nil {
		return "", err
	}
	t, err := d.template(s.Template)
	if err != nil {
		return "", err
	}
	lower, err := d.layers(ctx, t, s.Template)
	if err != nil {
		return "", err
	}
	held, err := d.open(ctx, h, lower, snapshot, true)
	if err != nil {
		return "", err
	}
	defer held.close()
	return diff.Hash(ctx, held.view.Root(), prefix, diff.HashOptions{SkipGit: p == ""})
}
