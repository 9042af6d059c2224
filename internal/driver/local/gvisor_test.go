//go:build gvisor

package local

import (
	"testing"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver/drivertest"
	"mayfly.dev/mayfly/internal/sandbox"
)

var isolations = []mayfly.Isolation{mayfly.Native, mayfly.GVisor}

func newGVisor(t testing.TB, o sandbox.Options) (make func() (sandbox.Runtime, error), end func()) {
	g, err := sandbox.NewGVisor(o, "")
	if err != nil {
		t.Fatal(err)
	}
	return func() (sandbox.Runtime, error) { return g, nil }, func() { g.Close() }
}

func TestDriverUnderGVisor(t *testing.T) {
	drivertest.Run(t, func(t *testing.T) drivertest.Fixture { return fixture(t, "", mayfly.GVisor) })
}
