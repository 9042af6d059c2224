package main

import (
	"context"
	"io"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/image"
	"mayfly.dev/mayfly/internal/image/host"
	"mayfly.dev/mayfly/internal/manifest"
)

// base is the root filesystem below a workspace.
type base struct {
	lock mayfly.LockedBase
	// writeLayout writes the image as a tar stream; nil for the host.
	writeLayout func(ctx context.Context, w io.Writer) error
}

// findBase finds what a manifest's base is now.
func findBase(ctx context.Context, m manifest.Manifest) (base, error) {
	if m.Base.Kind == manifest.HostBase {
		digest, err := host.Digest()
		return base{lock: mayfly.LockedBase{Kind: string(manifest.HostBase), Digest: digest}}, err
	}
	i, err := image.Resolve(ctx, m.ImageReference(), "")
	if err != nil {
		return base{}, err
	}
	return base{
		lock:        mayfly.LockedBase{Kind: string(manifest.ImageBase), Reference: m.Base.Image, Digest: i.Digest},
		writeLayout: i.WriteLayout,
	}, nil
}
