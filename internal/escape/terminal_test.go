//go:build linux

package escape

import (
	"bytes"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"mayfly.dev/mayfly/internal/guest"
	"mayfly.dev/mayfly/internal/terminal"
)

// sequences are what a terminal would obey, in octal for printf(1).
var sequences = map[string]string{
	"title":            `\033]0;owned\007`,
	"clipboard":        `\033]52;c;cm0gLXJmIH4K\007`,
	"hyperlink":        `\033]8;;http://evil.example\033\\click\033]8;;\033\\`,
	"device-report":    `\033[c\033[>c\033[5n\033[6n`,
	"answerback":       `\005`,
	"window-report":    `\033[21t\033[18t`,
	"clear-and-forge":  `\033[2J\033[1;1H$ `,
	"alternate-screen": `\033[?1049h`,
	"keys-redefined":   `\033["ls";13p`,
	"device-control":   `\033P$q"p\033\\`,
	"eight-bit":        `\302\2330c`,
	"character-set":    `\016\033(0`,
	"reset":            `\033c`,
	"hidden-text":      `\342\200\256evil\342\200\254`,
}

// harmless is what may remain: colours.
var harmless = regexp.MustCompile(`\x1b\[[0-9;:]*m`)

// obeyed returns what a terminal would act upon.
func obeyed(output []byte) string {
	rest := harmless.ReplaceAllString(string(output), "")
	return strings.Map(func(r rune) rune {
		if r < ' ' && r != '\n' && r != '\r' && r != '\t' && r != '\b' || r == 0x7f || r >= 0x80 && r <= 0x9f || r >= 0x202a && r <= 0x202e || r >= 0x2066 && r <= 0x2069 {
			return r
		}
		return -1
	}, rest)
}

// TestTerminalSequencesOfCommandsAreNotObeyed prints what terminals obey
// inside, on a terminal and on a pipe. What arrives is the control; what is
// left by the filter, through which the command line shows it, is harmless.
func TestTerminalSequencesOfCommandsAreNotObeyed(t *testing.T) {
	w := newWorld(t)
	iso := newIsolation(t)
	e := w.newEnvironment(t, iso.runtime, "terminal", 0x10000000, nil)
	for _, name := range slices.Sorted(maps.Keys(sequences)) {
		sequence := sequences[name]
		for _, tty := range []bool{false, true} {
			row := "terminal-" + name
			if tty {
				row += "-tty"
			}
			t.Run(row, func(t *testing.T) {
				out, exit, err := e.run(t.Context(), guest.Command{TTY: tty, Argv: []string{"/bin/sh", "-c", "printf 'begin " + sequence + " end\n'"}})
				if err != nil || exit.Code != 0 {
					t.Fatalf("exit %+v, %v", exit, err)
				}
				if obeyed(out) == "" {
					t.Errorf("unfiltered, %q is harmless, too", out)
				}
				var shown bytes.Buffer
				f := terminal.NewFilter(&shown)
				if _, err := f.Write(out); err != nil {
					t.Fatal(err)
				}
				if rest := obeyed(shown.Bytes()); rest != "" {
					t.Errorf("%q is left in %q", rest, shown.Bytes())
				}
				if !strings.HasPrefix(shown.String(), "begin ") || !strings.Contains(shown.String(), " end") {
					t.Errorf("the text is lost: %q", shown.Bytes())
				}
				report.add(iso.name, row, verdict(t, "shut: filtered"), fmt.Sprintf("open: %q", obeyed(out)))
			})
		}
	}
}
