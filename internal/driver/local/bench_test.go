package local

import (
	"fmt"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
)

// BenchmarkLife takes an environment through its life and reports what each
// part of it costs.
func BenchmarkLife(b *testing.B) {
	d := open(b, "")
	put(b, d, lock(b))
	s := driver.Spec{Template: lock(b).Template, Limits: mayfly.DefaultLimits}
	took := map[string]time.Duration{}
	n := 0
	for b.Loop() {
		n++
		h := driver.Handle{Environment: fmt.Sprintf("env-%d", n), Isolation: mayfly.Native, UIDBase: 0x3000_0000}
		step := func(name string, do func() error) {
			b.Helper()
			began := time.Now()
			if err := do(); err != nil {
				b.Fatal(err)
			}
			took[name] += time.Since(began)
		}
		step("create", func() error { return d.Create(b.Context(), h, s) })
		step("baseline", func() error { _, err := d.Snapshot(b.Context(), h, "baseline", false); return err })
		step("start", func() error { return d.Start(b.Context(), h, s) })
		step("run", func() error {
			if err := d.StartProcess(b.Context(), h, s, driver.Process{Run: "run-1", Command: []string{"true"}}); err != nil {
				return err
			}
			_, err := d.WaitProcess(b.Context(), h, "run-1")
			return err
		})
		step("live-snapshot", func() error { _, err := d.Snapshot(b.Context(), h, "final", false); return err })
		step("stop", func() error { return d.Stop(b.Context(), h) })
		step("rollback", func() error { return d.Rollback(b.Context(), h, s, "baseline", "") })
		step("destroy", func() error { return d.Destroy(b.Context(), h) })
	}
	for name, total := range took {
		b.ReportMetric(float64(total.Microseconds())/1000/float64(n), "ms-"+name)
	}
}
