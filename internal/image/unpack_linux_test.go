package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

func TestLayersAreAppliedInOrder(t *testing.T) {
	needRoot(t)
	m := makeImage(t,
		layer{tarOf(t, dir("usr"), dir("usr/bin"), file("usr/bin/sh", "shell"), link("bin", "usr/bin"), dir("srv"), file("srv/old", "old"), file("gone", "x"), device("dev/null")), "gzip"},
		layer{tarOf(t, file("srv/.wh.old", ""), file(".wh.gone", ""), file("srv/new", "new"), file("bin/ls", "list")), "zstd"},
		layer{tarOf(t, file("srv/new", "newer")), ""},
	)
	stream, digest := m.pack(t)
	root := t.TempDir()
	config, err := Unpack(t.Context(), bytes.NewReader(stream), digest, root, Limits{})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := paths(t, root), []string{"bin", "srv", "srv/new", "usr", "usr/bin", "usr/bin/ls", "usr/bin/sh"}; !slices.Equal(got, want) {
		t.Errorf("tree = %q, want %q", got, want)
	}
	if got := read(t, filepath.Join(root, "srv/new")); got != "newer" {
		t.Errorf("srv/new = %q, want newer", got)
	}
	if !slices.Equal(config.Env, []string{"PATH=/usr/bin", "LANG=C"}) || config.WorkingDir != "/srv" || config.Platform != ThisPlatform() {
		t.Errorf("config = %+v, want what the image says", config)
	}
}

func TestRepeatedLayersAreAppliedEachTime(t *testing.T) {
	needRoot(t)
	add := layer{tarOf(t, file("f", "x")), "gzip"}
	stream, digest := makeImage(t, add, layer{tarOf(t, file(".wh.f", "")), "gzip"}, add).pack(t)
	root := t.TempDir()
	if _, err := Unpack(t.Context(), bytes.NewReader(stream), digest, root, Limits{}); err != nil {
		t.Fatal(err)
	}
	if got := paths(t, root); !slices.Equal(got, []string{"f"}) {
		t.Errorf("tree = %q, want f", got)
	}
}

// Each spoilt image is refused with a message, and nothing outside the
// directory changes.
func TestBadImagesAreRefused(t *testing.T) {
	needRoot(t)
	plain := func(entries ...entry) func(*testing.T) *made {
		return func(t *testing.T) *made { return makeImage(t, layer{tarOf(t, entries...), "gzip"}) }
	}
	spoilt := func(spoil func(m *made)) func(*testing.T) *made {
		return func(t *testing.T) *made {
			m := makeImage(t, layer{tarOf(t, dir("a"), file("a/f", "content")), "gzip"}, layer{tarOf(t, file("a/g", "content")), "zstd"})
			spoil(m)
			return m
		}
	}
	for name, c := range map[string]struct {
		image   func(*testing.T) *made
		kind    mayfly.Kind
		message string
	}{
		"traversal by name": {plain(file("../../outside/x", "x")), mayfly.Invalid, "contains .."},
		"traversal by path": {plain(file("/outside/x", "x")), mayfly.Invalid, "absolute"},
		"traversal by link": {plain(link("l", "../outside"), file("l/precious", "x")), mayfly.Invalid, "nowhere"},
		"traversal by hard": {plain(link("l", "../outside"), hardLink("h", "l/precious")), mayfly.Invalid, "hard link"},
		"device":            {plain(device("etc/null")), mayfly.Invalid, "device node"},
		"too many bytes":    {plain(file("big", strings.Repeat("x", 2<<20))), mayfly.Exhausted, "bytes"},
		"too many files":    {plain(slices.Repeat([]entry{file("f", "")}, 1001)...), mayfly.Exhausted, "files"},
		"files over two layers": {func(t *testing.T) *made {
			l := layer{tarOf(t, slices.Repeat([]entry{file("f", "")}, 600)...), "gzip"}
			return makeImage(t, l, l)
		}, mayfly.Exhausted, "files"},
		"wrong layer digest": {func(t *testing.T) *made {
			m := makeImage(t, layer{tarOf(t, file("a", "content")), ""})
			m.blobs[1] = bytes.Replace(m.blobs[1], []byte("content"), []byte("CONTENT"), 1)
			return m
		}, mayfly.Invalid, "its content has the digest"},
		"wrong diff id":       {spoilt(func(m *made) { m.config.RootFS.DiffIDs[1] = digestOf(nil); m.seal(t) }), mayfly.Invalid, "unpacked"},
		"bad diff id":         {spoilt(func(m *made) { m.config.RootFS.DiffIDs[1] = "sha256:../../x"; m.seal(t) }), mayfly.Invalid, "not a sha256 digest"},
		"missing diff id":     {spoilt(func(m *made) { m.config.RootFS.DiffIDs = m.config.RootFS.DiffIDs[:1]; m.seal(t) }), mayfly.Invalid, "2 layers"},
		"wrong configuration": {spoilt(func(m *made) { m.blobs[0] = []byte(strings.Replace(string(m.blobs[0]), "/srv", "/SRV", 1)) }), mayfly.Invalid, "has the digest"},
		"lying size":          {spoilt(func(m *made) { m.manifest.Layers[0].Size++ }), mayfly.Invalid, "descriptor says"},
		"negative size":       {spoilt(func(m *made) { m.manifest.Layers[0].Size = -1 }), mayfly.Invalid, "size -1"},
		"huge configuration":  {spoilt(func(m *made) { m.manifest.Config.Size = 1 << 40 }), mayfly.Invalid, "configuration has"},
		"other platform":      {spoilt(func(m *made) { m.config.Architecture = "s390x"; m.seal(t) }), mayfly.Invalid, "linux/s390x"},
		"other system":        {spoilt(func(m *made) { m.config.OS = "windows"; m.seal(t) }), mayfly.Invalid, "windows/"},
		"encrypted":           {spoilt(func(m *made) { m.manifest.Layers[0].MediaType += "+encrypted" }), mayfly.Invalid, "encrypted"},
		"foreign": {spoilt(func(m *made) {
			m.manifest.Layers[0].MediaType = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
		}), mayfly.Invalid, "elsewhere"},
		"unknown layer":    {spoilt(func(m *made) { m.manifest.Layers[0].MediaType = "text/plain" }), mayfly.Invalid, "unknown type"},
		"not an image":     {spoilt(func(m *made) { m.manifest.Config.MediaType = "application/vnd.cncf.helm.config.v1+json" }), mayfly.Invalid, "no image"},
		"schema 1":         {spoilt(func(m *made) { m.manifest.SchemaVersion = 1 }), mayfly.Invalid, "version 1"},
		"gzip called zstd": {spoilt(func(m *made) { m.manifest.Layers[0].MediaType = ociLayer + "+zstd" }), mayfly.Invalid, "layer 0"},
		"damaged gzip":     {spoilt(func(m *made) { m.blobs[1][len(m.blobs[1])-6] ^= 1 }), mayfly.Invalid, "layer 0"},
		"cut gzip":         {spoilt(func(m *made) { m.blobs[1] = m.blobs[1][:40]; m.manifest.Layers[0].Size = 40 }), mayfly.Invalid, "layer 0"},
		"trailing garbage": {spoilt(func(m *made) { m.blobs[1] = append(m.blobs[1], "garbage"...); m.manifest.Layers[0].Size += 7 }), mayfly.Invalid, "layer 0"},
		"digest is a path": {spoilt(func(m *made) { m.manifest.Layers[0].Digest = "sha256:../../../../etc/passwd" }), mayfly.Invalid, "not a sha256 digest"},
		"too many layers": {spoilt(func(m *made) {
			m.manifest.Layers = slices.Repeat(m.manifest.Layers, 300)
			m.blobs = slices.Repeat(m.blobs, 300)
		}), mayfly.Invalid, "600 layers"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			top := t.TempDir()
			root := filepath.Join(top, "root")
			if err := errors.Join(os.Mkdir(root, 0o755), os.Mkdir(filepath.Join(top, "outside"), 0o755), os.WriteFile(filepath.Join(top, "outside/precious"), []byte("precious"), 0o600)); err != nil {
				t.Fatal(err)
			}
			stream, digest := c.image(t).pack(t)
			_, err := Unpack(t.Context(), bytes.NewReader(stream), digest, root, Limits{Bytes: 1 << 20, Files: 1000})
			var e *mayfly.Error
			if !errors.As(err, &e) || e.Kind != c.kind || e.Fix == "" || !strings.Contains(e.Message, c.message) {
				t.Errorf("err = %v (%s), want %s with a hint and %q", err, mayfly.KindOf(err), c.kind, c.message)
			}
			entries, _ := os.ReadDir(filepath.Join(top, "outside"))
			if len(entries) != 1 || read(t, filepath.Join(top, "outside/precious")) != "precious" {
				t.Errorf("outside = %v, want precious untouched", entries)
			}
		})
	}
}

func TestStreamsThatAreNotTheImageAreRefused(t *testing.T) {
	needRoot(t)
	stream, digest := makeImage(t, layer{tarOf(t, file("f", "x")), "gzip"}).pack(t)
	for name, c := range map[string]struct {
		stream []byte
		digest string
	}{
		"another digest": {stream, digestOf([]byte("other"))},
		"no digest":      {stream, ""},
		"digest is path": {stream, "sha256:../../../../../../etc/passwd"},
		"empty":          {nil, digest},
		"not tar":        {bytes.Repeat([]byte("x"), 4096), digest},
		"cut":            {stream[:len(stream)-1800], digest},
		"no blobs":       {tarOf(t, file("oci-layout", "{}"), file("index.json", "{}")), digest},
		"other file":     {tarOf(t, file("etc/passwd", "x")), digest},
		"blob is a link": {tarOf(t, link(blobName(digest), "/etc/passwd")), digest},
		"endless files":  {tarOf(t, slices.Repeat([]entry{file("index.json", "{}")}, 100)...), digest},
		"huge manifest":  {tarOf(t, file(blobName(digest), strings.Repeat(" ", maxJSON+1))), digest},
	} {
		if _, err := Unpack(t.Context(), bytes.NewReader(c.stream), c.digest, t.TempDir(), Limits{}); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%s: %v (%s), want an invalid error", name, err, mayfly.KindOf(err))
		}
	}
}

// A small blob that unpacks to gigabytes is stopped before it does.
func TestBombsAreStopped(t *testing.T) {
	needRoot(t)
	for _, compression := range []string{"gzip", "zstd"} {
		bomb := tarOf(t, file("f", "x"))
		bomb = append(bomb, make([]byte, RatioFrom+16<<20)...) // behind the archive, where no file counts it
		stream, digest := makeImage(t, layer{bomb, compression}).pack(t)
		_, err := Unpack(t.Context(), bytes.NewReader(stream), digest, t.TempDir(), Limits{})
		if mayfly.KindOf(err) != mayfly.Exhausted || !strings.Contains(err.Error(), "out of proportion") {
			t.Errorf("%s: %v, want an exhausted error", compression, err)
		}
	}
}

func TestBrokenStreamsAreNotBlamedOnTheImage(t *testing.T) {
	needRoot(t)
	stream, digest := makeImage(t, layer{tarOf(t, file("f", strings.Repeat("x", 100<<10))), ""}).pack(t)
	for _, n := range []int{100, 3000, 60 << 10} {
		broken := errors.New("connection reset")
		r := io.MultiReader(bytes.NewReader(stream[:n]), errorReader{broken})
		if _, err := Unpack(t.Context(), r, digest, t.TempDir(), Limits{}); !errors.Is(err, broken) {
			t.Errorf("after %d bytes: %v, want %v", n, err, broken)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, bytes.NewReader(stream), digest, t.TempDir(), Limits{}); !errors.Is(err, context.Canceled) {
		t.Errorf("err = %v, want context.Canceled", err)
	}
}

type errorReader struct{ err error }

func (r errorReader) Read([]byte) (int, error) { return 0, r.err }

// An image may have anything where environments have their mount points; none
// of it leads anywhere.
func TestRootsAreFurnishedWhateverTheImageHasThere(t *testing.T) {
	needRoot(t)
	top := t.TempDir()
	root := filepath.Join(top, "root")
	if err := errors.Join(os.Mkdir(root, 0o755), os.MkdirAll(filepath.Join(top, "outside/agent"), 0o755)); err != nil {
		t.Fatal(err)
	}
	stream, digest := makeImage(t, layer{tarOf(t,
		link("etc", "../outside"), link("proc", "/proc"), link("home", "../outside"), link("workspace", "/root"),
		file("tmp", "a file"), link("var", "/var"), dir("run"), file("run/stale", "x"), link("dev", "/dev")), "gzip"}).pack(t)
	if _, err := Unpack(t.Context(), bytes.NewReader(stream), digest, root, Limits{}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"etc": "40755 0:0", "proc": "40555 0:0", "sys": "40555 0:0", "dev": "40755 0:0", "run": "40755 0:0", "tmp": "41777 0:0",
		"workspace": "40755 1000:1000", "home": "40755 0:0", "home/agent": "40755 1000:1000", "var/lib/mayfly-db": "40755 0:0", "var/tmp": "41777 0:0",
		"etc/passwd": "100644 0:0", "etc/resolv.conf": "100644 0:0",
	} {
		if got := stat(t, filepath.Join(root, path)); got != want {
			t.Errorf("%s = %s, want %s", path, got, want)
		}
	}
	if entries, _ := os.ReadDir(filepath.Join(top, "outside")); len(entries) != 1 {
		t.Errorf("outside = %v, want agent alone", entries)
	}
	if got := stat(t, filepath.Join(top, "outside/agent")); got != "40755 0:0" {
		t.Errorf("outside/agent = %s, want 40755 0:0", got)
	}
}

func TestTheAgentIsAddedToTheUsersOfTheImage(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	stream, digest := makeImage(t, layer{tarOf(t, dir("etc"),
		file("etc/passwd", "root:x:0:0:root:/root:/bin/ash\nnode:x:1000:1000::/home/node:/bin/bash\nagent:x:7:7::/:/bin/false\nnobody:x:65534:65534::/:\n"),
		file("etc/group", "root:x:0:\nnode:x:1000:\n"), link("etc/hosts", "/etc/shadow"), link("etc/resolv.conf", "/run/resolv.conf")), "gzip"}).pack(t)
	if _, err := Unpack(t.Context(), bytes.NewReader(stream), digest, root, Limits{}); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		"etc/passwd":   "root:x:0:0:root:/root:/bin/ash\nagent:x:1000:1000::/home/agent:/bin/sh\nnode:x:1000:1000::/home/node:/bin/bash\nnobody:x:65534:65534::/:\n",
		"etc/group":    "root:x:0:\nagent:x:1000:\nnode:x:1000:\nnogroup:x:65534:\n",
		"etc/hostname": "mayfly\n",
	} {
		if got := read(t, filepath.Join(root, path)); got != want {
			t.Errorf("%s = %q, want %q", path, got, want)
		}
	}
	for _, name := range []string{"etc/hosts", "etc/resolv.conf"} {
		if got := stat(t, filepath.Join(root, name)); got != "100644 0:0" {
			t.Errorf("%s = %s, want a file", name, got)
		}
	}
}

func stat(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		t.Fatal(path, err)
	}
	return strings.Join([]string{oct(st.Mode), " ", dec(st.Uid), ":", dec(st.Gid)}, "")
}

func FuzzUnpack(f *testing.F) {
	needRoot(f)
	stream, digest := makeImage(f, layer{tarOf(f, dir("d"), file("d/f", "x"), file(".wh.d", "")), "gzip"}, layer{tarOf(f, link("l", "/")), "zstd"}).pack(f)
	f.Add(stream)
	f.Add(stream[:len(stream)/2])
	f.Fuzz(func(t *testing.T, stream []byte) {
		_, err := Unpack(t.Context(), bytes.NewReader(stream), digest, t.TempDir(), Limits{Bytes: 1 << 20, Files: 100})
		if k := mayfly.KindOf(err); err != nil && k != mayfly.Invalid && k != mayfly.Exhausted {
			t.Errorf("kind of %v = %s, want invalid or exhausted", err, k)
		}
	})
}

// FuzzManifest reaches behind the digests, which random bytes never match.
func FuzzManifest(f *testing.F) {
	needRoot(f)
	m := makeImage(f, layer{tarOf(f, file("f", "x")), ""})
	stream, digest := m.pack(f)
	_ = stream
	f.Add([]byte(`{"schemaVersion":2,"config":{"mediaType":"`+ociConfig+`","digest":"`+digest+`","size":1},"layers":[]}`), m.blobs[0], m.blobs[1])
	f.Fuzz(func(t *testing.T, manifest, config, blob []byte) {
		stream := tarOf(t, file(blobName(digestOf(manifest)), string(manifest)), file(blobName(digestOf(config)), string(config)), file(blobName(digestOf(blob)), string(blob)))
		_, err := Unpack(t.Context(), bytes.NewReader(stream), digestOf(manifest), t.TempDir(), Limits{Bytes: 1 << 20, Files: 100})
		if k := mayfly.KindOf(err); err != nil && k != mayfly.Invalid && k != mayfly.Exhausted {
			t.Errorf("kind of %v = %s, want invalid or exhausted", err, k)
		}
	})
}
