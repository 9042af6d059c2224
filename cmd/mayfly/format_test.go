package main

import (
	"errors"
	"os/exec"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/diff"
)

func TestSpansAreShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0ms", 40 * time.Millisecond: "40ms", 3200 * time.Millisecond: "3.2s", 59 * time.Second: "59s",
		12*time.Minute + 3*time.Second: "12m03s", 5*time.Hour + 10*time.Minute: "5h10m", 76 * time.Hour: "3d4h", -time.Hour: "-1h00m",
	} {
		if got := span(d); got != want {
			t.Errorf("span(%v) = %q, want %q", d, got, want)
		}
	}
}

func TestSizesAreRough(t *testing.T) {
	for n, want := range map[int64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 4 << 30: "4.0 GiB", 1<<63 - 1: "8.0 EiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("bytesText(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestShellWordsAreReadBackByAShell(t *testing.T) {
	for _, words := range [][]string{
		{"echo"}, {"a b", "c'd", "$(id)", "", "*", "ü", "line\nbreak", `back\slash`, "-n", "~"},
	} {
		got, err := exec.Command("sh", "-c", `printf '%s\037' `+shellWords(words)).Output()
		if want := strings.Join(words, "\x1f") + "\x1f"; err != nil || string(got) != want {
			t.Errorf("shell reads %q, %v, want %q", got, err, want)
		}
	}
}

func TestReportPrintsMessageHintAndStatus(t *testing.T) {
	for name, c := range map[string]struct {
		err    error
		text   string
		status int
	}{
		"none":      {nil, "", 0},
		"status":    {statusError(42), "", 42},
		"kind":      {mayfly.Errorf(mayfly.Drift, "it differs").Hint("lock it"), "mayfly: it differs\nhint: lock it\n", 78},
		"wrapped":   {errors.Join(mayfly.Errorf(mayfly.NotFound, "no\x1b[2Jthing")), "mayfly: no\ufffd[2Jthing\n", 66},
		"unknown":   {errors.New("disk on fire"), "mayfly: disk on fire\n", 70},
		"interrupt": {interruption{2}, "", 130},
	} {
		var b strings.Builder
		if got := report(&b, c.err); got != c.status || b.String() != c.text {
			t.Errorf("%s: report = %d, %q, want %d, %q", name, got, b.String(), c.status, c.text)
		}
	}
}

func TestServerGetsNoSecretsOfItsStarter(t *testing.T) {
	env := serverEnv([]string{"PATH=/bin", "AWS_SECRET_ACCESS_KEY=x", "MAYFLY_VOLUME=plain", "MAYFLY_STATE=/x", "ANTHROPIC_API_KEY=y"})
	if got, want := strings.Join(env, " "), "LANG=C.UTF-8 PATH=/bin MAYFLY_VOLUME=plain"; got != want {
		t.Errorf("serverEnv = %q, want %q", got, want)
	}
}

func TestPatchIsColouredByLinesHoweverItArrives(t *testing.T) {
	patch := "diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n---- old\n++++ new\n context\n\\ No newline\ndiff --git a/y b/y\nBinary"
	whole := painted(patch)
	if !strings.Contains(whole, "\x1b[31m---- old"+reset) || !strings.Contains(whole, "\x1b[32m++++ new"+reset) || !strings.Contains(whole, "\x1b[1m--- a/x"+reset) {
		t.Errorf("painted = %q", whole)
	}
	for cut := range len(patch) {
		if got := painted(patch[:cut], patch[cut:]); got != whole {
			t.Fatalf("cut at %d: %q, want %q", cut, got, whole)
		}
	}
}

func painted(parts ...string) string {
	var b strings.Builder
	p := &patchPainter{text: diff.NewSafeWriter(&b), terminal: &b}
	for _, part := range parts {
		p.Write([]byte(part))
	}
	p.end()
	return b.String()
}
