package rowdiff

import (
	"context"
	"fmt"
	"os/exec"
	"strconv"
	"strings"
)

// compare is Compare with the pg_dump of the tests' own Postgres.
func compare(ctx context.Context, from, to Conn, o Options) (*Diff, error) {
	if o.Dump == nil {
		o.Dump = pgDump
	}
	return Compare(ctx, from, to, o)
}

func pgDump(ctx context.Context, c Conn, args ...string) ([]byte, error) {
	conf := c.Config()
	cmd := exec.CommandContext(ctx, bin+"pg_dump", append(args, "--no-password")...)
	cmd.Env = []string{"PGHOST=" + conf.Host, "PGPORT=" + strconv.Itoa(int(conf.Port)), "PGUSER=" + conf.User,
		"PGPASSWORD=" + conf.Password, "PGDATABASE=" + conf.Database, "LC_ALL=C"}
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("pg_dump: %w: %s", err, stderr.String())
	}
	return out, nil
}
