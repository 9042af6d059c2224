//go:build linux

package postgres

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

func TestInstanceStopsCleanlyAndStartsAgain(t *testing.T) {
	i := instance(t, copyOf(t, baseline(t)))
	r := start(t, i)
	if got := query(t, r, "SELECT count(*) FROM customer"); got != "1000" {
		t.Errorf("rows = %s, want 1000", got)
	}
	query(t, r, "UPDATE counter SET n = 7 RETURNING n")
	must(t, r.Checkpoint(t.Context()))
	must(t, r.Stop(t.Context()))
	if got := query(t, start(t, i), "SELECT n FROM counter"); got != "7" {
		t.Errorf("after a restart n = %s, want 7", got)
	}
}

func TestKilledInstanceRecoversWithStaleFilesThere(t *testing.T) {
	i := instance(t, copyOf(t, baseline(t)))
	r := start(t, i)
	query(t, r, "UPDATE counter SET n = 8 RETURNING n")
	must(t, r.Kill(t.Context()))
	if !exists(filepath.Join(i.Data.Host, "postmaster.pid")) || !exists(i.Path()) {
		t.Fatal("a killed server left no pid file and socket: this tests nothing")
	}
	slot := filepath.Join(i.Data.Host, "pg_replslot", "left")
	must(t, os.Mkdir(slot, 0o755))
	if got := query(t, start(t, i), "SELECT n FROM counter"); got != "8" {
		t.Errorf("after a kill n = %s, want 8", got)
	}
	if exists(slot) {
		t.Error("a replication slot is in a copy")
	}
}

func TestSlotsAreKeptOnRequest(t *testing.T) {
	i := instance(t, copyOf(t, baseline(t)))
	i.Settings = map[string]string{"wal_level": "logical"}
	r := start(t, i)
	query(t, r, "SELECT pg_create_logical_replication_slot('rows', 'test_decoding')")
	must(t, r.Kill(t.Context()))
	i.KeepSlots = true
	if got := query(t, start(t, i), "SELECT count(*) FROM pg_replication_slots"); got != "1" {
		t.Errorf("slots = %s, want 1", got)
	}
}

func TestStartFailsWithWhatPostgresSaid(t *testing.T) {
	i := instance(t, copyOf(t, baseline(t)))
	i.Settings = map[string]string{"shared_preload_libraries": "no_such_library"}
	_, err := Start(t.Context(), i)
	if err == nil || !strings.Contains(err.Error(), "no_such_library") {
		t.Errorf("error = %v, want the library's name in it", err)
	}
}

func TestStartEndsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	i := instance(t, copyOf(t, baseline(t)))
	if _, err := Start(ctx, i); err == nil {
		t.Error("no error")
	}
	if used(t, i.Data.Host) {
		t.Error("a server is left")
	}
}

func used(t *testing.T, dir string) bool {
	t.Helper()
	root, err := os.OpenRoot(dir)
	must(t, err)
	defer root.Close()
	return inUse(root)
}

func TestStartChecksVersionAndSocketPath(t *testing.T) {
	i := instance(t, copyOf(t, baseline(t)))
	i.Socket.Inside = "/" + strings.Repeat("x", 100)
	if _, err := Start(t.Context(), i); mayfly.KindOf(err) != mayfly.Invalid || !strings.Contains(err.Error(), "bytes") {
		t.Errorf("error = %v, want one about the length", err)
	}
	i = instance(t, i.Data.Host)
	must(t, os.WriteFile(filepath.Join(i.Data.Host, "PG_VERSION"), []byte("14\n"), 0o600))
	if _, err := Start(t.Context(), i); err == nil || !strings.Contains(err.Error(), "14") || !strings.Contains(err.Error(), "15") {
		t.Errorf("error = %v, want both versions in it", err)
	}
}

// What the user of the instance puts into its directory leads nowhere else.
func TestStartFollowsNoLinkOutOfTheDirectory(t *testing.T) {
	i := instance(t, copyOf(t, baseline(t)))
	outside := t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "precious"), []byte("x"), 0o600))
	for _, name := range []string{"pg_replslot", "pg_hba.conf"} {
		must(t, os.RemoveAll(filepath.Join(i.Data.Host, name)))
	}
	must(t, os.Symlink(outside, filepath.Join(i.Data.Host, "pg_replslot")))
	must(t, os.Symlink(filepath.Join(outside, "precious"), filepath.Join(i.Data.Host, "pg_hba.conf")))
	must(t, unix.Mkfifo(filepath.Join(i.Data.Host, "postmaster.pid"), 0o600))
	if r, err := Start(t.Context(), i); err == nil {
		must(t, r.Kill(t.Context()))
	}
	if b, err := os.ReadFile(filepath.Join(outside, "precious")); err != nil || string(b) != "x" {
		t.Errorf("a file outside = %q, %v", b, err)
	}
}

func TestSocketMayLieAtALongPathOnTheHost(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 40))
	must(t, os.Mkdir(dir, 0o755))
	r := start(t, instanceAt(t, copyOf(t, baseline(t)), dir))
	if got := query(t, r, "SELECT 1"); got != "1" {
		t.Errorf("got = %q, want 1", got)
	}
}

func TestTCPIsOnLoopbackOfItsOwnNamespaceOnly(t *testing.T) {
	i := instance(t, copyOf(t, baseline(t)))
	i.Address = "127.0.0.1"
	r := start(t, i)
	must(t, r.Grant(t.Context(), Login{Name: "tcp", Password: "pass word", Until: time.Now().Add(time.Hour), Owner: "app"}))
	p := r.Process.(*localProcess).cmd.Process.Pid
	for user, password := range map[string]string{"tcp": "pass word", Admin: secret} {
		config, err := i.config(user, password, "shop")
		must(t, err)
		config.DialFunc = func(context.Context, string, string) (net.Conn, error) { return dialIn(p) }
		conn, err := i.connect(t.Context(), config)
		if (err == nil) != (user != Admin) {
			t.Errorf("%s over TCP: %v", user, err)
		}
		if err == nil {
			conn.Close(t.Context())
		}
	}
	if conn, err := net.DialTimeout("tcp", "127.0.0.1:5432", time.Second); err == nil {
		conn.Close()
		if out, _ := os.ReadFile("/proc/net/tcp"); !strings.Contains(string(out), "0100007F:1538") {
			t.Error("the instance listens on this machine's loopback")
		}
	}
}

// dialIn connects to Postgres's port in the network namespace of a process.
func dialIn(pid int) (net.Conn, error) {
	type result struct {
		conn net.Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		runtime.LockOSThread() // and let it end
		ns, err := os.Open(filepath.Join("/proc", itoa(pid), "ns/net"))
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			ns.Close()
		}
		if err != nil {
			done <- result{err: err}
			return
		}
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrInet4{Port: Port, Addr: [4]byte{127, 0, 0, 1}})
		}
		if err != nil {
			done <- result{err: err}
			return
		}
		f := os.NewFile(uintptr(fd), "tcp")
		defer f.Close()
		conn, err := net.FileConn(f)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func TestSwapSendsNewConnectionsToTheOtherInstance(t *testing.T) {
	base := t.TempDir()
	dirs := map[string]string{}
	for _, name := range []string{"a", "b", "published"} {
		dirs[name] = filepath.Join(base, name)
		must(t, os.Mkdir(dirs[name], 0o755))
	}
	a := start(t, instanceAt(t, copyOf(t, baseline(t)), dirs["a"]))
	b := start(t, instanceAt(t, copyOf(t, baseline(t)), dirs["b"]))
	query(t, a, "UPDATE counter SET n = 1 RETURNING n")
	query(t, b, "UPDATE counter SET n = 2 RETURNING n")
	published := filepath.Join(dirs["published"], socketName)
	through := a
	through.Socket = Dir{Host: dirs["published"]}
	for _, step := range []struct {
		r    Running
		want string
	}{{a, "1"}, {a, "1"}, {b, "2"}, {a, "1"}} {
		must(t, step.r.Swap(published))
		if got := query(t, through, "SELECT n FROM counter"); got != step.want {
			t.Errorf("through the published socket n = %s, want %s", got, step.want)
		}
	}
	must(t, b.Swap(published))
	must(t, a.Stop(t.Context()))
	if got := query(t, through, "SELECT n FROM counter"); got != "2" {
		t.Errorf("after the other's end n = %s, want 2", got)
	}
	if left, _ := os.ReadDir(dirs["published"]); len(left) != 1 {
		t.Errorf("beside the published socket: %v", left)
	}
}

func TestKilledInstanceLeavesNoProcessAndNoSharedMemory(t *testing.T) {
	before, err := os.ReadFile("/proc/sysvipc/shm")
	must(t, err)
	r := start(t, instance(t, copyOf(t, baseline(t))))
	if !used(t, r.Data.Host) {
		t.Fatal("a running server is not seen: this tests nothing")
	}
	must(t, r.Kill(t.Context()))
	deadline := time.Now().Add(5 * time.Second)
	for used(t, r.Data.Host) && time.Now().Before(deadline) {
		time.Sleep(time.Millisecond)
	}
	if used(t, r.Data.Host) {
		t.Error("a process is left")
	}
	after, err := os.ReadFile("/proc/sysvipc/shm")
	must(t, err)
	if strings.Count(string(after), itoa(testUID)) > strings.Count(string(before), itoa(testUID)) {
		t.Errorf("segments left:\n%s", after)
	}
	must(t, r.Process.Signal(t.Context(), syscall.SIGTERM))
}

func TestClonerCopiesOnceAndRemoves(t *testing.T) {
	c := DirectoryCloner{Directory: baseline(t), Root: t.TempDir()}
	first, err := c.Clone(t.Context(), "one")
	must(t, err)
	mark := filepath.Join(first.Directory, "mark")
	must(t, os.WriteFile(mark, nil, 0o600))
	again, err := c.Clone(t.Context(), "one")
	if err != nil || again.Directory != first.Directory || !exists(mark) {
		t.Errorf("asked again = %+v, %v, want the same copy", again, err)
	}
	o := options(t, nil)
	o.Source = first
	if got := query(t, start(t, instance(t, prepare(t, o))), "SELECT count(*) FROM customer"); got != "1000" {
		t.Errorf("rows = %s, want 1000", got)
	}
	must(t, c.Remove(t.Context(), "one"))
	must(t, c.Remove(t.Context(), "one"))
	if left, _ := os.ReadDir(c.Root); len(left) > 0 {
		t.Errorf("left = %v", left)
	}
	if _, err := c.Clone(t.Context(), "../x"); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("error = %v, want invalid", err)
	}
}
