package scriptedmodel

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// answer writes an answer, with its trouble: a whole one, or server-sent
// events, each flushed, as an API does.
type answer struct {
	w       http.ResponseWriter
	trouble Trouble
	done    <-chan struct{} // closed when nobody reads any more
	sent    int             // events
	err     error
}

// object is a JSON object.
type object map[string]any

// errCut ends an answer that is to be broken off.
var errCut = errors.New("cut off")

// json writes a whole answer. Nothing of one that is to be cut is written.
func (a *answer) json(data any) error {
	a.w.Header().Set("Content-Type", "application/json")
	if a.wait(a.trouble.Pause + a.trouble.Silence); a.trouble.Cut > 0 {
		a.err = errCut
	}
	if a.err == nil {
		a.err = json.NewEncoder(a.w).Encode(data)
	}
	return a.err
}

// send writes an event; name may be empty.
func (a *answer) send(name string, data any) {
	b, err := json.Marshal(data)
	if a.err == nil {
		a.err = err
	}
	event := fmt.Sprintf("data: %s\n\n", b)
	if name != "" {
		event = fmt.Sprintf("event: %s\n%s", name, event)
	}
	a.wait(a.trouble.Pause)
	a.raw(event)
	if a.sent++; a.sent == 1 {
		a.silence(name != "")
	}
	if a.err == nil && a.trouble.Cut > 0 && a.sent >= a.trouble.Cut {
		a.err = errCut
	}
}

// end writes what closes a stream.
func (a *answer) end(text string) { a.raw(text) }

func (a *answer) raw(text string) {
	if a.err != nil {
		return
	}
	a.w.Header().Set("Content-Type", "text/event-stream")
	a.w.Header().Set("Cache-Control", "no-cache")
	if _, a.err = io.WriteString(a.w, text); a.err == nil {
		a.err = http.NewResponseController(a.w).Flush()
	}
}

// silence sends nothing but pings for a while: events where those have names,
// else comments.
func (a *answer) silence(named bool) {
	ping := ": ping\n\n"
	if named {
		ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n"
	}
	left := a.trouble.Silence
	for ; a.trouble.Ping > 0 && left > a.trouble.Ping; left -= a.trouble.Ping {
		a.wait(a.trouble.Ping)
		a.raw(ping)
	}
	a.wait(left)
}

// wait waits some milliseconds, or until nobody reads any more.
func (a *answer) wait(millis int) {
	if a.err != nil || millis <= 0 {
		return
	}
	select {
	case <-time.After(time.Duration(millis) * time.Millisecond):
	case <-a.done:
		a.err = errors.New("the agent went away")
	}
}

// cut reports whether the connection is to be broken.
func (a *answer) cut() bool { return errors.Is(a.err, errCut) }

// pieces cuts text in parts, as a model's tokens come.
func pieces(text string) []string {
	const size = 12 // bytes
	var parts []string
	for len(text) > size {
		cut := size
		for cut < len(text) && text[cut]&0xc0 == 0x80 {
			cut++
		}
		parts, text = append(parts, text[:cut]), text[cut:]
	}
	if text == "" {
		return parts
	}
	return append(parts, text)
}

// contentText is the text of a content field, which is a string or a list of
// parts.
func contentText(raw json.RawMessage) string {
	var text string
	if json.Unmarshal(raw, &text) == nil {
		return text
	}
	var parts []struct {
		Text string `json:"text"`
	}
	if json.Unmarshal(raw, &parts) != nil {
		return string(raw)
	}
	var b strings.Builder
	for _, p := range parts {
		b.WriteString(p.Text)
	}
	return b.String()
}
