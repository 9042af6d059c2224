package local

import (
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// tell says by which address a run reaches the database.
const tell = `echo "postgres://$PGUSER:$PGPASSWORD@127.0.0.1/shop"`

// sessions counts the sessions of runs, its own among them.
const sessions = `psql -Atc "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'run-%'"`

// linger logs in from a process that outlives its run.
const linger = `setsid sh -c 'while :; do psql -qAtc "SELECT pg_sleep(1000)"; sleep 0.01; done' >/dev/null 2>&1 &
while [ "$(` + sessions + `)" -lt 2 ]; do sleep 0.01; done
` + tell

// address is what the last line of a run says.
func (p *place) address(script string) string {
	p.Helper()
	said, code := p.sh(script)
	if code != 0 {
		p.Fatal(said)
	}
	lines := strings.Split(said, "\n")
	return lines[len(lines)-1]
}

// refused wants an address to be of no use. Where an attack goes on that takes
// up all connections it waits for the end of that.
func (p *place) refused(address string) {
	p.Helper()
	said, code := p.sh(`while said=$(psql -Atc 'SELECT 1' ` + address + ` 2>&1); code=$?; expr "$said" : '.*too many' >/dev/null; do
sleep 0.1; done; echo "$said"; exit $code`)
	if code == 0 || !strings.Contains(said, "authentication failed") {
		p.Errorf("got = %q (status %d), want a refusal", said, code)
	}
}

func TestPasswordOfARunEndsWithIt(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	l, err := templateOf(t, d, shop, shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	beside := p.begin("until [ -e end ]; do sleep 0.01; done; psql -Atc 'SELECT 1'")
	p.refused(p.address(linger))
	p.want(sessions, "1")
	p.want("touch end", "")
	if said, code := p.end(beside); said != "1" || code != 0 {
		t.Errorf("a run beside it: got = %q (status %d), want 1", said, code)
	}
	p.want("psql -Atc \"SELECT count(*) FROM pg_roles WHERE rolname LIKE 'run-%'\"", "1")
}

// A snapshot has the roles of its moment, and what starts on it none of them.
func TestPasswordsAreNotRestored(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	l, err := templateOf(t, d, shop, shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	run := p.begin(tell + "; exec sleep 1000")
	for p.d.output(p.h, run) == "" {
		time.Sleep(time.Millisecond)
	}
	address := p.d.output(p.h, run)
	p.want("psql -Atc 'SELECT 1' "+address, "1")
	p.snapshot("while")
	fork := enter(t, d, l, &mayfly.SnapshotRef{Environment: p.h.Environment, Snapshot: "while"})
	fork.refused(address)
	p.refused(fork.address(tell))
	p.runs = nil // a rollback ends them
	p.rollback("while")
	p.refused(address)
}

// Whoever does not want to go holds on to its role, or to every connection
// that there is.
func TestRunCannotStayInTheDatabase(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	l, err := templateOf(t, d, strings.Replace(shop, "work_mem: 8MB", `max_connections: "20"`, 1), shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	for name, script := range map[string]string{
		"holding its role": `for n in 1 2 3 4; do setsid sh -c 'while :; do
psql -qc "SET ROLE NONE" -c "BEGIN" -c "ALTER ROLE CURRENT_USER PASSWORD NULL" -c "SELECT pg_sleep(1000)"; done' >/dev/null 2>&1 & done; sleep 0.5`,
		"exhausting its connections": `for n in $(seq 40); do psql -qc 'SELECT pg_sleep(1000)' >/dev/null 2>&1 & done; sleep 1; ! psql -c 'SELECT 1' 2>&1`,
		"never logging in": `setsid bash -c 'while :; do for n in $(seq 3 200); do eval "exec $n<>/dev/tcp/127.0.0.1/5432"; done; sleep 0.1; done' >/dev/null 2>&1 &
sleep 1; ! psql -c 'SELECT 1' 2>&1; (sleep 5; kill $!) &`,
	} {
		t.Run(name, func(t *testing.T) {
			p := enter(t, d, l, nil)
			address := p.address(script + "\n" + tell)
			p.refused(address)
			p.snapshot("after")
			p.rollback("after")
			p.want("psql -Atc 'SELECT count(*) FROM customer'", "100")
		})
	}
}
