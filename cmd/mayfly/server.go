package main

import (
	"context"
	"log/slog"

	"mayfly.dev/mayfly"
)

// newServer puts the parts of the server together upon a state directory that
// the caller has locked.
func newServer(ctx context.Context, stateDir string, log *slog.Logger) (server, error) {
	return nil, mayfly.Errorf(mayfly.Unsupported, "this build of mayfly has no engine")
}
