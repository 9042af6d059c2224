// Package image brings OCI images into environments. The client finds an
// image in a registry, a layout or an archive and streams it as an OCI image
// layout; the server unpacks that stream and trusts nothing in it.
//
// Specifications: https://github.com/opencontainers/image-spec, version 1.1.
package image

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"runtime"
	"slices"
	"strings"

	"mayfly.dev/mayfly"
)

// Media types of manifests, indices, configurations and layers.
const (
	ociManifest    = "application/vnd.oci.image.manifest.v1+json"
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	ociIndex       = "application/vnd.oci.image.index.v1+json"
	dockerIndex    = "application/vnd.docker.distribution.manifest.list.v2+json"
	ociConfig      = "application/vnd.oci.image.config.v1+json"
	dockerConfig   = "application/vnd.docker.container.image.v1+json"
	ociLayer       = "application/vnd.oci.image.layer.v1.tar"
)

// maxJSON bounds manifests, indices and configurations, as registries do.
const maxJSON = 4 << 20

// maxLayers bounds the layers of an image.
const maxLayers = 512

// descriptor points to a blob.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	URLs        []string          `json:"urls,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Platform    *Platform         `json:"platform,omitempty"`
}

type manifest struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType,omitempty"`
	Config        descriptor   `json:"config"`
	Layers        []descriptor `json:"layers"`
}

type index struct {
	SchemaVersion int          `json:"schemaVersion"`
	MediaType     string       `json:"mediaType,omitempty"`
	Manifests     []descriptor `json:"manifests"`
}

// Platform is what an image runs on.
type Platform struct {
	OS           string `json:"os"`
	Architecture string `json:"architecture"`
	Variant      string `json:"variant,omitempty"`
}

// ThisPlatform is the machine's: Linux and its processor.
func ThisPlatform() Platform { return Platform{OS: "linux", Architecture: runtime.GOARCH} }

// ParsePlatform reads "linux/arm64" or "linux/arm/v7"; empty is this machine.
func ParsePlatform(s string) (Platform, error) {
	if s == "" {
		return ThisPlatform(), nil
	}
	parts := strings.Split(s, "/")
	if len(parts) < 2 || len(parts) > 3 || slices.Contains(parts, "") {
		return Platform{}, mayfly.Errorf(mayfly.Invalid, "bad platform %q", s).Hint("write it as linux/amd64 or linux/arm64")
	}
	return Platform{parts[0], parts[1], strings.Join(parts[2:], "")}, nil
}

func (p Platform) String() string {
	return strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
}

// runs reports whether an image of platform p runs where want is asked for.
func (p Platform) runs(want Platform) bool {
	return p.OS == want.OS && p.Architecture == want.Architecture && (want.Variant == "" || p.Variant == want.Variant)
}

// Config is what an image says about the processes in it.
type Config struct {
	Platform   Platform          `json:"platform"`
	Env        []string          `json:"env,omitempty"` // "K=V"
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Command    []string          `json:"command,omitempty"`
	WorkingDir string            `json:"working_dir,omitempty"`
	User       string            `json:"user,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
}

// configFile is the part of an image's configuration that matters here.
type configFile struct {
	Platform
	Config struct {
		Env        []string
		Entrypoint []string
		Cmd        []string
		WorkingDir string
		User       string
		Labels     map[string]string
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

// parseJSON decodes a manifest, index or configuration.
func parseJSON(what string, data []byte, into any) error {
	if err := json.Unmarshal(data, into); err != nil {
		return bad("the image's %s is not valid: %w", what, err)
	}
	return nil
}

// check refuses what is not a plain image of file system layers.
func (m manifest) check() error {
	switch {
	case m.SchemaVersion != 2 || m.MediaType != "" && m.MediaType != ociManifest && m.MediaType != dockerManifest:
		return unsupported("the image's manifest has the type %q, version %d", m.MediaType, m.SchemaVersion)
	case m.Config.MediaType != ociConfig && m.Config.MediaType != dockerConfig:
		return unsupported("it is no image of a file system, but of type %q", m.Config.MediaType)
	case len(m.Layers) > maxLayers:
		return bad("the image has %d layers, more than %d", len(m.Layers), maxLayers)
	case m.Config.Size < 0 || m.Config.Size > maxJSON:
		return bad("the image's configuration has %d bytes, more than %d", m.Config.Size, maxJSON)
	}
	for i, l := range append([]descriptor{m.Config}, m.Layers...) {
		if err := checkDigest(l.Digest); err != nil {
			return err
		}
		if l.Size < 0 {
			return bad("layer %d has the size %d", i, l.Size)
		}
		if i == 0 {
			continue
		}
		if _, err := compressionOf(l.MediaType); err != nil {
			return err
		}
	}
	return nil
}

// compressionOf says how a layer of the given media type is compressed: "",
// "gzip" or "zstd".
func compressionOf(mediaType string) (string, error) {
	switch mediaType {
	case ociLayer, "application/vnd.docker.image.rootfs.diff.tar":
		return "", nil
	case ociLayer + "+gzip", "application/vnd.docker.image.rootfs.diff.tar.gzip":
		return "gzip", nil
	case ociLayer + "+zstd", "application/vnd.docker.image.rootfs.diff.tar.zstd":
		return "zstd", nil
	}
	switch {
	case strings.HasSuffix(mediaType, "+encrypted"):
		return "", unsupported("the image has encrypted layers")
	case strings.Contains(mediaType, "nondistributable") || strings.Contains(mediaType, "foreign"):
		return "", unsupported("the image has layers that must be fetched from elsewhere (%s)", mediaType)
	}
	return "", unsupported("the image has layers of the unknown type %.100q", mediaType)
}

// checkDigest accepts sha256 digests only; they are also names of files.
func checkDigest(s string) error {
	encoded, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(encoded) != 64 || strings.Trim(encoded, "0123456789abcdef") != "" {
		return bad("%.100q is not a sha256 digest", s)
	}
	return nil
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// bad is an error about an image that is damaged or made to do harm.
func bad(format string, args ...any) error {
	return mayfly.Errorf(mayfly.Invalid, format, args...).Hint("the image is damaged or hostile; build or fetch it anew")
}

func unsupported(format string, args ...any) error {
	return mayfly.Errorf(mayfly.Invalid, format, args...).Hint("use an image with plain, gzip or zstd layers, as docker, podman, buildah and ko make")
}

// blobName is the name of a blob in a layout.
func blobName(digest string) string {
	return "blobs/sha256/" + strings.TrimPrefix(digest, "sha256:")
}

// choose picks the manifest of an index that runs on a platform. An image
// without platform is taken when it is the only one: its configuration says
// more.
func (x index) choose(want Platform) (descriptor, error) {
	var images []descriptor
	var offered []string
	for _, d := range x.Manifests {
		if d.Annotations["vnd.docker.reference.type"] == "attestation-manifest" {
			continue
		}
		if d.Platform != nil && d.Platform.runs(want) {
			return d, nil
		}
		images = append(images, d)
		if d.Platform != nil {
			offered = append(offered, d.Platform.String())
		}
	}
	if len(images) == 1 && images[0].Platform == nil {
		return images[0], nil
	}
	if len(images) > 1 && len(offered) == 0 {
		return descriptor{}, mayfly.Errorf(mayfly.Invalid, "there are %d images, and nothing says which", len(images)).
			Hint("add the tag of one to the reference, as in oci:DIR:TAG")
	}
	return descriptor{}, wrongPlatform(strings.Join(offered, ", "), want)
}

func wrongPlatform(has string, want Platform) error {
	return mayfly.Errorf(mayfly.Invalid, "the image is for %s, and this machine is %s", cmp.Or(has, "no platform"), want).
		Hint("use an image for %s", want)
}
