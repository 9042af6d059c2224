//go:build linux

package postgres

import (
	"bytes"
	"context"
	"crypto/rand"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/jackc/pgx/v5/pgconn"
	"golang.org/x/sys/unix"
)

// testUID is nobody's: instances run under it.
const testUID = 64990

const secret = "a secret of the tests, never anywhere else"

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// installed finds Postgres and skips without it or without root.
func installed(t testing.TB) Install {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: starts Postgres under another user id")
	}
	in, err := Find("15")
	if err != nil {
		t.Skip(err)
	}
	return in
}

// options are those of a baseline at a directory that does not exist yet.
func options(t testing.TB, log *bytes.Buffer) Options {
	t.Helper()
	o := Options{Dir: filepath.Join(t.TempDir(), "pgdata"), Install: installed(t), Database: "shop", Role: "app",
		Secret: secret, UID: testUID, GID: testUID, Outside: testUID, cluster: cluster(t, Admin)}
	if log != nil {
		o.Log = log
	}
	return o
}

func prepare(t testing.TB, o Options) string {
	t.Helper()
	must(t, prepareIn(t.Context(), o))
	return o.Dir
}

// prepareIn prepares a baseline in a workshop that sees it at /db.
func prepareIn(ctx context.Context, o Options) error {
	o.Inside, o.Workshop = "/db", newWorkshop(Dir{Host: filepath.Dir(o.Dir), Inside: "/db"})
	return Prepare(ctx, o)
}

// cloner copies a data directory for a preparation.
func cloner(o *Options, directory string) Cloner {
	return DirectoryCloner{Directory: directory, Root: filepath.Dir(o.Dir)}
}

// file writes a file for a preparation to read.
func file(t testing.TB, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte(content), 0o600))
	return path
}

// schema is what the shared baseline holds.
const schema = `
CREATE TABLE customer (id int PRIMARY KEY, name text NOT NULL, email text);
INSERT INTO customer SELECT n, 'name ' || n, 'person' || n || '@example.com' FROM generate_series(1, 1000) n;
CREATE TABLE counter (n bigint NOT NULL);
INSERT INTO counter VALUES (0);
CREATE TYPE mood AS ENUM ('good', 'bad');
CREATE SEQUENCE ticket;
CREATE VIEW names AS SELECT name FROM customer;
CREATE FUNCTION twice(n int) RETURNS int LANGUAGE sql AS 'SELECT 2 * n';
`

var shared struct {
	sync.Mutex
	dir string
}

// sharedDir is a directory for what all tests use.
func sharedDir(t testing.TB) string {
	t.Helper()
	if shared.dir == "" {
		dir, err := os.MkdirTemp("", "mayfly-postgres-")
		must(t, err)
		must(t, os.Chmod(dir, 0o711))
		shared.dir = dir
	}
	return shared.dir
}

// cluster is what initdb makes for a superuser of that name, made once.
func cluster(t testing.TB, superuser string) string {
	t.Helper()
	in := installed(t)
	shared.Lock()
	defer shared.Unlock()
	work := filepath.Join(sharedDir(t), "cluster-"+superuser)
	p := &preparation{work: work, Options: Options{Install: in, UID: testUID, GID: testUID, Inside: "/db",
		Workshop: newWorkshop(Dir{Host: filepath.Dir(work), Inside: "/db"})}}
	if exists(work) {
		return p.data()
	}
	must(t, p.makeDirs())
	out, err := p.tool(t.Context(), "initdb", "-D", p.inside("data"), "-U", superuser, "--auth=trust", "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync")
	if err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	return p.data()
}

// baseline is one that tests copy and do not change.
func baseline(t testing.TB) string {
	t.Helper()
	in := installed(t)
	shared.Lock()
	defer shared.Unlock()
	dir := filepath.Join(sharedDir(t), "baseline", "pgdata")
	if !exists(dir) {
		must(t, os.Mkdir(filepath.Dir(dir), 0o755))
		must(t, prepareIn(t.Context(), Options{Dir: dir, Install: in, Database: "shop", Role: "app", Secret: secret,
			UID: testUID, GID: testUID, SQL: []string{file(t, "schema.sql", schema)}, CreateDB: true}))
	}
	return dir
}

// TestMain keeps small files in memory, except where the disk is measured.
func TestMain(m *testing.M) {
	flag.Parse()
	if flag.Lookup("test.bench").Value.String() == "" && os.Getenv("TMPDIR") == "" && exists("/dev/shm") {
		os.Setenv("TMPDIR", "/dev/shm")
	}
	code := m.Run()
	if shared.dir != "" {
		os.RemoveAll(shared.dir)
	}
	os.Exit(code)
}

// copyOf is a plain copy of a data directory.
func copyOf(t testing.TB, dir string) string {
	t.Helper()
	dst := filepath.Join(t.TempDir(), "data")
	if out, err := exec.Command("cp", "-a", "--reflink=auto", dir, dst).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	return dst
}

// instance is one on a data directory, with a socket directory of its own.
func instance(t testing.TB, data string) Instance {
	t.Helper()
	return instanceAt(t, data, t.TempDir())
}

func instanceAt(t testing.TB, data, socket string) Instance {
	t.Helper()
	must(t, os.Chown(socket, testUID, testUID))
	i := Instance{Install: installed(t), Database: "shop", Secret: secret, NoSync: true,
		Data: Dir{Host: data, Inside: "/db/data"}, Socket: Dir{Host: socket, Inside: "/db/socket"}}
	i.Launcher = newWorkshop(i.Data, i.Socket)
	return i
}

// start starts an instance that ends with the test at the latest.
func start(t testing.TB, i Instance) Running {
	t.Helper()
	r, err := Start(t.Context(), i)
	must(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.Kill(ctx); err != nil {
			t.Errorf("kill: %v", err)
		}
	})
	return r
}

// query returns the first column, joined by spaces, of a query as Admin.
func query(t testing.TB, r Running, sql string) string {
	t.Helper()
	conn, err := r.Connect(t.Context(), r.Database)
	must(t, err)
	defer conn.Close(context.Background())
	return ask(t, conn, sql)
}

func ask(t testing.TB, conn *pgconn.PgConn, sql string) string {
	t.Helper()
	must(t, execute(t.Context(), conn, "SET search_path = public"))
	values, err := column(t.Context(), conn, sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return strings.Join(values, " ")
}

// login connects as a user does, with nothing but a name and a password.
func login(ctx context.Context, i Instance, user, password, database string) (*pgconn.PgConn, error) {
	config, err := i.config(user, password, database)
	if err != nil {
		return nil, err
	}
	return i.connect(ctx, config)
}

// granted is a connection of a new login.
func granted(t testing.TB, r Running) *pgconn.PgConn {
	t.Helper()
	l := Login{Name: "run_" + strings.ToLower(rand.Text()), Password: rand.Text(), Until: time.Now().Add(time.Hour), Owner: "app"}
	must(t, r.Grant(t.Context(), l))
	conn, err := login(t.Context(), r.Instance, l.Name, l.Password, r.Database)
	must(t, err)
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// psql runs a program of the installation against a running instance as Admin.
func program(t testing.TB, r Running, name string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(r.Install.program(name), args...)
	cmd.Env = environment("PGHOST="+filepath.Dir(r.Path()), "PGUSER="+Admin, "PGPASSWORD="+secret, "PGDATABASE="+r.Database)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// btrfs mounts a new file system of the given size.
func btrfs(t testing.TB, size int64) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a file system")
	}
	if _, err := exec.LookPath("mkfs.btrfs"); err != nil {
		t.Skip("needs mkfs.btrfs")
	}
	base := t.TempDir()
	image, dir := filepath.Join(base, "image"), filepath.Join(base, "pool")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, os.Truncate(image, size))
	must(t, os.Mkdir(dir, 0o755))
	for _, argv := range [][]string{
		{"mkfs.btrfs", "-q", "-f", "-K", "-m", "single", image},
		{"mount", "-t", "btrfs", "-o", "loop,noatime,ssd,commit=5", image, dir},
	} {
		if out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// subvolume and snapshot are those of btrfs.
func subvolume(t testing.TB, dir string) {
	t.Helper()
	if out, err := exec.Command("btrfs", "subvolume", "create", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func snapshot(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	dir, err := os.Open(filepath.Dir(to))
	if err != nil {
		return err
	}
	defer dir.Close()
	// struct btrfs_ioctl_vol_args_v2 and BTRFS_IOC_SNAP_CREATE_V2 of linux/btrfs.h.
	args := struct {
		fd   int64
		_    [6]uint64
		name [4040]byte
	}{fd: int64(src.Fd())}
	copy(args.name[:], filepath.Base(to))
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, dir.Fd(), 0x50009417, uintptr(unsafe.Pointer(&args))); errno != 0 {
		return fmt.Errorf("snapshot: %w", errno)
	}
	return nil
}

func deleteSubvolume(t testing.TB, dir string) {
	t.Helper()
	if out, err := exec.Command("btrfs", "subvolume", "delete", dir).CombinedOutput(); err != nil {
		t.Errorf("%v: %s", err, out)
	}
}

// scalar executes statements and returns the first column of the last result.
func scalar(t testing.TB, conn *pgconn.PgConn, sql string) string {
	t.Helper()
	results, err := conn.Exec(t.Context(), sql).ReadAll()
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	var values []string
	for _, row := range results[len(results)-1].Rows {
		values = append(values, string(row[0]))
	}
	return strings.Join(values, " ")
}
