//go:build linux

package escape

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/guest"
	"mayfly.dev/mayfly/internal/sandbox"
)

// bomb uses up one thing. Outside it gets as far as count says; inside, the
// limit must stop it before.
type bomb struct {
	name   string
	count  int64
	limits mayfly.Limits
	disk   bool // needs a volume that is held to a size
}

var bombs = []bomb{
	{name: "fork-bomb", count: 600, limits: mayfly.Limits{PIDs: 200}},
	{name: "memory-bomb", count: 512 << 20, limits: mayfly.Limits{Memory: 128 << 20}},
	{name: "shm-bomb", count: 512 << 20, limits: mayfly.Limits{Memory: 128 << 20}},
	{name: "disk-bomb", count: 256 << 20, limits: mayfly.Limits{Disk: 128 << 20}, disk: true},
	{name: "inode-bomb", count: 80_000, limits: mayfly.Limits{Disk: 32 << 20}, disk: true},
}

// patience is how long others may take for something small while a bomb goes
// off on this machine, which may be busy besides.
const patience = 15 * time.Second

// TestBombsAreContained lets each bomb go off in an environment of its own.
// Meanwhile the machine and the environment beside it go on working, and
// afterwards the environment can be stopped.
func TestBombsAreContained(t *testing.T) {
	w := newWorld(t)
	iso := newIsolation(t)
	pool := newPool(t, w)
	beside := w.newEnvironment(t, iso.runtime, "beside", 0x10010000, nil)
	for i, b := range bombs {
		t.Run(b.name, func(t *testing.T) {
			outside := w.outside(t, door{name: b.name, args: "-count " + strconv.FormatInt(b.count, 10)})
			if !outside.Open {
				t.Errorf("outside, the bomb is none: %s", outside.Detail)
			}
			e := w.newEnvironment(t, iso.runtime, b.name, uint32(0x10020000+i*0x10000), func(s *sandbox.Spec) {
				limit(&s.Limits, b.limits)
				if b.disk {
					pool.place(t, s, b.limits.Disk)
				}
			})
			done := make(chan struct{})
			slowest := make(chan time.Duration)
			go func() { slowest <- others(t, beside, done) }()
			inside := e.explode(t, b)
			close(done)
			took := <-slowest
			detail := fmt.Sprintf("contained: %s; others waited %s at most", inside.Detail, took.Round(time.Millisecond))
			if inside.Open {
				detail = "OPEN: " + inside.Detail
				t.Errorf("not stopped inside: %s", inside.Detail)
			}
			report.add(iso.name, b.name, detail, "open: "+outside.Detail)
			e.mustStop(t)
		})
	}
}

// explode runs a bomb inside. A sandbox that dies of it has contained it, too.
func (e *environment) explode(t *testing.T, b bomb) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, exit, err := e.run(ctx, guest.Command{Argv: []string{"/probe/probe", "-count", strconv.FormatInt(b.count, 10), b.name}})
	if err != nil {
		return result{Detail: "the environment ended: " + err.Error()}
	}
	return parse(out, fmt.Sprintf("exit status %d", exit.Code))
}

func limit(l *mayfly.Limits, by mayfly.Limits) {
	for _, f := range []struct {
		to   *int64
		from int64
	}{{&l.PIDs, by.PIDs}, {&l.Memory, by.Memory}, {&l.Disk, by.Disk}, {&l.Output, by.Output}} {
		if f.from > 0 {
			*f.to = f.from
		}
	}
	if by.CPU > 0 {
		l.CPU = by.CPU
	}
}

// others does something small on the machine and in the environment beside
// until done, and returns the longest that it took.
func others(t *testing.T, beside *environment, done <-chan struct{}) time.Duration {
	var slowest time.Duration
	for {
		began := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := exec.CommandContext(ctx, "/bin/true").Run(); err != nil {
			t.Errorf("the machine cannot start a process: %v", err)
		}
		if _, exit, err := beside.run(ctx, guest.Command{Argv: []string{"/bin/true"}}); err != nil || exit.Code != 0 {
			t.Errorf("the environment beside cannot start a process: exit %+v, %v", exit, err)
		}
		cancel()
		slowest = max(slowest, time.Since(began))
		select {
		case <-done:
			return slowest
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (e *environment) mustStop(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := e.runtime.Stop(ctx, e.spec.Environment); err != nil {
		t.Errorf("stop: %v", err)
	}
	if got, err := e.runtime.Inspect(ctx, e.spec.Environment); got != sandbox.Gone || err != nil {
		t.Errorf("after stop, the state = %q, %v, want gone", got, err)
	}
}

// TestCPUBombGetsItsShare keeps every core busy. What it got is counted by
// the control groups, not by what tells the time inside.
func TestCPUBombGetsItsShare(t *testing.T) {
	const share, milliseconds = 0.1, "3000"
	w := newWorld(t)
	iso := newIsolation(t)
	outside := w.outside(t, door{name: "cpu-bomb", args: "-count " + milliseconds})
	if !outside.Open {
		t.Errorf("outside, the bomb is none: %s", outside.Detail)
	}
	e := w.newEnvironment(t, iso.runtime, "cpu", 0x10000000, func(s *sandbox.Spec) { s.Limits.CPU = share })
	used := func() time.Duration {
		u, err := iso.runtime.Usage(t.Context(), e.spec.Environment)
		check(t, err)
		return u.CPU
	}
	before, began := used(), time.Now()
	e.explode(t, bomb{name: "cpu-bomb", count: 3000})
	cores := (used() - before).Seconds() / time.Since(began).Seconds()
	if cores > 2*share {
		t.Errorf("used %.2f cores, want about %.2f", cores, share)
	}
	report.add(iso.name, "cpu-bomb", fmt.Sprintf("%s: %.2f cores", verdict(t, "contained"), cores), "open: "+outside.Detail)
}

// TestLogBombStaysWithinItsLimit writes far more than is kept.
func TestLogBombStaysWithinItsLimit(t *testing.T) {
	const count, keep = 256 << 20, 8 << 20
	w := newWorld(t)
	iso := newIsolation(t)
	e := w.newEnvironment(t, iso.runtime, "log", 0x10000000, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	out, exit, err := e.run(ctx, guest.Command{
		Argv: []string{"/probe/probe", "-count", strconv.Itoa(count), "log-bomb"}, Output: keep,
	})
	if err != nil {
		t.Fatal(err)
	}
	if r := parse(out, fmt.Sprint(exit)); !r.Open {
		t.Errorf("the bomb did not write everything: %s", r.Detail)
	}
	used := diskUse(t, e.spec.Host)
	if used > keep*5/4 {
		t.Errorf("%d bytes of output are kept, want at most %d", used, keep)
	}
	report.add(iso.name, "log-bomb", fmt.Sprintf("%s: %d of %d MiB kept", verdict(t, "contained"), used>>20, count>>20), "open: every byte is written")
}

// diskUse adds up the sizes of the files below dir.
func diskUse(t *testing.T, dir string) int64 {
	t.Helper()
	var n int64
	check(t, filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			n += info.Size()
		}
		return err
	}))
	return n
}

// TestInstancesOfOneEnvironmentLeaveThoseOfOthers uses up inotify instances,
// which the kernel counts per user and not per control group.
func TestInstancesOfOneEnvironmentLeaveThoseOfOthers(t *testing.T) {
	w := newWorld(t)
	iso := newIsolation(t)
	e := w.newEnvironment(t, iso.runtime, "inotify", 0x10000000, nil)
	beside := w.newEnvironment(t, iso.runtime, "beside", 0x10010000, nil)
	ended := make(chan result)
	go func() {
		out, exit, err := e.run(t.Context(), guest.Command{Argv: []string{"/probe/probe", "-count", "100000", "inotify-bomb"}})
		ended <- parse(out, fmt.Sprint(exit, err))
	}()
	time.Sleep(1500 * time.Millisecond) // the bomb holds what it got for three seconds
	machine, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Errorf("root outside gets no inotify instance: %v", err)
	} else {
		unix.Close(machine)
	}
	r := beside.try(t, false, []string{"-count", "1", "inotify-bomb"})
	if !r.Open {
		t.Errorf("the environment beside gets no inotify instance: %s", r.Detail)
	}
	inside := <-ended
	if inside.Open {
		t.Errorf("not stopped inside: %s", inside.Detail)
	}
	report.add(iso.name, "inotify-bomb", verdict(t, "contained")+": "+inside.Detail, "open: the limit is per user")
}

// TestKillingEverythingLeavesTheGuest lets a command kill whatever it may.
func TestKillingEverythingLeavesTheGuest(t *testing.T) {
	w := newWorld(t)
	iso := newIsolation(t)
	e := w.newEnvironment(t, iso.runtime, "kill", 0x10000000, nil)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, exit, err := e.run(ctx, guest.Command{Argv: []string{"/bin/sh", "-c", "kill -KILL -1; kill -KILL 1; exec kill -KILL $$"}})
	if err != nil || exit.Code != 128+9 {
		t.Errorf("exit = %+v, %v, want code 137", exit, err)
	}
	if _, exit, err = e.run(ctx, guest.Command{Argv: []string{"/bin/true"}}); err != nil || exit.Code != 0 {
		t.Errorf("afterwards, exit = %+v, %v, want code 0", exit, err)
	}
	report.add(iso.name, "kill-everything", verdict(t, "shut"), "see kill-init")
}

// verdict is what the table says of a test that is about to end.
func verdict(t *testing.T, good string) string {
	if t.Failed() {
		return "OPEN"
	}
	return good
}
