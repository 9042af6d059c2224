package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
}

// entry is a tar entry of a hand-made layer.
type entry struct {
	tar.Header
	content string
}

func file(name, content string) entry {
	return entry{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(content))}, content}
}
func dir(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755}, ""}
}
func link(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target}, ""}
}
func hardLink(name, target string) entry {
	return entry{tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target}, ""}
}
func device(name string) entry {
	return entry{tar.Header{Typeflag: tar.TypeChar, Name: name, Mode: 0o666, Devmajor: 1, Devminor: 3}, ""}
}

func tarOf(t testing.TB, entries ...entry) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&e.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, e.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t testing.TB, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(data, nil)
}

// made is an image made by hand, to be spoilt before it is packed.
type made struct {
	config   configFile
	manifest manifest
	blobs    [][]byte // configuration and layers
}

// layer is a layer's content and how it is compressed.
type layer struct {
	tar         []byte
	compression string
}

func makeImage(t testing.TB, layers ...layer) *made {
	t.Helper()
	m := &made{manifest: manifest{SchemaVersion: 2, MediaType: ociManifest}, blobs: [][]byte{nil}}
	m.config.Platform = Platform{OS: "linux", Architecture: runtime.GOARCH}
	m.config.Config.Env = []string{"PATH=/usr/bin", "LANG=C"}
	m.config.Config.WorkingDir = "/srv"
	m.config.RootFS.Type = "layers"
	for _, l := range layers {
		blob := l.tar
		switch l.compression {
		case "gzip":
			blob = gzipped(t, blob)
		case "zstd":
			blob = zstded(t, blob)
		}
		mediaType := ociLayer
		if l.compression != "" {
			mediaType += "+" + l.compression
		}
		m.config.RootFS.DiffIDs = append(m.config.RootFS.DiffIDs, digestOf(l.tar))
		m.manifest.Layers = append(m.manifest.Layers, descriptor{MediaType: mediaType, Digest: digestOf(blob), Size: int64(len(blob))})
		m.blobs = append(m.blobs, blob)
	}
	m.seal(t)
	return m
}

// seal computes what depends on the configuration.
func (m *made) seal(t testing.TB) {
	t.Helper()
	raw, err := json.Marshal(m.config)
	if err != nil {
		t.Fatal(err)
	}
	m.blobs[0] = raw
	m.manifest.Config = descriptor{MediaType: ociConfig, Digest: digestOf(raw), Size: int64(len(raw))}
}

// pack makes the stream that Unpack reads.
func (m *made) pack(t testing.TB) (stream []byte, digest string) {
	t.Helper()
	raw, err := json.Marshal(m.manifest)
	if err != nil {
		t.Fatal(err)
	}
	digest = digestOf(raw)
	entries := []entry{file("oci-layout", "{}"), file("index.json", "{}"), file(blobName(digest), string(raw))}
	for i, d := range append([]descriptor{m.manifest.Config}, m.manifest.Layers...) {
		entries = append(entries, file(blobName(d.Digest), string(m.blobs[i])))
	}
	return tarOf(t, entries...), digest
}

// paths lists what is below a directory, without what Furnish made.
func paths(t testing.TB, root string) []string {
	t.Helper()
	var all []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, path)
		if !slices.Contains(furniture, rel) {
			all = append(all, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

var furniture = []string{".", "dev", "etc", "etc/group", "etc/hostname", "etc/hosts", "etc/passwd", "etc/resolv.conf", "home", "home/agent", "proc", "run", "sys", "tmp", "var", "var/lib", "var/lib/mayfly-db", "var/tmp", "workspace"}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
