package volumetest

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Names that are valid and unusual: a line break, invalid UTF-8, the longest.
var oddNames = []string{"new\nline", "bad\xff\xfeutf8", strings.Repeat("n", 255), " ", "-rf", "a\\b", "…", "*"}

// gnarlyLower is a layer with things that overlays treat specially when they
// change.
func gnarlyLower(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	write(t, dir+"/kept", "kept")
	write(t, dir+"/deleted", "deleted")
	write(t, dir+"/tree/a/b/c", "deep")
	write(t, dir+"/tree/d", "d")
	write(t, dir+"/replaced/old", "old")
	write(t, dir+"/becomes-file/x", "x")
	write(t, dir+"/becomes-dir", "y")
	write(t, dir+"/to-move/inner/leaf", "leaf")
	write(t, dir+"/to-move/gone", "gone")
	write(t, dir+"/linked", "linked")
	must(t, os.Link(dir+"/linked", dir+"/linked-too"))
	return dir
}

// gnarlyChanges makes every kind of change below dir that an agent could make,
// be it an overlay over gnarlyLower or an empty directory.
func gnarlyChanges(t testing.TB, dir string) {
	t.Helper()
	_ = os.Remove(dir + "/deleted") // a whiteout
	must(t, os.RemoveAll(dir+"/tree/a"))
	must(t, os.RemoveAll(dir+"/replaced"))
	write(t, dir+"/replaced/new", "new") // an opaque directory
	must(t, os.RemoveAll(dir+"/becomes-file"))
	write(t, dir+"/becomes-file", "file")
	must(t, os.RemoveAll(dir+"/becomes-dir"))
	write(t, dir+"/becomes-dir/file", "file")
	if _, err := os.Lstat(dir + "/to-move"); err == nil {
		must(t, os.Rename(dir+"/to-move", dir+"/moved")) // a redirect
		must(t, os.Remove(dir+"/moved/gone"))
		must(t, os.Rename(dir+"/moved/inner", dir+"/inner"))
		must(t, os.Rename(dir+"/inner", dir+"/moved/inner"))
	}
	for _, name := range oddNames {
		write(t, dir+"/odd/"+name, name)
		write(t, dir+"/odd-dirs/"+name+"/file", "x")
	}
	gnarlyFiles(t, dir)
	gnarlyAttributes(t, dir)
}

func gnarlyFiles(t testing.TB, dir string) {
	t.Helper()
	write(t, dir+"/hard/1", "several names")
	must(t, os.Link(dir+"/hard/1", dir+"/hard/2"))
	must(t, os.Link(dir+"/hard/1", dir+"/odd/3"))
	for name, target := range map[string]string{"dangling": "/no/where", "up": "../../../../etc/passwd", "odd": "a\n\xff", "loop": "loop"} {
		must(t, os.Symlink(target, dir+"/link-"+name))
	}
	must(t, os.Link(dir+"/link-up", dir+"/link-up-too"))
	must(t, unix.Mkfifo(dir+"/fifo", 0o622))
	must(t, unix.Mknod(dir+"/socket", unix.S_IFSOCK|0o600, 0))
	write(t, dir+"/empty", "")

	sparse, err := os.Create(dir + "/sparse")
	must(t, err)
	defer sparse.Close()
	must(t, sparse.Truncate(1<<30)) // ends with a hole
	for _, at := range []int64{0, 1 << 20, 1<<29 + 4097, 1<<29 + 1<<28} {
		_, err = sparse.WriteAt([]byte("data between holes"), at)
		must(t, err)
	}
	hole, err := os.Create(dir + "/hole")
	must(t, err)
	defer hole.Close()
	must(t, hole.Truncate(5<<20+3))
	large := bytes.Repeat([]byte("0123456789abcdef"), 1<<20) // 16 MiB
	must(t, os.WriteFile(dir+"/large", large[:len(large)-7], 0o644))
}

func gnarlyAttributes(t testing.TB, dir string) {
	t.Helper()
	write(t, dir+"/attr/file", "x")
	must(t, unix.Setxattr(dir+"/attr/file", "user.note", []byte("a\x00b"), 0))
	must(t, unix.Setxattr(dir+"/attr/file", "user.empty", nil, 0))
	must(t, unix.Setxattr(dir+"/attr/file", "trusted.note", []byte("t"), 0))
	must(t, unix.Setxattr(dir+"/attr", "user.dir", []byte("d"), 0))
	must(t, unix.Lsetxattr(dir+"/link-odd", "trusted.link", []byte("l"), 0))
	// cap_net_raw=ep: vanishes when the owner changes afterwards
	must(t, os.Chown(dir+"/attr/file", 1000, 1001))
	must(t, unix.Setxattr(dir+"/attr/file", "security.capability",
		[]byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	write(t, dir+"/attr/suid", "x")
	must(t, os.Chown(dir+"/attr/suid", 1000, 1000))
	must(t, unix.Chmod(dir+"/attr/suid", 0o6751))
	write(t, dir+"/attr/none", "x")
	must(t, unix.Chmod(dir+"/attr/none", 0))
	must(t, os.Mkdir(dir+"/attr/sticky", 0o700))
	must(t, unix.Chmod(dir+"/attr/sticky", 0o3777))
	must(t, unix.Lchown(dir+"/link-dangling", 1000, 1000))
	for _, path := range []string{"attr/none", "attr/sticky", "link-dangling", "fifo", "odd"} {
		mtime := unix.NsecToTimespec(time.Date(2001, 2, 3, 4, 5, 6, 123456789, time.UTC).UnixNano())
		must(t, unix.UtimesNanoAt(unix.AT_FDCWD, dir+"/"+path, []unix.Timespec{mtime, mtime}, unix.AT_SYMLINK_NOFOLLOW))
	}
}
