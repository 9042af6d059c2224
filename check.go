package mayfly

import (
	"strings"
	"time"
)

// CheckTTL reports whether d can be an environment's time to live.
func CheckTTL(d time.Duration) error {
	if d < MinTTL || d > MaxTTL {
		return Errorf(Invalid, "bad time to live %v", d).
			Hint("use something from %v to %d days, such as 90m or 24h", MinTTL, MaxTTL/(24*time.Hour))
	}
	return nil
}

// maxLabel bounds a label's value, in bytes.
const maxLabel = 256

const (
	lower    = "abcdefghijklmnopqrstuvwxyz0123456789"
	alphanum = lower + "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
)

// isWord reports whether s consists of 1 to 63 characters of outer and inner,
// with outer ones at both ends. (A regular expression that counts takes
// milliseconds to compile, in every process that imports this package.)
func isWord(s, outer, inner string) bool {
	return s != "" && len(s) <= 63 && strings.Trim(s, outer+inner) == "" &&
		strings.IndexByte(outer, s[0]) >= 0 && strings.IndexByte(outer, s[len(s)-1]) >= 0
}

// CheckLabel reports whether an environment can carry the label.
func CheckLabel(key, value string) error {
	if !isWord(key, alphanum, "_./-") {
		return Errorf(Invalid, "bad label key %q", key).
			Hint("use 1 to 63 letters, digits and _ . / -, beginning and ending with a letter or digit")
	}
	if len(value) > maxLabel {
		return Errorf(Invalid, "the value of label %q has %d bytes", key, len(value)).
			Hint("use at most %d", maxLabel)
	}
	for _, c := range value {
		if c < ' ' || c == 0x7f || c == '\uFFFD' {
			return Errorf(Invalid, "bad value %q of label %q", value, key).
				Hint("use printable UTF-8 text")
		}
	}
	return nil
}

// Kinds lists every kind of error, the commonest first.
func Kinds() []Kind {
	return []Kind{Invalid, NotFound, Conflict, Forbidden, Drift, Exhausted, Unsupported, Timeout, Unavailable, Missing, Diverged, Internal}
}
