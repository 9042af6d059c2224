package scriptedmodel

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
)

// maxRequest bounds a request's body in bytes.
const maxRequest = 32 << 20

// Server answers the requests of agents by a script.
type Server struct {
	Script *Script
	// Requests, when set, gets an Exchange a line for each request.
	Requests io.Writer

	mu    sync.Mutex     // guards what follows, and Requests
	asked map[string]int // how often a step was asked for, by its name
	begun []string
}

// Begun names the steps that were asked for, those that are still being
// answered among them.
func (s *Server) Begun() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.begun)
}

// Exchange is one request and the answer in short, as JSON.
type Exchange struct {
	Method  string          `json:"method"`
	Path    string          `json:"path"`
	Key     string          `json:"key,omitempty"` // that the agent showed
	Request json.RawMessage `json:"request,omitempty"`
	Step    string          `json:"step,omitempty"` // "call 1", "NAME 2"; empty beside the script
	Text    string          `json:"text,omitempty"`
	Tools   []string        `json:"tools,omitempty"` // that the answer calls
	Status  int             `json:"status,omitempty"`
	Error   string          `json:"error,omitempty"`
}

// protocol turns one API's requests and answers from and into what all have
// in common.
type protocol interface {
	parse(body []byte) (turn, error)
	write(w *answer, q request, r reply) error
}

// request is what an answer repeats of its request.
type request struct {
	Model  string `json:"model"`
	Stream bool   `json:"stream"`
	id     string // follows from the body
}

// protocols by the end of the path, so that any base URL will do.
var protocols = map[string]protocol{
	"/messages":              anthropic{},
	"/responses":             responses{},
	"/chat/completions":      chat{},
	":generateContent":       gemini{},
	":streamGenerateContent": gemini{},
}

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e := Exchange{Method: r.Method, Path: r.URL.Path, Key: key(r), Status: http.StatusOK}
	defer func() { s.record(e) }()
	if r.Method != http.MethodPost {
		// Agents ask whether anybody is there, and for lists of models.
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"object":"list","data":[],"models":[]}`)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err == nil {
		if json.Valid(body) {
			e.Request = body
		}
		err = s.serve(w, r, body, &e)
	}
	if err != nil {
		e.Error, e.Status = err.Error(), http.StatusBadRequest
		refuse(w, e.Status, e.Error)
	}
}

// key is what the request shows to be let in.
func key(r *http.Request) string {
	for _, name := range []string{"X-Api-Key", "X-Goog-Api-Key"} {
		if v := r.Header.Get(name); v != "" {
			return v
		}
	}
	if v := r.URL.Query().Get("key"); v != "" {
		return v
	}
	return strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
}

// refuse answers with an error that every agent can read.
func refuse(w http.ResponseWriter, status int, message string) {
	kind := map[int]string{529: "overloaded_error", 429: "rate_limit_error", 400: "invalid_request_error"}[status]
	if kind == "" {
		kind = "api_error"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(object{"type": "error", "error": object{"type": kind, "code": status, "message": message}})
}

// serve answers a POST. An error means that nothing was answered.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, body []byte, e *Exchange) error {
	switch path := r.URL.Path; {
	case strings.HasSuffix(path, "/count_tokens"):
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"input_tokens":%d}`, len(body)/4+1)
		return nil
	case strings.HasSuffix(path, ":countTokens"):
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprintf(w, `{"totalTokens":%d}`, len(body)/4+1)
		return nil
	}
	for suffix, p := range protocols {
		if strings.HasSuffix(r.URL.Path, suffix) {
			return s.answer(w, r, p, body, e)
		}
	}
	e.Status = http.StatusNotFound
	http.NotFound(w, r)
	return nil
}

func (s *Server) answer(w http.ResponseWriter, r *http.Request, p protocol, body []byte, e *Exchange) error {
	q := request{id: fmt.Sprintf("%x", sha256.Sum256(body))[:24]}
	if err := json.Unmarshal(body, &q); err != nil {
		return err
	}
	if model, method := geminiCall(r.URL.Path); method != "" {
		q.Model, q.Stream = model, method == "streamGenerateContent"
	}
	t, err := p.parse(body)
	if err != nil {
		return err
	}
	reply, err := s.Script.next(t)
	if err != nil {
		return err
	}
	reply.count(len(body))
	e.Step, e.Text = reply.step, reply.text
	for _, c := range reply.calls {
		e.Tools = append(e.Tools, c.name)
	}
	trouble := s.trouble(reply)
	w.Header().Set("Request-Id", "req_"+q.id)
	if trouble.Status != 0 {
		e.Status = trouble.Status
		refuse(w, trouble.Status, "the script wants this error")
		return nil
	}
	a := &answer{w: w, trouble: trouble, done: r.Context().Done()}
	if err := p.write(a, q, reply); err != nil {
		e.Error = err.Error()
	}
	if a.cut() {
		s.record(*e)
		*e = Exchange{}
		panic(http.ErrAbortHandler) // what net/http breaks a connection for
	}
	return nil
}

// trouble is what is to go wrong with the answer this time.
func (s *Server) trouble(r reply) Trouble {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.begun = append(s.begun, r.step)
	if s.asked == nil {
		s.asked = map[string]int{}
	}
	s.asked[r.step]++
	if r.trouble.Times > 0 && s.asked[r.step] > r.trouble.Times {
		return Trouble{}
	}
	return r.trouble
}

func (s *Server) record(e Exchange) {
	if s.Requests == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b, err := json.Marshal(e); err == nil {
		s.Requests.Write(append(b, '\n'))
	}
}
