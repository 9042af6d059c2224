//go:build !gvisor

package main

import (
	"testing"

	"mayfly.dev/mayfly/internal/sandbox"
)

// The tests of this package hold both isolations to the same behaviour: with
// the tag gvisor, they run under gVisor.
func newRuntime(o sandbox.Options) (sandboxes, error) { return sandbox.NewNative(o) }

func onHostKernel(testing.TB) {}
