package mayfly

import (
	"strings"
	"testing"
	"time"
)

func TestTTLHasBounds(t *testing.T) {
	for d, ok := range map[time.Duration]bool{
		0: false, -time.Hour: false, time.Millisecond: false, MinTTL: true, DefaultTTL: true,
		MaxTTL: true, MaxTTL + 1: false, 365 * 24 * time.Hour: false,
	} {
		if err := CheckTTL(d); (err == nil) != ok {
			t.Errorf("CheckTTL(%v) = %v, want ok = %v", d, err, ok)
		}
	}
}

func TestLabelsAreShortPrintableText(t *testing.T) {
	for _, c := range []struct {
		key, value string
		ok         bool
	}{
		{"branch", "main", true}, {"pr", "", true}, {"mayfly.dev/team", "payments ü", true},
		{"", "x", false}, {"-a", "x", false}, {"a b", "x", false}, {"a", "x\ny", false},
		{"a", "\xff", false}, {"a", "\x1b[31m", false}, {strings.Repeat("k", 64), "x", false},
		{"a", strings.Repeat("v", 257), false},
	} {
		err := CheckLabel(c.key, c.value)
		if (err == nil) != c.ok {
			t.Errorf("CheckLabel(%q, %q) = %v, want ok = %v", c.key, c.value, err, c.ok)
		}
		if err != nil && KindOf(err) != Invalid {
			t.Errorf("kind of %v = %v, want %v", err, KindOf(err), Invalid)
		}
	}
}

func TestKindsListsEveryKind(t *testing.T) {
	listed := Kinds()
	if len(listed) != len(kinds) {
		t.Errorf("len(Kinds()) = %d, want %d", len(listed), len(kinds))
	}
	for _, k := range listed {
		if _, ok := kinds[k]; !ok {
			t.Errorf("Kinds() has %q, which has no statuses", k)
		}
	}
}
