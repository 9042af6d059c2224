package graph

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/modelapi"
)

func mentions(t *testing.T, g mayfly.Graph, want ...string) {
	t.Helper()
	list := lines(g)
	for _, w := range want {
		if !slices.ContainsFunc(list, func(l string) bool { return strings.Contains(l, w) }) {
			t.Errorf("missing %s in\n%s", w, strings.Join(list, "\n"))
		}
	}
}

func orphans(t *testing.T, g mayfly.Graph, want int) {
	t.Helper()
	if len(g.Orphans) != want {
		t.Errorf("orphans: got = %q, want %d\n%s", g.Orphans, want, strings.Join(lines(g), "\n"))
	}
}

func TestCallsAtTheEndOfARunAreOrphans(t *testing.T) {
	s := newTape()
	s.exchange(modelapi.Messages, "", 1, requestBody(modelapi.Messages, []modelapi.Turn{user(say("go"))}),
		answerBody(modelapi.Messages, true, []modelapi.Block{call("a", "Bash", "{}"), call("b", "Bash", "{}")}))
	g := s.build(t)
	orphans(t, g, 2)
	if g.Steps[0].Usage.Input != 10 || g.Usage.Output != 2 {
		t.Errorf("usage: got = %+v, %+v", g.Steps[0].Usage, g.Usage)
	}
}

// Two subagents of which the wire tells nothing, at the same time, whose
// calls have the same ids as those of the main agent.
func TestSubagentsAreToldApartWithoutAName(t *testing.T) {
	for _, api := range apis {
		s := newTape()
		step := 0
		ask := func(history []modelapi.Turn, blocks ...modelapi.Block) []modelapi.Turn {
			step++
			s.exchange(api, "", step, requestBody(api, history), answerBody(api, api == modelapi.Stream, blocks))
			return append(history, model(blocks...))
		}
		main := ask([]modelapi.Turn{user(say("Do both."))},
			call("call_1", "Agent", `{"prompt":"Look left.","subagent_type":"Left"}`), call("call_2", "Agent", `{"prompt":"Look right.","subagent_type":"Right"}`))
		right := ask([]modelapi.Turn{user(say("Look right."))}, call("call_1", "Bash", `{"command":"right"}`))
		left := ask([]modelapi.Turn{user(say("Look left."))}, call("call_1", "Bash", `{"command":"left"}`))
		ask(append(right, user(result("call_1", "Bash", "r"))), say("It is right."))
		ask(append(left, user(result("call_1", "Bash", "l"))), say("It is left."))
		ask(append(main, user(result("call_2", "Agent", "It is right."), result("call_1", "Agent", "It is left."))), say("Done."))
		g := s.build(t)
		orphans(t, g, 0)
		if len(g.Agents) != 3 || g.Agents[1].Name != "Right" || g.Agents[2].Name != "Left" {
			t.Errorf("%s: agents: got = %+v", api, g.Agents)
		}
		mentions(t, g, `action 1 "" "" "" "Agent" "call_1" "{\"prompt\":\"Look left.\",\"subagent_type\":\"Left\"}" -spawns-> prompt 3 "agent-2" "Look left."`,
			`result 2 "agent-1" "r"`, `result 3 "agent-2" "l"`, `result 1 "" "It is right." "" "Agent" "call_2"`)
	}
}

// What the real Claude Code and Codex put into their headers.
func TestSubagentsAreNamedByHeaders(t *testing.T) {
	s := newTape()
	api := modelapi.Messages
	history := []modelapi.Turn{user(say("go"))}
	s.exchange(api, "", 1, requestBody(api, history), answerBody(api, true, []modelapi.Block{call("t", "Task", `{"description":"Explore it"}`)}))
	s.exchange(api, "a1", 2, requestBody(api, []modelapi.Turn{user(say("<system-reminder>x</system-reminder>"), say("Look."))}),
		answerBody(api, true, []modelapi.Block{say("Seen.")}), "X-Claude-Code-Agent-Id", "a1", "X-Claude-Code-Session-Id", "s", "X-Claude-Code-Agent-Type", "Explore")
	g := s.build(t)
	if len(g.Agents) != 2 || g.Agents[1].ID != "a1" || g.Agents[1].Parent == "" || g.Agents[1].Name != "Explore it" {
		t.Errorf("agents: got = %+v", g.Agents)
	}
}

func TestCallsWithoutIDsAreJoinedInOrder(t *testing.T) {
	for _, api := range []string{modelapi.Generate, modelapi.Stream} {
		s := newTape()
		history := []modelapi.Turn{user(say("go"))}
		blocks := []modelapi.Block{call("", "Bash", `{"command":"1"}`), call("", "Bash", `{"command":"2"}`), call("", "Read", `{"path":"3"}`)}
		s.exchange(api, "", 1, requestBody(api, history), answerBody(api, api == modelapi.Stream, blocks))
		history = append(history, model(blocks...), user(result("", "Read", "three"), result("", "Bash", "one"), result("", "Bash", "two")))
		s.exchange(api, "", 2, requestBody(api, history), answerBody(api, api == modelapi.Stream, []modelapi.Block{say("ok")}))
		g := s.build(t)
		orphans(t, g, 0)
		mentions(t, g, `"Bash" "" "{\"command\":\"1\"}" -returns-> result 1 "" "one"`, `"Bash" "" "{\"command\":\"2\"}" -returns-> result 1 "" "two"`,
			`"Read" "" "{\"path\":\"3\"}" -returns-> result 1 "" "three"`)
	}
}

func TestTheOldFunctionCallIsJoined(t *testing.T) {
	s := newTape()
	head := `{"messages":[{"role":"user","content":"go"}`
	s.exchange(modelapi.Chat, "", 1, head+`]}`, `{"choices":[{"message":{"role":"assistant","function_call":{"name":"f","arguments":"{}"}},"finish_reason":"function_call"}]}`)
	s.exchange(modelapi.Chat, "", 2, head+`,{"role":"assistant","function_call":{"name":"f","arguments":"{}"}},{"role":"function","name":"f","content":"ok"}]}`,
		`{"choices":[{"message":{"content":"Done."}}]}`)
	g := s.build(t)
	orphans(t, g, 0)
	mentions(t, g, `action 1 "" "" "" "f" "" "{}" -returns-> result 1 "" "ok"`)
}

func TestPreviousResponseIDContinues(t *testing.T) {
	s := newTape()
	s.exchange(modelapi.Responses, "", 1, `{"input":"go"}`, `{"id":"r1","status":"completed","output":[{"type":"custom_tool_call","call_id":"c","name":"exec","input":"x()"}]}`)
	s.exchange(modelapi.Responses, "", 2, `{"previous_response_id":"r1","input":[{"type":"custom_tool_call_output","call_id":"c","output":"ok"}]}`,
		`{"id":"r2","status":"completed","output":[{"type":"message","role":"assistant","content":[{"type":"output_text","text":"Done."}]}]}`)
	g := s.build(t)
	orphans(t, g, 0)
	mentions(t, g, `prompt 1 "" "go"`, `"exec" "c" "x()" -returns-> result 1 "" "ok"`, `result 1 "" "ok" "" "exec" "c" "" -next-> output 2 "" "Done."`)
}

// A resumed conversation brings turns from before the run.
func TestHistoryFromBeforeTheRunHasNoStep(t *testing.T) {
	for _, api := range apis {
		s := newTape()
		history := []modelapi.Turn{user(say("old")), model(say("I look."), call("o", "Bash", `{}`)), user(result("o", "Bash", "seen")), model(say("Looked.")), user(say("new"))}
		s.exchange(api, "", 1, requestBody(api, history), answerBody(api, api == modelapi.Stream, []modelapi.Block{say("ok")}))
		g := s.build(t)
		orphans(t, g, 0)
		mentions(t, g, `prompt 0 "" "old"`, `action 0 "" "" "" "Bash" "o"`, `result 0 "" "seen"`, `prompt 1 "" "new"`, `prompt 1 "" "new" "" "" "" "" -next-> output 1 "" "ok"`)
	}
}

// The upstream summarises, with the whole history still in the requests.
func TestCompactionByTheUpstream(t *testing.T) {
	s := newTape()
	head := `{"messages":[{"role":"user","content":"go"}`
	s.exchange(modelapi.Messages, "", 1, head+`]}`, `{"content":[{"type":"compaction","content":"In short."},{"type":"text","text":"On."}],"stop_reason":"end_turn"}`)
	s.exchange(modelapi.Messages, "", 2, head+`,{"role":"assistant","content":[{"type":"compaction","content":"In short."},{"type":"text","text":"On."}]},{"role":"user","content":"more"}]}`,
		`{"content":[{"type":"text","text":"ok"}],"stop_reason":"end_turn"}`)
	g := s.build(t)
	mentions(t, g, `compact 1 "" "In short."`, `compact 1 "" "In short." "" "" "" "" -next-> output 1 "" "On."`)
	if n := len(g.Nodes); n != 5 {
		t.Errorf("nodes: got = %d, want 5\n%s", n, strings.Join(lines(g), "\n"))
	}
}

// A summary that nobody was seen to ask for.
func TestHistoryThatBeginsWithASummary(t *testing.T) {
	s := newTape()
	s.exchange(modelapi.Responses, "", 1, `{"input":[{"role":"user","content":"go"}]}`, responsesAnswer(true, []modelapi.Block{say("One.")}))
	s.exchange(modelapi.Responses, "", 2, `{"input":[{"role":"user","content":"go"},{"type":"compaction","encrypted_content":"zz"},{"role":"user","content":"more"}]}`,
		responsesAnswer(false, []modelapi.Block{say("Two.")}))
	g := s.build(t)
	mentions(t, g, `compact 2 "" "" "" "" "" "" -summarises-> output 1 "" "One."`, `prompt 2 "" "more"`)
}

func TestGapsInTheRecordingLeaveTheRest(t *testing.T) {
	s := newTape()
	api := modelapi.Messages
	s.exchange(api, "", 1, requestBody(api, []modelapi.Turn{user(say("go"))}), answerBody(api, true, []modelapi.Block{say("one")}))
	s.exchange(api, "", 2, "{broken", "not an answer")
	s.Exchanges[0].Request = "sha256:gone"
	g := s.build(t)
	if len(g.Steps) != 2 {
		t.Errorf("steps: got = %+v", g.Steps)
	}
	mentions(t, g, `output 1 "" "one"`, `output 2 "" "an answer that cannot be read, status 200"`)
}

func TestStepsKnowWhatIsAroundThem(t *testing.T) {
	s := newTape()
	api := modelapi.Messages
	history := []modelapi.Turn{user(say("go"))}
	x := s.exchange(api, "", 1, requestBody(api, history), answerBody(api, true, []modelapi.Block{call("c", "Bash", "{}")}))
	end := x.End
	history = append(history, model(call("c", "Bash", "{}")), user(result("c", "Bash", "ok")))
	y := s.exchange(api, "", 2, requestBody(api, history), answerBody(api, true, []modelapi.Block{say("ok")}))
	s.Snapshots = map[int]Boundary{1: {"s1", "s2"}, 2: {"s2", "s3"}}
	s.Processes = []mayfly.Process{{Time: end.Add(time.Millisecond), PID: 7, Command: []string{"sh"}}, {Time: end.Add(-time.Hour), PID: 1}}
	g := s.build(t)
	one := g.Steps[0]
	if one.Before != "s1" || one.After != "s2" || len(one.Processes) != 1 || one.Processes[0].PID != 7 || !one.Done.Equal(y.Start) {
		t.Errorf("got = %+v", one)
	}
	if one.Tools == "" || one.System == "" || one.Model != "m" || *one.Parameter.MaxTokens != 9 {
		t.Errorf("got = %+v", one)
	}
}

// A run with a hook, an OTLP span and an MCP call for what the wire has, and
// a hook for what only the agent sees.
func TestReportsAreMerged(t *testing.T) {
	s := newTape()
	api := modelapi.Responses
	history := []modelapi.Turn{user(say("go"))}
	x := s.exchange(api, "", 1, requestBody(api, history), answerBody(api, true, []modelapi.Block{call("c", "exec", "{}")}))
	history = append(history, model(call("c", "exec", "{}")), user(result("c", "exec", "ok")))
	s.exchange(api, "", 2, requestBody(api, history), answerBody(api, true, []modelapi.Block{say("Done.")}))
	at := func(ms int) time.Time { return x.End.Add(time.Duration(ms) * time.Millisecond) }
	for _, r := range []struct {
		kind, body string
		ms         int
	}{
		{"hook", `{"hook_event_name":"PreToolUse","tool_name":"exec","tool_use_id":"c","tool_input":{}}`, 100},
		{"hook", `{"hook_event_name":"PreToolUse","tool_name":"shell","tool_use_id":"inner","tool_input":{"command":["ls"]}}`, 200},
		{"hook", `{"hook_event_name":"PostToolUse","tool_name":"shell","tool_use_id":"inner","tool_response":{"stdout":"a.txt"}}`, 300},
		{"agent.hook", `{"hook_event_name":"PostToolUse","tool_name":"exec","tool_use_id":"c","tool_response":"ok"}`, 400},
		{"otlp.traces", fmt.Sprintf(`{"resourceSpans":[{"scopeSpans":[{"spans":[{"startTimeUnixNano":"%d","endTimeUnixNano":"%d","attributes":[{"key":"gen_ai.tool.call.id","value":{"stringValue":"c"}}]}]}]}]}`, at(100).UnixNano(), at(400).UnixNano()), 500},
		{"mcp", `{"method":"tools/call","params":{"name":"x","_meta":{"claudecode/toolUseId":"c"}}}`, 600},
		{"hook", `nonsense`, 700}, {"otlp", "\xff\xff", 800},
	} {
		s.Reports = append(s.Reports, Report{Kind: r.kind, Time: at(r.ms), Content: s.keep(r.body)})
	}
	g := s.build(t)
	orphans(t, g, 0)
	mentions(t, g, `action 1 "" "" "" "exec" "c" "{}" -calls-> action 1 "" "" "" "shell" "inner" "{\"command\":[\"ls\"]}"`,
		`"inner" "{\"command\":[\"ls\"]}" -returns-> result 1 "" "a.txt"`)
	for _, n := range g.Nodes {
		want := []string{"wire"}
		switch {
		case n.Call == "inner":
			want = []string{"hook"}
		case n.Call == "c" && n.Kind == mayfly.ActionNode:
			want = []string{"wire", "hook", "otlp", "mcp"}
		case n.Call == "c":
			want = []string{"wire", "hook", "otlp"}
			if !n.Time.Equal(at(400)) {
				t.Errorf("time of the result: got = %v, want %v", n.Time, at(400))
			}
		}
		if !slices.Equal(n.Sources, want) {
			t.Errorf("sources of %s %s: got = %q, want %q", n.Kind, n.Call, n.Sources, want)
		}
	}
}

// message writes a protobuf message from fields of bytes.
func message(number byte, parts ...string) string {
	b := strings.Join(parts, "")
	n := len(b)
	return string([]byte{number<<3 | 2, byte(n&0x7f | 0x80), byte(n >> 7)}) + b
}

func TestOTLPInProtobuf(t *testing.T) {
	pair := func(number byte, key, v string) string {
		return message(number, message(1, key), message(2, message(1, v)))
	}
	span := message(1, message(2, message(2, message(1, strings.Repeat("t", 16)), "\x39"+"\x01\x00\x00\x00\x00\x00\x00\x00", "\x41"+"\x02\x00\x00\x00\x00\x00\x00\x00",
		pair(9, "gen_ai.tool.call.id", "c"), pair(9, "gen_ai.tool.name", "Bash"), message(15, "\x18\x02"))))
	log := message(1, message(2, message(2, "\x09"+"\x03\x00\x00\x00\x00\x00\x00\x00", pair(6, "tool_use_id", "d"), pair(6, "success", "true"))))
	got := otlpSightings(nil, []byte(span))
	if len(got) != 1 || got[0].call != "c" || got[0].tool != "Bash" || !got[0].failed || got[0].begin.UnixNano() != 1 || got[0].end.UnixNano() != 2 {
		t.Errorf("span: got = %+v", got)
	}
	got = otlpSightings(nil, []byte(log))
	if len(got) != 1 || got[0].call != "d" || got[0].failed || got[0].end.UnixNano() != 3 {
		t.Errorf("log: got = %+v", got)
	}
}

func FuzzReports(f *testing.F) {
	f.Add("hook", []byte(`{"hook_event_name":"PostToolUse","tool_name":"shell","tool_use_id":"a","agent_id":"","tool_response":{"agentId":"x"}}`))
	f.Add("otlp", []byte(message(1, message(2, message(2, message(9, message(1, "tool_use_id"), message(2, message(1, "a"))))))))
	f.Add("otlp", []byte(`{"resourceLogs":[{"scopeLogs":[{"logRecords":[{"timeUnixNano":1,"attributes":[{"key":"call_id","value":{"intValue":"1"}}]}]}]}]}`))
	f.Add("mcp", []byte(`{"method":"tools/call","params":{"_meta":{"claudecode/toolUseId":"a"}}}`))
	api := modelapi.Messages
	f.Fuzz(func(t *testing.T, kind string, body []byte) {
		s := newTape()
		s.exchange(api, "", 1, requestBody(api, []modelapi.Turn{user(say("go"))}), answerBody(api, true, []modelapi.Block{call("a", "Bash", "{}")}))
		s.Reports = []Report{{Kind: kind, Time: s.tick(), Content: s.keep(string(body))}, {Kind: "hook", Time: s.tick(), Content: s.keep(string(body))}}
		g := s.build(t)
		consistent(t, g)
	})
}

// consistent checks what holds for every graph: edges join nodes that are
// there, results follow their calls.
func consistent(t *testing.T, g mayfly.Graph) {
	t.Helper()
	nodes := map[string]mayfly.Node{}
	for _, n := range g.Nodes {
		if _, ok := nodes[n.ID]; ok || n.ID == "" {
			t.Fatalf("two nodes %q", n.ID)
		}
		nodes[n.ID] = n
	}
	for _, e := range g.Edges {
		if nodes[e.From].ID == "" || nodes[e.To].ID == "" || e.From == e.To {
			t.Fatalf("edge %+v", e)
		}
		if e.Kind == "returns" && (nodes[e.From].Kind != mayfly.ActionNode || nodes[e.To].Kind != mayfly.ResultNode) {
			t.Fatalf("edge %+v", e)
		}
	}
	for _, a := range g.Agents {
		if a.Parent != "" && nodes[a.Parent].ID == "" {
			t.Fatalf("agent %+v", a)
		}
	}
}

// Whatever an environment sends, a graph comes out that is one.
func FuzzBuild(f *testing.F) {
	for i, api := range apis {
		history := []modelapi.Turn{user(say("go")), model(call("a", "Agent", `{"prompt":"x"}`)), user(result("a", "Agent", "ok"))}
		f.Add(byte(i), requestBody(api, history[:1]), answerBody(api, true, history[1].Blocks), requestBody(api, history), answerBody(api, false, []modelapi.Block{say("x")}))
		f.Add(byte(i), requestBody(api, history), answerBody(api, true, history[1].Blocks), requestBody(api, []modelapi.Turn{user(say("x"))}), "{}")
	}
	f.Fuzz(func(t *testing.T, i byte, q1, a1, q2, a2 string) {
		api := apis[int(i)%len(apis)]
		s := newTape()
		s.exchange(api, "", 1, q1, a1)
		s.exchange(api, "", 2, q2, a2)
		s.exchange(api, "sub", 3, q2, a1)
		s.exchange(api, "", 4, q1, a2)
		s.exchange(api, "", 4, q1, a1)
		s.exchange(api, "", 0, q2, a2)
		s.exchange(api, "", 5, q2, a2)
		consistent(t, s.build(t))
	})
}
