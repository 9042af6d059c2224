package postgres

import (
	"context"
	_ "embed" // the statements
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

var (
	//go:embed sql/owners.sql
	ownersSQL string
	//go:embed sql/roles.sql
	rolesSQL string
	//go:embed sql/subscriptions.sql
	subscriptionsSQL string
	//go:embed sql/switchoff.sql
	switchOffSQL string
)

// tame makes a database that was loaded harmless: nothing in it acts by
// itself, reaches out or belongs to a superuser. See the statements.
func (p *preparation) tame(ctx context.Context) error {
	steps := []struct {
		database string
		fn       func(context.Context, *pgconn.PgConn) error
	}{
		{p.Database, p.dropSubscriptions},
		{p.Database, p.switchOff},
		{maintenance(p.Database), p.dropOtherDatabases},
		{p.Database, p.handOver},
		{maintenance(p.Database), p.limitRoles},
	}
	for _, step := range steps {
		err := p.told(ctx, step.database, func(conn *pgconn.PgConn) error { return step.fn(ctx, conn) })
		if err != nil {
			return fmt.Errorf("make baseline harmless: %w", err)
		}
	}
	return nil
}

// told calls fn with a connection whose notices go to the log.
func (p *preparation) told(ctx context.Context, database string, fn func(*pgconn.PgConn) error) error {
	config, err := p.running.config(Admin, "", database)
	if err != nil {
		return err
	}
	config.RuntimeParams = map[string]string{"search_path": "pg_catalog", "session_replication_role": "replica",
		"client_min_messages": "notice", "role": "none", "statement_timeout": "0", "lock_timeout": "0", "default_transaction_read_only": "off"}
	config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if message, ok := strings.CutPrefix(n.Message, "mayfly: "); ok {
			p.note("%s", message)
		}
	}
	conn, err := p.running.connect(ctx, config)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return fn(conn)
}

func (p *preparation) dropSubscriptions(ctx context.Context, conn *pgconn.PgConn) error {
	statements, err := column(ctx, conn, subscriptionsSQL)
	for _, s := range statements {
		if err == nil {
			err = execute(ctx, conn, s)
		}
		if name, ok := strings.CutPrefix(s, "DROP SUBSCRIPTION "); ok {
			p.note("subscription %s is not in the baseline", name)
		}
	}
	return err
}

func (p *preparation) switchOff(ctx context.Context, conn *pgconn.PgConn) error {
	return execute(ctx, conn, switchOffSQL)
}

// dropOtherDatabases drops what came along with a whole cluster: it would be
// in every copy, and no masking has seen it.
func (p *preparation) dropOtherDatabases(ctx context.Context, conn *pgconn.PgConn) error {
	names, err := column(ctx, conn, "SELECT datname FROM pg_database WHERE datname NOT IN ('template0', 'template1', 'postgres', $1) ORDER BY 1", p.Database)
	if err != nil {
		return err
	}
	for _, name := range names {
		err := execute(ctx, conn, "ALTER DATABASE "+identifier(name)+" ALLOW_CONNECTIONS true")
		if err == nil {
			err = execute(ctx, conn, "ALTER DATABASE "+identifier(name)+" IS_TEMPLATE false")
		}
		if err == nil {
			err = p.told(ctx, name, func(c *pgconn.PgConn) error { return p.dropSubscriptions(ctx, c) })
		}
		if err == nil {
			err = execute(ctx, conn, "DROP DATABASE "+identifier(name))
		}
		if err != nil {
			return err
		}
		p.note("database %q is not in the baseline", name)
	}
	return p.emptyPostgres(ctx, conn)
}

// emptyPostgres makes the database postgres anew where it is not the one of
// interest.
func (p *preparation) emptyPostgres(ctx context.Context, conn *pgconn.PgConn) error {
	if p.Database == "postgres" || !p.Source.physical() {
		return nil
	}
	return p.told(ctx, "template1", func(c *pgconn.PgConn) error {
		if err := conn.Close(ctx); err != nil {
			return err
		}
		if err := p.told(ctx, "postgres", func(c *pgconn.PgConn) error { return p.dropSubscriptions(ctx, c) }); err != nil {
			return err
		}
		if err := execute(ctx, c, "DROP DATABASE postgres"); err != nil {
			return err
		}
		return execute(ctx, c, "CREATE DATABASE postgres TEMPLATE template0")
	})
}

// handOverAtOnce is how many objects change hands in one transaction: each is
// locked until its end.
const handOverAtOnce = 200

// handOver makes the role the owner of everything.
func (p *preparation) handOver(ctx context.Context, conn *pgconn.PgConn) error {
	statements, err := column(ctx, conn, ownersSQL, p.Role, Admin)
	for len(statements) > 0 && err == nil {
		n := min(handOverAtOnce, len(statements))
		err = execute(ctx, conn, strings.Join(statements[:n], ";\n"))
		statements = statements[n:]
	}
	return err
}

// limitRoles takes from every role what it does not need, and keeps all but
// the administrator out of the other databases.
func (p *preparation) limitRoles(ctx context.Context, conn *pgconn.PgConn) error {
	role, database := identifier(p.Role), identifier(p.Database)
	statements := []string{
		"SET mayfly.owner = " + literal(p.Role), rolesSQL,
		"ALTER DATABASE " + database + " OWNER TO " + role,
		"ALTER DATABASE " + database + " IS_TEMPLATE false",
		"ALTER ROLE " + Admin + " LOGIN VALID UNTIL 'infinity' PASSWORD " + literal(verifier(p.Secret)),
	}
	for _, other := range []string{"postgres", "template1"} {
		if other != p.Database {
			statements = append(statements, "REVOKE ALL ON DATABASE "+other+" FROM PUBLIC")
		}
	}
	if p.CreateDB {
		statements = append(statements, "ALTER ROLE "+role+" CREATEDB")
		if p.Database != "postgres" {
			statements = append(statements, "GRANT CONNECT ON DATABASE postgres TO "+role)
		}
	}
	for _, s := range statements {
		if err := execute(ctx, conn, s); err != nil {
			return err
		}
	}
	return nil
}

// compact leaves one version of every row, all of them marked as seen by
// everybody, so that reading a copy does not write to it.
func (p *preparation) compact(ctx context.Context) error {
	type step struct{ database, sql string }
	steps := []step{{p.Database, "VACUUM (FREEZE, ANALYZE)"}}
	if len(p.Masking) > 0 { // the statistics hold values, too
		steps = []step{{p.Database, "ANALYZE"}, {p.Database, "VACUUM (FULL)"}, {p.Database, "VACUUM (FREEZE)"}}
	}
	other := maintenance(p.Database)
	for _, step := range append(steps, step{other, "VACUUM (FREEZE, ANALYZE)"}, step{other, "CHECKPOINT"}, step{other, "SELECT pg_switch_wal()"}) {
		err := p.told(ctx, step.database, func(conn *pgconn.PgConn) error { return execute(ctx, conn, step.sql) })
		if err != nil {
			return fmt.Errorf("compact baseline: %w", err)
		}
	}
	return nil
}
