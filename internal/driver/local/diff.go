package local

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
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

// below opens a directory of a state; a missing one is empty.
func (s *state) below(prefix string) (*os.Root, error) {
	if prefix == "" {
		return s.view.Root().OpenRoot(".")
	}
	return s.view.Root().OpenRoot(prefix)
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
	lower, err := d.layers(t, s.Template)
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
	reader, writer := io.Pipe()
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		defer to.close()
		defer from.close()
		writer.CloseWithError(compare(ctx, from, to, lower, prefix, write, writer))
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

func compare(ctx context.Context, from, to *state, lower []string, prefix string, write func(*diff.Diff, io.Writer) error, w io.Writer) error {
	paths, err := volume.Candidates(ctx, from.upper, to.upper, lower, lower, prefix)
	if err != nil {
		return fmt.Errorf("find what changed: %w", err)
	}
	a, err := from.below(prefix)
	if err != nil {
		return fmt.Errorf("open %s: %w", prefix, err)
	}
	defer a.Close()
	b, err := to.below(prefix)
	if err != nil {
		return fmt.Errorf("open %s: %w", prefix, err)
	}
	defer b.Close()
	if paths == nil {
		paths = []string{} // nil would mean all of them
	}
	result, err := diff.Compare(ctx, a, b, paths, diff.Options{})
	if err != nil {
		return fmt.Errorf("compare: %w", err)
	}
	return write(result, w)
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
	lower, err := d.layers(t, s.Template)
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
