package autostart

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// The test binary is the server when this variable says how.
const behaviour = "AUTOSTART_TEST_SERVER"

func TestMain(m *testing.M) {
	if how := os.Getenv(behaviour); how != "" {
		os.Exit(testServer(how, os.Args[len(os.Args)-1]))
	}
	os.Exit(m.Run())
}

func testServer(how, dir string) int {
	switch how {
	case "broken":
		fmt.Fprintln(os.Stderr, "first line\nno such kernel feature")
		return 3
	case "silent":
		return 3
	case "slow":
		fmt.Fprintln(os.Stderr, "still loading")
		time.Sleep(3 * time.Second)
		return 0
	}
	lock, err := Lock(dir)
	if err != nil {
		return mayfly.KindOf(err).ExitStatus()
	}
	defer lock.Close()
	f, _ := os.OpenFile(filepath.Join(dir, "winners"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	fmt.Fprintln(f, os.Getpid(), os.Getenv("SECRET"))
	f.Close()
	time.Sleep(30 * time.Millisecond) // the losers must wait for the winner
	l, err := net.Listen("unix", filepath.Join(dir, SocketName))
	if err != nil {
		return 1
	}
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(dir, "stop")); err == nil {
			break
		}
	}
	l.Close()
	return 0
}

func server(t *testing.T, how string) Server {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	return Server{
		State:   dir,
		Command: []string{os.Args[0], dir},
		Env:     []string{behaviour + "=" + how},
		Ready: func(context.Context) bool {
			c, err := net.Dial("unix", filepath.Join(dir, SocketName))
			if err == nil {
				c.Close()
			}
			return err == nil
		},
	}
}

func TestManyStartsMakeOneServer(t *testing.T) {
	t.Setenv("SECRET", "of the caller")
	s := server(t, "good")
	t.Cleanup(func() { os.WriteFile(filepath.Join(s.State, "stop"), nil, 0o600) })
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if err := s.Start(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	b, err := os.ReadFile(filepath.Join(s.State, "winners"))
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(b), "\n"); n != 1 {
		t.Errorf("%d servers got the lock, want 1", n)
	}
	if strings.Contains(string(b), "of the caller") {
		t.Error("the server has the caller's environment")
	}
	var pid, sid int
	fmt.Sscan(string(b), &pid)
	out, err := exec.Command("ps", "-o", "sid=", "-p", fmt.Sprint(pid)).Output()
	if _, scan := fmt.Sscan(string(out), &sid); err != nil || scan != nil || sid != pid {
		t.Errorf("session of the server = %q, %v, want its own, %d", out, err, pid)
	}
}

func TestStartWaitsForAServerThatIsStopping(t *testing.T) {
	s := server(t, "good")
	t.Cleanup(func() { os.WriteFile(filepath.Join(s.State, "stop"), nil, 0o600) })
	if err := os.MkdirAll(s.State, 0o755); err != nil {
		t.Fatal(err)
	}
	stopping, err := Lock(s.State)
	if err != nil {
		t.Fatal(err)
	}
	time.AfterFunc(300*time.Millisecond, func() { stopping.Close() })
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if log, err := os.ReadFile(filepath.Join(s.State, LogName)); err != nil || len(log) > 0 {
		t.Errorf("log = %q, %v, want nothing: no server tried in vain", log, err)
	}
}

func TestFailureShowsTheEndOfTheLog(t *testing.T) {
	s := server(t, "broken")
	if err := os.MkdirAll(s.State, 0o755); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(s.State, LogName)
	if err := os.WriteFile(old, []byte("from long ago\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := s.Start(t.Context())
	if mayfly.KindOf(err) != mayfly.Unavailable || !strings.Contains(err.Error(), "no such kernel feature") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("Start = %v, want the status and the log", err)
	}
	if strings.Contains(err.Error(), "long ago") {
		t.Errorf("Start = %v, which shows an earlier server's log", err)
	}
	if err := server(t, "silent").Start(t.Context()); err == nil || !strings.Contains(err.Error(), "wrote nothing") {
		t.Errorf("Start = %v, want that it wrote nothing", err)
	}
}

func TestSlowServerIsGivenUp(t *testing.T) {
	s := server(t, "slow")
	s.Patience = 300 * time.Millisecond
	if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "does not answer after 300ms") || !strings.Contains(err.Error(), "still loading") {
		t.Errorf("Start = %v, want that it does not answer", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := s.Start(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Start = %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestLockIsExclusiveUntilClosed(t *testing.T) {
	dir := t.TempDir()
	first, err := Lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(dir); mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("second Lock = %v, want kind %v", err, mayfly.Conflict)
	}
	first.Close()
	second, err := Lock(dir)
	if err != nil {
		t.Fatalf("Lock after Close: %v", err)
	}
	second.Close()
}
