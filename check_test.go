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

func TestNamesAreDNSLabels(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "swift-otter": true, "0": true, "a--b": true, strings.Repeat("a", 63): true,
		"": false, "-a": false, "a-": false, "A": false, "a.b": false, "a b": false, "a\n": false, "ä": false,
		"a\xff": false, strings.Repeat("a", 64): false, "../x": false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("CheckName(%q) = %v, want ok = %v", name, err, ok)
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
