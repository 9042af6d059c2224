package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/cgroup"
	"mayfly.dev/mayfly/internal/guest"
	"mayfly.dev/mayfly/internal/sandbox"
)

func TestCommandHasFixedIdentityAndNoPowers(t *testing.T) {
	e := newWorld(t).start("env-1")
	for _, c := range []struct{ name, script, want string }{
		{"hostname", "uname -n", "mayfly"},
		{"user", "id -un; id -u; id -g; id -G", "agent\n1000\n1000\n1000"},
		{"umask", "umask", "0022"},
		{"directory", "pwd", "/"},
		{"variables", "env | grep -v -e ^PWD= -e ^_= -e ^SHLVL= -e ^OLDPWD= | sort", "HOME=/home/agent\nLANG=C.UTF-8\nPATH=/usr/local/bin:/usr/bin:/bin\nTZ=UTC\nUSER=agent"},
		{"time zone", "date +%Z", "UTC"},
		{"capabilities", "grep -c '^Cap[A-Z][a-z]*:.0000000000000000$' /proc/self/status", "5"},
		{"no new privileges", "grep NoNewPrivs /proc/self/status | cut -f2", "1"},
		{"seccomp", "grep -w Seccomp /proc/self/status | cut -f2", "2"},
		{"interfaces", "sed -n 's/^ *\\(.*\\):.*/\\1/p' /proc/net/dev", "lo"},
		{"loopback is up", "cat /proc/net/fib_trie | grep -c 127.0.0.1", "2"},
		{"control group", "cut -d: -f3 /proc/self/cgroup | sort -u", "/"},
		{"session", "cut -d' ' -f6 /proc/$$/stat | grep -qx $$ && echo leader", "leader"},
		{"descriptors", "for f in 0 1 2 3 4 5 6 7 8 9; do test -e /proc/$$/fd/$f && echo $f; done; true", "0\n1\n2"},
		{"killed before the guest", "cat /proc/self/oom_score_adj /proc/1/oom_score_adj", "500\n0"},
		{"core dumps", "ulimit -c", "0"},
		{"devices", "ls /dev | tr '\\n' ' '", "fd full null ptmx pts random shm stderr stdin stdout tty urandom zero "},
		{"devices work", "echo x >/dev/null; head -c 3 /dev/zero | wc -c; head -c 3 /dev/urandom | wc -c; echo a >/dev/shm/f; cat /dev/shm/f; echo err >/dev/stderr; echo out >/dev/stdout", "3\n3\na\nout"},
		{"no content of sys", "ls -A /sys | wc -l", "0"},
		{"processes", "test $(ls -d /proc/[0-9]* | wc -l) -lt 6 && echo few", "few"},
		{"hidden", "cat /proc/kcore /proc/keys /proc/timer_list /proc/interrupts 2>/dev/null | wc -c", "0"},
		{"mounts", "cut -d' ' -f5 /proc/self/mountinfo | grep -v ^/proc/ | sort -u | tr '\\n' ' '", "/ /dev /dev/full /dev/null /dev/pts /dev/random /dev/shm /dev/tty /dev/urandom /dev/zero /probe /proc /sys /usr /var/lib/mayfly-db "},
	} {
		t.Run(c.name, func(t *testing.T) {
			if aboutHost[c.name] {
				onHostKernel(t)
			}
			e := &env{world: e.world, t: t, spec: e.spec}
			e.runs.Store(time.Now().UnixNano())
			if got := e.shell(c.script); got != c.want {
				t.Errorf("got = %q, want %q", got, c.want)
			}
		})
	}
}

func TestDoorsAreShut(t *testing.T) {
	w := newWorld(t)
	e := w.start("env-1")
	for _, c := range []struct{ name, script string }{
		{"kernel settings", "echo 1 >/proc/sys/kernel/sysrq"},
		{"own kernel settings", "echo 1 >/proc/sys/net/ipv4/ip_forward"},
		{"sysrq", "echo b >/proc/sysrq-trigger; test -s /proc/sysrq-trigger"},
		{"sys", "mkdir /sys/x"},
		{"usr", "touch /usr/x"},
		{"dev", "touch /dev/x"},
		{"root", "touch /x"},
		{"user namespaces", "unshare -U true"},
		{"mount", "mount -t tmpfs none /tmp"},
		{"guest's files", "ls /proc/1/fd /proc/1/root"},
		{"guest's death", "kill -9 1"},
		{"set-user-id programs", "su -c true </dev/null"},
		{"more files", "ulimit -n 10000000"},
		{"lower score", "echo 0 >/proc/self/oom_score_adj"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if aboutHost[c.name] {
				onHostKernel(t)
			}
			e := &env{world: w, t: t, spec: e.spec}
			e.runs.Store(time.Now().UnixNano())
			if x, stdout, _ := e.run("sh", "-c", c.script); x.Code == 0 {
				t.Errorf("sh -c %q: succeeded, %q", c.script, stdout)
			}
		})
	}
}

func TestSystemCallFilter(t *testing.T) {
	onHostKernel(t)
	w := newWorld(t)
	e, nested := w.start("env-1"), w.start("env-2", func(s *sandbox.Spec) { s.Nested = true })
	probe := "/probe/" + filepath.Base(os.Args[0])
	const high = 1 << 32 // a bit that the kernel ignores in an int
	for _, c := range []struct {
		name         string
		call         []any
		want, inside string // inside: where sandboxes nest, if that differs
	}{
		{"getpid", []any{unix.SYS_GETPID}, "ok", ""},
		{"bpf", []any{unix.SYS_BPF, 0, 0, 0}, "EPERM", ""},
		{"perf_event_open", []any{unix.SYS_PERF_EVENT_OPEN}, "EPERM", ""},
		{"userfaultfd", []any{unix.SYS_USERFAULTFD, 1}, "EPERM", ""},
		{"io_uring_setup", []any{unix.SYS_IO_URING_SETUP, 1, 0}, "ENOSYS", ""},
		{"keyctl", []any{unix.SYS_KEYCTL, 0, 0}, "EPERM", ""},
		{"syslog", []any{unix.SYS_SYSLOG, 10}, "EPERM", ""},
		{"clone3", []any{unix.SYS_CLONE3, 0, 0}, "ENOSYS", "EINVAL"},
		{"clone new user", []any{unix.SYS_CLONE, unix.CLONE_NEWUSER | unix.CLONE_FS}, "EPERM", "EINVAL"},
		{"clone new net with more bits", []any{unix.SYS_CLONE, high | unix.CLONE_NEWNET | unix.CLONE_NEWUSER | unix.CLONE_FS}, "EPERM", "EINVAL"},
		{"unshare files", []any{unix.SYS_UNSHARE, unix.CLONE_FILES}, "ok", ""},
		{"unshare time", []any{unix.SYS_UNSHARE, unix.CLONE_NEWTIME}, "EPERM", ""},
		{"mount", []any{unix.SYS_MOUNT, 0, 0, 0, 0, 0}, "EPERM", "EFAULT"},
		{"open_tree_attr", []any{467, 0, 0, 0, 0, 0}, "EPERM", "EFAULT"},
		{"setns", []any{unix.SYS_SETNS, 0, 0}, "EPERM", "EINVAL"},
		{"socket inet", []any{unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM, 0}, "ok", ""},
		{"socket route", []any{unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE}, "ok", ""},
		{"socket audit", []any{unix.SYS_SOCKET, unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT}, "EAFNOSUPPORT", ""},
		{"socket vsock", []any{unix.SYS_SOCKET, unix.AF_VSOCK, unix.SOCK_STREAM, 0}, "EAFNOSUPPORT", ""},
		{"socket alg", []any{unix.SYS_SOCKET, unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, "EAFNOSUPPORT", ""},
		{"socket alg with more bits", []any{unix.SYS_SOCKET, high | unix.AF_ALG, unix.SOCK_SEQPACKET, 0}, "EAFNOSUPPORT", ""},
		{"socket packet", []any{unix.SYS_SOCKET, unix.AF_PACKET, unix.SOCK_RAW, 0}, "EAFNOSUPPORT", ""},
		{"ioctl TIOCSTI", []any{unix.SYS_IOCTL, 0, unix.TIOCSTI, 0}, "EPERM", ""},
		{"ioctl TIOCSTI with more bits", []any{unix.SYS_IOCTL, 0, high | unix.TIOCSTI, 0}, "EPERM", ""},
		{"ioctl TCGETS", []any{unix.SYS_IOCTL, 0, unix.TCGETS, 0}, "ENOTTY", ""},
		{"personality query", []any{unix.SYS_PERSONALITY, 0xffffffff}, "ok", ""},
		{"personality read implies exec", []any{unix.SYS_PERSONALITY, 0x0400000}, "EPERM", ""},
		{"x32 getpid", []any{0x40000000 | unix.SYS_GETPID}, "ENOSYS", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			words := make([]string, len(c.call))
			for i, n := range c.call {
				words[i] = fmt.Sprint(n)
			}
			if c.inside == "" {
				c.inside = c.want
			}
			for e, want := range map[*env]string{e: c.want, nested: c.inside} {
				if aboutHost[c.name] {
					onHostKernel(t)
				}
				e := &env{world: w, t: t, spec: e.spec}
				e.runs.Store(time.Now().UnixNano())
				run := e.launch(guest.Command{Argv: []string{probe}, Env: []string{probeVariable + "=" + strings.Join(words, ",")}})
				a := e.attach(run)
				got, _, _ := read(t, a)
				a.Close()
				if x := e.wait(run); x.Code != 0 || strings.TrimSpace(got) != want {
					t.Errorf("nested %v: got = %d %q, want %q", e.spec.Nested, x.Code, got, want)
				}
			}
		})
	}
}

func TestRenameBetweenDirectoriesMovesTheFile(t *testing.T) {
	e := newWorld(t).start("env-1")
	if got := e.shell("echo x >/tmp/f; stat -c %i /tmp/f >/tmp/before; mv /tmp/f /workspace/f; stat -c %i /workspace/f | cmp - /tmp/before && ln /workspace/f /tmp/g && echo same"); got != "same" {
		t.Errorf("got = %q, want same", got)
	}
}

func TestNestedSandboxesCanBeMade(t *testing.T) {
	e := newWorld(t).start("env-1", func(s *sandbox.Spec) { s.Nested = true })
	if got := e.shell("unshare --user --map-root-user --mount --pid --fork sh -c 'mount -t proc proc /proc && mount -t tmpfs none /tmp && id -u'"); got != "0" {
		t.Errorf("got = %q, want 0", got)
	}
}

func TestFilesLieOnDiskUnderTheIdsSeenInside(t *testing.T) {
	w := newWorld(t)
	e := w.start("env-1")
	e.shell("echo hi >/workspace/f; mkdir /workspace/d; mv /workspace/d /workspace/e; echo row >/var/lib/mayfly-db/f; sync")
	for _, path := range []string{filepath.Join(e.spec.Upper, "workspace/f"), filepath.Join(e.spec.DB, "f"), filepath.Join(e.spec.Upper, "workspace/e")} {
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			t.Fatal(err)
		}
		if st.Uid != sandbox.UID || st.Gid != sandbox.GID {
			t.Errorf("%s: got = %d:%d, want %d:%d", path, st.Uid, st.Gid, sandbox.UID, sandbox.GID)
		}
	}
	if err := w.runtime.Stop(t.Context(), "env-1"); err != nil {
		t.Fatal(err)
	}
	if err := w.runtime.Start(t.Context(), e.spec); err != nil {
		t.Fatalf("start on the same volume: %v", err)
	}
	if got := e.shell("cat /workspace/f; rmdir /workspace/e && echo gone"); got != "hi\ngone" {
		t.Errorf("got = %q, want hi, gone", got)
	}
}

func TestFreezeStopsEverything(t *testing.T) {
	w := newWorld(t)
	e := w.start("env-1")
	e.launch(guest.Command{Argv: []string{"sh", "-c", "i=0; while :; do i=$((i+1)); echo $i >/workspace/count; done"}})
	count := func() string {
		b, _ := os.ReadFile(filepath.Join(e.spec.Upper, "workspace/count"))
		return string(b)
	}
	for count() == "" {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		begin := time.Now()
		if err := w.runtime.Freeze(t.Context(), "env-1"); err != nil {
			t.Fatal(err)
		}
		took := time.Since(begin)
		before := count()
		time.Sleep(20 * time.Millisecond)
		if after := count(); after != before {
			t.Errorf("frozen, and the count went from %s to %s", before, after)
		}
		if s, err := w.runtime.Inspect(t.Context(), "env-1"); s != sandbox.Frozen {
			t.Errorf("got = %v %v, want frozen", s, err)
		}
		if err := w.runtime.Start(t.Context(), e.spec); err != nil {
			t.Errorf("start of a frozen sandbox: got = %v, want nil", err)
		}
		if err := w.runtime.Freeze(t.Context(), "env-1"); err != nil {
			t.Errorf("freeze again: %v", err)
		}
		if err := w.runtime.Thaw(t.Context(), "env-1"); err != nil {
			t.Fatal(err)
		}
		t.Logf("froze in %v", took)
	}
	if got := e.shell("echo on"); got != "on" {
		t.Errorf("after thaw: got = %q, want on", got)
	}
	if err := w.runtime.Freeze(t.Context(), "env-1"); err != nil {
		t.Fatal(err)
	}
	if err := w.runtime.Stop(t.Context(), "env-1"); err != nil {
		t.Errorf("stop of a frozen sandbox: %v", err)
	}
}

func TestStatesOfASandbox(t *testing.T) {
	w := newWorld(t)
	state := func() sandbox.State {
		t.Helper()
		s, err := w.runtime.Inspect(t.Context(), "env-1")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	if got := state(); got != sandbox.Gone {
		t.Errorf("before: got = %v, want gone", got)
	}
	e := w.start("env-1")
	if got := state(); got != sandbox.Alive {
		t.Errorf("started: got = %v, want alive", got)
	}
	if err := w.runtime.Start(t.Context(), e.spec); err != nil {
		t.Errorf("start again: %v", err)
	}
	if err := w.groups.Kill(t.Context(), "env-1"); err != nil {
		t.Fatal(err)
	}
	if got := state(); got != sandbox.Remains {
		t.Errorf("killed: got = %v, want remains", got)
	}
	if names, err := w.runtime.List(t.Context()); err != nil || len(names) != 1 || names[0] != "env-1" {
		t.Errorf("list: got = %v %v, want env-1", names, err)
	}
	if _, err := w.runtime.Dial(t.Context(), e.spec); mayfly.KindOf(err) != mayfly.Unavailable {
		t.Errorf("dial: got = %v, want unavailable", err)
	}
	if err := w.runtime.Start(t.Context(), e.spec); err != nil {
		t.Errorf("start upon remains: %v", err)
	}
	if got := e.shell("echo back"); got != "back" {
		t.Errorf("got = %q, want back", got)
	}
	for range 2 {
		if err := w.runtime.Stop(t.Context(), "env-1"); err != nil {
			t.Errorf("stop: %v", err)
		}
	}
	if got := state(); got != sandbox.Gone {
		t.Errorf("stopped: got = %v, want gone", got)
	}
	for name, err := range map[string]error{
		"freeze": w.runtime.Freeze(t.Context(), "env-1"),
		"thaw":   w.runtime.Thaw(t.Context(), "env-1"),
	} {
		if mayfly.KindOf(err) != mayfly.NotFound {
			t.Errorf("%s of a missing sandbox: got = %v, want not found", name, err)
		}
	}
}

func TestFailedStartLeavesNothing(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*sandbox.Spec){
		"no lower layer": func(s *sandbox.Spec) { s.Lower = []string{filepath.Join(w.dir, "no-such")} },
		"no bind source": func(s *sandbox.Spec) { s.Binds = append(s.Binds, sandbox.Bind{Source: "/no/such", Target: "/usr"}) },
		"no bind target": func(s *sandbox.Spec) { s.Binds = append(s.Binds, sandbox.Bind{Source: "/usr", Target: "/no/such"}) },
		"bind target climbs": func(s *sandbox.Spec) {
			s.Binds = append(s.Binds, sandbox.Bind{Source: "/usr", Target: "/../../no/such"})
		},
		"relative target":     func(s *sandbox.Spec) { s.Binds = append(s.Binds, sandbox.Bind{Source: "/usr", Target: "usr"}) },
		"upper and work part": func(s *sandbox.Spec) { s.Work = filepath.Join(w.dir, "elsewhere") },
	} {
		t.Run(name, func(t *testing.T) {
			if err := w.runtime.Start(t.Context(), w.spec("env-1", change)); err == nil {
				t.Error("started")
			}
			if s, err := w.runtime.Inspect(t.Context(), "env-1"); s != sandbox.Gone {
				t.Errorf("got = %v %v, want gone", s, err)
			}
		})
	}
}

func TestGuestOutlivesTheServer(t *testing.T) {
	w := newWorld(t)
	e := w.start("env-1")
	run := e.launch(guest.Command{Stdin: true, Argv: []string{"sh", "-c", "echo one; read x; echo got $x; exit 4"}})
	a := e.attach(run)
	if o, err := a.Recv(); err != nil || string(o.Data) != "one\n" {
		t.Fatalf("got = %q %v, want one", o.Data, err)
	}
	a.Close()
	if err := w.runtime.Close(); err != nil {
		t.Fatal(err)
	}
	rt, err := newRuntime(w.options())
	if err != nil {
		t.Fatal(err)
	}
	w.runtime = rt
	if s, err := rt.Inspect(t.Context(), "env-1"); s != sandbox.Alive {
		t.Fatalf("got = %v %v, want alive", s, err)
	}
	if err := rt.Start(t.Context(), e.spec); err != nil {
		t.Fatal(err)
	}
	a = e.attach(run)
	defer a.Close()
	if _, err := a.Write([]byte("two\n")); err != nil {
		t.Fatal(err)
	}
	if got, _, _ := read(t, a); got != "one\ngot two\n" {
		t.Errorf("got = %q, want one, got two", got)
	}
	if x := e.wait(run); x.Code != 4 {
		t.Errorf("got = %d, want 4", x.Code)
	}
}

func TestStopFromAnotherServer(t *testing.T) {
	w := newWorld(t)
	e := w.start("env-1")
	e.launch(guest.Command{Argv: []string{"sleep", "1000"}})
	other, err := newRuntime(w.options())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Stop(t.Context(), "env-1"); err != nil {
		t.Fatal(err)
	}
	if s, err := w.runtime.Inspect(t.Context(), "env-1"); s != sandbox.Gone {
		t.Errorf("got = %v %v, want gone", s, err)
	}
}

func TestLauncherIsReplaced(t *testing.T) {
	onHostKernel(t)
	w := newWorld(t)
	w.start("env-1")
	var launcher int
	for _, stat := range children(t) {
		fmt.Sscanf(stat, "%d", &launcher)
	}
	if launcher == 0 {
		t.Fatal("no launcher among the children")
	}
	if err := unix.Kill(launcher, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if got := w.start("env-2").shell("echo on"); got != "on" {
		t.Errorf("got = %q, want on", got)
	}
	if s, err := w.runtime.Inspect(t.Context(), "env-1"); s != sandbox.Alive {
		t.Errorf("environment of the former launcher: got = %v %v, want alive", s, err)
	}
}

func TestAttachmentEndsWhenTheGuestDies(t *testing.T) {
	w := newWorld(t)
	e := w.start("env-1")
	run := e.launch(guest.Command{Argv: []string{"sh", "-c", "echo hi; sleep 1000"}})
	a := e.attach(run)
	defer a.Close()
	if _, err := a.Recv(); err != nil {
		t.Fatal(err)
	}
	if err := w.runtime.Stop(t.Context(), "env-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Recv(); err != io.EOF {
		t.Errorf("got = %v, want EOF", err)
	}
	if _, err := guest.ReadExit(e.spec.Host, run); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("exit record: got = %v, want none", err)
	}
}

func TestFiftyStartInParallel(t *testing.T) {
	w := newWorld(t)
	var all sync.WaitGroup
	specs := make([]sandbox.Spec, 50)
	for i := range specs {
		specs[i] = w.spec(fmt.Sprintf("env-%d", i))
	}
	begin := time.Now()
	for _, s := range specs {
		all.Go(func() {
			if err := w.runtime.Start(t.Context(), s); err != nil {
				t.Error(err)
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			conn, err := w.runtime.Dial(ctx, s)
			if err == nil {
				err = guest.Start(ctx, conn, guest.Command{Run: "one", Argv: []string{"sh", "-c", "exit 9"}})
			}
			if err != nil {
				t.Error(err)
				return
			}
			conn, err = w.runtime.Dial(ctx, s)
			if err != nil {
				t.Error(err)
				return
			}
			if x, err := guest.Wait(ctx, conn, "one"); err != nil || x.Code != 9 {
				t.Errorf("got = %+v %v, want 9", x, err)
			}
		})
	}
	all.Wait()
	t.Logf("50 environments in %v", time.Since(begin))
}

func TestLimitsAreInForce(t *testing.T) {
	onHostKernel(t)
	w := newWorld(t)
	w.start("env-1", func(s *sandbox.Spec) { s.Limits = mayfly.Limits{CPU: 0.25, Memory: 96 << 20, PIDs: 50} })
	groups, err := cgroup.Open(cgroup.Options{Installation: "other"})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, _, _, err := groups.Usage("env-1"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("usage in another installation: got = %v, want not exist", err)
	}
	e := w.use(w.spec("env-1"))
	begin := time.Now()
	x, _, _ := e.run("sh", "-c", "i=0; while [ $i -lt 400000 ]; do i=$((i+1)); done")
	wall, cpu := time.Since(begin), x.Usage.UserCPU+x.Usage.SystemCPU
	if cpu > 200*time.Millisecond && float64(cpu)/float64(wall) > 0.5 {
		t.Errorf("%v of CPU in %v, want a quarter", cpu, wall)
	}
}

func TestSocketOfDeepDirectoryIsReached(t *testing.T) {
	w := newWorld(t)
	w.dir = filepath.Join(w.dir, strings.Repeat("d", 120), strings.Repeat("e", 120))
	e := w.start("env-1")
	if got := e.shell("echo deep"); got != "deep" {
		t.Errorf("got = %q, want deep", got)
	}
}

func TestSignalsOfTheTerminalDoNotReachGuests(t *testing.T) {
	w := newWorld(t)
	e := w.start("env-1")
	x, stdout, _ := e.run("sh", "-c", "cut -d' ' -f5,6 /proc/1/stat")
	if x.Code != 0 || strings.TrimSpace(stdout) != "1 1" {
		t.Errorf("process group and session of the guest: got = %q, want its own", stdout)
	}
}
