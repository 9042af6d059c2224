package modelapi

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/gowebpki/jcs"
)

// said puts a text where a result of a tool is.
func said(s string) string {
	return fmt.Sprintf(`{"messages":[{"role":"user","content":[{"type":"tool_result","tool_use_id":"a","content":%q}]}]}`, s)
}

func output(s string) string {
	return fmt.Sprintf(`{"input":[{"type":"function_call_output","call_id":"a","output":%q}]}`, s)
}

func system(s string) string { return fmt.Sprintf(`{"system":%q}`, s) }

// Two requests for each rule, which are the same with it and not without.
var ruleCases = map[string][]struct{ api, a, b string }{
	"user id":     {{Messages, `{"metadata":{"user_id":"a"}}`, `{"metadata":{"user_id":"b"}}`}},
	"attribution": {{Messages, `{"system":[{"type":"text","text":"x-anthropic-billing-header: cc_version=1"},{"type":"text","text":"S"}]}`, `{"system":[{"type":"text","text":"S"}]}`}},
	"cache marks": {{Messages, `{"messages":[{"content":[{"tool_use_id":"a"},{"tool_use_id":"b","cache_control":{"type":"ephemeral"}}]}]}`,
		`{"messages":[{"content":[{"tool_use_id":"b"},{"tool_use_id":"a","cache_control":{"type":"ephemeral"}}]}]}`}},
	"parallel results": {{Messages, `{"messages":[{"content":[{"tool_use_id":"a"},{"tool_use_id":"b"},{"text":"x"}]}]}`, `{"messages":[{"content":[{"tool_use_id":"b"},{"tool_use_id":"a"},{"text":"x"}]}]}`}},
	"parallel outputs": {{Responses, `{"input":[{"type":"function_call","call_id":"b"},{"type":"function_call_output","call_id":"a"},{"type":"function_call_output","call_id":"b"}]}`,
		`{"input":[{"type":"function_call","call_id":"b"},{"type":"function_call_output","call_id":"b"},{"type":"function_call_output","call_id":"a"}]}`}},
	"parallel tool messages":    {{Chat, `{"messages":[{"tool_call_id":"a"},{"tool_call_id":"b"}]}`, `{"messages":[{"tool_call_id":"b"},{"tool_call_id":"a"}]}`}},
	"subagent addresses":        {{Messages, said("(use SendMessage with to: 'a1b2c3d' to go on)"), said("(use SendMessage with to: 'ffb2c3d' to go on)")}},
	"subagent ids":              {{Messages, said("agentId: a1b2c3d (for resuming)"), said("agentId: ffb2c3d (for resuming)")}},
	"background ids":            {{Messages, said("Command running in background with ID: b1d2"), said("Command running in background with ID: ccc")}},
	"task files":                {{Messages, said("Output is in /tmp/claude-1000/x/y.output"), said("Output is in /tmp/claude-1000/z/q.output")}},
	"client metadata":           {{Responses, `{"client_metadata":{"x":"1"},"prompt_cache_key":"k"}`, `{"prompt_cache_key":"l"}`}},
	"item ids":                  {{Responses, `{"input":[{"id":"1","type":"message"}]}`, `{"input":[{"id":"2","type":"message"}]}`}},
	"chunk ids":                 {{Responses, output("Chunk ID: ab12\nx"), output("Chunk ID: ff00\nx")}},
	"wall time":                 {{Responses, output("Wall time: 0.1234 seconds\nx"), output("Wall time: 2.0 seconds\nx")}, {Responses, output(`{"metadata":{"duration_seconds":0.1}}`), output(`{"metadata":{"duration_seconds":0.2}}`)}},
	"sessions of commands":      {{Responses, output("Process running with session ID 1234"), output("Process running with session ID 99")}},
	"threads":                   {{Responses, output(`{"agent_id":"01234567-0000-0000-0000-000000000000"}`), output(`{"agent_id":"01234567-0000-0000-0000-000000000001"}`)}},
	"call ids":                  {{Generate, `{"contents":[{"parts":[{"functionCall":{"id":"f-1700000000000"}},{"functionResponse":{"id":"f-1700000000000"}}]}]}`, `{"contents":[{"parts":[{"functionCall":{"id":"f-1700000009999"}},{"functionResponse":{"id":"f-1700000009999"}}]}]}`}},
	"process groups":            {{Generate, `{"contents":[{"parts":[{"functionResponse":{"response":{"output":"x\nProcess Group PGID: 123"}}}]}]}`, `{"contents":[{"parts":[{"functionResponse":{"response":{"output":"x\nProcess Group PGID: 456"}}}]}]}`}},
	"child sessions":            {{Chat, `{"messages":[{"content":"task_id: ses_0123456789abc"}]}`, `{"messages":[{"content":"task_id: ses_99999999999"}]}`}},
	"date, ISO":                 {{Messages, system("Today's date is 2026-11-23."), system("Today's date is 2026-11-24.")}, {Messages, system("Date: 2026/11/23"), system("Date: 2026/11/24")}},
	"date, American":            {{Messages, system("Today's date: 11/23/2026, 7:05:06 PM"), system("Today's date: 1/2/2027, 12:00:00 AM")}, {Messages, system("today 23.11.2026"), system("today 24.11.2026")}},
	"date, in words":            {{Messages, system("Today's date is Monday, November 23, 2026"), system("Today's date is Tuesday, November 24, 2026")}, {Messages, system("Today's date: Mon Nov 23 2026"), system("Today's date: Tue Nov 24 2026")}},
	"date, day first":           {{Messages, system("Today is Monday, 23 November 2026"), system("Today is Tuesday, 24 November 2026")}},
	"date, month":               {{Messages, system("The current month is November 2026."), system("The current month is December 2026.")}},
	"date, with a clock":        {{Messages, said("Author: x\nDate:   Mon Nov 23 19:49:01 2026 +0000"), said("Author: x\nDate:   Tue Nov 24 01:02:03 2026 +0000")}, {Messages, said("Mon Nov 23 19:49:01 UTC 2026"), said("Mon Nov 23 19:49:02 UTC 2026")}},
	"listings":                  {{Messages, said("-rw-r--r-- 1 root root  12 Nov 23 19:49 a.txt"), said("-rw-r--r-- 1 root root  12 Nov 24 08:00 a.txt")}, {Messages, said("-rw-r--r-- 1 root root 12K 2026-11-23 19:49 a"), said("-rw-r--r-- 1 root root 12K 2026-11-24 19:49 a")}},
	"commits":                   {{Messages, said("commit " + strings.Repeat("a", 40)), said("commit " + strings.Repeat("b", 40))}},
	"commits just made":         {{Messages, said("[main abc1234] fix"), said("[main def5678] fix")}, {Messages, said("[main (root-commit) abc1234] fix"), said("[main (root-commit) def5678] fix")}},
	"recent commits":            {{Messages, system("Recent commits:\nabc1234 fix it"), system("Recent commits:\ndef5678 fix it")}},
	"durations of tests":        {{Messages, said("ok  \tpkg\t0.012s"), said("ok  \tpkg\t1.5s")}, {Messages, said("real\t0m0.003s"), said("real\t0m0.103s")}, {Messages, said("3 passed in 0.12s"), said("3 passed in 0.40s")}, {Messages, said("--- PASS: TestX (0.00s)"), said("--- PASS: TestX (0.01s)")}},
	"durations in milliseconds": {{Messages, said("<usage>duration_ms: 12</usage>"), said("<usage>duration_ms: 99</usage>")}, {Chat, `{"messages":[{"content":"# duration_ms 12.5"}]}`, `{"messages":[{"content":"# duration_ms 99"}]}`}},
}

func TestEachRuleHoldsAndIsNeeded(t *testing.T) {
	for i, rule := range rules().Normal {
		cases := ruleCases[rule.Name]
		if len(cases) == 0 {
			t.Errorf("%s: no case", rule.Name)
		}
		without := *rules()
		without.normalisers = &sync.Map{}
		without.Normal = append(append([]normal(nil), rules().Normal[:i]...), rules().Normal[i+1:]...)
		for _, c := range cases {
			a, errA := Normalise(c.api, nil, []byte(c.a))
			b, errB := Normalise(c.api, nil, []byte(c.b))
			if errA != nil || errB != nil || string(a) != string(b) {
				t.Errorf("%s:\n%s\n%s\n%v %v", rule.Name, a, b, errA, errB)
			}
			a, _ = without.normalise(c.api, nil, []byte(c.a))
			b, _ = without.normalise(c.api, nil, []byte(c.b))
			if string(a) == string(b) {
				t.Errorf("%s: not needed for %s", rule.Name, c.a)
			}
		}
	}
}

// What a person or a tool changed must stay visible.
func TestRealDifferencesStay(t *testing.T) {
	for _, c := range []struct{ api, a, b string }{
		{Messages, said("timeout: 5s"), said("timeout: 6s")},
		{Messages, said("released 2026-11-23"), said("released 2026-11-24")},
		{Messages, said("# PASS"), said("# FAIL")},
		{Messages, `{"temperature":1}`, `{"temperature":0.5}`},
		{Messages, `{"messages":[{"content":[{"tool_use_id":"a","content":"x"},{"tool_use_id":"b","content":"y"}]}]}`, `{"messages":[{"content":[{"tool_use_id":"a","content":"y"},{"tool_use_id":"b","content":"x"}]}]}`},
		{Messages, `{"messages":[{"role":"user","content":"a"},{"role":"user","content":"b"}]}`, `{"messages":[{"role":"user","content":"b"},{"role":"user","content":"a"}]}`},
		{Chat, `{"seed":9007199254740993}`, `{"seed":9007199254740992}`},
		{Responses, output("x\ny"), output("x\nz")},
	} {
		a, _ := Key(c.api, nil, []byte(c.a))
		b, _ := Key(c.api, nil, []byte(c.b))
		if a == b || a == "" {
			t.Errorf("%s and %s have the same key %q", c.a, c.b, a)
		}
	}
}

func TestNormaliseIsCanonical(t *testing.T) {
	for _, body := range []string{
		`{"b":1.0,"a":[1e3,-0,0.1,1E21,123456789012],"ö":"\u00e9\/\u0007\n\"","\ufb33":1,"😂":2,"":{}}`,
		`[]`, `{"x":[true,false,null]}`,
	} {
		want, err := jcs.Transform([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Normalise(Chat, nil, []byte(body)); err != nil || string(got) != string(want) {
			t.Errorf("got = %s, %v, want %s", got, err, want)
		}
	}
	if _, err := Normalise(Chat, nil, []byte(`{"x":1e999}`)); err == nil {
		t.Error("a number out of range has no error")
	}
}

func TestDifferenceNamesThePlace(t *testing.T) {
	long := strings.Repeat("x", 1000)
	for _, c := range []struct{ a, b, pointer, left, right string }{
		{`{"a":1}`, `{"a":1}`, "", "", ""},
		{`{"a":{"b/c":[1,2]}}`, `{"a":{"b/c":[1,3]}}`, "/a/b~1c/1", "2", "3"},
		{`{"a":[1]}`, `{"a":[1,"new"]}`, "/a/1", "(nothing)", "new"},
		{`{"a":1}`, `{"a":1,"b":true}`, "/b", "(nothing)", "true"},
		{`{"a":1,"b":true}`, `{"a":1}`, "/b", "true", "(nothing)"},
		{`{"a":"1"}`, `{"a":1}`, "/a", "1", "1"},
		{`{"a":"` + long + `left"}`, `{"a":"` + long + `right"}`, "/a", "…" + long[:40] + "left", "…" + long[:40] + "right"},
	} {
		pointer, left, right, equal := Difference([]byte(c.a), []byte(c.b))
		if pointer != c.pointer || left != c.left || right != c.right || equal != (c.a == c.b) {
			t.Errorf("%s, %s: got = %q, %q, %q, %t", c.a, c.b, pointer, left, right, equal)
		}
	}
}
