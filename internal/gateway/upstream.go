package gateway

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"syscall"
	"time"

	"mayfly.dev/mayfly/internal/modelapi"
)

// newTransport makes what all environments reach upstreams with.
func newTransport(o Options) *http.Transport {
	plain, encrypted := dialers(o.TLS)
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment, // the server's
		DialContext:         plain,
		DialTLSContext:      encrypted,
		TLSClientConfig:     o.TLS, // behind a proxy
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
		TLSHandshakeTimeout: 10 * time.Second,
		DisableCompression:  true, // encodings are between the agent and the upstream
		MaxIdleConns:        512,
		MaxIdleConnsPerHost: 256,
		IdleConnTimeout:     90 * time.Second,
	}
}

// errSilent ends a call whose upstream does not send anything.
var errSilent = errors.New("it was silent for too long")

// upstreamURL is where a request goes: the rest of its path below the
// provider's URL.
func upstreamURL(base *url.URL, rest, query string) (*url.URL, error) {
	escaped := strings.TrimSuffix(base.EscapedPath(), "/") + rest
	plain, err := url.PathUnescape(escaped)
	if err != nil {
		return nil, err
	}
	u := *base
	u.Path, u.RawPath, u.RawQuery = plain, escaped, query
	return &u, nil
}

// newRequest is the agent's request as the upstream gets it.
func newRequest(ctx context.Context, method string, u *url.URL, header http.Header, body []byte) *http.Request {
	r := (&http.Request{
		Method: method, URL: u, Host: u.Host, Header: header.Clone(),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Body: http.NoBody, ContentLength: int64(len(body)),
	}).WithContext(ctx)
	if len(body) > 0 {
		r.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(body)), nil }
		r.Body, _ = r.GetBody()
	}
	if _, ok := r.Header["User-Agent"]; !ok {
		r.Header["User-Agent"] = nil // or net/http would add its own
	}
	return r
}

// identify adds the provider's headers and credential to a request.
func (p Provider) identify(h http.Header, key string) {
	for name, value := range p.Header {
		h.Set(name, value)
	}
	switch {
	case key == "":
	case p.API == anthropicName:
		h.Set(anthropicKey, key)
	case p.API == geminiName:
		h.Set(geminiKey, key)
	default:
		h.Set(authorization, "Bearer "+key)
	}
}

// unreachable is the fault for an upstream that did not answer.
func unreachable(provider string, err error) *fault {
	status := http.StatusBadGateway
	if errors.Is(err, errSilent) || isTimeout(err) {
		status = http.StatusGatewayTimeout
	}
	f := faultf(status, "the upstream %s did not answer: %s", provider, symptom(err)).again()
	var u *url.Error
	if errors.As(err, &u) {
		err = u.Err
	}
	f.reason = noAnswer + err.Error()
	return f
}

// symptom says what is wrong with an upstream without saying where it is.
func symptom(err error) string {
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.Is(err, errSilent):
		return errSilent.Error()
	case errors.As(err, &dns):
		return "its name cannot be resolved"
	case errors.As(err, &certificate):
		return "its certificate is not trusted"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused"
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return "it closed the connection"
	case isTimeout(err):
		return "timeout"
	}
	return "the exchange failed"
}

func isTimeout(err error) bool {
	var n net.Error
	return errors.As(err, &n) && n.Timeout()
}

// maxErrorAnswer bounds what is read of an encoded error to look for the key,
// in bytes.
const maxErrorAnswer = 1 << 20

// withoutSecrets makes sure that an upstream's answer does not repeat what it
// was shown, as those to wrong keys may. Encoded answers other than successes
// are read for it; everything else is masked as it passes.
func withoutSecrets(resp *http.Response, secrets []string) (masks, error) {
	var all masks
	for _, secret := range secrets {
		all = append(all, &mask{key: []byte(secret)})
	}
	for _, values := range resp.Header {
		for i, v := range values {
			values[i] = without(v, secrets)
		}
	}
	encoding := resp.Header.Get("Content-Encoding")
	if encoding == "" || resp.StatusCode < 300 || secrets == nil {
		return all, nil
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxErrorAnswer+1))
	if err != nil {
		return nil, err
	}
	plain, err := modelapi.Decode(resp.Header, body)
	if len(body) > maxErrorAnswer || err != nil || without(string(plain), secrets) != string(plain) {
		return nil, fmt.Errorf("its answer, with status %d, cannot be shown", resp.StatusCode)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{bytes.NewReader(body), resp.Body}
	return all, nil
}

// without overwrites secrets in a text.
func without(text string, secrets []string) string {
	for _, secret := range secrets {
		text = strings.ReplaceAll(text, secret, strings.Repeat("*", len(secret)))
	}
	return text
}

// masks hide several secrets.
type masks []*mask

func (all masks) hide(p []byte) {
	for _, m := range all {
		m.hide(p)
	}
}

// mask hides a key in a stream, byte by byte, so that nothing is held back and
// no length changes.
type mask struct {
	key  []byte
	tail int // bytes of the key at the end of what passed
}

// leastKey is what a key must have to be a secret and not a word, in bytes.
const leastKey = 12

// hide overwrites the key in p. Of a key that lies in several chunks, the
// part that is enough to recognise it is overwritten as well.
func (m *mask) hide(p []byte) {
	if len(p) == 0 {
		return
	}
	if m.tail > 0 {
		n := common(p, m.key[m.tail:])
		switch m.tail + n {
		case len(m.key):
			fill(p[:n])
			m.tail = 0
		default:
			if n == len(p) {
				m.tail += n
				m.cover(p)
				return
			}
		}
	}
	for rest := p; ; {
		i := bytes.Index(rest, m.key)
		if i < 0 {
			break
		}
		fill(rest[i : i+len(m.key)])
		rest = rest[i+len(m.key):]
	}
	m.tail = 0
	for k := min(len(p), len(m.key)-1); k > 0; k-- {
		if bytes.HasSuffix(p, m.key[:k]) {
			m.tail = k
			m.cover(p[len(p)-k:])
			return
		}
	}
}

// cover overwrites p, a part of the key, when it says too much of it.
func (m *mask) cover(p []byte) {
	if m.tail >= max(leastKey, len(m.key)/2) {
		fill(p)
	}
}

func fill(p []byte) {
	for i := range p {
		p[i] = '*'
	}
}

// common is the length of the longest common prefix.
func common(a, b []byte) int {
	n := 0
	for n < len(a) && n < len(b) && a[n] == b[n] {
		n++
	}
	return n
}
