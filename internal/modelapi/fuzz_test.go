package modelapi

import (
	"bytes"
	"net/http"
	"testing"
)

var apis = []string{Messages, MessagesCount, Responses, Compact, Chat, Generate, Stream, GeminiCount}

func FuzzRequest(f *testing.F) {
	for _, body := range conversations {
		for i := range apis {
			f.Add(byte(i), []byte(body), []byte(body[:len(body)*2/3]))
		}
	}
	f.Add(byte(2), []byte(`{"input":"x"}`), []byte(`{"input":[{"type":"additional_tools","tools":[{}]}],"tools":[]}`))
	f.Fuzz(func(t *testing.T, i byte, first, second []byte) {
		api := apis[int(i)%len(apis)]
		var c Conversation
		for _, body := range [][]byte{first, second, first} {
			c.Match(body)
			r, shared, err := c.Read(api, http.Header{}, body)
			if err != nil {
				continue
			}
			// Read on from others or at once, a request is the same.
			alone, err := ParseRequest(api, http.Header{}, body)
			if err != nil {
				t.Fatalf("alone: %v", err)
			}
			if len(alone.Turns) != shared+len(r.Turns) || alone.System != r.System || alone.ToolsDigest != r.ToolsDigest {
				t.Fatalf("got = %d + %d turns, %+v, want %d, %+v", shared, len(r.Turns), r, len(alone.Turns), alone)
			}
			for j, turn := range r.Turns {
				if turn.hash() != alone.Turns[shared+j].hash() {
					t.Fatalf("turn %d: got = %+v, want %+v", j, turn, alone.Turns[shared+j])
				}
			}
		}
	})
}

func FuzzAnswer(f *testing.F) {
	for _, c := range answers {
		for i, api := range apis {
			if api == c.api {
				f.Add(byte(i), []byte(c.body), c.name == "messages")
			}
		}
	}
	f.Fuzz(func(t *testing.T, i byte, body []byte, stream bool) {
		h := http.Header{}
		if stream {
			h.Set("Content-Type", "text/event-stream")
		}
		a, err := ParseAnswer(apis[int(i)%len(apis)], h, body)
		if u := a.Usage; err == nil && (u.Input < 0 || u.Output < 0) {
			t.Fatalf("usage: got = %+v", u)
		}
	})
}

func FuzzNormalise(f *testing.F) {
	for _, body := range conversations {
		f.Add(byte(0), []byte(body))
	}
	for _, list := range ruleCases {
		for _, c := range list {
			f.Add(byte(0), []byte(c.a))
		}
	}
	f.Fuzz(func(t *testing.T, i byte, body []byte) {
		api := apis[int(i)%len(apis)]
		form, err := Normalise(api, nil, body)
		if err != nil {
			return
		}
		if _, err := parseValue(form); err != nil {
			t.Fatalf("%s: %v", form, err)
		}
		if _, _, _, equal := Difference(form, form); !equal {
			t.Fatalf("%s differs from itself", form)
		}
		other := bytes.Replace(form, []byte("a"), []byte("b"), 1)
		if _, err := parseValue(other); err == nil && !bytes.Equal(other, form) {
			if _, l, r, equal := Difference(form, other); equal || l == r {
				t.Fatalf("%s and %s: %q, %q, %t", form, other, l, r, equal)
			}
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add("gzip", []byte{0x1f, 0x8b})
	f.Add("zstd", []byte{0x28, 0xb5, 0x2f, 0xfd})
	f.Add("deflate, gzip", []byte{})
	f.Fuzz(func(t *testing.T, encoding string, body []byte) {
		out, err := Decode(http.Header{"Content-Encoding": {encoding}}, body)
		if err == nil && len(out) > maxBody {
			t.Fatalf("%d bytes", len(out))
		}
	})
}
