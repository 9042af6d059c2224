package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Directory opens the environment's group in the unified hierarchy, for
// CLONE_INTO_CGROUP. It is nil when that is not mounted.
func (t *Tree) Directory(env string) (*os.File, error) {
	if t.v2 == "" {
		return nil, nil
	}
	return openFile(filepath.Join(t.v2, env), unix.O_RDONLY|unix.O_DIRECTORY)
}

// Doors opens the files through which a thread enters the environment's v1
// groups, and those through which it gets back to where this process is: it
// writes "0" into each. What it clones in between is born in the groups.
//
// A thread that moves itself takes none of the locks that moving another
// process takes, which can cost many milliseconds.
func (t *Tree) Doors(env string) (in, out []*os.File, err error) {
	home, err := t.current()
	if err != nil {
		return nil, nil, fmt.Errorf("open control groups: %w", err)
	}
	var there []string
	for _, dir := range t.dirs(env) {
		if filepath.Dir(dir) != t.v2 {
			there = append(there, dir)
		}
	}
	in, err = openTasks(there)
	if err == nil {
		out, err = openTasks(home)
	}
	if err != nil {
		closeAll(in)
		return nil, nil, fmt.Errorf("open control groups: %w", err)
	}
	return in, out, nil
}

func openTasks(dirs []string) ([]*os.File, error) {
	var files []*os.File
	for _, dir := range dirs {
		f, err := openFile(filepath.Join(dir, "tasks"), unix.O_WRONLY)
		if err != nil {
			closeAll(files)
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// current returns this process's v1 groups, of the hierarchies that the tree
// uses.
func (t *Tree) current() ([]string, error) {
	if len(t.v1) == 0 {
		return nil, nil
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	var dirs []string
	seen := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		for c := range strings.SplitSeq(parts[1], ",") {
			parent, ok := t.v1[c]
			if !ok || seen[parent] {
				continue
			}
			seen[parent] = true
			dirs = append(dirs, filepath.Join(t.mounts[parent], parts[2]))
		}
	}
	return dirs, nil
}

// Look reports what is there of an environment: whether any of its groups
// exists, whether a process is in them, and whether it is frozen.
func (t *Tree) Look(env string) (exists, populated, frozen bool, err error) {
	for _, dir := range t.dirs(env) {
		if _, err := os.Stat(dir); err == nil {
			exists = true
		}
	}
	if !exists {
		return false, false, false, nil
	}
	populated, err = t.populated(env)
	if err != nil || !populated {
		return exists, populated, false, err
	}
	if t.v2 != "" {
		n, err := field(filepath.Join(t.v2, env), "cgroup.events", "frozen")
		return exists, populated, n == 1, err
	}
	state, err := t.freezer(env)
	return exists, populated, state != "THAWED", err
}

// populated reports whether a process is in the environment's groups.
func (t *Tree) populated(env string) (bool, error) {
	if t.v2 != "" {
		n, err := field(filepath.Join(t.v2, env), "cgroup.events", "populated")
		if !errors.Is(err, fs.ErrNotExist) {
			return n == 1, err
		}
	}
	pids, err := t.processes(env)
	return len(pids) > 0, err
}

// Processes lists the processes of the environment.
func (t *Tree) Processes(env string) ([]int, error) { return t.processes(env) }

// processes lists the processes of the environment other than this one, which
// may just have a thread there.
func (t *Tree) processes(env string) ([]int, error) {
	var pids []int
	seen := map[int]bool{os.Getpid(): true}
	for _, dir := range t.dirs(env) {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, s := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(s)
			if err == nil && pid > 0 && !seen[pid] {
				seen[pid] = true
				pids = append(pids, pid)
			}
		}
	}
	return pids, nil
}

// Freeze stops every process and returns when they stand still. When that
// does not happen before ctx ends, they are let go on.
func (t *Tree) Freeze(ctx context.Context, env string) error {
	var err error
	if t.v2 != "" {
		dir := filepath.Join(t.v2, env)
		if err = write(dir, "cgroup.freeze", "1"); err == nil {
			err = await(ctx, dir, "frozen", 1)
		}
	} else {
		err = t.freezeV1(ctx, env)
	}
	if err != nil {
		return fmt.Errorf("freeze: %w", errors.Join(err, t.Thaw(context.WithoutCancel(ctx), env)))
	}
	return nil
}

// Thaw lets every process go on.
func (t *Tree) Thaw(ctx context.Context, env string) error {
	var err error
	if t.v2 != "" {
		dir := filepath.Join(t.v2, env)
		if err = write(dir, "cgroup.freeze", "0"); err == nil {
			err = await(ctx, dir, "frozen", 0)
		}
	} else {
		err = write(t.group("freezer", env), "freezer.state", "THAWED")
	}
	if err != nil {
		return fmt.Errorf("thaw: %w", err)
	}
	return nil
}

// freezeV1 repeats the request: the v1 freezer can miss a task that was being
// made.
func (t *Tree) freezeV1(ctx context.Context, env string) error {
	return repeat(ctx, func() (bool, error) {
		if err := write(t.group("freezer", env), "freezer.state", "FROZEN"); err != nil {
			return false, err
		}
		state, err := t.freezer(env)
		return state == "FROZEN", err
	})
}

func (t *Tree) freezer(env string) (string, error) {
	s, err := read(t.group("freezer", env), "freezer.state")
	return strings.TrimSpace(s), err
}

// Kill ends every process and returns when none is left.
func (t *Tree) Kill(ctx context.Context, env string) error {
	if err := t.kill(ctx, env); err != nil {
		return fmt.Errorf("kill: %w", err)
	}
	return nil
}

func (t *Tree) kill(ctx context.Context, env string) error {
	dir := filepath.Join(t.v2, env)
	if t.v2 != "" {
		err := write(dir, "cgroup.kill", "1")
		if err == nil {
			return await(ctx, dir, "populated", 0)
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// Linux before 5.14, or only v1 groups are left.
	}
	return repeat(ctx, func() (bool, error) {
		pids, err := t.processes(env)
		if err != nil || len(pids) == 0 {
			return err == nil, err
		}
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
		// A frozen task dies only when it is let go on.
		return false, optional(t.thawToDie(env))
	})
}

func (t *Tree) thawToDie(env string) error {
	if t.v2 != "" {
		return write(filepath.Join(t.v2, env), "cgroup.freeze", "0")
	}
	return write(t.group("freezer", env), "freezer.state", "THAWED")
}

// Remove removes the groups of an environment, whose processes have ended or
// are about to. Removing missing ones is not an error.
func (t *Tree) Remove(ctx context.Context, env string) error {
	if !validName(env) {
		return fmt.Errorf("remove control group: bad name %q", env)
	}
	for _, dir := range t.dirs(env) {
		err := repeat(ctx, func() (bool, error) {
			err := removeAll(dir)
			if errors.Is(err, unix.EBUSY) {
				return false, nil
			}
			return err == nil, err
		})
		if err != nil {
			return fmt.Errorf("remove control group: %w", err)
		}
	}
	return nil
}

// removeAll removes a group and those below it. Their files go by themselves.
func removeAll(dir string) error {
	err := unix.Rmdir(dir)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	entries, _ := os.ReadDir(dir)
	below := false
	for _, e := range entries {
		if e.IsDir() {
			below = true
			if err := removeAll(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	if below {
		err = unix.Rmdir(dir)
	}
	if err == nil || err == unix.ENOENT {
		return nil
	}
	return &fs.PathError{Op: "rmdir", Path: dir, Err: err}
}

// await returns when a field of cgroup.events has the value. The kernel makes
// the file readable out of band whenever it changes.
func await(ctx context.Context, dir, key string, value int64) error {
	fd, err := open(filepath.Join(dir, "cgroup.events"), unix.O_RDONLY)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var b [256]byte
	for {
		n, err := unix.Pread(fd, b[:], 0)
		if err != nil {
			return err
		}
		if now, err := find(string(b[:n]), key); err != nil || now == value {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		// Wakes up now and then to look at the context.
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLPRI}}, 20)
	}
}

// repeat calls f until it reports true or fails, ever less often.
func repeat(ctx context.Context, f func() (bool, error)) error {
	for pause := 50 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		done, err := f()
		if done || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
	}
}
