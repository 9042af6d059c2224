package agreement

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

func TestTestsOfEveryFormatAreFound(t *testing.T) {
	for name, c := range map[string]struct {
		output string
		want   []Test
	}{
		"go": {
			"=== RUN   TestA\n--- PASS: TestA (0.00s)\n    --- FAIL: TestB/sub_1 (0.10s)\n--- SKIP: TestC (0.00s)\nok  \texample.com/x\t0.003s\nFAIL\texample.com/y\t0.2s\nok  \texample.com/z\t(cached)\nFAIL\n",
			[]Test{{"TestA", "passed"}, {"TestB/sub_1", "failed"}, {"TestC", "skipped"}, {"example.com/x", "passed"}, {"example.com/y", "failed"}, {"example.com/z", "passed"}},
		},
		"go -json": {
			`{"Action":"pass","Package":"x","Test":"TestA"}` + "\n" + `{"Action":"output","Package":"x","Test":"TestA","Output":"--- PASS"}` + "\n" + `{"Action":"fail","Package":"x"}` + "\n",
			[]Test{{"x TestA", "passed"}, {"x", "failed"}},
		},
		"pytest": {
			"tests/test_a.py::test_x PASSED   [ 50%]\ntests/test_a.py::test_y[1-a b] FAILED [100%]\nFAILED tests/test_a.py::test_z - assert 1 == 2\n",
			[]Test{{"tests/test_a.py::test_x", "passed"}, {"tests/test_a.py::test_y[1-a b]", "failed"}, {"tests/test_a.py::test_z", "failed"}},
		},
		"TAP": {
			"TAP version 14\n1..4\nok 1 - reads\nnot ok 2 - writes\nok 3 # SKIP no disk\nnot ok 4 - later # TODO\n",
			[]Test{{"reads", "passed"}, {"writes", "failed"}, {"# SKIP no disk", "passed"}, {"later", "skipped"}},
		},
		"jest": {
			"\x1b[32mPASS\x1b[0m src/a.test.js\n  sums\n    ✓ adds (5 ms)\n    ✕ carries (1 ms)\n    ○ skipped overflows\n",
			[]Test{{"src/a.test.js", "passed"}, {"src/a.test.js › adds", "passed"}, {"src/a.test.js › carries", "failed"}, {"src/a.test.js › overflows", "skipped"}},
		},
		"cargo":            {"test a::b ... ok\ntest a::c ... FAILED\n", []Test{{"a::b", "passed"}, {"a::c", "failed"}}},
		"failed once":      {"--- PASS: TestA (0.00s)\n--- FAIL: TestA (0.00s)\n--- PASS: TestA (0.00s)\n", []Test{{"TestA", "failed"}}},
		"nothing of tests": {"hello\nok then\nPASS\n{\"Action\": 1}\n{}\n", nil},
	} {
		if name == "TAP" { // a test without a description is named by its number
			c.want[2] = Test{"test 3", "skipped"}
		}
		if got := Tests([]byte(c.output)); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s:\ngot  = %q\nwant = %q", name, got, c.want)
		}
	}
}

func FuzzTests(f *testing.F) {
	f.Add("--- PASS: TestA (0.00s)\n")
	f.Add("ok 1 - x # SKIP\n\x1b[31m✕ y\n")
	f.Add(`{"Action":"pass","Package":"x","Test":"TestA"}`)
	f.Fuzz(func(t *testing.T, output string) {
		for _, test := range Tests([]byte(output)) {
			if test.Name == "" || !slices.Contains([]string{"passed", "failed", "skipped"}, test.Status) {
				t.Errorf("got = %q", test)
			}
		}
	})
}

func FuzzFiles(f *testing.F) {
	f.Add("diff --git a/x b/x\n@@ -1 +1 @@\n-a\n+b\n")
	f.Fuzz(func(t *testing.T, patch string) {
		if _, err := Files(strings.NewReader(patch)); err != nil {
			t.Error(err)
		}
	})
}

func TestFilesAreToldApartByWhatWasDoneToThem(t *testing.T) {
	long := strings.Repeat("x", 200<<10)
	patch := "diff --git a/a b/a\n-1\n+2\ndiff --git a/old name b/new name\n rename\ndiff --git a/b b/b\n+" + long + "diff --git a/no b/no\n"
	got, err := Files(strings.NewReader(patch))
	if err != nil || len(got) != 3 {
		t.Fatalf("got = %v, %v, want three files", got, err)
	}
	other, err := Files(strings.NewReader(strings.Replace(patch, "+2", "+3", 1)))
	if err != nil || other["a"] == got["a"] || other["b"] != got["b"] {
		t.Errorf("got = %v and %v, %v, want a difference in a", got, other, err)
	}
}

func outcome(exit int, tree string, results ...string) Outcome {
	o := Outcome{Run: mayfly.Run{Phase: mayfly.RunExited, ExitCode: exit}, Tree: tree}
	for i, r := range results {
		id := string(rune('a' + i))
		o.Graph.Steps = append(o.Graph.Steps, mayfly.Step{Number: i + 1})
		o.Graph.Nodes = append(o.Graph.Nodes,
			mayfly.Node{ID: id, Kind: mayfly.ActionNode, Step: i + 1, Tool: "Bash", Input: `{"command":"make"}`},
			mayfly.Node{ID: id + "'", Kind: mayfly.ResultNode, Step: i + 1, Text: r})
		o.Graph.Edges = append(o.Graph.Edges, mayfly.Edge{From: id, To: id + "'", Kind: "returns"})
	}
	return o
}

func TestRunsThatWentAlikeAgree(t *testing.T) {
	if got := Compare([]Outcome{outcome(0, "t", "ok in 0.2s"), outcome(0, "t", "ok in 0.3s")}); got != nil {
		t.Errorf("got = %+v, want none", got)
	}
}

func TestDifferencesNameWhatAndWho(t *testing.T) {
	a, b, c := outcome(0, "t", "1", "2"), outcome(1, "u", "1", "3"), outcome(0, "t", "1", "2")
	a.Files, b.Files, c.Files = map[string]string{"x": "1"}, map[string]string{"x": "2"}, map[string]string{"x": "1"}
	a.Output, b.Output, c.Output = []byte("--- PASS: TestA (1s)\n"), []byte("--- FAIL: TestA (1s)\n"), []byte("--- PASS: TestA (1s)\n")
	got := Compare([]Outcome{a, b, c})
	var kinds []string
	for _, d := range got {
		kinds = append(kinds, strings.TrimSpace(d.Kind+" "+d.Name))
		if len(d.Values) != 2 || !slices.Equal(d.Values[0].Runs, []int{1, 3}) || !slices.Equal(d.Values[1].Runs, []int{2}) {
			t.Errorf("%s: values = %+v, want those of runs 1 and 3, and of 2", d.Kind, d.Values)
		}
	}
	want := []string{"result turn 2, action 1", "status", "test TestA", "tree", "file x"}
	if !slices.Equal(kinds, want) {
		t.Errorf("got = %q, want %q", kinds, want)
	}
}

func TestSubagentsAreTheSameUnderOtherIDs(t *testing.T) {
	run := func(order ...string) Outcome {
		var o Outcome
		ids := map[string]string{"": "", "x": order[0] + "1", "y": order[0] + "2"}
		o.Graph.Nodes = []mayfly.Node{
			{ID: "spawn x", Kind: mayfly.ActionNode, Step: 1, Tool: "Task"},
			{ID: "spawn y", Kind: mayfly.ActionNode, Step: 1, Tool: "Task"},
		}
		o.Graph.Steps = []mayfly.Step{{Number: 1}}
		for i, name := range order[1:] {
			o.Graph.Agents = append(o.Graph.Agents, mayfly.AgentLane{ID: ids[name], Name: "Explore", Parent: "spawn " + name})
			o.Graph.Steps = append(o.Graph.Steps, mayfly.Step{Number: i + 2, Agent: ids[name]})
			o.Graph.Nodes = append(o.Graph.Nodes, mayfly.Node{ID: name, Kind: mayfly.ActionNode, Agent: ids[name], Step: i + 2, Tool: "Read", Input: name})
		}
		return o
	}
	if got := Compare([]Outcome{run("a", "x", "y"), run("b", "y", "x")}); got != nil {
		t.Errorf("got = %+v, want none", got)
	}
	other := run("c", "y", "x")
	other.Graph.Nodes[3].Input = "z"
	got := Compare([]Outcome{run("a", "x", "y"), other})
	if len(got) != 1 || got[0].Name != "Explore 1, turn 1, action 1" {
		t.Errorf("got = %+v, want one of the first subagent", got)
	}
}

func TestMissingActionsAreDifferences(t *testing.T) {
	got := Compare([]Outcome{outcome(0, "t", "1", "2"), outcome(0, "t", "1")})
	if len(got) != 3 || got[0].Step != 2 || got[0].Values[1].Value != "" || got[2].Kind != "steps" {
		t.Errorf("got = %+v, want action, result and number of steps", got)
	}
}

func TestLongValuesAreShownWhereTheyDiffer(t *testing.T) {
	same := strings.Repeat("é", 500)
	got := group([]string{same + "left", same + "right"})
	for i, want := range []string{"left", "right"} {
		if v := got[i].Value; !strings.HasSuffix(v, want) || len(v) > shown+10 || !strings.HasPrefix(v, "…") {
			t.Errorf("got = %q, want the end with %q", v, want)
		}
	}
}
