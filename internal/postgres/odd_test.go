//go:build linux

package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

func TestTablespacesComeAlongOrAreDoneWithout(t *testing.T) {
	src := source(t)
	host := filepath.Join(filepath.Dir(src.Data.Host), "fast")
	must(t, os.Mkdir(host, 0o700))
	must(t, os.Chown(host, testUID, testUID))
	asPostgres(t, src, "postgres", "CREATE TABLESPACE fast LOCATION '"+"/db/source/fast'")
	asPostgres(t, src, "shop", "CREATE TABLE quick (a int) TABLESPACE fast; INSERT INTO quick VALUES (3)")
	server := Server{Host: filepath.Dir(src.Path()), Port: "5432", User: "postgres", Database: "shop"}
	check := func(s Source, said string) {
		t.Helper()
		var log bytes.Buffer
		o := options(t, &log)
		if o.Source = s; s.Directory != "" {
			o.Source, o.Cloner = Source{}, cloner(&o, s.Directory)
		}
		if got := query(t, start(t, instance(t, prepare(t, o))), "SELECT a FROM quick"); got != "3" {
			t.Errorf("%+v: got = %s, want 3", s, got)
		}
		if !strings.Contains(log.String(), said) {
			t.Errorf("%+v: log has no %q:\n%s", s, said, &log)
		}
	}
	check(Source{Server: &server}, "the tablespace fast of the source is not used")
	check(Source{Server: &server, Physical: true}, "is kept inside")
	must(t, src.Stop(t.Context()))
	links, err := filepath.Glob(filepath.Join(src.Data.Host, "pg_tblspc", "*"))
	if err != nil || len(links) != 1 {
		t.Fatalf("links = %q, %v", links, err)
	}
	must(t, os.Remove(links[0]))
	must(t, os.Symlink(host, links[0])) // as it is where there are no namespaces
	check(Source{Directory: src.Data.Host}, "is kept inside")
}

func TestPreparedTransactionsOfASourceAreSaidOrRefused(t *testing.T) {
	src := source(t)
	asPostgres(t, src, "shop", "CREATE TABLE t (a int)")
	asPostgres(t, src, "shop", "BEGIN; INSERT INTO t VALUES (1); PREPARE TRANSACTION 'left'")
	server := Server{Host: filepath.Dir(src.Path()), Port: "5432", User: "postgres", Database: "shop"}
	var log bytes.Buffer
	o := options(t, &log)
	o.Source = Source{Server: &server}
	prepare(t, o)
	if !strings.Contains(log.String(), "1 prepared transactions") {
		t.Errorf("log says nothing of it:\n%s", &log)
	}
	o = options(t, nil)
	o.Source = Source{Server: &server, Physical: true}
	if err := prepareIn(t.Context(), o); mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("backup: error = %v, want a conflict", err)
	}
	must(t, src.Kill(t.Context())) // it is in the log only
	o = options(t, nil)
	o.Cloner = cloner(&o, src.Data.Host)
	if err := prepareIn(t.Context(), o); mayfly.KindOf(err) != mayfly.Conflict {
		t.Errorf("data directory: error = %v, want a conflict", err)
	}
}

// The source's own superuser says afterwards that nothing was written.
func TestSourceSeesNoWrite(t *testing.T) {
	src := source(t)
	asPostgres(t, src, "shop", "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
	const state = "SELECT txid_snapshot_xmax(txid_current_snapshot())" // every write takes a transaction's number
	before := asPostgres(t, src, "shop", state)
	server := Server{Host: filepath.Dir(src.Path()), Port: "5432", User: "postgres", Database: "shop"}
	o := options(t, nil)
	o.Source = Source{Server: &server}
	prepare(t, o)
	if after := asPostgres(t, src, "shop", state); after != before {
		t.Errorf("state = %s, want %s", after, before)
	}
}

func TestFullDiskIsSaidAndLeavesNothing(t *testing.T) {
	o := options(t, nil)
	dir := t.TempDir()
	must(t, unix.Mount("tmpfs", dir, "tmpfs", 0, "size=96m"))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	o.Dir = filepath.Join(dir, "pgdata")
	o.SQL = []string{file(t, "large.sql", "CREATE TABLE t AS SELECT n, repeat('x', 1000) FROM generate_series(1, 200000) n;")}
	if err := prepareIn(t.Context(), o); mayfly.KindOf(err) != mayfly.Exhausted {
		t.Errorf("error = %v, want one about the disk", err)
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left = %v", left)
	}
}

func TestNoLinkOfATemplateLeadsOutOfIt(t *testing.T) {
	inside, outside := t.TempDir(), t.TempDir()
	must(t, os.WriteFile(filepath.Join(outside, "secret.sql"), []byte("top secret;"), 0o600))
	must(t, os.WriteFile(filepath.Join(inside, "good.sql"), []byte("CREATE TABLE t (a int);"), 0o600))
	must(t, os.Symlink(filepath.Join(outside, "secret.sql"), filepath.Join(inside, "link.sql")))
	must(t, os.Symlink(outside, filepath.Join(inside, "dir")))
	must(t, os.Symlink("good.sql", filepath.Join(inside, "near.sql")))
	o := options(t, nil)
	o.Inputs = inside
	o.SQL = []string{"near.sql"}
	prepare(t, o)
	data := copyOf(t, baseline(t))
	must(t, os.RemoveAll(filepath.Join(data, "pg_tblspc")))
	must(t, os.Mkdir(filepath.Join(data, "pg_tblspc"), 0o700))
	must(t, os.Symlink(outside, filepath.Join(data, "pg_tblspc", "16999")))
	must(t, os.Rename(data, filepath.Join(inside, "pgdata")))
	for name, change := range map[string]func(*Options){
		"SQL":       func(o *Options) { o.SQL = []string{"link.sql"} },
		"directory": func(o *Options) { o.SQL = []string{"dir"} },
		"parent":    func(o *Options) { o.SQL = []string{"../" + filepath.Base(outside) + "/secret.sql"} },
		"dump":      func(o *Options) { o.Source.Dump = "link.sql" },
		"tablespace": func(o *Options) {
			o.Cloner = DirectoryCloner{Inputs: o.Inputs, Directory: "pgdata", Root: filepath.Dir(o.Dir)}
		},
	} {
		o := options(t, nil)
		o.Inputs = inside
		change(&o)
		if err := prepareIn(t.Context(), o); err == nil || strings.Contains(err.Error(), "top secret") {
			t.Errorf("%s: error = %v, want one without the content", name, err)
		}
	}
}

func TestCancelledPreparationLeavesNothing(t *testing.T) {
	o := options(t, nil)
	o.SQL = []string{file(t, "slow.sql", "SELECT pg_sleep(600);")}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began := time.Now()
	if err := prepareIn(ctx, o); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v, want that time is up", err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v to give up", took)
	}
	if left, _ := os.ReadDir(filepath.Dir(o.Dir)); len(left) > 0 {
		t.Errorf("left = %v", left)
	}
}

func TestDatabaseMayBeCalledPostgres(t *testing.T) {
	o := options(t, nil)
	o.Database, o.Role, o.CreateDB = "postgres", "postgres", true
	o.SQL = []string{file(t, "s.sql", "CREATE TABLE t (a int); INSERT INTO t VALUES (9);")}
	i := instance(t, prepare(t, o))
	i.Database = "postgres"
	r := start(t, i)
	l := Login{Name: "someone", Password: "p", Until: time.Now().Add(time.Hour), Owner: "postgres"}
	must(t, r.Grant(t.Context(), l))
	conn, err := login(t.Context(), i, l.Name, l.Password, "postgres")
	must(t, err)
	defer conn.Close(t.Context())
	if got := scalar(t, conn, "SELECT a || current_setting('is_superuser') FROM t"); got != "9off" {
		t.Errorf("got = %q, want 9off", got)
	}
	must(t, r.Revoke(t.Context(), l.Name, "postgres"))
}

func TestLongStatementThatFailsIsFound(t *testing.T) {
	o := options(t, nil)
	sql := "SELECT 1;\nINSERT INTO absent VALUES ('" + strings.Repeat("long\n\n", 30000) + "');\n"
	o.SQL = []string{file(t, "long.sql", sql)}
	if err := prepareIn(t.Context(), o); err == nil || !strings.Contains(err.Error(), "long.sql:2:") || len(err.Error()) > 2000 {
		t.Errorf("error = %.200v, want line 2 in it", err)
	}
}

func TestManyTables(t *testing.T) {
	const tables = 10000
	o := options(t, nil)
	o.SQL = []string{file(t, "many.sql", fmt.Sprintf(`DO $$ BEGIN
		FOR n IN 1..%d LOOP EXECUTE format('CREATE TABLE t%%s (id int PRIMARY KEY)', n); END LOOP;
	END $$;`, tables))}
	r := start(t, instance(t, prepare(t, o)))
	if got := query(t, r, "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND pg_get_userbyid(relowner) = 'app'"); got != itoa(tables) {
		t.Errorf("tables = %s, want %d", got, tables)
	}
}
