package rowdiff

import "strings"

// alteration changes a table that keeps its rows: some statements before the
// rows are changed, some after.
type alteration struct{ before, after []string }

// tableText is a CREATE TABLE statement of pg_dump, taken apart.
type tableText struct {
	head, tail  string
	columns     []columnText
	constraints []string
}

type columnText struct {
	name, typ string
	preset    string // DEFAULT
	generated string
	notNull   bool
}

// parseTable takes a statement apart; false where it is not of the plain
// kind.
func parseTable(s string) (t tableText, ok bool) {
	open, end := -1, -1
	walk(s, func(begin, _ int) bool {
		switch {
		case s[begin] == '(' && open < 0:
			open = begin
		case s[begin] == ')' && open >= 0:
			end = begin
		}
		return end < 0
	})
	if end < 0 || !strings.HasPrefix(s, "CREATE") {
		return t, false
	}
	t.head, t.tail = s[:open], s[end:]
	for _, item := range split(s[open+1:end], ',') {
		item = strings.TrimSpace(item)
		switch {
		case item == "":
		case strings.HasPrefix(item, "CONSTRAINT "):
			t.constraints = append(t.constraints, item)
		default:
			c, ok := parseColumn(item)
			if !ok {
				return t, false
			}
			t.columns = append(t.columns, c)
		}
	}
	return t, true
}

// parseColumn reads: name type [DEFAULT x | GENERATED …] [NOT NULL] [COLLATE x].
// The collation is kept with the type.
func parseColumn(s string) (c columnText, ok bool) {
	end := token(s, 0)
	c.name = s[:end]
	rest := s[end:]
	if n := keyword(rest, "CONSTRAINT"); n >= 0 {
		return c, false
	}
	if n := keyword(rest, "COLLATE"); n >= 0 {
		collation := rest[n:]
		rest = rest[:n]
		if keyword(collation, "NOT")+keyword(collation, "DEFAULT") > -2 { // the other order
			return c, false
		}
		defer func() { c.typ += " " + collation }()
	}
	if trimmed, found := strings.CutSuffix(strings.TrimSpace(rest), "NOT NULL"); found {
		c.notNull, rest = true, trimmed
	}
	if n := keyword(rest, "GENERATED"); n >= 0 {
		c.generated, rest = strings.TrimSpace(rest[n:]), rest[:n]
	}
	if n := keyword(rest, "DEFAULT"); n >= 0 {
		c.preset, rest = strings.TrimSpace(rest[n+len("DEFAULT"):]), rest[:n]
	}
	c.typ = strings.TrimSpace(rest)
	return c, c.typ != "" && keyword(c.typ, "NOT") < 0
}

// alterTable finds the statements that make one definition from another
// without touching the rows: columns may go, come at the end, and change
// their default and whether they may be null. Anything else is false, and the
// table has to be made anew. missing gives the constant that old rows show in
// an added column.
func alterTable(name, old, now string, missing func(column string) string) (a alteration, ok bool) {
	from, ok1 := parseTable(old)
	to, ok2 := parseTable(now)
	if !ok1 || !ok2 || from.head != to.head || from.tail != to.tail {
		return a, false
	}
	table := "ALTER TABLE " + name + " "
	kept := map[string]columnText{}
	for _, c := range to.columns {
		kept[c.name] = c
	}
	next := 0
	for _, c := range from.columns {
		d, ok := kept[c.name]
		if !ok {
			if c.notNull {
				a.before = append(a.before, table+"ALTER COLUMN "+c.name+" DROP NOT NULL")
			}
			a.after = append(a.after, table+"DROP COLUMN "+c.name)
			continue
		}
		if to.columns[next].name != c.name || c.typ != d.typ || c.generated != d.generated {
			return a, false
		}
		next++
		a.column(table, c, d)
	}
	for _, c := range to.columns[next:] {
		a.add(table, c, missing)
	}
	a.constraints(table, from.constraints, to.constraints)
	return a, true
}

func (a *alteration) column(table string, c, d columnText) {
	alter := table + "ALTER COLUMN " + c.name
	switch {
	case c.notNull && !d.notNull:
		a.before = append(a.before, alter+" DROP NOT NULL")
	case !c.notNull && d.notNull:
		a.after = append(a.after, alter+" SET NOT NULL")
	}
	a.preset(alter, c.preset, d.preset)
}

func (a *alteration) preset(alter, old, now string) {
	switch {
	case old == now:
	case now == "":
		a.after = append(a.after, alter+" DROP DEFAULT")
	default:
		a.after = append(a.after, alter+" SET DEFAULT "+now)
	}
}

func (a *alteration) add(table string, c columnText, missing func(string) string) {
	add := table + "ADD COLUMN " + c.name + " " + c.typ
	alter := table + "ALTER COLUMN " + c.name
	if c.generated != "" {
		a.before = append(a.before, add+" "+c.generated)
	} else {
		value := missing(c.name)
		if value == "" {
			a.before = append(a.before, add)
		} else {
			a.before = append(a.before, add+" DEFAULT "+value, alter+" DROP DEFAULT")
		}
		a.preset(alter, "", c.preset)
	}
	if c.notNull {
		a.after = append(a.after, alter+" SET NOT NULL")
	}
}

func (a *alteration) constraints(table string, old, now []string) {
	had := map[string]bool{}
	for _, c := range old {
		had[c] = true
	}
	for _, c := range now {
		if !had[c] {
			a.after = append(a.after, table+"ADD "+c)
		}
		delete(had, c)
	}
	for _, c := range old {
		if had[c] {
			word := strings.TrimPrefix(c, "CONSTRAINT ")
			a.before = append(a.before, table+"DROP CONSTRAINT "+word[:token(word, 0)])
		}
	}
}
