package manifest

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"

	"mayfly.dev/mayfly"
)

const full = `# everything
name: web-shop
base:
  image: debian:12
workspace:
  uncommitted: false
  depth: 50
lockfiles: [go.sum, "web/**/package-lock.json"]
setup:
  - go mod download
  - |
    cd web
    npm ci
env:
  GOFLAGS: -mod=readonly
  PORT: 8080
  VERSION: 1.10
  EMPTY: ""
seed: 18446744073709551615
limits:
  cpu: 0.5
  memory: 512MiB
  pids: 0x100
  disk: 1.5GiB
  output: 1048576
ttl: 1d12h
idle: 90s
nested_sandboxes: true
model: reviewer@2
recording:
  exact: none
`

func TestEveryFieldIsRead(t *testing.T) {
	got, err := Parse("dir/mayfly.yaml", []byte(full))
	if err != nil {
		t.Fatal(err)
	}
	want := Manifest{
		Path: "dir/mayfly.yaml", Dir: "dir", Name: "web-shop",
		Base:      Base{Kind: ImageBase, Image: "debian:12"},
		Workspace: Workspace{Depth: 50},
		Lockfiles: []string{"go.sum", "web/**/package-lock.json"},
		Setup:     []string{"go mod download", "cd web\nnpm ci\n"},
		Env:       map[string]string{"GOFLAGS": "-mod=readonly", "PORT": "8080", "VERSION": "1.10", "EMPTY": ""},
		Seed:      1<<64 - 1,
		Limits:    mayfly.Limits{CPU: 0.5, Memory: 512 << 20, PIDs: 256, Disk: 3 << 29, Output: 1 << 20},
		TTL:       36 * time.Hour, Idle: 90 * time.Second, Nested: true,
		Model: "reviewer@2", Exact: mayfly.ExactNone,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("Parse(full) = %+v, want %+v", got, want)
	}
}

func TestWithoutManifestDefaultsApply(t *testing.T) {
	for dir, name := range map[string]string{
		"shop": "shop", "My Shop (2)": "my-shop-2", "...": "workspace", "äöü": "workspace", "-a-": "a",
		strings.Repeat("x", 100): strings.Repeat("x", 63), strings.Repeat("y", 62) + "-z": strings.Repeat("y", 62),
	} {
		dir = filepath.Join(t.TempDir(), dir)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		m, err := Load(dir)
		if err != nil {
			t.Fatal(err)
		}
		if m.Name != name || mayfly.CheckName(m.Name) != nil {
			t.Errorf("name of %q = %q, want %q", dir, m.Name, name)
		}
		if m.Base.Kind != HostBase || !m.Workspace.Uncommitted || m.TTL != mayfly.DefaultTTL || m.Idle != mayfly.DefaultIdle || m.Limits != mayfly.DefaultLimits {
			t.Errorf("Load(%q) = %+v, want the defaults", dir, m)
		}
	}
}

func TestManifestsWithoutContentGiveDefaults(t *testing.T) {
	for _, content := range []string{"", "\n", "# only a remark\n", "---\n", "\xef\xbb\xbf", "null\n", "{}\n", "\xef\xbb\xbfname: x\n"} {
		m, err := Parse("shop/mayfly.yaml", []byte(content))
		if err != nil || m.Limits != mayfly.DefaultLimits {
			t.Errorf("Parse(%q) = %+v, %v, want the defaults", content, m, err)
		}
	}
}

// Each bad manifest has the place where the error is, a piece of its message
// and a piece of its hint.
func TestBadManifestsSayWhereAndWhat(t *testing.T) {
	for _, c := range []struct{ content, at, message, hint string }{
		{"nam: x", "1:1", `unknown field "nam"`, "did you mean name?"},
		{"name: x\nlimit:\n  cpu: 1", "2:1", `unknown field "limit"`, "limits"},
		{"limits:\n  Memory: 1GiB", "2:3", `unknown field "limits.Memory"`, "limits.memory"},
		{"nestedSandboxes: true", "1:1", "unknown field", "nested_sandboxes"},
		{"frobnicate: 1", "1:1", "unknown field", "known fields here: base, env"},
		{"name: X", "1:7", "bad name", "lower-case"},
		{"name: 12", "1:7", "name is an integer, not a string", "quotes"},
		{"name:", "1:", "name is nothing", "remove the field"},
		{"name: [a]", "1:7", "name is a list", "string"},
		{"name: a\nname: b", "2:1", `"name" is set twice, first in line 1`, "remove one"},
		{"env:\n  A: 1\n  B: 2\n  A: 3", "4:3", `"A" is set twice`, ""},
		{"base: debian", "1:7", `base is "debian"`, "image:"},
		{"base:\n  image: \"a b\"", "2:10", "bad image reference", "spaces"},
		{"base:\n  image: docker://debian", "2:10", "begins with docker://", "without a scheme"},
		{"base:\n  image: 'oci:'", "2:10", "no path", ""},
		{"base: {}", "1:7", "no image", ""},
		{"base: [host]", "1:7", "base is a list", ""},
		{"setup: go test", "1:8", "setup is a string, not a list", ""},
		{"setup:\n  - go test\n  - 3", "3:5", "setup[1] is an integer", "quotes"},
		{"setup:\n  - ''", "2:5", "setup[0] is empty", ""},
		{"setup: [\"a\\0b\"]", "1:9", "NUL", ""},
		{"env: [A=1]", "1:6", "env is a list", ""},
		{"env:\n  A: yes\n  B: true", "3:6", "env.B is a boolean", "quotes"},
		{"env:\n  A:", "2:", "env.A is nothing", "quotes"},
		{"env:\n  HOME: /root", "2:3", "the variable HOME is reserved", "/home/agent"},
		{"env:\n  MAYFLY_TOKEN: x", "2:3", "reserved", "MAYFLY_"},
		{"env:\n  1A: x", "2:3", "bad variable name", ""},
		{"env:\n  \"A=B\": x", "2:3", "bad variable name", ""},
		{"env:\n  A: \"x\\0y\"", "2:3", "NUL", ""},
		{"seed: -1", "1:7", "out of range", "from 0"},
		{"seed: 18446744073709551616", "1:7", "", ""},
		{"seed: 1.5", "1:7", "seed is a number, not an integer", ""},
		{"seed: 'x'", "1:7", "seed is a string", ""},
		{"limits: 4", "1:9", "limits is an integer, not a mapping", "cpu, disk"},
		{"limits:\n  cpu: 0", "2:8", "out of range", "0.01"},
		{"limits:\n  cpu: .nan", "2:8", "out of range", ""},
		{"limits:\n  cpu: .inf", "2:8", "out of range", ""},
		{"limits:\n  cpu: two", "2:8", "cpu is a string", "cores"},
		{"limits:\n  memory: 4G", "2:11", `bad size "4G"`, "4GiB"},
		{"limits:\n  memory: -4GiB", "2:11", "bad size", ""},
		{"limits:\n  memory: 1KiB", "2:11", "too small", "16MiB"},
		{"limits:\n  memory: 9999999TiB", "2:11", "bad size", ""},
		{"limits:\n  pids: 1", "2:9", "out of range", "16"},
		{"limits:\n  pids: 99999999999999999999", "2:9", "", ""},
		{"ttl: 0s", "1:6", "out of range", "1s to 30d"},
		{"ttl: 365d", "1:6", "out of range", "30d"},
		{"ttl: 60", "1:6", "ttl is an integer", "90s"},
		{"ttl: soon", "1:6", `bad duration "soon"`, "15m"},
		{"idle: -5m", "1:7", "bad duration", ""},
		{"model: reviewer@0", "1:8", "bad model", "NAME@VERSION"},
		{"model: Reviewer", "1:8", "bad model", "NAME@VERSION"},
		{"recording: none", "1:12", "a string, not a mapping", ""},
		{"recording:\n  exact: some", "2:10", "recording.exact is", "encrypted or none"},
		{"nested_sandboxes: \"true\"", "1:19", "a string, not true or false", ""},
		{"lockfiles: [/etc/passwd]", "1:13", "absolute", ""},
		{"lockfiles: [../go.sum]", "1:13", "..", ""},
		{"lockfiles: ['[a']", "1:13", "brackets", ""},
		{"workspace:\n  uncommited: false", "2:3", "unknown field", "workspace.uncommitted?"},
		{"workspace:\n  depth: -1", "2:10", "out of range", ""},
		{"- a", "1:1", "a list instead of fields", ""},
		{"just text", "1:1", "a string instead of fields", ""},
		{"name: a\n---\nname: b", "3:1", "second document", ""},
		{"name: &a x\nbase: *a", "1:7", "anchors", "quote"},
		{"env:\n  <<: {A: 1}", "2:3", "merge keys", ""},
		{"name: !!str x", "1:7", "tags", ""},
		{"? name\n: x", "1:1", "explicit keys", ""},
		{"limits:\n\tcpu: 1", "2:1", "", "tabs"},
		{"name: \"x", "1:7", "", "syntax"},
		{"env: {A: 1", "1:6", "", "syntax"},
		{"name: a\n  b: c", "1:7", "", ""},
		{"name: \x01", "1:7", "control character 0x01", ""},
		{"a: 1\nname: \xff", "2:7", "0xff is not valid UTF-8", "UTF-8"},
		{"\xff\xfen\x00", "1:1", "not valid UTF-8", ""},
		{"x: " + strings.Repeat("[", 100), "1:", "too deeply", ""},
		{strings.Repeat("- ", 100), "1:", "too deeply", ""},
	} {
		_, err := Parse("mayfly.yaml", []byte(c.content))
		if err == nil {
			t.Errorf("Parse(%q) succeeds, want an error", c.content)
			continue
		}
		var e *mayfly.Error
		if !errors.As(err, &e) || e.Kind != mayfly.Invalid || e.Fix == "" {
			t.Errorf("Parse(%q) = %#v, want an invalid error with a hint", c.content, err)
			continue
		}
		if !strings.HasPrefix(e.Message, "mayfly.yaml:"+c.at) || !strings.Contains(e.Message, c.message) || !strings.Contains(e.Fix, c.hint) {
			t.Errorf("Parse(%q) = %q, hint %q, want %s, %q, hint %q", c.content, e.Message, e.Fix, c.at, c.message, c.hint)
		}
	}
}

func TestOnlySmallRegularFilesAreRead(t *testing.T) {
	for name, c := range map[string]struct {
		make    func(path string) error
		message string
	}{
		"directory": {func(p string) error { return os.Mkdir(p, 0o755) }, "is a directory"},
		"pipe":      {func(p string) error { return syscall.Mkfifo(p, 0o644) }, "is a named pipe"},
		"loop":      {func(p string) error { return os.Symlink(filepath.Base(p), p) }, "leads to itself"},
		"device":    {func(p string) error { return os.Symlink("/dev/zero", p) }, "is a device"},
		"large":     {func(p string) error { return os.WriteFile(p, make([]byte, MaxBytes+1), 0o644) }, "1048577 bytes"},
		"sparse": {func(p string) error {
			return errors.Join(os.WriteFile(p, nil, 0o644), os.Truncate(p, 1<<40))
		}, "more than the 1048576"},
	} {
		dir := t.TempDir()
		if err := c.make(filepath.Join(dir, File)); err != nil {
			t.Fatal(err)
		}
		_, err := Load(dir)
		var e *mayfly.Error
		if !errors.As(err, &e) || e.Kind != mayfly.Invalid || e.Fix == "" || !strings.Contains(e.Message, c.message) || !strings.Contains(e.Message, dir) {
			t.Errorf("Load of a %s = %v, want an invalid error with a hint and %q", name, err, c.message)
		}
	}
}

func TestOtherFileNameIsPointedOut(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "mayfly.yml"), []byte("name: x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); mayfly.KindOf(err) != mayfly.Invalid || !strings.Contains(err.Error(), "mayfly.yml") {
		t.Errorf("err = %v, want an invalid error naming mayfly.yml", err)
	}
}

func TestRelativeImagePathsStartAtTheManifest(t *testing.T) {
	for image, want := range map[string]string{
		"oci:./image": "oci:repo/image", "oci:/image": "oci:/image", "docker-archive:x.tar": "docker-archive:repo/x.tar",
		"oci-archive:../x.tar": "oci-archive:x.tar", "debian:12": "debian:12", "localhost:5000/a/b@sha256:00": "localhost:5000/a/b@sha256:00",
	} {
		m, err := Parse("repo/mayfly.yaml", []byte("base:\n  image: "+image+"\n"))
		if err != nil {
			t.Fatal(err)
		}
		if got := m.ImageReference(); got != want {
			t.Errorf("image %s = %s, want %s", image, got, want)
		}
	}
}

func TestLockfilesAreFoundByNameOrPattern(t *testing.T) {
	m := Manifest{}
	for name, want := range map[string]bool{
		"go.sum": true, "web/package-lock.json": true, "a/b/uv.lock": true, "go.mod": false, "xgo.sum": false,
		"node_modules/a/yarn.lock": false, "vendor/x/go.sum": false,
	} {
		if got := m.IsLockfile(name); got != want {
			t.Errorf("IsLockfile(%q) = %v, want %v", name, got, want)
		}
	}
	for _, c := range []struct {
		pattern, name string
		want          bool
	}{
		{"*.lock", "a/b/x.lock", true}, {"*.lock", "x.lock/y", false}, {"a/*.lock", "a/x.lock", true},
		{"a/*.lock", "a/b/x.lock", false}, {"**/x.lock", "x.lock", true}, {"**/x.lock", "a/b/x.lock", true},
		{"a/**/x", "a/x", true}, {"a/**/x", "a/b/c/x", true}, {"a/**/x", "b/a/x", false}, {"a/**", "a/b/c", true},
		{"**/a/**/b", "a/a/a/c/b", true}, {"**", "anything/at/all", true}, {"a/?", "a/bc", false}, {"go.sum", "a/go.sum", true},
	} {
		if got := (Manifest{Lockfiles: []string{c.pattern}}).IsLockfile(c.name); got != c.want {
			t.Errorf("pattern %q matches %q = %v, want %v", c.pattern, c.name, got, c.want)
		}
	}
	if (Manifest{Lockfiles: []string{}}).IsLockfile("go.sum") {
		t.Error("an empty list of patterns matches go.sum")
	}
}

func TestUnitsSurviveARoundTrip(t *testing.T) {
	for _, n := range []int64{0, 1, 1023, 1024, 1536, 1 << 20, 1e9, 4 << 30, 1<<50 + 1, 3 << 40} {
		if got, err := ParseSize(FormatSize(n)); err != nil || got != n {
			t.Errorf("ParseSize(%q) = %d, %v, want %d", FormatSize(n), got, err, n)
		}
	}
	for _, d := range []time.Duration{0, 1, time.Second, 90 * time.Second, 1500 * time.Millisecond, time.Hour, 36*time.Hour + time.Minute + 3*time.Second, mayfly.MaxTTL} {
		if got, err := ParseDuration(FormatDuration(d)); err != nil || got != d {
			t.Errorf("ParseDuration(%q) = %v, %v, want %v", FormatDuration(d), got, err, d)
		}
	}
	for _, s := range []string{"", " ", "GiB", "4 Gib", "1e3MiB", "0x10", "4GiB4", "NaN", "Inf", "1..2KiB", "+1"} {
		if n, err := ParseSize(s); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", s, n)
		}
	}
	for _, s := range []string{"", "d", "1", "-1h", "1d-1h", "1h1d", "99999999d", "2562047h16d"} {
		if d, err := ParseDuration(s); err == nil {
			t.Errorf("ParseDuration(%q) = %v, want an error", s, d)
		}
	}
}

// 128 KiB of the worst shapes must not take long, let alone overflow the
// stack.
func TestHostileManifestsAreRefusedQuickly(t *testing.T) {
	for _, piece := range []string{"[", "{", "- ", "? ", "a: ", "[[],", "{a: ", "\"", "'", "&a ", "*a ", "!a ", "|\n", "\n", " ", "\t", "#", "a\n", "- a\n", "%", "---\n", "a: [", "- - ", ",", ":", "]", "a: |\n  b\n", "x: {y: z}\n", "\\", "\"\\x", "<<: ", "a: b\n "} {
		data := []byte(strings.Repeat(piece, MaxBytes/8/len(piece)))
		start := time.Now()
		_, err := Parse("mayfly.yaml", data)
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("128 KiB of %q took %v (%.80v)", piece, took, err)
		} else if testing.Verbose() {
			t.Logf("128 KiB of %q: %v, %.100v", piece, took, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte("a: [b, {c: d}]\n- x\n? y\n"))
	f.Add([]byte("setup:\n  - |\n    a\n   b\n\tc: \"\\u00e4\\x01\""))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Parse("mayfly.yaml", data)
		if err != nil {
			if k := mayfly.KindOf(err); k != mayfly.Invalid && k != mayfly.Unsupported {
				t.Errorf("kind of %v = %s, want invalid", err, k)
			}
			return
		}
		if mayfly.CheckName(m.Name) != nil || m.TTL < mayfly.MinTTL || m.Limits.Memory < minMemory || m.Limits.CPU <= 0 {
			t.Errorf("Parse(%q) = %+v, which is out of bounds", data, m)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	for b.Loop() {
		if _, err := Parse("mayfly.yaml", []byte(full)); err != nil {
			b.Fatal(err)
		}
	}
}
