package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"mayfly.dev/mayfly"
)

// database is a template with a Postgres of some size.
type database struct {
	template string
	dir      string // of its repository
}

// firstSelect reads one row of the table that every database has.
const firstSelect = "SELECT length(text) FROM large WHERE id = 7"

const firstAnswer = "992"

// fillDatabase makes a table of about so many megabytes.
func fillDatabase(megabytes int) string {
	return fmt.Sprintf(`CREATE TABLE large AS SELECT n AS id, repeat(md5(n::text), 31) AS text
  FROM generate_series(1, %d) n;
ALTER TABLE large ADD PRIMARY KEY (id);
`, max(100, megabytes*910))
}

// databases measures the Postgres of environments, through the client, beside
// what one does without copy-on-write with an instance of the same settings.
func (b *bench) databases(ctx context.Context) (err error) {
	pg, err := installed()
	if err != nil {
		return err
	}
	empty, err := b.database(ctx, pg, "database-empty", 0)
	if err != nil {
		return err
	}
	large, err := b.database(ctx, pg, "database-large", b.sizes.database)
	if err != nil {
		return err
	}
	plain, err := b.plainPostgres(ctx, pg, empty)
	if err != nil {
		return err
	}
	defer plain.close()
	if err := b.databaseClones(ctx, empty, large, plain); err != nil {
		return err
	}
	if err := b.databaseRollback(ctx, large, plain); err != nil {
		return err
	}
	if err := b.databaseRows(ctx, large); err != nil {
		return err
	}
	if err := b.databaseBurst(ctx, large, plain); err != nil {
		return err
	}
	return b.databaseBusy(ctx, pg, empty, plain)
}

// database prepares a template.
func (b *bench) database(ctx context.Context, pg installation, name string, megabytes int) (d database, err error) {
	d.dir = filepath.Join(b.dir, name)
	if err := os.Mkdir(d.dir, 0o755); err != nil {
		return d, err
	}
	manifest := fmt.Sprintf(`services:
  db:
    postgres: "%s"
    baseline: {sql: [fill.sql]}
    timeout: 10m
    spare: true
`, pg.version)
	for name, content := range map[string]string{"mayfly.yaml": manifest, "fill.sql": fillDatabase(megabytes)} {
		if err := os.WriteFile(filepath.Join(d.dir, name), []byte(content), 0o644); err != nil {
			return d, err
		}
	}
	if _, err := b.repository(ctx, name, 100); err != nil {
		return d, err
	}
	e, err := b.environment(ctx, d.dir)
	if err != nil {
		return d, err
	}
	d.template = e.Template
	_, err = b.DeleteEnvironment(ctx, e.ID)
	return d, err
}

// ask queries the database of an environment and returns the time from start
// to the answer.
func (b *bench) ask(ctx context.Context, start time.Time, env, sql, want string) (float64, error) {
	out, err := b.exec(ctx, env, "/workspace/work", "query", sql)
	if err != nil {
		return 0, err
	}
	return answered(start, out, want)
}

// answered reads what the program of package work says of a query.
func answered(start time.Time, out, want string) (float64, error) {
	ns, got, _ := strings.Cut(strings.TrimSpace(out), " ")
	if got != want {
		return 0, fmt.Errorf("the database answered %q, want %q", got, want)
	}
	return stamped(start, ns)
}

// clone makes an environment and waits for the answer of its database.
func (b *bench) clone(ctx context.Context, d database) (e mayfly.Environment, ms float64, err error) {
	start := time.Now()
	e, err = b.CreateEnvironment(ctx, mayfly.CreateEnvironment{Template: d.template})
	if err != nil {
		return e, 0, err
	}
	ms, err = b.ask(ctx, start, e.ID, firstSelect, firstAnswer)
	return e, ms, err
}

// databaseClones measures a clone from the request to the answer of the first
// query, a large one and others beside it, and what one does otherwise.
func (b *bench) databaseClones(ctx context.Context, empty, large database, plain *plainPostgres) error {
	var huge database
	if b.huge > 0 && plain.roomFor(3*b.huge) {
		var err error
		if huge, err = b.database(ctx, plain.installation, "database-huge", b.huge); err != nil {
			return err
		}
	}
	took := map[string]*samples{}
	for range max(b.rounds/4, b.few) {
		for _, d := range []database{empty, large, huge} {
			if d.template == "" {
				continue
			}
			if took[d.template] == nil {
				took[d.template] = &samples{}
			}
			e, ms, err := b.clone(ctx, d)
			if err != nil {
				return err
			}
			*took[d.template] = append(*took[d.template], ms)
			if _, err := b.DeleteEnvironment(ctx, e.ID); err != nil {
				return err
			}
		}
	}
	if err := plain.fill(ctx, fillDatabase(b.sizes.database)); err != nil {
		return err
	}
	var copied, restored samples
	for range min(2, b.few) {
		if err := plain.copy(ctx, &copied); err != nil {
			return err
		}
		if err := plain.createFromTemplate(ctx); err != nil {
			return err
		}
	}
	if err := plain.dumpAndRestore(ctx, &restored); err != nil {
		return err
	}
	name, s := megabytes(b.sizes.database), *took[large.template]
	r := s.result("clone "+name+" to SELECT, p50", "ms")
	b.report(r.against("cp -a", copied.median()).atMost(100))
	b.report(r.against("CREATE DATABASE TEMPLATE", plain.templates.median()))
	b.report(r.against("pg_dump, pg_restore", restored.median()))
	r = s.result("clone "+name+" to SELECT, p95", "ms")
	r.Value = round(s.quantile(0.95))
	b.report(r.atMost(250))
	little := took[empty.template].median()
	b.report(took[empty.template].result("clone 8 MB to SELECT", "ms"))
	if huge.template != "" {
		b.report(took[huge.template].result("clone "+megabytes(b.huge)+" to SELECT", "ms").against("of 8 MB", little).ratioAtMost(1.3))
	}
	return nil
}

func megabytes(n int) string {
	if n >= 1024 {
		return strconv.Itoa(n/1024) + " GB"
	}
	return strconv.Itoa(n) + " MB"
}

// databaseRollback measures from the request to the first right answer after
// a row and a file were lost: to a new command, and, where the database alone
// goes back, to a client that goes on, without and with a spare.
func (b *bench) databaseRollback(ctx context.Context, large database, plain *plainPostgres) error {
	e, _, err := b.clone(ctx, large)
	if err != nil {
		return err
	}
	snapshot, err := b.CreateSnapshot(ctx, e.ID, "bench")
	if err != nil {
		return err
	}
	size, copied := megabytes(b.sizes.database), plain.templates.median()
	report := func(name string, took samples, most float64) {
		b.report(took.result(name, "ms").against("CREATE DATABASE TEMPLATE", copied).atMost(most))
	}
	var took [5]samples
	for range b.few * 2 {
		for i, only := range []mayfly.Side{"", mayfly.DatabaseSide} {
			if err := b.rollback(ctx, e.ID, snapshot.ID, only, &took[i]); err != nil {
				return err
			}
		}
		if err := b.rollbackUnder(ctx, e.ID, snapshot.ID, &took[2]); err != nil {
			return err
		}
	}
	report("rollback, files and "+size, took[0], 250)
	report("rollback of "+size+" alone, new client", took[1], 100)
	report("rollback of "+size+" alone", took[2], 100)
	// Spares are of the state before the last run.
	if _, err := b.started(ctx, mayfly.StartRun{Environment: e.ID, Command: []string{"true"}}); err != nil {
		return err
	}
	for range b.few * 2 {
		for i, do := range []func(to *samples) error{
			func(to *samples) error { return b.rollback(ctx, e.ID, "", mayfly.DatabaseSide, to) },
			func(to *samples) error { return b.rollbackUnder(ctx, e.ID, "", to) },
		} {
			if err := b.awaitSpare(ctx, e.ID); err != nil {
				return err
			}
			if err := do(&took[3+i]); err != nil {
				return err
			}
		}
	}
	report("rollback to a spare, new client", took[3], 25)
	report("rollback to a spare", took[4], 25)
	_, err = b.DeleteEnvironment(ctx, e.ID)
	return err
}

// drop loses the table of an environment; the run that did it is over then.
func (b *bench) drop(ctx context.Context, env string) error {
	r, err := b.StartRun(ctx, mayfly.StartRun{
		Environment: env, Kind: mayfly.ExecRun, Command: []string{"/workspace/work", "query", "DROP TABLE large"},
	})
	if err == nil {
		_, err = b.output(ctx, r)
	}
	if err == nil {
		_, err = b.WaitRun(ctx, r.ID)
	}
	return err
}

// rollback measures a rollback until a new command has the right answer.
func (b *bench) rollback(ctx context.Context, env, to string, only mayfly.Side, took *samples) error {
	if err := b.drop(ctx, env); err != nil {
		return err
	}
	start := time.Now()
	if _, err := b.Rollback(ctx, env, to, only); err != nil {
		return err
	}
	ms, err := b.ask(ctx, start, env, firstSelect, firstAnswer)
	*took = append(*took, ms)
	return err
}

// rollbackUnder measures a rollback of the database alone until a client that
// was connected has the right answer.
func (b *bench) rollbackUnder(ctx context.Context, env, to string, took *samples) error {
	client, err := b.StartRun(ctx, mayfly.StartRun{
		Environment: env, Kind: mayfly.ExecRun, Command: []string{"/workspace/work", "reconnect", firstSelect, firstAnswer},
	})
	if err != nil {
		return err
	}
	out, err := b.AttachRun(ctx, client.ID, true)
	if err != nil {
		return err
	}
	_, err = out.Recv() // it is connected
	if err = errors.Join(err, out.Close()); err != nil {
		return err
	}
	if err := b.drop(ctx, env); err != nil {
		return err
	}
	start := time.Now()
	if _, err := b.Rollback(ctx, env, to, mayfly.DatabaseSide); err != nil {
		return err
	}
	said, err := b.output(ctx, client)
	if err != nil {
		return err
	}
	ms, err := answered(start, strings.TrimPrefix(said, "connected\n"), firstAnswer)
	*took = append(*took, ms)
	return err
}

// awaitSpare returns when an environment has a spare database, and a moment
// later, so that what made it is over.
func (b *bench) awaitSpare(ctx context.Context, env string) error {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		e, err := b.Environment(ctx, env)
		if err != nil {
			return err
		}
		if e.Services[0].Spare > 0 {
			time.Sleep(100 * time.Millisecond)
			return nil
		}
	}
	return errors.New("there is no spare database")
}

// databaseRows measures how long the command line takes to name changed rows.
func (b *bench) databaseRows(ctx context.Context, large database) error {
	const changed = 1000
	var took samples
	for range min(3, b.few) {
		e, _, err := b.clone(ctx, large)
		if err != nil {
			return err
		}
		update := fmt.Sprintf("UPDATE large SET text = 'changed' WHERE id <= %d", changed)
		if _, err := b.exec(ctx, e.ID, "/workspace/work", "query", update); err != nil {
			return err
		}
		ms, err := whole(b.command(ctx, "diff", "--rows", "--json", e.ID))
		if err != nil {
			return err
		}
		took = append(took, ms)
		if _, err := b.DeleteEnvironment(ctx, e.ID); err != nil {
			return err
		}
	}
	b.report(took.result(fmt.Sprintf("diff of %d rows in %s", changed, megabytes(b.sizes.database)), "ms").atMost(1000))
	return nil
}

// databaseBurst measures clones that are asked for at once, and what they
// need when they are idle.
func (b *bench) databaseBurst(ctx context.Context, large database, plain *plainPostgres) error {
	_, one, err := b.clone(ctx, large)
	if err != nil {
		return err
	}
	info, err := b.Info(ctx)
	if err != nil {
		return err
	}
	before, n, err := memoryOfPostgres(info.PID)
	if err != nil {
		return err
	}
	all, err := together(b.clones, func() (float64, error) {
		_, ms, err := b.clone(ctx, large)
		return ms, err
	})
	if err != nil {
		return err
	}
	whole := all.result(fmt.Sprintf("%d clones at once, all", b.clones), "ms")
	whole.Value, whole.P99 = round(all.quantile(1)), 0
	b.report(whole.against("one", one).atMost(1000))
	time.Sleep(time.Second) // for what they do after their start
	after, m, err := memoryOfPostgres(info.PID)
	if err != nil {
		return err
	}
	if m <= n {
		return fmt.Errorf("%d clones have %d processes of Postgres", b.clones, m-n)
	}
	outside, _, err := memoryOfPostgres(plain.pid())
	if err != nil {
		return err
	}
	r := Result{Name: "idle instance, PSS", Unit: "KB", Value: round((after - before) / float64(b.clones) / 1024), OK: true}
	b.report(r.against("plain", outside/1024))
	environments, err := b.Environments(ctx, mayfly.EnvironmentFilter{})
	if err != nil {
		return err
	}
	for _, e := range environments {
		if _, err := b.DeleteEnvironment(ctx, e.ID); err != nil {
			return err
		}
	}
	return nil
}

// memoryOfPostgres adds up the memory of the processes of Postgres below a
// process, and counts them.
func memoryOfPostgres(root int) (bytes float64, n int, err error) {
	pids, err := descendants(root)
	if err != nil {
		return 0, 0, err
	}
	for _, pid := range append(pids, root) {
		name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if err != nil || strings.TrimSpace(string(name)) != "postgres" {
			continue
		}
		pss, err := memoryOf(pid, "Pss:")
		if err != nil {
			continue // it has ended
		}
		bytes, n = bytes+pss, n+1
	}
	return bytes, n, nil
}

// databaseBusy measures transactions inside and outside, turn by turn, and
// snapshots while they pass.
func (b *bench) databaseBusy(ctx context.Context, pg installation, empty database, plain *plainPostgres) error {
	e, _, err := b.clone(ctx, empty)
	if err != nil {
		return err
	}
	if _, err := b.exec(ctx, e.ID, pg.program("pgbench"), "-i", "-q", "-s", "10"); err != nil {
		return err
	}
	if err := plain.createBench(ctx); err != nil {
		return err
	}
	args := []string{"-c", "4", "-j", "2", "-T", strconv.Itoa(b.seconds)}
	var inside, outside samples
	for range 3 {
		out, err := b.exec(ctx, e.ID, append([]string{pg.program("pgbench")}, args...)...)
		if err != nil {
			return err
		}
		if err := transactions(&inside, out); err != nil {
			return err
		}
		if out, err = plain.run(ctx, "bench", "pgbench", args...); err != nil {
			return err
		}
		if err := transactions(&outside, out); err != nil {
			return err
		}
	}
	const snapshots = 20
	busy, err := b.StartRun(ctx, mayfly.StartRun{Environment: e.ID, Kind: mayfly.ExecRun,
		Command: []string{pg.program("pgbench"), "-c", "8", "-j", "2", "-T", strconv.Itoa(4 * b.seconds)}})
	if err != nil {
		return err
	}
	time.Sleep(500 * time.Millisecond)
	var took, pause samples
	for range snapshots {
		var s mayfly.Snapshot
		if err := timed(&took, func() (err error) {
			s, err = b.CreateSnapshot(ctx, e.ID, "busy")
			return err
		}); err != nil {
			return err
		}
		pause = append(pause, milliseconds(s.Pause))
		time.Sleep(100 * time.Millisecond)
	}
	if _, err := b.output(ctx, busy); err != nil {
		return err
	}
	b.report(took.result("snapshot under pgbench", "ms"))
	b.report(pause.result("snapshot under pgbench, pause", "ms").atMost(10))
	b.report(inside.result("pgbench inside", "tps").against("plain", outside.median()))
	_, err = b.DeleteEnvironment(ctx, e.ID)
	return err
}

// transactions adds what pgbench says of transactions in a second.
func transactions(s *samples, out string) error {
	for line := range strings.Lines(out) {
		if rest, ok := strings.CutPrefix(line, "tps = "); ok {
			number, _, _ := strings.Cut(rest, " ")
			v, err := strconv.ParseFloat(number, 64)
			*s = append(*s, v)
			return err
		}
	}
	return fmt.Errorf("pgbench says no tps: %s", out)
}
