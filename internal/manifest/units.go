package manifest

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
	"unicode"

	"mayfly.dev/mayfly"
)

// sizeUnits are the units of sizes, largest first within each system.
var sizeUnits = []struct {
	name  string
	bytes int64
}{
	{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10},
	{"TB", 1e12}, {"GB", 1e9}, {"MB", 1e6}, {"KB", 1e3}, {"B", 1},
}

// ParseSize reads a number of bytes: "512MiB", "4 GiB", "1.5GB", "1048576".
// KiB, MiB, GiB and TiB are powers of 1024; KB, MB, GB and TB of 1000.
func ParseSize(s string) (int64, error) {
	digits := strings.TrimRightFunc(s, func(r rune) bool { return unicode.IsLetter(r) || r == ' ' })
	unit := strings.TrimSpace(s[len(digits):])
	factor := int64(1)
	if unit != "" {
		factor = 0
		for _, u := range sizeUnits {
			if u.name == unit {
				factor = u.bytes
			}
		}
	}
	number, err := strconv.ParseFloat(digits, 64)
	bytes := math.Round(number * float64(factor))
	if err != nil || factor == 0 || strings.ContainsAny(digits, "eExXpP_+-") || !(bytes >= 0 && bytes < 1<<62) {
		return 0, mayfly.Errorf(mayfly.Invalid, "bad size %q", s).
			Hint("write a number and a unit, such as 512MiB or 4GiB; units are B, KB, MB, GB, TB, KiB, MiB, GiB and TiB")
	}
	return int64(bytes), nil
}

// FormatSize writes a size as ParseSize reads it, without loss.
func FormatSize(n int64) string {
	for _, u := range sizeUnits[:4] {
		if n >= u.bytes && n%u.bytes == 0 {
			return strconv.FormatInt(n/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(n, 10) + "B"
}

// ParseDuration reads a duration as time.ParseDuration does, and also days:
// "90s", "1h30m", "7d", "1d12h".
func ParseDuration(s string) (time.Duration, error) {
	var total time.Duration
	rest, ok := s, s != ""
	if days, after, found := strings.Cut(s, "d"); found {
		n, err := strconv.ParseUint(days, 10, 16)
		ok = err == nil
		total, rest = time.Duration(n)*24*time.Hour, after
	}
	if ok && rest != "" {
		d, err := time.ParseDuration(rest)
		ok = err == nil && d >= 0 && total+d >= total
		total += d
	}
	if !ok {
		return 0, mayfly.Errorf(mayfly.Invalid, "bad duration %q", s).
			Hint("write a number and a unit, such as 90s, 15m, 1h30m or 7d")
	}
	return total, nil
}

// FormatDuration writes a duration as ParseDuration reads it, without loss
// and without units that are zero: "1h", "15m", "7d".
func FormatDuration(d time.Duration) string {
	if d <= 0 {
		return "0s"
	}
	var b strings.Builder
	for _, u := range []struct {
		name string
		unit time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"m", time.Minute}} {
		if n := d / u.unit; n > 0 {
			fmt.Fprintf(&b, "%d%s", n, u.name)
			d -= n * u.unit
		}
	}
	if d > 0 {
		b.WriteString(d.String())
	}
	return b.String()
}
