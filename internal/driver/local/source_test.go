package local

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/postgres"
)

// nobody exists everywhere, as initdb wants it.
const nobody = 65534

// oddPassword has what shells, URLs, SQL and files of passwords give a meaning.
const oddPassword = `p'a"s\s:w@o/r?d#%41 ü$HOME;--`

// live is a server somewhere else, as others have them.
type live struct {
	testing.TB
	bin, dir, socket string
	cmd              *exec.Cmd
}

// startLive starts a server with a database of a customer table.
func startLive(t testing.TB) *live {
	t.Helper()
	v := &live{TB: t, bin: "/usr/lib/postgresql/15/bin/"}
	dir, err := os.MkdirTemp("", "live-") // short, for the socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	v.dir, v.socket = filepath.Join(dir, "data"), filepath.Join(dir, "s")
	for _, d := range []string{dir, v.dir, v.socket} {
		os.Mkdir(d, 0o755)
		if err := os.Chown(d, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	os.Chmod(dir, 0o755)
	os.WriteFile(filepath.Join(dir, "password"), []byte(oddPassword+"\n"), 0o644)
	v.run(v.bin+"initdb", "-D", v.dir, "-U", "boss", "--auth=scram-sha-256", "--pwfile="+filepath.Join(dir, "password"), "--no-sync", "--locale=C.UTF-8", "--encoding=UTF8")
	v.start()
	v.sql("postgres", "CREATE DATABASE shop")
	v.sql("shop", `CREATE TABLE customer (id int PRIMARY KEY, name text); INSERT INTO customer SELECT n, 'c' || n FROM generate_series(1, 100) n;
		CREATE UNLOGGED TABLE scratch (a int); SELECT pg_create_physical_replication_slot('standby')`)
	return v
}

func (v *live) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Env = "/", []string{"LC_ALL=C.UTF-8", "PGHOST=" + v.socket, "PGUSER=boss", "PGPASSWORD=" + oddPassword}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	return cmd
}

func (v *live) run(name string, args ...string) string {
	v.Helper()
	out, err := v.command(name, args...).CombinedOutput()
	if err != nil {
		v.Fatalf("%s: %v: %s", name, err, out)
	}
	return string(out)
}

func (v *live) sql(database, sql string) string { return v.run("psql", "-X", "-Atc", sql, database) }

func (v *live) start() {
	v.Helper()
	v.cmd = v.command(v.bin+"postgres", "-D", v.dir, "-k", v.socket, "-c", "listen_addresses=", "-c", "max_prepared_transactions=2", "-c", "fsync=off")
	if err := v.cmd.Start(); err != nil {
		v.Fatal(err)
	}
	v.Cleanup(v.stop)
	for range 1000 {
		if v.command("psql", "-X", "-c", "SELECT 1", "postgres").Run() == nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
	v.Fatal("the source does not start")
}

func (v *live) stop() {
	v.cmd.Process.Signal(syscall.SIGINT)
	v.cmd.Wait()
}

// connection is the URL of the server.
func (v *live) connection(password string) string {
	u := url.URL{Scheme: "postgres", User: url.UserPassword("boss", password), Path: "/shop", RawQuery: "host=" + url.QueryEscape(v.socket)}
	return u.String()
}

// allow writes the file that says what may be copied.
func allow(t testing.TB, d *Driver, content string) {
	t.Helper()
	d.sources = postgres.Sources(filepath.Join(t.TempDir(), "databases.yaml"))
	if err := os.WriteFile(string(d.sources), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func from(baseline string) string {
	return "  db: {postgres: 15, database: shop, mask: mask.sql, baseline: {" + baseline + "}}\n"
}

var masked = map[string]string{"mask.sql": "UPDATE customer SET name = 'masked';"}

func TestBaselineIsCopiedFromALiveServerOrItsDirectory(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	v := startLive(t)
	allow(t, d, "servers:\n  production: \""+v.connection(oddPassword)+"\"\ndirectories: ["+filepath.Dir(v.dir)+"]\n")
	var locks []mayfly.Lock
	prepare := func(baseline string, files map[string]string, notes ...string) {
		t.Helper()
		l, said, err := prepareOf(t, d, from(baseline), files)
		if err != nil {
			t.Fatalf("%s: %v\n%s", baseline, err, said)
		}
		for _, note := range append(notes, "table public.scratch is unlogged") {
			if !strings.Contains(said, "note: ") || !strings.Contains(said, note) {
				t.Errorf("%s: no note %q in\n%s", baseline, note, said)
			}
		}
		enter(t, d, l, nil).want("psql -Atc \"SELECT count(*), min(name), (SELECT count(*) FROM pg_replication_slots) FROM customer\"", "100|masked|0")
		locks = append(locks, l)
	}
	space := filepath.Join(filepath.Dir(v.dir), "fast")
	v.run("mkdir", space)
	v.sql("postgres", "CREATE TABLESPACE fast LOCATION '"+space+"'")
	v.sql("shop", "CREATE ROLE clerk; ALTER TABLE customer OWNER TO clerk; CREATE ROLE reader; GRANT SELECT ON customer TO reader; ALTER TABLE customer SET TABLESPACE fast")
	prepare("server: {secret: production}", masked)
	for _, format := range []string{"plain", "custom", "tar", "directory"} {
		prepare("dump: "+format, v.dump(format), "what belonged to the role clerk", "the role reader does not exist", "the tablespace fast of the source is not used")
	}
	prepare("server: {secret: production, physical: true}", masked, "the source has 1 replication slots", "is kept inside of the baseline")
	v.sql("shop", "ALTER TABLE customer SET TABLESPACE pg_default")
	v.sql("postgres", "DROP TABLESPACE fast")
	if _, err := templateOf(t, d, from("directory: "+v.dir), masked); mayfly.KindOf(err) != mayfly.Conflict || !strings.Contains(err.Error(), v.dir) {
		t.Errorf("directory of a running server: got = %v, want a conflict", err)
	}
	v.stop()
	prepare("directory: "+v.dir, masked, "the source has 1 replication slots")
	prepare("directory: db/data", inRepository(t, v.dir, "db/data"), "the source has 1 replication slots")

	// The connection is in nothing that is kept.
	root := filepath.Dir(d.dir)
	for _, l := range locks {
		if strings.Contains(string(mustJSON(t, l)), v.socket) {
			t.Error("the connection is in the lock")
		}
	}
	password, looked := []byte(oddPassword), 0
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || filepath.Base(path) == "pool.img" {
			return nil
		}
		text, err := os.ReadFile(path)
		looked++
		if err == nil && (bytes.Contains(text, password) || bytes.Contains(text, []byte(url.QueryEscape(oddPassword))) || bytes.Contains(text, []byte(v.connection(oddPassword)))) {
			t.Errorf("%s has the password", path)
		}
		return nil
	})
	if err != nil || looked < 1000 {
		t.Errorf("looked into %d files: %v", looked, err)
	}
}

// dump is a dump of the server in a repository.
func (v *live) dump(format string) map[string]string {
	v.Helper()
	to := filepath.Join(filepath.Dir(v.dir), format)
	v.run("pg_dump", "-F", format, "-f", to, "shop")
	return inRepository(v, to, format)
}

// inRepository is what git keeps of a file or a directory: files alone.
func inRepository(t testing.TB, dir, name string) map[string]string {
	t.Helper()
	files := map[string]string{"mask.sql": masked["mask.sql"]}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		text, err := os.ReadFile(path)
		files[name+strings.TrimPrefix(path, dir)] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func TestSourcesThatCannotBeCopiedSayWhy(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	v := startLive(t)
	v.sql("shop", "BEGIN; INSERT INTO customer VALUES (1000); PREPARE TRANSACTION 'left'")
	other := filepath.Join(t.TempDir(), "other")
	if err := os.Mkdir(other, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(other, "PG_VERSION"), []byte("13\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	wrong := "not the password"
	allow(t, d, "servers:\n  production: \""+v.connection(oddPassword)+"\"\n  locked-out: \""+v.connection(wrong)+
		"\"\n  nowhere: postgres://u:"+url.QueryEscape(oddPassword)+"@127.0.0.1:1/shop\n  bad: mysql://u:hunter2@h/db\ndirectories: ["+other+"]\n")
	for _, c := range []struct {
		baseline string
		kind     mayfly.Kind
		want     []string
	}{
		{"server: {secret: absent}", mayfly.NotFound, []string{"absent", "databases.yaml"}},
		{"server: {secret: bad}", mayfly.Invalid, []string{"bad", "postgres://"}},
		{"server: {secret: nowhere}", mayfly.Unavailable, []string{"127.0.0.1:1"}},
		{"server: {secret: locked-out}", mayfly.Unavailable, []string{"password authentication failed"}},
		{"server: {secret: production, physical: true}", mayfly.Conflict, []string{"1 prepared transactions"}},
		{"directory: /etc", mayfly.Forbidden, []string{"/etc", "databases.yaml"}},
		{"directory: " + other, mayfly.Invalid, []string{other, "13", "15"}},
	} {
		l, err := templateOf(t, d, from(c.baseline), masked)
		said := errorText(err)
		if mayfly.KindOf(err) != c.kind {
			t.Errorf("%s: got = %v, want %s", c.baseline, err, c.kind)
		}
		for _, part := range c.want {
			if !strings.Contains(said, part) {
				t.Errorf("%s: got = %q, want %q in it", c.baseline, said, part)
			}
		}
		for _, never := range []string{oddPassword, wrong, "hunter2", url.QueryEscape(oddPassword)} {
			if strings.Contains(said, never) {
				t.Errorf("%s: a password is in %q", c.baseline, said)
			}
		}
		if there, err := d.HasTemplate(t.Context(), l.Template); there || err != nil {
			t.Errorf("%s: the template is there (%v)", c.baseline, err)
		}
	}
	if err := os.Chmod(string(d.sources), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := templateOf(t, d, from("server: {secret: production}"), masked); mayfly.KindOf(err) != mayfly.Forbidden {
		t.Errorf("a file that others can read: got = %v, want a refusal", err)
	}
	if volumes, err := d.pool.Volumes(t.Context()); len(volumes) > 0 || err != nil {
		t.Errorf("left: %v %v", volumes, err)
	}
	if err := os.Chmod(string(d.sources), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, said, err := prepareOf(t, d, from("server: {secret: production}"), masked); err != nil || !strings.Contains(said, "1 prepared transactions") {
		t.Errorf("a dump beside a prepared transaction: got = %q %v, want a note", said, err)
	}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// errorText is an error with its hint.
func errorText(err error) string {
	var e *mayfly.Error
	if errors.As(err, &e) {
		return err.Error() + " " + e.Fix
	}
	return fmt.Sprint(err)
}
