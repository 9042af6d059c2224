// Package postgres runs one Postgres instance on a data directory that lies in
// an environment's volume, and prepares the data directories that environments
// begin with.
//
// A prepared directory is a baseline: a cleanly stopped cluster with one
// database of interest, whose objects all belong to one role that cannot log
// in and is no superuser. Instances are started on copies of it. The only
// superuser is Admin; it logs in over the unix socket with a secret that the
// caller keeps. Those who use the database get a role of their own each, with
// Running.Grant, which acts as the owner until Running.Revoke takes it away.
package postgres

import (
	"strings"

	"mayfly.dev/mayfly"
)

// Admin is the only superuser of every instance.
const Admin = "mayfly"

// Port is what sockets are named after, and the TCP port on loopback.
const Port = 5432

// Dir is one directory under the names that it has for this process and for
// the instance.
type Dir struct {
	Host   string
	Inside string // empty: as Host
}

func (d Dir) inside() string {
	if d.Inside == "" {
		return d.Host
	}
	return d.Inside
}

// maxIdentifier is how many bytes of a name Postgres keeps.
const maxIdentifier = 63

// checkName refuses what cannot name a database or a role.
func checkName(what, name string) error {
	if name == "" || len(name) > maxIdentifier || strings.ContainsRune(name, 0) {
		return mayfly.Errorf(mayfly.Invalid, "bad name %.80q of a %s", name, what).
			Hint("use 1 to %d bytes", maxIdentifier)
	}
	if what == "role" && (name == Admin || strings.HasPrefix(name, "pg_") || name == "public" || name == "none") {
		return mayfly.Errorf(mayfly.Invalid, "the role name %q is reserved", name).Hint("use another name")
	}
	if what == "database" && (name == "template0" || name == "template1") {
		return mayfly.Errorf(mayfly.Invalid, "the database %q is Postgres's own", name).Hint("use another name")
	}
	return nil
}

// identifier quotes a name for SQL.
func identifier(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

// literal quotes a string for SQL, whatever standard_conforming_strings says.
func literal(s string) string {
	quoted := "'" + strings.ReplaceAll(s, "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + strings.ReplaceAll(quoted, `\`, `\\`)
	}
	return quoted
}

// maintenance is the database in which an instance is administered: nobody but
// Admin can make anything in it.
func maintenance(database string) string {
	if database == "postgres" {
		return "template1"
	}
	return "postgres"
}
