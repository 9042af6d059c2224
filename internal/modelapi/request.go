package modelapi

import (
	"net/http"

	"mayfly.dev/mayfly"
)

// ParseRequest reads the body of a request. The body may be compressed as the
// header says. Bodies of Other are not read. Errors are of kind Invalid.
func ParseRequest(api string, header http.Header, body []byte) (Request, error) {
	if api == Other {
		return Request{}, nil
	}
	v, err := parseValue(body)
	if err != nil {
		return Request{}, err
	}
	if v.kind != object {
		return Request{}, mayfly.Errorf(mayfly.Invalid, "the body of a request is not a JSON object")
	}
	r := Request{Model: v.get("model").text(), Stream: v.get("stream").bool() || api == Stream}
	r.Session = header.Get("X-Claude-Code-Session-Id")
	r.Agent = header.Get("X-Claude-Code-Agent-Id")
	return r, nil
}

// ParseAnswer reads the body of an answer: JSON or events, whole or cut off.
func ParseAnswer(api string, header http.Header, body []byte) (Answer, error) {
	return Answer{}, mayfly.Errorf(mayfly.Unsupported, "answers of %s", api)
}
