package rowdiff

import (
	"slices"
	"strings"
)

// SchemaChange is an object of the schema that differs.
type SchemaChange struct {
	Op     string // "create", "drop" or "alter"
	Kind   string // "TABLE", "INDEX", "FUNCTION", "ACL", …, as pg_dump calls it
	Schema string
	Name   string
	Old    string // SQL
	New    string
}

// compareObjects lists what differs, in the order of the definitions.
func compareObjects(from, to []*object) []SchemaChange {
	var out []SchemaChange
	news := index(to)
	for _, o := range from {
		n := news[o.key]
		if n == nil {
			out = append(out, SchemaChange{"drop", o.kind, o.schema, o.tag, o.text(), ""})
		} else if !o.same(n) {
			out = append(out, SchemaChange{"alter", o.kind, o.schema, o.tag, o.text(), n.text()})
		}
	}
	olds := index(from)
	for _, o := range to {
		if olds[o.key] == nil {
			out = append(out, SchemaChange{"create", o.kind, o.schema, o.tag, "", o.text()})
		}
	}
	return out
}

func index(objects []*object) map[string]*object {
	m := map[string]*object{}
	for _, o := range objects {
		m[o.key] = o
	}
	return m
}

func (o *object) same(n *object) bool {
	return o.define == n.define && o.owner == n.owner && o.space == n.space && o.method == n.method
}

func (o *object) text() string {
	owner, _ := o.ownership()
	return strings.TrimSpace(o.define + owner)
}

// owned kinds have an owner that ALTER can set by the name that DROP uses.
var owned = []string{"AGGREGATE", "COLLATION", "CONVERSION", "DOMAIN", "EVENT TRIGGER", "FOREIGN DATA WRAPPER",
	"FOREIGN TABLE", "FUNCTION", "MATERIALIZED VIEW", "OPERATOR", "OPERATOR CLASS", "OPERATOR FAMILY",
	"PROCEDURAL LANGUAGE", "PROCEDURE", "PUBLICATION", "SCHEMA", "SEQUENCE", "SERVER", "STATISTICS", "TABLE",
	"TEXT SEARCH CONFIGURATION", "TEXT SEARCH DICTIONARY", "TYPE", "VIEW"}

// ownership is the statement that gives the object to its owner.
func (o *object) ownership() (sql string, ok bool) {
	what, found := strings.CutPrefix(strings.TrimSpace(o.drop), "DROP ")
	what, single := strings.CutSuffix(what, ";")
	if !found || !single || strings.Contains(what, ";\n") || o.owner == "" || !slices.Contains(owned, o.kind) {
		return "", false
	}
	return "ALTER " + what + " OWNER TO " + ident(o.owner) + ";\n", true
}

// creation is the SQL that makes the object.
func (o *object) creation() string {
	owner, _ := o.ownership()
	define := strings.TrimRight(o.define, " \n")
	if !strings.HasSuffix(define, ";") && define != "" {
		define += ";"
	}
	return o.place() + define + "\n" + owner
}

// place sets the tablespace and the access method that the definition leaves
// out.
func (o *object) place() string {
	switch o.kind {
	case "TABLE", "MATERIALIZED VIEW", "INDEX", "CONSTRAINT":
		s := "SET LOCAL default_tablespace = " + literal([]byte(o.space)) + ";\n"
		if o.method != "" {
			s += "SET LOCAL default_table_access_method = " + ident(o.method) + ";\n"
		}
		return s
	}
	return ""
}

// removal is the SQL that removes the object alone; false when there is none.
func (o *object) removal() (string, bool) {
	define := strings.TrimSuffix(strings.TrimSpace(o.define), ";")
	before := func(words ...string) (string, bool) { // what stands before the words
		n := keyword(define, words[0])
		if n < 0 || !strings.HasPrefix(define[n:], strings.Join(words, " ")) {
			return "", false
		}
		return define[:n], true
	}
	switch o.kind {
	case "COMMENT", "SECURITY LABEL":
		s, ok := before("IS")
		return s + "IS NULL;\n", ok
	case "ACL", "DEFAULT ACL":
		return revokeAll(o.define)
	case "SEQUENCE":
		if o.drop == "" {
			s, ok := before("ADD", "GENERATED")
			return s + "DROP IDENTITY;\n", ok
		}
	case "DEFAULT": // partitions keep theirs
		return strings.Replace(o.drop, "ALTER TABLE ", "ALTER TABLE ONLY ", 1), o.drop != ""
	case "SEQUENCE OWNED BY":
		s, ok := before("OWNED", "BY")
		return s + "OWNED BY NONE;\n", ok
	case "ROW SECURITY":
		s, ok := before("ENABLE", "ROW")
		return s + "DISABLE ROW LEVEL SECURITY;\n", ok
	case "TABLE ATTACH":
		s, ok := before("ATTACH", "PARTITION")
		child := strings.TrimPrefix(define[len(s):], "ATTACH PARTITION ")
		for _, end := range []string{"FOR", "DEFAULT"} {
			if n := keyword(child, end); n >= 0 {
				child = child[:n]
			}
		}
		return strings.Replace(s, "ALTER TABLE ONLY", "ALTER TABLE", 1) + "DETACH PARTITION " + strings.TrimSpace(child) + ";\n", ok
	case "PUBLICATION TABLE":
		s, ok := before("ADD", "TABLE")
		table := strings.TrimPrefix(define[len(s):], "ADD TABLE ")
		for _, end := range []string{"(", "WHERE"} {
			if n := keyword(table, end); n >= 0 {
				table = table[:n]
			}
		}
		return s + "DROP TABLE " + strings.TrimSpace(table) + ";\n", ok
	}
	return o.drop, o.drop != ""
}

// revokeAll takes the statements of an ACL back, last one first. They begin at
// the default, so what they make of the ACL is the default again.
func revokeAll(acl string) (string, bool) {
	var out []string
	for _, s := range split(acl, ';') {
		if s = strings.TrimSpace(s); s == "" {
			continue
		}
		prefix := ""
		if strings.HasPrefix(s, "ALTER DEFAULT PRIVILEGES") {
			n := max(keyword(s, "GRANT"), keyword(s, "REVOKE"))
			if n < 0 {
				return "", false
			}
			prefix, s = s[:n], s[n:]
		}
		back, ok := revoke(s)
		if !ok {
			return "", false
		}
		out = append(out, prefix+back+";\n")
	}
	slices.Reverse(out)
	return strings.Join(out, ""), len(out) > 0
}

func revoke(s string) (string, bool) {
	word, preposition, inverse, other := "GRANT ", "TO", "REVOKE ", "FROM"
	if strings.HasPrefix(s, "REVOKE ") {
		word, preposition, inverse, other = "REVOKE ", "FROM", "GRANT ", "TO"
	}
	rest, ok := strings.CutPrefix(s, word)
	n := keyword(rest, preposition)
	if !ok || n < 0 || strings.HasPrefix(rest, "GRANT OPTION") || keyword(rest, "GRANTED") >= 0 {
		return "", false
	}
	who := strings.TrimSuffix(rest[n+len(preposition):], " WITH GRANT OPTION")
	return inverse + rest[:n] + other + who, true
}
