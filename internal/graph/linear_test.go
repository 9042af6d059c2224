package graph

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly/internal/modelapi"
)

// Histories of a quarter of a megabyte that take minutes where something is quadratic.
func TestHostileHistoriesTakeLinearTime(t *testing.T) {
	repeat := func(s string) string { return strings.TrimSuffix(strings.Repeat(s+",", (1<<18)/len(s)), ",") }
	for name, turns := range map[string]string{
		"calls without ids":   repeat(`{"role":"assistant","function_call":{"name":"f","arguments":"{}"}},{"role":"function","name":"f","content":"x"}`),
		"calls, then results": repeat(`{"role":"assistant","function_call":{"name":"f"}}`) + "," + repeat(`{"role":"function","name":"f","content":"x"}`),
		"results of nothing":  repeat(`{"role":"tool","tool_call_id":"x","content":"x"}`),
		"one id for all":      repeat(`{"role":"assistant","tool_calls":[{"id":"x","function":{"name":"Task"}}]}`),
		"words":               repeat(`{"role":"user","content":"x"}`),
	} {
		s := newTape()
		first := `{"messages":[` + turns + `]}`
		s.exchange(modelapi.Chat, "", 1, first, `{"choices":[{"message":{"content":"ok"}}]}`)
		s.exchange(modelapi.Chat, "", 2, `{"messages":[{"role":"user","content":"y"},`+turns+`]}`, `{"choices":[{"message":{"content":"ok"}}]}`)
		start := time.Now()
		g := s.build(t)
		consistent(t, g)
		var b bytes.Buffer
		Tree(&b, g, TreeOptions{})
		DOT(&b, g)
		Mermaid(&b, g)
		if d := time.Since(start); d > 15*time.Second {
			t.Errorf("%s took %v", name, d)
		}
	}
}
