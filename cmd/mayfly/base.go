package main

import (
	"context"
	"io"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/image/host"
	"mayfly.dev/mayfly/internal/manifest"
)

// base is the root filesystem below a workspace.
type base struct {
	lock mayfly.LockedBase
	// writeLayout writes an image as a tar stream; nil for the host.
	writeLayout func(ctx context.Context, w io.Writer) error
}

func findBase(ctx context.Context, m manifest.Manifest) (base, error) {
	digest, err := host.Digest()
	return base{lock: mayfly.LockedBase{Kind: string(manifest.HostBase), Digest: digest}}, err
}
