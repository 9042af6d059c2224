package terminal

import (
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

func filtered(t testing.TB, parts ...string) string {
	t.Helper()
	var b strings.Builder
	f := NewFilter(&b)
	for _, p := range parts {
		if n, err := f.Write([]byte(p)); n != len(p) || err != nil {
			t.Fatalf("Write = %d, %v, want %d", n, err, len(p))
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestFilterKeepsTextAndColours(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"text":            {"héllo\twörld\r\n日本\b", "héllo\twörld\r\n日本\b"},
		"colour":          {"\x1b[1;31mred\x1b[0m", "\x1b[1;31mred\x1b[0m"},
		"true colour":     {"\x1b[38:2::1:2:3mx\x1b[m", "\x1b[38:2::1:2:3mx\x1b[m"},
		"colour left on":  {"\x1b[31mred", "\x1b[31mred\x1b[0m"},
		"cursor":          {"a\x1b[2J\x1b[1;1Hb", "ab"},
		"private mode":    {"a\x1b[?1049hb", "ab"},
		"private m":       {"a\x1b[>4;1mb", "ab"},
		"title":           {"a\x1b]0;pwned\ab", "ab"},
		"clipboard":       {"a\x1b]52;c;cm0gLXJm\x1b\\b", "ab"},
		"device control":  {"a\x1bP+q544e\x1b\\b", "ab"},
		"report":          {"a\x1b[6n\x1b[c\x1bZb", "ab"},
		"reset":           {"a\x1bcb", "ab"},
		"charset":         {"a\x1b(0b", "ab"},
		"C1 CSI":          {"a\u009b2Jb", "ab"},
		"C1 OSC":          {"a\u009d0;x\u009cb", "ab"},
		"raw C1":          {"a\x9b2Jb", "a\ufffd2Jb"},
		"bell":            {"a\ab\x00\x0e\x7fc", "abc"},
		"open string":     {"a\x1b]0;hidden\nshown", "a\nshown"},
		"endless string":  {"a\x1b]0;" + strings.Repeat("x", 5000) + "\nb", "a" + strings.Repeat("x", 5000-4094) + "\nb"},
		"bidi":            {"a\u202eb\u2066c", "abc"},
		"cancelled":       {"a\x1b[3\x18b", "ab"},
		"ESC ESC":         {"a\x1b\x1b[31mb\x1b[0m", "a\x1b[31mb\x1b[0m"},
		"newline in CSI":  {"a\x1b[3\nb", "a\nb"},
		"long SGR":        {"a\x1b[" + strings.Repeat("1;", 200) + "mb", "ab"},
		"cut UTF-8":       {"a\xe6\x97", "a\ufffd"},
		"ESC in a string": {"a\x1b]0;t\x1b[31mb\x1b[0m", "a\x1b[31mb\x1b[0m"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := filtered(t, c.in); got != c.want {
				t.Errorf("got = %q, want %q", got, c.want)
			}
		})
	}
}

// obeyed matches what must not be left after colours are taken out.
var (
	colours = regexp.MustCompile(`\x1b\[[0-9;:]*m`)
	obeyed  = regexp.MustCompile(`[\x00-\x07\x0b\x0c\x0e-\x1f\x7f\x{80}-\x{9f}\x{202a}-\x{202e}\x{2066}-\x{2069}]`)
)

func FuzzFilter(f *testing.F) {
	f.Add("a\x1b[31mb\x1b]0;t\x07c", 3)
	f.Add("\x1b\x1b[\x1b[2J日本\x9b1m", 7)
	f.Add("\u009b31m\x1bP\x1b\\", 1)
	f.Fuzz(func(t *testing.T, s string, cut int) {
		whole := filtered(t, s)
		if bad := obeyed.FindString(colours.ReplaceAllString(whole, "")); bad != "" {
			t.Errorf("%q became %q, with %q", s, whole, bad)
		}
		if !utf8.ValidString(whole) {
			t.Errorf("%q became %q, which is not UTF-8", s, whole)
		}
		if cut = max(0, min(cut, len(s))); filtered(t, s[:cut], s[cut:]) != whole {
			t.Errorf("%q, cut at %d: %q, in one piece %q", s, cut, filtered(t, s[:cut], s[cut:]), whole)
		}
		if again := filtered(t, whole); again != whole {
			t.Errorf("%q, filtered again, became %q", whole, again)
		}
	})
}

func TestSafeReplacesControls(t *testing.T) {
	if got, want := Safe("a\x1b[31m\nb\u202e\xff"), "a\ufffd[31m\ufffdb\ufffd\ufffd"; got != want {
		t.Errorf("Safe = %q, want %q", got, want)
	}
}
