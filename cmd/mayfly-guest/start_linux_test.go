package main

import (
	"fmt"
	"os/exec"
	"slices"
	"testing"
	"time"

	"mayfly.dev/mayfly/internal/guest"
)

// firstInstruction starts an environment and a command in it, and returns how
// long it took until the command spoke: what `env create` to the first
// instruction costs above the volume.
func (w *world) firstInstruction(t testing.TB, name string) time.Duration {
	t.Helper()
	s := w.spec(name)
	begin := time.Now()
	if err := w.native.Start(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	e := w.use(s)
	run := e.launch(guest.Command{Argv: []string{"/usr/bin/true"}})
	x := e.wait(run)
	took := x.Started.Sub(begin)
	if x.Code != 0 {
		t.Fatalf("exit %d %s", x.Code, x.Reason)
	}
	return took
}

func report(b *testing.B, name string, took []time.Duration) {
	slices.Sort(took)
	at := func(p float64) float64 { return float64(took[int(p*float64(len(took)-1))].Microseconds()) }
	b.ReportMetric(at(0), name+"-min-µs")
	b.ReportMetric(at(0.5), name+"-p50-µs")
	b.ReportMetric(at(0.99), name+"-p99-µs")
}

func BenchmarkStartToFirstInstruction(b *testing.B) {
	w := newWorld(b)
	var start, stop []time.Duration
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("env-%d", i)
		start = append(start, w.firstInstruction(b, name))
		begin := time.Now()
		if err := w.native.Stop(b.Context(), name); err != nil {
			b.Fatal(err)
		}
		stop = append(stop, time.Since(begin))
	}
	report(b, "start", start)
	report(b, "stop", stop)
}

func BenchmarkBubblewrap(b *testing.B) {
	bwrap, err := exec.LookPath("bwrap")
	if err != nil {
		b.Skip("no bubblewrap")
	}
	w := newWorld(b)
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		out, err := exec.Command(bwrap, "--unshare-all", "--bind", w.skeleton, "/", "--ro-bind", "/usr", "/usr",
			"--proc", "/proc", "--dev", "/dev", "/usr/bin/true").CombinedOutput()
		if err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		took = append(took, time.Since(begin))
	}
	report(b, "start-to-exit", took)
}
