package postgres

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"

	"mayfly.dev/mayfly"
)

// filter reads a dump in SQL and leaves out what has no place in a baseline:
// owners, tablespaces, making databases and connecting to them. A role that
// the dump mentions and that does not exist is made just before it is needed.
// The number of lines stays the same, and with it what errors say.
type filter struct {
	r        *bufio.Reader
	in       Install
	database string
	note     func(format string, args ...any)
	roles    map[string]bool
	said     map[string]bool
	err      error // other than the end

	out  []byte // to be read
	rest bool   // in a line that is longer than the buffer
	copy bool   // in the data of a COPY
	lex  lexer
}

// lineBuffer is how much of a line is looked at: a table has at most 1,600
// columns, whose names are in one line of a COPY.
const lineBuffer = 512 << 10

func newFilter(r io.Reader, in Install, database string, roles []string) *filter {
	f := &filter{r: bufio.NewReaderSize(r, lineBuffer), in: in, database: database,
		note: func(string, ...any) {}, roles: map[string]bool{"public": true}, said: map[string]bool{}}
	for _, name := range roles {
		f.roles[name] = true
	}
	return f
}

func (f *filter) Read(b []byte) (int, error) {
	for len(f.out) == 0 {
		line, err := f.r.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			err = nil
		}
		if len(line) == 0 || err != nil && !errors.Is(err, io.EOF) {
			if !errors.Is(err, io.EOF) {
				f.err = err
			}
			return 0, err
		}
		if f.out, f.err = f.line(line); f.err != nil {
			return 0, f.err
		}
	}
	n := copy(b, f.out)
	f.out = f.out[n:]
	return n, nil
}

// line is what becomes of a line, or of a part of a long one.
func (f *filter) line(line []byte) ([]byte, error) {
	first := !f.rest
	f.rest = line[len(line)-1] != '\n'
	if f.copy {
		f.copy = !(first && string(bytes.TrimRight(line, "\r\n")) == `\.`)
		return line, nil
	}
	if first && f.lex.atStart() {
		replaced, err := f.statement(string(line))
		if err != nil || !strings.HasSuffix(replaced, string(line)) {
			return []byte(replaced), err
		}
		if replaced != string(line) {
			f.lex.feed(line)
			return []byte(replaced), nil
		}
		if !f.rest && bytes.HasPrefix(line, []byte("COPY ")) && bytes.HasSuffix(bytes.TrimRight(line, "\r\n"), []byte(" FROM stdin;")) {
			f.copy = true
			return line, nil
		}
	}
	f.lex.feed(line)
	return line, nil
}

// Lines of a dump begin statements like these.
var patterns = sync.OnceValue(func() map[string]*regexp.Regexp {
	const name = `("(?:[^"]|"")+"|[a-z_][a-z0-9_$]*)`
	m := map[string]string{
		"tablespace": `^SET default_tablespace = (.+);`,
		"owner":      `^ALTER .* OWNER TO ` + name + `;`,
		"database":   `^(CREATE|ALTER|DROP|COMMENT ON) DATABASE `,
		"connect":    `^\\connect (?:-reuse-previous=on )?(.+)`,
		"restrict":   `^\\(un)?restrict `,
		"session":    `^SET SESSION AUTHORIZATION `,
		"version":    `^-- Dumped from database version (\d+)`,
		"grantee":    `^(?:GRANT|REVOKE|ALTER DEFAULT PRIVILEGES) .*(?:TO|FROM) ` + name + `(?: WITH GRANT OPTION)?(?: GRANTED BY ` + name + `)?;`,
		"default":    `^ALTER DEFAULT PRIVILEGES FOR ROLE ` + name + ` `,
		"policy":     `^CREATE POLICY .* TO ((?:` + name + `, )*` + name + `)(?: USING| WITH CHECK|;)`,
		"mapping":    `^CREATE USER MAPPING FOR ` + name + ` SERVER`,
		"name":       name,
	}
	compiled := map[string]*regexp.Regexp{}
	for key, pattern := range m {
		compiled[key] = regexp.MustCompile(pattern)
	}
	return compiled
})

// dropped are the statements that a baseline does without.
var dropped = []string{"owner", "database", "restrict", "session"}

// statement is what becomes of the first line of a statement or a comment.
func (f *filter) statement(line string) (string, error) {
	switch line[0] {
	case 'A', 'C', 'D', 'G', 'R', 'S', '-', '\\':
	default:
		return line, nil
	}
	p := patterns()
	if err := f.refuse(line); err != nil {
		return "", err
	}
	if m := p["tablespace"].FindStringSubmatch(line); m != nil && m[1] != "''" {
		f.once("the tablespace %s of the source is not used: everything is in the data directory", m[1])
		return "SET default_tablespace = '';\n", nil
	}
	for _, kind := range dropped {
		if m := p[kind].FindStringSubmatch(line); m != nil {
			if kind == "owner" {
				f.once("what belonged to the role %s belongs to the service's own role", m[1])
			}
			if kind == "database" && !strings.HasSuffix(strings.TrimSpace(line), ";") {
				return line, nil
			}
			return "\n", nil
		}
	}
	if p["connect"].MatchString(line) {
		return "\n", nil
	}
	return f.missingRoles(line) + line, nil
}

// refuse recognises dumps that cannot be loaded.
func (f *filter) refuse(line string) error {
	if strings.HasPrefix(line, "-- PostgreSQL database cluster dump") {
		return mayfly.Errorf(mayfly.Invalid, "the dump is one of a whole cluster").
			Hint("dump one database with pg_dump instead of pg_dumpall")
	}
	m := patterns()["version"].FindStringSubmatch(line)
	if m == nil {
		return nil
	}
	if major, _, err := parseVersion(m[1]); err == nil && major > f.in.Major {
		return wrongMajor("the dump", m[1], f.in)
	}
	return nil
}

// missingRoles are statements that make the roles which the line mentions and
// nobody has made yet.
func (f *filter) missingRoles(line string) string {
	var creates strings.Builder
	p := patterns()
	for _, kind := range []string{"grantee", "default", "policy", "mapping"} {
		m := p[kind].FindStringSubmatch(line)
		if m == nil {
			continue
		}
		for _, quoted := range p["name"].FindAllString(strings.Join(m[1:], ","), -1) {
			name := quoted
			if quoted[0] == '"' {
				name = strings.ReplaceAll(quoted[1:len(quoted)-1], `""`, `"`)
			}
			if !f.roles[name] && !strings.HasPrefix(name, "pg_") {
				f.roles[name] = true
				f.note("the role %s does not exist: it is made, without a login", quoted)
				fmt.Fprintf(&creates, "CREATE ROLE %s NOLOGIN; ", identifier(name))
			}
		}
	}
	return creates.String()
}

func (f *filter) once(format, what string) {
	if !f.said[format+what] {
		f.said[format+what] = true
		f.note(format, what)
	}
}

// lexer knows whether a line of a dump begins a statement, or lies in a string,
// a quoted name, a comment or a later line of one.
type lexer struct {
	quote   byte   // ' or ", 0 outside
	dollar  string // the tag that ends a string quoted by dollars
	comment int    // depth
	pending bool   // in a statement
}

func (l *lexer) atStart() bool {
	return l.quote == 0 && l.dollar == "" && l.comment == 0 && !l.pending
}

// feed takes the next part of the text. A part ends with a line, or in a long
// one anywhere: a delimiter that is cut there is not recognised.
func (l *lexer) feed(b []byte) {
	for i := 0; i < len(b); {
		i += l.next(b[i:])
	}
}

// next takes at least one byte.
func (l *lexer) next(b []byte) int {
	switch {
	case l.quote != 0:
		n := bytes.IndexByte(b, l.quote)
		if n < 0 {
			return len(b)
		}
		l.quote = 0
		return n + 1
	case l.dollar != "":
		n := bytes.Index(b, []byte(l.dollar))
		if n < 0 {
			return len(b)
		}
		n += len(l.dollar)
		l.dollar = ""
		return n
	case bytes.HasPrefix(b, []byte("/*")):
		l.comment++
		return 2
	case l.comment > 0:
		if bytes.HasPrefix(b, []byte("*/")) {
			l.comment--
			return 2
		}
		return 1
	case bytes.HasPrefix(b, []byte("--")):
		return len(b)
	}
	return l.plain(b)
}

// plain takes what is no string, quoted name or comment.
func (l *lexer) plain(b []byte) int {
	switch c := b[0]; c {
	case '\'', '"':
		l.quote, l.pending = c, true
	case '$':
		l.pending = true
		if end := bytes.IndexByte(b[1:], '$'); end >= 0 && end <= maxIdentifier && !bytes.ContainsAny(b[1:1+end], " \t\n'\"();,") {
			l.dollar = string(b[:end+2])
			return end + 2
		}
	case ';':
		l.pending = false
	case ' ', '\t', '\r', '\n':
	default:
		l.pending = true
	}
	return 1
}
