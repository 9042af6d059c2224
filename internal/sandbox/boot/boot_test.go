package boot

import (
	"reflect"
	"testing"
)

var sample = Config{
	Hostname: "mayfly", Nested: true, UID: 1000, GID: 1001, Tasks: 64, SharedMemory: 1 << 30,
	Filter: []byte{0, 1, 2, 3}, Env: []string{"A=b", "C="}, Binds: []string{"/usr"},
}

func TestConfigArrivesAsSent(t *testing.T) {
	for _, want := range []Config{sample, {Hostname: "x", Filter: []byte{}, Env: []string{}, Binds: []string{}}} {
		got, err := Parse(Append(nil, want))
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got = %+v, %v, want %+v", got, err, want)
		}
	}
}

func TestLaunchArrivesAsSent(t *testing.T) {
	want := Launch{UIDBase: 1 << 31, Group: true, In: 3, Out: 2, Name: "env-1"}
	if got, err := ParseLaunch(want.Append(nil), LaunchGroups+6); err != nil || got != want {
		t.Errorf("got = %+v, %v, want %+v", got, err, want)
	}
	if _, err := ParseLaunch(want.Append(nil), LaunchGroups+5); err != ErrMalformed {
		t.Errorf("descriptor missing: got = %v, want malformed", err)
	}
	if _, err := ParseLaunched([]byte{1}); err != ErrMalformed {
		t.Errorf("short answer: got = %v, want malformed", err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Append(nil, sample))
	f.Add(make([]byte, fixed))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err != nil {
			return
		}
		if again, err := Parse(Append(nil, c)); err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("got = %+v, %v, want %+v", again, err, c)
		}
	})
}
