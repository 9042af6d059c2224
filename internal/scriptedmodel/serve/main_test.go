package main

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// free is an address on the loopback that nobody uses.
func free(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestServePassesTheExitStatusOn(t *testing.T) {
	script := filepath.Join(t.TempDir(), "script.json")
	if err := os.WriteFile(script, []byte(`{"steps":[{"say":"Done."}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	for command, want := range map[string]int{"exit 0": 0, "exit 7": 7} {
		got, err := run(script, free(t), filepath.Join(t.TempDir(), "log"), []string{"sh", "-c", command})
		if err != nil || got != want {
			t.Errorf("%s: got = %d, %v; want %d", command, got, err, want)
		}
	}
	if got, err := run(script, free(t), "", []string{"/no/such/program"}); got != 127 || err == nil {
		t.Errorf("a missing program: got = %d, %v; want 127 and an error", got, err)
	}
	if got, err := run(script, free(t), "", nil); got != 64 || err == nil {
		t.Errorf("no command: got = %d, %v; want 64 and an error", got, err)
	}
}

func TestServeAnswersItsCommand(t *testing.T) {
	dir := t.TempDir()
	script := filepath.Join(dir, "script.json")
	if err := os.WriteFile(script, []byte(`{"steps":[{"say":"Done."}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	address := free(t)
	log := filepath.Join(dir, "log")
	// bash can talk to a port by itself.
	talk := `exec 3<>/dev/tcp/` + strings.Replace(address, ":", "/", 1) + `; printf 'GET /v1/models HTTP/1.0\r\n\r\n' >&3; grep -q '"object":"list"' <&3`
	if got, err := run(script, address, log, []string{"bash", "-c", talk}); got != 0 || err != nil {
		t.Errorf("got = %d, %v; want an answer", got, err)
	}
	if b, _ := os.ReadFile(log); !strings.Contains(string(b), "/v1/models") {
		t.Errorf("log: got = %q", b)
	}
}
