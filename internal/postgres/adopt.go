package postgres

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"

	"mayfly.dev/mayfly"
)

// helper is a superuser that exists for as long as it takes to rename the one
// that the source's cluster was made with.
const helper = "mayfly_prepare"

// adopt makes a foreign data directory fit to be started: as a server of its
// own, and with a superuser whom this package knows.
func (p *preparation) adopt(ctx context.Context) error {
	root, err := os.OpenRoot(p.data())
	if err != nil {
		return err
	}
	defer root.Close()
	if prepared, _ := fs.ReadDir(root.FS(), "pg_twophase"); len(prepared) > 0 {
		return preparedTransactions(len(prepared))
	}
	if slots, _ := fs.ReadDir(root.FS(), "pg_replslot"); len(slots) > 0 {
		p.note("the source has %d replication slots: the baseline has none", len(slots))
	}
	if err := empty(root, "pg_replslot"); err != nil {
		return err
	}
	if err := removeAll(root, "standby.signal", "recovery.signal", "postmaster.pid", "postmaster.opts"); err != nil {
		return err
	}
	var out tail
	create := strings.NewReader("CREATE ROLE " + helper + " SUPERUSER LOGIN\n")
	status, err := p.Workshop.Run(ctx, p.command("postgres", "--single", "-D", p.inside("data"), "template1"), create, &out)
	if err != nil {
		return err
	}
	if strings.Contains(out.String(), "maximum number of prepared transactions reached") {
		return preparedTransactions(1)
	}
	if status != "" || strings.Contains(out.String(), "ERROR:") {
		return mayfly.Errorf(mayfly.Invalid, "the data directory cannot be used: %s", lastLines(out.String(), 4)).
			Hint("start a server of the same version on it and stop that cleanly, then try again")
	}
	return nil
}

// rename gives the cluster's first superuser its name.
func (p *preparation) rename(ctx context.Context) error {
	if !p.Source.physical() {
		return nil
	}
	err := p.as(ctx, helper, func(conn *pgconn.PgConn) error {
		first, err := column(ctx, conn, "SELECT rolname FROM pg_roles WHERE oid = 10")
		if err != nil || len(first) == 0 || first[0] == Admin {
			return err
		}
		if taken, err := column(ctx, conn, "SELECT 1 FROM pg_roles WHERE rolname = $1", Admin); err != nil || len(taken) > 0 {
			return fmt.Errorf("the source has a role %s: %w", Admin, err)
		}
		p.note("the superuser %q is called %s, which nobody but this server can log in as", first[0], Admin)
		return execute(ctx, conn, "ALTER ROLE "+identifier(first[0])+" RENAME TO "+Admin+"; ALTER ROLE "+Admin+" LOGIN")
	})
	if err != nil {
		return err
	}
	return p.as(ctx, Admin, func(conn *pgconn.PgConn) error { return execute(ctx, conn, "DROP ROLE "+helper) })
}

// as calls fn with a connection of a superuser that needs no password.
func (p *preparation) as(ctx context.Context, user string, fn func(*pgconn.PgConn) error) error {
	config, err := p.running.config(user, "", "template1")
	if err != nil {
		return err
	}
	config.RuntimeParams["search_path"] = "pg_catalog"
	conn, err := p.running.connect(ctx, config)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return fn(conn)
}
