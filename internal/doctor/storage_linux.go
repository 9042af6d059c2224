package doctor

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const installBtrfs = "apt-get install btrfs-progs"

func btrfs(context.Context, string) Finding {
	// Opening the file system without mounting anything tells whether the
	// kernel has it.
	fd, err := unix.Fsopen("btrfs", unix.FSOPEN_CLOEXEC)
	switch {
	case errors.Is(err, unix.EPERM):
		return degraded("sudo mayfly doctor", "only root can tell")
	case err != nil:
		return degraded("modprobe btrfs", "the kernel has no btrfs: snapshots are copies").because(err)
	}
	unix.Close(fd)
	mkfs, err := findProgram("mkfs.btrfs")
	if err != nil {
		return degraded(installBtrfs, "no mkfs.btrfs: snapshots are copies")
	}
	return good("in the kernel, and %s", mkfs)
}

// findProgram looks in PATH and where system programs are when PATH lacks
// those directories.
func findProgram(name string) (string, error) {
	for _, candidate := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if path, err := exec.LookPath(candidate); err == nil {
			return path, nil
		}
	}
	return "", exec.ErrNotFound
}

func loopDevices(context.Context, string) Finding {
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
		return degraded("sudo mayfly doctor", "only root can tell")
	}
	if err != nil {
		return degraded("modprobe loop", "no loop devices").because(err)
	}
	control.Close()
	devices, _ := filepath.Glob("/dev/loop[0-9]*")
	return good("/dev/loop-control opens; %d devices exist, more are made on demand", len(devices))
}

// existing is the nearest directory above path that exists, path included.
func existing(path string) string {
	if abs, err := filepath.Abs(path); err == nil {
		path = abs
	}
	for {
		if info, err := os.Stat(path); err == nil && info.IsDir() {
			return path
		}
		up := filepath.Dir(path)
		if up == path {
			return path
		}
		path = up
	}
}

func reflink(_ context.Context, stateDir string) Finding {
	dir := existing(stateDir)
	from, err := unnamed(dir)
	if err != nil {
		return degraded("", "no file can be made in %s", dir).because(err)
	}
	defer from.Close()
	to, err := unnamed(dir)
	if err != nil {
		return degraded("", "no file can be made in %s", dir).because(err)
	}
	defer to.Close()
	if _, err := from.Write(make([]byte, 64<<10)); err != nil {
		return degraded("", "no file can be written in %s", dir).because(err)
	}
	if err := unix.IoctlFileClone(int(to.Fd()), int(from.Fd())); err != nil {
		return degraded("", "%s copies in full; not needed with btrfs", dir)
	}
	return good("%s shares blocks between copies", dir)
}

// unnamed makes a file that is gone when it is closed.
func unnamed(dir string) (*os.File, error) {
	return os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600)
}

const (
	diskNeeded = 256 << 20
	diskWanted = 4 << 30
)

func disk(_ context.Context, stateDir string) Finding {
	dir := existing(stateDir)
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return missing("", "%s cannot be examined", dir).because(err)
	}
	free := int64(s.Bavail) * s.Bsize
	switch {
	case free < diskNeeded || s.Files > 0 && s.Ffree < 1000:
		return missing("", "%s has %d MB and %d inodes left", dir, free>>20, s.Ffree)
	case free < diskWanted:
		return degraded("", "%s has only %d MB left", dir, free>>20)
	}
	return good("%s has %d GB left", dir, free>>30)
}
