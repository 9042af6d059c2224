package api

import (
	_ "embed"
	"net/http"

	"mayfly.dev/mayfly"
)

// route is one operation. What it says of itself is what openapi.yaml says of
// it; a test holds the two together.
type route struct {
	method, pattern string
	op              string   // operationId
	query           []string // parameters; others are refused
	request         any      // zero value of the JSON body's type
	accepts         string   // content type of a streamed body
	status          int      // of success
	response        any      // zero value of the JSON answer's type
	sends           string   // content type of a streamed answer
	kinds           []mayfly.Kind
	handle          func(*Server, http.ResponseWriter, *http.Request) error
}

// everyKind can come from any operation, in addition to its own kinds.
var everyKind = []mayfly.Kind{mayfly.Invalid, mayfly.Forbidden, mayfly.Timeout, mayfly.Unavailable, mayfly.Internal}

// Bodies of requests and answers that are not themselves types of the root
// package.
type (
	// ExtendRequest moves an environment's end of life.
	ExtendRequest struct {
		TTL int64 `json:"ttl"` // nanoseconds from now
	}
	// SnapshotRequest asks for a snapshot.
	SnapshotRequest struct {
		Label string `json:"label,omitempty"`
	}
	// RollbackRequest names the snapshot to go back to.
	RollbackRequest struct {
		Snapshot string      `json:"snapshot,omitempty"` // empty: the baseline of the last run
		Only     mayfly.Side `json:"only,omitempty"`     // one side; empty for all
	}
	// HashResponse is the digest of a tree.
	HashResponse struct {
		Digest string `json:"digest"`
	}
	// HealthResponse says that the server answers.
	HealthResponse struct {
		Status string `json:"status"` // "ok"
	}
	// TemplateRecord is one line of the answer to an uploaded template: output
	// of its setup, or the outcome.
	TemplateRecord struct {
		Output   []byte           `json:"output,omitempty"` // base64 in JSON
		Template *mayfly.Template `json:"template,omitempty"`
		Error    *mayfly.Error    `json:"error,omitempty"`
	}
)

const (
	octets      = "application/octet-stream"
	plainText   = "text/plain; charset=utf-8"
	tarStream   = "application/x-tar"
	ndjson      = "application/x-ndjson"
	eventStream = "text/event-stream"
	formData    = "multipart/form-data"
	openapiYAML = "application/yaml"
)

var routes = []route{
	{method: "GET", pattern: "/v1/health", op: "getHealth", status: 200, response: HealthResponse{}, handle: (*Server).getHealth},
	{method: "GET", pattern: "/v1/info", op: "getInfo", status: 200, response: mayfly.Info{}, handle: (*Server).getInfo},
	{method: "GET", pattern: "/v1/openapi.yaml", op: "getOpenAPI", status: 200, sends: openapiYAML, handle: (*Server).getOpenAPI},

	{method: "POST", pattern: "/v1/environments", op: "createEnvironment", request: mayfly.CreateEnvironment{}, status: 201, response: mayfly.Environment{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict, mayfly.Exhausted, mayfly.Unsupported, mayfly.Missing}, handle: (*Server).createEnvironment},
	{method: "GET", pattern: "/v1/environments", op: "listEnvironments", query: []string{"label", "deleted"}, status: 200, response: []mayfly.Environment{}, handle: (*Server).listEnvironments},
	{method: "GET", pattern: "/v1/environments/{ref}", op: "getEnvironment", status: 200, response: mayfly.Environment{},
		kinds: []mayfly.Kind{mayfly.NotFound}, handle: environmentHandler(mayfly.Environments.Environment)},
	{method: "DELETE", pattern: "/v1/environments/{ref}", op: "deleteEnvironment", status: 200, response: mayfly.Environment{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict}, handle: environmentHandler(mayfly.Environments.DeleteEnvironment)},
	{method: "POST", pattern: "/v1/environments/{ref}/pause", op: "pauseEnvironment", status: 200, response: mayfly.Environment{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict, mayfly.Unsupported}, handle: environmentHandler(mayfly.Environments.PauseEnvironment)},
	{method: "POST", pattern: "/v1/environments/{ref}/resume", op: "resumeEnvironment", status: 200, response: mayfly.Environment{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict, mayfly.Unsupported}, handle: environmentHandler(mayfly.Environments.ResumeEnvironment)},
	{method: "POST", pattern: "/v1/environments/{ref}/extend", op: "extendEnvironment", request: ExtendRequest{}, status: 200, response: mayfly.Environment{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict}, handle: (*Server).extendEnvironment},

	{method: "GET", pattern: "/v1/environments/{ref}/services/{service}/attach", op: "attachService", query: []string{"follow"}, status: 101,
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Unsupported}, handle: (*Server).attachService},

	{method: "POST", pattern: "/v1/environments/{ref}/snapshots", op: "createSnapshot", request: SnapshotRequest{}, status: 201, response: mayfly.Snapshot{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict, mayfly.Exhausted}, handle: (*Server).createSnapshot},
	{method: "GET", pattern: "/v1/environments/{ref}/snapshots", op: "listSnapshots", status: 200, response: []mayfly.Snapshot{},
		kinds: []mayfly.Kind{mayfly.NotFound}, handle: (*Server).listSnapshots},
	{method: "DELETE", pattern: "/v1/environments/{ref}/snapshots/{snapshot}", op: "deleteSnapshot", status: 200, response: mayfly.Snapshot{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict}, handle: (*Server).deleteSnapshot},
	{method: "POST", pattern: "/v1/environments/{ref}/rollback", op: "rollback", request: RollbackRequest{}, status: 200, response: mayfly.Snapshot{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict, mayfly.Exhausted}, handle: (*Server).rollback},
	{method: "GET", pattern: "/v1/environments/{ref}/diff", op: "diff", query: []string{"from", "to", "path", "format"}, status: 200, sends: octets,
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict}, handle: (*Server).diff},
	{method: "GET", pattern: "/v1/environments/{ref}/rows", op: "diffRows", query: []string{"from", "to", "format"}, status: 200, sends: octets,
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict, mayfly.Exhausted, mayfly.Unsupported}, handle: (*Server).diffRows},
	{method: "GET", pattern: "/v1/environments/{ref}/hash", op: "hash", query: []string{"snapshot", "path"}, status: 200, response: HashResponse{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict}, handle: (*Server).hash},

	{method: "POST", pattern: "/v1/runs", op: "startRun", request: mayfly.StartRun{}, status: 201, response: mayfly.Run{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict, mayfly.Exhausted, mayfly.Unsupported, mayfly.Missing}, handle: (*Server).startRun},
	{method: "GET", pattern: "/v1/runs", op: "listRuns", query: []string{"environment"}, status: 200, response: []mayfly.Run{},
		kinds: []mayfly.Kind{mayfly.NotFound}, handle: (*Server).listRuns},
	{method: "GET", pattern: "/v1/runs/{id}", op: "getRun", status: 200, response: mayfly.Run{},
		kinds: []mayfly.Kind{mayfly.NotFound}, handle: runHandler(mayfly.Service.Run)},
	{method: "GET", pattern: "/v1/runs/{id}/wait", op: "waitRun", status: 200, response: mayfly.Run{},
		kinds: []mayfly.Kind{mayfly.NotFound}, handle: runHandler(mayfly.Service.WaitRun)},
	{method: "POST", pattern: "/v1/runs/{id}/kill", op: "killRun", status: 200, response: mayfly.Run{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict}, handle: runHandler(mayfly.Service.KillRun)},
	{method: "GET", pattern: "/v1/runs/{id}/attach", op: "attachRun", query: []string{"follow"}, status: 101,
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict}, handle: (*Server).attachRun},
	{method: "GET", pattern: "/v1/runs/{id}/logs", op: "getLogs", query: []string{"follow", "stream"}, status: 200, sends: octets,
		kinds: []mayfly.Kind{mayfly.NotFound}, handle: (*Server).getLogs},

	{method: "GET", pattern: "/v1/runs/{id}/graph", op: "getGraph", status: 200, response: mayfly.Graph{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict, mayfly.Unsupported}, handle: (*Server).getGraph},
	{method: "GET", pattern: "/v1/runs/{id}/exchanges", op: "listExchanges", status: 200, response: []mayfly.Exchange{},
		kinds: []mayfly.Kind{mayfly.NotFound}, handle: (*Server).listExchanges},
	{method: "POST", pattern: "/v1/runs/{id}/forget", op: "forgetExact", status: 200, response: mayfly.Run{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict, mayfly.Unsupported}, handle: runHandler(mayfly.Service.ForgetExact)},
	{method: "GET", pattern: "/v1/contents/{digest}", op: "getContent", status: 200, response: mayfly.Content{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Unsupported}, handle: (*Server).getContent},

	{method: "POST", pattern: "/v1/models", op: "addModel", request: mayfly.AddModel{}, status: 201, response: mayfly.Model{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Conflict}, handle: (*Server).addModel},
	{method: "GET", pattern: "/v1/models", op: "listModels", status: 200, response: []mayfly.Model{}, handle: (*Server).listModels},
	{method: "GET", pattern: "/v1/models/{model}", op: "getModel", status: 200, response: mayfly.Model{},
		kinds: []mayfly.Kind{mayfly.NotFound}, handle: (*Server).getModel},

	{method: "GET", pattern: "/v1/templates", op: "listTemplates", status: 200, response: []mayfly.Template{}, handle: (*Server).listTemplates},
	{method: "GET", pattern: "/v1/templates/{digest}", op: "getTemplate", status: 200, response: mayfly.Template{},
		kinds: []mayfly.Kind{mayfly.NotFound, mayfly.Missing}, handle: (*Server).getTemplate},
	{method: "PUT", pattern: "/v1/templates/{digest}", op: "putTemplate", accepts: formData, status: 200, sends: ndjson,
		kinds: []mayfly.Kind{mayfly.Exhausted, mayfly.Unsupported, mayfly.Missing, mayfly.Conflict, mayfly.Drift}, handle: (*Server).putTemplate},
	{method: "PUT", pattern: "/v1/images/{digest}", op: "putImage", accepts: tarStream, status: 204,
		kinds: []mayfly.Kind{mayfly.Exhausted, mayfly.Unsupported, mayfly.Conflict}, handle: (*Server).putImage},

	{method: "GET", pattern: "/v1/events", op: "listEvents", query: []string{"after", "environment", "run", "follow"}, status: 200, response: []mayfly.Event{}, sends: eventStream,
		kinds: []mayfly.Kind{mayfly.NotFound}, handle: (*Server).listEvents},
}

//go:embed openapi.yaml
var openapi []byte

func (s *Server) getOpenAPI(w http.ResponseWriter, _ *http.Request) error {
	w.Header().Set("Content-Type", openapiYAML)
	_, err := w.Write(openapi)
	return err
}

func (s *Server) getHealth(w http.ResponseWriter, _ *http.Request) error {
	if s.stopping.Err() != nil {
		return errStopping
	}
	return writeJSON(w, http.StatusOK, HealthResponse{Status: "ok"})
}

func (s *Server) getInfo(w http.ResponseWriter, r *http.Request) error {
	return answer(w, http.StatusOK)(s.svc.Info(r.Context()))
}
