package local

import (
	"context"
	"crypto/rand"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
)

// up makes an environment that listens at port 2929.
func up(t *testing.T, d *Driver, isolation mayfly.Isolation) (driver.Handle, driver.Spec, net.Listener) {
	t.Helper()
	put(t, d, lock(t))
	h := driver.Handle{Environment: "env-listen", Isolation: isolation, UIDBase: 0x3000_0000}
	s := driver.Spec{Template: lock(t).Template, Limits: mayfly.DefaultLimits}
	t.Cleanup(func() { d.Destroy(context.Background(), h) })
	if err := d.Create(t.Context(), h, s); err != nil {
		t.Fatal(err)
	}
	if err := d.Start(t.Context(), h, s); err != nil {
		t.Fatal(err)
	}
	l, err := d.Listen(t.Context(), h, 2929)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return h, s, l
}

func accept(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(30 * time.Second))
	t.Cleanup(func() { conn.Close() })
	return conn
}

func launch(t *testing.T, d *Driver, h driver.Handle, s driver.Spec, run, script string) {
	t.Helper()
	p := driver.Process{Run: run, Command: []string{"bash", "-c", script}, Output: 1 << 20}
	if err := d.StartProcess(t.Context(), h, s, p); err != nil {
		t.Fatal(err)
	}
}

func TestListenerCarriesBytesBothWays(t *testing.T) {
	for _, isolation := range isolations {
		t.Run(string(isolation), func(t *testing.T) {
			d := open(t, "")
			h, s, l := up(t, d, isolation)
			// Every byte goes in, comes back, and goes to the file.
			launch(t, d, h, s, "run-echo", "exec 3<>/dev/tcp/127.0.0.1/2929; cat <&3 | tee copy >&3")
			conn := accept(t, l)
			sent := make([]byte, 8<<20)
			rand.Read(sent)
			var group errgroup.Group
			group.Go(func() error { _, err := conn.Write(sent); return err })
			got := make([]byte, len(sent))
			if _, err := io.ReadFull(conn, got); err != nil {
				t.Fatal(err)
			}
			if err := group.Wait(); err != nil {
				t.Fatal(err)
			}
			if string(got) != string(sent) {
				t.Error("what came back is not what was sent")
			}
			if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Fatal(err)
			}
			if exit, err := d.WaitProcess(t.Context(), h, "run-echo"); err != nil || exit.Code != 0 {
				t.Errorf("after the end of what was sent: got = %+v, %v", exit, err)
			}
			if n, err := conn.Read(got); err != io.EOF {
				t.Errorf("after the end of the process: got = %d bytes, %v, want %v", n, err, io.EOF)
			}
		})
	}
}

func TestListenerTakesManyConnectionsAndTheirEnds(t *testing.T) {
	const many = 300 // more than a guest relays at a time; half of them are accepted
	for _, isolation := range isolations {
		t.Run(string(isolation), func(t *testing.T) {
			d := open(t, "")
			h, s, l := up(t, d, isolation)
			launch(t, d, h, s, "run-many", `for i in $(seq 300); do eval "exec $((i+10))<>/dev/tcp/127.0.0.1/2929" && echo $i >&$((i+10)); done; exec sleep 1000`)
			seen := map[string]bool{}
			var conns []net.Conn
			for range many / 2 {
				conn := accept(t, l)
				b := make([]byte, 8)
				n, err := conn.Read(b)
				if err != nil {
					t.Fatal(err)
				}
				seen[strings.TrimSpace(string(b[:n]))] = true
				conns = append(conns, conn)
			}
			if len(seen) != many/2 {
				t.Errorf("different connections: got = %d, want %d", len(seen), many/2)
			}
			if err := d.SignalProcess(t.Context(), h, "run-many", 9); err != nil {
				t.Fatal(err)
			}
			for _, conn := range conns {
				if n, err := conn.Read(make([]byte, 8)); err == nil {
					t.Fatalf("read after the process was killed: got = %d bytes", n)
				}
			}
		})
	}
}

func TestNextServerListensAgain(t *testing.T) {
	for _, isolation := range isolations {
		t.Run(string(isolation), func(t *testing.T) {
			d := open(t, "")
			h, s, l := up(t, d, isolation)
			launch(t, d, h, s, "run-1", "exec 3<>/dev/tcp/127.0.0.1/2929; echo >&3; exec sleep 1000")
			accept(t, l) // and stays open
			l.Close()
			next := New(Options{Dir: d.dir, Pool: d.pool, Runtimes: d.runtimes, Log: d.log})
			again, err := next.Listen(t.Context(), h, 2929)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { again.Close() })
			launch(t, d, h, s, "run-2", "exec 3<>/dev/tcp/127.0.0.1/2929; echo again >&3")
			b := make([]byte, 16)
			n, err := accept(t, again).Read(b)
			if err != nil || string(b[:n]) != "again\n" {
				t.Errorf("got = %q, %v, want %q", b[:n], err, "again\n")
			}
		})
	}
}

func TestPortHeldInsideIsAConflict(t *testing.T) {
	for _, isolation := range isolations {
		t.Run(string(isolation), func(t *testing.T) {
			d := open(t, "")
			h, _, _ := up(t, d, isolation)
			if _, err := d.Listen(t.Context(), h, 2929); mayfly.KindOf(err) != mayfly.Conflict {
				t.Errorf("got = %v, want kind %s", err, mayfly.Conflict)
			}
			for _, port := range []int{-1, 0, 65536} {
				if _, err := d.Listen(t.Context(), h, port); mayfly.KindOf(err) != mayfly.Invalid {
					t.Errorf("port %d: got = %v, want kind %s", port, err, mayfly.Invalid)
				}
			}
		})
	}
}
