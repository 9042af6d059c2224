package mayfly

import (
	"context"
	"io"
	"time"
)

// Exchange is one request of an agent to a model and its answer, as they
// passed the gateway. The bytes are in the recording, named by digest.
type Exchange struct {
	ID          string      `json:"id"`
	Environment string      `json:"environment"`
	Run         string      `json:"run"`
	Number      int         `json:"number"`            // 1, 2, … within the run, in order of arrival
	Step        int         `json:"step,omitempty"`    // step that it belongs to; 0 for side calls
	Provider    string      `json:"provider"`          // name of the upstream: "anthropic", "openai", "gemini", …
	API         string      `json:"api"`               // "anthropic.messages", "openai.responses", …
	Method      string      `json:"method"`            // of HTTP
	Path        string      `json:"path"`              // as the upstream gets it
	Session     string      `json:"session,omitempty"` // of the agent, as found on the wire
	Agent       string      `json:"agent,omitempty"`   // "" for the main one, else what names the subagent
	Model       string      `json:"model,omitempty"`   // as requested
	Parameters  Parameters  `json:"parameters,omitzero"`
	System      string      `json:"system,omitempty"` // digest of the system prompt
	Tools       string      `json:"tools,omitempty"`  // digest of the tool set
	Stream      bool        `json:"stream,omitempty"`
	Status      int         `json:"status,omitempty"`  // of HTTP, as the agent saw it; 0 when there was no answer
	Error       string      `json:"error,omitempty"`   // how the exchange was cut off
	Request     string      `json:"request,omitempty"` // digest of the recorded request
	Answer      string      `json:"answer,omitempty"`  // digest of the recorded answer
	Key         string      `json:"key,omitempty"`     // hash of the normalised request
	RequestSize int64       `json:"request_size"`      // bytes of the body
	AnswerSize  int64       `json:"answer_size"`       // bytes of the body
	Usage       TokenUsage  `json:"usage,omitzero"`
	Replayed    bool        `json:"replayed,omitempty"`   // answered from a recording
	Divergence  *Divergence `json:"divergence,omitempty"` // from the recording
	Start       time.Time   `json:"start"`
	FirstByte   time.Time   `json:"first_byte,omitzero"` // of the answer's body
	End         time.Time   `json:"end,omitzero"`
}

// TokenUsage is what a model says that an exchange used, in tokens.
type TokenUsage struct {
	Input      int64 `json:"input,omitempty"` // cached ones included
	Output     int64 `json:"output,omitempty"`
	CacheRead  int64 `json:"cache_read,omitempty"`
	CacheWrite int64 `json:"cache_write,omitempty"`
	Reasoning  int64 `json:"reasoning,omitempty"` // of the output
}

// Divergence is a difference between a replay and its recording.
type Divergence struct {
	Number   int    `json:"number"`         // of the exchange in the replay
	Step     int    `json:"step,omitempty"` // of the replay
	Kind     string `json:"kind"`           // "request", "extra", "missing", "result", "exit", "tree"
	Path     string `json:"path,omitempty"` // where in the request, as a JSON pointer, or the file
	Recorded string `json:"recorded"`       // what the recording has there, shortened
	Replayed string `json:"replayed"`       // what came instead, shortened
}

// OnDivergence says what a replay does at a difference.
type OnDivergence string

const (
	StopOnDivergence     OnDivergence = "stop"     // refuse the request and end the run
	ContinueOnDivergence OnDivergence = "continue" // serve the recorded answer all the same
	LiveOnDivergence     OnDivergence = "live"     // ask the real model from there on
)

// Replay makes a run's model answers come from the recording of another.
type Replay struct {
	Run          string       `json:"run"`                 // whose recording
	FromStep     int          `json:"from_step,omitempty"` // leave out what came up to this step
	OnDivergence OnDivergence `json:"on_divergence,omitempty"`
	Realtime     bool         `json:"realtime,omitempty"` // keep the recorded timing
}

// Chunk is one piece of an answer as it came from the upstream.
type Chunk struct {
	Size  int           `json:"size"`  // bytes
	After time.Duration `json:"after"` // nanoseconds since the exchange began
}

// Content is the recorded request or answer of an exchange.
type Content struct {
	Header   map[string][]string `json:"header"`
	Body     []byte              `json:"body"`
	Chunks   []Chunk             `json:"chunks,omitempty"`   // of an answer
	Redacted bool                `json:"redacted,omitempty"` // something was taken out and cannot be brought back
}

// Recordings reads what passed the gateway.
type Recordings interface {
	// Graph returns the decision graph of a run.
	Graph(ctx context.Context, run string) (Graph, error)
	// Exchanges lists the exchanges of a run, in order of arrival.
	Exchanges(ctx context.Context, run string) ([]Exchange, error)
	// Content streams the Content object of a digest as JSON; redacted where
	// the rules say.
	Content(ctx context.Context, digest string) (io.ReadCloser, error)
	// ForgetExact makes what redaction took out of a run's recording unreadable
	// for ever. What is redacted stays, and can still be replayed.
	ForgetExact(ctx context.Context, run string) (Run, error)
}
