package local

import (
	"context"
	"encoding/json"
	"io"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/driver"
)

// places are names for what runs for a comparison, removed with the test.
func (p *place) places() (two [2]driver.Handle) {
	for i := range two {
		places++
		two[i] = driver.Handle{Environment: mayfly.NewID("cmp", time.Now()), Isolation: mayfly.Native, UIDBase: 0x2000_0000 + places<<16}
		p.Cleanup(func() {
			if err := p.d.Destroy(context.Background(), two[i]); err != nil {
				p.Error(err)
			}
		})
	}
	return two
}

// rows is the difference between the databases of two snapshots.
func (p *place) rows(from, to, format string) string {
	p.Helper()
	began := time.Now()
	body, err := p.d.DiffRows(p.Context(), p.h, p.s, mayfly.RowsRequest{From: from, To: to, Format: format}, p.places())
	if err != nil {
		p.Fatal(err)
	}
	defer body.Close()
	text, err := io.ReadAll(body)
	if err != nil {
		p.Fatal(err)
	}
	p.Logf("compared %q with %q in %v", from, to, time.Since(began))
	return string(text)
}

func TestRowsOfSnapshotsAreCompared(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	l, err := templateOf(t, d, shop+"    redact: [\"customer.email\"]\n", shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	p.snapshot("one")
	p.want(`psql -qc "UPDATE customer SET name = 'changed' WHERE id = 7; DELETE FROM customer WHERE id = 8; INSERT INTO customer VALUES (200, E'\x1b]0;title\x07', 'secret')" && echo ok`, "ok")
	p.snapshot("two")
	want := `customer: 1 inserted, 1 deleted, 1 updated, 100 rows before, 100 after
  + id=200, name=\u001b]0;title\u0007, email=(redacted)
  - id=8, name=c8, email=(redacted)
  ~ id=7  name: c7 → changed
`
	for _, from := range []string{"", "one"} {
		if got := p.rows(from, "two", "text"); got != want {
			t.Errorf("from %q: got = %s\nwant %s", from, got, want)
		}
	}
	if got := p.rows("two", "two", ""); got != "no changes\n" {
		t.Errorf("the same state: got = %s", got)
	}
	var parsed struct {
		Tables []struct{ Inserted int }
	}
	if got := p.rows("one", "two", "json"); json.Unmarshal([]byte(got), &parsed) != nil || len(parsed.Tables) != 1 || strings.Contains(got, "secret") {
		t.Errorf("JSON: got = %s", got)
	}
	p.want("psql -Atc 'SELECT count(*) FROM customer'", "100") // runs on
}

// What its owner sets is without effect on who compares it.
func TestRowsOfAHostileOwner(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	l, err := templateOf(t, d, shop, shopFiles)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	p.want(`psql -qc "ALTER DATABASE shop SET role = 'owner'" -c "ALTER DATABASE shop SET statement_timeout = 1" \
		-c "ALTER DATABASE shop SET search_path = public, pg_catalog" -c "ALTER DATABASE shop CONNECTION LIMIT 0" \
		-c "CREATE FUNCTION public.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea'" \
		-c "DELETE FROM customer WHERE id = 1" && echo ok`, "ok")
	p.snapshot("one")
	if got := p.rows("", "one", "text"); !strings.HasPrefix(got, "customer: 1 deleted, 100 rows before, 99 after\n") {
		t.Errorf("got = %s", got)
	}
}
