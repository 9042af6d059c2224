package rowdiff

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// generator makes random schemas and random changes of them, as SQL. It
// keeps a rough idea of what exists; statements that fail are part of the
// game.
type generator struct {
	*rand.Rand
	tables []*genTable
	next   int
}

type genTable struct {
	name string // quoted
	cols []genColumn
	key  string // column; empty without
}

type genColumn struct {
	name, typ string
	fixed     bool // not to be set
}

var genTypes = []string{"int", "bigint", "smallint", "numeric", "numeric(10,3)", "text", "varchar(40)", "char(6)", "bool", "float8", "real",
	"timestamptz", "timestamp", "date", "time", "timetz", "interval", "bytea", "json", "jsonb", "int[]", "text[]", "uuid", "inet", "money", "bit varying",
	"tsvector", `"char"`, "name", "point", "int4range", "int4multirange", "mood", "positive", "pair", "pair[]", "mood[]", "regclass", "oid"}

var genNames = []string{`a`, `"B c"`, `"ünï"`, `"q""uote"`, `"sel;ect"`, `"d$$ol"`, `d`, `e`, `"x'y"`, `g`, `"select"`, `h`, `"\back"`, `"CONSTRAINT"`, `"a,b"`, `"p(q"`}

// preamble makes the types that the columns use.
const preamble = `CREATE TYPE mood AS ENUM ('sad', 'ok', 'it''s "fine"'); CREATE DOMAIN positive AS int CHECK (VALUE > 0);
CREATE TYPE pair AS (x int, "Y z" text); CREATE SEQUENCE counter START 5;
CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW := NEW; RETURN NEW; END $$;
CREATE FUNCTION double(i int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT i * 2';`

func (g *generator) pick(s ...string) string { return s[g.IntN(len(s))] }

func (g *generator) text() string {
	switch g.IntN(12) {
	case 0:
		return ""
	case 1:
		return strings.Repeat(g.pick("long ", "ü", "xyz"), 1+g.IntN(3000))
	case 2:
		b := make([]byte, 1500)
		for i := range b {
			b[i] = byte('!' + g.IntN(90))
		}
		return string(b)
	case 3:
		return "\x1b[31m\u202eevil\r\n\t\\'\"$$;--"
	}
	return g.pick("plain", "it's", `back\slash`, "line\nend", "ünïcödé ☃", " spaces ", "NULL", "a,b", "(x)", "{y}", `"q"`, "$1", "E'x'") + fmt.Sprint(g.IntN(20))
}

func (g *generator) value(typ string) string {
	if g.IntN(8) == 0 {
		return "NULL"
	}
	n := g.IntN(200) - 50
	lit := func(s string) string { return literal([]byte(s)) }
	switch typ {
	case "int", "bigint", "smallint":
		return fmt.Sprint(n)
	case "numeric":
		return g.pick("1.0", "1.00", "'NaN'", "'Infinity'", "-0.000", "123456789012345678901234567890.123", fmt.Sprint(n))
	case "numeric(10,3)":
		return fmt.Sprintf("%d.%d", n, g.IntN(999))
	case "text":
		return lit(g.text())
	case "varchar(40)", "char(6)", "name":
		return fmt.Sprintf("left(%s, 6)", lit(g.text()))
	case "bool":
		return g.pick("true", "false")
	case "float8", "real":
		return g.pick("'NaN'", "'Infinity'", "'-Infinity'", "'-0'", "0.1", "1e-30", "3.14159265358979", fmt.Sprint(n))
	case "timestamptz", "timestamp":
		return g.pick("'infinity'", "'-infinity'", "'4000-01-01 BC'", "'2024-02-29 12:34:56.789012+05:30'", fmt.Sprintf("'epoch'::timestamptz + %d * interval '1 hour'", n))
	case "date":
		return g.pick("'infinity'", "'0044-03-15 BC'", fmt.Sprintf("date '2024-01-01' + %d", n))
	case "time":
		return g.pick("'24:00'", "'01:02:03.4'")
	case "timetz":
		return g.pick("'12:00+14'", "'01:02:03.4-03:30'")
	case "interval":
		return g.pick("'1 mon -1 day +02:03'", "'-1 year'", "'00:00:00.000001'", "'1 day'", "'24 hours'")
	case "bytea":
		return g.pick(`'\x'`, `'\x00ff27225c'`, fmt.Sprintf("decode(repeat('%02x', %d), 'hex')", g.IntN(256), g.IntN(9000)))
	case "json":
		return g.pick(`'{"b":1,  "a":2, "a":3}'`, `'{"b":1,"a":2}'`, `'[1.0, 1.00]'`, `'"\u00e9"'`)
	case "jsonb":
		return g.pick(`'{"b":1,  "a":2, "a":3}'`, `'[1.0, null, "x\"y"]'`, `'"it''s"'`)
	case "int[]":
		return g.pick("'{}'", "'{1,NULL,3}'", "'[0:1]={5,6}'", "'{{1,2},{3,4}}'")
	case "text[]":
		return g.pick(`'{}'`, `'{"a b",NULL,"NULL","q\"x","c\\d"}'`, "ARRAY["+lit(g.text())+"]")
	case "uuid":
		return fmt.Sprintf("'00000000-0000-0000-0000-%012d'", g.IntN(50))
	case "inet":
		return g.pick("'10.0.0.1/8'", "'::1'")
	case "money":
		return g.pick("'12.34'", "'-1000.00'")
	case "bit varying":
		return g.pick("B'101'", "B''")
	case "tsvector":
		return g.pick("'a:1 fat:2A'", "''")
	case `"char"`:
		return g.pick("'x'", "''")
	case "point":
		return "'(1.5,-0)'"
	case "int4range":
		return g.pick("'empty'", "'[1,5)'", "'(,3]'")
	case "int4multirange":
		return "'{[1,2),[5,9)}'"
	case "mood":
		return g.pick("'sad'", "'ok'", "'it''s \"fine\"'")
	case "positive":
		return fmt.Sprint(1 + g.IntN(99))
	case "pair":
		return g.pick("ROW(1, 'x,y')", "ROW(NULL, NULL)", `ROW(-3, '"(\')`)
	case "pair[]":
		return "ARRAY[ROW(1, 'x\"y'), NULL]::pair[]"
	case "mood[]":
		return "'{sad,NULL}'"
	case "regclass":
		return "'pg_class'"
	}
	return fmt.Sprint(g.IntN(1000))
}

func (g *generator) columnName(t *genTable) string {
	for {
		n := genNames[g.IntN(len(genNames))]
		if g.IntN(3) == 0 {
			g.next++
			n = fmt.Sprintf("c%d", g.next)
		}
		taken := false
		for _, c := range t.cols {
			taken = taken || c.name == n
		}
		if !taken {
			return n
		}
	}
}

// create makes a table, of one of many kinds.
func (g *generator) create() string {
	g.next++
	t := &genTable{name: g.pick(`t%d`, `"T %d"`, `"tü%d"`, `other.t%d`)}
	t.name = fmt.Sprintf(t.name, g.next)
	var parts []string
	after := ""
	switch g.IntN(7) {
	case 0: // no key
	case 1:
		t.key = "id"
		t.cols = append(t.cols, genColumn{"id", "int", false})
		parts = append(parts, "id int PRIMARY KEY")
	case 2:
		t.key = "id"
		t.cols = append(t.cols, genColumn{"id", "int", true})
		parts = append(parts, "id serial PRIMARY KEY")
	case 3:
		t.key = "id"
		t.cols = append(t.cols, genColumn{"id", "int", true})
		parts = append(parts, "id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY")
	case 4:
		t.key = "id"
		t.cols = append(t.cols, genColumn{"id", "text", false})
		parts = append(parts, "id text PRIMARY KEY")
	case 5:
		t.key = "id"
		t.cols = append(t.cols, genColumn{"id", "int", false})
		parts = append(parts, "id int", `"K 2" uuid DEFAULT '00000000-0000-0000-0000-000000000000'`, `PRIMARY KEY (id, "K 2")`)
	case 6:
		t.key = "id"
		t.cols = append(t.cols, genColumn{"id", "int", true})
		parts = append(parts, "id int GENERATED BY DEFAULT AS IDENTITY UNIQUE NOT NULL")
	}
	for range g.IntN(6) {
		c := genColumn{name: g.columnName(t), typ: genTypes[g.IntN(len(genTypes))]}
		t.cols = append(t.cols, c)
		def := c.name + " " + c.typ
		if g.IntN(6) == 0 {
			def += " DEFAULT " + g.value(c.typ)
		}
		if g.IntN(10) == 0 && c.typ == "int" {
			def += " UNIQUE" + g.pick("", " DEFERRABLE INITIALLY DEFERRED")
		}
		if g.IntN(10) == 0 && c.typ == "int" {
			def += fmt.Sprintf(" CHECK (%s < 1000)", c.name)
		}
		parts = append(parts, def)
		if c.typ == "int" && g.IntN(3) == 0 {
			parts = append(parts, fmt.Sprintf(`"gen %s" int GENERATED ALWAYS AS (double(%s)) STORED`, strings.Trim(c.name, `"`), c.name))
			if strings.Contains(c.name, `"`) {
				parts = parts[:len(parts)-1]
			}
		}
	}
	sql := "CREATE " + g.pick("", "", "", "", "UNLOGGED ") + "TABLE " + t.name + " (" + strings.Join(parts, ", ") + ")"
	if t.key == "id" && len(t.cols) > 0 && t.cols[0].typ == "int" && !strings.Contains(sql, "UNIQUE") && !strings.Contains(sql, "IDENTITY") && g.IntN(4) == 0 && !strings.Contains(sql, "UNLOGGED") {
		sql += " PARTITION BY RANGE (id)"
		for i, bounds := range []string{"FROM (MINVALUE) TO (50)", "FROM (50) TO (1000)"} {
			after += fmt.Sprintf("; CREATE TABLE p%d_%d PARTITION OF %s FOR VALUES %s", g.next, i, t.name, bounds)
		}
	} else if g.IntN(5) == 0 {
		after += fmt.Sprintf("; CREATE TABLE kid%d (extra int) INHERITS (%s)", g.next, t.name)
	}
	if g.IntN(3) == 0 {
		after += fmt.Sprintf("; CREATE TRIGGER touch BEFORE UPDATE ON %s FOR EACH ROW EXECUTE FUNCTION touch()", t.name)
		if g.IntN(2) == 0 {
			after += fmt.Sprintf("; ALTER TABLE %s ENABLE ALWAYS TRIGGER touch", t.name)
		}
	}
	if len(t.cols) > 1 && g.IntN(3) == 0 {
		after += fmt.Sprintf("; CREATE VIEW v%d AS SELECT %s FROM %s", g.next, t.cols[1].name, t.name)
	}
	if len(t.cols) > 1 && g.IntN(4) == 0 {
		after += fmt.Sprintf("; CREATE INDEX ON %s (%s)", t.name, t.cols[1].name)
	}
	if other := g.table(); other != nil && other.key != "" && other.cols[0].typ == "int" && g.IntN(3) == 0 {
		after += fmt.Sprintf("; ALTER TABLE %s ADD COLUMN ref int REFERENCES %s (id)%s", t.name, other.name, g.pick("", " ON DELETE CASCADE", " DEFERRABLE INITIALLY DEFERRED"))
		t.cols = append(t.cols, genColumn{"ref", "int", false})
	}
	g.tables = append(g.tables, t)
	return sql + after
}

func (g *generator) table() *genTable {
	if len(g.tables) == 0 {
		return nil
	}
	return g.tables[g.IntN(len(g.tables))]
}

func (g *generator) column(t *genTable) *genColumn {
	if len(t.cols) == 0 {
		return nil
	}
	return &t.cols[g.IntN(len(t.cols))]
}

// change makes a statement that changes rows.
func (g *generator) change() string {
	t := g.table()
	if t == nil {
		return "SELECT 1"
	}
	where := ""
	if c := g.column(t); c != nil && g.IntN(3) > 0 {
		where = fmt.Sprintf(" WHERE (%s)::text = (%s)::text", c.name, g.value(c.typ))
		if c.typ == "int" {
			where = fmt.Sprintf(" WHERE %s BETWEEN %d AND %d", c.name, g.IntN(100), 20+g.IntN(100))
		}
	}
	switch g.IntN(10) {
	case 0, 1, 2, 3, 4:
		return g.insert(t, 1+g.IntN(10))
	case 5, 6, 7:
		c := g.column(t)
		if c == nil || c.fixed {
			return g.insert(t, 1)
		}
		return fmt.Sprintf("UPDATE %s SET %s = %s%s", t.name, c.name, g.value(c.typ), where)
	case 8:
		if where == "" {
			return g.insert(t, 2)
		}
		return fmt.Sprintf("DELETE FROM %s%s", t.name, where)
	}
	return g.pick("SELECT nextval('counter')", fmt.Sprintf("SELECT lo_from_bytea(0, '\\x%0*d')", 2+2*g.IntN(4000), 7),
		"SELECT lo_unlink(oid) FROM pg_largeobject_metadata LIMIT 1", "SELECT lo_put(oid, 3000, 'patch') FROM pg_largeobject_metadata LIMIT 1",
		"SELECT lo_truncate(lo_open(oid, 131072), 10) FROM pg_largeobject_metadata LIMIT 1")
}

func (g *generator) insert(t *genTable, n int) string {
	var names []string
	for _, c := range t.cols {
		if !c.fixed {
			names = append(names, c.name)
		}
	}
	if len(names) == 0 {
		return fmt.Sprintf("INSERT INTO %s DEFAULT VALUES", t.name)
	}
	var rows []string
	for range n {
		var vs []string
		for _, c := range t.cols {
			switch {
			case c.fixed:
			case c.name == t.key && c.typ == "int":
				vs = append(vs, fmt.Sprint(g.IntN(400)))
			case c.name == t.key:
				vs = append(vs, literal([]byte(fmt.Sprint("key ", g.IntN(400)))))
			default:
				vs = append(vs, g.value(c.typ))
			}
		}
		rows = append(rows, "("+strings.Join(vs, ", ")+")")
	}
	conflict := ""
	if t.key != "" {
		conflict = " ON CONFLICT DO NOTHING"
	}
	return fmt.Sprintf("INSERT INTO %s (%s) VALUES %s%s", t.name, strings.Join(names, ", "), strings.Join(rows, ", "), conflict)
}

// alter makes a statement that changes the schema.
func (g *generator) alter() string {
	t := g.table()
	c := g.column(t)
	if c == nil {
		return g.create()
	}
	g.next++
	switch g.IntN(26) {
	case 0, 1:
		n := genColumn{name: g.columnName(t), typ: genTypes[g.IntN(len(genTypes))]}
		t.cols = append(t.cols, n)
		return fmt.Sprintf("ALTER TABLE %s ADD COLUMN %s %s", t.name, n.name, n.typ) + g.pick("", " DEFAULT "+g.value(n.typ), " DEFAULT "+g.value(n.typ))
	case 2, 3:
		return fmt.Sprintf("ALTER TABLE %s DROP COLUMN %s", t.name, c.name) + g.pick("", " CASCADE")
	case 4:
		return g.create()
	case 5:
		return "DROP TABLE " + t.name + g.pick("", " CASCADE")
	case 6:
		return "TRUNCATE " + t.name + g.pick("", " CASCADE", " RESTART IDENTITY")
	case 7:
		return fmt.Sprintf("ALTER TABLE %s RENAME COLUMN %s TO renamed%d", t.name, c.name, g.next)
	case 8:
		return fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s TYPE text USING (%[2]s)::text", t.name, c.name)
	case 9:
		return fmt.Sprintf("CREATE INDEX extra%d ON %s (%s)", g.next, t.name, c.name)
	case 10:
		return fmt.Sprintf("CREATE UNIQUE INDEX uniq%d ON %s ((%s::text), ctid)", g.next, t.name, c.name)
	case 11:
		return fmt.Sprintf("CREATE OR REPLACE VIEW w%d AS SELECT * FROM %s", g.next, t.name)
	case 12:
		return "CREATE OR REPLACE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$"
	case 13:
		return fmt.Sprintf("COMMENT ON %s IS %s", g.pick("TABLE "+t.name, "COLUMN "+t.name+"."+c.name, "FUNCTION double(int)"), g.pick("NULL", literal([]byte(g.text()))))
	case 14:
		return fmt.Sprintf("%s ON %s %s", g.pick("GRANT SELECT", "GRANT UPDATE ("+c.name+")", "GRANT ALL"), t.name, g.pick("TO PUBLIC", "TO rowdiff_reader", "TO rowdiff_reader WITH GRANT OPTION"))
	case 15:
		return fmt.Sprintf("ALTER TABLE %s ALTER COLUMN %s %s", t.name, c.name, g.pick("SET NOT NULL", "DROP NOT NULL", "DROP DEFAULT", "SET DEFAULT "+g.value(c.typ)))
	case 16:
		return "ALTER TYPE mood ADD VALUE IF NOT EXISTS 'new" + fmt.Sprint(g.IntN(3)) + "' BEFORE 'ok'"
	case 17:
		return "VACUUM FULL " + t.name
	case 18:
		return "VACUUM FREEZE " + t.name
	case 19:
		return fmt.Sprintf("CREATE TABLE p%d PARTITION OF %s FOR VALUES FROM (%d) TO (%d)", g.next, t.name, 1000*g.next, 1000*g.next+500)
	case 20:
		return fmt.Sprintf("CREATE MATERIALIZED VIEW m%d AS SELECT count(*) FROM %s", g.next, t.name)
	case 21:
		return fmt.Sprintf("ALTER TABLE %s OWNER TO rowdiff_reader", t.name)
	case 22:
		return g.pick("ALTER SEQUENCE counter INCREMENT 3", "SELECT setval('counter', 77, false)", "DROP SEQUENCE counter", "ALTER DOMAIN positive ADD CHECK (VALUE < 100000)",
			"ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO rowdiff_reader")
	case 23:
		return fmt.Sprintf("ALTER TABLE %s ENABLE ROW LEVEL SECURITY; CREATE POLICY pol%d ON %[1]s USING (true)", t.name, g.next)
	case 24:
		return fmt.Sprintf("ALTER TABLE %s DETACH PARTITION p%d_0", t.name, g.IntN(g.next))
	}
	return fmt.Sprintf("ALTER TABLE %s ADD CONSTRAINT chk%d CHECK (%s IS NOT NULL OR true)", t.name, g.next, c.name)
}
