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
	"path/filepath"
	"strings"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/archive"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/image"
	"mayfly.dev/mayfly/internal/image/host"
	"mayfly.dev/mayfly/internal/manifest"
	"mayfly.dev/mayfly/internal/sandbox"
)

// description is what a template's layer does not say itself. It is kept in a
// file beside the pool.
type description struct {
	Lock     mayfly.Lock       `json:"lock"`
	Base     string            `json:"base"` // layer
	ImageEnv map[string]string `json:"image_env,omitempty"`

	Binds []sandbox.Bind `json:"-"` // of the host base: looked up when it is read
}

// layerName makes a layer's name of a kind and a digest.
func layerName(kind, digest string) string {
	hex := strings.TrimPrefix(digest, "sha256:")
	return kind + hex[:min(48, len(hex))] // 192 bits; a pool's names are short
}

// templatePath is where a template's description is kept.
func (d *Driver) templatePath(digest string) string {
	return filepath.Join(d.dir, layerName("tpl-", digest)+".json")
}

// template returns the description of a template, which never changes: once
// read it is kept.
func (d *Driver) template(digest string) (description, error) {
	if t, ok := d.templates.Load(digest); ok {
		return t.(description), nil
	}
	t, err := d.readTemplate(digest)
	if err == nil {
		d.templates.Store(digest, t)
	}
	return t, err
}

func (d *Driver) readTemplate(digest string) (description, error) {
	var t description
	text, err := os.ReadFile(d.templatePath(digest))
	if errors.Is(err, fs.ErrNotExist) {
		return t, mayfly.Errorf(mayfly.Missing, "template %q is not prepared", digest)
	}
	if err != nil {
		return t, fmt.Errorf("read template: %w", err)
	}
	if err := json.Unmarshal(text, &t); err != nil {
		return t, fmt.Errorf("read template %s: %w", digest, err)
	}
	return t, d.bindHost(&t)
}

// bindHost looks up which directories of the host a template on the host base
// shows.
func (d *Driver) bindHost(t *description) error {
	if t.Lock.Base.Kind != "host" {
		return nil
	}
	skeleton, err := d.pool.Layer(t.Base)
	if err != nil {
		return fmt.Errorf("find base: %w", err)
	}
	binds, err := host.Binds(skeleton)
	if err != nil {
		return fmt.Errorf("find what to show of the host: %w", err)
	}
	for _, b := range binds {
		t.Binds = append(t.Binds, sandbox.Bind(b))
	}
	return nil
}

// layers are the read-only layers of a template, topmost first.
func (d *Driver) layers(ctx context.Context, t description, digest string) ([]string, error) {
	name := layerName("tpl-", digest)
	own, err := d.pool.Layer(name)
	if err != nil {
		return nil, fmt.Errorf("find layer %s: %w", name, err)
	}
	under, err := d.under(ctx, t.Base)
	if err != nil {
		return nil, err
	}
	return append([]string{own}, under...), nil
}

// HasTemplate implements driver.Driver.
func (d *Driver) HasTemplate(ctx context.Context, digest string) (bool, error) {
	t, err := d.template(digest)
	if err == nil {
		_, err = d.layers(ctx, t, digest)
	}
	if err == nil {
		if there, err := d.hasBaseline(ctx, t.Lock); !there {
			return false, err
		}
	}
	if mayfly.KindOf(err) == mayfly.Missing || errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// imageConfigPath is where the configuration of an unpacked image is kept.
func (d *Driver) imageConfigPath(layer string) string {
	return filepath.Join(d.dir, layer+".json")
}

// PutImage implements driver.Driver.
func (d *Driver) PutImage(ctx context.Context, digest string, layout io.Reader) error {
	layer := layerName("img-", digest)
	_, err := d.pool.BuildLayer(ctx, layer, func(ctx context.Context, dir string) error {
		config, err := image.Unpack(ctx, layout, digest, dir, image.Limits{})
		if err != nil {
			return err
		}
		return writeJSONFile(d.imageConfigPath(layer), config)
	})
	if err != nil {
		return fmt.Errorf("unpack image: %w", err)
	}
	return nil
}

// PutTemplate implements driver.Driver. The template is made as an environment
// of its own: workspace and set-up commands in a volume upon the base, whose
// snapshot becomes the layer.
func (d *Driver) PutTemplate(ctx context.Context, l mayfly.Lock, workspace io.Reader, log io.Writer) error {
	if err := verify(l); err != nil {
		return err
	}
	if there, err := d.HasTemplate(ctx, l.Template); there || err != nil {
		return err
	}
	t := description{Lock: l}
	if err := d.prepareBase(ctx, &t); err != nil {
		return err
	}
	base, release := d.reserveIDs()
	defer release() // after its sandboxes are gone
	h := driver.Handle{
		Environment: mayfly.NewID("build", time.Now()),
		Isolation:   mayfly.Native,
		UIDBase:     base,
	}
	defer func() {
		if err := d.Destroy(context.WithoutCancel(ctx), h); err != nil {
			d.log.Error("remove build", "environment", h.Environment, "error", err)
		}
	}()
	limits := mayfly.DefaultLimits
	limits.CPU = cmp.Or(l.Limits.CPU, limits.CPU)
	limits.Memory = cmp.Or(l.Limits.Memory, limits.Memory)
	limits.PIDs = cmp.Or(l.Limits.PIDs, limits.PIDs)
	limits.Disk = cmp.Or(l.Limits.Disk, limits.Disk)
	s := driver.Spec{Limits: limits}
	if err := d.Create(ctx, h, s); err != nil {
		return err
	}
	if err := d.limit(ctx, h.Environment, limits.Disk); err != nil {
		return err
	}
	if err := unpackWorkspace(ctx, workspace, d.pool.Live(h.Environment).Upper); err != nil {
		return err
	}
	if err := d.prepareDatabase(ctx, t, base+uidRange, filepath.Join(d.pool.Live(h.Environment).Upper, sandbox.Workspace), limits, log); err != nil {
		return err
	}
	if err := d.setUp(ctx, h, t, s, log); err != nil {
		return err
	}
	const finished = "finished"
	if err := d.pool.Snapshot(ctx, h.Environment, finished); err != nil {
		return fmt.Errorf("snapshot template: %w", err)
	}
	if err := writeJSONFile(d.templatePath(l.Template), t); err != nil {
		return fmt.Errorf("describe template: %w", err)
	}
	if _, err := d.pool.CommitLayer(ctx, layerName("tpl-", l.Template), h.Environment, finished); err != nil {
		return fmt.Errorf("commit template: %w", err)
	}
	return nil
}

// verify refuses a lock whose template digest is not its own, or whose host is
// not this one.
func verify(l mayfly.Lock) error {
	if err := manifest.VerifyLock(l); err != nil {
		return err
	}
	if l.Base.Kind != "host" {
		return nil
	}
	digest, err := host.Digest()
	if err != nil {
		return fmt.Errorf("digest host: %w", err)
	}
	if digest != l.Base.Digest {
		return mayfly.Errorf(mayfly.Drift, "the lock was made on another host: its base is %s, this one is %s", l.Base.Digest, digest).
			Hint("write it anew: mayfly lock; or use an image as the base")
	}
	return nil
}

// Host ids of the preparation of templates, above those of environments: each
// has two ranges of its own, for set-up commands and for its database, so that
// none shares what the kernel counts for a user with another.
const (
	buildUIDFirst = 0x6000_0000
	buildUIDRange = 2 * uidRange
	uidRange      = 1 << 16
)

// reserveIDs takes ranges of host ids that no other preparation has.
func (d *Driver) reserveIDs() (base uint32, release func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	base = buildUIDFirst
	for d.building[base] {
		base += buildUIDRange
	}
	d.building[base] = true
	return base, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		delete(d.building, base)
	}
}

// prepareBase finds or makes the layer below the template.
func (d *Driver) prepareBase(ctx context.Context, t *description) error {
	switch base := t.Lock.Base; base.Kind {
	case "host":
		t.Base = layerName("host-", base.Digest)
		_, err := d.pool.BuildLayer(ctx, t.Base, func(_ context.Context, dir string) error { return host.Skeleton(dir) })
		if err != nil {
			return fmt.Errorf("prepare base: %w", err)
		}
	case "image":
		t.Base = layerName("img-", base.Digest)
		if _, err := d.pool.Layer(t.Base); errors.Is(err, fs.ErrNotExist) {
			return mayfly.Errorf(mayfly.Missing, "image %s is not here", base.Digest).Hint("upload it first: mayfly run does")
		} else if err != nil {
			return fmt.Errorf("prepare base: %w", err)
		}
		text, err := os.ReadFile(d.imageConfigPath(t.Base))
		if err != nil {
			return fmt.Errorf("read image configuration: %w", err)
		}
		var config image.Config
		if err := json.Unmarshal(text, &config); err != nil {
			return fmt.Errorf("read image configuration: %w", err)
		}
		t.ImageEnv = environment(config.Env)
	default:
		return mayfly.Errorf(mayfly.Invalid, "unknown base %q", base.Kind).Hint("use host or image")
	}
	return d.bindHost(t)
}

// environment makes a map of "K=V" pairs.
func environment(pairs []string) map[string]string {
	vars := map[string]string{}
	for _, pair := range pairs {
		if k, v, ok := strings.Cut(pair, "="); ok && k != "" {
			vars[k] = v
		}
	}
	return vars
}

// unpackWorkspace puts the client's stream at /workspace.
func unpackWorkspace(ctx context.Context, stream io.Reader, upper string) error {
	dir := filepath.Join(upper, sandbox.Workspace)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return fmt.Errorf("make workspace: %w", err)
	}
	if err := os.Chown(dir, sandbox.UID, sandbox.GID); err != nil {
		return fmt.Errorf("make workspace: %w", err)
	}
	owner := &archive.Owner{UID: sandbox.UID, GID: sandbox.GID}
	if _, err := archive.Extract(ctx, stream, dir, archive.Options{Owner: owner}); err != nil {
		return fmt.Errorf("unpack workspace: %w", err)
	}
	return nil
}

// setUp runs the set-up commands, each in a shell in the workspace.
func (d *Driver) setUp(ctx context.Context, h driver.Handle, t description, s driver.Spec, log io.Writer) error {
	if len(t.Lock.Setup) == 0 {
		return nil
	}
	rt, err := d.runtime(h.Isolation)
	if err != nil {
		return err
	}
	under, err := d.under(ctx, t.Base)
	if err != nil {
		return err
	}
	if err := rt.Start(ctx, d.assemble(h, t, under, s)); err != nil {
		return fmt.Errorf("start sandbox for set-up: %w", err)
	}
	for i, command := range t.Lock.Setup {
		fmt.Fprintf(log, "setup: %s\n", command)
		if err := d.setUpCommand(ctx, h, s, fmt.Sprintf("setup-%d", i+1), command, log); err != nil {
			return err
		}
	}
	if err := d.Stop(ctx, h); err != nil {
		return fmt.Errorf("end set-up: %w", err)
	}
	return nil
}

func (d *Driver) setUpCommand(ctx context.Context, h driver.Handle, s driver.Spec, run, command string, log io.Writer) error {
	p := driver.Process{Run: run, Command: []string{"/bin/sh", "-c", command}, Output: mayfly.DefaultLimits.Output}
	if err := d.StartProcess(ctx, h, s, p); err != nil {
		return fmt.Errorf("start set-up command: %w", err)
	}
	var last tail
	exit, err := d.follow(ctx, h, run, nil, io.MultiWriter(&last, deaf{log}))
	if err != nil {
		return fmt.Errorf("end of set-up: %w", err)
	}
	if exit.Code != 0 {
		return mayfly.Errorf(mayfly.Invalid, "set-up command %q ended with status %d", command, exit.Code).
			Hint("correct setup in mayfly.yaml; the last it said was: %s", lastLine(last.String()))
	}
	return nil
}

// follow feeds a process, whose stdin may be nil, passes on what it says, and
// returns its exit. Nobody reads from stdin any more then.
func (d *Driver) follow(ctx context.Context, h driver.Handle, run string, stdin io.Reader, output io.Writer) (driver.Exit, error) {
	a, err := d.Attach(ctx, h, run, true)
	if err != nil {
		return driver.Exit{}, fmt.Errorf("attach: %w", err)
	}
	fed := make(chan struct{})
	defer func() { <-fed }()
	defer a.Close()
	defer context.AfterFunc(ctx, func() { a.Close() })()
	go func() {
		defer close(fed)
		if stdin != nil {
			io.Copy(a, stdin) // a process that does not want it all says why
			a.CloseWrite()
		}
	}()
	for {
		o, err := a.Recv()
		if err == io.EOF {
			return d.WaitProcess(ctx, h, run)
		}
		if err == nil {
			_, err = output.Write(o.Data)
		}
		if err != nil {
			return driver.Exit{}, errors.Join(ctx.Err(), fmt.Errorf("read output: %w", err))
		}
	}
}

// deaf goes on when nobody listens: a client that has gone away does not end
// the set-up.
type deaf struct{ io.Writer }

func (d deaf) Write(b []byte) (int, error) {
	d.Writer.Write(b)
	return len(b), nil
}

// tail keeps the end of what is written to it.
type tail struct{ bytes.Buffer }

func (t *tail) Write(b []byte) (int, error) {
	t.Buffer.Write(b)
	if t.Len() > 8<<10 {
		t.Next(t.Len() - 4<<10)
	}
	return len(b), nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

// halfWritten begins the names of files that are not whole yet.
const halfWritten = ".new-"

// writeJSONFile replaces a file atomically.
func writeJSONFile(path string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), halfWritten+"*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone after the rename
	_, err = f.Write(text)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
