package scriptedmodel

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
)

// maxRequest bounds a request's body in bytes.
const maxRequest = 32 << 20

// Server answers the requests of agents by a script.
type Server struct {
	Script *Script
	// Requests, when set, gets a JSON object a line for each request: its
	// path, its body, and the answer in short.
	Requests io.Writer

	mu sync.Mutex // guards Requests
}

// exchange is one line of Server.Requests.
type exchange struct {
	Method  string          `json:"method"`
	Path    string          `json:"path"`
	Request json.RawMessage `json:"request,omitempty"`
	Text    string          `json:"text,omitempty"`
	Tool    string          `json:"tool,omitempty"`
	Error   string          `json:"error,omitempty"`
}

// protocol turns one API's requests and answers from and into what all have
// in common.
type protocol interface {
	parse(body []byte) (turn, error)
	write(w io.Writer, request request, r reply) error
}

// request is what an answer repeats of its request.
type request struct {
	Model  string `json:"model"`
	Stream bool   `json:"stream"`
}

// protocols by the end of the path, so that any base URL will do.
var protocols = map[string]protocol{
	"/messages":         anthropic{},
	"/responses":        responses{},
	"/chat/completions": chat{},
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e := exchange{Method: r.Method, Path: r.URL.Path}
	defer func() { s.record(e) }()
	if r.Method != http.MethodPost {
		// Agents ask whether anybody is there, and for lists of models.
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"object":"list","data":[],"models":[]}`)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if json.Valid(body) {
		e.Request = body
	}
	if strings.HasSuffix(r.URL.Path, "/count_tokens") {
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"input_tokens":%d}`, len(body)/4)
		return
	}
	for suffix, p := range protocols {
		if strings.HasSuffix(r.URL.Path, suffix) {
			if err := s.answer(w, p, body, &e); err != nil {
				e.Error = err.Error()
			}
			return
		}
	}
	http.NotFound(w, r)
}

func (s *Server) answer(w http.ResponseWriter, p protocol, body []byte, e *exchange) error {
	var head request
	if err := json.Unmarshal(body, &head); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return err
	}
	t, err := p.parse(body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return err
	}
	r, err := s.Script.next(t)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return err
	}
	e.Text = r.text
	if r.call != nil {
		e.Tool = r.call.name
	}
	if head.Stream {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("Cache-Control", "no-cache")
	} else {
		w.Header().Set("Content-Type", "application/json")
	}
	return p.write(w, head, r)
}

func (s *Server) record(e exchange) {
	if s.Requests == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, err := json.Marshal(e); err == nil {
		s.Requests.Write(append(b, '\n'))
	}
}

// events writes server-sent events and flushes each, as an API does.
type events struct {
	w   io.Writer
	err error
}

func (e *events) send(name string, data any) {
	if e.err != nil {
		return
	}
	var b []byte
	if b, e.err = json.Marshal(data); e.err != nil {
		return
	}
	if name != "" {
		_, e.err = fmt.Fprintf(e.w, "event: %s\n", name)
	}
	if e.err == nil {
		_, e.err = fmt.Fprintf(e.w, "data: %s\n\n", b)
	}
	if f, ok := e.w.(http.Flusher); ok {
		f.Flush()
	}
}

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
	return append(parts, text)
}

// object is a JSON object.
type object map[string]any

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
