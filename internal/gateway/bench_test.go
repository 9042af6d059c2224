package gateway

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

// idleRuns and idleRecorder cost nothing, so that the gateway's own time is
// measured.
type idleRuns struct{ next atomic.Int64 }

func (r *idleRuns) Admit(context.Context, string, string) (Admission, error) {
	return Admission{Environment: "env-1", Run: "run-1"}, nil
}
func (r *idleRuns) Begin(_ context.Context, x *mayfly.Exchange, _ bool, _ int) error {
	x.Number = int(r.next.Add(1))
	return nil
}
func (r *idleRuns) End(context.Context, mayfly.Exchange) error                      { return nil }
func (r *idleRuns) Report(context.Context, string, string, string, string) error    { return nil }
func (r *idleRuns) Diverged(context.Context, string, mayfly.Divergence, bool) error { return nil }
func (r *idleRuns) WriteContent(context.Context, string, mayfly.Content) (string, error) {
	return "sha256:0", nil
}

// The upstream writes a stream of events, each with the time of its writing.
type metronome struct {
	events int
	gap    time.Duration
	size   int
}

func (m metronome) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	io.Copy(io.Discard, r.Body)
	w.Header().Set("Content-Type", "text/event-stream")
	flush := http.NewResponseController(w)
	filler := strings.Repeat("x", m.size)
	b := make([]byte, 0, m.size+64)
	next := time.Now()
	for range m.events {
		b = append(b[:0], "data: "...)
		b = strconv.AppendInt(b, time.Now().UnixNano(), 10)
		b = append(append(append(b, ' '), filler...), "\n\n"...)
		w.Write(b)
		if flush.Flush() != nil {
			return
		}
		if m.gap > 0 {
			next = next.Add(m.gap)
			time.Sleep(time.Until(next))
		}
	}
}

// way is one way to the upstream.
type way struct {
	name, address, path string
}

// ways are the direct one, the bare reverse proxy of the standard library, and
// the gateway.
func ways(b *testing.B, m metronome) []way {
	b.Helper()
	upstream := httptest.NewServer(m)
	b.Cleanup(upstream.Close)
	target, err := url.Parse(upstream.URL)
	if err != nil {
		b.Fatal(err)
	}
	bare := httputil.NewSingleHostReverseProxy(target)
	bare.FlushInterval = -1
	bare.Transport = &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 256}
	bare.ErrorLog = log.New(io.Discard, "", 0)
	proxy := httptest.NewServer(bare)
	b.Cleanup(proxy.Close)
	runs := &idleRuns{}
	g := New(Options{
		Runs: runs, Recorder: runs, Providers: providersAt(b, upstream.URL, ""),
		Log: slog.New(slog.DiscardHandler),
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	if err := g.Open("env-1", l); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		g.Shutdown(ctx)
	})
	return []way{
		{"direct", target.Host, "/v1/messages"},
		{"proxy", proxy.Listener.Addr().String(), "/v1/messages"},
		{"gateway", l.Addr().String(), "/anthropic/v1/messages"},
	}
}

// conversation asks over one connection, and reads chunk by chunk.
type conversation struct {
	c    net.Conn
	in   *bufio.Reader
	line []byte
	path string
}

func converse(b testing.TB, w way) *conversation {
	c, err := net.Dial("tcp", w.address)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { c.Close() })
	return &conversation{c: c, in: bufio.NewReaderSize(c, 64<<10), path: w.path}
}

// ask sends a question and returns when the first byte of the answer's body is
// there.
func (c *conversation) ask() error {
	fmt.Fprintf(c.c, "POST %s HTTP/1.1\r\nHost: x\r\nX-Api-Key: %s\r\nContent-Length: %d\r\n\r\n%s", c.path, runToken, len(question), question)
	for {
		line, err := c.in.ReadSlice('\n')
		if err != nil {
			return err
		}
		if len(line) == 2 {
			_, err := c.in.Peek(1)
			return err
		}
	}
}

// chunk reads one chunk: how many events it has, 0 at the end, and when the
// first was written.
func (c *conversation) chunk() (events int, written time.Time, err error) {
	line, err := c.in.ReadSlice('\n')
	if err != nil {
		return 0, written, err
	}
	size, err := strconv.ParseInt(strings.TrimSpace(string(line)), 16, 64)
	if err != nil {
		return 0, written, err
	}
	c.line = slices.Grow(c.line[:0], int(size)+2)[:size+2]
	if _, err := io.ReadFull(c.in, c.line); err != nil || size == 0 {
		return 0, written, err
	}
	text := string(c.line[:size])
	if stamp, begins := strings.CutPrefix(text, "data: "); begins {
		at, _, _ := strings.Cut(stamp, " ")
		ns, err := strconv.ParseInt(at, 10, 64)
		if err != nil {
			return 0, written, err
		}
		written = time.Unix(0, ns)
	}
	return max(1, strings.Count(text, "data: ")), written, nil
}

func median(d []time.Duration) time.Duration { slices.Sort(d); return d[len(d)/2] }

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

// BenchmarkFirstByte measures from the question to the first byte of the
// answer. The ways take turns, so that they see the same machine.
func BenchmarkFirstByte(b *testing.B) {
	list := ways(b, metronome{events: 1, size: 100})
	took := make([][]time.Duration, len(list))
	var talks []*conversation
	for _, w := range list {
		talks = append(talks, converse(b, w))
	}
	for i := 0; b.Loop(); i++ {
		for j, c := range talks {
			start := time.Now()
			if err := c.ask(); err != nil {
				b.Fatal(err)
			}
			if i > 0 { // the first makes connections
				took[j] = append(took[j], time.Since(start))
			}
			for events := 1; events > 0; {
				var err error
				if events, _, err = c.chunk(); err != nil {
					b.Fatal(err)
				}
			}
			time.Sleep(100 * time.Microsecond) // the exchange's end is not its beginning
		}
	}
	report(b, list, took)
}

func report(b *testing.B, list []way, took [][]time.Duration) {
	b.Helper()
	b.ReportMetric(0, "ns/op")
	var direct time.Duration
	for i, w := range list {
		if len(took[i]) == 0 {
			return
		}
		p50 := median(took[i])
		if i == 0 {
			direct = p50
		} else {
			b.ReportMetric(micros(p50-direct), w.name+"-added-µs-p50")
			b.ReportMetric(micros(took[i][len(took[i])*99/100]), w.name+"-µs-p99")
		}
		b.ReportMetric(micros(p50), w.name+"-µs-p50")
	}
}

// BenchmarkChunk measures from the writing of an event to its reading, with a
// pause between events.
func BenchmarkChunk(b *testing.B) {
	const events = 500
	list := ways(b, metronome{events: events, gap: time.Millisecond, size: 150})
	took := make([][]time.Duration, len(list))
	coalesced := make([]int, len(list))
	for b.Loop() {
		for j, w := range list {
			c := converse(b, w)
			if err := c.ask(); err != nil {
				b.Fatal(err)
			}
			for {
				n, written, err := c.chunk()
				if err != nil {
					b.Fatal(err)
				}
				if n == 0 {
					break
				}
				if !written.IsZero() {
					took[j] = append(took[j], time.Since(written))
				}
				coalesced[j] += n - 1
			}
			c.c.Close()
		}
	}
	report(b, list, took)
	for j, w := range list {
		b.ReportMetric(float64(coalesced[j]), w.name+"-coalesced")
	}
}

// BenchmarkStreams200 measures 200 streams at once: what passes in a second
// when nobody pauses, and at the pace of models the delay, the chunks that were
// joined, and the memory of a stream.
func BenchmarkStreams200(b *testing.B) {
	const streams = 200
	b.Run("unpaced", func(b *testing.B) {
		const events = 500
		list := ways(b, metronome{events: events, size: 150})
		for b.Loop() {
			for _, w := range list {
				start := time.Now()
				_, joined := together(b, w, streams, nil)
				b.ReportMetric(streams*events/time.Since(start).Seconds(), w.name+"-events/s")
				b.ReportMetric(float64(joined), w.name+"-coalesced")
			}
		}
		b.ReportMetric(0, "ns/op")
	})
	b.Run("paced", func(b *testing.B) {
		list := ways(b, metronome{events: 40, gap: 50 * time.Millisecond, size: 150})
		took := make([][]time.Duration, len(list))
		for b.Loop() {
			for j, w := range list {
				idle := heap()
				var busy uint64
				delays, joined := together(b, w, streams, func() { time.Sleep(time.Second); busy = heap() })
				took[j] = append(took[j], delays...)
				b.ReportMetric(float64(joined), w.name+"-coalesced")
				b.ReportMetric((float64(busy)-float64(idle))/streams/1024, w.name+"-KiB/stream")
			}
		}
		report(b, list, took)
	})
}

// heap is what is in use, stacks included.
func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}

// together runs streams at once, and during beside them.
func together(b *testing.B, w way, streams int, during func()) (delays []time.Duration, joined int) {
	b.Helper()
	var mu sync.Mutex // guards delays and joined
	var wg sync.WaitGroup
	for range streams {
		c := converse(b, w)
		wg.Go(func() {
			defer c.c.Close()
			err := c.ask()
			for n, written := 0, (time.Time{}); err == nil; {
				if n, written, err = c.chunk(); err != nil || n == 0 {
					break
				}
				mu.Lock()
				if joined += n - 1; !written.IsZero() {
					delays = append(delays, time.Since(written))
				}
				mu.Unlock()
			}
			// The bare proxy cuts some: it may still be reading a request whose
			// answer has begun.
			if err != nil && w.name != "proxy" {
				b.Errorf("%s: %v", w.name, err)
			}
		})
	}
	if during != nil {
		during()
	}
	wg.Wait()
	return delays, joined
}

// BenchmarkIdle measures the memory of an environment whose agent is silent,
// without a connection and with one.
func BenchmarkIdle(b *testing.B) {
	const environments = 500
	for b.Loop() {
		g := New(Options{Runs: &idleRuns{}, Recorder: &idleRuns{}, Log: slog.New(slog.DiscardHandler)})
		before := heap()
		var addresses []string
		for i := range environments {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				b.Fatal(err)
			}
			if err := g.Open(fmt.Sprint("env-", i), l); err != nil {
				b.Fatal(err)
			}
			addresses = append(addresses, l.Addr().String())
		}
		time.Sleep(50 * time.Millisecond)
		b.ReportMetric((float64(heap())-float64(before))/environments/1024, "KiB/environment")
		for _, a := range addresses {
			converse(b, way{address: a})
		}
		time.Sleep(50 * time.Millisecond)
		b.ReportMetric((float64(heap())-float64(before))/environments/1024, "KiB/connected")
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		g.Shutdown(ctx)
		cancel()
	}
	b.ReportMetric(0, "ns/op")
}
