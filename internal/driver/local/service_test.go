package local

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/manifest"
	"mayfly.dev/mayfly/internal/volume"
)

// templateOf prepares a template from a manifest and files.
func templateOf(t testing.TB, d *Driver, services string, files map[string]string) (mayfly.Lock, error) {
	t.Helper()
	l, said, err := prepareOf(t, d, services, files)
	t.Log(said)
	return l, err
}

// prepareOf also returns what is said meanwhile.
func prepareOf(t testing.TB, d *Driver, services string, files map[string]string) (mayfly.Lock, string, error) {
	t.Helper()
	m, err := manifest.Parse("mayfly.yaml", []byte("name: test\nservices:\n"+services))
	if err != nil {
		t.Fatal(err)
	}
	pinned := map[string]string{}
	for name := range files {
		if m.IsPinned(name) {
			pinned[name] = "sha256:" + strings.Repeat("d", 64)
		}
	}
	base := lock(t)
	l, err := manifest.Resolve(m, base.Base, base.Workspace, pinned, base.Epoch)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	err = d.PutTemplate(t.Context(), l, workspace(files), &log)
	return l, log.String(), err
}

// place is an environment with services.
type place struct {
	testing.TB
	d    *Driver
	h    driver.Handle
	s    driver.Spec
	runs []string // admitted by the test itself

	until time.Time // of their passwords
}

var places uint32

// enter makes an environment; from is a snapshot to fork, or nil.
func enter(t testing.TB, d *Driver, l mayfly.Lock, from *mayfly.SnapshotRef) *place {
	t.Helper()
	places++
	p := &place{TB: t, d: d,
		h: driver.Handle{Environment: mayfly.NewID("env", time.Now()), Isolation: mayfly.Native, UIDBase: 0x2000_0000 + places<<16},
		s: driver.Spec{Template: l.Template, From: from, Limits: mayfly.DefaultLimits, Services: l.Services}}
	if err := d.Create(t.Context(), p.h, p.s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Destroy(context.Background(), p.h); err != nil {
			t.Error(err)
		}
	})
	p.start()
	return p
}

func (p *place) start() {
	p.Helper()
	if err := p.d.Start(p.Context(), p.h, p.s); err != nil {
		p.Fatal(err)
	}
	for _, s := range p.s.Services {
		began := time.Now()
		if _, err := p.d.StartService(p.Context(), p.h, p.s, s.Name); err != nil {
			p.Fatal(err)
		}
		p.Logf("%s is ready after %v", s.Name, time.Since(began))
	}
	if err := p.d.Admit(p.Context(), p.h, p.s, p.runs, p.until); err != nil {
		p.Fatal(err)
	}
}

// begin starts a shell command as a run.
func (p *place) begin(script string) (run string) {
	p.Helper()
	run = mayfly.NewID("run", time.Now())
	p.runs = append(p.runs, run)
	if err := p.d.Admit(p.Context(), p.h, p.s, p.runs, p.until); err != nil {
		p.Fatal(err)
	}
	err := p.d.StartProcess(p.Context(), p.h, p.s, driver.Process{Run: run, Command: []string{"sh", "-c", script}})
	if err != nil {
		p.Fatal(err)
	}
	return run
}

// end waits for the end of a run, and takes the services from it.
func (p *place) end(run string) (said string, status int) {
	p.Helper()
	exit, err := p.d.WaitProcess(p.Context(), p.h, run)
	if err != nil {
		p.Fatal(err)
	}
	p.runs = slices.DeleteFunc(p.runs, func(r string) bool { return r == run })
	err = p.d.Dismiss(p.Context(), p.h, p.s, run)
	for tries := 0; err != nil && tries < 100; tries++ { // as the engine does
		p.Log(err)
		time.Sleep(100 * time.Millisecond)
		if _, err = p.d.StartService(p.Context(), p.h, p.s, p.s.Services[0].Name); err == nil {
			err = p.d.Admit(p.Context(), p.h, p.s, p.runs, p.until)
		}
	}
	if err != nil {
		p.Fatal(err)
	}
	return p.d.output(p.h, run), exit.Code
}

// sh runs a shell command as the agent would, and returns what it says.
func (p *place) sh(script string) (string, int) {
	p.Helper()
	return p.end(p.begin(script))
}

// want fails the test unless a shell command says what it should.
func (p *place) want(script, want string) {
	p.Helper()
	if got, code := p.sh(script); got != want || code != 0 {
		p.Fatalf("%s: got = %q (status %d), want %q", script, got, code, want)
	}
}

func (p *place) snapshot(id string) {
	p.Helper()
	pause, err := p.d.Snapshot(p.Context(), p.h, id, false)
	if err != nil {
		p.Fatal(err)
	}
	p.Logf("snapshot %s: pause %v", id, pause)
}

func (p *place) rollback(id string) {
	p.Helper()
	began := time.Now()
	if err := errors.Join(p.d.Stop(p.Context(), p.h), p.d.Rollback(p.Context(), p.h, p.s, id, "")); err != nil {
		p.Fatal(err)
	}
	p.start()
	p.Logf("rolled back in %v", time.Since(began))
}

// need skips a test where a program is missing.
func need(t testing.TB, program, pkg string) {
	t.Helper()
	if _, err := exec.LookPath(program); err != nil {
		t.Skipf("needs %s: apt-get install %s", program, pkg)
	}
	if os.Getuid() != 0 {
		t.Skip("needs root: makes mounts, namespaces and cgroups")
	}
}

const redis = `
  cache:
    command: [redis-server, --dir, "{data}", --port, "{port}", --bind, 127.0.0.1, --appendonly, "yes", --appendfsync, "no"]
    port: 6379
    ready: [redis-cli, -p, "{port}", ping]
`

func TestRedisFollowsSnapshotRollbackAndFork(t *testing.T) {
	need(t, "redis-server", "redis-server")
	d := open(t, volume.Btrfs)
	l, err := templateOf(t, d, redis, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	p.want("redis-cli set who first; echo one > f", "OK")
	p.snapshot("one")
	p.want("redis-cli set who second; redis-cli del other; rm f", "OK\n0")
	p.snapshot("two")
	p.rollback("one")
	p.want("redis-cli get who; cat f", "first\none")
	fork := enter(t, d, l, &mayfly.SnapshotRef{Environment: p.h.Environment, Snapshot: "two"})
	fork.want("redis-cli get who; ls", "second")
	fork.want("redis-cli set who fork", "OK")
	p.want("redis-cli get who", "first")
}

const mariadb = `
  shop:
    init: [mariadb-install-db, --no-defaults, "--datadir={data}", --auth-root-authentication-method=normal, --skip-test-db, --innodb-log-file-size=8M]
    command: [mariadbd, --no-defaults, "--datadir={data}", "--socket={data}/socket", "--port={port}", --bind-address=127.0.0.1, --innodb-log-file-size=8M]
    port: 3306
`

func TestMariaDBFollowsSnapshotRollbackAndFork(t *testing.T) {
	need(t, "mariadb-install-db", "mariadb-server-core")
	d := open(t, volume.Btrfs)
	l, err := templateOf(t, d, mariadb, nil)
	if err != nil {
		t.Fatal(err)
	}
	sql := func(statements string) string {
		return "mariadb --no-defaults -h 127.0.0.1 -u root -N -e '" + statements + "'"
	}
	p := enter(t, d, l, nil)
	p.want(sql("create database shop; create table shop.t (a int primary key, b text); insert into shop.t values (1, \"first\")")+"; echo one > f", "")
	p.snapshot("one")
	p.want(sql("update shop.t set b = \"second\"; insert into shop.t values (2, \"more\")")+"; rm f", "")
	p.snapshot("two")
	p.want(sql("drop database shop"), "")
	p.rollback("one")
	p.want(sql("select * from shop.t")+"; cat f", "1\tfirst\none")
	fork := enter(t, d, l, &mayfly.SnapshotRef{Environment: p.h.Environment, Snapshot: "two"})
	fork.want(sql("select * from shop.t; check table shop.t")+"; ls", "1\tsecond\n2\tmore\nshop.t\tcheck\tstatus\tOK")
	fork.want(sql("delete from shop.t"), "")
	p.want(sql("select count(*) from shop.t"), "1")
}

func TestDirectoryOfAServiceIsFilledOnceAndWhole(t *testing.T) {
	need(t, "python3", "python3")
	d := open(t, volume.Btrfs)
	l, err := templateOf(t, d, `
  web:
    init: [sh, -c, "ls -A {data}; echo x >> {data}/f; wc -l < {data}/f; if [ $STEP = fail ]; then exit 3; fi; sleep $STEP"]
    command: [python3, -m, http.server, "{port}", --bind, 127.0.0.1]
    env: {STEP: fail}
    port: 8000
    timeout: 2s
`, nil)
	if err != nil {
		t.Fatal(err)
	}
	services := l.Services
	l.Services = nil
	p := enter(t, d, l, nil)
	p.s.Services = services
	for _, c := range []struct {
		step string
		kind mayfly.Kind
		text string
	}{{"fail", mayfly.Invalid, "init of the service web ended with status 3"}, {"100", mayfly.Timeout, "not ready after 2s"}} {
		p.s.Services[0].Env["STEP"] = c.step
		_, err := d.StartService(t.Context(), p.h, p.s, "web")
		var e *mayfly.Error
		if !errors.As(err, &e) || e.Kind != c.kind || !strings.Contains(e.Message, c.text) || !strings.HasSuffix(e.Fix, "\n1") {
			t.Errorf("%s: got = %v (%+v), want %q, in an empty directory", c.step, err, e, c.text)
		}
	}
	p.s.Services[0].Env["STEP"] = "0"
	for range 2 {
		process, err := d.StartService(t.Context(), p.h, p.s, "web")
		if err != nil {
			t.Fatal(err)
		}
		p.want("python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8000/f\").read().decode())'", "x")
		if err := d.SignalProcess(t.Context(), p.h, process, 9); err != nil {
			t.Fatal(err)
		}
		if _, err := d.WaitProcess(t.Context(), p.h, process); err != nil {
			t.Fatal(err)
		}
	}
}

func TestDataOfServicesIsTheirsAlone(t *testing.T) {
	need(t, "redis-server", "redis-server")
	d := open(t, volume.Btrfs)
	l, err := templateOf(t, d, redis, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	p.want("stat -c '%u:%g %a' /var/lib/mayfly-db/cache", "2000:2000 700")
	for _, try := range []string{
		"ls /var/lib/mayfly-db/cache", "touch /var/lib/mayfly-db/x", "mv /var/lib/mayfly-db/cache /var/lib/mayfly-db/y",
		"ln -s / /var/lib/mayfly-db/z", "pkill redis-server", "cat /proc/$(pgrep redis-server)/environ",
	} {
		if said, code := p.sh(try + " 2>&1"); code == 0 {
			t.Errorf("%s: got = %q, want a refusal", try, said)
		}
	}
}

func TestServiceIsTakenOverOrStartedAgain(t *testing.T) {
	need(t, "redis-server", "redis-server")
	d := open(t, volume.Btrfs)
	l, err := templateOf(t, d, redis, nil)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	first, err := d.StartService(t.Context(), p.h, p.s, "cache")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := d.StartService(t.Context(), p.h, p.s, "cache"); again != first || err != nil {
		t.Errorf("got = %s, %v, want the process %s", again, err, first)
	}
	p.want("redis-cli set a b", "OK")
	for range 2 * serviceProcesses {
		p.sh("redis-cli shutdown nosave")
		if _, err := d.WaitProcess(t.Context(), p.h, first); err != nil {
			t.Fatal(err)
		}
		if first, err = d.StartService(t.Context(), p.h, p.s, "cache"); err != nil {
			t.Fatal(err)
		}
	}
	p.want("redis-cli get a", "b")
	for _, follow := range []bool{false, true} {
		log, err := d.AttachService(t.Context(), p.h, p.s, "cache", follow)
		if err != nil {
			t.Fatal(err)
		}
		var said strings.Builder
		for strings.Count(said.String(), "Ready to accept connections") < serviceProcesses {
			o, err := log.Recv()
			if err != nil {
				t.Fatalf("after %q: %v", said.String(), err)
			}
			said.Write(o.Data)
		}
		if err := log.Signal(9); mayfly.KindOf(err) != mayfly.Unsupported {
			t.Errorf("signal: got = %v, want a refusal", err)
		}
		if err := log.Close(); err != nil {
			t.Error(err)
		}
	}
	v, err := serviceOf(p.h, p.s, "cache")
	if err != nil {
		t.Fatal(err)
	}
	if ids, err := d.processes(v); err != nil || len(ids) > serviceProcesses {
		t.Errorf("recorded: got = %v %v, want at most %d", ids, err, serviceProcesses)
	}
}

func TestServiceThatDoesNotComeUpSaysWhy(t *testing.T) {
	d := open(t, volume.Btrfs)
	l, err := templateOf(t, d, `
  dies: {command: [sh, -c, "echo no such luck; exit 3"], port: 7001}
  hangs: {command: [sh, -c, "echo still here; exec sleep 1000"], port: 7002, timeout: 1s}
  missing: {command: [no-such-program], port: 7003}
  unasked: {command: [sleep, "1000"], ready: [no-such-check]}
`, nil)
	if err != nil {
		t.Fatal(err)
	}
	services := l.Services
	l.Services = nil
	p := enter(t, d, l, nil)
	p.s.Services = services
	for name, want := range map[string]struct {
		kind       mayfly.Kind
		text, hint string
	}{
		"dies":    {mayfly.Invalid, "ended with status 3", "no such luck"},
		"hangs":   {mayfly.Timeout, "not ready after 1s", "still here"},
		"missing": {mayfly.Invalid, "command not found", ""},
		"unasked": {mayfly.Invalid, "no-such-check", "ready"},
	} {
		_, err := d.StartService(t.Context(), p.h, p.s, name)
		var e *mayfly.Error
		if !errors.As(err, &e) || e.Kind != want.kind || !strings.Contains(e.Message, want.text) || !strings.Contains(e.Fix, want.hint) {
			t.Errorf("%s: got = %v (%+v), want %v with %q", name, err, e, want.kind, want.text)
		}
	}
	if said, _ := p.sh("pgrep -l -u 2000,2001,2002,2003"); said != "" {
		t.Errorf("left: %q", said)
	}
}
