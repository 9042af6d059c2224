// Package host makes the machine's own file system the base of environments:
// its programs and libraries as they are, its configuration without what is
// secret or says who uses the machine.
package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/image/rootfs"
)

// Bind shows a directory of the host inside, read-only, at the same place.
type Bind struct {
	Source string
	Target string // absolute; an empty directory in the skeleton
}

// shown are the directories of programs. /opt and /nix are among them, since
// toolchains live there; /home, /root, /var, /run, /srv and /mnt never are.
var shown = []string{"usr", "opt", "nix"}

// merged are directories that are links into /usr on most machines, and of
// the same rank as /usr on the others.
var merged = []string{"bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32"}

// Skeleton fills an empty directory with the layer below environments on the
// host base: mount points, the links of a merged /usr, and a copy of /etc
// that leaves out what etc.go lists. /etc is a copy so that it belongs to root
// inside, stays the same while an environment lives, and need not be masked.
func Skeleton(dir string) error { return skeleton("/", dir) }

func skeleton(host, dir string) error {
	if err := rootfs.Furnish(dir); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("make skeleton: %w", err)
	}
	defer root.Close()
	for _, name := range slices.Concat(shown, merged) {
		if err := place(host, root, name); err != nil {
			return fmt.Errorf("make skeleton: %w", err)
		}
	}
	c := copier{host: filepath.Join(host, "etc"), root: root}
	if err := c.all(); err != nil {
		return fmt.Errorf("make skeleton: copy /etc: %w", err)
	}
	return nil
}

// place makes in the skeleton what stands for a top-level directory: a mount
// point, a copy of a link into /usr, or nothing.
func place(host string, root *os.Root, name string) error {
	info, err := os.Lstat(filepath.Join(host, name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.IsDir():
		if err := root.Mkdir(name, 0o755); err != nil {
			return err
		}
		return root.Chtimes(name, epoch, epoch)
	case info.Mode().Type() != fs.ModeSymlink:
		return nil
	}
	target, err := os.Readlink(filepath.Join(host, name))
	if err != nil {
		return err
	}
	if rel := strings.TrimPrefix(filepath.Clean("/"+target), "/"); rel == "usr" || strings.HasPrefix(rel, "usr/") {
		return root.Symlink(rel, name)
	}
	return nil
}

var epoch = time.Unix(0, 0)

// Binds lists what to show of the host upon a skeleton that Skeleton made.
// The host's directories must be bound with the mounts below them.
func Binds(skeleton string) ([]Bind, error) { return binds("/", skeleton) }

func binds(host, skeleton string) ([]Bind, error) {
	var all []Bind
	for _, name := range slices.Concat(shown, merged) {
		source, err := os.Lstat(filepath.Join(host, name))
		if errors.Is(err, fs.ErrNotExist) || err == nil && !source.IsDir() {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("look for what to show of the host: %w", err)
		}
		// A directory that appeared since the skeleton was made has no place.
		if target, err := os.Lstat(filepath.Join(skeleton, name)); err == nil && target.IsDir() {
			all = append(all, Bind{Source: filepath.Join(host, name), Target: "/" + name})
		}
	}
	if len(all) == 0 {
		return nil, mayfly.Errorf(mayfly.Unsupported, "this machine has no /usr to show inside").
			Hint("use an image: write base: with image: below it in mayfly.yaml")
	}
	return all, nil
}
