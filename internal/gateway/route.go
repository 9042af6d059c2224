package gateway

import (
	"net/http"
	"net/url"
	"slices"
	"strings"

	"mayfly.dev/mayfly"
)

// subject says what a path is about.
type subject int

const (
	modelSubject  subject = iota + 1 // goes to an upstream
	reportSubject                    // ends here: what agents say about themselves
)

// route is where a path leads.
type route struct {
	subject  subject
	provider string // of a model
	rest     string // of a model: escaped, below the provider's URL, "" or beginning with a slash
	report   string // kind of a report: "hook" or "otlp"
}

// prefixes are the paths of the built-in providers.
var prefixes = []struct{ prefix, provider string }{
	{"/anthropic", anthropicName},
	{"/openai/v1", openaiName},
	{"/gemini", geminiName},
}

// furtherPrefix is before the names of all other providers.
const furtherPrefix = "/u/"

// reports are the paths that end in the gateway, and the kind of each.
var reports = map[string]string{
	"/hooks/claude":    "hook",
	"/hooks/codex":     "hook",
	"/otlp/v1/traces":  "otlp",
	"/otlp/v1/logs":    "otlp",
	"/otlp/v1/metrics": "otlp",
}

// knownPaths lists, for people, what findRoute knows.
const knownPaths = "/anthropic/…, /openai/v1/…, /gemini/…, /u/NAME/…, " +
	"/hooks/claude, /hooks/codex, /otlp/v1/traces, /otlp/v1/logs and /otlp/v1/metrics"

// findRoute says where an escaped path leads. Paths with dot segments, however
// they are written, lead nowhere: an upstream could take them for another
// place than the gateway does.
func findRoute(escaped string) (route, bool) {
	plain, err := url.PathUnescape(escaped)
	if err != nil || !strings.HasPrefix(escaped, "/") || hasDotSegment(plain) {
		return route{}, false
	}
	if kind, ok := reports[escaped]; ok {
		return route{subject: reportSubject, report: kind}, true
	}
	for _, p := range prefixes {
		if rest, ok := below(escaped, p.prefix); ok {
			return route{subject: modelSubject, provider: p.provider, rest: rest}, true
		}
	}
	if further, ok := strings.CutPrefix(escaped, furtherPrefix); ok {
		name, rest, slash := strings.Cut(further, "/")
		if slash {
			rest = "/" + rest
		}
		return route{subject: modelSubject, provider: name, rest: rest}, mayfly.CheckName(name) == nil && !isBuiltIn(name)
	}
	return route{}, false
}

// below is what follows a prefix that ends with a segment.
func below(path, prefix string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(path, prefix)
	return rest, ok && (rest == "" || rest[0] == '/')
}

func hasDotSegment(path string) bool {
	segments := strings.FieldsFunc(path, func(c rune) bool { return c == '/' || c == '\\' })
	return slices.Contains(segments, ".") || slices.Contains(segments, "..")
}

// Headers that carry a credential. None of them leaves the environment.
const (
	anthropicKey  = "X-Api-Key"
	geminiKey     = "X-Goog-Api-Key"
	authorization = "Authorization"
	queryKey      = "key" // in a URL, for Gemini
)

// tokenPrefix begins every token of a run.
const tokenPrefix = "mf-"

// credential is the token that a request shows; "" when it has none. Agents
// that send several get the one read that looks like a token.
func credential(r *http.Request) string {
	shown := slices.Concat(r.Header.Values(anthropicKey), r.Header.Values(geminiKey))
	for _, v := range r.Header.Values(authorization) {
		scheme, token, _ := strings.Cut(v, " ")
		if strings.EqualFold(scheme, "Bearer") {
			shown = append(shown, token)
		}
	}
	for pair := range strings.SplitSeq(r.URL.RawQuery, "&") {
		if name, value, ok := queryPair(pair); ok && name == queryKey {
			shown = append(shown, value)
		}
	}
	first := ""
	for _, token := range shown {
		token = strings.TrimSpace(token)
		if strings.HasPrefix(token, tokenPrefix) {
			return token
		}
		if first == "" {
			first = token
		}
	}
	return first
}

// queryPair decodes one pair of a query; false when it is malformed.
func queryPair(pair string) (name, value string, ok bool) {
	name, value, _ = strings.Cut(pair, "=")
	name, err1 := url.QueryUnescape(name)
	value, err2 := url.QueryUnescape(value)
	return name, value, err1 == nil && err2 == nil
}

// cleanQuery is a raw query without credentials and without what nobody can
// read; everything else stays as it is written.
func cleanQuery(raw string) string {
	var kept []string
	for pair := range strings.SplitSeq(raw, "&") {
		if name, _, ok := queryPair(pair); ok && name != queryKey {
			kept = append(kept, pair)
		}
	}
	return strings.Join(kept, "&")
}

// hopHeaders are about one connection only: RFC 9110, section 7.6.1. The
// expectation has been met when the body is here.
var hopHeaders = []string{
	"Connection", "Proxy-Connection", "Keep-Alive", "Proxy-Authenticate", "Proxy-Authorization",
	"Te", "Trailer", "Transfer-Encoding", "Upgrade", "Expect",
}

// withoutHops copies a header without what is about one connection only.
func withoutHops(h http.Header) http.Header {
	out := h.Clone()
	for _, list := range h.Values("Connection") {
		for name := range strings.SplitSeq(list, ",") {
			out.Del(strings.TrimSpace(name))
		}
	}
	for _, name := range hopHeaders {
		out.Del(name)
	}
	return out
}

// cleanHeader is what a request's header becomes for the upstream and for the
// recording: without hops and credentials, and with only those encodings of
// the answer that can be read for the recording.
func cleanHeader(h http.Header) http.Header {
	out := withoutHops(h)
	for _, name := range []string{anthropicKey, geminiKey, authorization, "Content-Length"} {
		out.Del(name)
	}
	if accepted := out.Values("Accept-Encoding"); len(accepted) > 0 {
		out.Set("Accept-Encoding", readableEncodings(strings.Join(accepted, ",")))
	}
	return out
}

// readableEncodings keeps of an Accept-Encoding what can be decoded here.
func readableEncodings(accepted string) string {
	var kept []string
	for item := range strings.SplitSeq(accepted, ",") {
		name, _, _ := strings.Cut(item, ";")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "gzip", "deflate", "zstd", "identity":
			kept = append(kept, strings.TrimSpace(item))
		}
	}
	if kept == nil {
		return "identity"
	}
	return strings.Join(kept, ", ")
}
