package crash

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// moody is a service that ends when a file says so, and before it is ready
// when another does.
var moody = mayfly.LockedService{
	Name: "moody", Timeout: time.Minute, Port: 7000,
	Command: []string{"sh", "-c", `rm -f up; [ ! -e /workspace/broken ] || { echo is broken; exit 7; }
		touch up; echo is up; while [ ! -e /workspace/die ]; do sleep 0.02; done; exit 9`},
	Ready: []string{"test", "-e", "up"},
}

// patience is how long anything may take here.
const patience = time.Minute

// withServices makes an installation whose environments have the moody service
// and a database.
func withServices(t *testing.T) *installation {
	if os.Getuid() != 0 {
		t.Skip("needs root: environments are made of namespaces, mounts and cgroups")
	}
	files, db := stateOf("start")
	return installWith(t, files, db, moody)
}

func (in *installation) create(r mayfly.CreateEnvironment) mayfly.Environment {
	in.t.Helper()
	r.Template = in.lock.Template
	env, err := in.client.CreateEnvironment(in.t.Context(), r)
	if err != nil {
		in.t.Fatalf("create: %v\n%s", err, in.logTail())
	}
	return env
}

// cli runs a command of the command line.
func (in *installation) cli(args ...string) (stdout, stderr string) {
	in.t.Helper()
	var out, diagnostics bytes.Buffer
	c := exec.CommandContext(in.t.Context(), filepath.Join(binaries, "mayfly"), append([]string{"--state", in.dir}, args...)...)
	c.Stdout, c.Stderr = &out, &diagnostics
	c.Run()
	return out.String(), diagnostics.String()
}

// await waits until an environment is as wanted.
func (in *installation) await(id, what string, wanted func(mayfly.Environment) bool) {
	in.t.Helper()
	var env mayfly.Environment
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		var err error
		if env, err = in.client.Environment(in.t.Context(), id); err != nil {
			in.t.Fatal(err)
		}
		if wanted(env) {
			return
		}
	}
	in.t.Fatalf("waited for %s: got = %+v\n%s", what, env, in.logTail())
}

func (in *installation) awaitService(id, name string, state mayfly.ServiceState) (reason string) {
	in.t.Helper()
	in.await(id, name+" to be "+string(state), func(env mayfly.Environment) bool {
		for _, s := range env.Services {
			if s.Name == name && s.State == state {
				reason = s.Reason
				return true
			}
		}
		return false
	})
	return reason
}

// sh runs a shell command beside everything else and returns what it says.
func (in *installation) sh(env, script string) string {
	in.t.Helper()
	stdout, stderr := in.cli("exec", env, "--", "sh", "-c", script)
	return stdout + stderr
}

func (in *installation) want(env, script, want string) {
	in.t.Helper()
	if got := in.sh(env, script); got != want {
		in.t.Errorf("%s: got = %q, want %q", script, got, want)
	}
}

// refused wants neither kind of run to start, and for this reason.
func (in *installation) refused(env string, kinds []mayfly.RunKind, reason string) {
	in.t.Helper()
	for _, kind := range kinds {
		r, err := in.client.StartRun(in.t.Context(), mayfly.StartRun{Environment: env, Kind: kind, Command: []string{"true"}})
		if err != nil {
			in.t.Fatal(err)
		}
		if r.Phase != mayfly.RunFailed || !strings.Contains(r.Reason, reason) {
			in.t.Errorf("%s: got = %s %q, want it to fail with %q", kind, r.Phase, r.Reason, reason)
		}
	}
}

// killDatabase ends the server process of an environment's database, and
// returns when that is known.
func (in *installation) killDatabase(env string) {
	in.t.Helper()
	before := in.ends(env)
	in.killCommand(env, "bin/postgres\x00-D\x00")
	in.await(env, "the end of the database", func(mayfly.Environment) bool { return in.ends(env) > before })
}

// ends counts how often services of an environment have ended.
func (in *installation) ends(env string) (n int) {
	in.t.Helper()
	err := in.client.Events(in.t.Context(), mayfly.EventFilter{Environment: env}, func(e mayfly.Event) error {
		if e.Type == "service.ended" {
			n++
		}
		return nil
	})
	if err != nil {
		in.t.Fatal(err)
	}
	return n
}

// killCommand ends a process of an environment, by what its command line has.
func (in *installation) killCommand(env, command string) {
	in.t.Helper()
	pid := in.find(env, command)
	if pid == 0 {
		in.t.Fatalf("no process %q runs in %s", command, env)
	}
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		in.t.Fatal(err)
	}
}

// find returns a process in a control group, 0 for none, by what its command
// line has.
func (in *installation) find(group, command string) (pid int) {
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		cgroup, _ := os.ReadFile(p + "/cgroup")
		cmdline, _ := os.ReadFile(p + "/cmdline")
		if strings.Contains(string(cgroup), group) && strings.Contains(string(cmdline), command) {
			fmt.Sscan(filepath.Base(p), &pid)
		}
	}
	return pid
}

// A service may take long to become ready, and nobody has to wait for that who
// has changed his mind.
func TestEnvironmentIsDeletedWhileItsServiceStarts(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: environments are made of namespaces, mounts and cgroups")
	}
	in := installWith(t, map[string]string{"file": "start\n"}, mayfly.LockedService{
		Name: "slow", Timeout: 10 * time.Minute, Command: []string{"sleep", "86397"}, Ready: []string{"false"}})
	created := make(chan error, 1)
	go func() {
		_, err := in.client.CreateEnvironment(t.Context(), mayfly.CreateEnvironment{Template: in.lock.Template, Name: "slow"})
		created <- err
	}()
	for end := time.Now().Add(patience); in.find("mayfly-"+in.id, "sleep\x0086397") == 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("the service does not start\n%s", in.logTail())
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := in.client.DeleteEnvironment(ctx, "slow"); err != nil {
		t.Fatalf("delete: %v\n%s", err, in.logTail())
	}
	if err := <-created; mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("create: got = %v, want that it was deleted meanwhile", err)
	}
	in.stop()
	in.awaitNothing()
}

func TestServiceThatKeepsEndingHasFailed(t *testing.T) {
	in := withServices(t)
	env := in.create(mayfly.CreateEnvironment{Name: "moods"})
	follow := exec.CommandContext(t.Context(), filepath.Join(binaries, "mayfly"), "--state", in.dir, "logs", "moods", "--service", "moody", "-f")
	pipe, err := follow.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := follow.Start(); err != nil {
		t.Fatal(err)
	}
	defer follow.Wait()
	log := bufio.NewScanner(pipe)
	next := func(want string) {
		t.Helper()
		if !log.Scan() || log.Text() != want {
			t.Fatalf("log: got = %q %v, want %q", log.Text(), log.Err(), want)
		}
	}
	next("is up")
	in.sh("moods", "touch die")
	if reason := in.awaitService(env.ID, "moody", mayfly.ServiceFailed); !strings.Contains(reason, "status 9") {
		t.Errorf("got = %q, want its status", reason)
	}
	next("is up")
	next("is up")
	in.sh("moods", "rm die; touch broken")
	for log.Scan() && log.Text() == "is up" {
	}
	if log.Text() != "is broken" {
		t.Errorf("log: got = %q, want that it is broken", log.Text())
	}
	in.refused("moods", []mayfly.RunKind{mayfly.AgentRun}, "the service moody has failed")
	if stdout, stderr := in.cli("exec", "moods", "--", "cat", "file"); stdout != "start\n" || !strings.Contains(stderr, "service moody: failed: ") {
		t.Errorf("exec: got = %q, %q, want the file and a warning", stdout, stderr)
	}
	if stdout, _ := in.cli("env", "show", "moods"); !strings.Contains(stdout, "moody: failed: ") || !strings.Contains(stdout, "db: ready\n") {
		t.Errorf("env show: got = %q, want the states", stdout)
	}
	in.sh("moods", "rm broken")
	in.awaitService(env.ID, "moody", mayfly.ServiceReady)
	for log.Scan() && log.Text() == "is broken" {
	}
	if log.Text() != "is up" {
		t.Errorf("log: got = %q, want that it is up", log.Text())
	}
	in.want("moods", "cat file", "start\n")
	if _, err := in.client.DeleteEnvironment(t.Context(), env.ID); err != nil {
		t.Fatal(err)
	}
	for log.Scan() { // to its end
	}
	in.stop()
	in.awaitNothing()
}

func TestDatabaseThatEndsComesBackOrSaysWhy(t *testing.T) {
	in := withServices(t)
	env := in.create(mayfly.CreateEnvironment{Name: "ends", Limits: mayfly.Limits{Memory: 300 << 20}})
	kinds := []mayfly.RunKind{mayfly.AgentRun, mayfly.ExecRun}
	const read = "psql -qAtc 'SELECT text FROM state'"
	snap, err := in.client.CreateSnapshot(t.Context(), env.ID, "whole")
	if err != nil {
		t.Fatal(err)
	}

	in.want("ends", "psql -qc \"UPDATE state SET text = 'new'\"; "+read, "new\n")
	const large = `psql -qAtc "SELECT cardinality(array_agg(repeat(md5(n::text), 30))) FROM generate_series(1, 3000000) n"`
	if said := in.sh("ends", large); !strings.Contains(said, "server closed the connection") {
		t.Errorf("a query beyond the memory limit: got = %q, want it to end", said)
	}
	in.want("ends", read, "new\n") // waits until the database has recovered

	in.killDatabase(env.ID)
	in.want("ends", read, "new\n") // waits until it is there again

	data := filepath.Join(in.dir, "pool", "envs", env.ID, "live", "db", "db")
	if err := os.Rename(data+"/global/pg_control", data+"/global/pg_control.bad"); err != nil {
		t.Fatal(err)
	}
	in.killDatabase(env.ID)
	if reason := in.awaitService(env.ID, "db", mayfly.ServiceFailed); !strings.Contains(reason, "postgres ended") || !strings.Contains(reason, "pg_control") {
		t.Errorf("got = %q, want what Postgres says", reason)
	}
	if stdout, _ := in.cli("env", "show", "ends"); !strings.Contains(stdout, "db: failed: ") || !strings.Contains(stdout, "pg_control") {
		t.Errorf("env show: got = %q, want the reason", stdout)
	}
	in.refused("ends", kinds, "the service db has failed")
	for _, only := range []mayfly.Side{mayfly.DatabaseSide, ""} {
		if _, err := in.client.Rollback(t.Context(), env.ID, snap.ID, only); err != nil {
			t.Fatal(err)
		}
		in.want("ends", read, "start\n")
	}
	if _, err := in.client.DeleteEnvironment(t.Context(), env.ID); err != nil {
		t.Fatal(err)
	}
	in.stop()
	in.awaitNothing()
}

// However an environment with services ends, nothing of it is left.
func TestEndOfAnEnvironmentIsTheEndOfItsServices(t *testing.T) {
	in := withServices(t)
	ctx := t.Context()
	for name, end := range map[string]func(id string){
		"running": func(string) {},
		"paused": func(id string) {
			if _, err := in.client.PauseEnvironment(ctx, id); err != nil {
				t.Error(err)
			}
		},
		"failed": func(id string) {
			in.sh(id, "touch die")
			in.awaitService(id, "moody", mayfly.ServiceFailed)
		},
		"without a server": func(string) { in.kill(); in.start() },
	} {
		env := in.create(mayfly.CreateEnvironment{})
		end(env.ID)
		if _, err := in.client.DeleteEnvironment(ctx, env.ID); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		in.checkVolumes()
	}
	env := in.create(mayfly.CreateEnvironment{IdleTimeout: time.Millisecond})
	in.await(env.ID, "a pause", func(e mayfly.Environment) bool { return e.Phase == mayfly.Paused && e.Reason == "idle" })
	if _, err := in.client.ExtendEnvironment(ctx, env.ID, mayfly.MinTTL); err != nil { // or rather shorten
		t.Fatal(err)
	}
	in.await(env.ID, "its deletion", func(e mayfly.Environment) bool { return e.Phase == mayfly.Deleted })
	in.checkVolumes()
	in.stop()
	in.awaitNothing()
}
