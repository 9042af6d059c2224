// Package freebusy finds the free time between appointments.
package freebusy

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Span is a part of a day in minutes since midnight: Start belongs to it, End
// does not.
type Span struct{ Start, End int }

// Minutes is the length of the span.
func (s Span) Minutes() int { return s.End - s.Start }

func (s Span) String() string {
	return fmt.Sprintf("%02d:%02d-%02d:%02d", s.Start/60, s.Start%60, s.End/60, s.End%60)
}

// Parse reads a span such as "09:00-10:30".
func Parse(text string) (Span, error) {
	from, to, ok := strings.Cut(text, "-")
	if !ok {
		return Span{}, fmt.Errorf("%q is no span: write it as 09:00-10:30", text)
	}
	start, err := clock(from)
	if err != nil {
		return Span{}, err
	}
	end, err := clock(to)
	if err != nil {
		return Span{}, err
	}
	if end < start {
		return Span{}, fmt.Errorf("%q ends before it starts", text)
	}
	return Span{start, end}, nil
}

// ParseAll reads several spans.
func ParseAll(texts ...string) ([]Span, error) {
	var spans []Span
	for _, t := range texts {
		s, err := Parse(t)
		if err != nil {
			return nil, err
		}
		spans = append(spans, s)
	}
	return spans, nil
}

// clock reads a time of day; 24:00 is the end of it.
func clock(text string) (int, error) {
	h, m, ok := strings.Cut(text, ":")
	hours, errH := strconv.Atoi(h)
	minutes, errM := strconv.Atoi(m)
	if !ok || errH != nil || errM != nil || hours < 0 || minutes < 0 || minutes > 59 || hours*60+minutes > 24*60 {
		return 0, fmt.Errorf("%q is no time of day: write it as 09:00", text)
	}
	return hours*60 + minutes, nil
}

// Merge puts appointments in order and joins those that overlap or touch.
func Merge(spans []Span) []Span {
	sorted := slices.Clone(spans)
	slices.SortFunc(sorted, func(a, b Span) int { return a.Start - b.Start })
	var merged []Span
	for _, s := range sorted {
		if n := len(merged); n > 0 && s.Start < merged[n-1].End {
			merged[n-1].End = max(merged[n-1].End, s.End)
			continue
		}
		merged = append(merged, s)
	}
	return merged
}

// Free is what of the window is left between the appointments, in pieces of
// at least so many minutes.
func Free(busy []Span, window Span, minutes int) []Span {
	var free []Span
	at := window.Start
	offer := func(end int) {
		if gap := (Span{at, end}); gap.Minutes() > minutes {
			free = append(free, gap)
		}
	}
	for _, b := range Merge(busy) {
		if b.End <= window.Start {
			continue
		}
		if b.Start >= window.End {
			break
		}
		offer(b.Start)
		at = max(at, b.End)
	}
	offer(window.End)
	return free
}
