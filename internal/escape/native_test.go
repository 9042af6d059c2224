//go:build linux && !gvisor

package escape

import (
	"testing"

	"mayfly.dev/mayfly/internal/sandbox"
)

func newIsolation(t *testing.T) isolation {
	t.Helper()
	n, err := sandbox.NewNative(newOptions(t))
	check(t, err)
	t.Cleanup(func() { n.Close() })
	return isolation{name: "native", runtime: n}
}
