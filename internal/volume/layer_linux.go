package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// layerPool is the pool that keeps the layers: a pool of directories beside the
// image, if there is one. An overlay takes the inode numbers of all layers on
// one btrfs for distinct, which those of two subvolumes are not; with upper and
// lower on different file systems it tells them apart.
func (p *pool) layerPool() *pool {
	if p.below != nil {
		return p.below
	}
	return p
}

func (p *pool) Layer(name string) (string, error) {
	p = p.layerPool()
	if err := checkNames(name); err != nil {
		return "", err
	}
	dir := filepath.Join(p.layer(name), treeName)
	if _, err := os.Lstat(dir); err != nil {
		return "", fmt.Errorf("layer %s: %w", name, err)
	}
	return dir, nil
}

func (p *pool) Layers(ctx context.Context) (names []string, err error) {
	p = p.layerPool()
	err = p.do(ctx, "list layers", nil, func() error {
		names, err = list(p.layers())
		return err
	})
	return names, err
}

func (p *pool) RemoveLayer(ctx context.Context, name string) error {
	p = p.layerPool()
	return p.do(ctx, "remove layer", []string{name}, func() error {
		if err := p.discard(ctx, p.layer(name)); err != nil {
			return err
		}
		return p.emptyTrash(ctx, name+".")
	})
}

func (p *pool) BuildLayer(ctx context.Context, name string, fill func(ctx context.Context, dir string) error) (string, error) {
	if _, err := p.Layer(name); errors.Is(err, fs.ErrNotExist) && p.below != nil {
		if err := p.admit(); err != nil { // the image needs the same room
			return "", err
		}
	}
	p = p.layerPool()
	return p.buildLayer(ctx, "build layer", []string{name}, func(tmp string) error {
		if err := p.step("create layer"); err != nil {
			return err
		}
		if err := p.create(tmp); err != nil {
			return err
		}
		tree := filepath.Join(tmp, treeName)
		if err := mkdir(tree, 0o755); err != nil {
			return err
		}
		return fill(ctx, tree)
	})
}

func (p *pool) CommitLayer(ctx context.Context, name, env, snapshot string) (string, error) {
	src := p.snapshot(env, snapshot)
	p = p.layerPool()
	return p.buildLayer(ctx, "commit layer", []string{name, env, snapshot}, func(tmp string) error {
		if err := wantSnapshot(src, env, snapshot); err != nil {
			return err
		}
		if err := p.step("clone layer"); err != nil {
			return err
		}
		if err := p.clone(ctx, src, tmp, false, upperName); err != nil {
			return err
		}
		if err := p.step("name layer"); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(tmp, upperName), filepath.Join(tmp, treeName)); err != nil {
			return err
		}
		for _, rest := range []string{workName, dbName} {
			if err := p.step("strip layer"); err != nil {
				return err
			}
			if err := p.purge(ctx, filepath.Join(tmp, rest)); err != nil {
				return err
			}
		}
		return nil
	})
}

// buildLayer makes the layer names[0] unless it exists; fill makes its tree at
// the temporary path that it gets. Callers that come meanwhile wait; when the
// build failed because its own caller gave up, the next of them takes over.
func (p *pool) buildLayer(ctx context.Context, what string, names []string, fill func(tmp string) error) (string, error) {
	name := names[0]
	for {
		if dir, err := p.Layer(name); err == nil || !errors.Is(err, fs.ErrNotExist) {
			return dir, err
		}
		b, first := p.joinBuild(name)
		if first {
			b.err = p.do(ctx, what, names, func() error { return p.fillLayer(ctx, name, fill) })
			p.leaveBuild(name, b)
			if b.err != nil {
				return "", b.err
			}
			continue
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("%s %s: %w", what, name, ctx.Err())
		case <-b.done:
		}
		if b.err != nil && !errors.Is(b.err, context.Canceled) && !errors.Is(b.err, context.DeadlineExceeded) {
			return "", b.err
		}
		if err := ctx.Err(); err != nil {
			return "", fmt.Errorf("%s %s: %w", what, name, err)
		}
	}
}

func (p *pool) joinBuild(name string) (b *build, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if b := p.builds[name]; b != nil {
		return b, false
	}
	b = &build{done: make(chan struct{})}
	p.builds[name] = b
	return b, true
}

func (p *pool) leaveBuild(name string, b *build) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.builds, name)
	close(b.done)
}

// fillLayer builds under a hidden name and seals what came of it. It removes
// the rest in any case.
func (p *pool) fillLayer(ctx context.Context, name string, fill func(tmp string) error) (err error) {
	tmp := hidden(p.layer(name))
	if isDir(p.layer(name)) {
		return nil // made between the caller's look and its turn
	}
	if err := p.admit(); err != nil {
		return err
	}
	if err := p.discard(ctx, tmp); err != nil {
		return err
	}
	defer func() {
		if derr := p.discard(context.WithoutCancel(ctx), tmp); err == nil {
			err = derr
		}
	}()
	if err := fill(tmp); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	if err := p.step("seal layer"); err != nil {
		return err
	}
	return p.seal(ctx, tmp, p.layer(name))
}
