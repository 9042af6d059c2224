package rowdiff

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// TestScriptsMakeEitherStateFromTheOther changes random databases in several
// sessions. MAYFLY_CASES is the number of cases, MAYFLY_SEED the first one.
func TestScriptsMakeEitherStateFromTheOther(t *testing.T) {
	in := sharedInstance(t)
	admin := in.connect(t, "postgres")
	admin.PgConn().Exec(t.Context(), "CREATE ROLE rowdiff_reader").ReadAll()
	cases, seed := number("MAYFLY_CASES", 10), number("MAYFLY_SEED", 1)
	began := time.Now()
	for i := range cases {
		t.Run(fmt.Sprint("seed ", seed+i), func(t *testing.T) { in.randomCase(t, uint64(seed+i)) })
		if t.Failed() {
			break
		}
	}
	t.Logf("%d cases in %v", cases, time.Since(began).Round(time.Second))
}

func number(variable string, standard int) int {
	if n, err := strconv.Atoi(os.Getenv(variable)); err == nil {
		return n
	}
	return standard
}

func (in *instance) randomCase(t *testing.T, seed uint64) {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 7))}
	from := in.database(t, "template1")
	c := in.connect(t, from)
	execSQL(t, c, "CREATE SCHEMA other;"+preamble)
	for range 1 + g.IntN(5) {
		try(c, g.create())
	}
	for range 20 {
		try(c, g.change())
	}
	for range g.IntN(5) {
		try(c, g.alter())
	}
	c.Close(t.Context())

	to := in.database(t, from)
	in.sessions(t, g, to)
	o := Options{}
	if g.IntN(3) > 0 {
		o = in.dirs()
	}
	if g.IntN(4) == 0 {
		o.MaxValue = 100
	}
	in.roundTrip(t, from, to, o)
}

// sessions runs statements in three connections at the same time, some in
// transactions that are rolled back.
func (in *instance) sessions(t *testing.T, g *generator, db string) {
	var wg sync.WaitGroup
	ddl := g.IntN(3) > 0
	for range 3 {
		c := in.connect(t, db)
		var work []string
		for range 5 + g.IntN(15) {
			sql := g.change()
			if ddl && g.IntN(6) == 0 {
				sql = g.alter()
			}
			work = append(work, sql)
		}
		atomic := g.IntN(2) == 0
		end := g.pick("COMMIT", "COMMIT", "ROLLBACK")
		wg.Go(func() {
			try(c, "SET lock_timeout = '200ms'; SET deadlock_timeout = '50ms'")
			for i, sql := range work {
				if atomic && i == len(work)/2 {
					try(c, "BEGIN")
				}
				if atomic && i >= len(work)/2 {
					try(c, "SAVEPOINT s")
				}
				if !try(c, sql) && atomic && i >= len(work)/2 {
					try(c, "ROLLBACK TO s")
				}
			}
			if atomic {
				try(c, end)
			}
			c.Close(context.Background())
		})
	}
	wg.Wait()
}

func try(c *pgx.Conn, sql string) bool {
	_, err := c.PgConn().Exec(context.Background(), sql).ReadAll()
	return err == nil
}
