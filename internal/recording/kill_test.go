package recording

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// childDir names the directory in which a child of the test writes until it is
// killed.
const childDir = "RECORDING_TEST_DIR"

// childContent is what writer w writes as its nth content.
func childContent(round string, w, n int) mayfly.Content {
	text := fmt.Sprintf("round %s writer %d content %d: %s %s", round, w, n, exactValue, strings.Repeat(fmt.Sprint(n*7919), 200))
	return mayfly.Content{Header: map[string][]string{"X-Api-Key": {"k"}}, Body: stream(text)}
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		childMain(dir, os.Args[1])
	}
	os.Exit(m.Run())
}

func childMain(dir, round string) {
	s, err := Open(dir, Options{})
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	var wg sync.WaitGroup
	for w := range 4 {
		run := fmt.Sprintf("run-%s-%d", round, w)
		wg.Go(func() { writeForever(s, round, run, w) })
	}
	wg.Wait()
}

// writeForever says which contents are acknowledged, a line for each.
func writeForever(s *Store, round, run string, w int) {
	ctx := context.Background()
	err := s.Begin(ctx, run, Encrypted)
	for n := 0; err == nil; n++ {
		var digest string
		if digest, err = s.WriteContent(ctx, run, childContent(round, w, n)); err == nil {
			fmt.Printf("%d %d %s\n", w, n, digest)
		}
	}
	fmt.Println("error", err)
	os.Exit(1)
}

func TestEverythingAcknowledgedSurvivesKill(t *testing.T) {
	dir := t.TempDir()
	total := 0
	for round := range 6 {
		acknowledged := runChild(t, dir, fmt.Sprint(round), time.Duration(60+37*round)*time.Millisecond)
		s, err := Open(dir, Options{})
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range acknowledged {
			var w, n int
			var digest string
			if _, err := fmt.Sscan(line, &w, &n, &digest); err != nil {
				t.Fatalf("the child said %q", line)
			}
			got, err := s.Exact(t.Context(), fmt.Sprintf("run-%d-%d", round, w), digest)
			if err != nil {
				t.Fatalf("round %d: %v", round, err)
			}
			sameContent(t, line, got, childContent(fmt.Sprint(round), w, n))
		}
		total += len(acknowledged)
		s.Close()
	}
	if total < 20 {
		t.Errorf("contents acknowledged = %d", total)
	}
}

// runChild starts a child, kills it after a time, and returns what it said.
func runChild(t *testing.T, dir, round string, after time.Duration) (lines []string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], round)
	cmd.Env = append(os.Environ(), childDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	in := bufio.NewScanner(out)
	var timer *time.Timer
	for in.Scan() {
		if timer == nil { // from the first content on
			timer = time.AfterFunc(after, func() { cmd.Process.Signal(syscall.SIGKILL) })
		}
		lines = append(lines, in.Text())
	}
	cmd.Wait()
	return lines
}
