package archive

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// needRoot skips a test that changes owners.
func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
}

var then = time.Unix(1600000000, 0)

func file(name, content string) tar.Header {
	return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, ModTime: then, Size: int64(len(content)), PAXRecords: map[string]string{"comment": content}}
}
func dir(name string) tar.Header {
	return tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: 0o755, ModTime: then}
}
func symlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeSymlink, Name: name, Linkname: target, Mode: 0o777, ModTime: then}
}
func hardlink(name, target string) tar.Header {
	return tar.Header{Typeflag: tar.TypeLink, Name: name, Linkname: target, Mode: 0o644, ModTime: then}
}

// pack makes a tar stream. The content of a regular file is its PAX comment.
func pack(t testing.TB, headers ...tar.Header) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range headers {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatalf("header %q: %v", h.Name, err)
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, h.PAXRecords["comment"]); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &b
}

// place makes a destination with something precious beside it, and checks at
// the end that the latter did not change.
func place(t testing.TB) string {
	t.Helper()
	top := t.TempDir()
	for _, d := range []string{"dst", "outside/sub"} {
		if err := os.MkdirAll(filepath.Join(top, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(top, "outside/precious"), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	before := listing(t, filepath.Join(top, "outside"))
	t.Cleanup(func() {
		if after := listing(t, filepath.Join(top, "outside")); !maps.Equal(before, after) {
			t.Errorf("outside = %v, want %v", after, before)
		}
		entries, err := os.ReadDir(top)
		if err != nil || len(entries) != 2 {
			t.Errorf("beside the destination: %v, %v, want outside alone", entries, err)
		}
	})
	return filepath.Join(top, "dst")
}

// listing maps paths to what can be seen of them.
func listing(t testing.TB, root string) map[string]string {
	t.Helper()
	all := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		what := fmt.Sprintf("%o %d:%d %d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec)
		switch {
		case d.Type().IsRegular():
			content, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			what += fmt.Sprintf(" %d %q", st.Nlink, content[:min(len(content), 100)])
		case d.Type() == fs.ModeSymlink:
			target, _ := os.Readlink(path)
			what += " -> " + target
		}
		rel, _ := filepath.Rel(root, path)
		all[rel] = what
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func names(all map[string]string) []string { return slices.Sorted(maps.Keys(all)) }

func TestEverythingOfAnEntryIsKept(t *testing.T) {
	needRoot(t)
	dst := place(t)
	long := strings.Repeat("l", 255)
	withOwner := file("d/f", "hello")
	withOwner.Uid, withOwner.Gid, withOwner.Mode = 1000, 65535, 0o4751
	attr := file("attr", "x")
	attr.PAXRecords["SCHILY.xattr.user.note"] = "a\x00b"
	attr.PAXRecords["SCHILY.xattr.security.capability"] = "\x01\x00\x00\x02"
	attr.PAXRecords["SCHILY.xattr.system.posix_acl_access"] = "x"
	empty := dir("d")
	empty.Mode = 0o1700
	fifo := tar.Header{Typeflag: tar.TypeFifo, Name: "pipe", Mode: 0o640, ModTime: then}
	stats, err := Extract(t.Context(), pack(t, dir("./"), empty, withOwner, hardlink("h", "./d/f"), symlink("s", "../../outside/precious"), attr,
		fifo, file("odd\n\x01ü", ""), file(long+"/"+long, "long"), tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}),
		dst, Options{FIFOs: true, Setuid: true})
	if err != nil {
		t.Fatal(err)
	}
	if want := (Stats{Files: 11, Bytes: 10, Dropped: 2}); stats != want {
		t.Errorf("stats = %+v, want %+v", stats, want)
	}
	want := map[string]string{
		".":               "40755 0:0 1600000000",
		"d":               "41700 0:0 1600000000",
		"d/f":             `104751 1000:65535 1600000000 2 "hello"`,
		"h":               `104751 1000:65535 1600000000 2 "hello"`,
		"s":               "120777 0:0 1600000000 -> ../../outside/precious",
		"attr":            `100644 0:0 1600000000 1 "x"`,
		"pipe":            "10640 0:0 1600000000",
		"odd\n\x01ü":      `100644 0:0 1600000000 1 ""`,
		long:              "40755 0:0 0",
		long + "/" + long: `100644 0:0 1600000000 1 "long"`,
	}
	if got := listing(t, dst); !maps.Equal(got, want) {
		t.Errorf("tree = %q, want %q", got, want)
	}
	value := make([]byte, 16)
	if n, err := unix.Getxattr(filepath.Join(dst, "attr"), "user.note", value); err != nil || string(value[:max(n, 0)]) != "a\x00b" {
		t.Errorf("user.note = %q, %v, want a NUL b", value[:max(n, 0)], err)
	}
	if _, err := unix.Getxattr(filepath.Join(dst, "attr"), "security.capability", value); !errors.Is(err, unix.ENODATA) {
		t.Errorf("security.capability: %v, want ENODATA", err)
	}
}

func TestOwnerAndSetIDBitsAreReplacedOnRequest(t *testing.T) {
	needRoot(t)
	dst := place(t)
	f := file("a/f", "x")
	f.Mode, f.Uid = 0o6755, 4_000_000 // out of range, but not used
	if _, err := Extract(t.Context(), pack(t, f, symlink("s", "x"), dir("d")), dst, Options{Owner: &Owner{1000, 1001}}); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{
		"a": "40755 1000:1001 0", "a/f": `100755 1000:1001 1600000000 1 "x"`,
		"s": "120777 1000:1001 1600000000 -> x", "d": "40755 1000:1001 1600000000",
	}
	got := listing(t, dst)
	delete(got, ".")
	if !maps.Equal(got, want) {
		t.Errorf("tree = %q, want %q", got, want)
	}
}

// Each hostile archive is refused with a message, and what lies beside the
// destination stays as it is (see place).
func TestHostileArchivesAreRefused(t *testing.T) {
	needRoot(t)
	attr := func(name string) tar.Header {
		h := file("f", "x")
		h.PAXRecords["SCHILY.xattr."+name] = "y"
		return h
	}
	owner := func(uid, gid int) tar.Header {
		h := file("f", "x")
		h.Uid, h.Gid = uid, gid
		return h
	}
	typed := func(flag byte, name string) tar.Header {
		return tar.Header{Typeflag: flag, Name: name, Mode: 0o644}
	}
	for name, c := range map[string]struct {
		entries []tar.Header
		message string
	}{
		"absolute":                 {[]tar.Header{file("/outside/x", "x")}, "absolute"},
		"dotdot":                   {[]tar.Header{file("../outside/x", "x")}, "contains .."},
		"dotdot inside":            {[]tar.Header{dir("a"), file("a/../../outside/x", "x")}, "contains .."},
		"dotdot directory":         {[]tar.Header{dir("..")}, "contains .."},
		"through a link":           {[]tar.Header{symlink("l", "../outside"), file("l/x", "x")}, "through a symbolic link"},
		"through an absolute link": {[]tar.Header{symlink("l", "/tmp"), file("l/mayfly-x", "x")}, "through a symbolic link"},
		"directory through a link": {[]tar.Header{symlink("l", "../outside"), dir("l/new")}, "through a symbolic link"},
		"through a link to a link": {[]tar.Header{symlink("a", "b"), symlink("b", "../outside"), file("a/sub/x", "x")}, "through a symbolic link"},
		"magic link":               {[]tar.Header{symlink("l", "/proc/self/root"), file("l/tmp/x", "x")}, "through a symbolic link"},
		"through a file":           {[]tar.Header{file("f", "x"), file("f/x", "x")}, "not a directory"},
		"hard link outside":        {[]tar.Header{hardlink("h", "../outside/precious")}, "not a path inside"},
		"absolute hard link":       {[]tar.Header{hardlink("h", "/etc/passwd")}, "not a path inside"},
		"hard link through a link": {[]tar.Header{symlink("l", "../outside"), hardlink("h", "l/precious")}, "through a symbolic link"},
		"hard link to nothing":     {[]tar.Header{hardlink("h", "missing")}, "not there"},
		"hard link forward":        {[]tar.Header{hardlink("h", "f"), file("f", "x")}, "not there"},
		"hard link to a directory": {[]tar.Header{dir("d"), hardlink("h", "d")}, "not a file"},
		"hard link to the root":    {[]tar.Header{hardlink("h", ".")}, "not a path inside"},
		"character device":         {[]tar.Header{typed(tar.TypeChar, "null")}, "device node"},
		"block device":             {[]tar.Header{typed(tar.TypeBlock, "dev/sda")}, "device node"},
		"named pipe":               {[]tar.Header{typed(tar.TypeFifo, "p")}, "named pipe"},
		"unknown type":             {[]tar.Header{typed('Q', "q")}, "unknown type"},
		"root as a file":           {[]tar.Header{file(".", "x")}, "root of the archive"},
		"trusted attribute":        {[]tar.Header{attr("trusted.overlay.opaque")}, "trusted.overlay.opaque"},
		"overlay attribute":        {[]tar.Header{attr("user.overlay.redirect")}, "user.overlay.redirect"},
		"owner too large":          {[]tar.Header{owner(65536, 0)}, "65536:0"},
		"group too large":          {[]tar.Header{owner(0, 4294967294)}, "outside"},
		"negative owner":           {[]tar.Header{owner(-1, 0)}, "outside"},
		"long name":                {[]tar.Header{file(strings.Repeat("x", 256), "")}, "more than 255"},
		"long path":                {[]tar.Header{dir(strings.Repeat("x/", 2048))}, "4096 bytes"},
		"long target":              {[]tar.Header{symlink("l", strings.Repeat("x", 4096))}, "4096 bytes"},
		"empty target":             {[]tar.Header{symlink("l", "")}, "0 bytes"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			dst := place(t)
			_, err := Extract(t.Context(), pack(t, c.entries...), dst, Options{})
			var e *mayfly.Error
			if !errors.As(err, &e) || e.Kind != mayfly.Invalid || e.Fix == "" || !strings.Contains(e.Message, c.message) || !strings.HasPrefix(e.Message, "archive entry ") {
				t.Errorf("err = %v, want an invalid error with a hint that names the entry and %q", err, c.message)
			}
		})
	}
}

// Links are followed among directories on request, but only within the
// destination.
func TestLinksLeadNowhereElseWhenFollowed(t *testing.T) {
	needRoot(t)
	dst := place(t)
	_, err := Extract(t.Context(), pack(t,
		dir("usr"), dir("usr/lib"), symlink("lib", "usr/lib"), file("lib/a", "a"),
		symlink("abs", "/usr/lib"), file("abs/b", "b"),
		symlink("up", "../../../../usr"), file("up/lib/c", "c"), dir("up/new"),
		hardlink("lib/d", "abs/a")), dst, Options{FollowParents: true})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{".", "abs", "lib", "up", "usr", "usr/lib", "usr/lib/a", "usr/lib/b", "usr/lib/c", "usr/lib/d", "usr/new"}
	got := listing(t, dst)
	if !slices.Equal(names(got), want) {
		t.Errorf("tree = %q, want %q", names(got), want)
	}
	if !strings.HasSuffix(got["usr/lib"], " 1600000000") {
		t.Errorf("usr/lib = %s, want its own time in spite of what came through links", got["usr/lib"])
	}
	for _, entries := range [][]tar.Header{
		{symlink("l", "../outside"), file("l/x", "x")},            // resolves to /outside inside, which is missing
		{symlink("l", "/proc/self/root/tmp"), file("l/x", "x")},   // likewise
		{symlink("l", "l"), file("l/x", "x")},                     // a loop
		{symlink("l", "../outside"), hardlink("h", "l/precious")}, // a file outside
		{symlink("nowhere", "missing"), file("nowhere/x", "x")},   // nothing to make a directory of
		{symlink("nowhere", "missing"), dir("nowhere/x/y")},
	} {
		if _, err := Extract(t.Context(), pack(t, entries...), place(t), Options{FollowParents: true}); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%s then %s: %v, want an invalid error", entries[0].Linkname, entries[1].Name, err)
		}
	}
}

// Links to ever deeper directories must not make a tree that nothing can
// remove.
func TestNestingThroughLinksHasAnEnd(t *testing.T) {
	needRoot(t)
	dst := place(t)
	deep := strings.Repeat("d/", 1000)
	entries := []tar.Header{dir(deep), symlink("l0", deep)}
	for i := range 5 {
		entries = append(entries, dir(fmt.Sprintf("l%d/%s", i, deep)), symlink(fmt.Sprintf("l%d", i+1), fmt.Sprintf("l%d/%s", i, deep)))
	}
	_, err := Extract(t.Context(), pack(t, entries...), dst, Options{FollowParents: true})
	if mayfly.KindOf(err) != mayfly.Invalid || !strings.Contains(err.Error(), "too long") {
		t.Errorf("err = %v, want an invalid error about the length", err)
	}
}

func TestTheLastOfTwoEntriesWins(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		entries []tar.Header
		want    string // listing of p
	}{
		"file over file":      {[]tar.Header{file("p", "one"), file("p", "two!")}, `100644 0:0 1600000000 1 "two!"`},
		"file over link out":  {[]tar.Header{symlink("p", "../outside/precious"), file("p", "x")}, `100644 0:0 1600000000 1 "x"`},
		"file over hard link": {[]tar.Header{file("a", "keep"), hardlink("p", "a"), file("p", "x")}, `100644 0:0 1600000000 1 "x"`},
		"file over directory": {[]tar.Header{dir("p"), file("p/q/r", "x"), file("p", "x")}, `100644 0:0 1600000000 1 "x"`},
		"directory over link": {[]tar.Header{symlink("p", "../outside"), dir("p"), file("p/x", "")}, `40755 0:0 1600000000`},
		"link over directory": {[]tar.Header{dir("p"), file("p/x", ""), symlink("p", "../outside")}, `120777 0:0 1600000000 -> ../outside`},
		"link over link":      {[]tar.Header{symlink("p", "../outside"), symlink("p", "y")}, `120777 0:0 1600000000 -> y`},
		"hard link to itself": {[]tar.Header{file("p", "x"), hardlink("p", "./p")}, `100644 0:0 1600000000 1 "x"`},
		"hard link to a link": {[]tar.Header{symlink("a", "../outside/precious"), hardlink("p", "a")}, `120777 0:0 1600000000 -> ../outside/precious`},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			dst := place(t)
			if _, err := Extract(t.Context(), pack(t, c.entries...), dst, Options{}); err != nil {
				t.Fatal(err)
			}
			got := listing(t, dst)
			if got["p"] != c.want {
				t.Errorf("p = %q, want %q", got["p"], c.want)
			}
			if a, ok := got["a"]; ok && c.entries[0].Typeflag == tar.TypeReg && !strings.Contains(a, "keep") {
				t.Errorf("a = %q, want it untouched", a)
			}
		})
	}
}

func TestLimitsHold(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		entries []tar.Header
		o       Options
	}{
		"bytes":          {[]tar.Header{file("a", "12345"), file("b", "123456")}, Options{MaxBytes: 10}},
		"files":          {[]tar.Header{file("a", ""), file("b", ""), file("c", "")}, Options{MaxFiles: 2}},
		"implicit":       {[]tar.Header{file("a/b/c/d", "")}, Options{MaxFiles: 3}},
		"global headers": {slices.Repeat([]tar.Header{{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"comment": "x"}}}, 5), Options{MaxFiles: 4}},
	} {
		_, err := Extract(t.Context(), pack(t, c.entries...), place(t), c.o)
		var e *mayfly.Error
		if !errors.As(err, &e) || e.Kind != mayfly.Exhausted || e.Fix == "" {
			t.Errorf("%s: %v, want an exhausted error with a hint", name, err)
		}
	}
}

// A sparse file costs what it holds, and its holes count against the limit.
func TestSparseFilesStaySparse(t *testing.T) {
	needRoot(t)
	const size = 256 << 20
	sparse := gnuSparse(size)
	dst := place(t)
	stats, err := Extract(t.Context(), bytes.NewReader(sparse), dst, Options{})
	if err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(dst, "sparse"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != size || stats.Bytes != size || st.Blocks*512 > 1<<20 {
		t.Errorf("size %d, counted %d, on disk %d, want %d, %d and little", st.Size, stats.Bytes, st.Blocks*512, size, size)
	}
	tail := make([]byte, 4)
	f, err := os.Open(filepath.Join(dst, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(tail, size-512); err != nil || string(tail) != "data" {
		t.Errorf("at the end: %q, %v, want data", tail, err)
	}
	if _, err := Extract(t.Context(), bytes.NewReader(sparse), place(t), Options{MaxBytes: size - 1}); mayfly.KindOf(err) != mayfly.Exhausted {
		t.Errorf("err = %v, want an exhausted error", err)
	}
}

// gnuSparse is an archive in the old GNU format with one file: a hole, then
// a block that begins with "data".
func gnuSparse(size int64) []byte {
	h := make([]byte, 512)
	copy(h, "sparse")
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], fmt.Sprintf("%011o\x00", 512))
	copy(h[136:], fmt.Sprintf("%011o\x00", then.Unix()))
	h[156] = 'S'
	copy(h[257:], "ustar  \x00")
	copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00", size-512, 512))
	copy(h[483:], fmt.Sprintf("%011o\x00", size))
	copy(h[148:], "        ")
	sum := 0
	for _, c := range h {
		sum += int(c)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	block := make([]byte, 512)
	copy(block, "data")
	return slices.Concat(h, block, make([]byte, 1024))
}

// A stream of extension headers makes the tar reader loop without ever
// returning an entry.
func TestEndlessHeadersAreNotReadForever(t *testing.T) {
	var one bytes.Buffer
	w := tar.NewWriter(&one)
	h := file("f", "")
	h.PAXRecords["comment"] = strings.Repeat("x", 60<<10)
	if err := w.WriteHeader(&h); err != nil {
		t.Fatal(err)
	}
	header := one.Bytes()[:one.Len()-512] // without the entry itself
	_, err := Extract(t.Context(), endless{bytes.NewReader(header)}, place(t), Options{})
	if mayfly.KindOf(err) != mayfly.Invalid || !strings.Contains(err.Error(), "headers") {
		t.Errorf("err = %v, want an invalid error about headers", err)
	}
}

type endless struct{ r *bytes.Reader }

func (e endless) Read(p []byte) (int, error) {
	if e.r.Len() == 0 {
		e.r.Seek(0, io.SeekStart)
	}
	return e.r.Read(p)
}

func TestExtractStopsWithItsContext(t *testing.T) {
	needRoot(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("the client left")
	cancel(why)
	if _, err := Extract(ctx, pack(t, file("a", "x")), place(t), Options{}); !errors.Is(err, why) {
		t.Errorf("err = %v, want %v", err, why)
	}
}

func TestTruncatedArchivesAreErrors(t *testing.T) {
	needRoot(t)
	whole, err := io.ReadAll(pack(t, dir("d"), file("d/f", strings.Repeat("x", 2000)), file("g", "y")))
	if err != nil {
		t.Fatal(err)
	}
	for n := 0; n < len(whole)-512; n += 128 { // one zero block is enough
		if _, err := Extract(t.Context(), bytes.NewReader(whole[:n]), place(t), Options{}); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%d of %d bytes: %v, want an invalid error", n, len(whole), err)
		}
	}
}

func TestUnterminatedArchivesAreAcceptedOnRequest(t *testing.T) {
	needRoot(t)
	whole, err := io.ReadAll(pack(t, file("f", "x")))
	if err != nil {
		t.Fatal(err)
	}
	for _, data := range [][]byte{whole[:len(whole)-1024], nil} {
		if _, err := Extract(t.Context(), bytes.NewReader(data), place(t), Options{Unterminated: true}); err != nil {
			t.Errorf("%d bytes: %v, want no error", len(data), err)
		}
		if _, err := Extract(t.Context(), bytes.NewReader(data), place(t), Options{}); mayfly.KindOf(err) != mayfly.Invalid {
			t.Errorf("%d bytes: %v, want an invalid error", len(data), err)
		}
	}
}

func TestReadErrorsAreNotBlamedOnTheArchive(t *testing.T) {
	needRoot(t)
	broken := errors.New("connection reset")
	r := io.MultiReader(io.LimitReader(pack(t, file("f", strings.Repeat("x", 5000))), 1000), readerFunc(func([]byte) (int, error) { return 0, broken }))
	if _, err := Extract(t.Context(), r, place(t), Options{}); !errors.Is(err, broken) {
		t.Errorf("err = %v, want %v", err, broken)
	}
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func TestFullDiskIsSaidSo(t *testing.T) {
	needRoot(t)
	dst := place(t)
	if err := unix.Mount("tmpfs", dst, "tmpfs", 0, "size=256k"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dst, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	err := w.WriteHeader(&tar.Header{Name: "f", Size: 1 << 20})
	if _, writeErr := w.Write(bytes.Repeat([]byte("x"), 1<<20)); err != nil || writeErr != nil {
		t.Fatal(err, writeErr)
	}
	_, err = Extract(t.Context(), &b, dst, Options{})
	if mayfly.KindOf(err) != mayfly.Exhausted || !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("err = %v, want an exhausted error for ENOSPC", err)
	}
}

func TestMountsInsideTheDestinationAreNotEntered(t *testing.T) {
	needRoot(t)
	dst := place(t)
	if err := os.Mkdir(filepath.Join(dst, "m"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", filepath.Join(dst, "m"), "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(filepath.Join(dst, "m"), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	if _, err := Extract(t.Context(), pack(t, file("m/f", "x")), dst, Options{}); mayfly.KindOf(err) != mayfly.Invalid {
		t.Errorf("err = %v, want an invalid error", err)
	}
}

func BenchmarkExtractSmallFiles(b *testing.B) {
	needRoot(b)
	var headers []tar.Header
	for d := range 100 {
		headers = append(headers, dir(fmt.Sprintf("d%d", d)))
		for f := range 100 {
			headers = append(headers, file(fmt.Sprintf("d%d/f%d", d, f), "some content"))
		}
	}
	data, _ := io.ReadAll(pack(b, headers...))
	for b.Loop() {
		if _, err := Extract(b.Context(), bytes.NewReader(data), b.TempDir(), Options{}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N)/10000, "µs/file")
}
