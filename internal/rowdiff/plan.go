package rowdiff

import (
	"fmt"
	"slices"
	"strings"
)

// plan is what has to be done to the schema, around the change of the rows.
type plan struct {
	before     []string // drops, then what is there before the rows
	after      []string
	fresh      map[name]bool   // tables and views that are made anew, and so empty
	dropped    map[string]bool // keys of objects that are not there while the rows change
	sequences  bool            // some are made anew
	impossible []string        // what cannot be written as SQL
}

// planner makes dst's schema of src's. Objects that differ are dropped and
// made anew, with all that depends on them; tables are altered where that
// keeps their rows, and otherwise made anew and filled.
type planner struct {
	plan
	src, dst     []*object
	srcBy, dstBy map[string]*object
	srcID, dstID map[int]*object
	gone         map[*object]bool // of src
	alter        map[*object]alteration
	replace      map[*object]string // statements for objects that stay
	family       map[int]bool       // tables of src with partitions, parents or children
}

func newPlan(src, dst *side) plan {
	p := &planner{src: src.objects, dst: dst.objects, srcBy: index(src.objects), dstBy: index(dst.objects),
		srcID: byID(src.objects), dstID: byID(dst.objects), gone: map[*object]bool{},
		alter: map[*object]alteration{}, replace: map[*object]string{}, family: map[int]bool{}}
	p.fresh, p.dropped = map[name]bool{}, map[string]bool{}
	p.findFamilies()
	for _, o := range p.src {
		p.decide(o, src, dst)
	}
	p.resetRights()
	p.spread()
	if p.creates() {
		for _, o := range p.src { // they would add to the rights of what is created
			p.gone[o] = p.gone[o] || o.kind == "DEFAULT ACL"
		}
	}
	p.drops()
	p.makes()
	return p.plan
}

func byID(objects []*object) map[int]*object {
	m := map[int]*object{}
	for _, o := range objects {
		m[o.id] = o
	}
	return m
}

func (p *planner) findFamilies() {
	for _, o := range p.src {
		if o.kind != "TABLE" && o.kind != "TABLE ATTACH" {
			continue
		}
		for _, d := range o.deps {
			if t := p.srcID[d]; t != nil && t.kind == "TABLE" {
				p.family[d], p.family[o.id] = true, true
			}
		}
	}
}

// decide finds the mildest way to change an object.
func (p *planner) decide(o *object, src, dst *side) {
	n := p.dstBy[o.key]
	if n == nil {
		p.gone[o] = true
		return
	}
	if o.same(n) {
		return
	}
	owner, ownable := n.ownership()
	sameButOwner := *o
	sameButOwner.owner = n.owner
	if sameButOwner.same(n) && ownable {
		p.replace[o] = owner
		return
	}
	if o.space == n.space && o.method == n.method {
		if sql, ok := replaceFunction(o, n); ok {
			p.replace[o] = sql + owner
			return
		}
		if a, ok := p.alterObject(o, n, dst); ok {
			if o.owner != n.owner {
				a.before = append(a.before, strings.TrimSuffix(owner, ";\n"))
			}
			p.alter[o] = a
			return
		}
	}
	p.gone[o] = true
}

// resetRights takes the rights on objects back whose owner changes: they would
// move from one owner to the other.
func (p *planner) resetRights() {
	for _, o := range p.src {
		if o.kind != "ACL" {
			continue
		}
		for _, d := range o.deps {
			t := p.srcID[d]
			if t == nil {
				continue
			}
			if n := p.dstBy[t.key]; n != nil && n.owner != t.owner {
				p.gone[o] = true
			}
		}
	}
}

// replaceFunction replaces a function whose name, arguments and result stay.
func replaceFunction(o, n *object) (string, bool) {
	if o.kind != "FUNCTION" && o.kind != "PROCEDURE" {
		return "", false
	}
	a, _, ok1 := strings.Cut(o.define, "\n    LANGUAGE ")
	b, _, ok2 := strings.Cut(n.define, "\n    LANGUAGE ")
	rest, ok3 := strings.CutPrefix(n.define, "CREATE "+o.kind)
	return "CREATE OR REPLACE " + o.kind + rest, ok1 && ok2 && ok3 && a == b
}

func (p *planner) alterObject(o, n *object, dst *side) (alteration, bool) {
	r := dst.tables[name{n.schema, n.tag}]
	if o.kind != "TABLE" || p.family[o.id] || r == nil {
		return alteration{}, false
	}
	return alterTable(r.sql(), o.define, n.define, func(column string) string {
		c := r.column(unquote(column))
		if c == nil || !c.fast {
			return ""
		}
		return literal([]byte(c.missing)) + "::" + c.typ
	})
}

// unquote reads a name as pg_dump writes it.
func unquote(s string) string {
	if len(s) > 1 && s[0] == '"' {
		return strings.ReplaceAll(s[1:len(s)-1], `""`, `"`)
	}
	return s
}

// spread makes what depends on something that goes, go with it.
func (p *planner) spread() {
	for more := true; more; {
		more = false
		for _, o := range p.src {
			if !p.gone[o] && p.mustGo(o) {
				p.gone[o], more = true, true
			}
			if parent := p.attachedTo(o); p.gone[o] && parent != nil && !p.gone[parent] && !p.tableGone(o) {
				p.gone[parent], more = true, true
			}
		}
	}
}

func (p *planner) mustGo(o *object) bool {
	for _, d := range o.deps {
		if t := p.srcID[d]; t != nil && p.gone[t] {
			return true
		}
	}
	if n := p.dstBy[o.key]; n != nil {
		for _, d := range n.deps {
			if t := p.dstID[d]; t != nil {
				if old := p.srcBy[t.key]; old != nil && p.gone[old] {
					return true
				}
			}
		}
	}
	return false
}

func isIndex(o *object) bool { return o != nil && (o.kind == "INDEX" || o.kind == "CONSTRAINT") }

// attachedTo is the index of a partitioned table that the index is a part of.
func (p *planner) attachedTo(o *object) *object {
	if isIndex(o) {
		for _, d := range o.deps {
			if t := p.srcID[d]; isIndex(t) {
				return t
			}
		}
	}
	return nil
}

func (p *planner) tableGone(o *object) bool {
	return slices.ContainsFunc(o.deps, func(d int) bool {
		t := p.srcID[d]
		return t != nil && t.kind == "TABLE" && p.gone[t]
	})
}

func (p *planner) creates() bool {
	return slices.ContainsFunc(p.dst, func(o *object) bool { return o.kind != "DEFAULT ACL" && p.isMade(o) })
}

// isMade tells whether an object of dst is made, anew or for the first time.
func (p *planner) isMade(o *object) bool {
	old := p.srcBy[o.key]
	return old == nil || p.gone[old]
}

// goesAlong are kinds that vanish with what they belong to.
var goesAlong = []string{"COMMENT", "SECURITY LABEL", "ACL", "SEQUENCE OWNED BY", "ROW SECURITY", "TABLE ATTACH",
	"INDEX ATTACH", "PUBLICATION TABLE", "PUBLICATION TABLES IN SCHEMA"}

func (p *planner) drops() {
	for _, o := range slices.Backward(p.src) {
		if !p.gone[o] {
			continue
		}
		p.dropped[o.key] = true
		if p.vanishes(o) {
			continue
		}
		sql, ok := o.removal()
		if !ok {
			p.impossible = append(p.impossible, fmt.Sprintf("remove %s %s", o.kind, o.tag))
			continue
		}
		p.before = append(p.before, sql)
	}
}

// vanishes tells whether an object goes when another one is dropped.
func (p *planner) vanishes(o *object) bool {
	if parent := p.attachedTo(o); parent != nil {
		return p.gone[parent] || p.tableGone(o)
	}
	if o.kind == "INDEX ATTACH" {
		return true
	}
	if !slices.Contains(goesAlong, o.kind) && (o.kind != "SEQUENCE" || o.drop != "") {
		return false
	}
	return slices.ContainsFunc(o.deps, func(d int) bool {
		t := p.srcID[d]
		return t != nil && p.gone[t] && t.kind != "ACL"
	})
}

// makes lists what is made and altered, in the order of dst. Partitions are
// attached to a table that stays after their own indexes are there, which are
// then taken for its parts.
func (p *planner) makes() {
	var indexes, attachments, rest []string
	for _, o := range p.dst {
		if !p.isMade(o) {
			p.stays(p.srcBy[o.key])
			continue
		}
		sql := o.creation()
		switch {
		case o.kind == "TABLE ATTACH" && p.tableStays(o):
			attachments = append(attachments, sql)
		case o.kind == "SEQUENCE" && o.drop == "" && p.tableStays(o): // an identity wants NOT NULL
			p.after = append(p.after, sql)
		case !o.postponed && o.kind != "DEFAULT ACL" && o.kind != "EVENT TRIGGER":
			p.before = append(p.before, sql)
		case isIndex(o):
			indexes = append(indexes, sql)
		default:
			rest = append(rest, sql)
		}
		switch o.kind {
		case "TABLE", "MATERIALIZED VIEW":
			p.fresh[name{o.schema, o.tag}] = true
		case "SEQUENCE":
			p.sequences = true
		}
	}
	p.after = slices.Concat(p.after, indexes, attachments, rest)
}

// tableStays tells whether the object belongs to a table that is not made
// anew.
func (p *planner) tableStays(o *object) bool {
	return slices.ContainsFunc(o.deps, func(d int) bool {
		t := p.dstID[d]
		return t != nil && t.kind == "TABLE" && !p.isMade(t)
	})
}

func (p *planner) stays(o *object) {
	if sql, ok := p.replace[o]; ok {
		p.before = append(p.before, sql)
	}
	a := p.alter[o]
	for _, s := range a.before {
		p.before = append(p.before, s+";\n")
	}
	for _, s := range a.after {
		p.after = append(p.after, s+";\n")
	}
}
