package pack

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
)

// A pack is a sequence of frames. A frame is, little endian:
//
//	magic   4 bytes
//	kind    1 byte, and 3 zeros
//	meta    u32 length
//	data    u32 length
//	sum     u32 CRC-32C of the data
//	sum     u32 CRC-32C of the 20 bytes above and the meta
//	meta, data
const (
	magic      = "mfr1"
	headerSize = 24
	maxMeta    = 4 << 20
	maxData    = 64 << 20
)

// Kinds of frames.
const (
	packedGroup = 1 // pieces, compressed with zstd
	plainGroup  = 2 // pieces as they are
	recordKind  = 3 // a record; the meta is its digest
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errTorn says that there is no whole frame at a place.
var errTorn = errors.New("no whole frame")

type header struct {
	kind       byte
	meta, data int
	dataSum    uint32
}

func (h header) size() int64 { return headerSize + int64(h.meta) + int64(h.data) }

// appendFrame appends a frame to buf.
func appendFrame(buf []byte, kind byte, meta, data []byte) []byte {
	start := len(buf)
	buf = append(buf, magic...)
	buf = append(buf, kind, 0, 0, 0)
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(meta)))
	buf = binary.LittleEndian.AppendUint32(buf, uint32(len(data)))
	buf = binary.LittleEndian.AppendUint32(buf, crc32.Checksum(data, castagnoli))
	sum := crc32.Update(crc32.Checksum(buf[start:], castagnoli), castagnoli, meta)
	buf = binary.LittleEndian.AppendUint32(buf, sum)
	buf = append(buf, meta...)
	return append(buf, data...)
}

// parseHeader reads the fixed part of a frame and bounds the rest.
func parseHeader(b []byte) (header, error) {
	if len(b) < headerSize || string(b[:4]) != magic {
		return header{}, errTorn
	}
	meta, data := binary.LittleEndian.Uint32(b[8:]), binary.LittleEndian.Uint32(b[12:])
	if meta > maxMeta || data > maxData || !bytes.Equal(b[5:8], []byte{0, 0, 0}) {
		return header{}, errTorn
	}
	return header{kind: b[4], meta: int(meta), data: int(data), dataSum: binary.LittleEndian.Uint32(b[16:])}, nil
}

// checkMeta compares the checksum of a header and its meta.
func checkMeta(head, meta []byte) error {
	sum := crc32.Update(crc32.Checksum(head[:20], castagnoli), castagnoli, meta)
	if sum != binary.LittleEndian.Uint32(head[20:]) {
		return errTorn
	}
	return nil
}

// group is what a frame of pieces says about them.
type group struct {
	first  uint64 // number of the first piece
	sizes  []int
	hashes []Hash
}

func (g group) encode() []byte {
	b := binary.AppendUvarint(nil, g.first)
	b = binary.AppendUvarint(b, uint64(len(g.sizes)))
	for i, n := range g.sizes {
		b = binary.AppendUvarint(b, uint64(n))
		b = append(b, g.hashes[i][:]...)
	}
	return b
}

func parseGroup(meta []byte) (g group, err error) {
	r := Reader{Rest: meta}
	g.first = r.Uvarint()
	count := r.Uvarint()
	if r.Err != nil || count == 0 || count > uint64(len(meta)) || g.first > 1<<40 {
		return g, errTorn
	}
	for range count {
		n := r.Uvarint()
		h := r.Bytes(len(Hash{}))
		if r.Err != nil || n > maxData {
			return g, errTorn
		}
		g.sizes = append(g.sizes, int(n))
		g.hashes = append(g.hashes, Hash(h))
	}
	if len(r.Rest) > 0 {
		return g, errTorn
	}
	return g, nil
}

// Reader takes encoded values from the front of Rest. After an error, which it
// keeps, it returns zeros.
type Reader struct {
	Rest []byte
	Err  error
}

// Uvarint takes an unsigned number.
func (r *Reader) Uvarint() uint64 {
	v, n := binary.Uvarint(r.Rest)
	if n <= 0 {
		r.Fail()
		return 0
	}
	r.Rest = r.Rest[n:]
	return v
}

// Varint takes a signed number.
func (r *Reader) Varint() int64 {
	v, n := binary.Varint(r.Rest)
	if n <= 0 {
		r.Fail()
		return 0
	}
	r.Rest = r.Rest[n:]
	return v
}

// Bytes takes n bytes; zeros, at most 32, when there are not as many.
func (r *Reader) Bytes(n int) []byte {
	if n < 0 || n > len(r.Rest) {
		r.Fail()
		return make([]byte, max(0, min(n, 32)))
	}
	b := r.Rest[:n:n]
	r.Rest = r.Rest[n:]
	return b
}

// Block takes bytes with their length before them.
func (r *Reader) Block() []byte {
	n := r.Uvarint()
	if n > uint64(len(r.Rest)) {
		r.Fail()
		return nil
	}
	return r.Bytes(int(n))
}

// Fail notes that what was taken makes no sense.
func (r *Reader) Fail() {
	if r.Err == nil {
		r.Err = errors.New("an encoded value is cut short")
	}
	r.Rest = nil
}

// AppendBlock appends data with its length before it.
func AppendBlock(b, data []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(data))), data...)
}
