package manifest

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"mayfly.dev/mayfly"
)

// Bounds of services.
const (
	maxServices       = 16
	maxServiceName    = 24
	maxServiceTimeout = 10 * time.Minute
	serviceTimeout    = 30 * time.Second
)

// What has a port in every environment already.
const (
	gatewayPort  = 2929
	postgresPort = 5432
)

// services decodes the services of a manifest.
func (d *decoder) services(m *Manifest) func(string, *node) {
	return func(name string, n *node) {
		if n.kind != mappingNode {
			d.wrongType(n, name, "a mapping of names to services")
			return
		}
		if len(n.fields) > maxServices {
			d.fail(&n.fields[maxServices].key, "start what belongs together from one command",
				"%d services, and an environment has at most %d", len(n.fields), maxServices)
		}
		for _, f := range n.fields {
			d.check(&f.key, name, checkServiceName(f.key.text))
			s := mayfly.LockedService{Name: f.key.text, Timeout: serviceTimeout}
			d.service(name+"."+f.key.text, f.value, &s)
			d.place(&f.key, m.Services, s)
			m.Services = append(m.Services, s)
		}
		slices.SortFunc(m.Services, func(a, b mayfly.LockedService) int { return cmp.Compare(a.Name, b.Name) })
	}
}

// checkServiceName takes what can be part of the names of directories and
// processes.
func checkServiceName(s string) error {
	if mayfly.CheckName(s) != nil || len(s) > maxServiceName || s[0] < 'a' {
		return mayfly.Errorf(mayfly.Invalid, "bad name %.100q of a service", s).
			Hint("use 1 to %d lower-case letters, digits and dashes, beginning with a letter", maxServiceName)
	}
	return nil
}

// place refuses a service whose port another one has.
func (d *decoder) place(at *node, others []mayfly.LockedService, s mayfly.LockedService) {
	for _, o := range others {
		switch {
		case s.Postgres != nil && o.Postgres != nil:
			d.fail(at, "make several databases or schemas in one of them", "%s and %s are both Postgres, and an environment has one", o.Name, s.Name)
		case s.Port != 0 && s.Port == o.Port:
			d.fail(at, "give each a port of its own", "%s and %s have the same port %d", o.Name, s.Name, s.Port)
		}
	}
}

// service decodes one service.
func (d *decoder) service(name string, n *node, s *mayfly.LockedService) {
	var version string
	p := mayfly.LockedPostgres{Database: s.Name}
	port := int64(0)
	fields := map[string]func(string, *node){
		"command": d.texts(&s.Command, checkCommand),
		"init":    d.texts(&s.Init, checkCommand),
		"port":    d.port(&port),
		"ready":   d.texts(&s.Ready, checkCommand),
		"env":     d.textMap(&s.Env, checkServiceEnv),
		"timeout": d.duration(&s.Timeout, time.Second, maxServiceTimeout),

		"postgres":   d.version(&version),
		"database":   d.text(&p.Database, checkDatabase),
		"baseline":   d.baseline(&p),
		"extensions": d.texts(&p.Extensions, nil),
		"mask":       d.text(&p.Mask, checkFile),
		"settings":   d.textMap(&p.Settings, nil),
		"redact":     d.texts(&p.Redact, checkRedact),
		"spare":      d.boolean(&p.Spare),
	}
	d.fieldsOf(n, name, fields)
	if d.err != nil {
		return
	}
	if s.Port = int(port); version != "" {
		p.Version, s.Postgres, s.Port = version, &p, postgresPort
	}
	d.together(name, n, s)
}

// together checks what the fields of a service are together.
func (d *decoder) together(name string, n *node, s *mayfly.LockedService) {
	has := func(fields ...string) *node {
		for i := range n.fields {
			if slices.Contains(fields, n.fields[i].key.text) {
				return &n.fields[i].key
			}
		}
		return nil
	}
	wrong := has("database", "baseline", "extensions", "mask", "settings", "redact", "spare")
	what := "which only a Postgres has"
	if s.Postgres != nil {
		wrong, what = has("command", "init", "port", "ready", "env"), "which a Postgres does not have"
	}
	switch {
	case wrong != nil:
		d.fail(wrong, "remove the field", "%s has the field %s, %s", name, wrong.text, what)
	case s.Postgres != nil:
	case len(s.Command) == 0:
		d.fail(n, "write command: [PROGRAM, ARGUMENT, …], or postgres: \"15\"", "%s has no command", name)
	case s.Port == 0 && len(s.Ready) == 0:
		d.fail(n, "name the port that it listens at on 127.0.0.1, or a command that ends with 0 when it is ready",
			"%s has neither port nor ready, so that nobody can tell when it is ready", name)
	}
}

// port decodes a port of the environment that mayfly does not have itself.
func (d *decoder) port(into *int64) func(string, *node) {
	return func(name string, n *node) {
		d.whole(into, 1, 65535)(name, n)
		if d.err == nil && *into == gatewayPort {
			d.fail(n, "choose another", "%s is %d, where environments reach models", name, gatewayPort)
		}
	}
}

// version decodes a major version, which people write with and without quotes.
func (d *decoder) version(into *string) func(string, *node) {
	return func(name string, n *node) {
		major, err := strconv.Atoi(n.text)
		if n.kind != stringNode && n.kind != intNode || err != nil || major < 9 || major > 99 {
			d.fail(n, "write a major version of Postgres, such as \"15\"", "%s is %.40q", name, n.text)
		}
		*into = n.text
	}
}

func (d *decoder) baseline(p *mayfly.LockedPostgres) func(string, *node) {
	return func(name string, n *node) {
		if n.kind == stringNode && n.text == "none" {
			return
		}
		d.fieldsOf(n, name, map[string]func(string, *node){
			"sql":       d.texts(&p.SQL, checkPattern),
			"dump":      d.text(&p.Dump, checkFile),
			"directory": d.text(&p.Directory, checkDataDirectory),
			"server":    d.server(p),
		})
		if d.err == nil && len(n.fields) > 1 {
			d.fail(n, "name one source, and put what comes after it into mask", "%s has both %s and %s", name, n.fields[0].key.text, n.fields[1].key.text)
		}
	}
}

// server decodes a live server, or that of a lock.
func (d *decoder) server(p *mayfly.LockedPostgres) func(string, *node) {
	return func(name string, n *node) {
		p.Server = &mayfly.LockedServer{}
		d.fieldsOf(n, name, map[string]func(string, *node){
			"secret":   d.text(&p.Server.Secret, checkSecret),
			"physical": d.boolean(&p.Server.Physical),
		})
		if d.err == nil && p.Server.Secret == "" {
			d.fail(n, "name the connection, which is in databases.yaml on the server's machine: {secret: NAME}", "%s has no secret", name)
		}
	}
}

// checkSecret takes names, and no connections.
func checkSecret(s string) error {
	if mayfly.CheckName(s) != nil {
		return mayfly.Errorf(mayfly.Invalid, "bad name of a secret").
			Hint("use lower-case letters, digits and dashes; the connection itself belongs in databases.yaml on the server's machine")
	}
	return nil
}

// checkDataDirectory takes a path in the workspace, or an absolute one.
func checkDataDirectory(s string) error {
	if !path.IsAbs(s) {
		return checkFile(s)
	}
	if path.Clean(s) != s || s == "/" || strings.ContainsFunc(s, unicode.IsControl) {
		return mayfly.Errorf(mayfly.Invalid, "bad path %.200q of a data directory", s).Hint("write it without .., . and a slash at its end")
	}
	return nil
}

// Renew asks for new copies of what services begin with outside of the
// workspace.
func (m Manifest) Renew(now time.Time) {
	for _, s := range m.Services {
		if s.Postgres != nil && outside(*s.Postgres) {
			s.Postgres.AsOf = now.Unix()
		}
	}
}

// Keep goes on with the copies that a lock has asked for.
func (m Manifest) Keep(old []mayfly.LockedService) {
	for _, s := range m.Services {
		at := slices.IndexFunc(old, func(o mayfly.LockedService) bool { return o.Name == s.Name && o.Postgres != nil })
		if s.Postgres != nil && outside(*s.Postgres) && at >= 0 {
			s.Postgres.AsOf = old[at].Postgres.AsOf
		}
	}
}

// outside reports whether a Postgres begins with what is not in the workspace.
func outside(p mayfly.LockedPostgres) bool { return p.Server != nil || path.IsAbs(p.Directory) }

// checkFile takes the path of a file in the workspace.
func checkFile(s string) error {
	if strings.ContainsAny(s, "*?[") {
		return mayfly.Errorf(mayfly.Invalid, "%q is a pattern", s).Hint("name one file in the repository")
	}
	return checkPattern(s)
}

func checkDatabase(s string) error {
	if s == "" || len(s) > 63 || strings.ContainsRune(s, 0) || s == "template0" || s == "template1" {
		return mayfly.Errorf(mayfly.Invalid, "bad database name %.80q", s).Hint("use 1 to 63 bytes, and neither template0 nor template1")
	}
	return nil
}

// checkRedact takes patterns of columns.
func checkRedact(s string) error {
	parts := strings.Split(s, ".")
	bad := func(part string) bool {
		_, err := path.Match(part, "")
		return part == "" || err != nil
	}
	if len(parts) < 2 || len(parts) > 3 || slices.ContainsFunc(parts, bad) || len(s) > 200 {
		return mayfly.Errorf(mayfly.Invalid, "bad pattern %.200q of columns", s).
			Hint("write TABLE.COLUMN or SCHEMA.TABLE.COLUMN, with * and ?, such as \"customer.email\" or \"*.*_token\"")
	}
	return nil
}

// checkServiceEnv is CheckEnv without what only commands have.
func checkServiceEnv(name, value string) error {
	if !validEnvName(name) || strings.ContainsRune(value, 0) || len(name)+len(value)+2 > maxEnv {
		return mayfly.Errorf(mayfly.Invalid, "bad variable %.100q", name).
			Hint("use letters, digits and underscores for the name, and a value without NUL of at most %d bytes", maxEnv)
	}
	return nil
}

// IsPinned reports whether the lock needs the digest of the file at a
// slash-separated path relative to the workspace: a lockfile, or one that a
// service begins with.
func (m Manifest) IsPinned(name string) bool {
	return m.IsLockfile(name) || slices.ContainsFunc(m.Services, func(s mayfly.LockedService) bool { return s.Postgres != nil && names(*s.Postgres, name) })
}

// names reports whether a Postgres begins with a file.
func names(p mayfly.LockedPostgres, name string) bool {
	return p.Dump != "" && (name == p.Dump || strings.HasPrefix(name, p.Dump+"/")) || inDirectory(p, name) || p.Mask != "" && name == p.Mask ||
		slices.ContainsFunc(p.SQL, func(pattern string) bool { return isAt(pattern, name) })
}

func inDirectory(p mayfly.LockedPostgres, name string) bool {
	return p.Directory != "" && strings.HasPrefix(name, p.Directory+"/")
}

func isAt(pattern, name string) bool {
	return matchPath(strings.Split(pattern, "/"), strings.Split(name, "/"))
}

// lockServices puts the files that services name in place of patterns. found
// has the digest of every file that IsPinned took.
func lockServices(services []mayfly.LockedService, found map[string]string) ([]mayfly.LockedService, error) {
	var locked []mayfly.LockedService
	for _, s := range services {
		if s.Postgres != nil {
			p, err := lockPostgres(s.Name, *s.Postgres, found)
			if err != nil {
				return nil, err
			}
			s.Postgres = &p
		}
		locked = append(locked, s)
	}
	return locked, nil
}

func lockPostgres(service string, p mayfly.LockedPostgres, found map[string]string) (mayfly.LockedPostgres, error) {
	files := slices.Sorted(maps.Keys(found))
	missing := func(path string) error {
		return mayfly.Errorf(mayfly.Invalid, "the service %s names %s, and the workspace has no such file", service, path).
			Hint("correct the path, which begins at the repository's root; files that git ignores do not come along")
	}
	patterns := p.SQL
	p.SQL, p.Files = nil, nil
	for _, pattern := range patterns {
		before := len(p.SQL)
		for _, name := range files {
			if isAt(pattern, name) && !slices.Contains(p.SQL, name) {
				p.SQL = append(p.SQL, name)
			}
		}
		if len(p.SQL) == before {
			return p, missing(pattern)
		}
	}
	all := sha256.New()
	for _, name := range files {
		if inDirectory(p, name) {
			fmt.Fprintf(all, "%q %s\n", name, found[name])
			p.Files = map[string]string{p.Directory: "sha256:" + hex.EncodeToString(all.Sum(nil))}
		}
	}
	for _, name := range files {
		if slices.Contains(p.SQL, name) || names(p, name) && !inDirectory(p, name) {
			if name != printable(name) {
				return p, mayfly.Errorf(mayfly.Invalid, "bad file name %q", name).Hint("name files of services in plain UTF-8")
			}
			if p.Files == nil {
				p.Files = map[string]string{}
			}
			p.Files[name] = found[name]
		}
	}
	for _, name := range []string{p.Dump, p.Mask} {
		if name != "" && !slices.ContainsFunc(files, func(f string) bool { return f == name || path.Dir(f) == name }) {
			return p, missing(name)
		}
	}
	if p.Directory != "" && !outside(p) && p.Files[p.Directory] == "" {
		return p, missing(p.Directory + "/PG_VERSION")
	}
	return p, nil
}

// lockedServices decodes the services of a lock.
func (d *decoder) lockedServices(l *mayfly.Lock) func(string, *node) {
	return func(name string, n *node) {
		if n.kind != sequenceNode || len(n.items) > maxServices {
			d.wrongType(n, name, "a list of at most "+strconv.Itoa(maxServices)+" services")
			return
		}
		for i, item := range n.items {
			var s mayfly.LockedService
			d.lockedService(name+"["+strconv.Itoa(i)+"]", item, &s)
			if d.err == nil && i > 0 && s.Name <= l.Services[i-1].Name {
				d.fail(item, "write the lock anew with: mayfly lock", "the services are not in order")
			}
			d.place(item, l.Services, s)
			l.Services = append(l.Services, s)
		}
	}
}

func (d *decoder) lockedService(name string, n *node, s *mayfly.LockedService) {
	var port int64
	d.fieldsOf(n, name, map[string]func(string, *node){
		"name":    d.text(&s.Name, checkServiceName),
		"command": d.texts(&s.Command, checkCommand),
		"init":    d.texts(&s.Init, checkCommand),
		"port":    d.port(&port),
		"ready":   d.texts(&s.Ready, checkCommand),
		"env":     d.textMap(&s.Env, checkServiceEnv),
		"timeout": d.duration(&s.Timeout, time.Second, maxServiceTimeout),
		"postgres": func(name string, n *node) {
			s.Postgres = &mayfly.LockedPostgres{}
			d.lockedPostgres(name, n, s.Postgres)
		},
	})
	s.Port = int(port)
	if d.err == nil && (s.Name == "" || s.Timeout == 0 || (s.Postgres == nil) == (len(s.Command) == 0)) {
		d.fail(n, "write the lock anew with: mayfly lock", "%s is incomplete", name)
	}
}

func (d *decoder) lockedPostgres(name string, n *node, p *mayfly.LockedPostgres) {
	d.fieldsOf(n, name, map[string]func(string, *node){
		"version":    d.version(&p.Version),
		"database":   d.text(&p.Database, checkDatabase),
		"sql":        d.texts(&p.SQL, checkFile),
		"dump":       d.text(&p.Dump, checkFile),
		"directory":  d.text(&p.Directory, checkDataDirectory),
		"server":     d.server(p),
		"as_of":      d.whole(&p.AsOf, 0, math.MaxInt64),
		"mask":       d.text(&p.Mask, checkFile),
		"files":      d.textMap(&p.Files, func(_, digest string) error { return checkDigest(digest) }),
		"extensions": d.texts(&p.Extensions, nil),
		"settings":   d.textMap(&p.Settings, nil),
		"redact":     d.texts(&p.Redact, checkRedact),
		"spare":      d.boolean(&p.Spare),
	})
	if d.err == nil && (p.Version == "" || p.Database == "") {
		d.fail(n, "write the lock anew with: mayfly lock", "%s is incomplete", name)
	}
}
