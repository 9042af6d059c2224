package recording

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
	"math"
	"slices"
	"time"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/recording/pack"
)

// summary is what a digest is the hash of. The view is what may be read by
// everyone, the original what passed.
type summary struct {
	redacted  bool     // something is not in the view
	bodyCut   bool     // something of the body is not
	rawKept   bool     // the original body, compressed, is stored as it is
	sealed    bool     // what is not in the view is stored sealed
	coding    string   // content coding that the header named
	headerSum [32]byte // hash of the view's header
	bodySum   [32]byte // hash of the view's body
	size      int      // of the view's body
	original  [32]byte // hash of the raw body, or of the sealed pieces
	key       [8]byte  // that sealed them
	after     []time.Duration
	sizes     []int // of the view's chunks
	rawSizes  []int // of the raw body's chunks
}

const version = 1

func (s *summary) encode() []byte {
	b := []byte{version, flags(s.redacted, s.bodyCut, s.rawKept, s.sealed)}
	b = pack.AppendBlock(b, []byte(s.coding))
	b = append(b, s.headerSum[:]...)
	b = append(b, s.bodySum[:]...)
	b = binary.AppendUvarint(b, uint64(s.size))
	if s.rawKept || s.sealed {
		b = append(b, s.original[:]...)
	}
	if s.sealed {
		b = append(b, s.key[:]...)
	}
	b = appendInts(b, s.sizes)
	last := int64(0)
	for _, d := range s.after {
		t := max(0, d.Microseconds())
		b = binary.AppendVarint(b, t-last)
		last = t
	}
	if s.rawKept {
		b = appendInts(b, s.rawSizes)
	}
	return b
}

func flags(list ...bool) (b byte) {
	for i, set := range list {
		if set {
			b |= 1 << i
		}
	}
	return b
}

func parseSummary(b []byte) (s summary, err error) {
	r := &pack.Reader{Rest: b}
	head := r.Bytes(2)
	if head[0] != version {
		return s, errors.New("a record of an unknown version")
	}
	f := head[1]
	s.redacted, s.bodyCut, s.rawKept, s.sealed = f&1 != 0, f&2 != 0, f&4 != 0, f&8 != 0
	s.coding = string(r.Block())
	s.headerSum, s.bodySum = [32]byte(r.Bytes(32)), [32]byte(r.Bytes(32))
	s.size = int(r.Uvarint())
	if s.rawKept || s.sealed {
		s.original = [32]byte(r.Bytes(32))
	}
	if s.sealed {
		s.key = [8]byte(r.Bytes(8))
	}
	s.sizes = takeInts(r)
	last := int64(0)
	for range s.sizes {
		if last += r.Varint(); last < 0 || last > math.MaxInt64/1000 {
			r.Fail()
		}
		s.after = append(s.after, time.Duration(last)*time.Microsecond)
	}
	if s.rawKept {
		s.rawSizes = takeInts(r)
	}
	return s, r.Err
}

func appendInts(b []byte, list []int) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, n := range list {
		b = binary.AppendVarint(b, int64(n))
	}
	return b
}

func takeInts(r *pack.Reader) (list []int) {
	n := r.Uvarint()
	if n > uint64(len(r.Rest)) {
		r.Fail()
		return nil
	}
	for range n {
		list = append(list, int(r.Varint()))
	}
	return list
}

// record is a summary and where the pieces are.
type record struct {
	summary
	digest pack.Digest
	header []pack.Run
	body   []pack.Run
	rest   []pack.Run // raw body, or sealed pieces
}

func encodeRecord(sum []byte, runs [][]pack.Run) []byte {
	b := pack.AppendBlock(nil, sum)
	for _, list := range runs {
		b = pack.AppendRuns(b, list)
	}
	return b
}

func parseRecord(d pack.Digest, data []byte) (rec record, err error) {
	r := &pack.Reader{Rest: data}
	sum := r.Block()
	rec.digest = d
	rec.header, rec.body, rec.rest = r.Runs(), r.Runs(), r.Runs()
	if r.Err != nil {
		return rec, r.Err
	}
	if sha256.Sum256(sum) != d {
		return rec, errors.New("its summary has another digest")
	}
	rec.summary, err = parseSummary(sum)
	return rec, err
}

func (s *summary) chunks(sizes []int) (list []mayfly.Chunk) {
	for i, n := range sizes {
		c := mayfly.Chunk{Size: n}
		if i < len(s.after) {
			c.After = s.after[i]
		}
		list = append(list, c)
	}
	return list
}

// headerPieces is a header as one piece for each field, so that only those
// that change cost anything.
func headerPieces(h map[string][]string) (list [][]byte) {
	for _, name := range slices.Sorted(maps.Keys(h)) {
		b := pack.AppendBlock(nil, []byte(name))
		b = binary.AppendUvarint(b, uint64(len(h[name])))
		for _, v := range h[name] {
			b = pack.AppendBlock(b, []byte(v))
		}
		list = append(list, b)
	}
	return list
}

func parseHeader(b []byte) (map[string][]string, error) {
	h, r := map[string][]string{}, &pack.Reader{Rest: b}
	for len(r.Rest) > 0 && r.Err == nil {
		name, n := string(r.Block()), r.Uvarint()
		values := []string{}
		for i := uint64(0); i < n && r.Err == nil; i++ {
			values = append(values, string(r.Block()))
		}
		h[name] = values
	}
	return h, r.Err
}
