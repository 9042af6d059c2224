package pack

import (
	"bytes"
	"errors"
	"hash/crc32"
	"io"
)

// found is a frame that a scan met.
type found struct {
	header
	offset int64
	meta   []byte
}

// scan calls yield for every frame of a pack in order and returns where the
// last one ends. What is damaged between two frames is stepped over: only an
// end that no frame follows can come from a crash. With data set, the data of
// frames is checked, too; a last frame whose data is not whole is left out.
func scan(f io.ReaderAt, data bool, yield func(found) error) (end int64, err error) {
	w := window{f: f}
	var last *found // not yielded yet, and its data is bad
	for at := int64(0); ; {
		fr, err := w.frame(at)
		if errors.Is(err, errTorn) {
			if at, err = w.next(at + 1); err == nil {
				continue
			}
		}
		if errors.Is(err, io.EOF) {
			return end, nil
		}
		if err != nil {
			return end, err
		}
		if last != nil {
			if err := yield(*last); err != nil { // damaged, not torn: reading it says so
				return end, err
			}
			last = nil
		}
		at += fr.size()
		if data {
			if whole, err := w.whole(fr); err != nil {
				return end, err
			} else if !whole {
				last = &fr
				continue
			}
		}
		if err := yield(fr); err != nil {
			return end, err
		}
		end = at
	}
}

// window reads a file by larger pieces than it is asked for.
type window struct {
	f     io.ReaderAt
	buf   []byte
	start int64
}

// get returns n bytes at an offset, or fewer at the end of the file.
func (w *window) get(at int64, n int) ([]byte, error) {
	if at < w.start || at+int64(n) > w.start+int64(len(w.buf)) {
		buf := make([]byte, max(n, 64<<10))
		read, err := w.f.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return nil, err
		}
		w.buf, w.start = buf[:read], at
	}
	b := w.buf[at-w.start:]
	return b[:min(n, len(b))], nil
}

// frame reads the frame at an offset, without its data: errTorn when there is
// none, io.EOF at the end of the file.
func (w *window) frame(at int64) (found, error) {
	head, err := w.get(at, headerSize)
	if err != nil {
		return found{}, err
	}
	if len(head) == 0 {
		return found{}, io.EOF
	}
	h, err := parseHeader(head)
	if err != nil {
		return found{}, err
	}
	both, err := w.get(at, headerSize+h.meta)
	if err != nil {
		return found{}, err
	}
	if len(both) < headerSize+h.meta || checkMeta(both[:headerSize], both[headerSize:]) != nil {
		return found{}, errTorn
	}
	if h.data > 0 {
		if end, err := w.f.ReadAt(make([]byte, 1), at+h.size()-1); end != 1 {
			if err == io.EOF {
				err = errTorn
			}
			return found{}, err
		}
	}
	return found{h, at, bytes.Clone(both[headerSize:])}, nil
}

// next finds the next whole frame from an offset on.
func (w *window) next(at int64) (int64, error) {
	for {
		b, err := w.get(at, 64<<10)
		if err != nil {
			return 0, err
		}
		if len(b) < headerSize {
			return 0, io.EOF
		}
		i := bytes.Index(b, []byte(magic))
		if i < 0 {
			at += int64(len(b) - len(magic) + 1)
			continue
		}
		at += int64(i)
		if _, err := w.frame(at); !errors.Is(err, errTorn) {
			return at, err
		}
		at++
	}
}

// whole reports whether the data of a frame has its checksum.
func (w *window) whole(fr found) (bool, error) {
	sum := crc32.New(castagnoli)
	r := io.NewSectionReader(w.f, fr.offset+fr.size()-int64(fr.data), int64(fr.data))
	if _, err := io.Copy(sum, r); err != nil {
		return false, err
	}
	return sum.Sum32() == fr.dataSum, nil
}
