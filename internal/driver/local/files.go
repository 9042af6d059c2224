package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"mayfly.dev/mayfly/internal/image/rootfs"
	"mayfly.dev/mayfly/internal/sandbox"
)

// filesName names the layer of files after their paths and contents.
func filesName(files map[string][]byte) string {
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		fmt.Fprintf(h, "%d %s %d ", len(name), name, len(files[name]))
		h.Write(files[name])
	}
	return layerName("files-", hex.EncodeToString(h.Sum(nil)))
}

// under returns the layers below a template's own, topmost first: the files
// that every environment has, and the base.
func (d *Driver) under(ctx context.Context, base string) ([]string, error) {
	dir, err := d.pool.Layer(base)
	if err != nil {
		return nil, fmt.Errorf("find layer %s: %w", base, err)
	}
	if len(d.files) == 0 {
		return []string{dir}, nil
	}
	files, err := d.pool.BuildLayer(ctx, d.filesLayer, func(_ context.Context, dir string) error {
		return writeFiles(dir, d.files)
	})
	if err != nil {
		return nil, fmt.Errorf("make layer of files: %w", err)
	}
	return []string{files, dir}, nil
}

// writeFiles fills a layer. What lies in the home directory belongs to the
// commands' user, everything else to root.
func writeFiles(dir string, files map[string][]byte) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	defer root.Close()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
			return fmt.Errorf("no path for a file: %q", name)
		}
		rel := name[1:]
		if err := root.MkdirAll(path.Dir(rel), 0o755); err != nil {
			return err
		}
		if err := rootfs.WriteFile(root, rel, string(files[name]), 0o644); err != nil {
			return err
		}
	}
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return finish(root, name, d)
	})
}

// finish gives a file its owner and mode, and all of them one time.
func finish(root *os.Root, name string, d fs.DirEntry) error {
	if d.IsDir() {
		if err := root.Chmod(name, 0o755); err != nil { // whatever the umask was
			return err
		}
	}
	if p := "/" + name; p == sandbox.Home || strings.HasPrefix(p, sandbox.Home+"/") {
		if err := root.Lchown(name, sandbox.UID, sandbox.GID); err != nil {
			return err
		}
	}
	return root.Chtimes(name, time.Unix(0, 0), time.Unix(0, 0))
}
