//go:build linux

package postgres

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A program that copies from a server sees that server and the system's
// programs.
func TestCopyingProgramReachesItsServerAlone(t *testing.T) {
	installed(t)
	dir := filepath.Join("/var/tmp", filepath.Base(t.TempDir())+itoa(os.Getpid()))
	must(t, os.Mkdir(dir, 0o777))
	defer os.RemoveAll(dir)
	must(t, os.Chmod(dir, 0o777))
	must(t, os.WriteFile(filepath.Join(dir, "file"), []byte("x"), 0o644))
	host, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer host.Close()
	// 39 is PR_GET_NO_NEW_PRIVS.
	script := fmt.Sprintf(`cat %[1]s/file >/dev/null 2>&1 && echo file
		touch %[1]s/new 2>/dev/null && echo written
		ls /proc/1 /sys/kernel >/dev/null 2>&1 && echo kernel
		bash -c 'echo >/dev/tcp/127.0.0.1/%[2]d' 2>/dev/null && echo network
		perl -e 'exit(syscall(%[3]d, 39, 0, 0, 0, 0) != 0)' && echo privileges
		true`, dir, host.Addr().(*net.TCPAddr).Port, unix.SYS_PRCTL)
	in := func(c cage) string {
		t.Helper()
		c.uid, c.gid = testUID, testUID
		var out bytes.Buffer
		must(t, c.run(t.Context(), &exec.Cmd{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Env: environment(), Dir: "/", Stdout: &out, Stderr: &out}))
		return strings.Join(strings.Fields(out.String()), " ")
	}
	p := &preparation{Options: Options{Install: installed(t), Outside: testUID}}
	for host, want := range map[string]string{dir: "file", "127.0.0.1": "network"} {
		if got := in(p.reaching(Server{Host: host})); got != want {
			t.Errorf("reaching %s: got = %q, want %q", host, got, want)
		}
	}
	if got := in(cage{network: true, show: []bind{{Dir: Dir{Host: dir}}, {Dir: Dir{Host: "/proc"}, readOnly: true}, {Dir: Dir{Host: "/sys"}, readOnly: true}}}); got != "file written kernel network" {
		t.Errorf("an open cage: got = %q, want every door open", got)
	}
}
