// Package cgroup keeps one control group per environment, named
// mayfly-<installation>/<environment>, in every hierarchy that is needed: the
// unified one (v2), those of v1 for controllers that v2 does not have, or
// both. See cgroups(7).
package cgroup

import (
	"bufio"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// Options configure Open.
type Options struct {
	Installation string // names the parent of all groups
	// Root is the group below which the parent is made, relative to the mount
	// of each hierarchy: a group that a container manager or systemd
	// (Delegate=yes) gave away. Empty: the top.
	Root string
	// Mountinfo is the table of mounts to look for hierarchies in; empty:
	// /proc/self/mountinfo.
	Mountinfo string
}

// Tree is the groups of one installation. Its methods may be called
// concurrently for different environments.
type Tree struct {
	v2      string            // parent in the unified hierarchy; empty when it is not mounted
	v2has   map[string]bool   // controllers to be had there
	v1      map[string]string // controller to parent in its v1 hierarchy
	mounts  map[string]string // such a parent to the hierarchy's mount
	v2roots []string          // groups whose children need the controllers, outermost first
}

// controllers are those that limits need.
var controllers = []string{"memory", "cpu", "pids"}

// validName reports whether s can name a group: 1 to 64 lower-case letters,
// digits and dashes, the first no dash.
func validName(s string) bool {
	return len(s) > 0 && len(s) <= 64 && s[0] != '-' && strings.Trim(s, "0123456789abcdefghijklmnopqrstuvwxyz-") == ""
}

// Open finds the hierarchies. The error is errors.ErrUnsupported when a
// controller that limits need is in none of them.
func Open(o Options) (*Tree, error) {
	if !validName(o.Installation) {
		return nil, fmt.Errorf("bad installation name %q", o.Installation)
	}
	if o.Mountinfo == "" {
		o.Mountinfo = "/proc/self/mountinfo"
	}
	v2, v1, err := mounts(o.Mountinfo)
	if err != nil {
		return nil, err
	}
	t := &Tree{v2has: map[string]bool{}, v1: map[string]string{}, mounts: map[string]string{}}
	parent := "mayfly-" + o.Installation
	if v2 != "" {
		root := filepath.Join(v2, o.Root)
		b, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
		if err != nil {
			return nil, fmt.Errorf("read controllers: %w", err)
		}
		for _, c := range strings.Fields(string(b)) {
			t.v2has[c] = true
		}
		t.v2 = filepath.Join(root, parent)
		t.v2roots = []string{root, t.v2}
	}
	wanted := slices.Clone(controllers)
	if t.v2 == "" {
		wanted = append(wanted, "freezer", "cpuacct")
	}
	for _, c := range wanted {
		if t.v2has[c] {
			continue
		}
		mount, ok := v1[c]
		if !ok {
			return nil, mayfly.Errorf(mayfly.Unsupported, "this machine has no %s control groups: %w", c, errors.ErrUnsupported).
				Hint("mount the unified hierarchy: mount -t cgroup2 none /sys/fs/cgroup")
		}
		t.v1[c] = filepath.Join(mount, o.Root, parent)
		t.mounts[t.v1[c]] = mount
	}
	return t, nil
}

// mounts finds the unified hierarchy and those of v1 by controller, see
// proc_pid_mountinfo(5).
func mounts(mountinfo string) (v2 string, v1 map[string]string, err error) {
	f, err := os.Open(mountinfo)
	if err != nil {
		return "", nil, fmt.Errorf("find control groups: %w", err)
	}
	defer f.Close()
	v1 = map[string]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		mount, super := strings.Fields(before), strings.Fields(after)
		if !ok || len(mount) < 5 || len(super) < 3 {
			continue
		}
		switch super[0] {
		case "cgroup2":
			v2 = mount[4]
		case "cgroup":
			for c := range strings.SplitSeq(super[2], ",") {
				v1[c] = mount[4]
			}
		}
	}
	return v2, v1, lines.Err()
}

// dirs returns the group of an environment in every hierarchy, each once.
func (t *Tree) dirs(env string) []string {
	var dirs []string
	for _, parent := range t.parents() {
		dirs = append(dirs, filepath.Join(parent, env))
	}
	return dirs
}

func (t *Tree) parents() []string {
	var dirs []string
	if t.v2 != "" {
		dirs = append(dirs, t.v2)
	}
	for _, d := range t.v1 {
		if !slices.Contains(dirs, d) {
			dirs = append(dirs, d)
		}
	}
	slices.Sort(dirs)
	return dirs
}

// group returns the directory that holds a controller's files for env.
func (t *Tree) group(controller, env string) string {
	if parent, ok := t.v1[controller]; ok {
		return filepath.Join(parent, env)
	}
	return filepath.Join(t.v2, env)
}

// Create makes the groups of an environment and sets its limits. It may be
// repeated.
func (t *Tree) Create(env string, l mayfly.Limits) error {
	if !validName(env) {
		return fmt.Errorf("create control group: bad name %q", env)
	}
	for _, dir := range t.dirs(env) {
		if err := t.mkdir(dir); err != nil {
			return fmt.Errorf("create control group: %w", err)
		}
	}
	if err := t.limit(env, l); err != nil {
		return fmt.Errorf("limit control group: %w", err)
	}
	return nil
}

// mkdir makes a group; its parent, too, when it is not there.
func (t *Tree) mkdir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
			return err
		}
		if filepath.Dir(dir) == t.v2 {
			if err := t.delegate(); err != nil {
				return err
			}
		}
		err = os.Mkdir(dir, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	return err
}

// delegate gives the controllers of v2 to the groups of environments: each is
// to be enabled in every group above.
func (t *Tree) delegate() error {
	var enable []string
	for _, c := range controllers {
		if t.v2has[c] {
			enable = append(enable, "+"+c)
		}
	}
	if len(enable) == 0 {
		return nil
	}
	for _, root := range t.v2roots {
		if err := write(root, "cgroup.subtree_control", strings.Join(enable, " ")); err != nil {
			return mayfly.Errorf(mayfly.Unsupported, "enable controllers: %w", err).
				Hint("the group %s must hold no process itself; with systemd set Delegate=yes and DelegateSubgroup=server", root)
		}
	}
	return nil
}

// List names the environments that have a group somewhere.
func (t *Tree) List() ([]string, error) {
	var names []string
	for _, parent := range t.parents() {
		entries, err := os.ReadDir(parent)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("list control groups: %w", err)
		}
		for _, e := range entries {
			if e.IsDir() {
				names = append(names, e.Name())
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// Close removes the installation's own groups if no environment's is left.
func (t *Tree) Close() error {
	for _, parent := range t.parents() {
		os.Remove(parent)
	}
	return nil
}

// write sets a file of a group.
func write(dir, name, value string) error {
	fd, err := open(filepath.Join(dir, name), unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_, err = unix.Write(fd, []byte(value))
	if err != nil {
		return &fs.PathError{Op: "write", Path: filepath.Join(dir, name), Err: err}
	}
	return nil
}

// open opens a file of a group without the runtime's poller: that would watch
// every file of a control group, which costs more than the file.
func open(path string, flags int) (int, error) {
	for {
		fd, err := unix.Open(path, flags|unix.O_CLOEXEC, 0)
		if err == nil {
			return fd, nil
		}
		if err != unix.EINTR {
			return -1, &fs.PathError{Op: "open", Path: path, Err: err}
		}
	}
}

// openFile is open for a caller who wants to keep the file.
func openFile(path string, flags int) (*os.File, error) {
	fd, err := open(path, flags)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// read reads a small file of a group.
func read(dir, name string) (string, error) {
	path := filepath.Join(dir, name)
	fd, err := open(path, unix.O_RDONLY)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var b [4096]byte
	n, err := unix.Read(fd, b[:])
	if err != nil {
		return "", &fs.PathError{Op: "read", Path: path, Err: err}
	}
	return string(b[:n]), nil
}
