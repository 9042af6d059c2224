package image

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"mayfly.dev/mayfly"
)

// files is a directory, or an archive of one, that holds an image.
type files interface {
	// openFile opens a regular file by its slash-separated path and tells its
	// size in bytes. A missing one is fs.ErrNotExist.
	openFile(name string) (io.ReadCloser, int64, error)
}

// layoutBlobs are the blobs of an OCI image layout.
type layoutBlobs struct{ files }

func (b layoutBlobs) open(_ context.Context, d descriptor) (io.ReadCloser, error) {
	if err := checkDigest(d.Digest); err != nil {
		return nil, err
	}
	r, size, err := b.openFile(blobName(d.Digest))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, bad("the layout lacks the blob %s: %w", d.Digest, err)
	}
	if err == nil && size != d.Size {
		r.Close()
		return nil, bad("the blob %s has %d bytes, and its descriptor says %d", d.Digest, size, d.Size)
	}
	return r, err
}

// small reads a blob that is a manifest or an index.
func (b layoutBlobs) small(ctx context.Context, d descriptor) ([]byte, error) {
	if d.Size > maxJSON {
		return nil, bad("the manifest %s has %d bytes, more than %d", d.Digest, d.Size, maxJSON)
	}
	r, err := b.open(ctx, d)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if got := digestOf(data); got != d.Digest {
		return nil, bad("the manifest %s has the digest %s", d.Digest, got)
	}
	return data, nil
}

func fromLayout(ctx context.Context, rest string, want Platform) (*Image, error) {
	dir, tag := splitTag(rest)
	info, err := os.Stat(dir)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, mayfly.Errorf(mayfly.Invalid, "%s is not a directory", dir).Hint("for an archive, write oci-archive:%s", dir)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, err
	}
	i, err := fromFiles(ctx, directory{root}, tag, want)
	if err != nil {
		root.Close()
		return nil, err
	}
	i.closer = root
	return i, nil
}

// fromFiles finds an image in an OCI image layout.
func fromFiles(ctx context.Context, f files, tag string, want Platform) (*Image, error) {
	data, err := readAll(f, "index.json")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, mayfly.Errorf(mayfly.Invalid, "it is no OCI image layout: it lacks index.json").Hint("name a directory with index.json and blobs, or its archive")
	}
	if err != nil {
		return nil, err
	}
	b := layoutBlobs{f}
	for range 4 { // indices may be nested
		var x index
		if err := parseJSON("index", data, &x); err != nil {
			return nil, err
		}
		if tag != "" {
			if x.Manifests = tagged(x.Manifests, tag); len(x.Manifests) == 0 {
				return nil, mayfly.Errorf(mayfly.NotFound, "the layout has no image tagged %q", tag).Hint("see the annotations in its index.json")
			}
			tag = ""
		}
		var d descriptor
		if len(x.Manifests) == 1 && isIndex(x.Manifests[0].MediaType) {
			d = x.Manifests[0]
		} else if d, err = x.choose(want); err != nil {
			return nil, err
		}
		if data, err = b.small(ctx, d); err != nil {
			return nil, err
		}
		if !isIndex(d.MediaType) {
			return &Image{raw: data, blobs: b}, nil
		}
	}
	return nil, bad("the layout's indices are nested too deeply")
}

func isIndex(mediaType string) bool { return mediaType == ociIndex || mediaType == dockerIndex }

// tagged selects the images that are annotated with a tag or a whole name.
func tagged(all []descriptor, tag string) []descriptor {
	var out []descriptor
	for _, d := range all {
		for _, key := range []string{"org.opencontainers.image.ref.name", "io.containerd.image.name"} {
			if v := d.Annotations[key]; v == tag || strings.HasSuffix(v, ":"+tag) {
				out = append(out, d)
				break
			}
		}
	}
	return out
}

// splitTag cuts a tag off a path: what follows the last colon, if that comes
// after the last slash.
func splitTag(s string) (file, tag string) {
	if i := strings.LastIndexByte(s, ':'); i > strings.LastIndexByte(s, '/') {
		return s[:i], s[i+1:]
	}
	return s, ""
}

func readAll(f files, name string) ([]byte, error) {
	r, size, err := f.openFile(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > maxJSON {
		return nil, bad("%s has %d bytes, more than %d", name, size, maxJSON)
	}
	return io.ReadAll(io.LimitReader(r, maxJSON))
}

// directory is a directory of files. Links out of it lead nowhere.
type directory struct{ root *os.Root }

func (d directory) openFile(name string) (io.ReadCloser, int64, error) {
	info, err := d.root.Stat(filepath.FromSlash(name))
	if err != nil {
		return nil, 0, err
	}
	if !info.Mode().IsRegular() {
		return nil, 0, bad("%s is not a file", name)
	}
	f, err := d.root.Open(filepath.FromSlash(name))
	return f, info.Size(), err
}

// archiveFiles are the regular files of a tar archive, by path.
type archiveFiles struct {
	file *os.File
	at   map[string]section
	to   map[string]string // links to other entries
}

type section struct{ offset, size int64 }

// maxEntries bounds the entries of an image archive.
const maxEntries = 100_000

// scan notes where the files of a tar archive are, without reading them.
func scan(f *os.File) (*archiveFiles, error) {
	a := &archiveFiles{file: f, at: map[string]section{}, to: map[string]string{}}
	t := tar.NewReader(f) // seeks over contents
	for range maxEntries {
		h, err := t.Next()
		if err == io.EOF {
			return a, nil
		}
		if err != nil && !errors.Is(err, tar.ErrInsecurePath) {
			return nil, mayfly.Errorf(mayfly.Invalid, "it is not a tar archive: %w", err).Hint("if it is compressed, unpack it first, for example with: gunzip")
		}
		name := path.Clean(h.Name)
		switch h.Typeflag {
		case tar.TypeReg:
			offset, err := f.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			a.at[name] = section{offset, h.Size}
		case tar.TypeSymlink:
			a.to[name] = path.Join(path.Dir(name), h.Linkname)
		case tar.TypeLink:
			a.to[name] = path.Clean(h.Linkname)
		}
	}
	return nil, bad("it has more than %d entries", maxEntries)
}

func (a *archiveFiles) openFile(name string) (io.ReadCloser, int64, error) {
	name = path.Clean(name)
	for range 8 {
		if s, ok := a.at[name]; ok {
			return io.NopCloser(io.NewSectionReader(a.file, s.offset, s.size)), s.size, nil
		}
		next, ok := a.to[name]
		if !ok {
			break
		}
		name = next
	}
	return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
}

// fromArchive finds an image in an archive: by its OCI index if there is one,
// else as docker save wrote them before version 25.
func fromArchive(ctx context.Context, rest string, want Platform) (*Image, error) {
	file, tag := splitTag(rest)
	f, err := openRegular(file)
	if err != nil {
		return nil, err
	}
	i, err := fromArchiveFile(ctx, f, tag, want)
	if err != nil {
		f.Close()
		return nil, err
	}
	i.closer = f
	return i, nil
}

func fromArchiveFile(ctx context.Context, f *os.File, tag string, want Platform) (*Image, error) {
	a, err := scan(f)
	if err != nil {
		return nil, err
	}
	if _, ok := a.at["index.json"]; ok {
		return fromFiles(ctx, a, tag, want)
	}
	i, err := fromDocker(a, tag)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, mayfly.Errorf(mayfly.Invalid, "it is no archive of an image: it has neither index.json nor manifest.json").
			Hint("write it with: docker save -o FILE IMAGE")
	}
	return i, err
}

// dockerBlobs maps digests to files of a docker archive.
type dockerBlobs struct {
	files *archiveFiles
	names map[string]string
}

func (b dockerBlobs) open(_ context.Context, d descriptor) (io.ReadCloser, error) {
	r, _, err := b.files.openFile(b.names[d.Digest])
	return r, err
}

// fromDocker makes a manifest for an image whose layers lie in the archive
// uncompressed: their digests are the diff ids of the configuration.
func fromDocker(a *archiveFiles, tag string) (*Image, error) {
	data, err := readAll(a, "manifest.json")
	if err != nil {
		return nil, err
	}
	var images []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := parseJSON("manifest.json", data, &images); err != nil {
		return nil, err
	}
	chosen := -1
	for i, img := range images {
		matches := tag == "" && len(images) == 1
		for _, t := range img.RepoTags {
			matches = matches || tag != "" && strings.HasSuffix(t, ":"+tag)
		}
		if matches {
			chosen = i
		}
	}
	if chosen < 0 {
		return nil, mayfly.Errorf(mayfly.NotFound, "the archive has %d images, and none is chosen by the tag %q", len(images), tag).
			Hint("add the tag of one to the reference, as in docker-archive:FILE:TAG")
	}
	config, err := readAll(a, images[chosen].Config)
	if err != nil {
		return nil, bad("the archive's configuration: %w", err)
	}
	var c configFile
	if err := parseJSON("configuration", config, &c); err != nil {
		return nil, err
	}
	layers := images[chosen].Layers
	if len(c.RootFS.DiffIDs) != len(layers) {
		return nil, bad("the archive has %d layers, and its configuration %d", len(layers), len(c.RootFS.DiffIDs))
	}
	b := dockerBlobs{a, map[string]string{digestOf(config): images[chosen].Config}}
	m := manifest{SchemaVersion: 2, MediaType: ociManifest, Layers: []descriptor{},
		Config: descriptor{MediaType: ociConfig, Digest: digestOf(config), Size: int64(len(config))}}
	for i, layer := range layers {
		r, size, err := a.openFile(layer)
		if err != nil {
			return nil, bad("the archive's layer %d: %w", i, err)
		}
		d, err := describe(r, c.RootFS.DiffIDs[i])
		if err != nil {
			return nil, fmt.Errorf("read layer %d: %w", i, err)
		}
		d.Size = size
		m.Layers = append(m.Layers, d)
		b.names[d.Digest] = layer
	}
	raw, err := json.Marshal(m)
	if err != nil {
		return nil, err
	}
	return &Image{raw: raw, blobs: b}, nil
}

// describe tells the media type of a layer from its first bytes, and its
// digest: the diff id, unless it is compressed.
func describe(r io.ReadCloser, diffID string) (descriptor, error) {
	defer r.Close()
	b := bufio.NewReader(r)
	magic, err := b.Peek(4)
	if err != nil && err != io.EOF {
		return descriptor{}, err
	}
	compression := ""
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		compression = "+gzip"
	case bytes.HasPrefix(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		compression = "+zstd"
	default:
		return descriptor{MediaType: ociLayer, Digest: diffID}, nil
	}
	h := sha256.New()
	if _, err := io.Copy(h, b); err != nil {
		return descriptor{}, err
	}
	return descriptor{MediaType: ociLayer + compression, Digest: "sha256:" + hex.EncodeToString(h.Sum(nil))}, nil
}
