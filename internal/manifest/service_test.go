package manifest

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

const services = `services:
  db:
    postgres: 15
    database: app
    baseline:
      sql: [schema.sql, "migrations/*.sql"]
    mask: mask.sql
    extensions: [pgcrypto]
    settings: {work_mem: 8MB}
    redact: [customer.email, "*.*.*_token"]
  cache:
    command: [redis-server, --dir, "{data}", --port, "{port}"]
    init: [mkdir, "{data}/sub"]
    port: 6379
    ready: [redis-cli, -p, "{port}", ping]
    env: {K: v, HOME: /}
    timeout: 5s
`

func lockOf(t *testing.T, content string, files map[string]string) (mayfly.Lock, error) {
	t.Helper()
	m, err := Parse("mayfly.yaml", []byte(content))
	if err != nil {
		t.Fatal(err)
	}
	pinned := map[string]string{}
	for name, digest := range files {
		if m.IsPinned(name) {
			pinned[name] = digest
		}
	}
	return Resolve(m, mayfly.LockedBase{Kind: "host", Digest: digestOf("a")}, mayfly.LockedWorkspace{Digest: digestOf("b")}, pinned, 1)
}

var serviceFiles = map[string]string{
	"schema.sql": digestOf("1"), "migrations/2.sql": digestOf("2"), "migrations/10.sql": digestOf("3"), "mask.sql": digestOf("4"),
	"go.sum": digestOf("5"), "other.sql": digestOf("6"), "sub/schema.sql": digestOf("7"),
}

func TestServicesArePinned(t *testing.T) {
	l, err := lockOf(t, services, serviceFiles)
	if err != nil {
		t.Fatal(err)
	}
	want := []mayfly.LockedService{
		{Name: "cache", Command: []string{"redis-server", "--dir", "{data}", "--port", "{port}"}, Init: []string{"mkdir", "{data}/sub"}, Port: 6379,
			Ready: []string{"redis-cli", "-p", "{port}", "ping"}, Env: map[string]string{"K": "v", "HOME": "/"}, Timeout: 5 * time.Second},
		{Name: "db", Port: 5432, Timeout: 30 * time.Second, Postgres: &mayfly.LockedPostgres{
			Version: "15", Database: "app", SQL: []string{"schema.sql", "migrations/10.sql", "migrations/2.sql"}, Mask: "mask.sql",
			Files:      map[string]string{"schema.sql": digestOf("1"), "migrations/2.sql": digestOf("2"), "migrations/10.sql": digestOf("3"), "mask.sql": digestOf("4")},
			Extensions: []string{"pgcrypto"}, Settings: map[string]string{"work_mem": "8MB"},
			Redact: []string{"customer.email", "*.*.*_token"},
		}},
	}
	if !reflect.DeepEqual(l.Services, want) {
		t.Errorf("got = %+v, want %+v", l.Services, want)
	}
	if !reflect.DeepEqual(l.Lockfiles, map[string]string{"go.sum": digestOf("5")}) {
		t.Errorf("lockfiles: got = %v", l.Lockfiles)
	}
	text, err := FormatLock(l)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseLock("mayfly.lock", text)
	if err != nil || !reflect.DeepEqual(back, l) {
		t.Errorf("got = %+v, %v, want %+v", back, err, l)
	}
}

func TestServicesDecideTheTemplate(t *testing.T) {
	before, err := lockOf(t, services, serviceFiles)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{before.Template: "before"}
	for _, edit := range [][2]string{
		{"15", "16"}, {"database: app", "database: other"}, {"8MB", "9MB"}, {"pgcrypto", "citext"}, {"port: 6379", "port: 6380"},
		{"K: v", "K: w"}, {"ping", "info"}, {"mkdir", "touch"}, {"customer.email", "customer.phone"}, {"  cache:", "  store:"},
	} {
		l, err := lockOf(t, strings.Replace(services, edit[0], edit[1], 1), serviceFiles)
		if err != nil {
			t.Fatal(err)
		}
		if was, ok := seen[l.Template]; ok {
			t.Errorf("%v: the template is that of %s", edit, was)
		}
		seen[l.Template] = edit[0]
		if len(Drift(before, l)) == 0 {
			t.Errorf("%v: no drift", edit)
		}
	}
	changed := map[string]string{}
	for name, digest := range serviceFiles {
		changed[name] = digest
	}
	changed["migrations/2.sql"] = digestOf("9")
	l, err := lockOf(t, services, changed)
	if d := Drift(before, l); err != nil || l.Template == before.Template || len(d) != 1 || d[0].What != "the service db.postgres.files.migrations/2.sql" {
		t.Errorf("got = %v %v, want drift of the file", d, err)
	}
}

func TestBadServicesAreRefused(t *testing.T) {
	var many strings.Builder
	for i := range 200 {
		fmt.Fprintf(&many, "  s%d: {command: [x], port: %d}\n", i, 3000+i)
	}
	for _, c := range []struct{ content, at, message string }{
		{many.String(), "18:3", "200 services, and an environment has at most 16"},
		{"  Db: {command: [x], port: 1}\n", "2:3", "bad name"},
		{"  ../x: {command: [x], port: 1}\n", "2:3", "bad name"},
		{"  9x: {command: [x], port: 1}\n", "2:3", "bad name"},
		{"  " + strings.Repeat("a", 25) + ": {command: [x], port: 1}\n", "2:3", "bad name"},
		{"  a: {postgres: 15, redact: [email]}\n", "2:30", "bad pattern"},
		{"  a: {postgres: 15, redact: [\"a.[.b\"]}\n", "2:30", "bad pattern"},
		{"  a: {command: [x], port: 7, redact: [a.b]}\n", "2:30", "which only a Postgres has"},
		{"  a: {command: [x], port: 2929}\n", "2:27", "where environments reach models"},
		{"  a: {command: [x], port: 0}\n", "2:27", "out of range"},
		{"  a: {command: [x], port: 7}\n  b: {command: [x], port: 7}\n", "3:3", "a and b have the same port 7"},
		{"  a: {command: [x], port: 5432}\n  b: {postgres: 15}\n", "3:3", "the same port 5432"},
		{"  a: {postgres: 15}\n  b: {postgres: 15}\n", "3:3", "both Postgres"},
		{"  a: {command: [x]}\n", "2:7", "neither port nor ready"},
		{"  a: {port: 1}\n", "2:7", "no command"},
		{"  a: {postgres: fifteen}\n", "2:17", "fifteen"},
		{"  a: {postgres: 15, port: 1}\n", "2:21", "which a Postgres does not have"},
		{"  a: {command: [x], port: 1, mask: x}\n", "2:30", "which only a Postgres has"},
		{"  a: {postgres: 15, baseline: {sql: [../x]}}\n", "2:38", "bad pattern"},
		{"  a: {postgres: 15, baseline: {sql: [a.sql], dump: x}}\n", "2:32", "both sql and dump"},
		{"  a: {postgres: 15, baseline: {directory: d, server: {secret: x}}}\n", "2:32", "both directory and server"},
		{"  a: {postgres: 15, baseline: {directory: ../d}}\n", "2:43", "bad pattern"},
		{"  a: {postgres: 15, baseline: {directory: /srv/../etc}}\n", "2:43", "bad path"},
		{"  a: {postgres: 15, baseline: {server: {physical: true}}}\n", "2:41", "no secret"},
		{"  a: {postgres: 15, baseline: {server: {secret: \"postgres://u:hunter2@h/d\"}}}\n", "2:49", "bad name of a secret"},
		{"  a: {postgres: 15, baseline: {server: postgres://u@h/d}}\n", "2:40", "a mapping"},
		{"  a: {postgres: 15, mask: /etc/passwd}\n", "2:27", "absolute"},
		{"  a: {postgres: 15, database: template1}\n", "2:31", "bad database name"},
		{"  a: {postgers: 15}\n", "2:7", "unknown field"},
		{"  - a\n", "2:3", "a mapping"},
	} {
		_, err := Parse("mayfly.yaml", []byte("services:\n"+c.content))
		var e *mayfly.Error
		if !errors.As(err, &e) || e.Kind != mayfly.Invalid || e.Fix == "" {
			t.Errorf("%q: got = %#v, want an invalid error with a hint", c.content, err)
			continue
		}
		if !strings.HasPrefix(e.Message, "mayfly.yaml:"+c.at+": ") || !strings.Contains(e.Message, c.message) {
			t.Errorf("%q: got = %q, want %s, %q", c.content, e.Message, c.at, c.message)
		}
	}
}

func TestWhatIsCopiedIsPinnedByNameAndTime(t *testing.T) {
	const head = "services:\n  db: {postgres: 15, baseline: "
	files := map[string]string{"db/data/PG_VERSION": digestOf("1"), "db/data/base/1": digestOf("2"), "db/other": digestOf("3")}
	inside, err := lockOf(t, head+"{directory: db/data}}\n", files)
	if err != nil {
		t.Fatal(err)
	}
	if p := inside.Services[0].Postgres; len(p.Files) != 1 || p.Files["db/data"] == "" || p.AsOf != 0 {
		t.Errorf("got = %+v, want one digest of the directory", p)
	}
	files["db/data/base/1"] = digestOf("4")
	if l, err := lockOf(t, head+"{directory: db/data}}\n", files); err != nil || l.Template == inside.Template {
		t.Errorf("another content: got = %v %v, want another template", l.Template, err)
	}
	if _, err := lockOf(t, head+"{directory: absent}}\n", files); mayfly.KindOf(err) != mayfly.Invalid || !strings.Contains(err.Error(), "absent/PG_VERSION") {
		t.Errorf("got = %v, want an error that names the file", err)
	}
	seen := map[string]string{inside.Template: "in the workspace"}
	for _, baseline := range []string{"{directory: /srv/pg}", "{server: {secret: production}}", "{server: {secret: staging}}", "{server: {secret: staging, physical: true}}"} {
		m, err := Parse("mayfly.yaml", []byte(head+baseline+"}\n"))
		if err != nil {
			t.Fatal(err)
		}
		resolve := func() mayfly.Lock {
			l, err := Resolve(m, inside.Base, inside.Workspace, nil, 1)
			if err != nil {
				t.Fatal(err)
			}
			return l
		}
		first := resolve()
		m.Renew(time.Unix(1_800_000_000, 0))
		renewed := resolve()
		for _, l := range []mayfly.Lock{first, renewed} {
			if was, ok := seen[l.Template]; ok {
				t.Errorf("%s: the template is that of %s", baseline, was)
			}
			seen[l.Template] = baseline
		}
		text, err := FormatLock(renewed)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParseLock("mayfly.lock", text); err != nil || !reflect.DeepEqual(back, renewed) {
			t.Errorf("got = %+v, %v, want %+v", back, err, renewed)
		}
		m.Services[0].Postgres.AsOf = 0
		if m.Keep(renewed.Services); resolve().Template != renewed.Template {
			t.Errorf("%s: what a lock asked for is not kept", baseline)
		}
	}
}

func TestMissingFilesOfServicesAreNamed(t *testing.T) {
	for _, name := range []string{"schema.sql", "mask.sql"} {
		files := map[string]string{"schema.sql": digestOf("1"), "migrations/2.sql": digestOf("2"), "mask.sql": digestOf("4")}
		delete(files, name)
		if _, err := lockOf(t, services, files); mayfly.KindOf(err) != mayfly.Invalid || !strings.Contains(err.Error(), name) {
			t.Errorf("without %s: got = %v, want an error that names it", name, err)
		}
	}
}
