package crash

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"mayfly.dev/mayfly"
)

// A rollback to the state before the last run has a database ready, which goes
// on over the end of a server, and is made again when it is used or lost.
func TestSpareDatabase(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: environments are made of namespaces, mounts and cgroups")
	}
	files, db := stateOf("start")
	db.Postgres.Spare = true
	in := installWith(t, files, db)
	env := in.create(mayfly.CreateEnvironment{Name: "spares"})
	const read = "psql -qAtc 'SELECT text FROM state'"
	in.want("spares", "psql -qc \"UPDATE state SET text = 'before'\"", "")
	run, err := in.client.StartRun(t.Context(), mayfly.StartRun{Environment: env.ID,
		Command: []string{"sh", "-c", `psql -qc "DROP TABLE state"; echo new > file; psql -qc '\! echo connected' -c 'SELECT pg_sleep(600)'; until ` + read + `; do :; done; cat file`}})
	if err != nil {
		t.Fatal(err)
	}
	out, err := in.client.AttachRun(t.Context(), run.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	said := bufio.NewScanner(&outputs{Attachment: out})
	await := func(want string) {
		t.Helper()
		for said.Scan() {
			if said.Text() == want {
				return
			}
		}
		t.Fatalf("the run ended before it said %q", want)
	}
	await("connected")
	in.awaitSpare(env.ID)
	if stdout, _ := in.cli("env", "show", "spares"); !strings.Contains(stdout, "db: ready, a spare of snapshot 1\n") {
		t.Errorf("env show: got = %q, want the spare", stdout)
	}
	in.rollBackWarm(env.ID)
	await("before") // under the run, which goes on
	await("new")

	in.awaitSpare(env.ID) // another
	in.want("spares", "psql -qc 'DROP TABLE state'", "")
	in.kill()
	in.start()
	in.awaitSpare(env.ID) // that the new server has made
	in.rollBackWarm(env.ID)
	in.want("spares", read, "before\n")

	in.awaitSpare(env.ID)
	in.want("spares", "psql -qc \"UPDATE state SET text = 'after'\"", "")
	in.killServer(env.ID, "/.spare-db")
	in.killServer(env.ID, "/db")
	in.await(env.ID, "the end of the database", func(mayfly.Environment) bool { return in.ends(env.ID) > 0 })
	in.want("spares", read, "after\n") // waits until it is there again
	in.awaitSpare(env.ID)
	if _, err := in.client.Rollback(t.Context(), env.ID, "", ""); err != nil {
		t.Fatal(err)
	}
	in.want("spares", read+"; cat file", "before\nstart\n")
	in.awaitSpare(env.ID)
	if _, err := in.client.DeleteEnvironment(t.Context(), env.ID); err != nil {
		t.Fatal(err)
	}
	in.stop()
	in.awaitNothing()
}

func (in *installation) awaitSpare(env string) {
	in.t.Helper()
	in.await(env, "a spare", func(e mayfly.Environment) bool { return e.Services[0].Spare > 0 })
}

// rollBackWarm rolls the database back to its spare, and not to a server that is
// started for it.
func (in *installation) rollBackWarm(env string) {
	in.t.Helper()
	if _, err := in.client.Rollback(in.t.Context(), env, "", mayfly.DatabaseSide); err != nil {
		in.t.Fatal(err)
	}
	if in.find(env, "-D\x00/var/lib/mayfly-db/db\x00") != 0 {
		in.t.Error("a server was started, instead of taking the spare")
	}
}

// killServer ends the Postgres that runs in a directory.
func (in *installation) killServer(env, dir string) {
	in.t.Helper()
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		cgroup, _ := os.ReadFile(p + "/cgroup")
		cmdline, _ := os.ReadFile(p + "/cmdline")
		cwd, _ := os.Readlink(p + "/cwd")
		var pid int
		if strings.Contains(string(cgroup), env) && strings.Contains(string(cmdline), "bin/postgres\x00-D\x00") && strings.HasSuffix(cwd, dir) {
			fmt.Sscan(filepath.Base(p), &pid)
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				in.t.Fatal(err)
			}
			return
		}
	}
	in.t.Fatalf("no server runs in %s", dir)
}

// outputs reads what a run says.
type outputs struct {
	mayfly.Attachment
	rest []byte
}

func (o *outputs) Read(b []byte) (int, error) {
	for len(o.rest) == 0 {
		out, err := o.Recv()
		if err != nil {
			return 0, err
		}
		o.rest = out.Data
	}
	n := copy(b, o.rest)
	o.rest = o.rest[n:]
	return n, nil
}
