package rowdiff

import (
	"cmp"
	"context"
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
		l := LargeObject{OID: o, Pages: pages[o], OldOwner: old[o], NewOwner: now[o]}
		var err error
		if l.OldSize, err = d.from.largeSize(ctx, o, old[o] != ""); err != nil {
			return err
		}
		if l.NewSize, err = d.to.largeSize(ctx, o, now[o] != ""); err != nil {
			return err
		}
		d.LargeObjects = append(d.LargeObjects, l)
	}
	slices.SortFunc(d.LargeObjects, func(a, b LargeObject) int { return cmp.Compare(a.OID, b.OID) })
	return nil
}

func (s *side) largeSize(ctx context.Context, o uint32, exists bool) (n int64, err error) {
	if !exists {
		return -1, nil
	}
	err = s.query(ctx, fmt.Sprintf(`SELECT pageno::bigint * %d + octet_length(data) FROM pg_largeobject
		WHERE loid = $1 ORDER BY pageno DESC LIMIT 1`, loPage), func(v [][]byte) error {
		n, err = strconv.ParseInt(string(v[0]), 10, 64)
		return err
	}, strconv.Itoa(int(o)))
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
	old := map[int64]string{}
	if oldSize >= 0 {
		if err := src.largePages(ctx, l.OID, func(page int64, sum string) error {
			old[page] = sum
			return nil
		}); err != nil {
			return err
		}
	}
	var todo []int64
	err := dst.largePages(ctx, l.OID, func(page int64, sum string) error {
		if old[page] != sum {
			todo = append(todo, page)
		}
		delete(old, page)
		return nil
	})
	if err != nil {
		return err
	}
	for page := range old {
		if page*loPage < newSize {
			fmt.Fprintf(w, callLarge+"pg_catalog.lo_put(%d, %d, '\\x%s')) x;\n", l.OID, page*loPage, hex.EncodeToString(make([]byte, min(loPage, newSize-page*loPage))))
		}
	}
	for _, page := range todo {
		err := dst.query(ctx, "SELECT data FROM pg_largeobject WHERE loid = $1 AND pageno = $2", func(v [][]byte) error {
			_, err := fmt.Fprintf(w, callLarge+"pg_catalog.lo_put(%d, %d, '%s')) x;\n", l.OID, page*loPage, v[0])
			return err
		}, strconv.Itoa(int(l.OID)), strconv.FormatInt(page, 10))
		if err != nil {
			return err
		}
	}
	if oldSize > newSize {
		fmt.Fprintf(w, callLarge+"pg_catalog.lo_truncate64(pg_catalog.lo_open(%d, 131072), %d)) x;\n", l.OID, newSize)
	}
	return nil
}

func (s *side) largePages(ctx context.Context, o uint32, each func(page int64, sum string) error) error {
	return s.query(ctx, "SELECT pageno, sha256(data) FROM pg_largeobject WHERE loid = $1 ORDER BY pageno", func(v [][]byte) error {
		page, err := strconv.ParseInt(string(v[0]), 10, 64)
		if err != nil {
			return err
		}
		return each(page, string(v[1]))
	}, strconv.Itoa(int(o)))
}
