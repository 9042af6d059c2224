//go:build !linux

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"

	"mayfly.dev/mayfly"
)

var errNotLinux = mayfly.Errorf(mayfly.Unsupported, "volumes need Linux: %w", errors.ErrUnsupported).
	Hint("run the server on a Linux machine")

// Open works on Linux only.
func Open(_ context.Context, o Options) (Pool, error) {
	return nil, fmt.Errorf("open pool %s: %w", o.Dir, errNotLinux)
}

// View works on Linux only.
type View struct{}

// OpenView works on Linux only.
func OpenView(context.Context, []string) (*View, error) { return nil, errNotLinux }

// Root works on Linux only.
func (v *View) Root() *os.Root { return nil }

// Close works on Linux only.
func (v *View) Close() error { return nil }

// Candidates works on Linux only.
func Candidates(_ context.Context, _, _ string, _, _ []string, _ string) ([]string, error) {
	return nil, errNotLinux
}
