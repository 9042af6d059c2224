//go:build linux

package postgres

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// roundsVariable says how many snapshots TestFrozenSnapshotsAreSound takes
// and how many its control may take until one is bad.
const roundsVariable = "MAYFLY_CORRUPTION_ROUNDS"

// workload is a database under pgbench whose pages are evicted and whose
// checkpoints are forced all the time, on btrfs and without fsync.
type workload struct {
	Running
	pool  string
	group string // control group of the instance
}

// busy starts a workload of 8 clients.
func busy(t *testing.T, scale int, size int64) workload {
	t.Helper()
	o := options(t, nil)
	o.Extensions = []string{"amcheck"}
	o.SQL = []string{file(t, "empty.sql", "SELECT 1;")}
	w := workload{pool: btrfs(t, size)}
	o.Dir = filepath.Join(w.pool, "live")
	subvolume(t, o.Dir)
	o.Dir = filepath.Join(o.Dir, "data")
	prepare(t, o)

	w.group = newGroup(t)
	group, err := os.Open(w.group)
	must(t, err)
	defer group.Close()
	i := instance(t, o.Dir)
	i.CopyOnWrite = true
	i.Settings = map[string]string{"shared_buffers": "4MB", "max_wal_size": "64MB", "min_wal_size": "32MB", "checkpoint_timeout": "30s"}
	shop := i.Launcher.(workshop)
	shop.group = group
	i.Launcher = shop
	w.Running = start(t, i)
	t.Cleanup(func() { thaw(w.group) }) // before the instance is killed
	if out, err := program(t, w.Running, "pgbench", "-i", "-q", "-s", strconv.Itoa(scale), "shop"); err != nil {
		t.Fatalf("pgbench: %v: %s", err, out)
	}
	w.run(t)
	return w
}

// run keeps clients and checkpoints going until the test ends.
func (w workload) run(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	cmd := exec.CommandContext(ctx, w.Install.program("pgbench"), "-n", "-c", "8", "-j", "2", "-T", "36000", "shop")
	cmd.Env = environment("PGHOST="+w.Socket.Host, "PGUSER="+Admin, "PGPASSWORD="+secret)
	must(t, cmd.Start())
	wait.Go(func() { cmd.Wait() })
	wait.Go(func() {
		for ctx.Err() == nil {
			w.Checkpoint(ctx)
			time.Sleep(20 * time.Millisecond)
		}
	})
	t.Cleanup(func() {
		cancel()
		wait.Wait()
	})
	time.Sleep(time.Second)
}

// newGroup makes a control group of the unified hierarchy.
func newGroup(t *testing.T) string {
	t.Helper()
	for _, mount := range []string{"/sys/fs/cgroup/unified", "/sys/fs/cgroup"} {
		dir := filepath.Join(mount, fmt.Sprintf("mayfly-postgres-test-%d", os.Getpid()))
		if !exists(filepath.Join(mount, "cgroup.procs")) || os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			for range 1000 { // until the last process is gone
				if os.Remove(dir) == nil {
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
			t.Errorf("%s is left", dir)
		})
		return dir
	}
	t.Skip("needs control groups of the unified hierarchy")
	return ""
}

func freeze(group string) error {
	if err := os.WriteFile(filepath.Join(group, "cgroup.freeze"), []byte("1"), 0); err != nil {
		return err
	}
	for range 5000 {
		b, err := os.ReadFile(filepath.Join(group, "cgroup.events"))
		if err != nil {
			return err
		}
		if strings.Contains(string(b), "frozen 1") {
			return nil
		}
		time.Sleep(200 * time.Microsecond)
	}
	return errors.New("the processes do not stand still")
}

func thaw(group string) error {
	return os.WriteFile(filepath.Join(group, "cgroup.freeze"), []byte("0"), 0)
}

// snapshot takes one of the live database and returns for how long it paused.
func (w workload) snapshot(ctx context.Context, to string, frozen bool) (pause time.Duration, err error) {
	live := filepath.Join(w.pool, "live")
	if !frozen {
		return 0, snapshot(live, to)
	}
	if err := w.Checkpoint(ctx); err != nil {
		return 0, err
	}
	f, err := os.Open(live)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := unix.Syncfs(int(f.Fd())); err != nil {
		return 0, err
	}
	began := time.Now()
	if err := freeze(w.group); err != nil {
		return 0, errors.Join(err, thaw(w.group))
	}
	err = errors.Join(snapshot(live, to), thaw(w.group))
	return time.Since(began), err
}

// inspection finds what is wrong with a database: sums that every transaction
// of pgbench keeps equal, and amcheck.
var inspection = []struct{ sql, want string }{
	{`SELECT count(DISTINCT s) FROM (SELECT sum(abalance) s FROM pgbench_accounts UNION ALL SELECT sum(bbalance) FROM pgbench_branches
		UNION ALL SELECT sum(tbalance) FROM pgbench_tellers UNION ALL SELECT coalesce(sum(delta), 0) FROM pgbench_history) x`, "1"},
	{`SELECT count(*) FROM pgbench_accounts a FULL JOIN (SELECT aid, sum(delta) d FROM pgbench_history GROUP BY 1) h USING (aid)
		WHERE a.aid IS NULL OR abalance <> coalesce(d, 0)`, "0"},
	{`SELECT count(*) FROM pg_class c, verify_heapam(c.oid) WHERE relkind = 'r'`, "0"},
	{`SELECT count(bt_index_parent_check(indexrelid, true)) > 0 FROM pg_index JOIN pg_class c ON c.oid = indexrelid
		WHERE relam = (SELECT oid FROM pg_am WHERE amname = 'btree') AND relpersistence <> 't'`, "t"},
}

// inspect starts an instance on a clone and says what is wrong with it.
func (w workload) inspect(t *testing.T, dir string) error {
	t.Helper()
	i := instance(t, filepath.Join(dir, "data"))
	i.CopyOnWrite = true
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	r, err := Start(ctx, i)
	if err != nil {
		return fmt.Errorf("does not start: %w", err)
	}
	defer func() { must(t, r.Kill(context.Background())) }()
	conn, err := r.Connect(ctx, r.Database)
	if err != nil {
		return err
	}
	defer conn.Close(context.Background())
	if err := execute(ctx, conn, "SET search_path = public"); err != nil {
		return err
	}
	for _, c := range inspection {
		got, err := column(ctx, conn, c.sql)
		if err != nil || !slices.Equal(got, []string{c.want}) {
			return fmt.Errorf("%.60s… = %q, %w", c.sql, got, errors.Join(err, errors.New("want "+c.want)))
		}
	}
	return nil
}

// hunt takes snapshots and returns how many were bad. It ends early when stop
// says so.
func (w workload) hunt(t *testing.T, rounds int, frozen bool, stop func(bad int) bool) (taken, bad int) {
	t.Helper()
	var pauses []time.Duration
	for taken < rounds && !stop(bad) {
		clone := filepath.Join(w.pool, "clone")
		time.Sleep(time.Duration(100+37*taken%200) * time.Millisecond)
		pause, err := w.snapshot(t.Context(), clone, frozen)
		must(t, errors.Join(err, freeze(w.group))) // leaves the machine to the inspection
		taken++
		pauses = append(pauses, pause)
		if err := w.inspect(t, clone); err != nil {
			bad++
			t.Logf("snapshot %d, frozen %v: %v", taken, frozen, err)
		}
		must(t, thaw(w.group))
		deleteSubvolume(t, clone)
	}
	slices.Sort(pauses)
	if len(pauses) > 0 {
		t.Logf("frozen %v: %d snapshots, %d bad, pause p50 %v, max %v", frozen, taken, bad, pauses[len(pauses)/2], pauses[len(pauses)-1])
	}
	return taken, bad
}

func TestFrozenSnapshotsAreSound(t *testing.T) {
	installed(t)
	rounds, scale, size := 3, 1, int64(1<<30)
	long := os.Getenv(roundsVariable) != ""
	if long {
		var err error
		rounds, err = strconv.Atoi(os.Getenv(roundsVariable))
		must(t, err)
		scale, size = 2, 16<<30
	}
	w := busy(t, scale, size)
	if _, bad := w.hunt(t, rounds, true, func(int) bool { return false }); bad > 0 {
		t.Errorf("bad snapshots = %d, want 0", bad)
	}
	if !long {
		return // the control needs luck, and time
	}
	if taken, bad := w.hunt(t, rounds, false, func(bad int) bool { return bad >= 3 }); bad == 0 {
		t.Errorf("without the freeze none of %d snapshots is bad: the hunt finds nothing", taken)
	}
}
