// Package rootfs furnishes a root directory with what every environment
// expects in it: mount points, the user, and the network's names.
package rootfs

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"
)

// What is the same in every environment.
const (
	hostname  = "mayfly"
	user      = "agent"
	uid, gid  = 1000, 1000
	home      = "home/agent"
	workspace = "workspace"
)

// maxUsers bounds the user and group files that are read, in bytes.
const maxUsers = 1 << 20

// directories are made in this order. What is in the way of one, such as a
// symbolic link, is removed: sandboxes mount upon them, and nobody shall
// choose where that leads.
var directories = []struct {
	path  string
	mode  fs.FileMode
	owner int
}{
	{"dev", 0o755, 0}, {"etc", 0o755, 0}, {"home", 0o755, 0}, {home, 0o755, uid},
	{"proc", 0o555, 0}, {"run", 0o755, 0}, {"sys", 0o555, 0}, {"tmp", 0o777 | fs.ModeSticky, 0},
	{"var", 0o755, 0}, {"var/lib", 0o755, 0}, {"var/lib/mayfly-db", 0o755, 0},
	{"var/tmp", 0o777 | fs.ModeSticky, 0}, {workspace, 0o755, uid},
}

// keep are directories that stay as they are when they exist already.
var keep = map[string]bool{"etc": true, "home": true, "var": true, "var/lib": true}

// files replace what a root has of these.
var files = map[string]string{
	"etc/hostname":    hostname + "\n",
	"etc/hosts":       "127.0.0.1 localhost " + hostname + "\n::1 localhost " + hostname + "\n",
	"etc/resolv.conf": "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
}

// Furnish makes the directories and files in the root directory dir. It
// trusts nothing that is there already and touches nothing outside.
func Furnish(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("furnish root: %w", err)
	}
	defer root.Close()
	for _, d := range directories {
		if err := makeDirectory(root, d.path, d.mode, d.owner); err != nil {
			return fmt.Errorf("furnish root: %w", err)
		}
	}
	for name, content := range files {
		if err := WriteFile(root, name, content, 0o644); err != nil {
			return fmt.Errorf("furnish root: %w", err)
		}
	}
	if err := addUser(root); err != nil {
		return fmt.Errorf("furnish root: %w", err)
	}
	return nil
}

func makeDirectory(root *os.Root, path string, mode fs.FileMode, owner int) error {
	info, err := root.Lstat(path)
	if err == nil && info.IsDir() && keep[path] {
		return nil
	}
	if err == nil && !info.IsDir() {
		if err := root.Remove(path); err != nil {
			return err
		}
	}
	if err := root.Mkdir(path, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := root.Lchown(path, owner, owner); err != nil {
		return err
	}
	if err := root.Chmod(path, mode); err != nil {
		return err
	}
	return root.Chtimes(path, epoch, epoch)
}

// epoch is the time of all that is made here, so that roots compare.
var epoch = time.Unix(0, 0)

// WriteFile replaces whatever is at a path, without following it. The
// directory of the path must be one and not a link.
func WriteFile(root *os.Root, name, content string, mode fs.FileMode) error {
	if err := root.RemoveAll(name); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(content)
	if err = errors.Join(err, f.Chmod(mode), f.Close()); err != nil {
		return err
	}
	return root.Chtimes(name, epoch, epoch)
}

// addUser gives the ids 0 and 1000 their names.
func addUser(root *os.Root) error {
	users := read(root, "etc/passwd")
	groups := read(root, "etc/group")
	shell := "/bin/sh"
	if _, err := root.Stat("bin/bash"); err == nil {
		shell = "/bin/bash"
	}
	passwd := entries(users, []entry{
		{user, uid, fmt.Sprintf("%s:x:%d:%d::/%s:%s", user, uid, gid, home, shell), true},
		{"root", 0, "root:x:0:0:root:/root:/bin/sh", false},
		{"nobody", 65534, "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin", false},
	})
	group := entries(groups, []entry{
		{user, gid, fmt.Sprintf("%s:x:%d:", user, gid), true},
		{"root", 0, "root:x:0:", false},
		{"nogroup", 65534, "nogroup:x:65534:", false},
	})
	return errors.Join(WriteFile(root, "etc/passwd", passwd, 0o644), WriteFile(root, "etc/group", group, 0o644))
}

// read returns a small regular file; nothing for anything else.
func read(root *os.Root, name string) string {
	info, err := root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxUsers {
		return ""
	}
	f, err := root.Open(name)
	if err != nil {
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxUsers))
	if err != nil {
		return ""
	}
	return string(data)
}

// entry is a line of passwd(5) or group(5).
type entry struct {
	name string
	id   int
	line string
	ours bool // replaces one of the same name, and comes before others of the same id
}

// entries adds what is missing to the lines of a user or group file.
func entries(old string, want []entry) string {
	var out []string
	done := map[string]bool{}
	lines := bufio.NewScanner(strings.NewReader(old))
	lines.Buffer(nil, maxUsers+1)
	for lines.Scan() {
		line := lines.Text()
		fields := strings.Split(line, ":")
		if len(fields) < 3 {
			continue
		}
		drop := false
		for _, w := range want {
			sameID := fields[2] == strconv.Itoa(w.id)
			switch {
			case w.ours && fields[0] == w.name:
				drop = true
			case w.ours && sameID && !done[w.name]:
				out = append(out, w.line)
				done[w.name] = true
			case !w.ours && (sameID || fields[0] == w.name):
				done[w.name] = true
			}
		}
		if !drop {
			out = append(out, line)
		}
	}
	for _, w := range want {
		if !done[w.name] {
			out = append(out, w.line)
		}
	}
	return strings.Join(out, "\n") + "\n"
}
