package postgres

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

func TestFileOfSourcesIsNeverQuoted(t *testing.T) {
	s := Sources(filepath.Join(t.TempDir(), "databases.yaml"))
	if _, err := s.Server("x"); mayfly.KindOf(err) != mayfly.NotFound {
		t.Errorf("without a file: error = %v, want that it is missing", err)
	}
	for content, kind := range map[string]mayfly.Kind{
		"":                             mayfly.NotFound,
		"servers: {y: postgres://h/d}": mayfly.NotFound,
		"hunter2":                      mayfly.Invalid,
		"servers: hunter2":             mayfly.Invalid,
		"servers: {x: {hunter2: 1}}":   mayfly.Invalid,
		"servers:\n  x: \"hunter2\n":   mayfly.Invalid,
		"hunter2: {}":                  mayfly.Invalid,
		"servers: {x: hunter2}":        mayfly.Invalid,
		"servers: {x: 'postgres://u:hunter2@h:port/d'}":      mayfly.Invalid,
		"servers: {x: 'postgres://u:%zz%hunter2@h/d'}":       mayfly.Invalid,
		"servers: {x: 'postgres://u:p@h/d?service=hunter2'}": mayfly.Invalid,
	} {
		must(t, os.WriteFile(string(s), []byte(content), 0o600))
		if _, err := s.Server("x"); mayfly.KindOf(err) != kind || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: error = %v, want one that is %s and does not quote it", content, err, kind)
		}
	}
}

func TestOnlyListedDirectoriesAreCopied(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"in/data", "inside", "out"} {
		must(t, os.MkdirAll(filepath.Join(dir, name), 0o755))
	}
	must(t, os.Symlink("../out", filepath.Join(dir, "in/link")))
	must(t, os.Symlink("in/data", filepath.Join(dir, "near")))
	s := Sources(filepath.Join(dir, "databases.yaml"))
	must(t, os.WriteFile(string(s), []byte("directories: ["+dir+"/in/, .]\n"), 0o600))
	for name, want := range map[string]bool{"in": true, "in/data": true, "near": true, "in/link": false, "inside": false, "out": false, "absent": false} {
		if err := s.Directory(filepath.Join(dir, name)); (err == nil) != want {
			t.Errorf("%s: error = %v, want allowed = %v", name, err, want)
		}
	}
}
