package main

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/rogpeppe/go-internal/testscript"

	"mayfly.dev/mayfly/internal/scriptedmodel"
)

// modelKey is the real key of the scripted model, which nobody inside and no
// file of the server's may have.
const modelKey = "sk-ant-api03-Vq7Zr2Lw9Xc4Bn8Mk1Jh6Gf3Ds5Ap0Qy"

// upstream is a scripted model on the host's loopback.
type upstream struct {
	model  http.Handler
	mu     sync.Mutex // guards the rest
	asked  int
	denied int // requests without the key
}

func (u *upstream) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	u.mu.Lock()
	u.asked++
	if r.Header.Get("X-Api-Key") != modelKey && r.Header.Get("Authorization") != "Bearer "+modelKey {
		u.denied++
	}
	u.mu.Unlock()
	u.model.ServeHTTP(w, r)
}

// upstreams are those of the scripts, by working directory.
var upstreams sync.Map

// startModel starts a scripted model and tells the server that is going to be
// started where it is: model SCRIPT
func startModel(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 1 {
		ts.Fatalf("usage: model SCRIPT")
	}
	script, err := scriptedmodel.ParseScript([]byte(ts.ReadFile(args[0])))
	ts.Check(err)
	u := &upstream{model: &scriptedmodel.Server{Script: script}}
	if old, ok := upstreams.Load(ts.Getenv("WORK")); ok { // another script for the same model
		old := old.(*upstream)
		old.mu.Lock()
		defer old.mu.Unlock()
		old.model = u.model
		return
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	server := httptest.NewUnstartedServer(u)
	server.Listener.Close()
	server.Listener = l
	server.Start()
	upstreams.Store(ts.Getenv("WORK"), u)
	ts.Defer(server.Close)
	state, key := ts.Getenv("MAYFLY_STATE"), filepath.Join(ts.Getenv("WORK"), "model.key")
	ts.Check(os.MkdirAll(state, 0o755))
	ts.Check(os.WriteFile(key, []byte(modelKey+"\n"), 0o600))
	providers := fmt.Sprintf("providers:\n  - name: anthropic\n    url: %s\n    key_file: %s\n", server.URL, key)
	ts.Check(os.WriteFile(filepath.Join(state, providersFile), []byte(providers), 0o600))
}

// checkAsked wants the scripted model to have been asked so many times since
// the last look, each time with its key: asked N
func checkAsked(ts *testscript.TestScript, neg bool, args []string) {
	v, ok := upstreams.Load(ts.Getenv("WORK"))
	if neg || len(args) != 1 || !ok {
		ts.Fatalf("usage: asked N, after model")
	}
	u := v.(*upstream)
	u.mu.Lock()
	defer u.mu.Unlock()
	if want, err := strconv.Atoi(args[0]); err != nil || u.asked != want || u.denied != 0 {
		ts.Fatalf("asked = %d times, %d without the key, want %s and 0", u.asked, u.denied, args[0])
	}
	u.asked = 0
}
