package host

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"

	"mayfly.dev/mayfly/internal/image/rootfs"
)

// hidden are patterns of what of /etc does not appear inside, matched against
// every path and what begins it. On top of these, nothing appears that not
// every user of the host may read.
var hidden = strings.Fields(`
	passwd* group* shadow* gshadow* subuid* subgid* *- *~ *.bak *.dpkg-* *.rpm*
	.* *.key *.p12 *.pfx *.jks *.keytab *secret* *credential* *token* *.netrc netrc
	hostname hosts hosts.* resolv.conf nsswitch.conf machine-id localtime timezone mtab
	fstab crypttab exports* auto* auto.* environment environment.d
	ssh/*key* ssh/sshd* ssh/moduli ssl/private pki/tls/private pki/consumer pki/entitlement pki/rsyslog
	sudo* security pam* polkit* selinux apparmor* audit* firewalld nftables* iptables*
	cron* anacrontab at.* init init.d rc*.d default sysconfig systemd udev dbus-1 modprobe.d modules* sysctl.*
	kubernetes rancher k3s cni docker containerd containers crio podman libvirt lxc lxd incus qemu
	cloud waagent* walinuxagent* google* aws* azure* boto* amazon*
	NetworkManager netplan network networks* wpa_supplicant* wireguard openvpn ipsec* strongswan* swanctl ppp* iwd
	letsencrypt acme* krb5.keytab sssd samba ipa* ldap* openldap freeradius raddb
	postfix exim* dovecot mail* msmtprc aliases
	mysql* mariadb* my.cnf* postgresql* redis* valkey* mongo* rabbitmq* cassandra elasticsearch
	nginx apache2 httpd lighttpd haproxy caddy traefik squid*
	vault* consul* nomad* boundary* puppet* chef* salt* ansible gitlab* jenkins* teleport*
	grafana* prometheus* telegraf* datadog* newrelic* rsyslog* syslog* fluent* zabbix* nagios* collectd*
	apt/auth.conf* apt/trusted* lvm multipath* iscsi* nvme ceph nfs* rpc* idmapd* kernel grub* kdump* mayfly
`)

// revealing matches what a configuration file holds that is meant for those
// who may read it only: keys, tokens, and passwords in addresses.
var revealing = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY|://[^\s/@:"'<>$]+:[^\s/@"'<>$]+@|(?i:_auth(token)?|_password|access[_-]?tokens?|secret[_-]?(access[_-]?)?key|client[_-]?secret|api[_-]?key)["']?[ \t]*[=:][ \t]*\S`)
})

// telling are words in lower case, one of which is in all that revealing
// matches: looking for them first is several times as fast.
var telling = [][]byte{[]byte("private key"), []byte("://"), []byte("_auth"), []byte("_password"), []byte("token"), []byte("secret"), []byte("api")}

func reveals(content []byte) bool {
	if bytes.IndexByte(content[:min(len(content), 1024)], 0) >= 0 {
		return false // not a text
	}
	lower := bytes.ToLower(content)
	for _, word := range telling {
		if bytes.Contains(lower, word) {
			return revealing().Match(content)
		}
	}
	return false
}

// maxFile is the largest file that is copied. Larger ones are databases of
// services that do not run inside.
const maxFile = 16 << 20

// own are the files that are the same in every environment, on any machine.
var own = map[string]string{
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n",
	"etc/timezone":      "Etc/UTC\n",
	"etc/machine-id":    "6d6179666c796d6179666c796d617966\n",
}

var ownLinks = map[string]string{
	"etc/localtime": "/usr/share/zoneinfo/Etc/UTC",
	"etc/mtab":      "../proc/self/mounts",
}

// copier copies a directory tree of the host, which only root can change, into
// a skeleton.
type copier struct {
	host string // …/etc
	root *os.Root
}

func (c copier) all() error {
	err := filepath.WalkDir(c.host, func(source string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) { // removed meanwhile, or there is none
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(c.host, source)
		if err != nil || rel == "." {
			return err
		}
		return c.one(source, filepath.ToSlash(rel), d)
	})
	for name, content := range own {
		err = errors.Join(err, rootfs.WriteFile(c.root, name, content, 0o644))
	}
	for name, target := range ownLinks {
		err = errors.Join(err, c.root.Symlink(target, name))
	}
	return errors.Join(err, c.root.Chtimes("etc", epoch, epoch))
}

func (c copier) one(source, rel string, d fs.DirEntry) error {
	skip := error(nil)
	if d.IsDir() {
		skip = fs.SkipDir
	}
	info, err := d.Info()
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if isHidden(rel) {
		return skip
	}
	target := path.Join("etc", rel)
	switch mode := info.Mode(); {
	case mode.IsDir():
		if mode&0o5 != 0o5 {
			return fs.SkipDir
		}
		return c.root.Mkdir(target, 0o755)
	case mode.Type() == fs.ModeSymlink:
		to, err := os.Readlink(source)
		if err != nil {
			return err
		}
		return c.root.Symlink(to, target)
	case mode.IsRegular() && mode&0o4 != 0 && info.Size() <= maxFile:
		return c.file(source, target, mode)
	}
	return nil
}

func (c copier) file(source, target string, mode fs.FileMode) error {
	f, err := os.OpenFile(source, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ELOOP) {
		return nil // replaced meanwhile
	}
	if err != nil {
		return err
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return err
	}
	if reveals(content) {
		return nil
	}
	return rootfs.WriteFile(c.root, target, string(content), 0o644|mode&0o111)
}

// isHidden reports whether a path below /etc, or a directory that it lies in,
// is left out. A pattern without a slash is matched with the first part; one
// that begins with * or . with every part.
func isHidden(rel string) bool {
	parts := strings.Split(rel, "/")
	for _, pattern := range hidden {
		depth := strings.Count(pattern, "/") + 1
		if pattern[0] == '*' || pattern[0] == '.' {
			for _, part := range parts {
				if ok, _ := path.Match(pattern, part); ok {
					return true
				}
			}
		} else if depth <= len(parts) {
			if ok, _ := path.Match(pattern, strings.Join(parts[:depth], "/")); ok {
				return true
			}
		}
	}
	return false
}
