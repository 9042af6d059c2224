//go:build linux && gvisor

package escape

import (
	"testing"

	"mayfly.dev/mayfly/internal/sandbox"
)

func newIsolation(t *testing.T) isolation {
	t.Helper()
	g, err := sandbox.NewGVisor(newOptions(t), "")
	check(t, err)
	t.Cleanup(func() { g.Close() })
	return isolation{name: "gvisor", runtime: g, emulate: true}
}
