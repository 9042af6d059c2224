//go:build gvisor

package main

import (
	"testing"

	"mayfly.dev/mayfly/internal/sandbox"
)

func newRuntime(o sandbox.Options) (sandboxes, error) { return sandbox.NewGVisor(o, "") }

func onHostKernel(t testing.TB) {
	t.Helper()
	t.Skip("about the host's kernel, which commands under gVisor do not reach")
}
