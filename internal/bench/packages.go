package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// metric is a figure that a package's own benchmark reports, as a line of the
// table.
type metric struct {
	benchmark, metric string
	name, unit        string
	baseline, from    string // metric of the same benchmark, and what it is; may be empty
	goal              func(Result) Result
}

func atMost(limit float64) func(Result) Result {
	return func(r Result) Result { return r.atMost(limit) }
}

// gatewayMetrics are those of the packages between agents and models. Their
// benchmarks measure the baselines beside, turn by turn.
var gatewayMetrics = map[string][]metric{
	"./internal/gateway": {
		{"FirstByte", "gateway-added-µs-p50", "gateway adds to 1st byte", "µs", "proxy-added-µs-p50", "reverse proxy", atMost(300)},
		{"Chunk", "gateway-added-µs-p50", "gateway adds to a chunk", "µs", "proxy-added-µs-p50", "reverse proxy", atMost(300)},
		{"Chunk", "gateway-coalesced", "chunks joined", "", "proxy-coalesced", "reverse proxy", atMost(0)},
		{"Streams200/unpaced", "gateway-events/s", "200 streams", "events/s", "proxy-events/s", "reverse proxy", nil},
		{"Streams200/unpaced", "gateway-coalesced", "200 streams, chunks joined", "", "proxy-coalesced", "reverse proxy", atMost(0)},
		{"Streams200/paced", "gateway-KiB/stream", "memory of a stream", "KiB", "proxy-KiB/stream", "reverse proxy", nil},
		{"Idle", "KiB/environment", "memory of an idle door", "KiB", "", "", nil},
	},
	"./internal/recording": {
		{"Conversation60/claude", "%stored", "60 turns stored, Messages", "%", "", "", atMost(5)},
		{"Conversation60/responses", "%stored", "60 turns stored, Responses", "%", "", "", atMost(5)},
		{"Conversation60/claude", "µs/content", "record a request or answer", "µs", "", "", nil},
	},
	"./internal/graph": {
		{"Build/steps=4000", "ms/10000steps", "graph of 10,000 steps", "ms", "", "", atMost(1000)},
	},
}

// gateway reports what the benchmarks of packages say. They need the source
// and the go command.
func (b *bench) gateway(ctx context.Context) error {
	for _, pkg := range []string{"./internal/gateway", "./internal/recording", "./internal/graph"} {
		figures, err := benchmarks(ctx, pkg)
		if err != nil {
			return err
		}
		for _, m := range gatewayMetrics[pkg] {
			value, ok := figures[m.benchmark][m.metric]
			if !ok {
				return fmt.Errorf("%s: benchmark %s reports no %s", pkg, m.benchmark, m.metric)
			}
			r := Result{Name: m.name, Unit: m.unit, Value: round(value), OK: true}
			if m.from != "" {
				r = r.against(m.from, figures[m.benchmark][m.baseline])
			}
			if m.goal != nil {
				r = m.goal(r)
			}
			b.report(r)
		}
	}
	return nil
}

// benchmarks runs those of a package and returns what each reports, by unit.
func benchmarks(ctx context.Context, pkg string) (map[string]map[string]float64, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", ".", "-benchtime", "1s", pkg)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("benchmarks of %s: %w\n%s", pkg, err, out)
	}
	return parseBenchmarks(out), nil
}

// parseBenchmarks reads what go test -bench prints.
func parseBenchmarks(out []byte) map[string]map[string]float64 {
	all := map[string]map[string]float64{}
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") {
			continue
		}
		name := strings.TrimPrefix(f[0], "Benchmark")
		if i := strings.LastIndex(name, "-"); i > 0 { // the number of processors
			name = name[:i]
		}
		figures := map[string]float64{}
		for i := 2; i+1 < len(f); i += 2 {
			if v, err := strconv.ParseFloat(f[i], 64); err == nil {
				figures[f[i+1]] = v
			}
		}
		all[name] = figures
	}
	return all
}
