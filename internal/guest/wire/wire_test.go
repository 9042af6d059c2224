package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"reflect"
	"testing"
)

var requests = []Request{
	{Op: OpStart, Run: "run-1", Argv: []string{"sh", "-c", "true"}, Env: []string{"A=b"}, Dir: "/", TTY: true, Rows: 24, Cols: 80, Output: 1 << 40},
	{Op: OpStart, Run: "r", Argv: []string{"x"}, Env: []string{}, Stdin: true},
	{Op: OpWait, Run: "r"},
	{Op: OpSignal, Run: "r", Signal: 9},
	{Op: OpAttach, Run: "0-9"},
	{Op: OpListen, Port: 2929},
	{Op: OpAccept, Port: 65535},
	{Op: OpStart, Run: "svc-db-1", Argv: []string{"x"}, Env: []string{}, UID: 2000},
	{Op: OpProbe, Port: 6379},
	{Op: OpClear, UID: 2999},
	{Op: OpKill, UID: 2000},
}

func TestRequestArrivesAsSent(t *testing.T) {
	for _, want := range requests {
		got, err := ReadRequest(bytes.NewReader(AppendRequest(nil, want)))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got = %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestMalformedRequestsAreRefused(t *testing.T) {
	good := AppendRequest(nil, requests[0])
	huge := binary.LittleEndian.AppendUint32(nil, 1<<31)
	many := AppendRequest(nil, Request{Op: OpStart, Run: "r"})
	binary.LittleEndian.PutUint32(many[4+1+5+4:], 1<<30) // number of arguments
	for name, b := range map[string][]byte{
		"empty":               {0, 0, 0, 0},
		"too long":            huge,
		"list too long":       many,
		"trailing byte":       append(binary.LittleEndian.AppendUint32(nil, uint32(len(good)-4+1)), append(good[4:len(good):len(good)], 0)...),
		"unknown operation":   AppendRequest(nil, Request{Op: 9, Run: "r"}),
		"start as root's own": AppendRequest(nil, Request{Op: OpStart, Run: "r", Argv: []string{"x"}, UID: 1}),
		"clear of commands":   AppendRequest(nil, Request{Op: OpClear}),
		"clear of root":       AppendRequest(nil, Request{Op: OpClear, UID: 1000}),
		"path as run":         AppendRequest(nil, Request{Op: OpWait, Run: "../x"}),
		"no run":              AppendRequest(nil, Request{Op: OpWait}),
		"negative output":     AppendRequest(nil, Request{Op: OpStart, Run: "r", Output: -1}),
		"string beyond end":   {9, 0, 0, 0, byte(OpWait), 200, 0, 0, 0, 'a', 0, 0, 0},
		"run with upper case": AppendRequest(nil, Request{Op: OpWait, Run: "A"}),
	} {
		if _, err := ReadRequest(bytes.NewReader(b)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: got = %v, want malformed", name, err)
		}
	}
	if _, err := ReadRequest(bytes.NewReader(good[:len(good)-1])); err != io.ErrUnexpectedEOF {
		t.Errorf("cut short: got = %v, want unexpected EOF", err)
	}
}

func TestRepliesAndMessagesAreBounded(t *testing.T) {
	s, text, err := ReadReply(bytes.NewReader(AppendReply(nil, Failed, bytes.Repeat([]byte("x"), 2*MaxReply))))
	if s != Failed || len(text) != MaxReply || err != nil {
		t.Errorf("got = %v %d %v, want a reply cut to %d", s, len(text), err, MaxReply)
	}
	for name, b := range map[string][]byte{
		"reply":   binary.LittleEndian.AppendUint32([]byte{0}, MaxReply+1),
		"message": binary.LittleEndian.AppendUint32([]byte{Input}, MaxMessage+1),
	} {
		_, _, err := ReadReply(bytes.NewReader(b))
		if name == "message" {
			_, _, err = ReadMessage(bytes.NewReader(b))
		}
		if !errors.Is(err, ErrMalformed) {
			t.Errorf("%s too long: got = %v, want malformed", name, err)
		}
	}
}

func FuzzParseRequest(f *testing.F) {
	for _, r := range requests {
		f.Add(AppendRequest(nil, r)[4:])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := ParseRequest(b)
		if err != nil {
			return
		}
		isService := r.UID >= FirstUID && r.UID <= LastUID
		switch {
		case r.UID != 0 && !isService, r.ofUser() && !isService:
			t.Errorf("got = %+v, which acts as a user who is no service's", r)
		case r.Op == OpProbe && r.Port == 0, r.Output < 0, r.OfRun() && !ValidRun(r.Run):
			t.Errorf("got = %+v, which cannot be done", r)
		}
		again, err := ParseRequest(AppendRequest(nil, r)[4:])
		if err != nil || !reflect.DeepEqual(r, again) {
			t.Errorf("got = %+v, %v, want %+v", again, err, r)
		}
	})
}

func FuzzReadReply(f *testing.F) {
	f.Add(AppendReply(nil, OK, []byte("text")))
	f.Add([]byte{0, 255, 255, 255, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, text, err := ReadReply(bytes.NewReader(b)); err == nil && len(text) > MaxReply {
			t.Errorf("got = %d bytes, want at most %d", len(text), MaxReply)
		}
		if _, payload, err := ReadMessage(bytes.NewReader(b)); err == nil && len(payload) > MaxMessage {
			t.Errorf("got = %d bytes, want at most %d", len(payload), MaxMessage)
		}
	})
}
