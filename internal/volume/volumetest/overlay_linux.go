package volumetest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly/internal/volume"
)

// Mount mounts an overlay of the tree over the layers, topmost first, as an
// environment has it: with redirects and volatile. Unmounting is also done at
// the end of the test.
func Mount(t testing.TB, tree volume.Tree, lower ...string) (dir string, unmount func()) {
	t.Helper()
	dir = t.TempDir()
	if len(lower) == 0 {
		lower = []string{t.TempDir()}
	}
	options := "redirect_dir=on,metacopy=off,index=off,volatile,lowerdir=" + strings.Join(lower, ":") +
		",upperdir=" + tree.Upper + ",workdir=" + tree.Work
	if err := unix.Mount("overlay", dir, "overlay", 0, options); err != nil {
		t.Fatalf("mount overlay of %s: %v", tree.Upper, err)
	}
	done := false
	unmount = func() {
		if !done {
			done = true
			if err := unmountOverlay(dir); err != nil {
				t.Errorf("unmount overlay of %s: %v", tree.Upper, err)
			}
		}
	}
	t.Cleanup(unmount)
	return dir, unmount
}

// unmountOverlay waits a moment for whoever has just been forked with a
// descriptor on the overlay, and lets go of it when it executes.
func unmountOverlay(dir string) error {
	for deadline := time.Now().Add(2 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := unix.Unmount(dir, 0)
		if err != unix.EBUSY || time.Now().After(deadline) {
			return err
		}
	}
}

// view returns the manifest of the merged view of a tree over layers.
func view(t testing.TB, upper string, lower ...string) Manifest {
	t.Helper()
	v, err := volume.OpenView(t.Context(), append([]string{upper}, lower...))
	if err != nil {
		t.Fatalf("open view: %v", err)
	}
	defer v.Close()
	return manifestOf(t, v.Root())
}

// write makes a file with its parents.
func write(t testing.TB, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
