package archive

import (
	"archive/tar"
	"bytes"
	"io"
	"testing"

	"mayfly.dev/mayfly"
)

// Whatever the bytes: no panic, nothing outside changes (see place), and
// errors are blamed on the archive.
func FuzzExtract(f *testing.F) {
	needRoot(f)
	for _, entries := range [][]tar.Header{
		{dir("d"), file("d/f", "content"), symlink("l", "../outside"), file("l/x", "x"), hardlink("h", "l/precious")},
		{dir("d"), file("d/a", ""), file("d/.wh.a", ""), file("d/.wh..wh..opq", ""), symlink("d", "../outside"), dir("d/x")},
		{symlink("a", "/"), symlink("a/b", ".."), file("a/b/c", "x"), dir("..")},
	} {
		data, err := io.ReadAll(pack(f, entries...))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data, true)
		f.Add(data, false)
	}
	f.Add(gnuSparse(1<<20), true)
	f.Fuzz(func(t *testing.T, data []byte, image bool) {
		o := Options{MaxBytes: 1 << 20, MaxFiles: 1000, FIFOs: image, Setuid: image, SkipDevices: image, FollowParents: image, Whiteouts: image}
		_, err := Extract(t.Context(), bytes.NewReader(data), place(t), o)
		if k := mayfly.KindOf(err); err != nil && k != mayfly.Invalid && k != mayfly.Exhausted {
			t.Errorf("kind of %v = %s, want invalid or exhausted", err, k)
		}
	})
}
