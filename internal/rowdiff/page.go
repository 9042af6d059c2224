package rowdiff

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
)

// commitLog is what the commit logs of both sides say about transactions.
type commitLog struct {
	disputed   map[uint32]bool
	known      map[uint32]bool // segments that both sides have
	perSegment uint32
}

// readCommitLog finds the transactions below limit that one side's commit log
// calls committed and the other's does not: they were open when one side was
// cloned. Segments that one side no longer has hold transactions that every
// page has forgotten.
func readCommitLog(from, to *os.Root, blockSize int, limit uint32) (*commitLog, error) {
	l := &commitLog{map[uint32]bool{}, map[uint32]bool{}, uint32(32 * blockSize * 4)}
	dir, err := from.Open("pg_xact")
	if err != nil {
		return nil, fmt.Errorf("read the commit log: %w", err)
	}
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return nil, fmt.Errorf("read the commit log: %w", err)
	}
	for _, name := range names {
		n, err := strconv.ParseUint(name, 16, 32)
		if err != nil {
			continue
		}
		x, err := readSegment(from, name, blockSize)
		if err != nil {
			return nil, err
		}
		y, err := readSegment(to, name, blockSize)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		l.known[uint32(n)] = true
		addDisputed(l.disputed, x, y, uint32(n)*l.perSegment, limit)
	}
	return l, nil
}

func readSegment(dir *os.Root, name string, blockSize int) ([]byte, error) {
	f, err := openData(dir, "pg_xact/"+name)
	if err != nil {
		return nil, fmt.Errorf("read the commit log: %w", err)
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, int64(32*blockSize)))
}

// addDisputed compares two segments: two bits for each transaction, 1 for
// committed and 3 for committed below one that is open. (clog.c)
func addDisputed(out map[uint32]bool, x, y []byte, first, limit uint32) {
	for i := range min(len(x), len(y)) {
		if x[i] == y[i] {
			continue
		}
		for k := range 4 {
			a, b := x[i]>>(2*k)&3, y[i]>>(2*k)&3
			xid := first + uint32(4*i+k)
			if a != b && (a|b)&1 != 0 && int32(xid-limit) < 0 {
				out[xid] = true
			}
		}
	}
}

// Offsets and flags of heap pages and tuples: bufpage.h, itemid.h,
// htup_details.h.
const (
	pageHeader  = 24
	tupleHeader = 23
	lpNormal    = 1
	xmaxInvalid = 0x0800
	xmaxMulti   = 0x1000
	xmaxLock    = 0x0080
)

// hasDisputed reports whether the page holds a tuple that was written or
// deleted by one of the transactions, or that several transactions share, or
// whether it is no page that makes sense.
func hasDisputed(page []byte, xids map[uint32]bool) bool {
	if len(page) < pageHeader {
		return true
	}
	lower := int(binary.NativeEndian.Uint16(page[12:]))
	if lower == 0 {
		return false // a new page
	}
	if lower < pageHeader || lower > len(page) {
		return true
	}
	for at := pageHeader; at+4 <= lower; at += 4 {
		item := binary.NativeEndian.Uint32(page[at:])
		if item>>15&3 != lpNormal {
			continue
		}
		tuple := int(item & 0x7fff)
		if tuple+tupleHeader > len(page) || tupleDisputed(page[tuple:], xids) {
			return true
		}
	}
	return false
}

func tupleDisputed(tuple []byte, xids map[uint32]bool) bool {
	if xids[binary.NativeEndian.Uint32(tuple)] {
		return true
	}
	mask := binary.NativeEndian.Uint16(tuple[20:])
	if mask&(xmaxInvalid|xmaxLock) != 0 {
		return false
	}
	return mask&xmaxMulti != 0 || xids[binary.NativeEndian.Uint32(tuple[4:])]
}

// tupleSpans adds the places of the tuples that two versions of a page do not
// share: all of them, where a page makes no sense.
func (l *commitLog) tupleSpans(spans []span, old, now []byte, block uint32) []span {
	x, ok1 := tuples(old)
	y, ok2 := tuples(now)
	if !ok1 || !ok2 {
		return appendSpan(spans, blockSpan(block, block+1))
	}
	for i := range max(len(x), len(y)) {
		if i < len(x) && i < len(y) && l.sameTuple(x[i], y[i]) {
			continue
		}
		at := tid(block)<<16 | tid(i+1)
		spans = appendSpan(spans, span{at, at + 1})
	}
	return spans
}

// tuples lists the tuples of a page by their line pointers; one that is
// unused, dead or redirected has none.
func tuples(page []byte) ([][]byte, bool) {
	lower := int(binary.NativeEndian.Uint16(page[12:]))
	if lower == 0 {
		return nil, true
	}
	if lower < pageHeader || lower > len(page) {
		return nil, false
	}
	var out [][]byte
	for at := pageHeader; at+4 <= lower; at += 4 {
		item := binary.NativeEndian.Uint32(page[at:])
		begin, end := int(item&0x7fff), int(item&0x7fff)+int(item>>17)
		switch {
		case item>>15&3 != lpNormal:
			out = append(out, nil)
		case end > len(page):
			return nil, false
		default:
			out = append(out, page[begin:end])
		}
	}
	return out, true
}

// hints are the bits of t_infomask that repeat what the commit log says.
const hints = 0x0f00

// sameTuple compares two tuples byte for byte, but for hints about
// transactions that both commit logs know.
func (l *commitLog) sameTuple(x, y []byte) bool {
	if len(x) != len(y) || len(x) < tupleHeader {
		return bytes.Equal(x, y)
	}
	a, b := binary.NativeEndian.Uint16(x[20:]), binary.NativeEndian.Uint16(y[20:])
	if !bytes.Equal(x[:20], y[:20]) || !bytes.Equal(x[22:], y[22:]) || (a^b)&^hints != 0 {
		return false
	}
	return a == b || a&xmaxMulti == 0 && l.knows(x) && l.knows(x[4:])
}

// knows tells whether the state of a transaction can be looked up on both
// sides. Those below 3 have none.
func (l *commitLog) knows(b []byte) bool {
	xid := binary.NativeEndian.Uint32(b)
	return xid < 3 || l.known[xid/l.perSegment]
}
