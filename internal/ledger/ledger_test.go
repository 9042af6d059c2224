package ledger

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

func open(t *testing.T, dir string) *Ledger {
	t.Helper()
	l, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func event(n int) mayfly.Event {
	return mayfly.Event{ID: fmt.Sprintf("evt-%d", n), Type: "test", Time: time.Unix(int64(n), 0).UTC()}
}

func ids(t *testing.T, l *Ledger, after uint64) string {
	t.Helper()
	var got []string
	err := l.Read(t.Context(), after, false, func(e mayfly.Event) error {
		got = append(got, fmt.Sprintf("%d:%s", e.Seq, e.ID))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(got, " ")
}

func TestAppendNumbersEventsAcrossSegmentsAndReopening(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	l.segmentBytes = 150
	for i := 1; i <= 4; i++ {
		if err := l.Append(t.Context(), event(i)); err != nil {
			t.Fatal(err)
		}
	}
	l.Close()
	l = open(t, dir)
	if err := l.Append(t.Context(), event(5)); err != nil {
		t.Fatal(err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl")); len(files) < 2 {
		t.Errorf("segments = %d, want several", len(files))
	}
	for after, want := range map[uint64]string{
		0: "1:evt-1 2:evt-2 3:evt-3 4:evt-4 5:evt-5",
		3: "4:evt-4 5:evt-5",
		5: "",
		9: "",
	} {
		if got := ids(t, l, after); got != want {
			t.Errorf("after %d: got = %q, want %q", after, got, want)
		}
	}
	var tail []string
	l.Tail(func(e mayfly.Event) bool { tail = append(tail, e.ID); return len(tail) < 4 })
	if got, want := strings.Join(tail, " "), "evt-5 evt-4 evt-3 evt-2"; got != want {
		t.Errorf("tail: got = %q, want %q", got, want)
	}
}

func TestOpenRemovesALineThatACrashCutShort(t *testing.T) {
	dir := t.TempDir()
	l := open(t, dir)
	if err := l.Append(t.Context(), event(1), event(2)); err != nil {
		t.Fatal(err)
	}
	name := l.file.Name()
	l.Close()
	whole, _ := os.ReadFile(name)
	firstLine := strings.IndexByte(string(whole), '\n') + 1
	for cut := firstLine; cut < len(whole); cut++ {
		if err := os.WriteFile(name, whole[:cut], 0o600); err != nil {
			t.Fatal(err)
		}
		l := open(t, dir)
		if err := l.Append(t.Context(), event(3)); err != nil {
			t.Fatal(err)
		}
		if got, want := ids(t, l, 0), "1:evt-1 2:evt-3"; got != want {
			t.Fatalf("cut at %d: got = %q, want %q", cut, got, want)
		}
		l.Close()
	}
}

func TestOpenRefusesDamageInTheMiddle(t *testing.T) {
	for name, damage := range map[string]string{
		"no JSON": "{{{\n",
		"a gap":   `{"seq":7,"id":"x"}` + "\n",
	} {
		dir := t.TempDir()
		l := open(t, dir)
		l.Append(t.Context(), event(1))
		l.Close()
		f, _ := os.OpenFile(l.segmentPath(1), os.O_APPEND|os.O_WRONLY, 0)
		f.WriteString(damage)
		f.Close()
		if _, err := Open(dir); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestFollowersSeeEveryEventOnce(t *testing.T) {
	l := open(t, t.TempDir())
	l.segmentBytes = 2000
	const writers, each = 4, 50
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := errors.New("done")
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			seen := uint64(0)
			err := l.Read(ctx, 0, true, func(e mayfly.Event) error {
				if seen++; e.Seq != seen {
					return fmt.Errorf("got event %d, want %d", e.Seq, seen)
				}
				if seen == writers*each {
					return done
				}
				return nil
			})
			if err != done {
				t.Error(err)
			}
		})
	}
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				if err := l.Append(ctx, event(w*each+i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}

func BenchmarkAppend(b *testing.B) {
	for _, batch := range []int{1, 100} {
		b.Run(fmt.Sprintf("batch=%d", batch), func(b *testing.B) {
			l, err := Open(b.TempDir())
			if err != nil {
				b.Fatal(err)
			}
			defer l.Close()
			events := make([]mayfly.Event, batch)
			for i := range events {
				events[i] = event(i)
			}
			for b.Loop() {
				if err := l.Append(b.Context(), events...); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*batch)/b.Elapsed().Seconds(), "events/s")
		})
	}
}

func FuzzScan(f *testing.F) {
	f.Add([]byte(`{"seq":1,"id":"a","type":"t"}` + "\n"))
	f.Add([]byte("\n\n"))
	f.Add([]byte(`{"seq":1`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var total int64
		scan(strings.NewReader(string(data)), func(_ mayfly.Event, n int64) error { total += n; return nil })
		if total > int64(len(data)) {
			t.Errorf("scanned %d bytes of %d", total, len(data))
		}
	})
}
