package main

import (
	"strings"
	"sync"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/guest"
)

func TestServicesHaveAUserAndVariablesOfTheirOwn(t *testing.T) {
	e := newWorld(t).start("env-1")
	run := e.launch(guest.Command{Argv: []string{"sh", "-c", "id -u; id -g; id -G; env | sort; umask"}, Env: []string{"PATH=/usr/bin:/bin", "A=b"}, UID: 2001})
	a := e.attach(run)
	stdout, _, _ := read(t, a)
	if x := e.wait(run); x.Code != 0 {
		t.Fatalf("got = %+v, want 0", x)
	}
	if want := "2001\n2001\n2001\nA=b\nPATH=/usr/bin:/bin\nPWD=/\n0022\n"; stdout != want {
		t.Errorf("got = %q, want %q", stdout, want)
	}
	if err := guest.Start(t.Context(), e.dial(), guest.Command{Run: "root", Argv: []string{"id"}, UID: 1001}); err == nil {
		t.Error("a command was started as a user who is no service's")
	}
}

func TestCommandsHaveNoPowerOverServices(t *testing.T) {
	e := newWorld(t).start("env-1")
	svc := e.launch(guest.Command{Argv: []string{"sleep", "1000"}, Env: []string{"SECRET=x"}, UID: 2000})
	for _, try := range []string{
		"pkill -9 -u 2000", "cat /proc/$(pgrep -u 2000)/environ", "ls /proc/$(pgrep -u 2000)/root", "cat /proc/$(pgrep -u 2000)/mem",
	} {
		if x, stdout, _ := e.run("sh", "-c", try); x.Code == 0 || strings.Contains(stdout, "SECRET") {
			t.Errorf("%s: got = %d %q, want a refusal", try, x.Code, stdout)
		}
	}
	if got := e.shell("pgrep -c -u 2000"); got != "1" {
		t.Errorf("got = %s services, want 1", got)
	}
	agent := e.launch(guest.Command{Argv: []string{"sleep", "1000"}})
	if err := guest.Clear(t.Context(), e.dial(), 2000); err != nil {
		t.Fatal(err)
	}
	if x := e.wait(svc); x.Code != 137 {
		t.Errorf("got = %+v, want killed", x)
	}
	if _, err := guest.ReadExit(e.spec.Host, agent); err == nil {
		t.Error("the end of a service's processes took a command along")
	}
	for _, uid := range []uint32{0, 1, 1000, 3000} {
		if err := guest.Clear(t.Context(), e.dial(), uid); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("clear of %d: got = %v, want invalid", uid, err)
		}
	}
}

func TestClearEndsProcessesThatHide(t *testing.T) {
	e := newWorld(t).start("env-1")
	e.launch(guest.Command{Argv: []string{"sh", "-c", "for i in 1 2 3 4 5; do setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & wait' & done; wait"}, Env: []string{"PATH=/usr/bin:/bin"}, UID: 2000})
	for deadline := time.Now().Add(5 * time.Second); e.shell("pgrep -c -u 2000 sleep || true") != "5"; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the processes did not start")
		}
	}
	if err := guest.Clear(t.Context(), e.dial(), 2000); err != nil {
		t.Fatal(err)
	}
	if _, stdout, _ := e.run("pgrep", "-u", "2000"); stdout != "" {
		t.Errorf("left: %q", stdout)
	}
}

func TestClearSparesWhatIsBeingStarted(t *testing.T) {
	e := newWorld(t).start("env-1")
	var clearing sync.WaitGroup
	stop := make(chan struct{})
	for _, uid := range []uint32{2000, 2001} {
		clearing.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := guest.Clear(t.Context(), e.dial(), uid); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range 200 {
		if x, _, _ := e.run("true"); x.Code != 0 {
			t.Errorf("start %d: got = %+v, want status 0", i, x)
			break
		}
	}
	close(stop)
	clearing.Wait()
}

func TestProbeSeesWhoListens(t *testing.T) {
	e := newWorld(t).start("env-1")
	probe := func() bool {
		open, err := guest.Probe(t.Context(), e.dial(), 7777)
		if err != nil {
			t.Fatal(err)
		}
		return open
	}
	if probe() {
		t.Error("nobody listens, and the port is open")
	}
	e.launch(guest.Command{Argv: []string{"perl", "-MIO::Socket::INET", "-e", `my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1:7777", Listen => 5) or die; sleep 1000`}})
	for deadline := time.Now().Add(5 * time.Second); !probe(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the port stays closed")
		}
	}
}
