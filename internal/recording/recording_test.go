package recording

import (
	"bytes"
	"compress/zlib"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/recording/redact"
	"mayfly.dev/mayfly/internal/recording/redact/canary"
)

const exactValue = `pa"ss/w+rd&<é>=17`

func openStore(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(dir, Options{Secrets: []redact.Secret{{Name: "server key", Value: exactValue}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func begun(t testing.TB, s *Store, run string, m Mode) {
	t.Helper()
	if err := s.Begin(t.Context(), run, m); err != nil {
		t.Fatal(err)
	}
}

func write(t testing.TB, s *Store, run string, c mayfly.Content) string {
	t.Helper()
	d, err := s.WriteContent(t.Context(), run, c)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func quoted(s string) string {
	b, _ := json.Marshal(s)
	return string(b)
}

// chunked cuts a body into chunks of n bytes.
func chunked(c mayfly.Content, n int) mayfly.Content {
	for at := 0; at < len(c.Body); at += n {
		c.Chunks = append(c.Chunks, mayfly.Chunk{
			Size: min(n, len(c.Body)-at), After: time.Duration(at)*time.Millisecond + 7*time.Microsecond,
		})
	}
	return c
}

func compressed(t testing.TB, coding string, body []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	switch coding {
	case "gzip":
		w := gzip.NewWriter(&b)
		half := len(body) / 2
		w.Write(body[:half])
		w.Flush()
		w.Write(body[half:])
		w.Close()
	case "deflate":
		w := zlib.NewWriter(&b)
		w.Write(body)
		w.Close()
	case "zstd":
		w, err := zstd.NewWriter(&b)
		if err != nil {
			t.Fatal(err)
		}
		w.Write(body)
		w.Close()
	case "br":
		b.WriteString("\x0b\x02\x80")
		b.Write(body)
	}
	return b.Bytes()
}

func stream(text string) []byte {
	var b strings.Builder
	r := []rune(text)
	for len(r) > 0 {
		n := min(3, len(r))
		fmt.Fprintf(&b, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":%s}}\n\n", quoted(string(r[:n])))
		r = r[n:]
	}
	return []byte(b.String())
}

// contents are what a secret may reach the recording in.
func contents(t testing.TB, text string) map[string]mayfly.Content {
	body := []byte(`{"messages":[{"role":"user","content":` + quoted("see\n"+text+"\n") + `}]}`)
	header := func(pairs ...string) map[string][]string {
		h := map[string][]string{"Content-Type": {"application/json"}, "Authorization": {"Bearer mf-x"}, "Date": {"Mon"}}
		for i := 0; i < len(pairs); i += 2 {
			h[pairs[i]] = []string{pairs[i+1]}
		}
		return h
	}
	m := map[string]mayfly.Content{
		"prompt":      {Header: header(), Body: body},
		"tool result": {Header: header(), Body: []byte(`{"input":[{"output":` + quoted(quoted(quoted("\t"+text+"\n"))) + `}]}`)},
		"stream":      chunked(mayfly.Content{Header: header(), Body: stream(text + "\n")}, 50),
		"header":      {Header: header("X-Note", strings.ReplaceAll(text, "\n", " "), "X-Api-Key", "plain-key-value"), Body: []byte("{}")},
		"text":        chunked(mayfly.Content{Header: header(), Body: []byte("see\n" + text + "\nabove")}, 7),
		"sniffed":     {Header: header(), Body: compressed(t, "gzip", body)},
		"cut off":     chunked(mayfly.Content{Header: header("Content-Encoding", "gzip"), Body: compressed(t, "gzip", body)[:len(compressed(t, "gzip", body))-9]}, 20),
		"trailing":    {Header: header("Content-Encoding", "gzip"), Body: append(compressed(t, "gzip", []byte("{}")), text...)},
	}
	for _, c := range []string{"gzip", "deflate", "zstd", "br"} {
		m[c] = chunked(mayfly.Content{Header: header("Content-Encoding", c), Body: compressed(t, c, body)}, 31)
		m[c+" stream"] = chunked(mayfly.Content{Header: header("Content-Encoding", c), Body: compressed(t, c, stream(text+"\n"))}, 31)
	}
	return m
}

func sameContent(t testing.TB, name string, got, want mayfly.Content) {
	t.Helper()
	if !reflect.DeepEqual(got.Header, want.Header) {
		t.Errorf("%s: header = %q, want %q", name, got.Header, want.Header)
	}
	if !bytes.Equal(got.Body, want.Body) {
		t.Errorf("%s: body = %q, want %q", name, got.Body, want.Body)
	}
	if len(got.Chunks) != len(want.Chunks) || len(want.Chunks) > 0 && !reflect.DeepEqual(got.Chunks, want.Chunks) {
		t.Errorf("%s: chunks = %v, want %v", name, got.Chunks, want.Chunks)
	}
	if got.Redacted != want.Redacted {
		t.Errorf("%s: redacted = %v", name, got.Redacted)
	}
}

// checkView checks that chunks add up to a redacted body.
func checkView(t testing.TB, name string, c mayfly.Content) {
	t.Helper()
	sum := 0
	for _, k := range c.Chunks {
		sum += k.Size
	}
	if len(c.Chunks) > 0 && sum != len(c.Body) {
		t.Errorf("%s: chunks add up to %d of %d bytes", name, sum, len(c.Body))
	}
	if len(c.Header["Content-Encoding"]) > 0 {
		t.Errorf("%s: the view says that it is compressed", name)
	}
	if h := c.Header["Authorization"]; len(h) != 1 || h[0] != redact.HeaderMarker || !c.Redacted {
		t.Errorf("%s: authorization = %q, redacted = %v", name, h, c.Redacted)
	}
}

// everything is every byte below dir, and what its packs unpack to.
func everything(t testing.TB, s *Store, dir string) []byte {
	t.Helper()
	var all bytes.Buffer
	err := filepath.WalkDir(dir, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(name)
		all.WriteString(name)
		all.Write(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.packs.Each(func(piece []byte) { all.Write(piece) }); err != nil {
		t.Fatal(err)
	}
	return all.Bytes()
}

// checkSecret writes c in both modes and reads it in all ways.
func checkSecret(t *testing.T, s *Store, name string, c mayfly.Content) {
	for _, run := range []string{"run-a", "run-b"} {
		d, err := s.WriteContent(t.Context(), run, c)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return
		}
		view, err := s.Content(t.Context(), d)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		checkView(t, name, view)
		without, err := s.Exact(t.Context(), "run-b", d)
		if err != nil || !reflect.DeepEqual(without, view) {
			t.Errorf("%s: without the key: %v", name, err)
		}
		if run == "run-b" {
			return
		}
		got, err := s.Exact(t.Context(), run, d)
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		sameContent(t, name, got, c)
	}
}

func TestSecretsAreNowhereAndComeBackExactly(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	begun(t, s, "run-a", Encrypted)
	begun(t, s, "run-b", None)
	list := append(canary.Secrets(),
		canary.Secret{Rule: "server-key", Value: exactValue, Text: exactValue},
		canary.Secret{Rule: "server-key", Value: url.QueryEscape(exactValue), Text: "?q=" + url.QueryEscape(exactValue)},
		canary.Secret{Rule: "server-key", Value: hex.EncodeToString([]byte(exactValue)), Text: hex.EncodeToString([]byte(exactValue))},
		canary.Secret{Rule: "server-key", Value: base64.StdEncoding.EncodeToString([]byte(exactValue)), Text: base64.StdEncoding.EncodeToString([]byte(exactValue))},
	)
	var wg sync.WaitGroup
	for _, secret := range list {
		for name, c := range contents(t, secret.Text) {
			wg.Go(func() { checkSecret(t, s, secret.Rule+" as "+name, c) })
		}
	}
	wg.Wait()
	all := everything(t, s, dir)
	if !bytes.Contains(all, []byte("[redacted:")) || !bytes.Contains(all, []byte("application/json")) {
		t.Fatal("the test does not see what is stored")
	}
	for _, secret := range list {
		for _, form := range []string{secret.Value, strings.Trim(quoted(secret.Value), `"`), base64.StdEncoding.EncodeToString([]byte(secret.Value))} {
			if bytes.Contains(all, []byte(form)) {
				t.Errorf("%s: %q is in the directory", secret.Rule, form)
			}
		}
	}
	for _, bad := range []string{"plain-key-value", "Bearer mf-x"} {
		if bytes.Contains(all, []byte(bad)) {
			t.Errorf("%q is in the directory", bad)
		}
	}
}

// What needs no redaction is exact in every mode, compressed or not.
func TestPlainContentsAreExactWithoutAKey(t *testing.T) {
	s := openStore(t, t.TempDir())
	begun(t, s, "run-b", None)
	body := []byte(`{"model":"m","text":"` + strings.Repeat("nothing of note. ", 300) + `"}`)
	for _, coding := range []string{"", "gzip", "zstd", "deflate"} {
		c := mayfly.Content{Header: map[string][]string{"X": {"1", "2"}, "Empty": {}}, Body: body}
		if coding != "" {
			c.Header["Content-Encoding"] = []string{coding}
			c.Body = compressed(t, coding, body)
		}
		c = chunked(c, 40)
		d := write(t, s, "run-b", c)
		got, err := s.Exact(t.Context(), "run-b", d)
		if err != nil {
			t.Fatal(err)
		}
		sameContent(t, coding, got, c)
		view, err := s.Content(t.Context(), d)
		if err != nil || !bytes.Equal(view.Body, body) || view.Redacted {
			t.Errorf("%s: view of %d bytes, %v", coding, len(view.Body), err)
		}
	}
}

func TestADestroyedKeyLeavesTheView(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	begun(t, s, "run-a", Encrypted)
	begun(t, s, "run-a", Encrypted)
	c := mayfly.Content{Header: map[string][]string{}, Body: []byte("the key is " + exactValue)}
	d := write(t, s, "run-a", c)
	st, err := os.Stat(filepath.Join(dir, "keys", "run-a"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("key file: %v, %v", st, err)
	}
	s.Close()
	s = openStore(t, dir)
	if got, err := s.Exact(t.Context(), "run-a", d); err != nil || !bytes.Equal(got.Body, c.Body) {
		t.Fatalf("after reopening: %q, %v", got.Body, err)
	}
	for range 2 {
		if err := s.DestroyKey(t.Context(), "run-a"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "keys", "run-a")); !os.IsNotExist(err) {
		t.Errorf("key file: %v", err)
	}
	check := func() {
		t.Helper()
		got, err := s.Exact(t.Context(), "run-a", d)
		if err != nil || !got.Redacted || string(got.Body) != "the key is [redacted:server-key]" {
			t.Errorf("without the key: %q, %v, %v", got.Body, got.Redacted, err)
		}
	}
	check()
	begun(t, s, "run-a", Encrypted) // another key does not fit
	check()
}

func TestBadNames(t *testing.T) {
	s := openStore(t, t.TempDir())
	for _, run := range []string{"", "../x", "a/b", ".", strings.Repeat("a", 101)} {
		if err := s.Begin(t.Context(), run, Encrypted); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("Begin(%q) = %v", run, err)
		}
		if err := s.DestroyKey(t.Context(), run); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("DestroyKey(%q) = %v", run, err)
		}
		if _, err := s.WriteContent(t.Context(), run, mayfly.Content{}); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("WriteContent(%q) = %v", run, err)
		}
	}
	if err := s.Begin(t.Context(), "run-a", "plain"); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("unknown mode: %v", err)
	}
	for digest, kind := range map[string]mayfly.Kind{
		"": mayfly.Invalid, "sha256:00": mayfly.Invalid, "sha256:" + strings.Repeat("0", 64): mayfly.NotFound,
	} {
		if _, err := s.Content(t.Context(), digest); mayfly.KindOf(err) != kind {
			t.Errorf("Content(%q) = %v, want %s", digest, err, kind)
		}
	}
}

// Every flipped byte is either harmless or told.
func TestDamageIsTold(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	begun(t, s, "run-a", Encrypted)
	c := chunked(mayfly.Content{Header: map[string][]string{"A": {"b"}}, Body: stream("say " + exactValue + strings.Repeat(" and more", 40))}, 90)
	d := write(t, s, "run-a", c)
	write(t, s, "run-a", mayfly.Content{Body: []byte("after it")})
	want, err := s.Content(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	name := filepath.Join(dir, "packs", "00000001.pack")
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	for at := 0; at < len(good); at += 53 {
		bad := bytes.Clone(good)
		bad[at] ^= 1
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s := openStore(t, dir)
		view, err1 := s.Content(t.Context(), d)
		exact, err2 := s.Exact(t.Context(), "run-a", d)
		if err1 == nil && !reflect.DeepEqual(view, want) {
			t.Errorf("byte %d: another view", at)
		}
		if err2 == nil && !bytes.Equal(exact.Body, c.Body) {
			t.Errorf("byte %d: another body", at)
		}
		if err1 != nil || err2 != nil {
			told++
		}
		s.Close()
	}
	if told == 0 {
		t.Error("no damage was told")
	}
}

func FuzzRecord(f *testing.F) {
	dir := f.TempDir()
	s := openStore(f, dir)
	begun(f, s, "run-a", Encrypted)
	d := write(f, s, "run-a", chunked(mayfly.Content{Header: map[string][]string{"A": {exactValue}}, Body: stream(exactValue)}, 40))
	rec, _ := s.record(f.Context(), d)
	data, _ := s.packs.Record(rec.digest)
	f.Add(data)
	f.Add(rec.summary.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		parseRecord(rec.digest, b)
		if sum, err := parseSummary(b); err == nil {
			again, err := parseSummary(sum.encode())
			if err != nil || !reflect.DeepEqual(again, sum) {
				t.Errorf("%+v became %+v, %v", sum, again, err)
			}
		}
		parseHeader(b)
		restore(b, rec, mayfly.Content{Header: map[string][]string{}, Body: []byte("abc")})
	})
}

// FuzzRoundTrip plants a secret in a body and wants it back, and nowhere else.
func FuzzRoundTrip(f *testing.F) {
	dir := f.TempDir()
	s := openStore(f, dir)
	begun(f, s, "run-a", Encrypted)
	for _, c := range contents(f, "x") {
		f.Add(c.Body, 3, 5, "gzip")
	}
	f.Fuzz(func(t *testing.T, body []byte, at, size int, coding string) {
		if at >= 0 && at < len(body) && !bytes.Contains(body, []byte(exactValue[:5])) {
			body = append(append(bytes.Clone(body[:at]), exactValue...), body[at:]...)
		}
		c := mayfly.Content{Header: map[string][]string{"Content-Encoding": {coding}}, Body: body}
		if size > 0 {
			c = chunked(c, size)
		}
		d, err := s.WriteContent(t.Context(), "run-a", c)
		if err != nil {
			t.Fatal(err)
		}
		got, err := s.Exact(t.Context(), "run-a", d)
		if err != nil {
			t.Fatal(err)
		}
		sameContent(t, "exact", got, c)
		view, err := s.Content(t.Context(), d)
		if err != nil {
			t.Fatal(err)
		}
		if at >= 0 && at < len(body) && bytes.Contains(view.Body, []byte(exactValue)) && bytes.Count(body, []byte(exactValue[:5])) == 1 {
			t.Errorf("the secret is in %q", view.Body)
		}
	})
}

func TestCancelledWritesWriteNothing(t *testing.T) {
	s := openStore(t, t.TempDir())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.WriteContent(ctx, "run-a", mayfly.Content{Header: http.Header{}, Body: []byte("x")}); err == nil {
		t.Error("written in spite of it")
	}
	if n, _ := s.packs.Size(); n != 0 {
		t.Errorf("bytes = %d", n)
	}
}
