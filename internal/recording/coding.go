package recording

import (
	"bytes"
	"compress/zlib"
	"errors"
	"io"
	"net/http"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// maxDecoded bounds what a compressed body may become, in bytes.
const maxDecoded = 256 << 20

// errCoding says that a body's coding is none that can be undone.
var errCoding = errors.New("unknown content coding")

// coding is how a body is compressed, as its header or its first bytes say; ""
// when it is not. named says that it was the header.
func coding(header map[string][]string, body []byte) (name string, named bool) {
	if len(body) == 0 {
		return "", false
	}
	var list []string
	for name, values := range header {
		if strings.EqualFold(name, contentEncoding) {
			list = append(list, values...)
		}
	}
	c := strings.ToLower(strings.TrimSpace(strings.Join(list, ",")))
	switch {
	case c != "" && c != "identity":
		return c, true
	case bytes.HasPrefix(body, []byte{0x1f, 0x8b}):
		return "gzip", false
	case bytes.HasPrefix(body, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd", false
	}
	return "", false
}

var contentEncoding = http.CanonicalHeaderKey("content-encoding")

// decode undoes a coding. sizes has, for each chunk of the body, how much of
// what was decoded came with it. With an error, it returns what came before.
func decode(coding string, body []byte, chunks []int) (out []byte, sizes []int, err error) {
	in := &chunkReader{body: body, chunks: chunks}
	r, err := decoder(coding, in)
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	sizes = make([]int, len(chunks))
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		out = append(out, buf[:n]...)
		if len(sizes) > 0 {
			sizes[min(in.current, len(sizes)-1)] += n
		}
		if len(out) > maxDecoded {
			return nil, nil, errCoding
		}
		if err == io.EOF {
			return out, sizes, nil
		}
		if err != nil {
			return out, sizes, err
		}
	}
}

func decoder(coding string, in io.Reader) (io.ReadCloser, error) {
	switch coding {
	case "gzip", "x-gzip":
		return gzip.NewReader(in)
	case "deflate":
		return zlib.NewReader(in)
	case "zstd":
		r, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxDecoded), zstd.WithDecoderMaxWindow(32<<20))
		if err != nil {
			return nil, err
		}
		return r.IOReadCloser(), nil
	}
	return nil, errCoding
}

// chunkReader reads a body chunk by chunk and knows which one it is at.
type chunkReader struct {
	body    []byte
	chunks  []int
	current int
	read    int // of the current chunk
}

func (c *chunkReader) Read(b []byte) (int, error) {
	if len(c.body) == 0 {
		return 0, io.EOF
	}
	for c.current < len(c.chunks)-1 && c.read >= c.chunks[c.current] {
		c.current, c.read = c.current+1, 0
	}
	n := min(len(b), len(c.body))
	if c.current < len(c.chunks)-1 {
		n = min(n, c.chunks[c.current]-c.read)
	}
	copy(b, c.body[:n])
	c.body, c.read = c.body[n:], c.read+n
	return n, nil
}
