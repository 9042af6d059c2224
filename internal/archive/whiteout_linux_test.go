package archive

import (
	"archive/tar"
	"slices"
	"strings"
	"testing"

	"mayfly.dev/mayfly"
)

func TestWhiteoutsHideWhatLowerLayersLeft(t *testing.T) {
	needRoot(t)
	lower := []tar.Header{dir("d"), file("d/a", "a"), file("d/b", "b"), dir("d/sub"), file("d/sub/x", "x"), file("e", "e"), symlink("link", "d")}
	for name, c := range map[string]struct {
		upper   []tar.Header
		want    []string
		removed int
	}{
		"nothing":                    {nil, []string{".", "d", "d/a", "d/b", "d/sub", "d/sub/x", "e", "link"}, 0},
		"a file":                     {[]tar.Header{file("d/.wh.a", "")}, []string{".", "d", "d/b", "d/sub", "d/sub/x", "e", "link"}, 1},
		"a directory":                {[]tar.Header{file(".wh.d", "")}, []string{".", "e", "link"}, 1},
		"a link, not its target":     {[]tar.Header{file(".wh.link", "")}, []string{".", "d", "d/a", "d/b", "d/sub", "d/sub/x", "e"}, 1},
		"nothing that is there":      {[]tar.Header{file(".wh.zzz", ""), file("no/such/.wh.zzz", "")}, []string{".", "d", "d/a", "d/b", "d/sub", "d/sub/x", "e", "link"}, 0},
		"opaque":                     {[]tar.Header{file("d/.wh..wh..opq", "")}, []string{".", "d", "e", "link"}, 3},
		"opaque root":                {[]tar.Header{file(".wh..wh..opq", "")}, []string{"."}, 3},
		"opaque before content":      {[]tar.Header{dir("d"), file("d/.wh..wh..opq", ""), file("d/new", ""), file("d/sub/y", "")}, []string{".", "d", "d/new", "d/sub", "d/sub/y", "e", "link"}, 3},
		"opaque after content":       {[]tar.Header{dir("d"), file("d/new", ""), file("d/a", "A"), dir("d/sub"), file("d/sub/y", ""), file("d/.wh..wh..opq", "")}, []string{".", "d", "d/a", "d/new", "d/sub", "d/sub/y", "e", "link"}, 2},
		"whiteout after replacement": {[]tar.Header{file("d/a", "A"), file("d/.wh.a", "")}, []string{".", "d", "d/a", "d/b", "d/sub", "d/sub/x", "e", "link"}, 0},
		"whiteout after new content": {[]tar.Header{dir("d"), dir("d/sub"), file("d/sub/y", ""), file("d/.wh.sub", "")}, []string{".", "d", "d/a", "d/b", "d/sub", "d/sub/y", "e", "link"}, 1},
		"records of aufs":            {[]tar.Header{dir(".wh..wh.plnk"), file(".wh..wh.aufs", "")}, []string{".", "d", "d/a", "d/b", "d/sub", "d/sub/x", "e", "link"}, 0},
		"through a link":             {[]tar.Header{file("link/.wh.a", "")}, []string{".", "d", "d/b", "d/sub", "d/sub/x", "e", "link"}, 1},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			dst := place(t)
			o := Options{Whiteouts: true, FollowParents: true}
			if _, err := Extract(t.Context(), pack(t, lower...), dst, o); err != nil {
				t.Fatal(err)
			}
			stats, err := Extract(t.Context(), pack(t, c.upper...), dst, o)
			if err != nil {
				t.Fatal(err)
			}
			got := listing(t, dst)
			if !slices.Equal(names(got), c.want) || stats.Removed != c.removed {
				t.Errorf("tree = %q, %d removed, want %q, %d", names(got), stats.Removed, c.want, c.removed)
			}
			if d, ok := got["d"]; ok && !strings.HasSuffix(d, " 1600000000") {
				t.Errorf("d = %s, want its time kept", d)
			}
		})
	}
}

func TestHostileWhiteoutsRemoveNothingOutside(t *testing.T) {
	needRoot(t)
	for name, entries := range map[string][]tar.Header{
		"of the parent": {file(".wh...", "")},
		"of itself":     {dir("d"), file("d/.wh..", "")},
		"of nothing":    {file(".wh.", "")},
	} {
		if _, err := Extract(t.Context(), pack(t, entries...), place(t), Options{Whiteouts: true, FollowParents: true}); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%s: %v, want an invalid error", name, err)
		}
	}
	for name, entries := range map[string][]tar.Header{
		"through a link":      {symlink("l", "../outside"), file("l/.wh.precious", "")},
		"opaque link":         {symlink("l", "../outside"), file("l/.wh..wh..opq", "")},
		"of a link":           {symlink("l", "../outside"), file(".wh.l", "")},
		"of a tree of links":  {dir("d"), symlink("d/l", "../../outside"), file(".wh.d", "")},
		"opaque over a link":  {dir("d"), symlink("d/l", "../../outside"), file("d/.wh..wh..opq", "")},
		"through an absolute": {symlink("l", "/proc/self/cwd"), file("l/.wh.extract_linux.go", "")},
	} {
		dst := place(t)
		if _, err := Extract(t.Context(), pack(t, entries...), dst, Options{Whiteouts: true, FollowParents: true}); err != nil && mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%s: %v, want success or an invalid error", name, err)
		}
	}
}

func TestWhiteoutsAreOrdinaryFilesInWorkspaces(t *testing.T) {
	needRoot(t)
	dst := place(t)
	if _, err := Extract(t.Context(), pack(t, file("a", ""), file(".wh.a", "x"), file(".wh..wh..opq", "")), dst, Options{}); err != nil {
		t.Fatal(err)
	}
	if got, want := names(listing(t, dst)), []string{".", ".wh..wh..opq", ".wh.a", "a"}; !slices.Equal(got, want) {
		t.Errorf("tree = %q, want %q", got, want)
	}
}
