package monitor

import (
	"encoding/binary"
	"slices"
	"testing"
	"unicode/utf8"
)

func sample(total, length uint32, args string) []byte {
	b := make([]byte, atArgs)
	binary.NativeEndian.PutUint64(b[atTime:], 5)
	binary.NativeEndian.PutUint64(b[atWatch:], 6)
	binary.NativeEndian.PutUint32(b[atPID:], 7)
	binary.NativeEndian.PutUint32(b[atParent:], 8)
	binary.NativeEndian.PutUint32(b[atTotal:], total)
	binary.NativeEndian.PutUint32(b[atLength:], length)
	copy(b[atCommand:], "0123456789abcdef")
	return append(b, args...)
}

func TestArgumentsAreSplit(t *testing.T) {
	for _, c := range []struct {
		total, length uint32
		args          string
		want          []string
		truncated     bool
	}{
		{0, 0, "", nil, false},
		{5, 0, "", nil, true},
		{4, 4, "a\x00b\x00", []string{"a", "b"}, false},
		{4, 4, "a\x00\x00\x00", []string{"a", "", ""}, false},
		{9, 4, "a\x00b\x00", []string{"a", "b"}, true},
		{9, 3, "a\x00b", []string{"a", "b"}, true},
		{2, 2, "\xff\x00", []string{"\uFFFD"}, false},
		{1, 1, "\x00", []string{""}, false},
		{1, 1, "a\x00rest of the buffer", []string{"a"}, false},
	} {
		r, err := parse(sample(c.total, c.length, c.args))
		if err != nil || !slices.Equal(r.exec.Args, c.want) || r.exec.Truncated != c.truncated {
			t.Errorf("%q: got = %q, %v, %v, want %q, %v", c.args, r.exec.Args, r.exec.Truncated, err, c.want, c.truncated)
		}
		if r.time != 5 || r.watch != 6 || r.exec.PID != 7 || r.exec.Parent != 8 || r.exec.Command != "0123456789abcdef" {
			t.Errorf("got = %+v", r)
		}
	}
}

func TestMalformedRecordsAreRefused(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty": nil, "short": sample(0, 0, "")[:atArgs-1],
		"more than there is": sample(9, 3, "ab"), "more than can be": sample(1<<20, maxArgs+1, string(make([]byte, maxArgs+1))),
	} {
		if _, err := parse(b); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(sample(4, 4, "a\x00b\x00"))
	f.Add(sample(400, 4, "\xff\x00\x00\x00"))
	f.Add(sample(0, 0, ""))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parse(b)
		if err != nil {
			return
		}
		size := 0
		for _, a := range append(r.exec.Args, r.exec.Command) {
			if !utf8.ValidString(a) {
				t.Errorf("got = %q, which is no UTF-8", a)
			}
			size += len(a)
		}
		if size > 3*(maxArgs+commandSize) || len(r.exec.Args) > maxArgs+1 {
			t.Errorf("got = %d arguments of %d bytes", len(r.exec.Args), size)
		}
	})
}
