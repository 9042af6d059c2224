package manifest

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

func digestOf(c string) string { return "sha256:" + strings.Repeat(c, 64) }

func sample(t *testing.T) mayfly.Lock {
	t.Helper()
	m, err := Parse("shop/mayfly.yaml", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	l, err := Resolve(m,
		mayfly.LockedBase{Kind: "image", Reference: "debian:12", Digest: digestOf("a")},
		mayfly.LockedWorkspace{Commit: strings.Repeat("c", 40), Digest: digestOf("b"), Files: 12, Uncommitted: 2},
		map[string]string{"go.sum": digestOf("1"), "odd\n\xff\"/go.sum": digestOf("2")}, 1700000000)
	if err != nil {
		t.Fatal(err)
	}
	l.Model = &mayfly.LockedModel{Ref: m.Model, Digest: digestOf("2")}
	return l
}

func TestLockSurvivesARoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), LockFile)
	want := sample(t)
	for range 2 { // the second one replaces the first
		if err := WriteLock(path, want); err != nil {
			t.Fatal(err)
		}
		got, err := ReadLock(path)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("ReadLock = %+v, want %+v", got, want)
		}
	}
	if names, _ := filepath.Glob(filepath.Join(filepath.Dir(path), ".*")); len(names) > 0 {
		t.Errorf("left behind: %v", names)
	}
}

func TestLockIsReadableAndStable(t *testing.T) {
	a, err := FormatLock(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	b, _ := FormatLock(sample(t))
	if !bytes.Equal(a, b) {
		t.Errorf("two locks of the same thing differ:\n%s\n%s", a, b)
	}
	for _, line := range []string{`    "memory": "512MiB",`, `  "ttl": "1d12h",`, `  "seed": 18446744073709551615,`, `    "go.sum": "sha256:1111`, `    "go mod download",`} {
		if !strings.Contains(string(a), line) {
			t.Errorf("the lock lacks %q:\n%s", line, a)
		}
	}
}

// What the prepared volume depends on changes the template, and nothing else
// does.
func TestTemplateCoversWhatTheVolumeDependsOn(t *testing.T) {
	base := sample(t)
	for name, c := range map[string]struct {
		change func(*mayfly.Lock)
		want   bool
	}{
		"nothing":          {func(l *mayfly.Lock) {}, false},
		"base digest":      {func(l *mayfly.Lock) { l.Base.Digest = digestOf("9") }, true},
		"base kind":        {func(l *mayfly.Lock) { l.Base.Kind = "host" }, true},
		"reference":        {func(l *mayfly.Lock) { l.Base.Reference = "debian:latest" }, false},
		"commit":           {func(l *mayfly.Lock) { l.Workspace.Commit = strings.Repeat("d", 40) }, true},
		"workspace digest": {func(l *mayfly.Lock) { l.Workspace.Digest = digestOf("9") }, true},
		"counts":           {func(l *mayfly.Lock) { l.Workspace.Files, l.Workspace.Uncommitted = 1, 1 }, false},
		"depth":            {func(l *mayfly.Lock) { l.Workspace.Depth = 0 }, true},
		"lockfile":         {func(l *mayfly.Lock) { l.Lockfiles = map[string]string{"go.sum": digestOf("9")} }, true},
		"setup order":      {func(l *mayfly.Lock) { l.Setup = []string{l.Setup[1], l.Setup[0]} }, true},
		"env":              {func(l *mayfly.Lock) { l.Env = map[string]string{"PORT": "8081"} }, true},
		"seed":             {func(l *mayfly.Lock) { l.Seed-- }, true}, // differs only beyond the precision of a float
		"epoch":            {func(l *mayfly.Lock) { l.Epoch++ }, true},
		"nested":           {func(l *mayfly.Lock) { l.Nested = false }, true},
		"name":             {func(l *mayfly.Lock) { l.Name = "other" }, false},
		"limits":           {func(l *mayfly.Lock) { l.Limits.Memory *= 2 }, false},
		"model":            {func(l *mayfly.Lock) { l.Model = nil }, false},
		"recording":        {func(l *mayfly.Lock) { l.Exact = "" }, false},
		"ttl":              {func(l *mayfly.Lock) { l.TTL *= 2 }, false},
	} {
		l := sample(t)
		c.change(&l)
		got, err := templateDigest(l)
		if err != nil {
			t.Fatal(err)
		}
		if (got != base.Template) != c.want {
			t.Errorf("%s changes the template = %v, want %v", name, got != base.Template, c.want)
		}
	}
}

// The rule is part of the format: this digest may only change together with
// lockVersion.
func TestTemplateDigestIsStable(t *testing.T) {
	const want = "sha256:8c55d8a09f4a7e9d01d890771b410184f96467a8af059afed1c0d4bdb822bf71"
	if got := sample(t).Template; got != want {
		t.Errorf("template = %s, want %s", got, want)
	}
}

func TestBadLocksSayWhereAndWhat(t *testing.T) {
	data, err := FormatLock(sample(t))
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	for _, c := range []struct{ old, new, message string }{
		{`"version": 1,`, `"version": 2,`, "mayfly.lock:1:1: the lock has version 2"},
		{`"version": 1,`, `"version": 1, "version": 1,`, `mayfly.lock:2:17: "version" is set twice`},
		{`"version": 1,`, ``, `mayfly.lock:1:1: the field "version" is missing`},
		{`"seed"`, `"sead"`, `unknown field "sead"`},
		{`"512MiB"`, `"512Mib"`, `mayfly.lock:34:15: limits.memory: bad size`},
		{`"1d12h"`, `3600`, `ttl is an integer`},
		{digestOf("1"), "sha256:11", `is not a digest`},
		{`"image"`, `"tape"`, `neither host nor image`},
		{`"go mod download"`, `"go mod verify"`, "its content gives sha256:"},
		{`{`, ``, "mayfly.lock:"},
		{"}\n", "}\n{}", "something follows"},
		{good, "", "mayfly.lock:1:1: the file ends in the middle"},
		{good, "[]", "the file is a list, not a mapping"},
		{good, "null", "not a mapping"},
		{good, good[:len(good)/2], "mayfly.lock:"},
		{good, strings.Repeat("[", 1<<20), "too deeply"},
		{`"PORT"`, `"HOME"`, "the variable HOME is reserved"},
		{`"8080"`, "\"\xff\"", "not valid UTF-8"},
	} {
		bad := strings.Replace(good, c.old, c.new, 1)
		if bad == good {
			t.Fatalf("the lock lacks %q", c.old)
		}
		_, err := ParseLock("mayfly.lock", []byte(bad))
		var e *mayfly.Error
		if !errors.As(err, &e) || e.Kind != mayfly.Invalid || e.Fix == "" || !strings.Contains(e.Message, c.message) || !strings.HasPrefix(e.Message, "mayfly.lock:") {
			t.Errorf("lock with %.60q for %.60q: %v, want an invalid error with a hint and %q", c.new, c.old, err, c.message)
		}
	}
}

func TestMissingLockSaysHowToWriteIt(t *testing.T) {
	_, err := ReadLock(filepath.Join(t.TempDir(), LockFile))
	var e *mayfly.Error
	if !errors.As(err, &e) || !errors.Is(err, fs.ErrNotExist) || !strings.Contains(e.Fix, "mayfly lock") {
		t.Errorf("err = %v, want fs.ErrNotExist with the hint mayfly lock", err)
	}
}

func TestLockIsNotWrittenOverADirectory(t *testing.T) {
	path := filepath.Join(t.TempDir(), LockFile)
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := WriteLock(path, sample(t)); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("err = %v, want an invalid error", err)
	}
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 1 {
		t.Errorf("entries = %v, want the directory alone", entries)
	}
}

func TestDriftNamesEverythingThatDiffers(t *testing.T) {
	old := sample(t)
	for name, c := range map[string]struct {
		change func(*mayfly.Lock)
		want   []string // pieces of the sentences, in order
	}{
		"nothing":    {func(l *mayfly.Lock) {}, nil},
		"new commit": {func(l *mayfly.Lock) { l.Workspace.Commit, l.Template = strings.Repeat("d", 40), digestOf("d") }, nil},
		"image":      {func(l *mayfly.Lock) { l.Base.Digest = digestOf("9") }, []string{"the image debian:12 was sha256:aaaaaaaaaaaa and is sha256:999999999999 ("}},
		"reference":  {func(l *mayfly.Lock) { l.Base.Reference = "debian:13" }, []string{"the base was image debian:12 and is image debian:13"}},
		"host":       {func(l *mayfly.Lock) { l.Base = mayfly.LockedBase{Kind: "host", Digest: digestOf("9")} }, []string{"the base was image debian:12 and is host"}},
		"lockfiles": {func(l *mayfly.Lock) {
			l.Lockfiles = map[string]string{"go.sum": digestOf("3"), "new.lock": digestOf("4")}
		}, []string{"lockfile go.sum was sha256:111111111111 and is sha256:333333333333", "lockfile new.lock is new: sha256:444", `lockfile odd\x0a\xff"/go.sum is gone`}},
		"workspace": {func(l *mayfly.Lock) {
			l.Workspace.Digest, l.Workspace.Uncommitted, l.Workspace.Depth = digestOf("8"), 0, 0
		}, []string{"the workspace was sha256:bbbbbbbbbbbb with 12 files at commit cccccccccccc, 2 of them not committed and is sha256:888888888888 with 12 files", "workspace.depth was 50 and is 0"}},
		"setup":     {func(l *mayfly.Lock) { l.Setup = l.Setup[:1] }, []string{`setup[1] is gone: it was "cd web\nnpm ci\n"`}},
		"env":       {func(l *mayfly.Lock) { l.Env = map[string]string{"EMPTY": "x"} }, []string{`the variable EMPTY was "" and is "x"`, "the variable GOFLAGS is gone", "PORT is gone", "VERSION is gone"}},
		"numbers":   {func(l *mayfly.Lock) { l.Seed, l.Epoch = 1, 2 }, []string{"the seed was 18446744073709551615 and is 1", "SOURCE_DATE_EPOCH was 1700000000 and is 2"}},
		"limits":    {func(l *mayfly.Lock) { l.Limits = mayfly.DefaultLimits }, []string{"limits.cpu was 0.5 and is 2", "limits.memory was 512MiB and is 4GiB", "limits.pids", "limits.disk", "limits.output"}},
		"model":     {func(l *mayfly.Lock) { l.Model = &mayfly.LockedModel{Ref: "reviewer@3", Digest: digestOf("3")} }, []string{"the model was reviewer@2 sha256:222222222222 and is reviewer@3 sha256:333333333333"}},
		"no model":  {func(l *mayfly.Lock) { l.Model = nil }, []string{"the model is gone: it was reviewer@2"}},
		"recording": {func(l *mayfly.Lock) { l.Exact = "" }, []string{"recording.exact was none and is encrypted"}},
		"times":     {func(l *mayfly.Lock) { l.TTL, l.Idle, l.Nested = mayfly.DefaultTTL, mayfly.DefaultIdle, false }, []string{"ttl was 1d12h and is 1h", "idle was 1m30s and is 15m", "nested_sandboxes was true and is false"}},
	} {
		now := sample(t)
		c.change(&now)
		got := Drift(old, now)
		if len(got) != len(c.want) {
			t.Errorf("%s: Drift = %v, want %d differences", name, got, len(c.want))
			continue
		}
		for i, d := range got {
			if !strings.Contains(d.String(), c.want[i]) || d.Fix == "" {
				t.Errorf("%s: difference %d = %q, want %q and a fix", name, i, d, c.want[i])
			}
		}
		err := DriftError(got)
		if len(got) == 0 != (err == nil) || err != nil && (mayfly.KindOf(err) != mayfly.Drift || strings.Count(err.Error(), "\n") != len(got)) {
			t.Errorf("%s: DriftError = %v", name, err)
		}
	}
}

func TestResolveRefusesWhatALockCannotHold(t *testing.T) {
	base, ws := mayfly.LockedBase{Kind: "host", Digest: digestOf("a")}, mayfly.LockedWorkspace{Digest: digestOf("b")}
	if _, err := Resolve(Manifest{Env: map[string]string{"A": "\xff"}}, base, ws, nil, 0); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("env that is not UTF-8: %v, want an invalid error", err)
	}
	if _, err := Resolve(Manifest{Env: map[string]string{"HOME": "/"}}, base, ws, nil, 0); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("reserved variable: %v, want an invalid error", err)
	}
	if _, err := Resolve(Manifest{}, mayfly.LockedBase{Kind: "host"}, ws, nil, 0); err == nil {
		t.Error("Resolve accepts a base without digest")
	}
	if _, err := Resolve(Manifest{}, base, ws, map[string]string{"go.sum": "x"}, 0); err == nil {
		t.Error("Resolve accepts a lockfile without digest")
	}
}

func FuzzLock(f *testing.F) {
	var m Manifest
	l, err := Resolve(m, mayfly.LockedBase{Kind: "host", Digest: digestOf("a")}, mayfly.LockedWorkspace{Digest: digestOf("b")}, nil, 0)
	if err != nil {
		f.Fatal(err)
	}
	data, _ := FormatLock(l)
	f.Add(data)
	f.Add([]byte(`{"a": [1, true, null, {"b": "\u00e4"}]} x`))
	f.Fuzz(func(t *testing.T, data []byte) {
		l, err := ParseLock("mayfly.lock", data)
		if err != nil {
			if mayfly.KindOf(err) != mayfly.Invalid {
				t.Errorf("kind of %v = %s, want invalid", err, mayfly.KindOf(err))
			}
			return
		}
		again, err := FormatLock(l)
		if err != nil {
			t.Fatal(err)
		}
		if back, err := ParseLock("mayfly.lock", again); err != nil || !reflect.DeepEqual(back, l) {
			t.Errorf("after a round trip: %+v, %v, want %+v", back, err, l)
		}
	})
}

func BenchmarkParseLock(b *testing.B) {
	m, err := Parse("shop/mayfly.yaml", []byte(full))
	if err != nil {
		b.Fatal(err)
	}
	l, err := Resolve(m, mayfly.LockedBase{Kind: "host", Digest: digestOf("a")}, mayfly.LockedWorkspace{Digest: digestOf("b")}, nil, 0)
	if err != nil {
		b.Fatal(err)
	}
	data, err := FormatLock(l)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := ParseLock("mayfly.lock", data); err != nil {
			b.Fatal(err)
		}
	}
}

// Whoever may reach the server may send it a lock that this package would not
// have made.
func TestVerifyLockRefusesServicesWrittenByHand(t *testing.T) {
	whole, err := lockOf(t, "services:\n  cache: {command: [x], port: 7}\n  db: {postgres: 15, mask: mask.sql}\n", map[string]string{"mask.sql": digestOf("1")})
	if err != nil {
		t.Fatal(err)
	}
	for what, change := range map[string]func(*mayfly.Lock){
		"":             func(*mayfly.Lock) {},
		"a name":       func(l *mayfly.Lock) { l.Services[0].Name = "../../x" },
		"a file":       func(l *mayfly.Lock) { l.Services[1].Postgres.Mask = "../../etc/shadow" },
		"a version":    func(l *mayfly.Lock) { l.Services[1].Postgres.Version = "../../tmp" },
		"no command":   func(l *mayfly.Lock) { l.Services[0].Command = nil },
		"a timeout":    func(l *mayfly.Lock) { l.Services[0].Timeout = 1000 * time.Hour },
		"a base":       func(l *mayfly.Lock) { l.Base.Digest = "../../x" },
		"200 services": func(l *mayfly.Lock) { l.Services = slices.Repeat(l.Services, 100) },
	} {
		l := whole
		l.Services = slices.Clone(whole.Services)
		postgres := *whole.Services[1].Postgres
		l.Services[1].Postgres = &postgres
		change(&l)
		if l.Template, err = templateDigest(l); err != nil {
			t.Fatal(err)
		}
		err := VerifyLock(l)
		var e *mayfly.Error
		if refused := errors.As(err, &e) && e.Kind == mayfly.Invalid; refused != (what != "") || err != nil && !refused {
			t.Errorf("%q: got = %v", what, err)
		}
	}
}
