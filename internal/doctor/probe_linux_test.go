package doctor

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root to try what only root can")
	}
}

func find(t *testing.T, name string) Finding {
	t.Helper()
	for _, p := range probes {
		if p.name == name {
			return p.run(t.Context(), t.TempDir())
		}
	}
	t.Fatalf("no probe %q", name)
	return Finding{}
}

func TestRequiredProbesAgreeWithAMachineThatRunsEnvironments(t *testing.T) {
	needRoot(t)
	findings := Check(t.Context(), t.TempDir())
	if !Usable(findings) {
		var out strings.Builder
		WriteText(&out, findings)
		t.Errorf("this machine is not usable:\n%s", out.String())
	}
}

func TestProbesTakeLessThanATenthOfASecond(t *testing.T) {
	for _, p := range probes {
		// A program may have to be read from disk first, and the machine may
		// be busy: the best of several counts.
		best := time.Hour
		for range 5 {
			start := time.Now()
			p.run(t.Context(), t.TempDir())
			best = min(best, time.Since(start))
		}
		if best > 100*time.Millisecond {
			t.Errorf("%s: took %v, want at most 100ms", p.name, best)
		}
	}
}

func TestProbesLeaveNothingBehind(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	seen := func() string {
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			t.Fatal(err)
		}
		var mine []string
		for _, pattern := range []string{"/sys/fs/cgroup/mayfly-doctor*", "/sys/fs/cgroup/*/mayfly-doctor*", filepath.Join(dir, "*")} {
			found, _ := filepath.Glob(pattern)
			mine = append(mine, found...)
		}
		if strings.Contains(string(mounts), dir) {
			mine = append(mine, "a mount in "+dir)
		}
		return strings.Join(mine, "\n")
	}
	before := seen()
	Check(t.Context(), dir)
	if after := seen(); after != before {
		t.Errorf("got = %q, want %q as before", after, before)
	}
}

func TestOverlayProbeFailsWhereTheIDsAreNotMapped(t *testing.T) {
	needRoot(t)
	// A namespace that maps other ids than the thread takes: the kernel then
	// makes the overlay read-only, which the probe must notice.
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: base + 1<<20, Size: 1000}}
	c, err := startChild(t.Context(), &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	userns, err := os.Open(filepath.Join("/proc", strconv.Itoa(c.cmd.Process.Pid), "ns/user"))
	if err != nil {
		t.Fatal(err)
	}
	defer userns.Close()
	if err := tryOverlay(int(userns.Fd())); err == nil {
		t.Error("an overlay that cannot be written passed the probe")
	}
}

func TestProgramsAreFoundWithoutPath(t *testing.T) {
	t.Setenv("PATH", "")
	if got := find(t, "git"); got.Status != Missing || got.Fix == "" {
		t.Errorf("git: got = %+v, want missing with a fix", got)
	}
	if path, err := findProgram("ldconfig"); err != nil || !strings.HasSuffix(path, "sbin/ldconfig") {
		t.Errorf("findProgram = %q, %v; want one in an sbin directory", path, err)
	}
}

func TestBrokenRunscIsMissing(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "runsc"), []byte("#!/bin/sh\nexit 3\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	if got := find(t, "gvisor"); got.Status != Missing || got.Error == "" {
		t.Errorf("got = %+v, want missing with the error", got)
	}
}

func TestReflinkOnTmpfsIsDegraded(t *testing.T) {
	if got := reflink(t.Context(), "/dev/shm"); got.Status != Degraded {
		t.Errorf("got = %+v, want degraded", got)
	}
}

func TestChecksAsAnotherUserSayThatRootIsNeeded(t *testing.T) {
	needRoot(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// The user must be able to run the test program.
	program := filepath.Join("/tmp", "mayfly-doctor-test-"+strconv.Itoa(os.Getpid()))
	content, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, content, 0o755); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(program)
	cmd := exec.Command(program, "-test.run", "^TestPrintFindings$", "-test.v")
	cmd.Env = append(os.Environ(), "MAYFLY_DOCTOR_PRINT=1")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"missing   root", "only root's server", "sudo mayfly", "cannot run here"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("output lacks %q:\n%s", want, out)
		}
	}
}

// TestPrintFindings shows the table of whoever runs it.
func TestPrintFindings(t *testing.T) {
	var out strings.Builder
	if err := WriteText(&out, Check(t.Context(), "/nowhere/state")); err != nil {
		t.Fatal(err)
	}
	if os.Getenv("MAYFLY_DOCTOR_PRINT") != "" || testing.Verbose() {
		t.Logf("\n%s", out.String())
	}
}
