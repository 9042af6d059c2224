package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"mayfly.dev/mayfly"
)

func oct(n uint32) string { return strconv.FormatUint(uint64(n), 8) }
func dec(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

// real is an image made by a library that others use too, for this machine.
func real(t *testing.T) v1.Image {
	t.Helper()
	img, err := random.Image(1024, 3)
	if err != nil {
		t.Fatal(err)
	}
	return configured(t, img, runtime.GOARCH)
}

func configured(t *testing.T, img v1.Image, arch string) v1.Image {
	t.Helper()
	c, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	c = c.DeepCopy()
	c.OS, c.Architecture, c.Config.Env = "linux", arch, []string{"A=B"}
	img, err = mutate.ConfigFile(img, c)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// serve runs a registry on the loopback and counts requests for blobs.
func serve(t *testing.T) (host string, blobs *atomic.Int64) {
	t.Helper()
	blobs = new(atomic.Int64)
	handler := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			blobs.Add(1)
		}
		switch {
		case strings.Contains(r.URL.Path, "/private/"):
			w.WriteHeader(http.StatusForbidden)
		case strings.Contains(r.URL.Path, "/broken/"):
			w.WriteHeader(http.StatusNotImplemented)
		default:
			handler.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return strings.TrimPrefix(s.URL, "http://"), blobs
}

func push(t *testing.T, ref string, what interface{}) {
	t.Helper()
	r, err := name.ParseReference(ref)
	if err != nil {
		t.Fatal(err)
	}
	switch w := what.(type) {
	case v1.Image:
		err = remote.Write(r, w)
	case v1.ImageIndex:
		err = remote.WriteIndex(r, w)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func multi(t *testing.T) (v1.ImageIndex, v1.Image) {
	t.Helper()
	var x v1.ImageIndex = empty.Index
	var mine v1.Image
	for _, arch := range []string{"s390x", runtime.GOARCH, "mips64le"} {
		img := configured(t, real(t), arch)
		if arch == runtime.GOARCH {
			mine = img
		}
		x = mutate.AppendManifests(x, mutate.IndexAddendum{Add: img, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: arch}}})
	}
	return x, mine
}

// trip resolves a reference, streams the image and unpacks it.
func trip(t *testing.T, ref, wantDigest string, want v1.Image) {
	t.Helper()
	img, err := Resolve(t.Context(), ref, "")
	if err != nil {
		t.Fatalf("Resolve(%q): %v", ref, err)
	}
	defer img.Close()
	if wantDigest != "" && img.Digest != wantDigest {
		t.Errorf("digest of %s = %s, want %s", ref, img.Digest, wantDigest)
	}
	var first, second bytes.Buffer
	if err := errors.Join(img.WriteLayout(t.Context(), &first), img.WriteLayout(t.Context(), &second)); err != nil {
		t.Fatalf("WriteLayout(%q): %v", ref, err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Errorf("two layouts of %s differ", ref)
	}
	root := t.TempDir()
	config, err := Unpack(t.Context(), &first, img.Digest, root, Limits{})
	if err != nil {
		t.Fatalf("Unpack(%q): %v", ref, err)
	}
	if len(config.Env) != 1 || config.Env[0] != "A=B" {
		t.Errorf("env of %s = %q, want A=B", ref, config.Env)
	}
	for name, content := range contents(t, want) {
		if got := read(t, filepath.Join(root, name)); got != content {
			t.Errorf("%s in %s differs", name, ref)
		}
	}
}

// contents are the files of an image without whiteouts, by the library.
func contents(t *testing.T, img v1.Image) map[string]string {
	t.Helper()
	flat := mutate.Extract(img)
	defer flat.Close()
	all := map[string]string{}
	r := tar.NewReader(flat)
	for {
		h, err := r.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		all[h.Name] = string(data)
	}
	if len(all) != 3 {
		t.Fatalf("the image has %d files, want 3", len(all))
	}
	return all
}

func digestString(t *testing.T, i interface{ Digest() (v1.Hash, error) }) string {
	t.Helper()
	h, err := i.Digest()
	if err != nil {
		t.Fatal(err)
	}
	return h.String()
}

func TestImagesComeFromARegistry(t *testing.T) {
	needRoot(t)
	host, blobs := serve(t)
	img := real(t)
	push(t, host+"/team/app:1", img)
	x, mine := multi(t)
	push(t, host+"/team/multi:1", x)
	for ref, want := range map[string]v1.Image{
		host + "/team/app:1":                         img,
		host + "/team/app@" + digestString(t, img):   img,
		host + "/team/multi:1":                       mine,
		host + "/team/multi@" + digestString(t, x):   mine,
		host + "/team/multi:1@" + digestString(t, x): mine,
	} {
		before := blobs.Load()
		if _, err := Resolve(t.Context(), ref, ""); err != nil {
			t.Fatal(err)
		}
		if n := blobs.Load() - before; n > 0 {
			t.Errorf("Resolve(%q) fetched %d blobs, want none", ref, n)
		}
		trip(t, ref, digestString(t, want), want)
	}
	other, err := Resolve(t.Context(), host+"/team/multi:1", "linux/s390x")
	if err != nil || other.Digest == digestString(t, mine) {
		t.Errorf("for linux/s390x: %v, %v, want another image", other, err)
	}
}

func TestImagesComeFromLayoutsAndArchives(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	img := real(t)
	x, mine := multi(t)
	p, err := layout.Write(filepath.Join(dir, "one"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	tagged, err := layout.Write(filepath.Join(dir, "tagged"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	nested, err := layout.Write(filepath.Join(dir, "nested"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	other := real(t)
	const tag = "org.opencontainers.image.ref.name"
	ref, err := name.NewTag("example.com/app:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(p.AppendImage(img),
		tagged.AppendImage(img, layout.WithAnnotations(map[string]string{tag: "v1"})), tagged.AppendImage(other, layout.WithAnnotations(map[string]string{tag: "v2"})),
		nested.AppendIndex(x), tarball.WriteToFile(filepath.Join(dir, "docker.tar"), ref, img)); err != nil {
		t.Fatal(err)
	}
	if _, err := layout.Write(filepath.Join(dir, "multi"), x); err != nil {
		t.Fatal(err)
	}
	archiveOf(t, filepath.Join(dir, "multi"), filepath.Join(dir, "multi.tar"))
	dockerSave(t, img, filepath.Join(dir, "saved.tar"))
	trip(t, "oci:"+dir+"/one", digestString(t, img), img)
	trip(t, "oci:"+dir+"/tagged:v1", digestString(t, img), img)
	trip(t, "oci:"+dir+"/tagged:v2", digestString(t, other), other)
	trip(t, "oci:"+dir+"/multi", digestString(t, mine), mine)
	trip(t, "oci:"+dir+"/nested", digestString(t, mine), mine)
	trip(t, "oci-archive:"+dir+"/multi.tar", digestString(t, mine), mine)
	trip(t, "docker-archive:"+dir+"/multi.tar", digestString(t, mine), mine)
	trip(t, "docker-archive:"+dir+"/docker.tar", "", img)
	trip(t, "docker-archive:"+dir+"/docker.tar:v1", "", img)
	trip(t, "docker-archive:"+dir+"/saved.tar", "", img)
	t.Chdir(dir)
	trip(t, "oci:one", digestString(t, img), img)
}

// archiveOf packs a directory.
func archiveOf(t *testing.T, dir, file string) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	if err := errors.Join(w.AddFS(os.DirFS(dir)), w.Close(), f.Close()); err != nil {
		t.Fatal(err)
	}
}

// dockerSave writes what docker save wrote before version 25: uncompressed
// layers in directories, some of them links to others.
func dockerSave(t *testing.T, img v1.Image, to string) {
	t.Helper()
	config, err := img.RawConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	entries := []entry{file("abc.json", string(config))}
	var names []string
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	for i, l := range layers {
		r, err := l.Uncompressed()
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		id := strconv.Itoa(i)
		entries = append(entries, dir(id), file(id+"/real.tar", string(data)), link(id+"/layer.tar", "../"+id+"/real.tar"))
		names = append(names, strconv.Quote(id+"/layer.tar"))
	}
	entries = append(entries, file("manifest.json", `[{"Config":"abc.json","RepoTags":["app:1"],"Layers":[`+strings.Join(names, ",")+`]}]`))
	if err := os.WriteFile(to, tarOf(t, entries...), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestReferencesThatLeadNowhereSayWhy(t *testing.T) {
	host, _ := serve(t)
	dir := t.TempDir()
	x, _ := multi(t)
	push(t, host+"/team/multi:1", x)
	two, err := layout.Write(filepath.Join(dir, "two"), empty.Index)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(two.AppendImage(real(t)), two.AppendImage(real(t)), os.Mkdir(filepath.Join(dir, "empty"), 0o755),
		os.WriteFile(filepath.Join(dir, "text"), bytes.Repeat([]byte("text"), 500), 0o644),
		os.WriteFile(filepath.Join(dir, "other.tar"), tarOf(t, file("f", "x")), 0o644),
		os.WriteFile(filepath.Join(dir, "image.tar.gz"), gzipped(t, tarOf(t, file("f", "x"))), 0o644)); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		ref, platform string
		kind          mayfly.Kind
		message       string
	}{
		{host + "/team/none:1", "", mayfly.NotFound, "no such image"},
		{host + "/private/app:1", "", mayfly.Forbidden, "refuses"},
		{host + "/broken/app:1", "", mayfly.Unavailable, "fails"},
		{"127.0.0.1:1/app", "", mayfly.Unavailable, "cannot reach"},
		{host + "/team/multi:1", "linux/riscv64", mayfly.Invalid, "linux/s390x"},
		{host + "/team/multi:1", "riscv64", mayfly.Invalid, "bad platform"},
		{"UPPER CASE", "", mayfly.Invalid, "bad reference"},
		{"oci:" + dir + "/missing", "", mayfly.NotFound, "no such file"},
		{"oci:" + dir + "/text", "", mayfly.Invalid, "not a directory"},
		{"oci:" + dir + "/empty", "", mayfly.Invalid, "index.json"},
		{"oci:" + dir + "/two", "", mayfly.Invalid, "2 images"},
		{"oci:" + dir + "/two:v9", "", mayfly.NotFound, "tagged"},
		{"docker-archive:" + dir + "/missing", "", mayfly.NotFound, "no such file"},
		{"docker-archive:" + dir + "/empty", "", mayfly.Invalid, "not a file"},
		{"docker-archive:" + dir + "/text", "", mayfly.Invalid, "not a tar archive"},
		{"docker-archive:" + dir + "/other.tar", "", mayfly.Invalid, "neither"},
		{"oci-archive:" + dir + "/image.tar.gz", "", mayfly.Invalid, "not a tar archive"},
	} {
		_, err := Resolve(t.Context(), c.ref, c.platform)
		var e *mayfly.Error
		if !errors.As(err, &e) || e.Kind != c.kind || e.Fix == "" || !strings.Contains(e.Message, c.message) {
			t.Errorf("Resolve(%q, %q) = %v (%s), want %s with a hint and %q", c.ref, c.platform, err, mayfly.KindOf(err), c.kind, c.message)
		}
	}
}

// A layout that is damaged or lies is found out at the latest when it is
// unpacked.
func TestDamagedLayoutsAreRefused(t *testing.T) {
	needRoot(t)
	for name, damage := range map[string]func(dir string, m *v1.Manifest) error{
		"missing layer": func(dir string, m *v1.Manifest) error { return os.Remove(blobPath(dir, m.Layers[1].Digest)) },
		"cut layer":     func(dir string, m *v1.Manifest) error { return os.Truncate(blobPath(dir, m.Layers[1].Digest), 10) },
		"other layer": func(dir string, m *v1.Manifest) error {
			return os.WriteFile(blobPath(dir, m.Layers[1].Digest), make([]byte, m.Layers[1].Size), 0o644)
		},
		"layer is a link out": func(dir string, m *v1.Manifest) error {
			p := blobPath(dir, m.Layers[1].Digest)
			return errors.Join(os.Remove(p), os.Symlink("/etc/passwd", p))
		},
		"no config": func(dir string, m *v1.Manifest) error { return os.Remove(blobPath(dir, m.Config.Digest)) },
	} {
		dir := filepath.Join(t.TempDir(), "l")
		p, err := layout.Write(dir, empty.Index)
		if err != nil {
			t.Fatal(err)
		}
		img := real(t)
		m, err := img.Manifest()
		if err := errors.Join(err, p.AppendImage(img), damage(dir, m)); err != nil {
			t.Fatal(err)
		}
		i, err := Resolve(t.Context(), "oci:"+dir, "")
		var stream bytes.Buffer
		if err == nil {
			defer i.Close()
			if err = i.WriteLayout(t.Context(), &stream); err == nil {
				_, err = Unpack(t.Context(), &stream, i.Digest, t.TempDir(), Limits{})
			}
		}
		if err == nil || mayfly.KindOf(err) == "" {
			t.Errorf("%s: no error", name)
		}
		if k := mayfly.KindOf(err); k != mayfly.Invalid && name != "layer is a link out" {
			t.Errorf("%s: %v (%s), want an invalid error", name, err, k)
		}
	}
}

func blobPath(dir string, h v1.Hash) string { return filepath.Join(dir, "blobs", h.Algorithm, h.Hex) }

func FuzzLayout(f *testing.F) {
	f.Add([]byte(`{"schemaVersion":2,"manifests":[{"digest":"sha256:x","size":1,"platform":{"os":"linux"}}]}`), []byte(`{"schemaVersion":2}`))
	f.Fuzz(func(t *testing.T, index, blob []byte) {
		dir := t.TempDir()
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, "blobs/sha256"), 0o755), os.WriteFile(filepath.Join(dir, "index.json"), index, 0o644),
			os.WriteFile(filepath.Join(dir, blobName(digestOf(blob))), blob, 0o644)); err != nil {
			t.Fatal(err)
		}
		if i, err := Resolve(t.Context(), "oci:"+dir, ""); err == nil {
			i.WriteLayout(t.Context(), io.Discard)
			i.Close()
		} else if k := mayfly.KindOf(err); k != mayfly.Invalid && k != mayfly.NotFound {
			t.Errorf("kind of %v = %s, want invalid or not_found", err, k)
		}
	})
}
