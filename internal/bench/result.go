package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strings"
	"time"
)

// Result is one line of the table and one element of the JSON array.
type Result struct {
	Name         string  `json:"name"`
	Unit         string  `json:"unit"`
	Value        float64 `json:"value"` // median unless the name says otherwise
	P99          float64 `json:"p99,omitempty"`
	Baseline     float64 `json:"baseline,omitempty"`
	BaselineName string  `json:"baseline_name,omitempty"`
	Ratio        float64 `json:"ratio,omitempty"` // value / baseline
	Goal         string  `json:"goal,omitempty"`
	OK           bool    `json:"ok"` // the goal is reached, or there is none
}

// against sets the baseline.
func (r Result) against(name string, value float64) Result {
	r.BaselineName, r.Baseline = name, round(value)
	if value > 0 {
		r.Ratio = round(r.Value / value)
	}
	return r
}

// atMost sets a goal for the value in its own unit.
func (r Result) atMost(limit float64) Result {
	r.Goal, r.OK = fmt.Sprintf("<= %g %s", limit, r.Unit), r.Value <= limit
	return r
}

// ratioAtMost sets a goal for the ratio.
func (r Result) ratioAtMost(limit float64) Result {
	r.Goal, r.OK = fmt.Sprintf("<= %gx", limit), r.Ratio <= limit
	return r
}

// samples are measurements of one thing.
type samples []float64

func (s samples) sorted() samples { return slices.Sorted(slices.Values(s)) }

// quantile is the nearest-rank quantile, 0 < q <= 1.
func (s samples) quantile(q float64) float64 {
	if len(s) == 0 {
		return math.NaN()
	}
	sorted := s.sorted()
	return sorted[max(0, int(math.Ceil(q*float64(len(sorted))))-1)]
}

func (s samples) median() float64 {
	sorted := s.sorted()
	n := len(sorted)
	if n == 0 {
		return math.NaN()
	}
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// result is the median of the samples, with the 99th percentile.
func (s samples) result(name, unit string) Result {
	return Result{Name: name, Unit: unit, Value: round(s.median()), P99: round(s.quantile(0.99)), OK: true}
}

// round keeps three significant digits, which is more than the machine does.
func round(v float64) float64 {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	scale := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

const tableFormat = "%-30s %7s %7s %8s %-12s %6s %s\n"

func writeHeader(w io.Writer) {
	fmt.Fprintf(w, tableFormat, "", "value", "p99", "baseline", "", "ratio", "goal")
}

func writeRow(w io.Writer, r Result) {
	verdict := ""
	switch {
	case r.Goal == "":
	case r.OK:
		verdict = "ok"
	default:
		verdict = "MISS " + r.Goal
	}
	fmt.Fprintf(w, tableFormat, clip(r.Name+" "+r.Unit, 30), number(r.Value), number(r.P99), number(r.Baseline),
		clip(r.BaselineName, 12), number(r.Ratio), verdict)
}

func number(v float64) string {
	if v == 0 {
		return ""
	}
	return fmt.Sprintf("%g", v)
}

func clip(s string, n int) string {
	if len(s) > n {
		return strings.TrimSpace(s[:n-1]) + "~"
	}
	return s
}

func writeJSON(path string, results []Result) error {
	b, err := json.MarshalIndent(results, "", "  ")
	if err != nil {
		return fmt.Errorf("encode results: %w", err)
	}
	if err := os.WriteFile(path, append(b, '\n'), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}
