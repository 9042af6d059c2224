package local

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/volume"
)

// doors is a script that says which of the ways out of a sandbox are open, one
// word each.
const doors = `
cat %[1]s >/dev/null 2>&1 && echo file
ls /work /root/. /var/lib/mayfly/. >/dev/null 2>&1 || test -w %[2]s && echo directory
perl -e "exit(syscall(%[3]d, 0, -3, 0) < 0)" && echo syscall
unshare -U true 2>/dev/null && echo namespace
unshare -Urm mount -t tmpfs none /mnt 2>/dev/null && echo mount
bash -c "echo >/dev/tcp/127.0.0.1/%[4]d" 2>/dev/null && echo network
grep -q "^NoNewPrivs:.*0$" /proc/self/status && echo privileges
grep -q "^CapBnd:.*[1-9a-f]" /proc/self/status && echo capabilities
true`

func TestSQLOfABaselineFindsTheDoorsShut(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	dir := filepath.Join(t.TempDir(), "open")
	if err := os.Mkdir(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	for at := dir; at != os.TempDir(); at = filepath.Dir(at) {
		if err := os.Chmod(at, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	secret := filepath.Join(dir, "secret")
	if err := os.WriteFile(secret, []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	host, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	script := fmt.Sprintf(doors, secret, dir, unix.SYS_KEYCTL, host.Addr().(*net.TCPAddr).Port)

	outside := exec.Command("sh", "-c", script)
	outside.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 64990, Gid: 64990}}
	said, err := outside.Output()
	if got := strings.Join(strings.Fields(string(said)), " "); got != "file directory syscall namespace mount network privileges capabilities" || err != nil {
		t.Errorf("an unprivileged user of this machine: got = %q %v, want every door open", got, err)
	}

	quoted := strings.ReplaceAll(strings.ReplaceAll(script, "'", "''"), "\n", ";")
	files := map[string]string{"migrations/1.sql": "SELECT 1;", "schema.sql": `
		CREATE TABLE customer (id int, name text, email text);
		CREATE TABLE found (line text);
		COPY found FROM PROGRAM '` + strings.Trim(quoted, ";") + `';
		COPY found FROM PROGRAM 'touch /usr/mayfly-was-here /etc/mayfly-was-here 2>/dev/null; id -u';
		\! touch /tmp/left-behind; (sleep 600 &)
	`}
	l, err := templateOf(t, d, shop, files)
	if err != nil {
		t.Fatal(err)
	}
	p := enter(t, d, l, nil)
	p.want("psql -Atc 'SELECT * FROM found'; ls /tmp/left-behind /workspace/left-behind 2>/dev/null; true", "2000")
	for _, name := range []string{"/usr/mayfly-was-here", "/etc/mayfly-was-here"} {
		if _, err := os.Lstat(name); err == nil {
			t.Errorf("%s is there", name)
		}
	}
}

func TestRecoverRemovesHalfMadeBaselines(t *testing.T) {
	d := open(t, volume.Btrfs)
	half, whole := baselineVolume("sha256:aa"), baselineVolume("sha256:bb")
	for _, name := range []string{half, whole} {
		if err := d.pool.Create(t.Context(), name); err != nil {
			t.Fatal(err)
		}
	}
	if err := d.pool.Snapshot(t.Context(), whole, baselineSnapshot); err != nil {
		t.Fatal(err)
	}
	if err := d.Recover(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := d.pool.Volumes(t.Context()); err != nil || len(left) != 1 || left[0] != whole {
		t.Errorf("left = %v %v, want %s alone", left, err, whole)
	}
}

func TestBaselineIsHeldToTheDiskLimit(t *testing.T) {
	needPostgres(t)
	d := keyed(t)
	large := map[string]string{"migrations/1.sql": "SELECT 1;", "schema.sql": "SELECT 1;\nCREATE TABLE t AS SELECT n, md5(n::text) || repeat('x', 900) FROM generate_series(1, 300000) n;\n"}
	_, err := templateOf(t, d, shop+"limits: {disk: 128MB}\n", large)
	if mayfly.KindOf(err) != mayfly.Exhausted {
		t.Errorf("got = %v, want an error about the disk", err)
	}
	if volumes, err := d.pool.Volumes(t.Context()); len(volumes) > 0 || err != nil {
		t.Errorf("left: %v %v", volumes, err)
	}
}
