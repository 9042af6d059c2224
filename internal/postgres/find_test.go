//go:build linux

package postgres

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

// installs of programs that say which version they are.
func fakePlaces(t *testing.T, versions ...string) []string {
	t.Helper()
	dir := t.TempDir()
	for _, v := range versions {
		bin := filepath.Join(dir, v, "bin")
		must(t, os.MkdirAll(bin, 0o755))
		for _, program := range []string{"postgres", "initdb", "psql"} {
			script := fmt.Sprintf("#!/bin/sh\necho 'postgres (PostgreSQL) %s (Debian %s-1)'\n", v, v)
			must(t, os.WriteFile(filepath.Join(bin, program), []byte(script), 0o755))
		}
		extensions := filepath.Join(dir, v, "share", "extension")
		must(t, os.MkdirAll(extensions, 0o755))
		must(t, os.WriteFile(filepath.Join(extensions, "plpgsql.control"), nil, 0o600))
	}
	return []string{filepath.Join(dir, "*", "bin")}
}

func TestFindPicksTheVersionThatIsAskedFor(t *testing.T) {
	// Numbers that no installation of this machine has a share directory for.
	places := fakePlaces(t, "95.4", "96.2", "97beta1")
	for asked, want := range map[string]string{"95": "95.4", "95.2": "95.4", "96": "96.2", "97": "97beta1", "": "97beta1"} {
		if in, err := find(asked, places); err != nil || in.Version != want {
			t.Errorf("find(%q) = %+v, %v, want %s", asked, in, err, want)
		}
	}
	for _, asked := range []string{"94", "95.9"} {
		_, err := find(asked, places)
		for _, part := range []string{asked, "95.4", "96.2"} {
			if err == nil || !strings.Contains(err.Error(), part) {
				t.Errorf("find(%q) = %v, want %q in it", asked, err, part)
			}
		}
		if e, ok := err.(*mayfly.Error); !ok || e.Kind != mayfly.Unsupported || !strings.Contains(e.Fix, "postgresql-"+asked[:2]) {
			t.Errorf("find(%q) = %#v, want the package in its hint", asked, err)
		}
	}
	for _, bad := range []string{"x", "15;rm", "9", "-15", "15.x", "150"} {
		if _, err := find(bad, places); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("find(%q) = %v, want invalid", bad, err)
		}
	}
}

func TestMissingExtensionNamesItsPackage(t *testing.T) {
	places := fakePlaces(t, "95.4")
	in, err := find("95", places)
	must(t, err)
	for name, pkg := range map[string]string{"vector": "postgresql-95-pgvector", "postgis": "postgresql-95-postgis-3",
		"pgcrypto": "postgresql-95", "some_thing": "postgresql-95-some-thing"} {
		if e, ok := in.HasExtension(name).(*mayfly.Error); !ok || !strings.Contains(e.Fix, pkg) || !strings.Contains(e.Message, name) {
			t.Errorf("%s: %#v, want %s in its hint", name, e, pkg)
		}
	}
	if err := in.HasExtension("plpgsql"); err != nil {
		t.Error(err)
	}
	for _, bad := range []string{"", "../x", "a/b", "a\x00"} {
		if err := in.HasExtension(bad); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%q: %v, want invalid", bad, err)
		}
	}
}

func TestSettingsOfTemplatesAreBounded(t *testing.T) {
	for _, good := range []map[string]string{nil, {"work_mem": "64MB"}, {"auto_explain.log_min_duration": "1s"}, {"shared_preload_libraries": "pg_stat_statements"}} {
		if err := CheckSettings(good); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
	for _, bad := range []map[string]string{{"": "x"}, {"Work_mem": "1"}, {"work_mem": "1\nssl=on"}, {"hba_file": "/x"},
		{"include_if_exists": "/etc/passwd"}, {"archive_mode": "on"}, {"a.b.c": "1"}, {"work mem": "1"}, {"fsync": "off"},
		{"shared_preload_libraries": "/tmp/evil"}, {"session_preload_libraries": "../../evil"}} {
		if err := CheckSettings(bad); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%v: %v, want invalid", bad, err)
		}
	}
	if got := string(render(map[string]string{"a": `it's \ x`})); got != "a = 'it''s \\\\ x'\n" {
		t.Errorf("rendered = %q", got)
	}
}

func TestConnectionsOfSourcesAreTakenApart(t *testing.T) {
	got, err := ParseServer("postgres://us%40er:p%3Aw%2F%20@db.example.com/shop?sslmode=require&port=6432")
	want := Server{Host: "db.example.com", Port: "6432", User: "us@er", Password: "p:w/ ", Database: "shop", SSLMode: "require"}
	if err != nil || got != want {
		t.Errorf("got = %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []string{"", "db", "mysql://u@h/d", "postgres://h/d", "postgres://u@a,b/d", "postgres://u@h:99999/d",
		"postgres://u@h/d?sslkey=/etc/shadow", "postgres://u@h/d?service=x", "postgres://u@h/d?passfile=/x",
		"postgres://u@h/d?sslmode=x", "postgres://u:hunter2@h:x/d", "postgres://u:hunter2@h/d?options=-c"} {
		_, err := ParseServer(bad)
		if mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%q: %v, want invalid", bad, err)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("error = %v has the password", err)
		}
	}
}

func TestFindNoticesAnUpgrade(t *testing.T) {
	places := fakePlaces(t, "95.4")
	program := strings.Replace(places[0], "*", "95.4", 1) + "/postgres"
	for _, version := range []string{"95.4", "95.10"} {
		upgraded := program + ".new"
		must(t, os.WriteFile(upgraded, []byte("#!/bin/sh\necho 'postgres (PostgreSQL) "+version+"'\n"), 0o755))
		must(t, os.Rename(upgraded, program))
		for range 2 {
			if in, err := find("95", places); err != nil || in.Version != version {
				t.Errorf("find = %+v, %v, want %s", in, err, version)
			}
		}
	}
}
