package pack

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"mayfly.dev/mayfly"
)

// write stores data as a record that holds its recipe.
func write(t testing.TB, s *Store, data []byte) (Digest, error) {
	t.Helper()
	d := Digest(sha256.Sum256(data))
	err := s.Write(t.Context(), d, []Stream{NewStream(Split(data))}, func(runs [][]Run) []byte {
		return AppendRuns(nil, runs[0])
	})
	return d, err
}

func read(s *Store, d Digest) ([]byte, error) {
	record, err := s.Record(d)
	if err != nil {
		return nil, err
	}
	r := Reader{Rest: record}
	runs := r.Runs()
	if r.Err != nil {
		return nil, r.Err
	}
	var out []byte
	err = s.Read(runs, func(p []byte) error { out = append(out, p...); return nil })
	return out, err
}

// words makes text that compresses as text does.
func words(r *rand.Rand, n int) []byte {
	var b bytes.Buffer
	for b.Len() < n {
		fmt.Fprintf(&b, "%s line %d of %x\n", strings.Repeat("w", r.IntN(9)), r.IntN(1000), r.Uint32())
	}
	return b.Bytes()[:n]
}

func TestWhatIsWrittenIsReadAfterReopening(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(1, 2))
	contents := map[Digest][]byte{}
	for _, n := range []int{0, 1, minPiece, 5000, 300_000, 3_000_000} {
		data := words(r, n)
		d, err := write(t, s, data)
		if err != nil {
			t.Fatal(err)
		}
		contents[d] = data
	}
	check := func(s *Store) {
		t.Helper()
		for d, want := range contents {
			if got, err := read(s, d); err != nil || !bytes.Equal(got, want) {
				t.Errorf("content of %d bytes: got %d bytes, %v", len(want), len(got), err)
			}
		}
	}
	check(s)
	s.Close()
	if _, err := read(s, Digest{}); mayfly.KindOf(err) != mayfly.NotFound {
		t.Errorf("error for an unknown digest = %v", err)
	}
	if s, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	check(s)
}

func TestEqualStretchesAreStoredOnce(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	r := rand.New(rand.NewPCG(3, 4))
	base := words(r, 1<<20)
	if _, err := write(t, s, base); err != nil {
		t.Fatal(err)
	}
	before, _ := s.Size()
	shifted := append([]byte("something at the front "), base...)
	if _, err := write(t, s, shifted); err != nil {
		t.Fatal(err)
	}
	if after, _ := s.Size(); after-before > 8<<10 {
		t.Errorf("bytes for a shifted copy of %d = %d", len(base), after-before)
	}
}

func TestPacksAreStartedAnewWhenFull(t *testing.T) {
	dir := t.TempDir()
	s, err := open(&files{dir: dir, limit: 10_000, open: openOS})
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(5, 6))
	var list []Digest
	for range 20 {
		d, err := write(t, s, words(r, 8000))
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, d)
	}
	s.Close()
	if names, _ := filepath.Glob(filepath.Join(dir, "*.pack")); len(names) < 5 {
		t.Errorf("packs = %d", len(names))
	}
	if s, err = Open(dir); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, d := range list {
		if _, err := read(s, d); err != nil {
			t.Error(err)
		}
	}
}

func TestConcurrentWritersShareSyncs(t *testing.T) {
	syncs := 0
	var mu sync.Mutex
	f := &files{dir: t.TempDir(), limit: 1 << 20, open: func(name string, flag int) (file, error) {
		inner, err := openOS(name, flag)
		return &counted{inner, func() { mu.Lock(); syncs++; mu.Unlock() }}, err
	}}
	s, err := open(f)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	const writers, each = 16, 10
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(w), 7))
			for range each {
				data := words(r, 2000)
				d, err := write(t, s, data)
				if err != nil {
					t.Error(err)
				}
				if got, err := read(s, d); err != nil || !bytes.Equal(got, data) {
					t.Errorf("content is not what was written: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if syncs > writers*each*3/4 {
		t.Errorf("syncs = %d for %d writes", syncs, writers*each)
	}
}

type counted struct {
	file
	sync func()
}

func (c *counted) Sync() error { c.sync(); return c.file.Sync() }

// disk is a file whose writes fail after a budget of bytes, half-way through
// one of them, and that loses what was not synced, as a power cut does.
type disk struct {
	file
	budget *int
	synced *map[string]int64 // size at the last sync
	name   string
	size   int64
}

var errCut = errors.New("power cut")

func (d *disk) WriteAt(b []byte, at int64) (int, error) {
	n := min(len(b), *d.budget)
	*d.budget -= n
	written, err := d.file.WriteAt(b[:n], at)
	d.size = max(d.size, at+int64(written))
	if err == nil && n < len(b) {
		*d.budget = -1
		err = errCut
	}
	return written, err
}

func (d *disk) Truncate(n int64) error {
	if *d.budget < 0 {
		return errCut
	}
	d.size = n
	return d.file.Truncate(n)
}

func (d *disk) Sync() error {
	if *d.budget < 0 {
		return errCut
	}
	(*d.synced)[d.name] = d.size
	return d.file.Sync()
}

func TestEverythingAcknowledgedSurvivesACutAtAnyByte(t *testing.T) {
	for budget := 0; budget < 12_000; budget += 193 {
		dir, synced, left := t.TempDir(), map[string]int64{}, budget
		f := &files{dir: dir, limit: 3000, open: func(name string, flag int) (file, error) {
			inner, err := openOS(name, flag)
			if err != nil {
				return nil, err
			}
			end, err := inner.(io.Seeker).Seek(0, io.SeekEnd)
			return &disk{file: inner, budget: &left, synced: &synced, name: name, size: end}, err
		}}
		s, err := open(f)
		if err != nil {
			t.Fatal(err)
		}
		r := rand.New(rand.NewPCG(9, uint64(budget)))
		contents, shared := map[Digest][]byte{}, words(r, 600)
		for i := 0; i < 30; i++ {
			data := append(words(r, r.IntN(900)), shared...)
			d, err := write(t, s, data)
			if err != nil {
				break
			}
			contents[d] = data
		}
		s.Close()
		for name, keep := range synced { // anything after the last sync may be gone
			st, err := os.Stat(name)
			if err != nil {
				t.Fatal(err)
			}
			if st.Size() > keep {
				os.Truncate(name, keep+r.Int64N(st.Size()-keep+1))
			}
		}
		s, err = Open(dir)
		if err != nil {
			t.Fatalf("budget %d: %v", budget, err)
		}
		for d, want := range contents {
			if got, err := read(s, d); err != nil || !bytes.Equal(got, want) {
				t.Fatalf("budget %d: acknowledged content is gone: %v", budget, err)
			}
		}
		data := words(r, 1000)
		if d, err := write(t, s, data); err != nil {
			t.Fatalf("budget %d: write after the cut: %v", budget, err)
		} else if got, err := read(s, d); err != nil || !bytes.Equal(got, data) {
			t.Fatalf("budget %d: read after the cut: %v", budget, err)
		}
		s.Close()
	}
}

// A damaged middle is not a torn end: what follows stays.
func TestDamageIsToldAndTheRestStays(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(11, 12))
	contents := map[Digest][]byte{}
	var order []Digest
	for range 10 {
		data := words(r, 3000)
		d, err := write(t, s, data)
		if err != nil {
			t.Fatal(err)
		}
		contents[d] = data
		order = append(order, d)
	}
	s.Close()
	name := filepath.Join(dir, "00000001.pack")
	whole, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	for at := 0; at < len(whole)*8/10; at += 211 {
		bad := bytes.Clone(whole)
		bad[at] ^= 0x40
		if err := os.WriteFile(name, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		lost := 0
		for _, d := range order {
			got, err := read(s, d)
			if err != nil {
				lost++
			} else if !bytes.Equal(got, contents[d]) {
				t.Fatalf("byte %d: other bytes were read without an error", at)
			}
		}
		if lost > 1 {
			t.Fatalf("byte %d: contents lost = %d, want at most 1", at, lost)
		}
		s.Close()
	}
}

func FuzzOpen(f *testing.F) {
	s, err := Open(f.TempDir())
	if err != nil {
		f.Fatal(err)
	}
	if _, err := write(f, s, words(rand.New(rand.NewPCG(1, 1)), 3000)); err != nil {
		f.Fatal(err)
	}
	good, _ := os.ReadFile(s.files.path(1))
	s.Close()
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(appendFrame(nil, plainGroup, group{1 << 39, []int{3}, []Hash{{}}}.encode(), []byte("abc")))
	f.Add(appendFrame(nil, packedGroup, []byte{0, 255, 255, 255, 1}, nil))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "00000001.pack"), data, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := Open(dir)
		if err != nil {
			return
		}
		defer s.Close()
		for d := range s.records {
			read(s, d)
		}
		want := words(rand.New(rand.NewPCG(2, 2)), 2000)
		d, err := write(t, s, want)
		if err != nil {
			t.Fatalf("write: %v", err)
		}
		if got, err := read(s, d); err == nil && !bytes.Equal(got, want) {
			t.Fatal("other bytes were read without an error")
		}
	})
}

func BenchmarkSplit(b *testing.B) {
	data := words(rand.New(rand.NewPCG(1, 1)), 1<<20)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		NewStream(Split(data))
	}
}
