package crash

import (
	"context"
	"io"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// TestKilledServerLeavesNothingOfAComparison kills the server, and lets the
// client go away, while the databases of two states are compared.
func TestKilledServerLeavesNothingOfAComparison(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: environments are made of namespaces, mounts and cgroups")
	}
	files, service := stateOf("start")
	in := installWith(t, files, service)
	env, err := in.client.CreateEnvironment(t.Context(), mayfly.CreateEnvironment{Template: in.lock.Template, Name: "shop", TTL: time.Hour})
	if err != nil {
		t.Fatalf("%v\n%s", err, in.logTail())
	}
	compare := func(ctx context.Context) (string, error) {
		body, err := in.client.DiffRows(ctx, mayfly.RowsRequest{Environment: env.ID})
		if err != nil {
			return "", err
		}
		defer body.Close()
		text, err := io.ReadAll(body)
		return string(text), err
	}
	began := time.Now()
	if got, err := compare(t.Context()); got != "no changes\n" || err != nil {
		t.Fatalf("got = %q, %v, want no changes\n%s", got, err, in.logTail())
	}
	took := time.Since(began)
	rounds := max(2, *points/2)
	for i := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { _, err := compare(ctx); done <- err }()
		time.Sleep(took * time.Duration(i+1) / time.Duration(rounds+1))
		if i%2 == 0 {
			in.kill()
		}
		cancel()
		<-done
		if i%2 == 0 {
			in.start()
		}
		in.awaitOnly(env.ID)
		if list, err := in.client.Snapshots(t.Context(), env.ID); len(list) > 0 || err != nil {
			t.Errorf("snapshots: got = %v, %v, want none", list, err)
		}
	}
	if _, err := in.client.DeleteEnvironment(t.Context(), env.ID); err != nil {
		t.Error(err)
	}
	in.stop()
	in.awaitNothing()
}

// awaitOnly waits until no volume is there but that of the environment and
// those of templates, and it holds no snapshot.
func (in *installation) awaitOnly(env string) {
	in.t.Helper()
	var left []string
	for range 500 {
		left = slices.DeleteFunc(in.volumes(), func(id string) bool { return id == env || strings.HasPrefix(id, "tpl-") })
		held, err := os.ReadDir(in.dir + "/pool/envs/" + env + "/snapshots")
		if err == nil && len(left) == 0 && len(held) == 0 {
			return
		}
		for _, s := range held {
			left = append(left, s.Name())
		}
		time.Sleep(20 * time.Millisecond)
	}
	in.t.Errorf("left: %v\n%s", left, in.logTail())
}
