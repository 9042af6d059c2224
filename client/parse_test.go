package client

import (
	"encoding/json"
	"errors"
	"io"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

func FuzzReadEventStream(f *testing.F) {
	f.Add(": keep-alive\n\nid: 1\ndata: {\"seq\":1}\n\nevent: end\ndata: {\"kind\":\"unavailable\",\"message\":\"m\"}\n\n")
	f.Add("data\n\ndata:\n\n")
	f.Add("event: other\ndata: {}\n\nid: 2\r\n\r\n")
	f.Fuzz(func(t *testing.T, text string) {
		n := 0
		err := readEventStream(strings.NewReader(text), func(mayfly.Event) error { n++; return nil })
		var e *mayfly.Error
		if !errors.As(err, &e) {
			t.Errorf("error = %v, want one with a kind: a stream never ends by itself", err)
		}
		if n > strings.Count(text, "data") {
			t.Errorf("%d events out of %q", n, text)
		}
	})
}

func FuzzReadEventList(f *testing.F) {
	f.Add(`[{"seq":1},{"seq":2}]`)
	f.Add(`[]`)
	f.Add(`[{"seq":1}`)
	f.Add(`{}`)
	f.Fuzz(func(t *testing.T, text string) {
		var got []mayfly.Event
		err := readEventList(strings.NewReader(text), func(e mayfly.Event) error { got = append(got, e); return nil })
		var want []mayfly.Event
		if whole := json.Unmarshal([]byte(text), &want) == nil; whole && want != nil && (err != nil || len(got) != len(want)) {
			t.Errorf("%q gave %d events, %v, want %d", text, len(got), err, len(want))
		}
	})
}

func FuzzReadRecords(f *testing.F) {
	f.Add("{\"output\":\"aGk=\"}\n{\"template\":{\"digest\":\"sha256:1\"}}\n")
	f.Add("{\"error\":{\"kind\":\"invalid\",\"message\":\"m\"}}")
	f.Add("null\n")
	f.Fuzz(func(t *testing.T, text string) {
		_, err := readRecords(strings.NewReader(text), io.Discard)
		if err == nil && !strings.Contains(strings.ToLower(text), "template") {
			t.Errorf("%q gave a template", text)
		}
	})
}
