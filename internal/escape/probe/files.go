//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

func init() {
	add(map[string]door{
		"host-file-read":     hostFileRead,
		"host-file-write":    hostFileWrite,
		"inherited-fds":      inheritedFDs,
		"chroot-escape":      chrootEscape,
		"planted-symlink":    plantedSymlink,
		"planted-device":     plantedDevice,
		"hardlink-host-file": hardlinkHostFile,
		"read-only-binds":    readOnlyBinds,
		"open-by-handle":     openByHandle,
		"trusted-xattr":      trustedXattr,
		"host-shm":           func(o options) (bool, string) { return seesName("/dev/shm", o.name) },
		"host-tmp":           func(o options) (bool, string) { return seesName("/tmp", o.name) },
		"host-mqueue":        hostMessageQueue,
		"host-sysv-shm":      hostSharedMemory,
		"host-name":          hostName,
	})
}

// routes are the ways in which a host path may be reachable: by its name,
// through the root and working directory of every process that can be seen,
// and by climbing out of every mount.
func routes(path string) []string {
	all := []string{path}
	for _, pid := range pids() {
		p := "/proc/" + strconv.Itoa(pid)
		all = append(all, p+"/root"+path, p+"/cwd"+path, p+"/root/.."+path)
	}
	up := strings.Repeat("/..", 40)
	all = append(all, "/proc/self/cwd"+up+path, "."+up+path)
	for _, m := range mountPoints() {
		all = append(all, m+up+path, filepath.Join(m, path))
	}
	return all
}

func hostFileRead(o options) (bool, string) {
	for _, p := range routes(o.path) {
		if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, []byte(o.marker)) {
			return true, "read " + p
		}
	}
	return false, fmt.Sprintf("%d routes tried", len(routes(o.path)))
}

// hostFileWrite changes the file only where it is the host's: the one that
// has the marker in it.
func hostFileWrite(o options) (bool, string) {
	for _, p := range routes(o.path) {
		b, err := os.ReadFile(p)
		if err != nil || !bytes.Contains(b, []byte(o.marker)) {
			continue
		}
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			return false, err.Error()
		}
		defer f.Close()
		_, err = f.WriteString("written by a probe\n")
		return err == nil, "wrote " + p
	}
	return false, "not reachable"
}

// inheritedFDs looks for descriptors that the first processes left open and
// climbs from the directories among them to the marker.
func inheritedFDs(o options) (bool, string) {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return false, err.Error()
	}
	up := strings.Repeat("../", 40)
	var seen []string
	for _, e := range entries {
		fd, _ := strconv.Atoi(e.Name())
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil || fd < 3 || ownDescriptor(target) {
			continue
		}
		seen = append(seen, e.Name()+"="+target)
		for _, p := range []string{up + o.path, strings.TrimPrefix(o.path, "/"), filepath.Base(o.path)} {
			f, err := unix.Openat(fd, p, unix.O_RDONLY, 0)
			if err != nil {
				continue
			}
			b := make([]byte, 4096)
			n, _ := unix.Read(f, b)
			unix.Close(f)
			if n > 0 && bytes.Contains(b[:n], []byte(o.marker)) {
				return true, "through " + e.Name() + " " + target
			}
		}
	}
	// The Go runtime's own descriptors are anonymous; whatever else is open
	// was left there by somebody.
	return len(seen) > 0, strings.Join(seen, " ")
}

// chrootEscape is the classic one: a directory outside the new root is kept
// as the working directory, from which ".." leads on.
func chrootEscape(o options) (bool, string) {
	dir, err := os.MkdirTemp("", "chroot")
	if err != nil {
		return false, err.Error()
	}
	defer os.Remove(dir)
	if err := unix.Chroot(dir); err != nil {
		return false, "chroot: " + err.Error()
	}
	b, err := os.ReadFile(strings.Repeat("../", 40) + o.path)
	return err == nil && bytes.Contains(b, []byte(o.marker)), fmt.Sprint("chroot succeeded; ", err)
}

func plantedSymlink(o options) (bool, string) {
	link := filepath.Join(work(), "link")
	os.Remove(link)
	defer os.Remove(link)
	for _, target := range append([]string{o.path}, routes(o.path)...) {
		os.Remove(link)
		if os.Symlink(target, link) != nil {
			continue
		}
		if b, err := os.ReadFile(link); err == nil && bytes.Contains(b, []byte(o.marker)) {
			return true, "through a link to " + target
		}
	}
	return false, "no link led out"
}

// plantedDevice opens a device node that is already in a layer.
func plantedDevice(o options) (bool, string) {
	f, err := os.Open(o.path)
	if err != nil {
		return !errors.Is(err, unix.EACCES) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENXIO), err.Error()
	}
	f.Close()
	return true, "opened " + o.path
}

// hardlinkHostFile would keep a host file in the volume, with its host inode.
func hardlinkHostFile(o options) (bool, string) {
	link := filepath.Join(work(), "hard")
	defer os.Remove(link)
	if err := os.Link(o.path, link); err != nil {
		return false, err.Error()
	}
	return true, "linked " + o.path
}

func readOnlyBinds(o options) (bool, string) {
	var tried []string
	for _, m := range append(mountPoints(), "/usr", "/etc", "/usr/bin", "/usr/lib", o.path) {
		if m == "" || isVolume(m) {
			continue
		}
		name := filepath.Join(m, ".mayfly-probe")
		f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o644)
		if err == nil {
			f.Close()
			os.Remove(name)
			return true, "wrote " + name
		}
		tried = append(tried, m)
	}
	return false, strings.Join(tried, " ")
}

// isVolume reports whether an environment may write to this mount: its own
// root, its terminals and its memory.
func isVolume(mount string) bool {
	switch mount {
	case "/", "/tmp", "/dev/shm", "/dev/pts", "/dev", "/dev/mqueue", "/workspace", "/home/agent":
		return true
	}
	return strings.HasPrefix(mount, "/proc") || strings.HasPrefix(mount, "/dev/")
}

// openByHandle opens the root directory of the file system below by its inode
// number, past every mount.
func openByHandle(options) (bool, string) {
	for _, dir := range append(mountPoints(), "/") {
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, dir, 0)
		if err != nil {
			continue
		}
		mount, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			continue
		}
		fd, err := unix.OpenByHandleAt(mount, h, unix.O_RDONLY)
		unix.Close(mount)
		if err == nil {
			unix.Close(fd)
			return true, "opened a handle on " + dir
		}
	}
	// The call is refused as such, whether or not a handle could be had.
	_, err := unix.OpenByHandleAt(unix.AT_FDCWD, unix.NewFileHandle(1, make([]byte, 8)), unix.O_RDONLY)
	if err == unix.EOPNOTSUPP {
		return false, err.Error()
	}
	return carriedOut(err)
}

// trustedXattr would redirect an overlay to any directory of a layer.
func trustedXattr(options) (bool, string) {
	dir := filepath.Join(work(), "xattr")
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return false, err.Error()
	}
	defer os.Remove(dir)
	for _, name := range []string{"trusted.overlay.redirect", "trusted.overlay.opaque", "security.capability"} {
		value := []byte("/etc")
		if name == "security.capability" {
			value = binaryCapability()
		}
		if err := unix.Setxattr(dir, name, value, 0); err == nil {
			return true, "set " + name
		}
	}
	return false, "refused"
}

// binaryCapability is a VFS_CAP_REVISION_2 attribute with cap_net_raw.
func binaryCapability() []byte {
	return []byte{0, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
}

func seesName(dir, name string) (bool, string) {
	_, err := os.Lstat(filepath.Join(dir, name))
	return err == nil, fmt.Sprint(err)
}

func hostMessageQueue(o options) (bool, string) {
	name, err := unix.BytePtrFromString(o.name)
	if err != nil {
		return false, err.Error()
	}
	fd, _, errno := unix.Syscall6(unix.SYS_MQ_OPEN, uintptr(unsafe.Pointer(name)), unix.O_RDONLY, 0, 0, 0, 0)
	if errno != 0 {
		return false, errno.Error()
	}
	unix.Close(int(fd))
	return true, "opened"
}

func hostSharedMemory(o options) (bool, string) {
	_, _, errno := unix.Syscall(unix.SYS_SHMGET, uintptr(o.count), 0, 0)
	if errno != 0 {
		return false, errno.Error()
	}
	return true, "attached"
}

// hostName asks for the name of the machine.
func hostName(o options) (bool, string) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return false, err.Error()
	}
	name := unix.ByteSliceToString(u.Nodename[:])
	return name == o.name, name
}

// work is where the probe may write.
func work() string {
	for _, d := range []string{"/workspace", os.TempDir()} {
		if unix.Access(d, unix.W_OK) == nil {
			return d
		}
	}
	return "."
}

func mountPoints() []string {
	b, _ := os.ReadFile("/proc/self/mounts")
	var all []string
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 {
			all = append(all, f[1])
		}
	}
	return all
}

func pids() []int {
	entries, _ := os.ReadDir("/proc")
	var all []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			all = append(all, n)
		}
	}
	return all
}

// ownDescriptor recognises what this program opened itself: the runtime's
// event queue and CPU limits, and the directory being read.
func ownDescriptor(target string) bool {
	return strings.HasPrefix(target, "anon_inode:") || strings.HasSuffix(target, "/fd") ||
		strings.HasPrefix(target, "/sys/fs/cgroup/") && strings.Contains(target, "/cpu.")
}
