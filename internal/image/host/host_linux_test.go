package host

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it changes the owners of files")
	}
}

// tree makes files below a directory. A value that begins with -> is the
// target of a link, and one that ends with / makes a directory.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if target, ok := strings.CutPrefix(content, "->"); ok {
			err = errors.Join(err, os.Symlink(target, path))
		} else if strings.HasSuffix(name, "/") {
			err = errors.Join(err, os.MkdirAll(path, 0o755))
		} else {
			err = errors.Join(err, os.WriteFile(path, []byte(content), 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestSecretsOfEtcDoNotAppear(t *testing.T) {
	needRoot(t)
	shown := map[string]string{
		"etc/ld.so.cache": "\x00cache", "etc/ssl/certs/ca.pem": "-----BEGIN CERTIFICATE-----", "etc/ssl/openssl.cnf": "default_md = sha256",
		"etc/alternatives/cc": "->/usr/bin/gcc", "etc/ssh/ssh_config": "Host *", "etc/npmrc": "cafile=/etc/ssl/certs/ca.pem\nregistry=https://registry.example.com/\n",
		"etc/profile": "PATH=/usr/bin", "etc/gitconfig": "[user]", "etc/python3/debian_config": "x",
	}
	secret := map[string]string{
		"etc/shadow": "root:$6$", "etc/shadow-": "x", "etc/passwd-": "alice:x", "etc/ssh/ssh_host_ed25519_key": "x", "etc/ssh/sshd_config": "x",
		"etc/ssl/private/server.pem": "x", "etc/ssl/server.key": "x", "etc/kubernetes/admin.conf": "x", "etc/rancher/k3s/k3s.yaml": "x",
		"etc/cloud/cloud.cfg": "x", "etc/NetworkManager/system-connections/wifi": "x", "etc/wireguard/wg0.conf": "x", "etc/fstab": "x",
		"etc/environment": "TOKEN=x", "etc/default/service": "PASSWORD=x", "etc/krb5.keytab": "x", "etc/apt/auth.conf.d/a.conf": "x",
		"etc/pip.conf": "[global]\nindex-url = https://user:pass@pypi.example.com/simple\n", "etc/nested/npmrc": "//registry.example.com/:_authToken=abc\n",
		"etc/app/settings.ini": "api_key = abc\n", "etc/app/id.pem": "-----BEGIN OPENSSH PRIVATE KEY-----\n", "etc/sudoers": "x", "etc/mayfly/key": "x",
		"etc/nix/nix.conf": "access-tokens = github.com=abc\n", "etc/app/client-secret.txt": "x", "etc/subuid": "alice:1:1", "etc/hosts.deny": "x",
	}
	files := map[string]string{"usr/bin/": "", "etc/app/db.conf": "readable by root only", "etc/closed/inside": "x", "etc/passwd": "alice:x:1001:1001::/home/alice:/bin/sh\n", "etc/hostname": "build7.corp.example.com", "etc/resolv.conf": "->../run/systemd/resolve/stub-resolv.conf", "etc/machine-id": "0123"}
	for _, m := range []map[string]string{shown, secret} {
		for name, content := range m {
			files[name] = content
		}
	}
	host, dir := tree(t, files), t.TempDir()
	err := errors.Join(os.Chmod(filepath.Join(host, "etc/app/db.conf"), 0o640), os.Chmod(filepath.Join(host, "etc/closed"), 0o750),
		syscall.Mkfifo(filepath.Join(host, "etc/pipe"), 0o644), os.Chmod(filepath.Join(host, "etc/profile"), 0o4755))
	if err != nil {
		t.Fatal(err)
	}
	if err := skeleton(host, dir); err != nil {
		t.Fatal(err)
	}
	for name := range shown {
		if !exists(filepath.Join(dir, name)) {
			t.Errorf("%s is hidden, want it shown", name)
		}
	}
	secret["etc/app/db.conf"], secret["etc/closed"], secret["etc/pipe"] = "", "", ""
	for name := range secret {
		if exists(filepath.Join(dir, name)) {
			t.Errorf("%s is shown, want it hidden", name)
		}
	}
	for name, want := range map[string]string{
		"etc/hostname": "mayfly\n", "etc/timezone": "Etc/UTC\n", "etc/machine-id": "6d6179666c796d6179666c796d617966\n",
		"etc/passwd": "agent:x:1000:1000::/home/agent:/bin/sh\nroot:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
	} {
		if got, err := os.ReadFile(filepath.Join(dir, name)); err != nil || string(got) != want {
			t.Errorf("%s = %q, %v, want %q", name, got, err, want)
		}
	}
	info, err := os.Lstat(filepath.Join(dir, "etc/profile"))
	if err != nil || info.Mode() != 0o755 {
		t.Errorf("mode of etc/profile = %v, %v, want 0755 without set-user-id", info.Mode(), err)
	}
	if info, err := os.Lstat(filepath.Join(dir, "etc/resolv.conf")); err != nil || !info.Mode().IsRegular() {
		t.Errorf("etc/resolv.conf: %v, %v, want a file", info, err)
	}
}

func TestTopDirectoriesAreShownOrLinked(t *testing.T) {
	needRoot(t)
	for name, c := range map[string]struct {
		files map[string]string
		binds []string
		links map[string]string
	}{
		"merged": {map[string]string{"usr/bin/": "", "bin": "->usr/bin", "lib": "->/usr/lib", "lib64": "->usr/lib64", "opt/x/": "", "home/a/": "", "root/": "", "var/": "", "srv/": ""},
			[]string{"/usr", "/opt"}, map[string]string{"bin": "usr/bin", "lib": "usr/lib", "lib64": "usr/lib64"}},
		"separate": {map[string]string{"usr/bin/": "", "bin/": "", "sbin/": "", "lib/": "", "nix/store/": ""},
			[]string{"/usr", "/nix", "/bin", "/sbin", "/lib"}, nil},
		"odd": {map[string]string{"usr/": "", "bin": "->/home/x/bin", "opt": "->/mnt/opt", "lib": "->../../usr/../root"},
			[]string{"/usr"}, nil},
	} {
		host, dir := tree(t, c.files), t.TempDir()
		if err := skeleton(host, dir); err != nil {
			t.Fatal(err)
		}
		all, err := binds(host, dir)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, b := range all {
			got = append(got, b.Target)
			if b.Source != filepath.Join(host, b.Target) {
				t.Errorf("%s: source of %s = %s", name, b.Target, b.Source)
			}
		}
		if !slices.Equal(got, c.binds) {
			t.Errorf("%s: binds = %v, want %v", name, got, c.binds)
		}
		for _, top := range merged {
			target, _ := os.Readlink(filepath.Join(dir, top))
			if target != c.links[top] {
				t.Errorf("%s: %s -> %q, want %q", name, top, target, c.links[top])
			}
		}
	}
	if _, err := binds(t.TempDir(), t.TempDir()); mayfly.KindOf(err) != mayfly.Unsupported {
		t.Errorf("binds of nothing: %v, want an unsupported error", err)
	}
}

// The real thing: a root made of this machine runs this machine's programs as
// the agent, who sees no secret.
func TestThisMachineRunsInItsSkeleton(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	began := time.Now()
	if err := Skeleton(dir); err != nil {
		t.Fatal(err)
	}
	t.Logf("skeleton made in %v", time.Since(began))
	all, err := Binds(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range all {
		target := filepath.Join(dir, b.Target)
		if err := unix.Mount(b.Source, target, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	run := func(command string) (string, error) {
		c := exec.Command("/bin/sh", "-c", command)
		c.SysProcAttr = &syscall.SysProcAttr{Chroot: dir, Credential: &syscall.Credential{Uid: 1000, Gid: 1000}}
		c.Dir, c.Env = "/workspace", []string{"PATH=/usr/bin:/bin", "HOME=/home/agent"}
		out, err := c.CombinedOutput()
		return string(out), err
	}
	for command, want := range map[string]string{
		"id -un; id -gn":         "agent\nagent\n",
		"cat /etc/hostname; pwd": "mayfly\n/workspace\n",
		"touch /workspace/x /home/agent/x /tmp/x && echo ok": "ok\n",
		"ls -A /root /var/log 2>&1 | wc -l; ls /home":        "2\nagent\n",
		"test -e /etc/shadow || echo none":                   "none\n",
	} {
		if got, err := run(command); got != want {
			t.Errorf("%s = %q, %v, want %q", command, got, err, want)
		}
	}
	err = filepath.WalkDir(filepath.Join(dir, "etc"), func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if info, err := d.Info(); err == nil && info.Mode().IsRegular() && info.Mode()&0o4 == 0 {
			t.Errorf("%s has mode %v, and would not be readable on the host either", path, info.Mode())
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
}

const status = `Package: bash
Status: install ok installed
Architecture: amd64
Version: 5.2
Description: a shell
 with words
Conffiles:
 /etc/bash.bashrc 89269e1298235f1b12b4c16e4065ad0d

Package: vim
Status: deinstall ok config-files
Architecture: amd64
Version: 9

Package: zsh
Status: install ok installed
Architecture: amd64
Version: 5.9
`

func TestDigestFollowsThePackages(t *testing.T) {
	of := func(files map[string]string) string {
		t.Helper()
		d, err := digest(tree(t, files))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	const path = "var/lib/dpkg/status"
	base := of(map[string]string{"etc/os-release": "ID=debian", path: status})
	if again := of(map[string]string{"etc/os-release": "ID=debian", path: status}); again != base {
		t.Errorf("digest of the same packages on another machine = %s, want %s", again, base)
	}
	parts := strings.SplitN(status, "\n\n", 3)
	for name, same := range map[string]string{
		"another order":          strings.Join([]string{parts[2][:len(parts[2])-1], parts[1], parts[0]}, "\n\n"),
		"another description":    strings.Replace(status, "a shell", "the shell", 1),
		"a package once removed": strings.Replace(status, "Version: 9", "Version: 8", 1),
	} {
		if got := of(map[string]string{"etc/os-release": "ID=debian", path: same}); got != base {
			t.Errorf("%s changes the digest", name)
		}
	}
	for name, files := range map[string]map[string]string{
		"an upgrade":      {"etc/os-release": "ID=debian", path: strings.Replace(status, "5.9", "5.10", 1)},
		"another release": {"etc/os-release": "ID=ubuntu", path: status},
		"a removal":       {"etc/os-release": "ID=debian", path: strings.Replace(status, "install ok installed", "deinstall ok config-files", 1)},
		"another manager": {"etc/os-release": "ID=debian", "lib/apk/db/installed": "P:bash\nV:5.2\nA:x86_64\nC:Q1\n"},
		"pacman":          {"etc/os-release": "ID=debian", "var/lib/pacman/local/bash-5.2/": ""},
		"nix":             {"etc/os-release": "ID=debian", "run/current-system": "->/nix/store/abc-system"},
		"dnf5":            {"etc/os-release": "ID=debian", "usr/lib/sysimage/libdnf5/nevras.toml": "bash-5.2"},
		"rpm":             {"etc/os-release": "ID=debian", "var/lib/rpm/rpmdb.sqlite": "binary"},
		"no release":      {path: status},
	} {
		if of(files) == base {
			t.Errorf("%s does not change the digest", name)
		}
	}
	if _, err := digest(t.TempDir()); mayfly.KindOf(err) != mayfly.Unsupported {
		t.Errorf("without packages: %v, want an unsupported error", err)
	}
	if _, err := digest(tree(t, map[string]string{path: ""})); err == nil {
		t.Error("an empty database gives a digest")
	}
}

// Every run on the host base computes the digest before anything else.
func TestDigestOfThisMachineIsFast(t *testing.T) {
	best := time.Hour
	for range 20 {
		began := time.Now()
		if _, err := Digest(); err != nil {
			t.Fatal(err)
		}
		best = min(best, time.Since(began))
	}
	if best > 15*time.Millisecond {
		t.Errorf("the digest takes %v at best, want 3ms", best)
	}
	t.Logf("best of 20: %v", best)
}

func BenchmarkDigest(b *testing.B) {
	for b.Loop() {
		if _, err := Digest(); err != nil {
			b.Fatal(err)
		}
	}
}
