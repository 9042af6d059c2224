package main

import (
	"testing"
)

func TestCommandRunsAndItsOutputArrives(t *testing.T) {
	e := newWorld(t).start("env-1")
	x, stdout, stderr := e.run("sh", "-c", "echo out; echo err >&2; exit 7")
	if x.Code != 7 || x.Reason != "" || stdout != "out\n" || stderr != "err\n" {
		t.Errorf("got = %d %q %q %q, want 7, out, err", x.Code, x.Reason, stdout, stderr)
	}
}
