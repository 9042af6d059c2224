package mayfly

import (
	"crypto/rand"
	"encoding/base32"
	"encoding/binary"
	"time"
)

// idAlphabet is Crockford's base 32 in lower case: sorts as the bytes do.
var idAlphabet = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewID makes an identifier of fixed length that sorts by the time of its
// making: a prefix that names the noun ("env", "run", "snap"), a dash, and 16
// characters holding 48 bits of milliseconds and 32 random bits.
func NewID(prefix string, now time.Time) string {
	var b [10]byte
	binary.BigEndian.PutUint64(b[:8], uint64(now.UnixMilli())<<16)
	rand.Read(b[6:]) // crypto/rand.Read never fails
	return prefix + "-" + idAlphabet.EncodeToString(b[:])
}

// CheckName reports whether s can name an environment: a DNS label, so that
// it can also be a hostname and a Kubernetes namespace.
func CheckName(s string) error {
	if !isWord(s, lower, "-") {
		return Errorf(Invalid, "bad name %q", s).
			Hint("use 1 to 63 lower-case letters, digits and dashes, beginning and ending with a letter or digit")
	}
	return nil
}
