// Package pack keeps contents as pieces, each once, in files that are only
// ever appended to.
package pack

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"os"
	"slices"
	"sort"
	"sync"

	"github.com/klauspost/compress/zstd"

	"mayfly.dev/mayfly"
)

// Hash names a piece: the front of its SHA-256.
type Hash [16]byte

// Digest names a record.
type Digest [32]byte

func (d Digest) String() string { return "sha256:" + hex.EncodeToString(d[:]) }

// Run is a stretch of pieces with consecutive numbers.
type Run struct{ First, Count uint64 }

// Stream is a content cut into pieces.
type Stream struct {
	pieces [][]byte
	hashes []Hash
}

// NewStream hashes pieces.
func NewStream(pieces [][]byte) Stream {
	s := Stream{pieces: pieces, hashes: make([]Hash, len(pieces))}
	for i, p := range pieces {
		sum := sha256.Sum256(p)
		s.hashes[i] = Hash(sum[:])
	}
	return s
}

// groupBytes is how much of one write is compressed together.
const groupBytes = 256 << 10

// Store is a directory of packs with an index in memory. It is safe for
// concurrent use by one process.
type Store struct {
	files *files
	enc   *zstd.Encoder
	dec   *zstd.Decoder
	cache cache

	mu      sync.RWMutex // guards what follows; taken within files.mu
	known   map[Hash]uint64
	groups  []groupAt // ascending
	records map[Digest]recordAt
	next    uint64 // number of the next piece
}

type groupAt struct {
	first uint64
	place
}

type recordAt struct {
	place
	count int64 // of files when it was appended; 0 for what was there at Open
}

// Open opens the packs in dir and makes the directory when there is none. An
// end that a crash cut short was never acknowledged and is removed.
func Open(dir string) (*Store, error) {
	return open(&files{dir: dir, limit: 64 << 20, open: openOS})
}

func open(f *files) (*Store, error) {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return nil, err
	}
	s := &Store{files: f, known: map[Hash]uint64{}, records: map[Digest]recordAt{}}
	s.cache.limit = 32 << 20
	var err error
	if s.enc, err = zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true)); err != nil {
		return nil, err
	}
	s.dec, err = zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxData))
	if err != nil {
		return nil, err
	}
	if err := f.openAll(); err != nil {
		return nil, err
	}
	if err := s.load(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// load builds the index from the packs and cuts off a torn end.
func (s *Store) load() error {
	for i, f := range s.files.list {
		last := i == len(s.files.list)-1
		end, err := scan(f, last, func(fr found) error { return s.index(fr, place{int32(i), fr.offset}) })
		if err == nil && last {
			s.files.size = end
			err = errors.Join(f.Truncate(end), f.Sync()) // what is found is built upon
		}
		if err != nil {
			return fmt.Errorf("%s: %w", s.files.path(s.files.names[i]), err)
		}
	}
	slices.SortFunc(s.groups, func(a, b groupAt) int { return int(int64(a.first) - int64(b.first)) })
	return nil
}

// index notes a frame. Frames that say nothing useful are left out: what needs
// them finds out.
func (s *Store) index(fr found, at place) error {
	switch fr.kind {
	case packedGroup, plainGroup:
		if g, err := parseGroup(fr.meta); err == nil {
			s.addGroup(g, at)
		}
	case recordKind:
		if len(fr.meta) == len(Digest{}) {
			s.records[Digest(fr.meta)] = recordAt{place: at}
		}
	}
	return nil
}

func (s *Store) addGroup(g group, at place) {
	s.groups = append(s.groups, groupAt{g.first, at})
	for i, h := range g.hashes {
		if _, ok := s.known[h]; !ok {
			s.known[h] = g.first + uint64(i)
		}
	}
	s.next = max(s.next, g.first+uint64(len(g.sizes)))
}

// Write appends the pieces that are new and a record, and returns when both
// are on disk. record gets the numbers of each stream's pieces. A record that
// is there already is not written again.
func (s *Store) Write(ctx context.Context, d Digest, streams []Stream, record func(runs [][]Run) []byte) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	count, err := s.append(d, streams, record)
	if err != nil {
		return err
	}
	return s.files.sync(count)
}

func (s *Store) append(d Digest, streams []Stream, record func([][]Run) []byte) (count int64, err error) {
	s.files.mu.Lock()
	defer s.files.mu.Unlock()
	s.mu.RLock()
	old, ok := s.records[d]
	s.mu.RUnlock()
	if ok {
		return old.count, nil
	}
	n := s.number(streams)
	frames, offsets := n.encode(s.enc)
	data := record(n.runs)
	if len(data) > maxData {
		return 0, mayfly.Errorf(mayfly.Exhausted, "a record of %d bytes is too long", len(data))
	}
	recordOffset := int64(len(frames))
	frames = appendFrame(frames, recordKind, d[:], data)
	at, err := s.files.append(frames)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, g := range n.groups {
		s.addGroup(g.group, place{at.file, at.offset + offsets[i]})
	}
	s.records[d] = recordAt{place{at.file, at.offset + recordOffset}, s.files.count}
	return s.files.count, nil
}

// numbered are the streams of one write with numbers for their pieces, and the
// pieces that are new.
type numbered struct {
	runs   [][]Run
	groups []newGroup
}

type newGroup struct {
	group
	data []byte
}

func (s *Store) number(streams []Stream) (n numbered) {
	next, fresh := s.next, map[Hash]uint64{}
	for _, stream := range streams {
		var runs []Run
		for i, h := range stream.hashes {
			number, ok := s.known[h]
			if !ok {
				number, ok = fresh[h]
			}
			if !ok {
				number, fresh[h] = next, next
				n.add(next, h, stream.pieces[i])
				next++
			}
			runs = extend(runs, number)
		}
		n.runs = append(n.runs, runs)
	}
	return n
}

// extend appends a number to runs.
func extend(runs []Run, number uint64) []Run {
	if k := len(runs) - 1; k >= 0 && runs[k].First+runs[k].Count == number {
		runs[k].Count++
		return runs
	}
	return append(runs, Run{number, 1})
}

func (n *numbered) add(number uint64, h Hash, piece []byte) {
	k := len(n.groups) - 1
	if k < 0 || len(n.groups[k].data)+len(piece) > groupBytes {
		n.groups = append(n.groups, newGroup{group: group{first: number}})
		k++
	}
	g := &n.groups[k]
	g.sizes = append(g.sizes, len(piece))
	g.hashes = append(g.hashes, h)
	g.data = append(g.data, piece...)
}

func (n numbered) encode(enc *zstd.Encoder) (frames []byte, offsets []int64) {
	for _, g := range n.groups {
		offsets = append(offsets, int64(len(frames)))
		kind, data := byte(packedGroup), enc.EncodeAll(g.data, nil)
		if len(data) >= len(g.data) {
			kind, data = plainGroup, g.data
		}
		frames = appendFrame(frames, kind, g.encode(), data)
	}
	return frames, offsets
}

// Record returns the record of a digest; NotFound when there is none.
func (s *Store) Record(d Digest) ([]byte, error) {
	s.mu.RLock()
	at, ok := s.records[d]
	s.mu.RUnlock()
	if !ok {
		return nil, mayfly.Errorf(mayfly.NotFound, "no recorded content %s", d)
	}
	fr, data, err := s.read(at.place)
	if err == nil && (fr.kind != recordKind || !slices.Equal(fr.meta, d[:])) {
		err = errors.New("another frame is in its place")
	}
	if err != nil {
		return nil, fmt.Errorf("recorded content %s is damaged: %w", d, err)
	}
	return data, nil
}

// read reads and checks one frame.
func (s *Store) read(at place) (found, []byte, error) {
	f, err := s.files.at(at.file)
	if err != nil {
		return found{}, nil, err
	}
	w := window{f: f}
	fr, err := w.frame(at.offset)
	if err != nil {
		return fr, nil, err
	}
	data := make([]byte, fr.data)
	if _, err := f.ReadAt(data, at.offset+fr.size()-int64(fr.data)); err != nil && err != io.EOF {
		return fr, nil, err
	}
	if crc32.Checksum(data, castagnoli) != fr.dataSum {
		return fr, nil, errors.New("the checksum of a frame is wrong")
	}
	return fr, data, nil
}

// Read calls yield for each piece of runs in order. Pieces must not be changed.
func (s *Store) Read(runs []Run, yield func(piece []byte) error) error {
	var g *pieces
	for _, r := range runs {
		for number := r.First; number < r.First+r.Count; number++ {
			if g == nil || !g.has(number) {
				var err error
				if g, err = s.group(number); err != nil {
					return fmt.Errorf("recorded piece %d is damaged: %w", number, err)
				}
			}
			if err := yield(g.piece(number)); err != nil {
				return err
			}
		}
	}
	return nil
}

// group returns the pieces among which is the one of that number.
func (s *Store) group(number uint64) (*pieces, error) {
	s.mu.RLock()
	i := sort.Search(len(s.groups), func(i int) bool { return s.groups[i].first > number }) - 1
	var at groupAt
	if i >= 0 {
		at = s.groups[i]
	}
	s.mu.RUnlock()
	if i < 0 {
		return nil, errors.New("it is not there")
	}
	if g := s.cache.get(at.first); g != nil && g.has(number) {
		return g, nil
	}
	g, err := s.readGroup(at.place)
	if err != nil {
		return nil, err
	}
	if !g.has(number) {
		return nil, errors.New("it is not there")
	}
	s.cache.put(at.first, g)
	return g, nil
}

func (s *Store) readGroup(at place) (*pieces, error) {
	fr, data, err := s.read(at)
	if err != nil {
		return nil, err
	}
	meta, err := parseGroup(fr.meta)
	if err != nil {
		return nil, err
	}
	g := &pieces{first: meta.first, ends: make([]int, len(meta.sizes)), data: data}
	size := 0
	for i, n := range meta.sizes {
		size += n
		g.ends[i] = size
	}
	if size > maxData {
		return nil, errors.New("it is too long")
	}
	if fr.kind == packedGroup {
		if g.data, err = s.dec.DecodeAll(data, make([]byte, 0, size)); err != nil {
			return nil, err
		}
	}
	if len(g.data) != size {
		return nil, errors.New("its length is wrong")
	}
	return g, nil
}

// Size is how many bytes the packs have.
func (s *Store) Size() (int64, error) {
	var sum int64
	for _, n := range s.files.names {
		st, err := os.Stat(s.files.path(n))
		if err != nil {
			return 0, err
		}
		sum += st.Size()
	}
	return sum, nil
}

// Close closes the files. What was acknowledged is on disk already.
func (s *Store) Close() error {
	s.files.mu.Lock()
	defer s.files.mu.Unlock()
	s.dec.Close()
	return s.files.close()
}

// AppendRuns appends runs in a form that is short for neighbours.
func AppendRuns(b []byte, runs []Run) []byte {
	b = binary.AppendUvarint(b, uint64(len(runs)))
	last := uint64(0)
	for _, r := range runs {
		b = binary.AppendVarint(b, int64(r.First)-int64(last))
		b = binary.AppendUvarint(b, r.Count)
		last = r.First + r.Count
	}
	return b
}

// Runs takes what AppendRuns wrote.
func (r *Reader) Runs() []Run {
	n := r.Uvarint()
	var runs []Run
	last := uint64(0)
	for i := uint64(0); i < n && r.Err == nil; i++ {
		run := Run{First: uint64(int64(last) + r.Varint())}
		run.Count = r.Uvarint()
		if run.First > 1<<40 || run.Count > 1<<32 {
			r.Fail()
		}
		runs, last = append(runs, run), run.First+run.Count
	}
	if r.Err != nil {
		return nil
	}
	return runs
}

// Each calls yield for every piece and every record.
func (s *Store) Each(yield func(b []byte)) error {
	s.mu.RLock()
	groups, records := slices.Clone(s.groups), slices.Collect(maps.Keys(s.records))
	s.mu.RUnlock()
	for _, at := range groups {
		g, err := s.readGroup(at.place)
		if err != nil {
			return err
		}
		yield(g.data)
	}
	for _, d := range records {
		b, err := s.Record(d)
		if err != nil {
			return err
		}
		yield(b)
	}
	return nil
}
