package rowdiff

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"slices"
	"strconv"
)

// LargeObject is a large object whose content or owner differs, or that
// exists on one side alone.
type LargeObject struct {
	OID              uint32
	OldSize, NewSize int64 // -1 where it does not exist
	OldOwner         string
	NewOwner         string
	Pages            int // that differ
}

// loPage is the size of a page of a large object (LOBLKSIZE).
const loPage = 2048

// compareLargeObjects compares the pages as rows of a table.
func (d *Diff) compareLargeObjects(ctx context.Context, b *blocks) error {
	t := newTable(d.from.large, d.to.large)
	if err := d.compareTable(ctx, b, t); err != nil {
		return fmt.Errorf("compare large objects: %w", err)
	}
	pages := map[uint32]int{}
	for i, s := range d.sides() {
		tids := placesOf(t.changes, i == 0)
		for chunk := range slices.Chunk(tids, 1000) {
			err := s.query(ctx, "SELECT loid FROM pg_largeobject WHERE ctid = ANY($1::tid[])", func(v [][]byte) error {
				pages[oid(v[0])]++
				return nil
			}, tidArray(chunk))
			if err != nil {
				return err
			}
		}
	}
	var owners [2]map[uint32]string
	for i, s := range d.sides() {
		owners[i] = map[uint32]string{}
		err := s.query(ctx, "SELECT oid, pg_get_userbyid(lomowner) FROM pg_largeobject_metadata", func(v [][]byte) error {
			owners[i][oid(v[0])] = string(v[1])
			return nil
		})
		if err != nil {
			return err
		}
	}
	return d.listLargeObjects(ctx, pages, owners[0], owners[1])
}

// placesOf are the places of changed rows on one side, without those that
// are an update's new half when that side is asked for deletes.
func placesOf(changes []rowChange, old bool) []tid {
	var out []tid
	for _, c := range changes {
		if old && c.op == Delete {
			out = append(out, c.from)
		}
		if !old && c.op != Delete {
			out = append(out, c.to)
		}
	}
	return out
}

func (d *Diff) listLargeObjects(ctx context.Context, pages map[uint32]int, old, now map[uint32]string) error {
	oids := map[uint32]bool{}
	for o := range pages {
		oids[o] = true
	}
	for o, owner := range old {
		if now[o] != owner {
			oids[o] = true
		}
	}
	for o, owner := range now {
		if old[o] != owner {
			oids[o] = true
		}
	}
	for o := range oids {
		if old[o] == "" && now[o] == "" {
			continue // pages that somebody wrote to an object while it was removed
		}
		l := LargeObject{OID: o, Pages: pages[o], OldOwner: old[o], NewOwner: now[o]}
		var err error
		if l.OldSize, err = d.from.largeSize(ctx, o, old[o] != ""); err != nil {
			return err
		}
		if l.NewSize, err = d.to.largeSize(ctx, o, now[o] != ""); err != nil {
			return err
		}
		if old[o] != "" && now[o] != "" {
			if l.Pages, err = d.pagesThatDiffer(ctx, o); err != nil {
				return err
			}
			if l.Pages == 0 && l.OldSize == l.NewSize && l.OldOwner == l.NewOwner {
				continue
			}
		}
		d.LargeObjects = append(d.LargeObjects, l)
	}
	slices.SortFunc(d.LargeObjects, func(a, b LargeObject) int { return cmp.Compare(a.OID, b.OID) })
	return nil
}

// zeroPage is what a page that is not there, or the rest of a short one, reads
// as.
var zeroPage = func() string {
	sum := sha256.Sum256(make([]byte, loPage))
	return `\x` + hex.EncodeToString(sum[:])
}()

func (d *Diff) pagesThatDiffer(ctx context.Context, o uint32) (int, error) {
	pages, err := d.from.largePages(ctx, o)
	if err != nil {
		return 0, err
	}
	news, err := d.to.largePages(ctx, o)
	if err != nil {
		return 0, err
	}
	return len(pageChanges(pages, news)), nil
}

// pageChanges lists the pages that do not read the same.
func pageChanges(old, now map[int64]string) []int64 {
	var out []int64
	for page, sum := range now {
		if was, ok := old[page]; was != sum && (ok || sum != zeroPage) {
			out = append(out, page)
		}
	}
	for page, sum := range old {
		if _, ok := now[page]; !ok && sum != zeroPage {
			out = append(out, page)
		}
	}
	slices.Sort(out)
	return out
}

func (s *side) largeSize(ctx context.Context, o uint32, exists bool) (n int64, err error) {
	if !exists {
		return -1, nil
	}
	err = s.query(ctx, fmt.Sprintf(`SELECT pageno::bigint * %d + octet_length(data) FROM pg_largeobject
		WHERE loid = $1 ORDER BY pageno DESC LIMIT 1`, loPage), func(v [][]byte) error {
		n, err = strconv.ParseInt(string(v[0]), 10, 64)
		return err
	}, strconv.FormatUint(uint64(o), 10))
	return n, err
}

// callLarge begins a statement that calls a function and shows nothing.
const callLarge = "INSERT INTO pg_temp.mayfly_seen SELECT 'large object', count(*), 1 FROM (SELECT "

// largeScript makes the large objects of dst from those of src. A page that
// src alone has inside dst's size reads as zeros there.
func largeScript(ctx context.Context, w io.Writer, src, dst *side, l LargeObject, reverse bool) error {
	oldSize, newSize, owner := l.OldSize, l.NewSize, l.NewOwner
	if reverse {
		oldSize, newSize, owner = l.NewSize, l.OldSize, l.OldOwner
	}
	if newSize < 0 {
		fmt.Fprintf(w, callLarge+"pg_catalog.lo_unlink(%d)) x;\n", l.OID)
		return nil
	}
	if oldSize < 0 {
		fmt.Fprintf(w, callLarge+"pg_catalog.lo_create(%d)) x;\n", l.OID)
	}
	fmt.Fprintf(w, "ALTER LARGE OBJECT %d OWNER TO %s;\n", l.OID, ident(owner))
	old, err := src.largePages(ctx, l.OID)
	if err != nil {
		return err
	}
	if oldSize < 0 && len(old) > 0 { // pages of a removed object, see listLargeObjects
		fmt.Fprintf(w, callLarge+"pg_catalog.lo_truncate64(pg_catalog.lo_open(%d, 131072), 0)) x;\n", l.OID)
		old = nil
	}
	now, err := dst.largePages(ctx, l.OID)
	if err != nil {
		return err
	}
	for _, page := range pageChanges(old, now) {
		if page*loPage >= newSize {
			break
		}
		data := make([]byte, min(loPage, newSize-page*loPage))
		err := dst.read(ctx, "SELECT data FROM pg_largeobject WHERE loid = $1 AND pageno = $2", []int16{1}, func(v [][]byte) error {
			copy(data, v[0])
			return nil
		}, strconv.FormatUint(uint64(l.OID), 10), strconv.FormatInt(page, 10))
		if err != nil {
			return err
		}
		fmt.Fprintf(w, callLarge+"pg_catalog.lo_put(%d, %d, '\\x%s')) x;\n", l.OID, page*loPage, hex.EncodeToString(data))
	}
	if newSize > max(oldSize, 0) { // up to a hole at the end, or a page of zeros
		fmt.Fprintf(w, callLarge+"pg_catalog.lo_put(%d, %d, pg_catalog.lo_get(%[1]d, %[2]d, 1) || CASE WHEN pg_catalog.octet_length(pg_catalog.lo_get(%[1]d, %[2]d, 1)) = 0 THEN '\\x00'::bytea ELSE '' END)) x;\n", l.OID, newSize-1)
	}
	if oldSize > newSize {
		fmt.Fprintf(w, callLarge+"pg_catalog.lo_truncate64(pg_catalog.lo_open(%d, 131072), %d)) x;\n", l.OID, newSize)
	}
	return nil
}

// largePages are the digests of the pages of a large object, short ones
// filled with zeros.
func (s *side) largePages(ctx context.Context, o uint32) (map[int64]string, error) {
	pages := map[int64]string{}
	sql := fmt.Sprintf(`SELECT pageno, sha256(data || decode(repeat('00', %d - octet_length(data)), 'hex')) FROM pg_largeobject WHERE loid = $1`, loPage)
	err := s.query(ctx, sql, func(v [][]byte) error {
		page, err := strconv.ParseInt(string(v[0]), 10, 64)
		pages[page] = string(v[1])
		return err
	}, strconv.FormatUint(uint64(o), 10))
	return pages, err
}
