package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestWorkloadsDoTheirWorkAndCleanUp(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	if out, err := exec.Command("git", "init", "-q").CombinedOutput(); err != nil {
		t.Fatalf("git init: %v: %s", err, out)
	}
	if err := os.MkdirAll("d0000", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("d0000/f00.txt", []byte("before"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := run("prepare", []string{"."}); err != nil {
		t.Fatal(err)
	}
	for _, c := range [][]string{{"git-status"}, {"untar"}, {"npm"}, {"fsync"}, {"touch", "1", "a"}} {
		if err := run(c[0], c[1:]); err != nil {
			t.Errorf("%v: %v", c, err)
		}
	}
	if left, _ := filepath.Glob("scratch-*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
	if got, _ := os.ReadFile("d0000/f00.txt"); string(got) != "touched a\n" {
		t.Errorf("touched file: got = %q", got)
	}
	if err := run("touch", []string{"5", "a"}); err == nil {
		t.Error("touching more files than there are: no error")
	}
	if err := run("nonsense", nil); err == nil {
		t.Error("an unknown workload: no error")
	}
}
