package rowdiff

import (
	"bytes"
	"context"
	"encoding/binary"
	"os"
	"strings"
	"testing"
	"unicode"
)

func FuzzArchive(f *testing.F) {
	b, _ := noObjects(context.Background(), nil)
	f.Add(b)
	if dump, err := os.ReadFile("testdata/schema.dump"); err == nil {
		f.Add(dump)
	} else {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		objects, err := parseArchive(b)
		if err != nil {
			return
		}
		keys := map[string]bool{}
		for _, o := range objects {
			if keys[o.key] {
				t.Errorf("two objects have the key %s", o.key)
			}
			keys[o.key] = true
			o.creation()
			o.removal()
			parseTable(o.define)
		}
		half := objects[:len(objects)/2]
		newPlan(&side{objects: objects}, &side{objects: half})
		newPlan(&side{objects: half}, &side{objects: objects})
	})
}

func TestArchiveOfAnotherKindIsRefused(t *testing.T) {
	b, err := os.ReadFile("testdata/schema.dump")
	if err != nil {
		t.Fatal(err)
	}
	objects, err := parseArchive(b)
	if err != nil || len(objects) < 20 {
		t.Fatalf("objects = %d, %v, want more than 20", len(objects), err)
	}
	for _, bad := range [][]byte{nil, []byte("PGDMP"), b[:len(b)/2], append([]byte("PGDMP\x01\x63"), b[7:]...)} {
		if _, err := parseArchive(bad); err == nil {
			t.Errorf("parseArchive of %d bytes succeeds", len(bad))
		}
	}
}

func FuzzTable(f *testing.F) {
	f.Add("CREATE TABLE public.t (\n    id integer NOT NULL,\n    b text DEFAULT 'a,b)'::text NOT NULL COLLATE pg_catalog.\"C\",\n    CONSTRAINT c CHECK ((id > 0))\n)\nWITH (fillfactor='70');\n",
		"CREATE TABLE public.t (\n    id integer,\n    g integer GENERATED ALWAYS AS ((id * 2)) STORED\n)\nWITH (fillfactor='70');\n")
	f.Fuzz(func(t *testing.T, old, now string) {
		alterTable("t", old, now, func(string) string { return "" })
		if a, ok := alterTable("t", old, old, nil); ok && len(a.before)+len(a.after) > 0 && !duplicated(old) {
			t.Errorf("a table differs from itself: %q", a)
		}
		split(old, ',')
		keyword(old, "DEFAULT")
		revokeAll(old)
	})
}

// duplicated names make no sense in a table, and are not told apart.
func duplicated(s string) bool {
	t, _ := parseTable(s)
	seen := map[string]bool{}
	for _, c := range t.columns {
		if seen[c.name] {
			return true
		}
		seen[c.name] = true
	}
	for _, c := range t.constraints {
		if seen[c] {
			return true
		}
		seen[c] = true
	}
	return false
}

func FuzzPage(f *testing.F) {
	page := make([]byte, 8192)
	binary.NativeEndian.PutUint16(page[12:], 28)
	binary.NativeEndian.PutUint32(page[24:], 8000|lpNormal<<15|40<<17)
	f.Add(page, uint32(7))
	f.Fuzz(func(t *testing.T, page []byte, xid uint32) {
		hasDisputed(page, map[uint32]bool{xid: true})
		if len(page) >= pageHeader {
			l := &commitLog{perSegment: 1 << 20}
			l.tupleSpans(nil, page, bytes.Repeat([]byte{7}, len(page)), xid)
			if got := l.tupleSpans(nil, page, page, xid); len(got) > 0 && got[0] != blockSpan(xid, xid+1) {
				t.Errorf("a page differs from itself: %v", got)
			}
		}
		out := map[uint32]bool{}
		addDisputed(out, page, page[min(len(page), 3):], xid, xid+1000)
		for x := range out {
			if int32(x-(xid+1000)) >= 0 {
				t.Errorf("transaction %d is not below %d", x, xid+1000)
			}
		}
	})
}

func TestPageWithATupleOfTheTransaction(t *testing.T) {
	page := make([]byte, 8192)
	binary.NativeEndian.PutUint16(page[12:], 28)
	binary.NativeEndian.PutUint32(page[24:], 8000|lpNormal<<15|40<<17)
	binary.NativeEndian.PutUint32(page[8000:], 5) // xmin
	binary.NativeEndian.PutUint32(page[8004:], 9) // xmax
	for xid, want := range map[uint32]bool{5: true, 9: true, 7: false} {
		if got := hasDisputed(page, map[uint32]bool{xid: true}); got != want {
			t.Errorf("hasDisputed(%d) = %v, want %v", xid, got, want)
		}
	}
	binary.NativeEndian.PutUint16(page[8020:], xmaxInvalid)
	if hasDisputed(page, map[uint32]bool{9: true}) {
		t.Error("a deletion that came to nothing counts")
	}
	binary.NativeEndian.PutUint16(page[8020:], xmaxMulti)
	if !hasDisputed(page, map[uint32]bool{7: true}) {
		t.Error("a tuple that several transactions share does not count")
	}
}

func FuzzTID(f *testing.F) {
	f.Add("(4294967295,65535)")
	f.Fuzz(func(t *testing.T, s string) {
		if at, err := parseTID(s); err == nil {
			if again, err := parseTID(at.text()); err != nil || again != at {
				t.Errorf("parseTID(%q) = %v, %v, want %v", at.text(), again, err, at)
			}
		}
	})
}

func FuzzPrintable(f *testing.F) {
	f.Add("\x1b]0;x\a\u202e\xff\n", 20)
	f.Fuzz(func(t *testing.T, s string, width int) {
		if width < 1 || width > 1000 {
			return
		}
		got := printable(s, width)
		if n := len([]rune(got)); n > width+1 {
			t.Errorf("%d characters, want at most %d", n, width+1)
		}
		if i := strings.IndexFunc(got, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
			t.Errorf("printable(%q) = %q has something else", s, got)
		}
	})
}

func TestExtentsThatAreShared(t *testing.T) {
	x := []mapped{{extent{0, 100}, 1000}, {extent{100, 200}, 5000}, {extent{300, 400}, 9000}}
	y := []mapped{{extent{0, 50}, 1000}, {extent{50, 100}, 7000}, {extent{100, 400}, 5000}}
	got := without(420, 10, shared(x, y))
	want := []extent{{50, 100}, {200, 420}}
	if len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("unshared = %v, want %v", got, want)
	}
	if got := without(100, 10, []extent{{5, 95}}); len(got) != 2 || got[0] != (extent{0, 10}) || got[1] != (extent{90, 100}) {
		t.Errorf("widened = %v, want whole blocks", got)
	}
}
