package guest

import (
	"net"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/guest/wire"
)

// impostor answers one request with the given bytes.
func impostor(t *testing.T, answer []byte) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	go func() {
		defer theirs.Close()
		if _, err := wire.ReadRequest(theirs); err == nil {
			theirs.Write(answer)
		}
	}()
	return ours
}

func TestAnswersOfAnImpostorAreRefused(t *testing.T) {
	hello := []byte{wire.Hello}
	for name, answer := range map[string][]byte{
		"nothing":          nil,
		"no hello":         wire.AppendReply(nil, wire.OK, nil),
		"half a reply":     append(hello, 0, 1),
		"too long":         append(hello, 0, 255, 255, 255, 255),
		"no record":        wire.AppendReply(hello, wire.OK, []byte("[]")),
		"other run":        wire.AppendReply(hello, wire.OK, []byte(`{"run":"other"}`)),
		"impossible code":  wire.AppendReply(hello, wire.OK, []byte(`{"run":"r","code":-1}`)),
		"number too large": wire.AppendReply(hello, wire.OK, []byte(`{"run":"r","max_rss":1e99}`)),
		"failure":          wire.AppendReply(hello, wire.Failed, []byte("\x1b[2J")),
		"unknown status":   wire.AppendReply(hello, 99, nil),
	} {
		_, err := Wait(t.Context(), impostor(t, answer), "r")
		if err == nil {
			t.Errorf("%s: accepted", name)
		} else if strings.Contains(err.Error(), "\x1b") {
			t.Errorf("%s: the error holds control characters: %q", name, err)
		}
	}
}

func TestBadRequestsAreNotSent(t *testing.T) {
	if err := Start(t.Context(), impostor(t, nil), Command{Run: "r"}); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("no command: got = %v, want invalid", err)
	}
	if err := Start(t.Context(), impostor(t, nil), Command{Run: "../x", Argv: []string{"true"}}); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("bad run: got = %v, want invalid", err)
	}
	huge := Command{Run: "r", Argv: []string{"true", strings.Repeat("x", wire.MaxRequest)}}
	if err := Start(t.Context(), impostor(t, nil), huge); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("huge command: got = %v, want invalid", err)
	}
}

func FuzzParseExit(f *testing.F) {
	f.Add([]byte(`{"run":"r","code":1,"reason":"x","oom":true,"started":1,"ended":2,"user_cpu":3,"system_cpu":4,"max_rss":5}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if x, err := parseExit(b, "r"); err == nil && (x.Run != "r" || x.Code < 0 || x.Code > 255) {
			t.Errorf("accepted %+v", x)
		}
	})
}
