//go:build linux

package volume_test

import (
	"testing"

	"mayfly.dev/mayfly/internal/volume"
	"mayfly.dev/mayfly/internal/volume/volumetest"
)

func TestConformance(t *testing.T) {
	for name := range volume.Hosts {
		t.Run(name, func(t *testing.T) {
			volumetest.Run(t, func(t testing.TB) volume.Pool { return volume.OpenOnHost(t, name) })
		})
	}
}
