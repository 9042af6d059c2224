package graph

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/modelapi"
)

// longRun keeps a run of many steps: each request has the whole history since
// the last compaction, as agents do, with marks for the upstream's cache that
// move on, behind it a system prompt and tools of their usual size. A history
// is compacted when it has 400 KB.
func longRun(steps int) (t *tape, lost int) {
	t = newTape()
	const limit = 400 << 10
	tail := `],"system":[{"type":"text","text":"` + strings.Repeat("Follow the rules. ", 1200) + `"}],"tools":[` +
		strings.Repeat(`{"name":"Bash","description":"Run a command and wait for it","input_schema":{"type":"object","properties":{"command":{"type":"string"}}}},`, 400) +
		`{"name":"Read"}],"max_tokens":32000,"stream":true}`
	file := strings.Repeat("\\tfor i := range list { // ü\\n", 40)
	history := bytes.NewBufferString(`{"model":"m","messages":[`)
	start := history.Len()
	last := func(mark string) string {
		return `{"role":"user","content":[{"type":"text","text":"Do it."` + mark + `}]}`
	}
	const mark = `,"cache_control":{"type":"ephemeral"}`
	requests := map[string][]byte{}
	for i := range steps {
		if history.Len() > limit {
			history.Truncate(start)
			lost++ // the result that only the summary tells of
			summary := fmt.Sprintf("This session is being continued from a previous conversation: part %d", i)
			last = func(mark string) string {
				return fmt.Sprintf(`{"role":"user","content":[{"type":"text","text":%q%s}]}`, summary, mark)
			}
		}
		body := bytes.Join([][]byte{history.Bytes(), []byte(last(mark)), []byte(tail)}, nil)
		id := fmt.Sprintf("toolu_%06d", i)
		answer := answerBody(modelapi.Messages, true, []modelapi.Block{
			think("I should look at the next file."), say("Looking at it."), call(id, "Read", `{"file_path":"/workspace/src/file.go","limit":2000}`),
		})
		x := t.exchange(modelapi.Messages, "", i+1, "", answer)
		x.Request = fmt.Sprintf("request %d", i)
		requests[x.Request] = body
		fmt.Fprintf(history, `%s,{"role":"assistant","content":[{"type":"thinking","thinking":"I should look at the next file.","signature":"x"},{"type":"text","text":"Looking at it."},{"type":"tool_use","id":%q,"name":"Read","input":{"file_path":"/workspace/src/file.go","limit":2000}}]},`, last(""), id)
		last = func(mark string) string {
			return fmt.Sprintf(`{"role":"user","content":[{"type":"tool_result","tool_use_id":%q,"content":"%s"%s}]}`, id, file, mark)
		}
	}
	kept := t.Content
	t.Content = func(digest string) (mayfly.Content, error) {
		if body, ok := requests[digest]; ok {
			return mayfly.Content{Body: body}, nil
		}
		return kept(digest)
	}
	return t, lost + 1
}

func BenchmarkBuild(b *testing.B) {
	for _, steps := range []int{1000, 4000} {
		t, lost := longRun(steps)
		size := int64(0)
		for _, x := range t.Exchanges {
			c, _ := t.Content(x.Request)
			size += int64(len(c.Body))
		}
		b.Run(fmt.Sprintf("steps=%d", steps), func(b *testing.B) {
			b.SetBytes(size)
			for b.Loop() {
				if g := t.build(b); len(g.Steps) != steps || len(g.Orphans) != lost {
					b.Fatalf("%d steps, %d orphans", len(g.Steps), len(g.Orphans))
				}
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N)*10000/float64(steps), "ms/10000steps")
		})
	}
}
