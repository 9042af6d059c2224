package main

import (
	"bytes"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"testing"
	"time"

	"mayfly.dev/mayfly/internal/guest"
)

// firstInstruction starts an environment and a command in it, and returns how
// long it took until the command was executed: what `env create` to the first
// instruction costs above the volume.
func (w *world) firstInstruction(t testing.TB, name string) time.Duration {
	t.Helper()
	s := w.spec(name)
	begin := time.Now()
	if err := w.runtime.Start(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	e := w.use(s)
	run := e.launch(guest.Command{Argv: []string{"/usr/bin/true"}}) // returns when it is executed
	took := time.Since(begin)
	if x := e.wait(run); x.Code != 0 {
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
		if err := w.runtime.Stop(b.Context(), name); err != nil {
			b.Fatal(err)
		}
		stop = append(stop, time.Since(begin))
	}
	report(b, "start", start)
	report(b, "stop", stop)
}

func BenchmarkFreezeAndThaw(b *testing.B) {
	w := newWorld(b)
	e := w.start("env-1")
	e.launch(guest.Command{Argv: []string{"sh", "-c", "while :; do :; done"}})
	e.launch(guest.Command{Argv: []string{"sleep", "1000"}})
	var freeze, thaw []time.Duration
	for b.Loop() {
		time.Sleep(2 * time.Millisecond) // else nobody has left the ice when it comes again
		begin := time.Now()
		if err := w.runtime.Freeze(b.Context(), "env-1"); err != nil {
			b.Fatal(err)
		}
		frozen := time.Now()
		if err := w.runtime.Thaw(b.Context(), "env-1"); err != nil {
			b.Fatal(err)
		}
		freeze, thaw = append(freeze, frozen.Sub(begin)), append(thaw, time.Since(frozen))
	}
	report(b, "freeze", freeze)
	report(b, "thaw", thaw)
}

// BenchmarkEcho types a line on a terminal and waits for cat to repeat it:
// what a person at a shell waits for each key.
func BenchmarkEcho(b *testing.B) {
	e := newWorld(b).start("env-1")
	run := e.launch(guest.Command{TTY: true, Argv: []string{"cat"}})
	a := e.attach(run)
	defer a.Close()
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		if _, err := a.Write([]byte("x\n")); err != nil {
			b.Fatal(err)
		}
		for lines := 0; lines < 2; { // the terminal's echo, and cat's
			o, err := a.Recv()
			if err != nil {
				b.Fatal(err)
			}
			lines += bytes.Count(o.Data, []byte("\n"))
		}
		took = append(took, time.Since(begin))
	}
	report(b, "echo", took)
}

// BenchmarkExec runs a command in an environment that is there.
func BenchmarkExec(b *testing.B) {
	e := newWorld(b).start("env-1")
	var took []time.Duration
	for b.Loop() {
		begin := time.Now()
		if x := e.wait(e.launch(guest.Command{Argv: []string{"true"}})); x.Code != 0 {
			b.Fatal(x)
		}
		took = append(took, time.Since(begin))
	}
	report(b, "exec", took)
}

func BenchmarkOutput(b *testing.B) {
	e := newWorld(b).start("env-1")
	const size = 64 << 20
	b.SetBytes(size)
	for b.Loop() {
		e.wait(e.launch(guest.Command{Output: 2 * size, Argv: []string{"head", "-c", strconv.Itoa(size), "/dev/zero"}}))
	}
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
