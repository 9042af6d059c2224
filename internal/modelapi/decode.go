package modelapi

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"io"
	"net/http"
	"strings"

	"github.com/klauspost/compress/zstd"

	"mayfly.dev/mayfly"
)

// maxBody bounds a body after it was unpacked, in bytes.
const maxBody = 128 << 20

// Decode unpacks a body that is compressed as the header says. Of a body that
// was cut off it returns what there is, and no error.
func Decode(header http.Header, body []byte) ([]byte, error) {
	list := strings.Split(header.Get("Content-Encoding"), ",")
	for i := len(list) - 1; i >= 0; i-- {
		var err error
		if body, err = unpack(strings.ToLower(strings.TrimSpace(list[i])), body); err != nil {
			return nil, err
		}
	}
	return body, nil
}

func unpack(encoding string, body []byte) ([]byte, error) {
	var in io.Reader
	var err error
	switch encoding {
	case "", "identity":
		return body, nil
	case "gzip", "x-gzip":
		in, err = gzip.NewReader(bytes.NewReader(body))
	case "deflate":
		in, err = zlib.NewReader(bytes.NewReader(body))
	case "zstd":
		var z *zstd.Decoder
		z, err = zstd.NewReader(bytes.NewReader(body), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBody))
		if err == nil {
			defer z.Close()
			in = z
		}
	default:
		return nil, mayfly.Errorf(mayfly.Invalid, "a body with Content-Encoding %q", encoding).
			Hint("gzip, deflate and zstd are understood")
	}
	if err != nil {
		return nil, mayfly.Errorf(mayfly.Invalid, "unpack %s: %w", encoding, err)
	}
	out, err := io.ReadAll(io.LimitReader(in, maxBody+1))
	switch {
	case len(out) > maxBody:
		return nil, mayfly.Errorf(mayfly.Invalid, "a body of more than %d bytes when unpacked", maxBody)
	case err != nil && len(out) == 0:
		return nil, mayfly.Errorf(mayfly.Invalid, "unpack %s: %w", encoding, err)
	}
	return out, nil
}
