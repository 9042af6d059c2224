package local

import (
	"errors"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

var spareShop = shop + "    spare: true\n"

// A spare takes the place of the database, under the same connection string,
// whatever way a client connects.
func TestSpareTakesTheDatabaseOver(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	l, err := templateOf(t, d, spareShop, shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	p.snapshot("one")
	ways := []string{"127.0.0.1", "::ffff:127.0.0.1", "/var/lib/mayfly-db/.db"}
	for round := range 3 { // each address, and the first again
		p.want("psql -qc 'DROP TABLE customer' && echo new > f", "")
		live := p.begin("psql -At -c '\\! touch asked' -c 'SELECT pg_sleep(60)'; touch closed; until [ -e go ]; do sleep 0.01; done; psql -Atc 'SELECT count(*) FROM customer'; cat f; rm asked closed go")
		p.want("until [ -e asked ]; do sleep 0.01; done", "")
		if err := d.Spare(t.Context(), p.h, p.s, "one"); err != nil {
			t.Fatal(err)
		}
		for _, way := range ways { // it waits
			p.want("psql -h "+way+" -Atc \"SELECT to_regclass('customer') IS NULL\"", "t")
		}
		others := []string{"/var/lib/mayfly-db/.spare-db.socket", "127.0.0.2"}
		for _, way := range others[:2-round%2] { // and nobody gets into it
			if said, _ := p.sh("psql -h " + way + " -Atc 'SELECT 1' 2>&1"); !strings.Contains(said, "password authentication failed") {
				t.Errorf("round %d: %s: got = %q, want a refusal", round, way, said)
			}
		}
		spare := d.waiting(p.h.Environment)
		began := time.Now()
		if err := d.Rollback(t.Context(), p.h, p.s, "one", mayfly.DatabaseSide); err != nil {
			t.Fatal(err)
		}
		p.start()
		t.Logf("rolled back in %v", time.Since(began))
		p.want("until [ -e closed ]; do sleep 0.01; done; touch go", "")
		if said, code := p.end(live); !strings.HasSuffix(said, "\n100\nnew") || code != 0 {
			t.Errorf("round %d: got = %q (status %d), want the old rows and the new file", round, said, code)
		}
		for _, way := range ways {
			p.want("psql -h "+way+" -Atc 'SELECT count(*) FROM customer'", "100")
		}
		if process, err := d.StartService(t.Context(), p.h, p.s, "db"); err != nil || process != spare {
			t.Errorf("round %d: got = %s, %v, want the former spare %s", round, process, err, spare)
		}
		d.mu.Lock()
		o := d.databases[p.h.Environment]
		d.mu.Unlock()
		if err := o.Checkpoint(t.Context()); err != nil { // it writes by the path of its directory
			t.Error(err)
		}
		p.want("psql -Atc \"SELECT count(*) FROM pg_roles WHERE rolname LIKE 'run-%' AND rolname <> session_user\"", "0")
	}
	p.snapshot("two")
	fork := enter(t, d, l, &mayfly.SnapshotRef{Environment: p.h.Environment, Snapshot: "two"})
	fork.want("psql -Atc 'SELECT count(*) FROM customer'; cat f", "100\nnew")
	if err := errors.Join(d.Stop(t.Context(), p.h), d.Rollback(t.Context(), p.h, p.s, "two", "")); err != nil {
		t.Fatal(err)
	}
	p.start()
	p.want("psql -Atc 'SELECT count(*) FROM customer'", "100")
}

// What ends a spare, or is not its rollback, leaves the database as it is
// without spares.
func TestSpareThatDoesNotFit(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	l, err := templateOf(t, d, spareShop, shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	p.snapshot("one")
	p.want("psql -qc 'DELETE FROM customer WHERE id > 50'", "")
	p.snapshot("two")
	p.want("psql -qc 'DROP TABLE customer'", "")
	spare := func(of string) {
		t.Helper()
		if err := d.Spare(t.Context(), p.h, p.s, of); err != nil {
			t.Fatal(err)
		}
	}
	rollback := func(to, want string) {
		t.Helper()
		if err := d.Rollback(t.Context(), p.h, p.s, to, mayfly.DatabaseSide); err != nil {
			t.Fatal(err)
		}
		p.start()
		p.want("psql -Atc 'SELECT count(*) FROM customer'", want)
	}
	spare("one")
	rollback("two", "50")

	spare("one")
	v, err := d.service(p.h, p.s, "db")
	if err != nil {
		t.Fatal(err)
	}
	if err := d.clear(t.Context(), v.other()); err != nil { // it dies
		t.Fatal(err)
	}
	rollback("one", "100")

	spare("one") // at the other address, from where it is taken over cold
	rollback("one", "100")
	p.want("psql -qc 'DELETE FROM customer WHERE id > 70'", "")
	spare("two")
	if err := d.stopServices(t.Context(), p.h, p.s, nil); err != nil { // as the end of the server does
		t.Fatal(err)
	}
	p.start()
	p.want("psql -Atc 'SELECT count(*) FROM customer'", "70")

	spare("two")
	rollback("two", "50")
	before, _ := p.sh("psql -Atc 'SELECT pg_postmaster_start_time()'")
	d.mu.Lock() // another server knows nothing of who runs
	clear(d.databases)
	clear(d.spares)
	d.mu.Unlock()
	p.start()
	if after, _ := p.sh("psql -Atc 'SELECT pg_postmaster_start_time()'"); after != before {
		t.Errorf("got = %s, want the server that runs, %s", after, before)
	}
	spare("one")
	rollback("one", "100")
}
