package doctor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// hierarchies tells where the cgroup file systems are mounted.
type hierarchies struct {
	v2          string            // mount point; empty when there is none
	controllers []string          // of v2
	v1          map[string]string // controller to mount point
}

func (h hierarchies) mode() string {
	switch {
	case h.v2 != "" && len(h.v1) == 0:
		return "v2"
	case h.v2 != "":
		return "hybrid"
	}
	return "v1"
}

// where says which hierarchy has a controller.
func (h hierarchies) where(controller string) string {
	if slices.Contains(h.controllers, controller) {
		return "v2"
	}
	if h.v1[controller] != "" {
		return "v1"
	}
	return ""
}

func findHierarchies() (hierarchies, error) {
	h := hierarchies{v1: map[string]string{}}
	file, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return h, err
	}
	defer file.Close()
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		before, after, ok := strings.Cut(lines.Text(), " - ")
		left, right := strings.Fields(before), strings.Fields(after)
		if !ok || len(left) < 5 || len(right) < 3 {
			continue
		}
		switch mountPoint := left[4]; right[0] {
		case "cgroup2":
			h.v2 = mountPoint
		case "cgroup":
			for option := range strings.SplitSeq(right[2], ",") {
				h.v1[option] = mountPoint
			}
		}
	}
	if h.v2 != "" {
		names, err := os.ReadFile(filepath.Join(h.v2, "cgroup.controllers"))
		if err != nil {
			return h, err
		}
		h.controllers = strings.Fields(string(names))
	}
	return h, lines.Err()
}

const mountCgroup = "mount -t cgroup2 none /sys/fs/cgroup"

func cgroups(context.Context, string) Finding {
	h, err := findHierarchies()
	if err != nil {
		return missing(mountCgroup, "cannot be examined").because(err)
	}
	var have, lack []string
	for _, controller := range []string{"cpu", "memory", "pids"} {
		if where := h.where(controller); where != "" {
			have = append(have, controller+" on "+where)
		} else {
			lack = append(lack, controller)
		}
	}
	abilities, err := h.abilities()
	switch {
	case errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0:
		return degraded("sudo mayfly doctor", "%s: %s; only root can tell the rest", h.mode(), strings.Join(have, ", "))
	case err != nil:
		return missing(mountCgroup, "%s: no cgroup can be made", h.mode()).because(err)
	case !slices.Contains(abilities, "freeze"):
		return missing(mountCgroup, "%s: without a freezer nothing can be paused", h.mode())
	case len(lack) > 0:
		return degraded("", "%s: no limits for %s; %s", h.mode(), strings.Join(lack, ", "), strings.Join(have, ", "))
	}
	return good("%s: %s; %s", h.mode(), strings.Join(have, ", "), strings.Join(abilities, ", "))
}

// abilities makes a cgroup, looks at what it can do, and removes it.
func (h hierarchies) abilities() ([]string, error) {
	var found []string
	if h.v2 != "" {
		dir, err := makeCgroup(h.v2)
		if err != nil {
			return nil, err
		}
		defer os.Remove(dir)
		for _, ability := range []string{"freeze", "kill"} {
			if _, err := os.Stat(filepath.Join(dir, "cgroup."+ability)); err == nil {
				found = append(found, ability)
			}
		}
	}
	if mountPoint := h.v1["freezer"]; mountPoint != "" && !slices.Contains(found, "freeze") {
		dir, err := makeCgroup(mountPoint)
		if err != nil {
			return nil, err
		}
		defer os.Remove(dir)
		if _, err := os.Stat(filepath.Join(dir, "freezer.state")); err == nil {
			found = append(found, "freeze")
		}
	}
	return found, nil
}

func makeCgroup(mountPoint string) (string, error) {
	return os.MkdirTemp(mountPoint, fmt.Sprintf("mayfly-doctor-%d-", os.Getpid()))
}

func cloneIntoCgroup(ctx context.Context, _ string) Finding {
	if fd, err := unix.PidfdOpen(os.Getpid(), 0); err != nil {
		return degraded("", "no pidfd").because(err)
	} else {
		unix.Close(fd)
	}
	h, err := findHierarchies()
	if err != nil || h.v2 == "" {
		return degraded(mountCgroup, "pidfd works; there is no cgroup v2").because(err)
	}
	dir, err := makeCgroup(h.v2)
	if err != nil {
		if os.Geteuid() != 0 {
			return degraded("sudo mayfly doctor", "pidfd works; only root can tell the rest")
		}
		return degraded(mountCgroup, "pidfd works; no cgroup can be made").because(err)
	}
	defer os.Remove(dir)
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return degraded("", "pidfd works; the cgroup cannot be opened").because(err)
	}
	defer unix.Close(fd)
	pidfd := -1
	c, err := startChild(ctx, &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd, PidFD: &pidfd})
	if err != nil {
		return degraded("", "pidfd works; no process starts in a cgroup").because(err)
	}
	members, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	pid := c.cmd.Process.Pid
	if pidfd >= 0 {
		unix.Close(pidfd)
	}
	if closeErr := c.close(); closeErr != nil {
		return degraded("", "pidfd works; a process in a cgroup ended badly").because(closeErr)
	}
	if err != nil || strings.TrimSpace(string(members)) != fmt.Sprint(pid) {
		return degraded("", "a process started in a cgroup is not in it").because(err)
	}
	return good("pidfd and CLONE_INTO_CGROUP work")
}
