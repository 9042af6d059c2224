package gateway

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// fault is an answer that the gateway itself gives, in words for agents.
type fault struct {
	status  int
	message string
	reason  string // for the recording; "" when the message says it all
	retry   bool   // asking again may help
}

func faultf(status int, format string, args ...any) *fault {
	return &fault{status: status, message: "mayfly: " + fmt.Sprintf(format, args...)}
}

func (f *fault) Error() string { return f.message }

// again marks the fault as one that may pass.
func (f *fault) again() *fault {
	f.retry = true
	return f
}

// names of a status in the errors of each API, as their documents list them.
var names = map[int]struct{ anthropic, openai, gemini string }{
	http.StatusBadRequest:            {"invalid_request_error", "invalid_request", "INVALID_ARGUMENT"},
	http.StatusUnauthorized:          {"authentication_error", "invalid_api_key", "UNAUTHENTICATED"},
	http.StatusForbidden:             {"permission_error", "permission_denied", "PERMISSION_DENIED"},
	http.StatusNotFound:              {"not_found_error", "not_found", "NOT_FOUND"},
	http.StatusRequestTimeout:        {"invalid_request_error", "request_timeout", "DEADLINE_EXCEEDED"},
	http.StatusRequestEntityTooLarge: {"request_too_large", "request_too_large", "INVALID_ARGUMENT"},
	http.StatusTooManyRequests:       {"rate_limit_error", "rate_limit_exceeded", "RESOURCE_EXHAUSTED"},
	http.StatusServiceUnavailable:    {"api_error", "service_unavailable", "UNAVAILABLE"},
	http.StatusGatewayTimeout:        {"timeout_error", "timeout", "DEADLINE_EXCEEDED"},
}

// body is the fault in the shape that the clients of an API understand.
func (f *fault) body(api string) []byte {
	name, ok := names[f.status]
	switch {
	case !ok && f.status < 500:
		name = names[http.StatusBadRequest]
	case !ok:
		name.anthropic, name.openai, name.gemini = "api_error", "upstream_error", "INTERNAL"
	}
	var v any
	switch api {
	case anthropicName:
		v = map[string]any{"type": "error", "error": map[string]any{"type": name.anthropic, "message": f.message}}
	case geminiName:
		v = map[string]any{"error": map[string]any{"code": f.status, "message": f.message, "status": name.gemini}}
	default:
		kind := "server_error"
		if f.status < 500 {
			kind = "invalid_request_error"
		}
		v = map[string]any{"error": map[string]any{"message": f.message, "type": kind, "param": nil, "code": name.openai}}
	}
	b, err := json.Marshal(v)
	if err != nil { // strings, integers and nothing
		panic(err)
	}
	return append(b, '\n')
}

// header says what the client libraries of the APIs look at before they try
// again.
func (f *fault) header() http.Header {
	h := http.Header{}
	h.Set("Content-Type", "application/json")
	if f.retry {
		h.Set("Retry-After", "1")
	} else {
		h.Set("X-Should-Retry", "false")
	}
	return h
}

// write answers with the fault when nothing of an answer is out yet.
func (f *fault) write(w http.ResponseWriter, api string) {
	body := f.body(api)
	for name, values := range f.header() {
		w.Header()[name] = values
	}
	if f.status == http.StatusRequestEntityTooLarge || f.status == http.StatusRequestTimeout {
		w.Header().Set("Connection", "close")
	}
	w.WriteHeader(f.status)
	w.Write(body)
}

// How an exchange was cut off, as the recording says it.
const (
	cutByUpstream = "cut by the upstream: "
	cutByAgent    = "cut by the agent: "
	noAnswer      = "no answer: "
	refused       = "refused: "
	truncated     = "recorded in part: the answer has more than %d bytes"
)

// wasCut reports whether the answer of a recorded exchange ended early.
func wasCut(reason string) bool {
	return strings.HasPrefix(reason, cutByUpstream) || strings.HasPrefix(reason, cutByAgent)
}
