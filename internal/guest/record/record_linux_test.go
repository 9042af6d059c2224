package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// run makes the directory of a run below a new host directory.
func run(t testing.TB) (host string, dir *os.File) {
	t.Helper()
	host = t.TempDir()
	if err := os.MkdirAll(filepath.Join(host, "runs", "r"), 0o700); err != nil {
		t.Fatal(err)
	}
	dir, err := OpenRun(host, "r")
	if err != nil {
		t.Fatal(err)
	}
	return host, dir
}

func newLog(t testing.TB, dir *os.File, limit int64) *Log {
	t.Helper()
	l, err := NewLog(int(dir.Fd()), limit)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// next reads one frame; an empty stream means that there is none.
func next(t testing.TB, r *Reader) (stream byte, data string) {
	t.Helper()
	f, err := r.Next()
	if err == io.EOF {
		return 0, ""
	}
	if err != nil {
		t.Fatal(err)
	}
	return f.Stream, string(f.Data)
}

func TestReaderFollowsWriter(t *testing.T) {
	_, dir := run(t)
	r := NewReader(dir)
	defer r.Close()
	if s, _ := next(t, r); s != 0 {
		t.Errorf("before the log: got = %d, want nothing", s)
	}
	l := newLog(t, dir, 0)
	for i := range 3 {
		if s, _ := next(t, r); s != 0 {
			t.Errorf("nothing written: got = %d, want nothing", s)
		}
		l.Write(Stderr, int64(i), fmt.Appendf(nil, "piece %d", i))
		if s, d := next(t, r); s != Stderr || d != fmt.Sprintf("piece %d", i) {
			t.Errorf("got = %d %q, want piece %d", s, d, i)
		}
	}
}

func TestSlowReaderLearnsHowMuchItMissed(t *testing.T) {
	host, dir := run(t)
	r := NewReader(dir)
	defer r.Close()
	l := newLog(t, dir, minLog)
	piece := bytes.Repeat([]byte("x"), 1000)
	read, dropped := 0, 0
	count := func() {
		f, err := r.Next()
		if err == io.EOF {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if f.Stream == Notice {
			var n int
			fmt.Sscanf(string(f.Data), "[%d bytes", &n)
			dropped += n
			return
		}
		read += len(f.Data)
	}
	const pieces = 5000
	for i := range pieces {
		l.Write(Stdout, int64(i), piece)
		if i%7 == 0 {
			count()
		}
	}
	l.Close()
	for before := -1; before != read+dropped; {
		before = read + dropped
		count()
	}
	if read+dropped != pieces*len(piece) || dropped == 0 {
		t.Errorf("read %d, dropped %d: got = %d, want %d", read, dropped, read+dropped, pieces*len(piece))
	}
	var size int64
	entries, _ := os.ReadDir(filepath.Join(host, "runs", "r"))
	for _, e := range entries {
		info, _ := e.Info()
		size += info.Size()
	}
	if size > minLog+minLog/segments+maxFrame {
		t.Errorf("on disk: got = %d, want about %d", size, minLog)
	}
}

func TestPieceLargerThanAFrameIsSplit(t *testing.T) {
	_, dir := run(t)
	newLog(t, dir, 0).Write(Stdout, 1, bytes.Repeat([]byte("y"), MaxPayload+1))
	r := NewReader(dir)
	defer r.Close()
	_, first := next(t, r)
	_, second := next(t, r)
	if len(first) != MaxPayload || len(second) != 1 {
		t.Errorf("got = %d and %d, want %d and 1", len(first), len(second), MaxPayload)
	}
}

func TestPartOfAFrameIsNotYetThere(t *testing.T) {
	host, dir := run(t)
	l := newLog(t, dir, 0)
	r := NewReader(dir)
	defer r.Close()
	b := AppendFrame(nil, Frame{Stream: Stdout, Data: []byte("whole")})
	f, err := os.OpenFile(filepath.Join(host, "runs", "r", segmentName(0)), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for i := range b[:len(b)-1] {
		if _, err := f.Write(b[i : i+1]); err != nil {
			t.Fatal(err)
		}
		if s, _ := next(t, r); s != 0 {
			t.Fatalf("after %d bytes: got = %d, want nothing", i+1, s)
		}
	}
	f.Write(b[len(b)-1:])
	if _, d := next(t, r); d != "whole" {
		t.Errorf("got = %q, want whole", d)
	}
	_ = l
}

// TestHostileFilesAreRefused plants what a guest could that is not itself any
// more.
func TestHostileFilesAreRefused(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte(`{"run":"r"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, plant := range map[string]func(path string) error{
		"link":      func(path string) error { return os.Symlink(secret, path) },
		"fifo":      func(path string) error { return unix.Mkfifo(path, 0o600) },
		"directory": func(path string) error { return os.Mkdir(path, 0o700) },
		"device":    func(path string) error { return unix.Mknod(path, unix.S_IFSOCK|0o600, 0) },
		"sparse":    func(path string) error { os.WriteFile(path, nil, 0o600); return os.Truncate(path, 1<<40) },
		"garbage":   func(path string) error { return os.WriteFile(path, bytes.Repeat([]byte("a"), 1<<20), 0o600) },
	} {
		t.Run(name, func(t *testing.T) {
			host, dir := run(t)
			for _, file := range []string{ExitFile, segmentName(0)} {
				if err := plant(filepath.Join(host, "runs", "r", file)); err != nil {
					t.Fatal(err)
				}
			}
			if b, err := ReadExit(dir); err == nil {
				t.Errorf("exit record: got = %d bytes, want an error", len(b))
			}
			r := NewReader(dir)
			defer r.Close()
			if f, err := r.Next(); err == nil {
				t.Errorf("log: got = %q, want an error", f.Data)
			}
		})
	}
	t.Run("run is a link", func(t *testing.T) {
		host, dir := run(t)
		dir.Close()
		if err := os.Symlink("/", filepath.Join(host, "runs", "evil")); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenRun(host, "evil"); err == nil {
			t.Error("opened")
		}
	})
}

func TestSegmentsThatLieAreCorrupt(t *testing.T) {
	for name, header := range map[string][]byte{
		"other number": appendSegmentHeader(nil, 5, 0),
		"no magic":     append([]byte("notalog!"), make([]byte, 16)...),
	} {
		host, dir := run(t)
		if err := os.WriteFile(filepath.Join(host, "runs", "r", segmentName(0)), header, 0o600); err != nil {
			t.Fatal(err)
		}
		r := NewReader(dir)
		if _, err := r.Next(); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got = %v, want corrupt", name, err)
		}
		r.Close()
	}
	host, dir := run(t)
	newLog(t, dir, 0).Write(Stdout, 1, []byte("abc"))
	if err := os.WriteFile(filepath.Join(host, "runs", "r", segmentName(1)), appendSegmentHeader(nil, 1, 1), 0o600); err != nil {
		t.Fatal(err)
	}
	r := NewReader(dir)
	defer r.Close()
	next(t, r)
	if _, err := r.Next(); !errors.Is(err, ErrCorrupt) {
		t.Errorf("fewer bytes than before: got = %v, want corrupt", err)
	}
}

func TestExitRecordIsReadBack(t *testing.T) {
	_, dir := run(t)
	if _, err := ReadExit(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("before: got = %v, want not exist", err)
	}
	want := Exit{Run: "r", Code: 127, Reason: "\"quoted\" \\ \x1b[31m\n päth", OOM: true, Started: 1, Ended: -2, UserCPU: 3, SystemCPU: 4, MaxRSS: 5}
	if err := WriteExit(int(dir.Fd()), want); err != nil {
		t.Fatal(err)
	}
	b, err := ReadExit(dir)
	if err != nil {
		t.Fatal(err)
	}
	var got Exit
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v in %s", err, b)
	}
	want.Reason = "\"quoted\" \\ ?[31m? päth"
	if got != want {
		t.Errorf("got = %+v, want %+v", got, want)
	}
}

func TestExitRecordIsBounded(t *testing.T) {
	for _, reason := range []string{strings.Repeat("\"", 1<<20), strings.Repeat("ä", 1<<20)} {
		if n := len((Exit{Reason: reason}).AppendJSON(nil)); n > MaxExit {
			t.Errorf("got = %d bytes, want at most %d", n, MaxExit)
		}
	}
}

func TestLogThatCannotBeWrittenHoldsNobodyUp(t *testing.T) {
	host, dir := run(t)
	l := newLog(t, dir, minLog)
	if err := os.Mkdir(filepath.Join(host, "runs", "r", segmentName(1)), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 100 {
		l.Write(Stdout, 1, make([]byte, MaxPayload))
	}
	if err := l.Close(); !errors.Is(err, fs.ErrExist) {
		t.Errorf("got = %v, want exists", err)
	}
}

func FuzzParseFrame(f *testing.F) {
	f.Add(AppendFrame(nil, Frame{Stream: Stdout, Time: 1, Data: []byte("x")}))
	f.Add([]byte{1, 0, 0, 0, 255, 255, 255, 255, 0, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		frame, n, err := ParseFrame(b)
		if err != nil || n == 0 {
			return
		}
		if again := AppendFrame(nil, frame); !bytes.Equal(again, b[:n]) {
			t.Errorf("got = %x, want %x", again, b[:n])
		}
	})
}

// FuzzReader reads logs of two segments with any content: it must end, and
// never return more than was there.
func FuzzReader(f *testing.F) {
	frame := AppendFrame(nil, Frame{Stream: Stdout, Data: []byte("hello")})
	f.Add(append(appendSegmentHeader(nil, 0, 0), frame...), append(appendSegmentHeader(nil, 7, 5), frame...))
	f.Add(append(appendSegmentHeader(nil, 0, 0), frame...), append(appendSegmentHeader(nil, 7, 1<<63), frame...))
	f.Fuzz(func(t *testing.T, first, last []byte) {
		host, dir := run(t)
		for number, b := range map[uint64][]byte{0: first, 7: last} {
			if err := os.WriteFile(filepath.Join(host, "runs", "r", segmentName(number)), b, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		r := NewReader(dir)
		defer r.Close()
		for read := 0; ; {
			frame, err := r.Next()
			if err != nil {
				return
			}
			if read += len(frame.Data); frame.Stream != Notice && read > len(first)+len(last)+100 {
				t.Fatalf("got = %d bytes out of %d", read, len(first)+len(last))
			}
		}
	})
}
