package postgres

import (
	"context"
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"mayfly.dev/mayfly"
)

// Login is a role with which one run uses the database.
type Login struct {
	Name     string
	Password string
	Until    time.Time // no login begins later; zero: no limit
	Owner    string    // the baseline's role, as which sessions act
}

// Grant makes the login, or gives one that is there this password and time.
// Its sessions act as the owner, so that what a run makes belongs to that.
func (r Running) Grant(ctx context.Context, l Login) error {
	if err := checkName("role", l.Name); err != nil {
		return err
	}
	if strings.ContainsRune(l.Password, 0) || l.Password == "" {
		return mayfly.Errorf(mayfly.Invalid, "the password of the role %q is empty or has a NUL", l.Name)
	}
	err := r.withAdmin(ctx, func(conn *pgconn.PgConn) error {
		there, err := l.exists(ctx, conn)
		if err != nil {
			return err
		}
		return execute(ctx, conn, l.statements(there))
	})
	if err != nil {
		return fmt.Errorf("grant access to the database: %w", err)
	}
	return nil
}

// statements share a transaction. They hold the password: Connect has switched
// the log of statements off, and the first keeps them out of
// pg_stat_statements.
func (l Login) statements(exists bool) string {
	name, owner := identifier(l.Name), identifier(l.Owner)
	until := "infinity"
	if !l.Until.IsZero() {
		until = l.Until.UTC().Format("2006-01-02 15:04:05.999999-07")
	}
	verb := "CREATE ROLE "
	if exists {
		verb = "ALTER ROLE "
	}
	return "SET LOCAL pg_stat_statements.track_utility = off;" +
		"SET LOCAL password_encryption = 'scram-sha-256';" +
		verb + name + " NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS INHERIT LOGIN PASSWORD " + literal(l.stored()) +
		" VALID UNTIL " + literal(until) + ";" +
		"GRANT " + owner + " TO " + name + ";" +
		"ALTER ROLE " + name + " SET role = " + literal(l.Owner)
}

// rehearse does what Grant does, without effect, so that the connection has read
// what Grant reads.
func rehearse(ctx context.Context, conn *pgconn.PgConn, owner string) error {
	l := Login{Name: "rehearsal", Password: strings.Repeat("x", 32), Owner: owner}
	if _, err := l.exists(ctx, conn); err != nil {
		return err
	}
	return execute(ctx, conn, "BEGIN;"+l.statements(false)+";ROLLBACK")
}

func (l Login) exists(ctx context.Context, conn *pgconn.PgConn) (bool, error) {
	there, err := column(ctx, conn, "SELECT 1 FROM pg_roles WHERE rolname = $1", l.Name)
	return len(there) > 0, err
}

// stored is what Postgres gets of the password. One that nobody can guess it
// gets in the form that costs neither side time at a login.
func (l Login) stored() string {
	const enough = 32
	odd := strings.ContainsFunc(l.Password, func(r rune) bool { return r < '!' || r > '~' })
	if odd || len(l.Password) < enough {
		return l.Password
	}
	return verifier(l.Password)
}

// Logins names the logins that begin with prefix.
func (r Running) Logins(ctx context.Context, prefix string) (names []string, err error) {
	err = r.withAdmin(ctx, func(conn *pgconn.PgConn) error {
		names, err = column(ctx, conn, "SELECT rolname FROM pg_roles WHERE starts_with(rolname::text, $1) ORDER BY 1", prefix)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list who may use the database: %w", err)
	}
	return names, nil
}

// revokeTimeout is how long sessions may take to end.
const revokeTimeout = 10 * time.Second

// lockTimeout is how long Revoke waits for a lock until it ends the sessions of
// the login once more: one that was being let in may hold it.
const lockTimeout = time.Second

// limited begins statements that are to wait no longer for a lock.
var limited = "SET LOCAL lock_timeout = " + literal(lockTimeout.String()) + ";"

// lockNotAvailable is the SQLSTATE of a lock that was waited for too long.
const lockNotAvailable = "55P03"

// dependentObjects is the SQLSTATE of a role that still owns something: a
// session that was being let in has made it.
const dependentObjects = "2BP01"

// Revoke ends the login: no session of it is left, what it owned is the
// owner's, and the role is gone. Revoking a missing one is not an error.
func (r Running) Revoke(ctx context.Context, name, owner string) error {
	ctx, cancel := context.WithTimeout(ctx, revokeTimeout)
	defer cancel()
	err := r.withAdmin(ctx, func(conn *pgconn.PgConn) error {
		ids, err := column(ctx, conn, "SELECT oid FROM pg_roles WHERE rolname = $1", name)
		if err != nil || len(ids) == 0 {
			return err
		}
		for {
			err := r.revoke(ctx, conn, ids[0], name, owner)
			var refused *pgconn.PgError
			if !errors.As(err, &refused) || ctx.Err() != nil || refused.Code != lockNotAvailable && refused.Code != dependentObjects {
				return err
			}
		}
	})
	if err != nil {
		return fmt.Errorf("revoke access to the database: %w", err)
	}
	return nil
}

func (r Running) revoke(ctx context.Context, conn *pgconn.PgConn, id, name, owner string) error {
	// A session that changes its own password holds the role's row.
	err := execute(ctx, conn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = "+literal(id)+"::oid;"+
		limited+"ALTER ROLE "+identifier(name)+" NOLOGIN PASSWORD NULL")
	if err != nil {
		return err
	}
	if err := endSessions(ctx, conn, id, 1); err != nil {
		return err
	}
	if err := r.reassign(ctx, conn, id, name, owner); err != nil {
		return err
	}
	if err := execute(ctx, conn, limited+"DROP ROLE "+identifier(name)); err != nil {
		return err
	}
	// One that was being let in when logging in was forbidden.
	return endSessions(ctx, conn, id, quiet)
}

// quiet is how many times in a row no session must be seen at the end.
const quiet = 3

// endSessions ends the sessions of a role until none was seen so many times in
// a row.
func endSessions(ctx context.Context, conn *pgconn.PgConn, role string, times int) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for calm := 0; ; {
		ended, err := column(ctx, conn, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usesysid = $1::oid", role)
		if err != nil {
			return err
		}
		calm++
		if len(ended) > 0 {
			calm = 0
		}
		if calm == times {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return mayfly.Errorf(mayfly.Timeout, "sessions of the database do not end: %w", ctx.Err()).
				Hint("roll the environment back, which ends the whole database server")
		}
	}
}

// reassign gives what a role owns to another, in every database.
func (r Running) reassign(ctx context.Context, conn *pgconn.PgConn, id, name, owner string) error {
	databases, err := column(ctx, conn, `SELECT datname FROM pg_database WHERE datname <> current_database() AND oid IN
		(SELECT dbid FROM pg_shdepend WHERE refclassid = 'pg_authid'::regclass AND refobjid = $1::oid)`, id)
	if err != nil {
		return err
	}
	give := limited + "REASSIGN OWNED BY " + identifier(name) + " TO " + identifier(owner) + "; DROP OWNED BY " + identifier(name)
	for _, database := range databases {
		// Whoever owns a database may have closed it.
		if err := execute(ctx, conn, "ALTER DATABASE "+identifier(database)+" ALLOW_CONNECTIONS true"); err != nil {
			return err
		}
		err := r.withConn(ctx, database, func(c *pgconn.PgConn) error { return execute(ctx, c, give) })
		if err != nil {
			return err
		}
	}
	return execute(ctx, conn, give)
}

// verifier is what Postgres stores of a secret: SCRAM-SHA-256 of RFC 5802 and
// RFC 7677. A secret that nobody can guess needs no iterations, and one
// verifier for each secret makes baselines alike.
func verifier(secret string) string {
	const iterations = 1
	salt := hmac256([]byte(secret), "mayfly postgres salt")[:16]
	salted, err := pbkdf2.Key(sha256.New, secret, salt, iterations, sha256.Size)
	if err != nil {
		panic(err) // the parameters are constants
	}
	stored := sha256.Sum256(hmac256(salted, "Client Key"))
	text := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, text(salt), text(stored[:]), text(hmac256(salted, "Server Key")))
}

func hmac256(key []byte, message string) []byte {
	m := hmac.New(sha256.New, key)
	m.Write([]byte(message))
	return m.Sum(nil)
}
