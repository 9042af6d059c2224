//go:build linux

package volume

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzCandidatesTakeAnyMarks lets an environment write what it likes into the
// attributes that overlays read.
func FuzzCandidatesTakeAnyMarks(f *testing.F) {
	if os.Geteuid() != 0 {
		f.Skip("needs root: mounts overlays")
	}
	for _, s := range []struct{ opaque, redirect, whiteout string }{
		{"y", "", ""}, {"x", "", "y"}, {"", "/moved", ""}, {"y", "moved", ""}, {"", "../../etc", ""},
		{"", "/../../etc", ""}, {"", "/", ""}, {"z", "a/b", "y"}, {"", strings.Repeat("a/", 500), ""}, {"x", "\xff\n", ""},
	} {
		f.Add([]byte(s.opaque), []byte(s.redirect), []byte(s.whiteout))
	}
	f.Fuzz(func(t *testing.T, opaque, redirect, whiteout []byte) {
		lower, upper := t.TempDir(), t.TempDir()
		must(t, put(lower+"/moved/a", "1"))
		must(t, put(lower+"/dir/b", "1"))
		must(t, put(upper+"/dir/c", ""))
		for attr, value := range map[string][]byte{"opaque": opaque, "redirect": redirect} {
			if len(value) > 0 && len(value) < 2000 {
				must(t, unix.Setxattr(upper+"/dir", "trusted.overlay."+attr, value, 0))
			}
		}
		if len(whiteout) < 2000 {
			must(t, unix.Setxattr(upper+"/dir/c", "trusted.overlay.whiteout", whiteout, 0))
		}
		for _, prefix := range []string{"", "dir", "dir/c"} {
			paths, err := Candidates(t.Context(), "", upper, []string{lower}, []string{lower}, prefix)
			if err != nil {
				continue // a redirect that the kernel refuses to follow
			}
			for _, p := range paths {
				if !filepath.IsLocal(p) {
					t.Errorf("candidate %q is outside", p)
				}
			}
		}
	})
}

func TestInvalidRedirectIsAnError(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts overlays")
	}
	lower, upper := t.TempDir(), t.TempDir()
	must(t, put(lower+"/d/old", "1"))
	must(t, put(upper+"/d/new", "1"))
	must(t, unix.Setxattr(upper+"/d", "trusted.overlay.redirect", []byte("a/b"), 0)) // neither a name nor absolute
	if paths, err := Candidates(t.Context(), "", upper, []string{lower}, []string{lower}, ""); err == nil {
		t.Errorf("candidates = %q, want an error", paths)
	}
}
