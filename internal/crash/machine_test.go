package crash

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/client"
	"mayfly.dev/mayfly/internal/image/host"
	"mayfly.dev/mayfly/internal/manifest"
)

// binaries is where TestMain put mayfly and its guest.
var binaries string

// installation is a state directory whose server is started and killed.
type installation struct {
	t      *testing.T
	dir    string
	id     string // names the cgroups
	client *client.Client
	server *exec.Cmd
	died   chan struct{} // closed when server has been reaped
	lock   mayfly.Lock
}

func install(t *testing.T) *installation {
	return installWith(t, map[string]string{"file": "start\n"})
}

// installWith is install with these files and services in the template.
func installWith(t *testing.T, files map[string]string, services ...mayfly.LockedService) *installation {
	t.Helper()
	in := &installation{t: t, dir: filepath.Join(t.TempDir(), "state")}
	in.client = client.New(filepath.Join(in.dir, "mayfly.sock"))
	t.Cleanup(in.tearDown)
	in.start()
	var err error
	if in.lock, err = in.putTemplate(t.Context(), files, services); err != nil {
		t.Fatalf("prepare template: %v\n%s", err, in.logTail())
	}
	return in
}

// start starts the server and returns when it answers.
func (in *installation) start() {
	in.t.Helper()
	log, err := os.OpenFile(in.dir+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		in.t.Fatal(err)
	}
	defer log.Close()
	in.server = exec.Command(filepath.Join(binaries, "mayfly"), "--state", in.dir, "serve")
	in.server.Stderr = log
	if err := in.server.Start(); err != nil {
		in.t.Fatal(err)
	}
	died := make(chan struct{})
	in.died = died
	go func(server *exec.Cmd) { server.Wait(); close(died) }(in.server)
	for deadline := time.Now().Add(30 * time.Second); ; {
		info, err := in.client.Info(context.Background())
		if err == nil {
			in.id = info.Installation
			return
		}
		select {
		case <-died:
			in.t.Fatalf("the server ended at its start:\n%s", in.logTail())
		case <-time.After(2 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			in.t.Fatalf("the server does not answer: %v\n%s", err, in.logTail())
		}
	}
}

func (in *installation) logTail() string {
	text, _ := os.ReadFile(in.dir + ".log")
	return string(text[max(0, len(text)-4000):])
}

// kill ends the server as a power cut would, as far as a process can tell.
func (in *installation) kill() {
	in.server.Process.Kill()
	<-in.died
	in.client.Close()
}

// stop ends the server politely.
func (in *installation) stop() {
	in.t.Helper()
	in.server.Process.Signal(syscall.SIGTERM)
	select {
	case <-in.died:
	case <-time.After(30 * time.Second):
		in.t.Errorf("the server does not stop\n%s", in.logTail())
		in.kill()
	}
	in.client.Close()
}

// putTemplate prepares a template of the host's programs and some files.
func (in *installation) putTemplate(ctx context.Context, files map[string]string, services []mayfly.LockedService) (mayfly.Lock, error) {
	in.t.Helper()
	digest, err := host.Digest()
	if err != nil {
		in.t.Fatal(err)
	}
	var buf bytes.Buffer
	w, pins := tar.NewWriter(&buf), map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		pins[name] = digestOf(files[name])
		w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Uid: 1000, Gid: 1000, Size: int64(len(files[name])), Typeflag: tar.TypeReg})
		io.WriteString(w, files[name])
	}
	w.Close()
	lock, err := manifest.Resolve(manifest.Manifest{Name: "crash", Services: services},
		mayfly.LockedBase{Kind: "host", Digest: digest},
		mayfly.LockedWorkspace{Digest: digestOf(buf.String()), Files: len(files)}, pins, 1)
	if err != nil {
		in.t.Fatal(err)
	}
	_, err = in.client.PutTemplate(ctx, lock, &buf, io.Discard)
	return lock, err
}

func digestOf(text string) string {
	sum := sha256.Sum256([]byte(text))
	return "sha256:" + hex.EncodeToString(sum[:])
}

// tearDown removes what a failed test left.
func (in *installation) tearDown() {
	if in.server.ProcessState == nil {
		in.kill()
	}
	for _, dir := range in.cgroups() {
		os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		if procs, err := os.ReadFile(filepath.Join(dir, "cgroup.procs")); err == nil {
			for _, pid := range strings.Fields(string(procs)) {
				var n int
				fmt.Sscan(pid, &n)
				syscall.Kill(n, syscall.SIGKILL)
			}
		}
	}
	for range 100 {
		left := in.cgroups()
		for i := len(left) - 1; i >= 0; i-- {
			os.Remove(left[i])
		}
		if len(left) == 0 {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	syscall.Unmount(filepath.Join(in.dir, "pool"), syscall.MNT_DETACH)
}

// cgroups lists the groups of the installation, parents first.
func (in *installation) cgroups() (dirs []string) {
	if in.id == "" {
		return nil
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(path, "mayfly-"+in.id) {
			dirs = append(dirs, path)
		}
		return nil
	})
	return dirs
}

// leftovers names everything that the installation has left on the machine
// beside its state files; the server has stopped.
func (in *installation) leftovers() (left []string) {
	for _, dir := range in.cgroups() {
		left = append(left, "cgroup "+dir)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, in.dir) {
			left = append(left, "mount "+line)
		}
	}
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, loop := range loops {
		if file, err := os.ReadFile(loop); err == nil && strings.Contains(string(file), in.dir) {
			left = append(left, "loop device "+loop)
		}
	}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		status, _ := os.ReadFile(p + "/status")
		if bytes.Contains(status, []byte("\nState:\tZ")) {
			continue // has ended; whoever adopted it from the killed server has yet to notice
		}
		info, _ := os.ReadFile(p + "/mountinfo")
		cgroup, _ := os.ReadFile(p + "/cgroup")
		if strings.Contains(string(cgroup), "mayfly-"+in.id) || strings.Contains(string(info), in.dir) {
			name, _ := os.ReadFile(p + "/comm")
			left = append(left, fmt.Sprintf("process %s %s", filepath.Base(p), strings.TrimSpace(string(name))))
		}
	}
	return left
}

// awaitNothing wants leftovers to come to an end.
func (in *installation) awaitNothing() {
	in.t.Helper()
	left := in.leftovers()
	for range 50 { // a process that ends is there for a moment more
		if len(left) == 0 {
			return
		}
		time.Sleep(20 * time.Millisecond)
		left = in.leftovers()
	}
	in.t.Errorf("left on the machine:\n%s", strings.Join(left, "\n"))
}

// volumes lists the directories of environments while the pool is mounted.
func (in *installation) volumes() (left []string) {
	entries, err := os.ReadDir(filepath.Join(in.dir, "pool", "envs"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		in.t.Error(err)
	}
	for _, e := range entries {
		left = append(left, e.Name())
	}
	return left
}

// checkVolumes wants no volume but those of environments that the server knows,
// and those of templates, whole, and no half-written file beside them.
func (in *installation) checkVolumes() {
	in.t.Helper()
	environments, err := in.client.Environments(context.Background(), mayfly.EnvironmentFilter{})
	if err != nil {
		in.t.Fatal(err)
	}
	known := map[string]bool{}
	for _, env := range environments {
		known[env.ID] = true
	}
	for _, name := range in.volumes() {
		baseline := filepath.Join(in.dir, "pool", "envs", name, "snapshots", "baseline")
		if !known[name] && !(strings.HasPrefix(name, "tpl-") && exists(baseline)) {
			in.t.Errorf("volume left: %s", name)
		}
	}
	half, _ := filepath.Glob(filepath.Join(in.dir, "templates", ".*"))
	if len(half) > 0 {
		in.t.Errorf("half-written files left: %v", half)
	}
}

// checkLedger reads the journal from its files and checks that every event is
// there once and in order.
func (in *installation) checkLedger() (events int) {
	in.t.Helper()
	files, _ := filepath.Glob(filepath.Join(in.dir, "ledger", "*.jsonl"))
	seen := map[string]bool{}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			in.t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			var e mayfly.Event
			if err := json.Unmarshal([]byte(line), &e); err != nil {
				in.t.Fatalf("event %d: %v", events+1, err)
			}
			if events++; e.Seq != uint64(events) || seen[e.ID] {
				in.t.Errorf("event %d has number %d and id %s (seen: %v)", events, e.Seq, e.ID, seen[e.ID])
			}
			seen[e.ID] = true
		}
	}
	return events
}
