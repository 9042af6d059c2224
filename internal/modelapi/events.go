package modelapi

import (
	"bytes"
	"net/http"
	"strings"
)

// eachEvent calls yield with the data of each server-sent event
// (https://html.spec.whatwg.org/multipage/server-sent-events.html), also with
// that of a last one without the empty line that ends it.
func eachEvent(body []byte, yield func(name string, data []byte)) {
	body = bytes.TrimPrefix(body, []byte("\xEF\xBB\xBF"))
	var name string
	var data []byte
	first, owned := true, false // owned: data is a copy
	dispatch := func() {
		if !first {
			yield(name, data)
		}
		name, data, first, owned = "", nil, true, false
	}
	for len(body) > 0 {
		var line []byte
		line, body = cutLine(body)
		if len(line) == 0 {
			dispatch()
			continue
		}
		key, v, _ := bytes.Cut(line, []byte(":"))
		v = bytes.TrimPrefix(v, []byte(" "))
		switch string(key) {
		case "event":
			name = string(v)
		case "data":
			switch {
			case first:
				data, first = v, false
			case !owned:
				data, owned = append([]byte(nil), data...), true
				fallthrough
			default:
				data = append(append(data, '\n'), v...)
			}
		}
	}
	dispatch()
}

// cutLine cuts at a line feed, a carriage return, or both.
func cutLine(b []byte) (line, rest []byte) {
	i := bytes.IndexAny(b, "\r\n")
	if i < 0 {
		return b, nil
	}
	end := i + 1
	if b[i] == '\r' && end < len(b) && b[end] == '\n' {
		end++
	}
	return b[:i], b[end:]
}

// isEvents reports whether an answer is a stream of events.
func isEvents(header http.Header, body []byte) bool {
	if strings.HasPrefix(header.Get("Content-Type"), "text/event-stream") {
		return true
	}
	start := bytes.TrimLeft(body, " \t\r\n\xEF\xBB\xBF")
	for _, s := range []string{"event:", "data:", ":", "id:", "retry:"} {
		if bytes.HasPrefix(start, []byte(s)) {
			return true
		}
	}
	return false
}
