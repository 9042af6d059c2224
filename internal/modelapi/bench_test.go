package modelapi

import (
	"strings"
	"testing"
)

// longBody is a request with half a megabyte of history.
func longBody() []byte {
	turn := `{"role":"assistant","content":[{"type":"text","text":"Looking at it."},{"type":"tool_use","id":"t","name":"Read","input":{"file_path":"/workspace/a.go"}}]},` +
		`{"role":"user","content":[{"type":"tool_result","tool_use_id":"t","content":"` + strings.Repeat(`\tfor i := range list { // one of 20 things\n`, 40) + `"}]},`
	return []byte(`{"model":"m","messages":[` + strings.Repeat(turn, 250) + `{"role":"user","content":"go"}],"system":"` + strings.Repeat("Follow the rules. ", 1000) + `"}`)
}

func BenchmarkKey(b *testing.B) {
	body := longBody()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, err := Key(Messages, nil, body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkParseRequest(b *testing.B) {
	body := longBody()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, err := ParseRequest(Messages, nil, body); err != nil {
			b.Fatal(err)
		}
	}
}
