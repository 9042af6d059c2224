package recording

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"maps"
	"slices"
	"strings"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/recording/pack"
	"mayfly.dev/mayfly/internal/recording/redact"
)

// view is a content as everyone may see it, and what that leaves out.
type view struct {
	summary
	header map[string][]string
	body   []byte

	taken    []redact.Original   // of the body, when it was not compressed
	raw      []byte              // the compressed body
	fields   map[string][]string // of the header, as they were
	exact    [32]byte            // hash of the body as it was
	original []int               // sizes of its chunks
}

// unreadable takes the place of a body that cannot be looked into.
const unreadable = "[redacted:unreadable]"

// viewOf redacts a content.
func (s *Store) viewOf(c mayfly.Content) *view {
	v := &view{}
	for _, k := range c.Chunks {
		v.original = append(v.original, k.Size)
		v.after = append(v.after, k.After)
	}
	v.sizes = v.original
	name, named := coding(c.Header, c.Body)
	if name == "" {
		v.cut(c.Body, s.redactor.Find(c.Body))
	} else {
		s.decoded(v, name, c.Body)
	}
	var changed bool
	v.header, changed = s.redactor.Header(c.Header)
	if named {
		v.coding = name
		maps.DeleteFunc(v.header, func(name string, _ []string) bool { return strings.EqualFold(name, contentEncoding) })
	}
	v.fields = differing(c.Header, v.header)
	v.redacted = v.bodyCut || changed || c.Redacted
	v.size, v.bodySum = len(v.body), sha256.Sum256(v.body)
	return v
}

// differing are the fields of a header that a view of it does not have so.
func differing(h, view map[string][]string) map[string][]string {
	out := map[string][]string{}
	for name, values := range h {
		if !slices.Equal(values, view[name]) {
			out[name] = values
		}
	}
	return out
}

// cut takes spans out of a body that is not compressed.
func (v *view) cut(body []byte, spans []redact.Span) {
	v.body, v.taken = redact.Cut(body, spans)
	if len(spans) == 0 {
		return
	}
	v.bodyCut, v.exact = true, sha256.Sum256(body)
	v.sizes = movedSizes(spans, v.original, len(body))
}

// movedSizes are the sizes of chunks after spans were cut out of a body.
func movedSizes(spans []redact.Span, sizes []int, length int) []int {
	out := make([]int, len(sizes))
	end, last := 0, 0
	for i, n := range sizes {
		end = max(0, min(end+n, length))
		at := redact.Offset(spans, end)
		out[i], last = at-last, at
	}
	return out
}

// decoded makes the view of a compressed body. The compressed bytes are stored
// as they are only when nothing of them is secret and all of them were read.
func (s *Store) decoded(v *view, coding string, raw []byte) {
	v.raw, v.exact = raw, sha256.Sum256(raw)
	plain, sizes, err := decode(coding, raw, v.original)
	if len(plain) == 0 && err != nil {
		v.body, v.bodyCut = []byte(unreadable), true
		v.sizes = movedSizes([]redact.Span{{Start: 0, End: len(raw), Marker: unreadable}}, v.original, len(raw))
		return
	}
	spans := s.redactor.Find(plain)
	v.body, _ = redact.Cut(plain, spans)
	v.sizes = movedSizes(spans, sizes, len(plain))
	v.bodyCut = len(spans) > 0 || err != nil || len(s.redactor.Find(raw)) > 0
	v.rawKept = !v.bodyCut
}

// streams is what is written of a view: its summary, and header, body and rest
// as pieces. What it leaves out is sealed with key, or lost without one.
func (v *view) streams(key *runKey) (sum []byte, list []pack.Stream) {
	head := headerPieces(v.header)
	v.headerSum = sha256.Sum256(bytes.Join(head, nil))
	var rest [][]byte
	switch {
	case v.redacted && key != nil:
		v.rawKept, v.sealed, v.key = false, true, key.id
		for _, p := range v.leftOut() {
			rest = append(rest, key.seal(p))
		}
		v.summary.original = sha256.Sum256(bytes.Join(rest, nil))
	case v.rawKept:
		v.rawSizes, v.summary.original = v.original, v.exact
		rest = pack.Split(v.raw)
	}
	return v.encode(), []pack.Stream{
		pack.NewStream(head), pack.NewStream(pack.Split(v.body)), pack.NewStream(rest),
	}
}

// leftOut is what restore needs, in pieces that repeat from one request to the
// next: the fields of the header, what belongs to this body, and what was
// taken out of it.
func (v *view) leftOut() [][]byte {
	fields := pack.AppendBlock(nil, bytes.Join(headerPieces(v.fields), nil))
	body := []byte{flags(v.bodyCut, v.raw != nil)}
	if v.bodyCut || v.raw != nil {
		body = appendInts(append(body, v.exact[:]...), v.original)
	}
	var taken []byte
	for _, o := range v.taken {
		taken = binary.AppendUvarint(taken, uint64(o.Gap))
		taken = binary.AppendUvarint(taken, uint64(o.Marker))
		taken = pack.AppendBlock(taken, o.Bytes)
	}
	return append([][]byte{fields, body}, pack.Split(append(taken, v.raw...))...)
}

// restore undoes what leftOut describes.
func restore(plain []byte, rec record, c mayfly.Content) (mayfly.Content, error) {
	r := &pack.Reader{Rest: plain}
	fields, err := parseHeader(r.Block())
	if err != nil {
		return c, err
	}
	f := r.Bytes(1)[0]
	var sum [32]byte
	if f != 0 {
		sum = [32]byte(r.Bytes(32))
		c.Chunks = rec.chunks(takeInts(r))
	}
	if r.Err != nil {
		return c, r.Err
	}
	switch {
	case f&2 != 0:
		c.Body = r.Rest
	case f&1 != 0:
		if c.Body, err = putBack(c.Body, r); err != nil {
			return c, err
		}
	}
	if f != 0 && sha256.Sum256(c.Body) != sum {
		return c, errors.New("the restored body has another digest")
	}
	maps.Copy(c.Header, fields)
	c.Redacted = false
	return c, nil
}

func putBack(body []byte, r *pack.Reader) ([]byte, error) {
	var list []redact.Original
	for len(r.Rest) > 0 {
		list = append(list, redact.Original{Gap: int(r.Uvarint()), Marker: int(r.Uvarint()), Bytes: r.Block()})
	}
	if r.Err != nil {
		return nil, r.Err
	}
	out, ok := redact.Restore(body, list)
	if !ok {
		return nil, errors.New("what was taken out does not fit")
	}
	return out, nil
}
