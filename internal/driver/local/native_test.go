//go:build !gvisor

package local

import (
	"errors"
	"testing"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/sandbox"
)

// With the tag gvisor, tests run under it, too.
var isolations = []mayfly.Isolation{mayfly.Native}

func newGVisor(testing.TB, sandbox.Options) (make func() (sandbox.Runtime, error), end func()) {
	return func() (sandbox.Runtime, error) { return nil, errors.ErrUnsupported }, func() {}
}
