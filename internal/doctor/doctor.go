// Package doctor finds out what this machine can do for mayfly, what is
// missing, and the command that gets it.
//
// Each finding comes from trying the thing itself, not from a version number
// or a configuration file. A probe leaves nothing behind.
package doctor

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// Status says how a probe ended.
type Status string

const (
	OK       Status = "ok"
	Missing  Status = "missing"  // what Needs names does not work
	Degraded Status = "degraded" // it works with less, as Detail says
)

// Finding is what one probe found out.
type Finding struct {
	Name     string `json:"name"`
	Status   Status `json:"status"`
	Detail   string `json:"detail"`          // what was seen
	Needs    string `json:"needs"`           // what it is for
	Fix      string `json:"fix,omitempty"`   // command that installs or enables it
	Required bool   `json:"required"`        // nothing works without it
	Took     int64  `json:"took_us"`         // microseconds
	Error    string `json:"error,omitempty"` // of the operating system
}

// probe is one thing to try. It fills in Status, Detail, Fix and Error.
type probe struct {
	name     string
	needs    string
	required bool
	try      func(ctx context.Context, stateDir string) Finding
}

// probeTimeout bounds one probe. They take a few milliseconds; a program that
// is started for the first time may take longer to read from disk.
const probeTimeout = 2 * time.Second

// Check tries everything. stateDir is the state directory, which need not
// exist yet. Check never fails: what cannot be tried is a finding too.
func Check(ctx context.Context, stateDir string) []Finding {
	findings := make([]Finding, 0, len(probes))
	for _, p := range probes {
		findings = append(findings, p.run(ctx, stateDir))
	}
	return findings
}

func (p probe) run(ctx context.Context, stateDir string) Finding {
	ctx, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	start := time.Now()
	f := p.try(ctx, stateDir)
	f.Name, f.Needs, f.Required = p.name, p.needs, p.required
	f.Took = time.Since(start).Microseconds()
	return f
}

// Usable reports whether environments can run at all: nothing that is
// required is missing.
func Usable(findings []Finding) bool {
	for _, f := range findings {
		if f.Required && f.Status == Missing {
			return false
		}
	}
	return true
}

func good(format string, args ...any) Finding {
	return Finding{Status: OK, Detail: fmt.Sprintf(format, args...)}
}

func missing(fix, format string, args ...any) Finding {
	return Finding{Status: Missing, Fix: fix, Detail: fmt.Sprintf(format, args...)}
}

func degraded(fix, format string, args ...any) Finding {
	return Finding{Status: Degraded, Fix: fix, Detail: fmt.Sprintf(format, args...)}
}

// because adds the operating system's error.
func (f Finding) because(err error) Finding {
	if err != nil {
		f.Error = err.Error()
	}
	return f
}

const (
	width  = 80
	indent = 20 // columns before the detail
)

// WriteText prints the findings as a table of at most 80 columns, except for
// commands, which are never broken.
func WriteText(w io.Writer, findings []Finding) error {
	var b strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&b, "%-9s %-9s ", f.Status, f.Name)
		paragraph(&b, f.Detail)
		if f.Status == OK {
			continue
		}
		if f.Error != "" {
			labelled(&b, "error: "+f.Error)
		}
		labelled(&b, "for: "+f.Needs)
		if f.Fix != "" {
			fmt.Fprintf(&b, "%*sfix: %s\n", indent, "", f.Fix)
		}
	}
	fmt.Fprintln(&b, summary(findings))
	_, err := io.WriteString(w, b.String())
	return err
}

func labelled(b *strings.Builder, text string) {
	fmt.Fprintf(b, "%*s", indent, "")
	paragraph(b, text)
}

// paragraph writes text that begins in column indent, broken between words.
func paragraph(b *strings.Builder, text string) {
	column := indent
	for i, word := range strings.Fields(text) {
		n := utf8.RuneCountInString(word)
		switch {
		case i == 0:
		case column+1+n > width:
			fmt.Fprintf(b, "\n%*s", indent, "")
			column = indent
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(word)
		column += n
	}
	b.WriteByte('\n')
}

func summary(findings []Finding) string {
	if !Usable(findings) {
		var names []string
		for _, f := range findings {
			if f.Required && f.Status == Missing {
				names = append(names, f.Name)
			}
		}
		return "\nEnvironments cannot run here before this is repaired: " + strings.Join(names, ", ")
	}
	for _, f := range findings {
		if f.Status != OK {
			return "\nEnvironments can run here, with less where it says so."
		}
	}
	return "\nEverything is there."
}
