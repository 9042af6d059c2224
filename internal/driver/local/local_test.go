package local

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/cgroup"
	"mayfly.dev/mayfly/internal/driver"
	"mayfly.dev/mayfly/internal/driver/drivertest"
	"mayfly.dev/mayfly/internal/image/host"
	"mayfly.dev/mayfly/internal/manifest"
	"mayfly.dev/mayfly/internal/sandbox"
	"mayfly.dev/mayfly/internal/volume"
)

var guestProgram string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "mayfly-local-")
	if err == nil {
		guestProgram = filepath.Join(dir, "mayfly-guest")
		build := exec.Command("go", "build", "-o", guestProgram, "mayfly.dev/mayfly/cmd/mayfly-guest")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		build.Stderr = os.Stderr
		err = build.Run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	status := m.Run()
	os.RemoveAll(dir)
	os.Exit(status)
}

// open makes a driver on a pool of the given kind.
func open(t testing.TB, kind volume.Kind) *Driver {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: makes mounts, namespaces and cgroups")
	}
	dir := t.TempDir()
	pool, err := volume.Open(t.Context(), volume.Options{Dir: filepath.Join(dir, "pool"), Kind: kind})
	if err != nil {
		t.Fatal(err)
	}
	groups, err := cgroup.Open(cgroup.Options{Installation: "test-" + strings.ToLower(rand.Text())})
	if err != nil {
		t.Fatal(err)
	}
	native, err := sandbox.NewNative(sandbox.Options{Cgroups: groups, Guest: guestProgram})
	if err != nil {
		t.Fatal(err)
	}
	gvisor, closeGVisor := newGVisor(t, sandbox.Options{Cgroups: groups, Guest: guestProgram, Host: pool.Host})
	d := New(Options{
		Dir: filepath.Join(dir, "templates"), Pool: pool, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
		Runtimes: map[mayfly.Isolation]func() (sandbox.Runtime, error){
			mayfly.Native: func() (sandbox.Runtime, error) { return native, nil },
			mayfly.GVisor: gvisor,
		},
	})
	t.Cleanup(func() {
		if handles, err := d.List(context.Background()); err == nil {
			for _, h := range handles {
				t.Errorf("%s is left", h.Environment)
			}
		}
		if err := closeDriver(d); err != nil {
			t.Error(err)
		}
		native.Close()
		closeGVisor()
		if err := groups.Close(); err != nil {
			t.Error(err)
		}
	})
	return d
}

// lock makes a lock on this host.
func lock(t testing.TB, setup ...string) mayfly.Lock {
	t.Helper()
	digest, err := host.Digest()
	if err != nil {
		t.Fatal(err)
	}
	l, err := manifest.Resolve(
		manifest.Manifest{Name: "test", Setup: setup, Seed: 7, Env: map[string]string{"GREETING": "hello"}},
		mayfly.LockedBase{Kind: "host", Digest: digest},
		mayfly.LockedWorkspace{Digest: "sha256:" + strings.Repeat("c", 64), Files: 1}, nil, 1_700_000_000)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func workspace(files map[string]string) io.Reader {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for name, content := range files {
		w.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))})
		io.WriteString(w, content)
	}
	w.Close()
	return &buf
}

func put(t testing.TB, d *Driver, l mayfly.Lock) {
	t.Helper()
	var log bytes.Buffer
	if err := d.PutTemplate(t.Context(), l, workspace(map[string]string{"README": "read me\n"}), &log); err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
}

// hear is a command that ends with 0 if it reads the word at the port.
func hear(port int, word string) []string {
	return []string{"bash", "-c", `exec 3<>/dev/tcp/127.0.0.1/$1 && read -t 10 -r line <&3 && [ "$line" = "$2" ]`, "bash", strconv.Itoa(port), word}
}

func fixture(t *testing.T, kind volume.Kind, isolation mayfly.Isolation) drivertest.Fixture {
	d := open(t, kind)
	put(t, d, lock(t))
	return drivertest.Fixture{
		Driver: d, Isolation: isolation, Template: lock(t).Template,
		Write: func(name, content string) []string {
			return []string{"sh", "-c", `printf %s "$2" > "$1"`, "sh", name, content}
		},
		Hear:  hear,
		Sleep: []string{"sleep", "1000"}, Fail: []string{"false"},
	}
}

func TestDriver(t *testing.T) {
	for _, kind := range []volume.Kind{volume.Btrfs, volume.Plain} {
		t.Run(string(kind), func(t *testing.T) {
			drivertest.Run(t, func(t *testing.T) drivertest.Fixture { return fixture(t, kind, mayfly.Native) })
		})
	}
}

// output runs a command in a new environment and returns what it wrote.
func output(t *testing.T, d *Driver, l mayfly.Lock, command ...string) string {
	t.Helper()
	h := driver.Handle{Environment: "env-output", Isolation: mayfly.Native, UIDBase: 0x3000_0000}
	s := driver.Spec{Template: l.Template, Limits: mayfly.DefaultLimits}
	if err := d.Create(t.Context(), h, s); err != nil {
		t.Fatal(err)
	}
	defer d.Destroy(t.Context(), h)
	if err := d.Start(t.Context(), h, s); err != nil {
		t.Fatal(err)
	}
	if err := d.StartProcess(t.Context(), h, s, driver.Process{Run: "run-1", Command: command}); err != nil {
		t.Fatal(err)
	}
	a, err := d.Attach(t.Context(), h, "run-1", true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	var text strings.Builder
	for {
		o, err := a.Recv()
		if err == io.EOF {
			return text.String()
		}
		if err != nil {
			t.Fatal(err)
		}
		text.Write(o.Data)
	}
}

func TestProcessesSeeTheLocksVariablesAndTheWorkspace(t *testing.T) {
	d := open(t, "")
	put(t, d, lock(t))
	got := output(t, d, lock(t), "sh", "-c", `echo $GREETING $MAYFLY_SEED $SOURCE_DATE_EPOCH $TZ $HOME $(id -un) $(hostname) $PWD; cat README`)
	want := "hello 7 1700000000 UTC /home/agent agent mayfly /workspace\nread me\n"
	if got != want {
		t.Errorf("got = %q, want %q", got, want)
	}
}

func TestInodeNumbersInsideAreUnique(t *testing.T) {
	d := open(t, "")
	l := lock(t, "mkdir -p made && for i in $(seq 50); do mkdir made/$i; echo $i > made/$i/f; done")
	put(t, d, l)
	script := `mkdir new && for i in $(seq 200); do mkdir new/$i; echo $i > new/$i/f; done
		find / -xdev -printf '%D:%i %n %y\n' | awk '$2 == 1 || $3 == "d"' | cut -d' ' -f1 | sort | uniq -d | wc -l
		cp -r made $HOME/ && cp -r new $HOME/ && echo copied`
	if got, want := output(t, d, l, "sh", "-c", script), "0\ncopied\n"; got != want {
		t.Errorf("got = %q, want no number twice: %q", got, want)
	}
}

func TestSetUpIsPartOfTheTemplate(t *testing.T) {
	d := open(t, "")
	l := lock(t, "echo built > made; rm README", "test -e made && echo second >> made")
	put(t, d, l)
	if got, want := output(t, d, l, "sh", "-c", "ls; cat made"), "made\nbuilt\nsecond\n"; got != want {
		t.Errorf("got = %q, want %q", got, want)
	}
}

// Set-up commands of two templates at once share nothing, not even a user of the
// machine.
func TestSetUpsAtOnceAreApart(t *testing.T) {
	d := open(t, "")
	const ids = "echo ids $(cat /proc/self/uid_map)"
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	said, writer := io.Pipe()
	done := make(chan error, 1)
	go func() {
		done <- d.PutTemplate(ctx, lock(t, ids+"; exec sleep 86398"), workspace(nil), writer)
		writer.Close()
	}()
	firstIDs := ""
	for lines := bufio.NewScanner(said); !strings.HasPrefix(firstIDs, "ids 0 "); firstIDs = lines.Text() {
		if !lines.Scan() {
			t.Fatalf("the first ended: %v", <-done)
		}
	}
	go io.Copy(io.Discard, said)
	var second bytes.Buffer
	if err := d.PutTemplate(t.Context(), lock(t, ids+"; if pgrep -f 8639[8]; then exit 1; fi"), workspace(nil), &second); err != nil {
		t.Errorf("%v: %s", err, second.String())
	}
	if !strings.Contains(second.String(), "\nids 0 ") || strings.Contains(second.String(), firstIDs) {
		t.Errorf("got = %q, want other ids than %q", second.String(), firstIDs)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got = %v, want that it was cancelled", err)
	}
}

func TestSetUpThatFailsLeavesNothing(t *testing.T) {
	d := open(t, "")
	l := lock(t, "true", "echo the reason >&2; exit 3")
	var log bytes.Buffer
	err := d.PutTemplate(t.Context(), l, workspace(nil), &log)
	if mayfly.KindOf(err) != mayfly.Invalid || !strings.Contains(log.String(), "the reason") {
		t.Errorf("got = %v, log %q, want kind %s and the reason in the log", err, log.String(), mayfly.Invalid)
	}
	if there, err := d.HasTemplate(t.Context(), l.Template); there || err != nil {
		t.Errorf("got = %v, %v, want no template", there, err)
	}
}

func TestRecoverRemovesViewsThatACrashLeft(t *testing.T) {
	d := open(t, "")
	put(t, d, lock(t))
	h := driver.Handle{Environment: "env-views", Isolation: mayfly.Native, UIDBase: 0x3000_0000}
	if err := d.Create(t.Context(), h, driver.Spec{Template: lock(t).Template}); err != nil {
		t.Fatal(err)
	}
	defer d.Destroy(t.Context(), h)
	for _, name := range []string{"kept", viewPrefix + "-left"} {
		if err := d.pool.Snapshot(t.Context(), h.Environment, name); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	got, err := d.pool.SnapshotsOf(t.Context(), h.Environment)
	if err != nil || len(got) != 1 || got[0] != "kept" {
		t.Errorf("got = %v, %v, want the kept one", got, err)
	}
}

func TestLockThatIsNotItsOwnIsRefused(t *testing.T) {
	d := open(t, "")
	other := lock(t)
	other.Base.Digest = "sha256:" + strings.Repeat("0", 64)
	for name, l := range map[string]mayfly.Lock{
		"another seed": func() mayfly.Lock { l := lock(t); l.Seed++; return l }(),
		"another host": other,
	} {
		if err := d.PutTemplate(t.Context(), l, workspace(nil), io.Discard); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestDiffShowsWhatAnEnvironmentChanged(t *testing.T) {
	d := open(t, "")
	l := lock(t)
	put(t, d, l)
	h := driver.Handle{Environment: "env-diff", Isolation: mayfly.Native, UIDBase: 0x3000_0000}
	s := driver.Spec{Template: l.Template, Limits: mayfly.DefaultLimits}
	for _, err := range []error{
		d.Create(t.Context(), h, s), d.Start(t.Context(), h, s),
		d.StartProcess(t.Context(), h, s, driver.Process{Run: "run-1", Command: []string{"sh", "-c", "echo more >> README; echo new > new; echo x > /tmp/x"}}),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	defer d.Destroy(t.Context(), h)
	if exit, err := d.WaitProcess(t.Context(), h, "run-1"); err != nil || exit.Code != 0 {
		t.Fatal(exit, err)
	}
	r, err := d.Diff(t.Context(), h, s, mayfly.DiffRequest{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	patch, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"--- a/README\n+++ b/README\n", "+more\n", "+++ b/new\n", "+new\n"} {
		if !strings.Contains(string(patch), want) {
			t.Errorf("the patch lacks %q:\n%s", want, patch)
		}
	}
	if strings.Contains(string(patch), "tmp/x") {
		t.Errorf("the patch has more than the workspace:\n%s", patch)
	}
}

// closeDriver is patient: the tests of other packages make mount namespaces,
// which have a copy of every mount for as long as they live.
func closeDriver(d *Driver) error {
	for end := time.Now().Add(time.Minute); ; {
		err := d.Close()
		if mayfly.KindOf(err) != mayfly.Conflict || time.Now().After(end) {
			return err
		}
	}
}
