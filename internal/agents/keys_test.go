//go:build agents

package agents

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/agents/installation"
	"mayfly.dev/mayfly/internal/scriptedmodel"
)

// TestTheKeyIsNowhereInside stops an agent in the middle of an answer, and
// looks for the real key in all that it could read, and in its memory.
func TestTheKeyIsNowhereInside(t *testing.T) {
	a := All[0]
	for _, isolation := range []mayfly.Isolation{mayfly.Native, mayfly.GVisor} {
		t.Run(string(isolation), func(t *testing.T) {
			s := newSecrets()
			in := installation.Start(t, programs, &scriptedmodel.Script{Steps: []scriptedmodel.Step{
				{Say: "I look around.", Action: scriptedmodel.Action{Run: "env; ls"}},
				{Say: "The end.", Trouble: scriptedmodel.Trouble{Silence: 120_000, Ping: 500}},
			}}, "DEPLOY_TOKEN="+s.server)
			dir := repository(t, a, secrets{server: "another", result: "none"})
			in.Mayfly(dir, append([]string{"run", "--detach", "--name", "agent", "--isolation", string(isolation), "--"}, a.Start("Look around.")...)...)
			waitForStep(t, in, "call 2")
			inside := inside(t, in)
			if !bytes.Contains(inside["what processes show"], []byte("ANTHROPIC_AUTH_TOKEN=mf-run-")) {
				t.Error("control: the run's token is not seen")
			}
			for where, text := range inside {
				for what, secret := range map[string]string{"the real key": in.Key, "a secret of the server's environment": s.server} {
					if bytes.Contains(text, []byte(secret)) {
						t.Errorf("%s is in %s", what, where)
					}
				}
			}
			scanned, withToken := scanMemory(t, in, "agent", []byte(in.Key), []byte(s.server), []byte("mf-run-"))
			if scanned == 0 || !withToken {
				t.Errorf("control: processes = %d, a token in their memory = %v", scanned, withToken)
			}
		})
	}
}

// waitForStep waits until the model was asked for the step.
func waitForStep(t *testing.T, in *installation.Installation, step string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		for _, e := range in.Model.Begun() {
			if e == step {
				return
			}
		}
	}
	t.Fatalf("the agent does not ask for %q", step)
}

// inside is what a process beside the agent can read.
func inside(t *testing.T, in *installation.Installation) map[string][]byte {
	t.Helper()
	read := func(script string) []byte {
		return []byte(in.Mayfly("/", "exec", "agent", "--", "sh", "-c", script+"; true"))
	}
	return map[string][]byte{
		"what processes show": read("cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline /proc/[0-9]*/mountinfo 2>/dev/null"),
		"the environment":     read("env"),
		"files": read("grep -rhsaoE -D skip 'sk-canary-[a-z0-9]*' /workspace /home /etc /run /tmp /var /root /dev/shm; " +
			"find / -xdev -newer /workspace/test.sh -type f -size -1000k -not -path '/proc/*' -not -path '/workspace/*' -exec cat {} + 2>/dev/null"),
	}
}

// scanMemory reads the memory of all processes of the environment from
// outside. It reports how many there were, and whether the last needle, which
// may be there, was.
func scanMemory(t *testing.T, in *installation.Installation, env string, needles ...[]byte) (scanned int, found bool) {
	t.Helper()
	var e mayfly.Environment
	in.JSON(&e, "env", "show", env, "--json")
	groups, _ := filepath.Glob("/proc/[0-9]*/cgroup")
	for _, group := range groups {
		text, err := os.ReadFile(group)
		if err != nil || !strings.Contains(string(text), e.ID) {
			continue
		}
		scanned++
		for i, there := range scanProcess(filepath.Dir(group), needles) {
			switch {
			case there && i == len(needles)-1:
				found = true
			case there:
				t.Errorf("%q is in the memory of %s", needles[i], filepath.Dir(group))
			}
		}
	}
	return scanned, found
}

// scanProcess looks for the needles in what a process can read of its memory.
func scanProcess(proc string, needles [][]byte) []bool {
	there := make([]bool, len(needles))
	maps, err := os.ReadFile(proc + "/maps")
	memory, openErr := os.Open(proc + "/mem")
	if err != nil || openErr != nil {
		return there // it has ended
	}
	defer memory.Close()
	const overlap = 128
	buffer := make([]byte, 4<<20)
	lines := bufio.NewScanner(bytes.NewReader(maps))
	for lines.Scan() {
		var from, to int64
		var mode string
		if n, _ := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); n < 3 || mode[0] != 'r' || strings.HasSuffix(lines.Text(), "[vvar]") {
			continue
		}
		for at := from; at < to; at += int64(len(buffer)) - overlap {
			n, _ := memory.ReadAt(buffer[:min(int64(len(buffer)), to-at)], at)
			for i, needle := range needles {
				there[i] = there[i] || bytes.Contains(buffer[:n], needle)
			}
		}
	}
	return there
}
