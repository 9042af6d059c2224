package main

import (
	"errors"
	"strings"
	"testing"
)

const passing = `{"Action":"run","Package":"mayfly.dev/mayfly/x","Test":"TestA"}
{"Action":"output","Package":"mayfly.dev/mayfly/x","Test":"TestA","Output":"noise\n"}
{"Action":"pass","Package":"mayfly.dev/mayfly/x","Test":"TestA","Elapsed":0.1}
{"Action":"pass","Package":"mayfly.dev/mayfly/x","Elapsed":0.2}
`

const skipping = `{"Action":"output","Package":"mayfly.dev/mayfly/x","Test":"TestB","Output":"    x_test.go:3: needs root\n"}
{"Action":"output","Package":"mayfly.dev/mayfly/x","Test":"TestB","Output":"--- SKIP: TestB (0.00s)\n"}
{"Action":"skip","Package":"mayfly.dev/mayfly/x","Test":"TestB"}
{"Action":"skip","Package":"mayfly.dev/mayfly/none","Output":"[no test files]"}
`

const failing = `{"Action":"output","Package":"mayfly.dev/mayfly/x","Test":"TestC","Output":"got = 1, want 2\n"}
{"Action":"fail","Package":"mayfly.dev/mayfly/x","Test":"TestC","Elapsed":0}
{"Action":"fail","Package":"mayfly.dev/mayfly/x","Elapsed":0.1}
`

func TestStatusFollowsOutcomes(t *testing.T) {
	for _, c := range []struct {
		name, in string
		err      error
		strict   bool
		want     int
	}{
		{"passes", passing, nil, true, 0},
		{"skips where it may", passing + skipping, nil, false, 0},
		{"skips where it must not", passing + skipping, nil, true, 1},
		{"fails", passing + failing, nil, false, 1},
		{"does not build", passing, errors.New("exit status 1"), false, 1},
		{"runs nothing", "", nil, false, 1},
	} {
		var out strings.Builder
		r := newReport(&out)
		if err := r.read(strings.NewReader(c.in)); err != nil {
			t.Fatal(err)
		}
		if got := r.status(c.strict, c.err); got != c.want {
			t.Errorf("%s: status = %d, want %d", c.name, got, c.want)
		}
	}
}

func TestReportShowsReasonsAndNumbers(t *testing.T) {
	var out strings.Builder
	r := newReport(&out)
	if err := r.read(strings.NewReader(passing + skipping + failing)); err != nil {
		t.Fatal(err)
	}
	r.summary()
	got := out.String()
	for _, want := range []string{
		"skipped: x.TestB: x_test.go:3: needs root\n",
		"got = 1, want 2\n",
		"\n1 passed, 1 failed, 1 skipped\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("report lacks %q:\n%s", want, got)
		}
	}
	if strings.Contains(got, "noise") {
		t.Errorf("report shows the output of a test that passed:\n%s", got)
	}
}
