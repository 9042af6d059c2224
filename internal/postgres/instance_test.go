//go:build linux

package postgres

import (
	"testing"
)

func TestInstanceOfABaselineAnswersAndStops(t *testing.T) {
	r := start(t, instance(t, copyOf(t, baseline(t))))
	if got := query(t, r, "SELECT count(*) FROM customer"); got != "1000" {
		t.Errorf("rows = %s, want 1000", got)
	}
	must(t, r.Checkpoint(t.Context()))
	must(t, r.Stop(t.Context()))
}
