package image

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"

	"mayfly.dev/mayfly"
)

// Image is an image that was found, with its manifest but not its layers.
type Image struct {
	Reference string // as written
	Digest    string // of the manifest, "sha256:…"

	raw      []byte // the manifest
	manifest manifest
	blobs    blobs
	closer   io.Closer // of the layout or archive; nil for a registry
}

// Close closes the layout or archive that the image comes from.
func (i *Image) Close() error {
	if i.closer == nil {
		return nil
	}
	return i.closer.Close()
}

// blobs reads the content that a manifest points to.
type blobs interface {
	open(ctx context.Context, d descriptor) (io.ReadCloser, error)
}

// Resolve finds an image for a platform, as ParsePlatform reads it, and reads
// its manifest. A reference is
//
//	NAME[:TAG][@DIGEST]       in a registry, with the credentials of docker login
//	oci:DIR[:TAG]             an OCI image layout
//	oci-archive:FILE[:TAG]    a tar of one
//	docker-archive:FILE[:TAG] what docker save writes
//
// Relative paths start at the working directory. The digest of an image in a
// docker archive is that of a manifest over its uncompressed layers, and thus
// not the one that a registry would give it.
func Resolve(ctx context.Context, ref, platform string) (*Image, error) {
	want, err := ParsePlatform(platform)
	if err != nil {
		return nil, err
	}
	transport, rest, _ := strings.Cut(ref, ":")
	var i *Image
	switch transport {
	case "oci":
		i, err = fromLayout(ctx, rest, want)
	case "oci-archive", "docker-archive":
		i, err = fromArchive(ctx, rest, want)
	default:
		i, err = fromRegistry(ctx, ref, want)
	}
	if err != nil {
		return nil, explain(ref, err)
	}
	i.Reference, i.Digest = ref, digestOf(i.raw)
	err = parseJSON("manifest", i.raw, &i.manifest)
	if err == nil {
		err = i.manifest.check()
	}
	if err != nil {
		i.Close()
		return nil, explain(ref, err)
	}
	return i, nil
}

// explain names the reference in an error.
func explain(ref string, err error) error {
	var e *mayfly.Error
	if errors.As(err, &e) {
		return mayfly.Errorf(e.Kind, "image %s: %w", ref, err).Hint("%s", e.Fix)
	}
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return mayfly.Errorf(mayfly.NotFound, "image %s: %w", ref, err).
			Hint("check the path; relative paths in mayfly.yaml start at its directory")
	}
	return fmt.Errorf("image %s: %w", ref, err)
}

func fromRegistry(ctx context.Context, ref string, want Platform) (*Image, error) {
	r, err := name.ParseReference(ref)
	if err != nil {
		return nil, mayfly.Errorf(mayfly.Invalid, "bad reference: %w", err).
			Hint("write NAME:TAG or NAME@sha256:…, or oci:DIR, oci-archive:FILE or docker-archive:FILE")
	}
	d, err := remote.Get(r, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain), remote.WithUserAgent("mayfly"),
		remote.WithPlatform(v1.Platform{OS: want.OS, Architecture: want.Architecture, Variant: want.Variant}))
	if err != nil {
		return nil, registryError(r, err)
	}
	if d.MediaType.IsIndex() {
		var x index
		if err := parseJSON("index", d.Manifest, &x); err != nil {
			return nil, err
		}
		if _, err := x.choose(want); err != nil { // says which platforms there are
			return nil, err
		}
	}
	img, err := d.Image()
	if err != nil {
		return nil, registryError(r, err)
	}
	raw, err := img.RawManifest()
	if err != nil {
		return nil, registryError(r, err)
	}
	return &Image{raw: raw, blobs: registryBlobs{img, r}}, nil
}

// registryError says what the reader of a registry's answer can do about it.
func registryError(r name.Reference, err error) error {
	var answer *transport.Error
	switch {
	case errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded):
		return err
	case !errors.As(err, &answer):
		return mayfly.Errorf(mayfly.Unavailable, "cannot reach the registry: %w", err).
			Hint("check the network and the name; an image that is here already can be used as oci:DIR or docker-archive:FILE")
	case answer.StatusCode == http.StatusUnauthorized || answer.StatusCode == http.StatusForbidden:
		return mayfly.Errorf(mayfly.Forbidden, "the registry refuses: %w", err).
			Hint("check the name, and log in with: docker login %s", r.Context().RegistryStr())
	case answer.StatusCode == http.StatusNotFound:
		return mayfly.Errorf(mayfly.NotFound, "the registry has no such image: %w", err).Hint("check the name and the tag")
	}
	return mayfly.Errorf(mayfly.Unavailable, "the registry fails: %w", err).Hint("try again later")
}

type registryBlobs struct {
	img v1.Image
	ref name.Reference
}

func (b registryBlobs) open(_ context.Context, d descriptor) (io.ReadCloser, error) {
	hash, err := v1.NewHash(d.Digest)
	if err != nil {
		return nil, bad("%q is not a digest", d.Digest)
	}
	if config, err := b.img.ConfigName(); err == nil && config == hash {
		raw, err := b.img.RawConfigFile()
		if err != nil {
			return nil, registryError(b.ref, err)
		}
		return io.NopCloser(strings.NewReader(string(raw))), nil
	}
	layer, err := b.img.LayerByDigest(hash)
	if err != nil {
		return nil, registryError(b.ref, err)
	}
	r, err := layer.Compressed()
	if err != nil {
		return nil, registryError(b.ref, err)
	}
	return r, nil
}

// WriteLayout writes the image as an OCI image layout in a tar stream, in the
// order in which Unpack wants it: manifest, configuration, layers from the
// lowest up, a repeated layer as often as the manifest names it. The same
// image gives the same bytes.
func (i *Image) WriteLayout(ctx context.Context, w io.Writer) error {
	t := tar.NewWriter(w)
	x, err := json.Marshal(index{SchemaVersion: 2, MediaType: ociIndex, Manifests: []descriptor{{
		MediaType: cmp.Or(i.manifest.MediaType, ociManifest), Digest: i.Digest, Size: int64(len(i.raw)),
	}}})
	if err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	for _, f := range []struct {
		name    string
		content []byte
	}{{"oci-layout", []byte(`{"imageLayoutVersion":"1.0.0"}`)}, {"index.json", x}, {blobName(i.Digest), i.raw}} {
		if err := writeEntry(t, f.name, int64(len(f.content)), strings.NewReader(string(f.content))); err != nil {
			return fmt.Errorf("write image: %w", err)
		}
	}
	for _, d := range append([]descriptor{i.manifest.Config}, i.manifest.Layers...) {
		if err := i.writeBlob(ctx, t, d); err != nil {
			return explain(i.Reference, err)
		}
	}
	if err := t.Close(); err != nil {
		return fmt.Errorf("write image: %w", err)
	}
	return nil
}

func (i *Image) writeBlob(ctx context.Context, t *tar.Writer, d descriptor) error {
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	r, err := i.blobs.open(ctx, d)
	if err != nil {
		return err
	}
	defer r.Close()
	return writeEntry(t, blobName(d.Digest), d.Size, contextReader{ctx, r})
}

func writeEntry(t *tar.Writer, name string, size int64, content io.Reader) error {
	h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o644, ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	if err := t.WriteHeader(h); err != nil {
		return err
	}
	n, err := io.Copy(t, content)
	if err == nil && n != size || errors.Is(err, tar.ErrWriteTooLong) {
		return bad("%s has not the size of %d bytes that its manifest says", name, size)
	}
	return err
}

// contextReader ends with its context.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	return c.r.Read(p)
}

// openRegular opens a regular file and nothing else.
func openRegular(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, errors.Join(err, mayfly.Errorf(mayfly.Invalid, "%s is not a file", path).Hint("name a tar archive"))
	}
	return f, nil
}
