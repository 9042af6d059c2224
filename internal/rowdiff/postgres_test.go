package rowdiff

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	bin    = "/usr/lib/postgresql/15/bin/"
	nobody = 65534
)

// instance is a Postgres that runs as nobody, with a socket only.
type instance struct {
	dir  string // of the data
	root *os.Root
	cmd  *exec.Cmd
	done chan struct{}
}

func needPostgres(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to run Postgres as another user")
	}
	if _, err := os.Stat(bin + "postgres"); err != nil {
		t.Skip("needs Postgres: apt-get install postgresql-15")
	}
}

func asNobody(args ...string) *exec.Cmd {
	cmd := exec.Command(args[0], args[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Pdeathsig: syscall.SIGKILL}
	cmd.Dir = "/"
	return cmd
}

func initdb(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := os.Chown(dir, nobody, nobody); err != nil {
		return err
	}
	out, err := asNobody(bin+"initdb", "-D", dir, "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C.UTF-8").CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	return nil
}

// start runs an instance on a data directory until stop.
func start(dir string) (*instance, error) {
	in := &instance{dir: dir, done: make(chan struct{})}
	var log bytes.Buffer
	in.cmd = asNobody(bin+"postgres", "-D", dir, "-k", dir, "-c", "listen_addresses=", "-c", "fsync=off", "-c", "autovacuum=off",
		"-c", "shared_buffers=64MB", "-c", "wal_level=logical", "-c", "max_wal_size=4GB", "-c", "max_prepared_transactions=4")
	in.cmd.Stderr = &log
	started := make(chan error)
	go func() { // the parent of the process is this thread
		runtime.LockOSThread()
		err := in.cmd.Start()
		started <- err
		if err == nil {
			in.cmd.Wait()
		}
		close(in.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	for range 2000 {
		c, err := pgx.Connect(context.Background(), in.dsn("postgres"))
		if err == nil {
			c.Close(context.Background())
			in.root, err = os.OpenRoot(dir)
			return in, err
		}
		select {
		case <-in.done:
			return nil, fmt.Errorf("postgres ended: %s", log.String())
		case <-time.After(10 * time.Millisecond):
		}
	}
	in.stop()
	return nil, fmt.Errorf("postgres does not come up: %s", log.String())
}

func (in *instance) stop() {
	in.cmd.Process.Signal(syscall.SIGQUIT)
	select {
	case <-in.done:
	case <-time.After(10 * time.Second):
		in.cmd.Process.Kill()
		<-in.done
	}
	if in.root != nil {
		in.root.Close()
	}
}

func (in *instance) dsn(db string) string {
	return fmt.Sprintf("host=%s user=postgres dbname='%s'", in.dir, db)
}

func (in *instance) connect(t testing.TB, db string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), in.dsn(db))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

// clone copies the data directory of a running instance at one instant, with
// every process stopped, and runs the copy.
func (in *instance) clone(t testing.TB) *instance {
	t.Helper()
	execSQL(t, in.connect(t, "postgres"), "CHECKPOINT")
	dir := filepath.Join(tempDir(t), "c")
	pids := in.processes(t)
	for _, p := range pids {
		syscall.Kill(p, syscall.SIGSTOP)
	}
	out, err := exec.Command("cp", "-a", "--reflink=auto", in.dir, dir).CombinedOutput()
	for _, p := range pids {
		syscall.Kill(p, syscall.SIGCONT)
	}
	if err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	for _, left := range []string{"postmaster.pid", ".s.PGSQL.5432", ".s.PGSQL.5432.lock"} {
		os.Remove(filepath.Join(dir, left))
	}
	c, err := start(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.stop)
	return c
}

// processes are the instance and its children.
func (in *instance) processes(t testing.TB) []int {
	t.Helper()
	pids := []int{in.cmd.Process.Pid}
	for range 2 {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pids[0]))
		if err != nil {
			t.Fatal(err)
		}
		pids = pids[:1]
		for f := range strings.FieldsSeq(string(b)) {
			p, _ := strconv.Atoi(f)
			pids = append(pids, p)
		}
		syscall.Kill(pids[0], syscall.SIGSTOP)
	}
	return pids
}

// tempDir is short enough for a socket.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rowdiff")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// common is the instance in which most tests make databases.
var common struct {
	once sync.Once
	in   *instance
	dir  string
	err  error
}

func sharedInstance(t testing.TB) *instance {
	t.Helper()
	needPostgres(t)
	common.once.Do(func() {
		if common.dir, common.err = os.MkdirTemp("", "rowdiff"); common.err != nil {
			return
		}
		os.Chmod(common.dir, 0o755)
		data := filepath.Join(common.dir, "d")
		if common.err = initdb(data); common.err == nil {
			common.in, common.err = start(data)
		}
	})
	if common.err != nil {
		t.Fatal(common.err)
	}
	return common.in
}

func TestMain(m *testing.M) {
	status := m.Run()
	if common.in != nil {
		common.in.stop()
	}
	if common.dir != "" {
		os.RemoveAll(common.dir)
	}
	os.Exit(status)
}

func execSQL(t testing.TB, c *pgx.Conn, sql string) {
	t.Helper()
	if _, err := c.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%v\nin %.3000s", err, sql)
	}
}

var databases atomic.Int64

// database makes a database from a template. A copy has the same files.
func (in *instance) database(t testing.TB, template string) string {
	t.Helper()
	name := fmt.Sprintf("d%d", databases.Add(1))
	admin := in.connect(t, "postgres")
	execSQL(t, admin, fmt.Sprintf("CREATE DATABASE %s TEMPLATE %s STRATEGY file_copy", name, template))
	admin.Close(t.Context())
	t.Cleanup(func() {
		c, err := pgx.Connect(context.Background(), in.dsn("postgres"))
		if err != nil {
			return
		}
		defer c.Close(context.Background())
		c.PgConn().Exec(context.Background(), fmt.Sprintf("DROP DATABASE %s WITH (FORCE)", name)).ReadAll()
	})
	return name
}

// compareDBs compares two databases of one instance.
func (in *instance) compareDBs(t testing.TB, from, to string, o Options) *Diff {
	t.Helper()
	a, b := in.connect(t, from), in.connect(t, to)
	d, err := compare(t.Context(), a, b, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		d.Close()
		a.Close(context.Background())
		b.Close(context.Background())
	})
	return d
}

// dirs compares by files.
func (in *instance) dirs() Options { return Options{FromDir: in.root, ToDir: in.root} }

func forward(t testing.TB, d *Diff) string {
	t.Helper()
	var b bytes.Buffer
	if err := d.Forward(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func reverse(t testing.TB, d *Diff) string {
	t.Helper()
	var b bytes.Buffer
	if err := d.Reverse(t.Context(), &b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// state is everything that a script has to get right, read in another way
// than the code under test does: a dump of the schema, and every row.
func (in *instance) state(t testing.TB, db string) string {
	t.Helper()
	out, err := exec.Command(bin+"pg_dump", "-h", in.dir, "-U", "postgres", "--restrict-key=x", "--column-inserts", "-b", db).CombinedOutput()
	if err != nil {
		t.Fatalf("pg_dump %s: %v: %s", db, err, out)
	}
	// pg_dump also says this for an identity column that was dropped, of which
	// nothing else is left. The schema tells whether there is one.
	return sortInserts(strings.ReplaceAll(string(out), " OVERRIDING SYSTEM VALUE VALUES ", " VALUES "))
}

// sortInserts orders the rows of all tables, which come in the order in which
// they lie, and keeps the order of everything else.
func sortInserts(dump string) string {
	var rows, rest []string
	for i, r := range strings.Split(dump, "\nINSERT INTO ") {
		if i == 0 {
			rest = append(rest, r)
			continue
		}
		row, more, _ := strings.Cut(r, "\n\n\n--\n")
		rows, rest = append(rows, "INSERT INTO "+row), append(rest, more)
	}
	slices.Sort(rows)
	return strings.Join(append(rest, rows...), "\n")
}

// roundTrip checks that the scripts make either state from the other.
func (in *instance) roundTrip(t testing.TB, from, to string, o Options) *Diff {
	t.Helper()
	d := in.compareDBs(t, from, to, o)
	fw, back := forward(t, d), reverse(t, d)
	hangUp(d)
	was, is := in.state(t, from), in.state(t, to)
	in.applies(t, from, to, is, fw)
	in.applies(t, to, from, was, back)
	return d
}

// noObjects stands for a dump without any: the state tells about the schema.
func noObjects(context.Context, Conn, ...string) ([]byte, error) {
	b := append([]byte("PGDMP\x01\x0e\x00\x04\x08\x01"), make([]byte, 8*5)...)
	b = append(b, make([]byte, 3*5)...)
	return append(b, 0, 0, 0, 0, 0), nil
}

// hangUp leaves the databases, so that they can be copied.
func hangUp(d *Diff) {
	for _, s := range d.sides() {
		s.conn.Close(context.Background())
	}
}

func (in *instance) applies(t testing.TB, template, want, state, script string) {
	t.Helper()
	db := in.database(t, template)
	c := in.connect(t, db)
	if _, err := c.PgConn().Exec(t.Context(), script).ReadAll(); err != nil {
		t.Fatalf("apply: %v\n%.20000s", err, script)
	}
	c.Close(t.Context())
	if got := in.state(t, db); got != state {
		t.Fatalf("the script makes another state: %s\nscript:\n%.20000s", firstDifference(got, state), script)
	}
	d := in.compareDBs(t, db, want, Options{Dump: noObjects})
	defer hangUp(d)
	// A materialized view shows what its query gives now, not what it gave
	// when it was last refreshed.
	d.Tables = slices.DeleteFunc(d.Tables, func(t *Table) bool { return t.Derived })
	if !d.Empty() {
		var b bytes.Buffer
		d.Summary(t.Context(), &b)
		t.Fatalf("differences are left:\n%s\nscript:\n%.20000s", b.String(), script)
	}
}

// firstDifference shows lines that only one side has.
func firstDifference(got, want string) string {
	count := map[string]int{}
	for l := range strings.SplitSeq(got, "\n") {
		count[l]++
	}
	for l := range strings.SplitSeq(want, "\n") {
		count[l]--
	}
	var out []string
	for l, n := range count {
		if n != 0 {
			out = append(out, fmt.Sprintf("%+d %.300q", n, l))
		}
	}
	slices.Sort(out)
	if len(out) > 10 {
		out = slices.Concat(out[:5], out[len(out)-5:])
	}
	return strings.Join(out, "\n")
}
