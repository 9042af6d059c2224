//go:build linux

package postgres

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// sizeVariable says how large the database of the benchmarks is, in MB.
const sizeVariable = "MAYFLY_POSTGRES_BENCH_MB"

// large prepares a database of that size on btrfs and returns its subvolume.
func large(b *testing.B) (pool, live string) {
	b.Helper()
	megabytes := 64
	if s := os.Getenv(sizeVariable); s != "" {
		var err error
		megabytes, err = strconv.Atoi(s)
		must(b, err)
	}
	pool = btrfs(b, int64(8*megabytes+4096)<<20)
	live = filepath.Join(pool, "live")
	subvolume(b, live)
	o := options(b, nil)
	o.Dir = filepath.Join(live, "data")
	o.SQL = []string{file(b, "large.sql", fmt.Sprintf(`CREATE TABLE large AS
		SELECT n AS id, string_agg(md5(n::text || m), '') AS text FROM generate_series(1, %d) n, generate_series(1, 31) m GROUP BY n;
		ALTER TABLE large ADD PRIMARY KEY (id);`, megabytes*910))}
	prepare(b, o)
	return pool, live
}

// measure reports the median and the 95th percentile of n runs beside the
// mean.
func measure(b *testing.B, fn func(n int) time.Duration) {
	b.Helper()
	var took []time.Duration
	for b.Loop() {
		took = append(took, fn(len(took)))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*95/100].Microseconds())/1000, "p95-ms")
}

// started is an instance on a data directory; the caller ends it.
func started(b *testing.B, data string) Running {
	b.Helper()
	i := instance(b, data)
	i.CopyOnWrite = true
	r, err := Start(b.Context(), i)
	must(b, err)
	return r
}

const firstSelect = "SELECT length(text) FROM large WHERE id = 7"

// BenchmarkCloneToFirstSelect measures from the call that copies the data to
// the answer of the first query.
func BenchmarkCloneToFirstSelect(b *testing.B) {
	pool, live := large(b)
	clone := filepath.Join(pool, "clone")
	copies := map[string]struct {
		make   func(b *testing.B)
		remove func(b *testing.B)
	}{
		"snapshot": {func(b *testing.B) { must(b, snapshot(live, clone)) }, func(b *testing.B) { deleteSubvolume(b, clone) }},
		"cp -a": {func(b *testing.B) {
			must(b, exec.Command("cp", "-a", "--reflink=never", live, clone).Run())
		}, func(b *testing.B) { must(b, os.RemoveAll(clone)) }},
	}
	for _, name := range []string{"snapshot", "cp -a"} {
		b.Run(name, func(b *testing.B) {
			measure(b, func(int) time.Duration {
				began := time.Now()
				copies[name].make(b)
				r := started(b, filepath.Join(clone, "data"))
				query(b, r, firstSelect)
				took := time.Since(began)
				must(b, r.Kill(b.Context()))
				copies[name].remove(b)
				return took
			})
		})
	}
	b.Run("CREATE DATABASE TEMPLATE", func(b *testing.B) {
		must(b, snapshot(live, clone))
		r := started(b, filepath.Join(clone, "data"))
		measure(b, func(n int) time.Duration {
			began := time.Now()
			inPostgres(b, r, "CREATE DATABASE copy TEMPLATE shop")
			other := r
			other.Database = "copy"
			query(b, other, firstSelect)
			took := time.Since(began)
			inPostgres(b, r, "DROP DATABASE copy")
			return took
		})
		must(b, r.Kill(context.Background()))
		deleteSubvolume(b, clone)
	})
}

func inPostgres(b *testing.B, r Running, sql string) {
	b.Helper()
	must(b, r.withConn(b.Context(), "postgres", func(conn *pgconn.PgConn) error { return execute(b.Context(), conn, sql) }))
}

// BenchmarkRollback measures from the call to the first right answer through
// the published socket.
func BenchmarkRollback(b *testing.B) {
	pool, live := large(b)
	sockets := b.TempDir()
	published := filepath.Join(sockets, "published", socketName)
	must(b, os.Mkdir(filepath.Dir(published), 0o755))
	n := 0
	begin := func() Running { // an instance on a copy of its own
		n++
		dir, socket := filepath.Join(pool, "env"+itoa(n)), filepath.Join(sockets, itoa(n))
		must(b, snapshot(live, dir))
		must(b, os.Mkdir(socket, 0o755))
		i := instanceAt(b, filepath.Join(dir, "data"), socket)
		i.CopyOnWrite = true
		r, err := Start(b.Context(), i)
		must(b, err)
		return r
	}
	end := func(r Running) {
		must(b, r.Kill(context.Background()))
		deleteSubvolume(b, filepath.Dir(r.Data.Host))
	}
	answer := func(r Running) {
		r.Socket = Dir{Host: filepath.Dir(published)}
		if got := query(b, r, "SELECT count(*) FROM large WHERE id = 7"); got != "1" {
			b.Fatalf("rows = %s, want 1", got)
		}
	}
	for _, warm := range []bool{false, true} {
		b.Run(map[bool]string{false: "cold", true: "warm"}[warm], func(b *testing.B) {
			measure(b, func(int) time.Duration {
				old := begin()
				must(b, old.Swap(published))
				query(b, old, "DELETE FROM large WHERE id = 7 RETURNING id")
				var next Running
				if warm {
					next = begin()
				}
				began := time.Now()
				if !warm {
					must(b, old.Kill(b.Context()))
					next = begin()
				}
				must(b, next.Swap(published))
				answer(next)
				took := time.Since(began)
				end(next)
				end(old)
				return took
			})
		})
	}
}
