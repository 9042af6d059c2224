package installation

import (
	"crypto/rand"
	"encoding/json"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"mayfly.dev/mayfly/internal/scriptedmodel"
)

// Model is a scripted model on the host's loopback.
type Model struct {
	URL string

	server *scriptedmodel.Server
	mu     sync.Mutex // guards seen
	seen   []scriptedmodel.Exchange
}

func serve(t *testing.T, script *scriptedmodel.Script) *Model {
	t.Helper()
	m := &Model{server: &scriptedmodel.Server{Script: script}}
	m.server.Requests = m
	listener := httptest.NewServer(m.server)
	t.Cleanup(listener.Close)
	m.URL = listener.URL
	return m
}

// Write takes a line of the model's log.
func (m *Model) Write(line []byte) (int, error) {
	var e scriptedmodel.Exchange
	if err := json.Unmarshal(line, &e); err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seen = append(m.seen, e)
	return len(line), nil
}

// Taken returns what the model was asked since the last time.
func (m *Model) Taken() []scriptedmodel.Exchange {
	m.mu.Lock()
	defer m.mu.Unlock()
	seen := m.seen
	m.seen = nil
	return seen
}

// Begun lists the steps that the model was asked for since the beginning, those
// on whose answers it still works among them.
func (m *Model) Begun() []string { return m.server.Begun() }

// random is a word that nobody has written before, in the small letters and
// digits that names may have.
func random() string { return strings.ToLower(rand.Text()) }
