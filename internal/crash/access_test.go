package crash

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// lingering says by which address it reaches the database, and leaves a process
// behind that logs in again and again.
const lingering = `echo "postgres://$PGUSER:$PGPASSWORD@127.0.0.1/shop"
setsid sh -c 'while :; do psql -qAtc "SELECT pg_sleep(1000)"; sleep 0.05; done' >/dev/null 2>&1 &
exec sleep 86399`

// A run's password and sessions last as long as the run, whatever becomes of
// the server meanwhile, and no longer than the environment.
func TestPasswordsEndWithTheirRunsOverACrash(t *testing.T) {
	in := withServices(t)
	env := in.create(mayfly.CreateEnvironment{Name: "access", TTL: time.Hour})
	r, err := in.client.StartRun(t.Context(), mayfly.StartRun{Environment: env.ID, Kind: mayfly.ExecRun, Command: []string{"sh", "-c", lingering}})
	if err != nil {
		t.Fatal(err)
	}
	a, err := in.client.AttachRun(t.Context(), r.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	o, err := a.Recv()
	a.Close()
	if err != nil {
		t.Fatal(err)
	}
	login := "psql -Atc 'SELECT 1' " + strings.TrimSpace(string(o.Data)) + " 2>&1"
	until := func() {
		t.Helper()
		env, err := in.client.Environment(t.Context(), env.ID)
		if err != nil {
			t.Fatal(err)
		}
		in.want("access", "psql -Atc \"SELECT count(*), extract(epoch FROM min(rolvaliduntil)), extract(epoch FROM max(rolvaliduntil)) FROM pg_roles WHERE rolname LIKE 'run-%'\"",
			fmt.Sprintf("2|%[1]d.%06[2]d|%[1]d.%06[2]d\n", env.ExpiresAt.Unix(), env.ExpiresAt.Nanosecond()/1000))
	}
	in.want("access", login, "1\n")
	until()
	if _, err := in.client.ExtendEnvironment(t.Context(), env.ID, 3*time.Hour); err != nil {
		t.Fatal(err)
	}
	until()

	in.kill()
	in.start()
	in.want("access", login, "1\n")
	until()

	in.kill()
	in.killCommand(env.ID, "sleep\x0086399")
	in.start()
	if r, err = in.client.WaitRun(t.Context(), r.ID); err != nil || r.ExitCode != 137 {
		t.Errorf("got = %s %d %v, want that it was killed", r.Phase, r.ExitCode, err)
	}
	if said := in.sh("access", login); !strings.Contains(said, "authentication failed") {
		t.Errorf("a run that has ended logs in: got = %q, want a refusal", said)
	}
	in.want("access", "psql -Atc \"SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'run-%'\"", "1\n")
	if _, err := in.client.DeleteEnvironment(t.Context(), env.ID); err != nil {
		t.Fatal(err)
	}
	in.stop()
	in.awaitNothing()
}
