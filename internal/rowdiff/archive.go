package rowdiff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strconv"

	"mayfly.dev/mayfly"
)

// object is an entry of pg_dump's table of contents.
type object struct {
	id        int
	tag       string
	kind      string // "TABLE", "CONSTRAINT", "ACL", …
	schema    string
	owner     string
	define    string // SQL that makes it
	drop      string // SQL that removes it; empty where it goes with another
	space     string // tablespace
	method    string // table access method
	deps      []int
	order     int
	key       string // the same on both sides
	postponed bool   // made after the data is there
}

// Versions of the archive format that the parser knows: PostgreSQL 12 to 18.
// (pg_backup_archiver.h)
const (
	oldestArchive = 1<<16 | 14<<8
	newestArchive = 1<<16 | 16<<8
)

var errArchive = errors.New("malformed output of pg_dump")

// archive reads the custom format of pg_dump.
type archive struct {
	b       []byte
	version int
	intSize int
	offSize int
	err     error
}

// parseArchive reads the table of contents of a dump of a schema.
func parseArchive(b []byte) ([]*object, error) {
	a := &archive{b: b}
	if string(a.take(5)) != "PGDMP" {
		return nil, errArchive
	}
	v := a.take(6)
	if a.err != nil {
		return nil, a.err
	}
	a.version, a.intSize, a.offSize = int(v[0])<<16|int(v[1])<<8, int(v[3]), int(v[4])
	if a.version < oldestArchive || a.version > newestArchive {
		return nil, mayfly.Errorf(mayfly.Unsupported, "pg_dump writes format %d.%d, which is not known here", v[0], v[1]).
			Hint("use the pg_dump of Postgres 15 to 18")
	}
	if a.intSize != 4 || a.offSize < 1 || a.offSize > 8 || v[5] != 1 {
		return nil, errArchive
	}
	if a.version >= 1<<16|15<<8 {
		a.take(1)
	} else {
		a.int()
	}
	for range 7 { // the time
		a.int()
	}
	for range 3 { // names and versions
		a.str()
	}
	return a.objects()
}

func (a *archive) objects() ([]*object, error) {
	n := a.int()
	if n < 0 || n > len(a.b) {
		return nil, errArchive
	}
	var out []*object
	seen := map[string]int{}
	for i := range n {
		o := a.object()
		if a.err != nil {
			return nil, a.err
		}
		if ignored(o.kind) {
			continue
		}
		o.order = i
		o.key = objectKey(o.kind, o.schema, o.tag)
		if seen[o.key]++; seen[o.key] > 1 {
			o.key += fmt.Sprint(" ", seen[o.key])
		}
		out = append(out, o)
	}
	return out, nil
}

func objectKey(kind, schema, tag string) string { return fmt.Sprintf("%q %q %q", kind, schema, tag) }

// ignored kinds are settings of the dump, and data.
func ignored(kind string) bool {
	return slices.Contains([]string{"ENCODING", "STDSTRINGS", "SEARCHPATH", "DATABASE", "DATABASE PROPERTIES", "TABLE DATA",
		"SEQUENCE SET", "BLOB", "BLOBS", "BLOB METADATA", "MATERIALIZED VIEW DATA", "STATISTICS DATA"}, kind)
}

// Sections of a dump.
const sectionPostData = 4

func (a *archive) object() *object {
	o := &object{id: a.int()}
	a.int() // had a dumper
	a.str() // catalog
	a.str() // oid
	o.tag, o.kind = a.str(), a.str()
	o.postponed = a.int() == sectionPostData
	o.define, o.drop = a.str(), a.str()
	a.str() // copy statement
	o.schema, o.space, o.method = a.str(), a.str(), a.str()
	if a.version >= 1<<16|16<<8 {
		a.int() // relkind
	}
	o.owner = a.str()
	a.str() // with oids
	for a.err == nil {
		s, ok := a.maybe()
		if !ok {
			break
		}
		n, err := strconv.Atoi(s)
		if err != nil {
			a.err = errArchive
		}
		o.deps = append(o.deps, n)
	}
	a.take(1 + a.offSize)
	return o
}

func (a *archive) take(n int) []byte {
	if a.err != nil || n > len(a.b) {
		a.err = errArchive
		return nil
	}
	b := a.b[:n]
	a.b = a.b[n:]
	return b
}

// int reads a sign and four bytes.
func (a *archive) int() int {
	b := a.take(5)
	if b == nil {
		return 0
	}
	n := int(binary.LittleEndian.Uint32(b[1:]))
	if b[0] != 0 {
		return -n
	}
	return n
}

func (a *archive) str() string {
	s, _ := a.maybe()
	return s
}

// maybe reads a string that may be missing.
func (a *archive) maybe() (string, bool) {
	n := a.int()
	if n < 0 || a.err != nil {
		return "", false
	}
	return string(a.take(n)), true
}
