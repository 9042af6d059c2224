package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly/internal/recording/redact/canary"
)

func newRedactor(t testing.TB, o Options) *Redactor {
	t.Helper()
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// redacted cuts a body and checks that it can be restored.
func redacted(t testing.TB, r *Redactor, body []byte) []byte {
	t.Helper()
	spans := r.Find(body)
	for i, s := range spans {
		if s.Start < 0 || s.End > len(body) || s.Start >= s.End || i > 0 && s.Start < spans[i-1].End {
			t.Fatalf("spans = %+v of %d bytes", spans, len(body))
		}
	}
	out, back := Cut(body, spans)
	if again, ok := Restore(out, back); !ok || !bytes.Equal(again, body) {
		t.Fatalf("restored %q, want %q", again, body)
	}
	return out
}

func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// shapes are the ways in which a text reaches the recording.
var shapes = map[string]func(string) string{
	"text": func(s string) string { return "see\n" + s + "\nabove" },
	"prompt": func(s string) string {
		return `{"messages":[{"role":"user","content":` + quoted("look:\n"+s+"\n") + `}]}`
	},
	"bytes":     func(s string) string { return `{"content":"` + escapeAll(s) + `"}` },
	"tool call": func(s string) string { return `{"arguments":` + quoted(`{"text":`+quoted("a\n"+s+"\nb")+`}`) + `}` },
	"tool result": func(s string) string {
		return `{"input":[{"a":1},{"output":` + quoted(quoted(quoted("\t"+s+"\n"))) + `}]}`
	},
	"events":   func(s string) string { return deltas(s, 3) },
	"bytewise": func(s string) string { return deltas(s, 1) },
	"chat":     func(s string) string { return chatDeltas(s) },
	"elements": func(s string) string { return geminiArray(s) },
	"cut off":  func(s string) string { return `{"messages":[{"content":` + quoted("look:\n"+s+"\n") + `},{"con` },
}

func escapeAll(s string) string {
	var b strings.Builder
	b.WriteString(`\n`)
	for _, c := range s {
		fmt.Fprintf(&b, `\u%04X`, c)
	}
	return b.String() + `\n`
}

// deltas is an Anthropic stream of arguments that have s, n bytes at a time,
// with another block's in between.
func deltas(s string, n int) string {
	text := []rune(`{"command": ` + quoted(s+"\n") + `}`)
	var b strings.Builder
	for len(text) > 0 {
		k := min(n, len(text))
		fmt.Fprintf(&b, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":%s}}\n\n", quoted(string(text[:k])))
		b.WriteString("event: ping\ndata: {\"type\": \"ping\"}\n\n")
		fmt.Fprintf(&b, "data: {\"type\":\"content_block_delta\",\"index\":2,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"x \"}}\r\n\r\n")
		text = text[k:]
	}
	return b.String()
}

func chatDeltas(s string) string {
	var b strings.Builder
	text := []rune(s)
	for i := 0; i < len(text); i += 4 {
		fmt.Fprintf(&b, "data: {\"id\":\"c1\",\"choices\":[{\"index\":0,\"delta\":{\"content\":%s}}]}\n\n", quoted(string(text[i:min(len(text), i+4)])))
	}
	return b.String() + "data: [DONE]\n\n"
}

func geminiArray(s string) string {
	var list []string
	text := []rune(s)
	for i := 0; i < len(text); i += 5 {
		list = append(list, `{"candidates":[{"content":{"parts":[{"text":`+quoted(string(text[i:min(len(text), i+5)]))+`}]}}]}`)
	}
	return "[" + strings.Join(list, ",\r\n") + "]"
}

// joinedText is all strings of a body one after the other, escapes undone,
// which shows what lies in pieces.
func joinedText(body []byte) string {
	var b strings.Builder
	_, valid := blocks(body)
	all, _ := assemble(body, valid)
	for _, parts := range all {
		v := joined(body, parts)
		b.Write(v.text)
		for {
			deeper, more := v.undone(false)
			if !more {
				break
			}
			v = deeper
			b.Write(v.text)
		}
	}
	v := plain(body, 0, len(body))
	for more := true; more; v, more = v.undone(false) {
		b.Write(v.text)
	}
	return b.String()
}

func TestEveryRuleInEveryShape(t *testing.T) {
	r := newRedactor(t, Options{})
	seen := map[string]bool{}
	for _, c := range canary.Secrets() {
		seen[c.Rule] = true
		for name, shape := range shapes {
			body := []byte(shape(c.Text))
			if name != "text" && !strings.Contains(joinedText(body), c.Value) && !strings.Contains(c.Text, "\n") {
				t.Fatalf("%s as %s: the test does not have the secret", c.Rule, name)
			}
			out := redacted(t, r, body)
			if strings.Contains(joinedText(out), c.Value) {
				t.Errorf("%s as %s: %s", c.Rule, name, out)
			}
			if !bytes.Contains(out, []byte("[redacted:")) {
				t.Errorf("%s as %s: no marker in %s", c.Rule, name, out)
			}
			if json.Valid(body) && !json.Valid(out) {
				t.Errorf("%s as %s: not JSON any more: %s", c.Rule, name, out)
			}
		}
	}
	rules, _ := parseRules(builtin, nil)
	for _, rule := range rules {
		if !seen[rule.Name] {
			t.Errorf("no secret for rule %s", rule.Name)
		}
	}
}

// exactValue has what JSON and URLs write differently.
const exactValue = `pa"ss/w+rd&<é>=17`

func TestExactValuesInEveryForm(t *testing.T) {
	r := newRedactor(t, Options{Secrets: []Secret{{"MY_KEY", exactValue}, {"short", "ab"}}})
	forms := map[string]string{
		"plain":  exactValue,
		"query":  "https://x.test/?k=" + url.QueryEscape(exactValue),
		"path":   url.PathEscape(exactValue),
		"lower":  strings.ToLower(url.QueryEscape("&<")) + " " + url.QueryEscape(exactValue),
		"hex":    strings.ToUpper(hex.EncodeToString([]byte(exactValue))),
		"base64": base64.StdEncoding.EncodeToString([]byte(exactValue)),
		"in one": base64.StdEncoding.EncodeToString([]byte("user:" + exactValue + ":x")),
		"in two": base64.URLEncoding.EncodeToString([]byte("ab" + exactValue)),
	}
	for form, text := range forms {
		for name, shape := range shapes {
			out := redacted(t, r, []byte(shape(text)))
			plain := joinedText(out)
			for _, bad := range []string{exactValue, url.QueryEscape(exactValue), url.PathEscape(exactValue), strings.ToUpper(hex.EncodeToString([]byte(exactValue))), inner(base64.RawStdEncoding, exactValue, 0), inner(base64.RawStdEncoding, exactValue, 2), inner(base64.RawURLEncoding, exactValue, 2)} {
				if strings.Contains(plain, bad) {
					t.Errorf("%s as %s: %q in %s", form, name, bad, out)
				}
			}
			if !bytes.Contains(out, []byte("[redacted:my-key]")) {
				t.Errorf("%s as %s: no marker in %s", form, name, out)
			}
		}
	}
}

func TestWhatIsNoSecretStays(t *testing.T) {
	r := newRedactor(t, Options{})
	for _, text := range []string{
		`{"max_tokens":32000,"usage":{"cache_read_input_tokens":123456789}}`,
		`{"id":"msg_01XFDUDYJgAACzvnptvVoYEL","tool_use_id":"toolu_01A09q90qw90lq917835lq9"}`,
		`token := parser.next()`, `const secretName = computeSecretName(value)`,
		`password = getPassword()`, `see sk-learn-estimators-and-their-parameters`,
		`time=1700000000123456789 id=123e4567-e89b-12d3-a456-426614174000`,
		`git@github.test:x/y.git and someone@example.com and icon@2x.png`,
		`https://host.test:8080/path/file@v1.2.3`, `postgres://localhost:5432/app`,
		`+++ b/file.go`, `@@ -12,7 +12,9 @@ func`, `sha256:` + strings.Repeat("0123456789abcdef", 4),
		`-----BEGIN CERTIFICATE-----`, `1234567890123456`, `a + 12345678 + b`,
		`TOKEN=$GITHUB_TOKEN`, `"x-ratelimit-tokens": 1`, `os.Getenv("API_KEY")`,
	} {
		if out := redacted(t, r, []byte(text)); string(out) != text {
			t.Errorf("%s became %s", text, out)
		}
	}
}

func TestNumbersOfJSONBecomeStrings(t *testing.T) {
	r := newRedactor(t, Options{})
	body := `{"n":{"card":4111111111111111,"text":"a\": 4111111111111111, b"}}`
	want := `{"n":{"card":"[redacted:card]","text":"a\": [redacted:card], b"}}`
	if out := redacted(t, r, []byte(body)); string(out) != want {
		t.Errorf("got %s, want %s", out, want)
	}
}

func TestGroupsCanBeLeftOut(t *testing.T) {
	r := newRedactor(t, Options{Skip: []string{"personal"}})
	text := "grace@navy-yard.mil " + "gh" + "p_" + strings.Repeat("a1B2", 10)
	if out := redacted(t, r, []byte(text)); string(out) != "grace@navy-yard.mil [redacted:github-token]" {
		t.Errorf("out = %s", out)
	}
	if _, err := New(Options{Skip: []string{"persnal"}}); err == nil {
		t.Error("a rule that is not there was left out")
	}
}

func TestHeaders(t *testing.T) {
	r := newRedactor(t, Options{Secrets: []Secret{{"k", exactValue}}})
	out, changed := r.Header(map[string][]string{
		"Authorization": {"Bearer x"}, "X-Api-Key": {"short"}, "Cookie": {"a=b"}, "Set-Cookie": {"a=b", "c=d"},
		"X-Goog-Api-Key": {"z"}, "X-Trace": {"of " + exactValue}, "Content-Type": {"application/json"},
		"Anthropic-Ratelimit-Tokens-Remaining": {"100"}, "Empty-Token": {""},
	})
	want := map[string]string{
		"Authorization": HeaderMarker, "X-Api-Key": HeaderMarker, "Cookie": HeaderMarker, "Set-Cookie": HeaderMarker,
		"X-Goog-Api-Key": HeaderMarker, "X-Trace": "of [redacted:k]", "Content-Type": "application/json",
		"Anthropic-Ratelimit-Tokens-Remaining": "100", "Empty-Token": "",
	}
	for name, v := range want {
		if len(out[name]) == 0 || out[name][0] != v {
			t.Errorf("%s = %q, want %q", name, out[name], v)
		}
	}
	if !changed || out["Set-Cookie"][1] != HeaderMarker {
		t.Errorf("changed = %v, headers = %q", changed, out)
	}
}

func TestOffsetsMoveWithWhatIsCutOut(t *testing.T) {
	spans := []Span{{2, 4, "[x]"}, {6, 9, ""}}
	for at, want := range []int{0, 1, 2, 5, 5, 6, 7, 7, 7, 7, 8} {
		if got := Offset(spans, at); got != want {
			t.Errorf("Offset(%d) = %d, want %d", at, got, want)
		}
	}
}

func TestFromEnvironment(t *testing.T) {
	list := FromEnvironment([]string{"ANTHROPIC_API_KEY=abcdefgh", "HOME=/root", "SSH_AUTH_SOCK=/run/x/agent", "PATH=/bin", "DB_PASSWORD=a=b=c=d=e", "TOKEN=x"})
	if len(list) != 2 || list[0].Value != "abcdefgh" || list[1].Value != "a=b=c=d=e" {
		t.Errorf("secrets = %v", list)
	}
}

// Texts made to be slow are taken out, not waited for.
func TestHostileTextsTakeBoundedTime(t *testing.T) {
	r := newRedactor(t, Options{})
	secret := "gh" + "p_" + strings.Repeat("a1B2", 10)
	for _, unit := range []string{"eyJ-", "sk-", "-----BEGIN PRIVATE KEY-----", "token=", "@", "+1 ", "://a:", "\\\\", `\\u005c`, "a1@", "%25", `{"a":`, "data: {\"a\":[\"b\"\n", "[", "1234567890 "} {
		body := []byte(strings.Repeat(unit, 1<<18/len(unit)) + " " + secret)
		start := time.Now()
		out := redacted(t, r, body)
		if took := time.Since(start); took > 4*time.Second {
			t.Errorf("%q: %v", unit, took)
		} else {
			t.Logf("%q: %v", unit, took)
		}
		if bytes.Contains(out, []byte(secret)) {
			t.Errorf("%q: the secret is still there", unit)
		}
	}
}

func FuzzFind(f *testing.F) {
	r := newRedactor(f, Options{Secrets: []Secret{{"k", exactValue}}})
	for _, shape := range shapes {
		f.Add([]byte(shape("grace@navy-yard.mil")), 9)
	}
	f.Add([]byte("data: {\"a\":\"\\u00"), 14)
	f.Add([]byte("[{\"a\":\"x\"},"), 4)
	f.Fuzz(func(t *testing.T, body []byte, at int) {
		redacted(t, r, body)
		if at < 0 || at > len(body) {
			return
		}
		planted := append(append(bytes.Clone(body[:at]), exactValue...), body[at:]...)
		out := redacted(t, r, planted)
		if bytes.Contains(out, []byte(exactValue)) && !bytes.Contains(body, []byte(exactValue[1:])) && !bytes.Contains(body, []byte(exactValue[:5])) {
			t.Errorf("the secret is in %q", out)
		}
	})
}

// FuzzStream plants a secret in a stream cut at places that the fuzzer picks.
func FuzzStream(f *testing.F) {
	r := newRedactor(f, Options{Secrets: []Secret{{"k", exactValue}}})
	f.Add("before", "after", []byte{1, 2, 3})
	f.Fuzz(func(t *testing.T, before, after string, cuts []byte) {
		if len(before)+len(after) > 4000 || strings.Contains(before+after, exactValue[:6]) {
			return
		}
		var b strings.Builder
		s := []rune(strings.ToValidUTF8(before+exactValue+after, "?"))
		for i := 0; len(s) > 0; i++ {
			n := len(s)
			if i < len(cuts) {
				n = min(n, 1+int(cuts[i])%8)
			}
			fmt.Fprintf(&b, "data: {\"type\":\"response.output_text.delta\",\"output_index\":0,\"delta\":%s}\n\n", quoted(string(s[:n])))
			s = s[n:]
		}
		out := redacted(t, r, []byte(b.String()))
		if strings.Contains(joinedText(out), exactValue) {
			t.Errorf("the secret is in %q", out)
		}
	})
}

func source(b *testing.B) []byte {
	var all []byte
	names, _ := filepath.Glob("../../../*.go")
	for _, n := range names {
		text, err := os.ReadFile(n)
		if err != nil {
			b.Fatal(err)
		}
		all = append(all, text...)
	}
	return all
}

func BenchmarkFindFresh(b *testing.B) {
	r := newRedactor(b, Options{Secrets: []Secret{{"k", exactValue}}})
	body := []byte(`{"messages":[{"role":"user","content":` + quoted(string(source(b))) + `}]}`)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		r.cache = blockCache{}
		r.Find(body)
	}
}

func BenchmarkFindRepeated(b *testing.B) {
	r := newRedactor(b, Options{})
	body := []byte(`{"messages":[{"role":"user","content":` + quoted(string(source(b))) + `}]}`)
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		r.Find(body)
	}
}

func BenchmarkFindStream(b *testing.B) {
	r := newRedactor(b, Options{})
	body := []byte(deltas(string(source(b)), 12))
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		r.Find(body)
	}
}
