package recording

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// exchange is a request and its answer.
type exchange struct{ request, answer mayfly.Content }

func requestHeader(n int) map[string][]string {
	return map[string][]string{
		"Content-Type": {"application/json"}, "Authorization": {"Bearer mf-run-01jd2n8k5q7xw3vz-0123456789abcdef0123456789abcdef"},
		"User-Agent": {"claude-cli/2.1.330 (external, cli)"}, "Anthropic-Version": {"2023-06-01"}, "Accept": {"application/json"},
		"Anthropic-Beta":          {"interleaved-thinking-2025-05-14,fine-grained-tool-streaming-2025-05-14"},
		"X-Stainless-Retry-Count": {fmt.Sprint(n % 2)}, "Content-Length": {fmt.Sprint(100_000 + n*1234)},
	}
}

func answerHeader(r *rand.Rand) map[string][]string {
	return map[string][]string{
		"Content-Type": {"text/event-stream; charset=utf-8"}, "Cache-Control": {"no-cache"}, "Server": {"edge"},
		"Date": {fmt.Sprintf("Mon, 23 Nov 2026 10:%02d:%02d GMT", r.IntN(60), r.IntN(60))}, "Request-Id": {fmt.Sprintf("req_%016x%08x", r.Uint64(), r.Uint32())},
		"Anthropic-Ratelimit-Tokens-Remaining": {fmt.Sprint(r.IntN(1e6))}, "Cf-Ray": {fmt.Sprintf("%016x-FRA", r.Uint64())},
	}
}

// prose is text like what conversations have: lines of this repository's code,
// each a little different from the one before.
type prose struct {
	r     *rand.Rand
	lines []string
}

func newProse(t testing.TB) *prose {
	t.Helper()
	var lines []string
	for _, pattern := range []string{"../../*.go", "../volume/*.go", "../sandbox/*.go", "../control/*.go"} {
		names, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			lines = append(lines, strings.Split(string(text), "\n")...)
		}
	}
	return &prose{rand.New(rand.NewPCG(1, 2)), lines}
}

func (p *prose) text(n int) string {
	var b strings.Builder
	for at := p.r.IntN(len(p.lines)); b.Len() < n; at++ {
		fmt.Fprintf(&b, "%d\t%s\n", p.r.IntN(2000), p.lines[at%len(p.lines)])
	}
	return b.String()[:n]
}

// answerStream is a streamed answer, a few bytes in each event.
func (p *prose) answerStream(id, text, input string) mayfly.Content {
	var b strings.Builder
	fmt.Fprintf(&b, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"id\":\"msg_%s\",\"type\":\"message\",\"role\":\"assistant\",\"content\":[],\"usage\":{\"input_tokens\":4,\"cache_read_input_tokens\":%d}}}\n\n", id, p.r.IntN(1e5))
	block := func(index int, kind, field, s string) {
		for len(s) > 0 {
			n := min(len(s), 4+p.r.IntN(16))
			fmt.Fprintf(&b, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":%d,\"delta\":{\"type\":\"%s\",\"%s\":%s}}\n\n", index, kind, field, quoted(s[:n]))
			s = s[n:]
		}
	}
	block(0, "text_delta", "text", text)
	block(1, "input_json_delta", "partial_json", input)
	b.WriteString("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n")
	c := mayfly.Content{Header: answerHeader(p.r), Body: []byte(b.String())}
	after := time.Duration(0)
	for at := 0; at < len(c.Body); {
		n := min(len(c.Body)-at, 100+p.r.IntN(300))
		after += time.Duration(p.r.IntN(30_000)) * time.Microsecond
		c.Chunks = append(c.Chunks, mayfly.Chunk{Size: n, After: after})
		at += n
	}
	return c
}

type object = map[string]any

func encoded(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return b
}

// claude is a conversation as Claude Code has it: everything again each turn,
// marked at its end for the cache.
func (p *prose) claude(turns int) (list []exchange) {
	var tools []object
	for i := range 18 {
		tools = append(tools, object{"name": fmt.Sprintf("Tool%d", i), "description": p.text(2500), "input_schema": object{"type": "object"}})
	}
	system := []object{{"type": "text", "text": "You are an agent."}, {"type": "text", "text": p.text(14_000), "cache_control": object{"type": "ephemeral"}}}
	messages := []object{{"role": "user", "content": []object{{"type": "text", "text": p.text(1500)}}}}
	for turn := range turns {
		mark := func(set bool) {
			for _, m := range messages[max(0, len(messages)-3):] {
				content := m["content"].([]object)
				last := content[len(content)-1]
				delete(last, "cache_control")
				if set && m["role"] == "user" {
					last["cache_control"] = object{"type": "ephemeral"}
				}
			}
		}
		mark(true)
		body := encoded(object{"model": "claude", "max_tokens": 32000, "stream": true, "system": system, "tools": tools, "messages": messages,
			"metadata": object{"user_id": "user_0123_account__session_4567"}})
		mark(false)
		id := fmt.Sprintf("%016x", p.r.Uint64())
		text, input := p.text(120+p.r.IntN(400)), string(encoded(object{"command": p.text(100 + p.r.IntN(300))}))
		list = append(list, exchange{mayfly.Content{Header: requestHeader(turn), Body: body}, p.answerStream(id, text, input)})
		messages = append(messages,
			object{"role": "assistant", "content": []object{{"type": "text", "text": text}, {"type": "tool_use", "id": "toolu_" + id, "name": "Bash", "input": json.RawMessage(input)}}},
			object{"role": "user", "content": []object{{"type": "tool_result", "tool_use_id": "toolu_" + id, "content": p.text(500 + p.r.IntN(5000))}}})
	}
	return list
}

// responses is a conversation as Codex has it.
func (p *prose) responses(turns int) (list []exchange) {
	instructions, tools := p.text(18_000), []object{}
	for i := range 8 {
		tools = append(tools, object{"type": "function", "name": fmt.Sprintf("tool_%d", i), "description": p.text(1200), "parameters": object{"type": "object"}})
	}
	input := []object{{"type": "message", "role": "user", "content": []object{{"type": "input_text", "text": p.text(4000)}}}}
	for turn := range turns {
		body := encoded(object{"model": "gpt", "instructions": instructions, "tools": tools, "input": input, "stream": true, "store": false,
			"prompt_cache_key": "0199-aaaa", "client_metadata": object{"turn": turn}})
		id := fmt.Sprintf("%016x", p.r.Uint64())
		text, arguments := p.text(120+p.r.IntN(400)), string(encoded(object{"cmd": p.text(100 + p.r.IntN(300))}))
		list = append(list, exchange{mayfly.Content{Header: requestHeader(turn), Body: body}, p.answerStream(id, text, arguments)})
		input = append(input,
			object{"type": "reasoning", "encrypted_content": fmt.Sprintf("gAAAA%x", p.text(200)), "summary": []object{}},
			object{"type": "function_call", "call_id": "call_" + id, "name": "shell", "arguments": arguments},
			object{"type": "function_call_output", "call_id": "call_" + id, "output": p.text(500 + p.r.IntN(5000))})
	}
	return list
}

// writeAll writes a conversation and returns the bytes of its bodies.
func writeAll(t testing.TB, s *Store, run string, list []exchange) (bodies int64, digests []string) {
	t.Helper()
	for _, x := range list {
		for _, c := range []mayfly.Content{x.request, x.answer} {
			digests = append(digests, write(t, s, run, c))
			bodies += int64(len(c.Body))
		}
	}
	return bodies, digests
}

func TestAConversationIsStoredInAFewPercentOfItsBodies(t *testing.T) {
	for name, make := range map[string]func(*prose, int) []exchange{"claude": (*prose).claude, "responses": (*prose).responses} {
		s := openStore(t, t.TempDir())
		begun(t, s, "run-a", Encrypted)
		list := make(newProse(t), 60)
		bodies, digests := writeAll(t, s, "run-a", list)
		stored, err := s.packs.Size()
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes of bodies in %d bytes: %.2f %%", name, bodies, stored, 100*float64(stored)/float64(bodies))
		if stored*100 > bodies*5 {
			t.Errorf("%s: %d bytes of bodies in %d bytes", name, bodies, stored)
		}
		for i, x := range list {
			for j, want := range []mayfly.Content{x.request, x.answer} {
				got, err := s.Exact(t.Context(), "run-a", digests[2*i+j])
				if err != nil {
					t.Fatal(err)
				}
				sameContent(t, fmt.Sprintf("%s %d.%d", name, i, j), got, want)
			}
		}
	}
}

func BenchmarkConversation60(b *testing.B) {
	for name, make := range map[string]func(*prose, int) []exchange{"claude": (*prose).claude, "responses": (*prose).responses} {
		b.Run(name, func(b *testing.B) {
			list := make(newProse(b), 60)
			var bodies, stored int64
			for b.Loop() {
				b.StopTimer()
				s := openStore(b, b.TempDir())
				begun(b, s, "run-a", Encrypted)
				b.StartTimer()
				bodies, _ = writeAll(b, s, "run-a", list)
				stored, _ = s.packs.Size()
			}
			b.SetBytes(bodies)
			b.ReportMetric(100*float64(stored)/float64(bodies), "%stored")
			b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/120, "µs/content")
		})
	}
}

// BenchmarkWriteContent is the time to a durable request late in a
// conversation, of which one turn is new.
func BenchmarkWriteContent(b *testing.B) {
	s := openStore(b, b.TempDir())
	begun(b, s, "run-a", Encrypted)
	list := newProse(b).claude(60)
	writeAll(b, s, "run-a", list[:59])
	body := string(list[59].request.Body)
	b.SetBytes(int64(len(body)))
	for n := 0; b.Loop(); n++ {
		c := list[59].request
		c.Body = []byte(strings.Replace(body, "claude", fmt.Sprintf("claude-%d", n), 1))
		write(b, s, "run-a", c)
	}
}
