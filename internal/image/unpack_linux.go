package image

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/archive"
	"mayfly.dev/mayfly/internal/image/rootfs"
)

// Limits bound what an image may unpack to. Zero means the default.
type Limits struct {
	Bytes int64 // of file contents, over all layers
	Files int   // over all layers
	// Ratio is how many times its compressed size a layer may have, once it
	// has passed RatioFrom bytes.
	Ratio int64
}

// Limits that apply where nobody says otherwise.
const (
	DefaultBytes = 64 << 30
	DefaultFiles = 2_000_000
	DefaultRatio = 200
	RatioFrom    = 64 << 20
)

// maxWindow is the memory that a zstd layer may ask for.
const maxWindow = 128 << 20

// Unpack reads an OCI image layout in a tar stream, as Image.WriteLayout
// writes it, and unpacks the image whose manifest has the digest into the
// empty directory dir. Then it furnishes dir for environments.
//
// It verifies the digest of the manifest, of the configuration and of each
// layer, compressed and not, and the platform. What is wrong with the image
// gives an error of kind Invalid, a limit or a full disk one of kind
// Exhausted; dir then holds an unverified part of the image and must be
// discarded.
func Unpack(ctx context.Context, layout io.Reader, digest, dir string, l Limits) (Config, error) {
	if err := checkDigest(digest); err != nil {
		return Config{}, err
	}
	l.Bytes = cmp.Or(l.Bytes, DefaultBytes)
	l.Files = cmp.Or(l.Files, DefaultFiles)
	l.Ratio = cmp.Or(l.Ratio, DefaultRatio)
	in := &streamError{r: contextReader{ctx, layout}}
	u := unpacker{t: tar.NewReader(in), in: in, dir: dir, limits: l}
	config, err := u.image(ctx, digest)
	if err != nil {
		return Config{}, err
	}
	if err := rootfs.Furnish(dir); err != nil {
		return Config{}, err
	}
	return config, nil
}

type unpacker struct {
	t      *tar.Reader
	in     *streamError
	dir    string
	limits Limits // what is left of them
}

// streamError remembers why a stream broke, so that its image is not blamed.
type streamError struct {
	r   io.Reader
	err error
}

func (s *streamError) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// blame returns what broke the stream, and otherwise an error about the image.
func (u *unpacker) blame(err error) error {
	if u.in.err != nil {
		return u.in.err
	}
	var known *mayfly.Error
	if errors.As(err, &known) {
		return err
	}
	return bad("the image cannot be read: %w", err)
}

func (u *unpacker) image(ctx context.Context, digest string) (Config, error) {
	raw, err := u.small(digest, -1)
	if err != nil {
		return Config{}, err
	}
	var m manifest
	if err := parseJSON("manifest", raw, &m); err != nil {
		return Config{}, err
	}
	if err := m.check(); err != nil {
		return Config{}, err
	}
	raw, err = u.small(m.Config.Digest, m.Config.Size)
	if err != nil {
		return Config{}, err
	}
	var c configFile
	if err := parseJSON("configuration", raw, &c); err != nil {
		return Config{}, err
	}
	if !c.runs(ThisPlatform()) {
		return Config{}, wrongPlatform(c.Platform.String(), ThisPlatform())
	}
	if len(c.RootFS.DiffIDs) != len(m.Layers) {
		return Config{}, bad("the image has %d layers, and its configuration %d", len(m.Layers), len(c.RootFS.DiffIDs))
	}
	for i, d := range m.Layers {
		if err := u.layer(ctx, d, c.RootFS.DiffIDs[i]); err != nil {
			return Config{}, wrapLayer(i, err)
		}
	}
	return Config{
		Platform: c.Platform, Env: c.Config.Env, Entrypoint: c.Config.Entrypoint, Command: c.Config.Cmd,
		WorkingDir: c.Config.WorkingDir, User: c.Config.User, Labels: c.Config.Labels,
	}, nil
}

func wrapLayer(i int, err error) error {
	var e *mayfly.Error
	if errors.As(err, &e) {
		return mayfly.Errorf(e.Kind, "layer %d: %w", i, err).Hint("%s", e.Fix)
	}
	return fmt.Errorf("layer %d: %w", i, err)
}

// next goes to the blob with the digest. Before it only the layout's own
// files may come.
func (u *unpacker) next(digest string, size int64) (int64, error) {
	for range 16 {
		h, err := u.t.Next()
		if err == io.EOF {
			return 0, bad("the stream lacks the blob %s", digest)
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return 0, u.blame(err)
		}
		name := path.Clean(h.Name)
		if name != blobName(digest) {
			if h.Typeflag == tar.TypeReg && name != "index.json" && name != "oci-layout" {
				return 0, bad("the stream has %.200q where the blob %s belongs", h.Name, digest)
			}
			if h.Size > maxJSON {
				return 0, bad("%.200q in the stream has %d bytes", h.Name, h.Size)
			}
			continue
		}
		if h.Typeflag != tar.TypeReg {
			return 0, bad("the blob %s is not a file", digest)
		}
		if size >= 0 && h.Size != size {
			return 0, bad("the blob %s has %d bytes, and its descriptor says %d", digest, h.Size, size)
		}
		return h.Size, nil
	}
	return 0, bad("the stream lacks the blob %s", digest)
}

// small reads a blob of JSON and verifies it. A negative size is unknown.
func (u *unpacker) small(digest string, size int64) ([]byte, error) {
	size, err := u.next(digest, size)
	if err != nil {
		return nil, err
	}
	if size > maxJSON {
		return nil, bad("the manifest or configuration %s has %d bytes, more than %d", digest, size, maxJSON)
	}
	data, err := io.ReadAll(u.t)
	if err != nil {
		return nil, u.blame(err)
	}
	if got := digestOf(data); got != digest {
		return nil, bad("the blob %s has the digest %s", digest, got)
	}
	return data, nil
}

// layer unpacks one layer over those below.
func (u *unpacker) layer(ctx context.Context, d descriptor, diffID string) error {
	if err := checkDigest(diffID); err != nil {
		return err
	}
	size, err := u.next(d.Digest, d.Size)
	if err != nil {
		return err
	}
	compression, err := compressionOf(d.MediaType)
	if err != nil {
		return err
	}
	blob := &hashed{r: u.t, hash: sha256.New()}
	plain, err := decompress(bufio.NewReaderSize(blob, 64<<10), compression)
	if err != nil {
		return u.blame(err)
	}
	defer plain.Close()
	content := &hashed{r: &bounded{r: plain, max: max(RatioFrom, size*u.limits.Ratio)}, hash: sha256.New()}
	if err := u.apply(ctx, content); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, blob); err != nil {
		return u.blame(err)
	}
	if got := blob.digest(); got != d.Digest {
		return bad("its content has the digest %s instead of %s", got, d.Digest)
	}
	if got := content.digest(); got != diffID {
		return bad("unpacked, its content has the digest %s instead of %s", got, diffID)
	}
	return nil
}

// apply extracts a layer's tar stream, to its very end, over those below.
func (u *unpacker) apply(ctx context.Context, content io.Reader) error {
	tar := &streamError{r: content}
	stats, err := archive.Extract(ctx, tar, u.dir, archive.Options{
		MaxBytes: max(1, u.limits.Bytes), MaxFiles: max(1, u.limits.Files), // of either, 0 would mean no limit
		Setuid: true, FIFOs: true, SkipDevices: true, FollowParents: true, Whiteouts: true, Unterminated: true,
	})
	if err == nil { // what pads the archive counts for the digest
		_, err = io.Copy(io.Discard, tar)
	}
	u.limits.Bytes, u.limits.Files = u.limits.Bytes-stats.Bytes, u.limits.Files-stats.Files
	if tar.err != nil {
		return u.blame(tar.err)
	}
	return err
}

// hashed hashes what is read through it.
type hashed struct {
	r    io.Reader
	hash hash.Hash
}

func (h *hashed) Read(p []byte) (int, error) {
	n, err := h.r.Read(p)
	h.hash.Write(p[:n])
	return n, err
}

func (h *hashed) digest() string { return "sha256:" + hex.EncodeToString(h.hash.Sum(nil)) }

// bounded fails when more than max bytes come.
type bounded struct {
	r   io.Reader
	max int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if b.max < 0 {
		return 0, mayfly.Errorf(mayfly.Exhausted, "the layer grows out of proportion to its compressed size").
			Hint("it may be a decompression bomb; if it is not, build it with less zeros or compression")
	}
	n, err := b.r.Read(p)
	b.max -= int64(n)
	return n, err
}

func decompress(r io.Reader, compression string) (io.ReadCloser, error) {
	switch compression {
	case "gzip":
		return gzip.NewReader(r)
	case "zstd":
		z, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(r), nil
}
