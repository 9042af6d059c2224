package client_test

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/client"
	"mayfly.dev/mayfly/internal/api"
	"mayfly.dev/mayfly/internal/api/apitest"
	"mayfly.dev/mayfly/internal/unixsock"
)

// server runs an API server over a service in memory until the test ends.
type server struct {
	*apitest.Service
	socket string
	stop   func()
	log    *lockedBuffer
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func serve(t *testing.T) *server {
	t.Helper()
	s := &server{Service: apitest.New(), socket: filepath.Join(t.TempDir(), "mayfly.sock"), log: &lockedBuffer{}}
	s.listen(t)
	return s
}

func (s *server) listen(t *testing.T) {
	t.Helper()
	l, err := unixsock.Listen(s.socket, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	h := api.New(s.Service, api.Options{Log: slog.New(slog.NewTextHandler(s.log, nil)), Grace: 2 * time.Second, KeepAlive: 10 * time.Millisecond})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- h.Serve(ctx, l) }()
	s.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Serve = %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Serve still runs 10 s after it was told to stop")
		}
	})
	t.Cleanup(s.stop)
}

func (s *server) client(t *testing.T) *client.Client {
	c := client.New(s.socket)
	t.Cleanup(func() { c.Close() })
	return c
}

func started(t *testing.T, s *server, q mayfly.StartRun) (*client.Client, mayfly.Run) {
	t.Helper()
	c := s.client(t)
	if q.Environment == "" {
		q.Create = &mayfly.CreateEnvironment{Template: s.AddTemplate("t", apitest.Files{"a.txt": "one\n"})}
	}
	r, err := c.StartRun(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return c, r
}

func output(t *testing.T, a mayfly.Attachment) map[mayfly.Stream]string {
	t.Helper()
	got := map[mayfly.Stream]string{}
	for {
		o, err := a.Recv()
		if err == io.EOF {
			return got
		}
		if err != nil {
			t.Fatal(err)
		}
		got[o.Stream] += string(o.Data)
	}
}

// Both implementations of the service must give the same answers.
func TestAnswersAreThoseOfTheServiceItself(t *testing.T) {
	s := serve(t)
	c, run := started(t, s, mayfly.StartRun{Command: []string{"write", "b.txt", "two"}})
	ctx := t.Context()
	if _, err := c.WaitRun(ctx, run.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := c.CreateSnapshot(ctx, run.Environment, "mine"); err != nil {
		t.Fatal(err)
	}
	other, err := c.CreateEnvironment(ctx, mayfly.CreateEnvironment{
		Name: "fork", From: &mayfly.SnapshotRef{Environment: run.Environment, Snapshot: "1"}, Labels: map[string]string{"pr": "7", "q": "a=b&c"},
	})
	if err != nil {
		t.Fatal(err)
	}
	content := record(s, run.ID)
	q := mayfly.AddModel{Name: "reviewer", Provider: "anthropic", ID: "sonnet"}
	for name, call := range map[string]func(mayfly.Service) (any, error){
		"graph":     func(s mayfly.Service) (any, error) { return s.Graph(ctx, run.ID) },
		"exchanges": func(s mayfly.Service) (any, error) { return s.Exchanges(ctx, run.ID) },
		"forget":    func(s mayfly.Service) (any, error) { return s.ForgetExact(ctx, run.ID) },
		"add model": func(s mayfly.Service) (any, error) { return s.AddModel(ctx, q) },
		"model": func(s mayfly.Service) (any, error) {
			if _, err := s.AddModel(ctx, q); err != nil {
				return nil, err
			}
			return s.Model(ctx, "reviewer@1")
		},
		"models": func(s mayfly.Service) (any, error) {
			if _, err := s.AddModel(ctx, q); err != nil {
				return nil, err
			}
			return s.Models(ctx)
		},
		"content": func(s mayfly.Service) (any, error) {
			r, err := s.Content(ctx, content)
			if err != nil {
				return nil, err
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			if err == nil && !strings.Contains(string(b), "chunks") {
				err = errors.New("no chunks in the content")
			}
			return string(b), err
		},
		"environment":  func(s mayfly.Service) (any, error) { return s.Environment(ctx, "fork") },
		"environments": func(s mayfly.Service) (any, error) { return s.Environments(ctx, mayfly.EnvironmentFilter{}) },
		"labels": func(s mayfly.Service) (any, error) {
			return s.Environments(ctx, mayfly.EnvironmentFilter{Labels: map[string]string{"q": "a=b&c"}})
		},
		"none": func(s mayfly.Service) (any, error) {
			l, err := s.Environments(ctx, mayfly.EnvironmentFilter{Labels: map[string]string{"pr": "8"}})
			return len(l), err
		},
		"run": func(s mayfly.Service) (any, error) { return s.Run(ctx, run.ID) },
		"runs": func(s mayfly.Service) (any, error) {
			return s.Runs(ctx, mayfly.RunFilter{Environment: run.Environment})
		},
		"wait":      func(s mayfly.Service) (any, error) { return s.WaitRun(ctx, run.ID) },
		"kill":      func(s mayfly.Service) (any, error) { return s.KillRun(ctx, run.ID) },
		"snapshots": func(s mayfly.Service) (any, error) { return s.Snapshots(ctx, run.Environment) },
		"hash":      func(s mayfly.Service) (any, error) { return s.Hash(ctx, other.ID, "", "/") },
		"diff": func(s mayfly.Service) (any, error) {
			r, err := s.Diff(ctx, mayfly.DiffRequest{Environment: run.ID, From: "1", To: "2", Format: "patch"})
			if err != nil {
				return nil, err
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			if err == nil && !strings.Contains(string(b), "+two") {
				err = errors.New("no change in the patch")
			}
			return string(b), err
		},
		"rows": func(s mayfly.Service) (any, error) {
			r, err := s.DiffRows(ctx, mayfly.RowsRequest{Environment: run.ID, From: "1", To: "2", Format: "reverse"})
			if err != nil {
				return nil, err
			}
			defer r.Close()
			b, err := io.ReadAll(r)
			return string(b), err
		},
		"templates": func(s mayfly.Service) (any, error) { return s.Templates(ctx) },
		"template":  func(s mayfly.Service) (any, error) { return s.Template(ctx, apitest.Digest("t")) },
		"info":      func(s mayfly.Service) (any, error) { return s.Info(ctx) },
		"events": func(s mayfly.Service) (any, error) {
			var list []mayfly.Event
			err := s.Events(ctx, mayfly.EventFilter{After: 2}, func(e mayfly.Event) error {
				list = append(list, e)
				return nil
			})
			return list, err
		},
	} {
		t.Run(name, func(t *testing.T) {
			want, err := call(s.Service)
			if err != nil {
				t.Fatal(err)
			}
			got, err := call(c)
			if err != nil {
				t.Fatal(err)
			}
			a, _ := json.Marshal(got)
			b, _ := json.Marshal(want)
			if string(a) != string(b) || len(a) == 0 {
				t.Errorf("over HTTP %s\nin process %s", a, b)
			}
		})
	}
	for name, call := range map[string]func() (mayfly.Environment, error){
		"paused": func() (mayfly.Environment, error) { return c.PauseEnvironment(ctx, "fork") },
		"ready":  func() (mayfly.Environment, error) { return c.ResumeEnvironment(ctx, "fork") },
	} {
		if e, err := call(); err != nil || string(e.Phase) != name {
			t.Errorf("phase = %v, %v, want %v", e.Phase, err, name)
		}
	}
	e, err := c.ExtendEnvironment(ctx, "fork", 5*time.Hour)
	if err != nil || time.Until(e.ExpiresAt) < 4*time.Hour {
		t.Errorf("ExtendEnvironment = %v, %v, want 5 h from now", e.ExpiresAt, err)
	}
	if _, err := c.Rollback(ctx, run.Environment, "", ""); err != nil {
		t.Error(err)
	}
	if e, err := c.DeleteEnvironment(ctx, "fork"); err != nil || e.Phase != mayfly.Deleted {
		t.Errorf("DeleteEnvironment = %v, %v", e.Phase, err)
	}
}

// record has the service know of what a run asked a model, and returns the
// digest of the answer.
func record(s *server, run string) (content string) {
	content = apitest.Digest("content")
	temperature := 0.5
	now := time.Date(2026, 11, 1, 12, 0, 0, 5, time.UTC)
	s.Record(run, mayfly.Graph{
		Agents:  []mayfly.AgentLane{{}},
		Steps:   []mayfly.Step{{Number: 1, Exchanges: []string{"x"}, Parameter: mayfly.Parameters{Temperature: &temperature}, Start: now}},
		Nodes:   []mayfly.Node{{ID: "n", Kind: mayfly.ActionNode, Step: 1, Tool: "Bash", Input: `{"command":"<a> & b"}`, Time: now}},
		Edges:   []mayfly.Edge{{From: "n", To: "m", Kind: "returns"}},
		Orphans: []string{"n"},
	}, []mayfly.Exchange{{
		ID: "x", Run: run, Number: 1, Step: 1, Answer: content, Start: now, Usage: mayfly.TokenUsage{Input: 3},
		Divergence: &mayfly.Divergence{Number: 1, Kind: "request", Path: "/a", Recorded: "\x00", Replayed: "ü"},
	}}, map[string]mayfly.Content{
		content: {Header: map[string][]string{"A": {"b", "c"}}, Body: []byte{0, 0xff, '<'}, Chunks: []mayfly.Chunk{{Size: 3, After: time.Second}}},
	})
	return content
}

func TestActorIsTheUserAtTheOtherEnd(t *testing.T) {
	s := serve(t)
	if _, err := s.client(t).Info(t.Context()); err != nil {
		t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	calls := s.Calls()
	if got := calls[len(calls)-1].Actor; got != me.Username {
		t.Errorf("actor = %q, want %q", got, me.Username)
	}
}

func TestErrorsKeepKindMessageAndHint(t *testing.T) {
	s := serve(t)
	c := s.client(t)
	for _, k := range mayfly.Kinds() {
		if k == mayfly.Internal {
			continue
		}
		want := mayfly.Errorf(k, "it is %q", k).Hint("try ü")
		s.FailWith("Info", want)
		_, err := c.Info(t.Context())
		var e *mayfly.Error
		if !errors.As(err, &e) || e.Kind != k || e.Message != want.Message || e.Fix != want.Fix {
			t.Errorf("error = %#v, want %#v", err, want)
		}
	}
}

func TestInternalErrorsSayNothingButTheIDInTheLog(t *testing.T) {
	s := serve(t)
	for _, cause := range []error{errors.New("secret detail"), mayfly.Errorf(mayfly.Internal, "secret detail")} {
		s.FailWith("Info", cause)
		_, err := s.client(t).Info(t.Context())
		var e *mayfly.Error
		if !errors.As(err, &e) || e.Kind != mayfly.Internal || e.ID == "" || strings.Contains(e.Message+e.Fix, "secret") {
			t.Fatalf("error = %#v, want an internal one without detail", err)
		}
		if log := s.log.String(); !strings.Contains(log, e.ID) || !strings.Contains(log, "secret detail") {
			t.Errorf("log = %s, want the id %s and the cause", log, e.ID)
		}
	}
}

func TestErrorInTheMiddleOfAStreamArrives(t *testing.T) {
	s := serve(t)
	c, run := started(t, s, mayfly.StartRun{Command: []string{"write", "a.txt", "changed"}})
	if _, err := c.WaitRun(t.Context(), run.ID); err != nil {
		t.Fatal(err)
	}
	s.FailWith("Diff.Read", mayfly.Errorf(mayfly.Exhausted, "no memory").Hint("buy some"))
	r, err := c.Diff(t.Context(), mayfly.DiffRequest{Environment: run.ID})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	b, err := io.ReadAll(r)
	if mayfly.KindOf(err) != mayfly.Exhausted || !strings.Contains(string(b), "+changed") {
		t.Errorf("read %q, %v, want the change and kind %v", b, err, mayfly.Exhausted)
	}
}

func TestAttachmentCarriesInputOutputAndSignals(t *testing.T) {
	s := serve(t)
	c, run := started(t, s, mayfly.StartRun{Command: []string{"cat"}, Stdin: true})
	a, err := c.AttachRun(t.Context(), run.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	big := strings.Repeat("0123456789", 100_000)
	go func() {
		io.WriteString(a, big)
		a.CloseWrite()
	}()
	if got := output(t, a)[mayfly.Stdout]; got != big {
		t.Errorf("got %d bytes, want %d", len(got), len(big))
	}

	c, run = started(t, s, mayfly.StartRun{Environment: run.Environment, Command: []string{"size"}})
	a, err = c.AttachRun(t.Context(), run.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Resize(33, 77); err != nil {
		t.Fatal(err)
	}
	if got := output(t, a)[mayfly.Stdout]; got != "33 77\n" {
		t.Errorf("size = %q, want 33 77", got)
	}

	c, run = started(t, s, mayfly.StartRun{Environment: run.Environment, Command: []string{"wait"}})
	a, err = c.AttachRun(t.Context(), run.ID, true)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if r, err := c.WaitRun(t.Context(), run.ID); err != nil || r.ExitCode != 130 {
		t.Errorf("exit code = %d, %v, want 130", r.ExitCode, err)
	}
}

func TestAttachmentWithoutFollowEndsAtWhatIsThere(t *testing.T) {
	s := serve(t)
	c, run := started(t, s, mayfly.StartRun{Command: []string{"wait"}})
	a, err := c.AttachRun(t.Context(), run.ID, false)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if got := output(t, a); len(got) != 0 {
		t.Errorf("output = %v, want none", got)
	}
	if r, err := c.Run(t.Context(), run.ID); err != nil || r.Phase != mayfly.RunRunning {
		t.Errorf("run is %v, %v after its attachment ended", r.Phase, err)
	}
	if _, err := c.AttachRun(t.Context(), "run-none", true); mayfly.KindOf(err) != mayfly.NotFound {
		t.Errorf("attach to no run = %v, want kind %v", err, mayfly.NotFound)
	}
}

func TestEndOfContextEndsEveryCall(t *testing.T) {
	s := serve(t)
	c, run := started(t, s, mayfly.StartRun{Command: []string{"wait"}})
	for name, call := range map[string]func(context.Context) error{
		"wait": func(ctx context.Context) error { _, err := c.WaitRun(ctx, run.ID); return err },
		"attach": func(ctx context.Context) error {
			a, err := c.AttachRun(ctx, run.ID, true)
			if err != nil {
				return err
			}
			defer a.Close()
			_, err = a.Recv()
			return err
		},
		"events": func(ctx context.Context) error {
			return c.Events(ctx, mayfly.EventFilter{Follow: true}, func(mayfly.Event) error { return nil })
		},
		"image": func(ctx context.Context) error {
			r, w := io.Pipe()
			defer w.Close()
			return c.PutImage(ctx, apitest.Digest("i"), r)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			start := time.Now()
			if err := call(ctx); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("error = %v, want %v", err, context.DeadlineExceeded)
			}
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestStoppingServerCutsStreamsWithAReason(t *testing.T) {
	s := serve(t)
	c, run := started(t, s, mayfly.StartRun{Command: []string{"wait"}})
	calls := map[string]func() error{
		"wait": func() error { _, err := c.WaitRun(context.Background(), run.ID); return err },
		"attach": func() error {
			a, err := c.AttachRun(context.Background(), run.ID, true)
			if err != nil {
				return err
			}
			defer a.Close()
			_, err = a.Recv()
			return err
		},
		"events": func() error {
			return c.Events(context.Background(), mayfly.EventFilter{Follow: true}, func(mayfly.Event) error { return nil })
		},
	}
	var wg sync.WaitGroup
	for name, call := range calls {
		wg.Go(func() {
			err := call()
			if mayfly.KindOf(err) != mayfly.Unavailable || !strings.Contains(err.Error(), "stopping") {
				t.Errorf("%s = %v, want that the server is stopping", name, err)
			}
		})
	}
	time.Sleep(100 * time.Millisecond)
	s.stop()
	wg.Wait()
}

func TestFollowedEventsResumeAfterTheLast(t *testing.T) {
	s := serve(t)
	c, run := started(t, s, mayfly.StartRun{Command: []string{"true"}})
	if _, err := c.WaitRun(t.Context(), run.ID); err != nil {
		t.Fatal(err)
	}
	stop := errors.New("enough")
	var last uint64
	follow := func(n int) (seqs []uint64) {
		err := c.Events(t.Context(), mayfly.EventFilter{After: last, Follow: true}, func(e mayfly.Event) error {
			seqs, last = append(seqs, e.Seq), e.Seq
			if len(seqs) == n {
				return stop
			}
			return nil
		})
		if err != stop {
			t.Fatalf("Events = %v, want %v", err, stop)
		}
		return seqs
	}
	got := append(follow(2), follow(2)...)
	if want := []uint64{1, 2, 3, 4}; !reflect.DeepEqual(got, want) {
		t.Errorf("events = %v, want %v", got, want)
	}
}

func tarOf(t *testing.T, files map[string]string) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, content := range files {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		io.WriteString(w, content)
	}
	w.Close()
	return &b
}

func lock(name string, setup ...string) mayfly.Lock {
	return mayfly.Lock{Version: 1, Name: name, Base: mayfly.LockedBase{Kind: "host"}, Setup: setup, Template: apitest.Digest(name)}
}

func TestTemplateUploadReturnsSetupOutputAndResult(t *testing.T) {
	s := serve(t)
	c := s.client(t)
	l := lock("up", "make", "go build")
	var log bytes.Buffer
	got, err := c.PutTemplate(t.Context(), l, tarOf(t, map[string]string{"main.go": strings.Repeat("x", 3<<20)}), &log)
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != l.Template || !reflect.DeepEqual(got.Lock, l) {
		t.Errorf("template = %+v, want %+v", got.Lock, l)
	}
	if want := "$ make\n$ go build\n"; log.String() != want {
		t.Errorf("log = %q, want %q", log.String(), want)
	}
	// Again: the server does not read the workspace, and that is no error.
	if _, err := c.PutTemplate(t.Context(), l, tarOf(t, map[string]string{"main.go": strings.Repeat("y", 9<<20)}), io.Discard); err != nil {
		t.Errorf("second upload: %v", err)
	}
	s.stop()
	if log := s.log.String(); strings.Contains(log, "panic") {
		t.Errorf("the server's log speaks of a defect:\n%s", log)
	}
}

func TestSetupEndsWhenTheClientLeaves(t *testing.T) {
	s := serve(t)
	ctx, cancel := context.WithCancel(t.Context())
	// The service does not read what follows the end of the archive.
	padded := io.MultiReader(tarOf(t, map[string]string{"a": "b"}), bytes.NewReader(make([]byte, 1<<20)))
	log := writerFunc(func(p []byte) (int, error) {
		cancel() // the first output: setup is at work
		return len(p), nil
	})
	if _, err := s.client(t).PutTemplate(ctx, lock("w", "wait"), padded, log); !errors.Is(err, context.Canceled) {
		t.Errorf("PutTemplate = %v, want %v", err, context.Canceled)
	}
	seen := errors.New("seen")
	ctx, cancel = context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	err := s.Service.Events(ctx, mayfly.EventFilter{Follow: true}, func(e mayfly.Event) error {
		if e.Type == "template.failed" {
			return seen
		}
		return nil
	})
	if err != seen {
		t.Errorf("setup goes on 5 s after the client left: %v", err)
	}
	s.stop()
	if log := s.log.String(); strings.Contains(log, "ERROR") || strings.Contains(log, "panic") {
		t.Errorf("the server's log speaks of a defect:\n%s", log)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func TestFailedSetupGivesOutputThenError(t *testing.T) {
	s := serve(t)
	var log bytes.Buffer
	_, err := s.client(t).PutTemplate(t.Context(), lock("f", "true", "false"), tarOf(t, nil), &log)
	if mayfly.KindOf(err) != mayfly.Invalid || !strings.Contains(err.Error(), "status 1") {
		t.Errorf("PutTemplate = %v, want the failed command", err)
	}
	if want := "$ true\n$ false\n"; log.String() != want {
		t.Errorf("log = %q, want %q", log.String(), want)
	}
}

// endless is more than any socket buffer holds.
type endless struct{ read atomic.Int64 }

func (e *endless) Read(p []byte) (int, error) {
	e.read.Add(int64(len(p)))
	return len(p), nil
}

func TestEarlyErrorEndsAnUpload(t *testing.T) {
	s := serve(t)
	c := s.client(t)
	l := lock("m")
	l.Base = mayfly.LockedBase{Kind: "image", Digest: apitest.Digest("absent")}
	if _, err := c.PutTemplate(t.Context(), l, &endless{}, io.Discard); mayfly.KindOf(err) != mayfly.Missing {
		t.Errorf("PutTemplate = %v, want kind %v", err, mayfly.Missing)
	}
	s.FailWith("PutImage", mayfly.Errorf(mayfly.Exhausted, "disk full"))
	if err := c.PutImage(t.Context(), apitest.Digest("i"), &endless{}); mayfly.KindOf(err) != mayfly.Exhausted {
		t.Errorf("PutImage = %v, want kind %v", err, mayfly.Exhausted)
	}
}

type broken struct {
	io.Reader
	err error
}

func (b *broken) Read(p []byte) (int, error) {
	n, err := b.Reader.Read(p)
	if err == io.EOF {
		err = b.err
	}
	return n, err
}

func TestBrokenSourceIsTheErrorAndMakesNothing(t *testing.T) {
	s := serve(t)
	c := s.client(t)
	changed := errors.New("a.txt changed while it was read")
	l := lock("b")
	half := tarOf(t, map[string]string{"a.txt": strings.Repeat("x", 1<<20)}).Bytes()
	_, err := c.PutTemplate(t.Context(), l, &broken{bytes.NewReader(half[:len(half)/2]), changed}, io.Discard)
	if !errors.Is(err, changed) {
		t.Errorf("PutTemplate = %v, want %v", err, changed)
	}
	if _, err := c.Template(t.Context(), l.Template); mayfly.KindOf(err) != mayfly.NotFound {
		t.Errorf("template after a broken upload: %v, want kind %v", err, mayfly.NotFound)
	}
}

func TestBadReferencesNeverReachTheServer(t *testing.T) {
	s := serve(t)
	c := s.client(t)
	for _, ref := range []string{"", ".", ".."} {
		if _, err := c.DeleteEnvironment(t.Context(), ref); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("DeleteEnvironment(%q) = %v, want kind %v", ref, err, mayfly.Invalid)
		}
	}
	if n := len(s.Calls()); n != 0 {
		t.Errorf("the service saw %d calls", n)
	}
	for _, ref := range []string{"a/b", "../x", "a?b=c", "%2e", "ü", "a b"} {
		if _, err := c.Environment(t.Context(), ref); mayfly.KindOf(err) != mayfly.NotFound {
			t.Errorf("Environment(%q) = %v, want kind %v", ref, err, mayfly.NotFound)
		}
	}
	if n := len(s.Calls()); n != 6 {
		t.Errorf("the service saw %d calls, want 6", n)
	}
}

func TestNoServerIsUnavailable(t *testing.T) {
	c := client.New(filepath.Join(t.TempDir(), "none.sock"))
	_, err := c.Info(t.Context())
	var e *mayfly.Error
	if !errors.As(err, &e) || e.Kind != mayfly.Unavailable || !strings.Contains(e.Fix, "mayfly serve") {
		t.Errorf("Info = %v, want kind %v and how to start one", err, mayfly.Unavailable)
	}
}

func TestStartIsCalledOnceForManyCalls(t *testing.T) {
	s := serve(t)
	s.stop()
	c := s.client(t)
	starts := 0
	c.Start = func(context.Context) error {
		starts++
		s.listen(t)
		return nil
	}
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := c.Info(t.Context()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if starts != 1 {
		t.Errorf("Start was called %d times, want 1", starts)
	}
	s.stop()
	os.Remove(s.socket)
	refused := mayfly.Errorf(mayfly.Forbidden, "needs root")
	c.Start = func(context.Context) error { return refused }
	c.Close()
	if _, err := c.Info(t.Context()); !errors.Is(err, refused) {
		t.Errorf("Info = %v, want %v", err, refused)
	}
	if _, err := c.AttachRun(t.Context(), "run-1", true); !errors.Is(err, refused) {
		t.Errorf("AttachRun = %v, want %v", err, refused)
	}
}

func TestForeignServerGivesAnError(t *testing.T) {
	for name, answer := range map[string]string{
		"not JSON":  "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
		"bad error": "HTTP/1.1 500 Oh\r\nContent-Length: 5\r\n\r\nhello",
		"cut":       "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
		"garbage":   "SSH-2.0-OpenSSH\r\n",
		"nothing":   "",
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			l, err := net.Listen("unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				for {
					conn, err := l.Accept()
					if err != nil {
						return
					}
					conn.Read(make([]byte, 4096))
					io.WriteString(conn, answer)
					conn.Close()
				}
			}()
			c := client.New(socket)
			var e *mayfly.Error
			if _, err := c.Info(t.Context()); !errors.As(err, &e) {
				t.Errorf("Info = %v, want an error with a kind", err)
			}
			if _, err := c.AttachRun(t.Context(), "r", true); !errors.As(err, &e) {
				t.Errorf("AttachRun = %v, want an error with a kind", err)
			}
			if err := c.PutImage(t.Context(), apitest.Digest("i"), strings.NewReader("x")); name != "not JSON" && !errors.As(err, &e) {
				t.Errorf("PutImage = %v, want an error with a kind", err)
			}
		})
	}
}
