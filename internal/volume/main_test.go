//go:build linux

package volume

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// fileSystem makes a file system of the given size in an image and mounts it;
// mkfs is the command without the image.
func fileSystem(t testing.TB, kind, options string, size int64, mkfs ...string) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes and mounts file systems")
	}
	base := t.TempDir()
	path, dir := filepath.Join(base, "image"), filepath.Join(base, "mounted")
	image, err := os.Create(path)
	must(t, err)
	defer image.Close()
	must(t, image.Truncate(size))
	if out, err := exec.Command(mkfs[0], append(mkfs[1:], path)...).CombinedOutput(); err != nil {
		t.Fatalf("%v: %v: %s", mkfs, err, out)
	}
	must(t, os.Mkdir(dir, 0o755))
	dev, err := attach(image)
	must(t, err)
	defer dev.Close()
	must(t, unix.Mount(dev.Name(), dir, kind, 0, options))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir
}

// Each makes a directory in which a pool of one kind can be.
var hosts = map[string]struct {
	kind Kind
	dir  func(t testing.TB) string
}{
	"plain": {Plain, func(t testing.TB) string {
		return fileSystem(t, "ext4", "", 6<<30, "mkfs.ext4", "-q", "-F")
	}},
	"reflink": {Reflink, func(t testing.TB) string {
		return fileSystem(t, "xfs", "", 6<<30, "mkfs.xfs", "-q", "-s", "size=4096", "-m", "reflink=1")
	}},
	"image": {Btrfs, func(t testing.TB) string {
		return fileSystem(t, "ext4", "", 6<<30, "mkfs.ext4", "-q", "-F")
	}},
	"native": {Btrfs, func(t testing.TB) string {
		dir := fileSystem(t, "btrfs", "commit=1", 6<<30, "mkfs.btrfs", "-q", "-f", "-K", "-m", "single")
		_, err := openQuota(dir, true)
		must(t, err)
		return dir
	}},
}

// openPool opens a recovered pool at host/pool and closes it in the end.
func openPool(t testing.TB, host string, o Options) Pool {
	t.Helper()
	o.Dir = filepath.Join(host, "pool")
	p, err := Open(t.Context(), o)
	must(t, err)
	t.Cleanup(func() { closePool(t, p) })
	must(t, p.Recover(t.Context()))
	return p
}

// closePool is patient: the tests of other packages make mount namespaces,
// which have a copy of every mount for as long as they live.
func closePool(t testing.TB, p Pool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); ; {
		err := p.Close()
		if err == nil {
			return
		}
		if mayfly.KindOf(err) != mayfly.Conflict || time.Now().After(end) {
			t.Errorf("close: %v", err)
			return
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
