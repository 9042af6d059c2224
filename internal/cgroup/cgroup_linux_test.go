package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// machine lays out the files of a pure v2 machine, which this one may not be.
func machine(t *testing.T, available string) (mountinfo, root string) {
	t.Helper()
	root = t.TempDir()
	mountinfo = filepath.Join(t.TempDir(), "mountinfo")
	put(t, mountinfo, fmt.Sprintf("25 30 0:23 / /sys rw - sysfs sysfs rw\n31 25 0:26 / %s rw,nosuid shared:4 - cgroup2 cgroup2 rw\n", root))
	put(t, filepath.Join(root, "cgroup.controllers"), available+"\n")
	put(t, filepath.Join(root, "cgroup.subtree_control"), "")
	return mountinfo, root
}

func put(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, elements ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(elements...))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// group makes a group with the files that the kernel would make in it.
func group(t *testing.T, dir string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"cgroup.subtree_control", "memory.max", "memory.swap.max", "cpu.max", "pids.max"} {
		put(t, filepath.Join(dir, f), "")
	}
}

func TestLimitsAreWrittenInTheUnifiedHierarchy(t *testing.T) {
	mountinfo, root := machine(t, "cpuset cpu io memory pids")
	tree, err := Open(Options{Installation: "i", Mountinfo: mountinfo})
	if err != nil {
		t.Fatal(err)
	}
	env := filepath.Join(root, "mayfly-i", "env-1")
	group(t, filepath.Dir(env))
	group(t, env)
	if err := tree.Create("env-1", mayfly.Limits{CPU: 1.5, Memory: 1 << 30, PIDs: 100}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{
		"memory.max": "1073741824", "memory.swap.max": "0", "cpu.max": "150000 100000", "pids.max": "100",
	} {
		if got := get(t, env, file); got != want {
			t.Errorf("%s: got = %q, want %q", file, got, want)
		}
	}
	put(t, filepath.Join(env, "memory.current"), "4096\n")
	put(t, filepath.Join(env, "pids.current"), "7\n")
	put(t, filepath.Join(env, "memory.events"), "low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\n")
	put(t, filepath.Join(env, "cpu.stat"), "usage_usec 2500\nuser_usec 2000\n")
	cpu, memory, tasks, killed, err := tree.Usage("env-1")
	if err != nil || cpu != 2500*time.Microsecond || memory != 4096 || tasks != 7 || killed != 1 {
		t.Errorf("usage: got = %v %d %d %d %v", cpu, memory, tasks, killed, err)
	}
}

func TestControllersAreHandedDown(t *testing.T) {
	mountinfo, root := machine(t, "cpu memory pids")
	delegated := filepath.Join(root, "system.slice", "mayfly.service")
	group(t, delegated)
	put(t, filepath.Join(delegated, "cgroup.controllers"), "cpu memory pids\n")
	tree, err := Open(Options{Installation: "i", Root: "/system.slice/mayfly.service", Mountinfo: mountinfo})
	if err != nil {
		t.Fatal(err)
	}
	// Of the parent the kernel would make the file as soon as it is there.
	parent := filepath.Join(delegated, "mayfly-i")
	group(t, parent)
	if err := tree.delegate(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{delegated, parent} {
		if got := get(t, dir, "cgroup.subtree_control"); got != "+memory +cpu +pids" {
			t.Errorf("%s: got = %q, want all three", dir, got)
		}
	}
	if got := get(t, root, "cgroup.subtree_control"); got != "" {
		t.Errorf("above the delegated group: got = %q, want untouched", got)
	}
}

func TestMachineWithoutControllersIsUnsupported(t *testing.T) {
	mountinfo, _ := machine(t, "cpu memory")
	_, err := Open(Options{Installation: "i", Mountinfo: mountinfo})
	if !errors.Is(err, errors.ErrUnsupported) || mayfly.KindOf(err) != mayfly.Unsupported || !strings.Contains(err.Error(), "pids") {
		t.Errorf("got = %v, want pids unsupported", err)
	}
}

func TestBadNamesAreRefused(t *testing.T) {
	mountinfo, _ := machine(t, "cpu memory pids")
	if _, err := Open(Options{Installation: "../x", Mountinfo: mountinfo}); err == nil {
		t.Error("installation accepted")
	}
	tree, err := Open(Options{Installation: "i", Mountinfo: mountinfo})
	if err != nil {
		t.Fatal(err)
	}
	for _, bad := range []string{"", "..", "a/b", "-a", strings.Repeat("a", 65)} {
		if err := tree.Create(bad, mayfly.Limits{}); err == nil {
			t.Errorf("create %q: accepted", bad)
		}
		if err := tree.Remove(t.Context(), bad); err == nil {
			t.Errorf("remove %q: accepted", bad)
		}
	}
}

// trees opens the machine's own hierarchies, and, where it has them, those of
// v1 alone.
func trees(t *testing.T) map[string]*Tree {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("control groups need root")
	}
	name := "cgtest" + strconv.Itoa(os.Getpid())
	own, err := Open(Options{Installation: name})
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*Tree{"own": own}
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	v1 := slices.DeleteFunc(strings.Split(string(b), "\n"), func(l string) bool { return strings.Contains(l, " - cgroup2 ") })
	path := filepath.Join(t.TempDir(), "mountinfo")
	put(t, path, strings.Join(v1, "\n"))
	if only, err := Open(Options{Installation: name + "v1", Mountinfo: path}); err == nil {
		all["v1"] = only
	}
	for _, tree := range all {
		t.Cleanup(func() {
			ctx := context.Background()
			names, _ := tree.List()
			for _, env := range names {
				if err := errors.Join(tree.Kill(ctx, env), tree.Remove(ctx, env)); err != nil {
					t.Error(err)
				}
			}
			tree.Close()
			for _, parent := range tree.parents() {
				if _, err := os.Stat(parent); err == nil {
					t.Errorf("%s is left", parent)
				}
			}
		})
	}
	return all
}

// enter starts a command inside the groups of env, as the launcher does.
func enter(t *testing.T, tree *Tree, env string, argv ...string) *exec.Cmd {
	t.Helper()
	in, out, err := tree.Doors(env)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(in)
	defer closeAll(out)
	c := exec.Command(argv[0], argv[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{}
	dir, err := tree.Directory(env)
	if err != nil {
		t.Fatal(err)
	}
	if dir != nil {
		defer dir.Close()
		c.SysProcAttr.UseCgroupFD, c.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, f := range in {
		if _, err := f.WriteString("0"); err != nil {
			t.Fatal(err)
		}
	}
	err = c.Start()
	for _, f := range out {
		if _, err := f.WriteString("0"); err != nil {
			t.Fatal(err)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestProcessIsBornInItsGroups(t *testing.T) {
	for name, tree := range trees(t) {
		t.Run(name, func(t *testing.T) {
			if err := tree.Create("env-1", mayfly.Limits{CPU: 1, Memory: 64 << 20, PIDs: 20}); err != nil {
				t.Fatal(err)
			}
			before := get(t, "/proc/self/cgroup")
			c := enter(t, tree, "env-1", "sleep", "1000")
			defer c.Wait()
			if after := get(t, "/proc/self/cgroup"); after != before {
				t.Errorf("this process moved: got = %q, want %q", after, before)
			}
			for _, dir := range tree.dirs("env-1") {
				if got := get(t, dir, "cgroup.procs"); got != strconv.Itoa(c.Process.Pid) {
					t.Errorf("%s: got = %q, want %d", dir, got, c.Process.Pid)
				}
			}
			exists, populated, frozen, err := tree.Look("env-1")
			if !exists || !populated || frozen || err != nil {
				t.Errorf("look: got = %v %v %v %v, want a live group", exists, populated, frozen, err)
			}
			_, memory, tasks, _, err := tree.Usage("env-1")
			if err != nil || tasks != 1 || memory <= 0 {
				t.Errorf("usage: got = %d bytes, %d tasks, %v, want one task", memory, tasks, err)
			}
			if got := get(t, tree.group("pids", "env-1"), "pids.max"); got != "20" {
				t.Errorf("pids.max: got = %s, want 20", got)
			}
			if err := tree.Kill(t.Context(), "env-1"); err != nil {
				t.Fatal(err)
			}
			exists, populated, _, err = tree.Look("env-1")
			if !exists || populated || err != nil {
				t.Errorf("after kill: got = %v %v %v, want an empty group", exists, populated, err)
			}
			for range 2 {
				if err := tree.Remove(t.Context(), "env-1"); err != nil {
					t.Errorf("remove: %v", err)
				}
			}
			if names, err := tree.List(); err != nil || len(names) != 0 {
				t.Errorf("list: got = %v %v, want none", names, err)
			}
		})
	}
}

func TestFrozenGroupStandsStillAndCanBeKilled(t *testing.T) {
	for name, tree := range trees(t) {
		t.Run(name, func(t *testing.T) {
			if err := tree.Create("env-1", mayfly.Limits{}); err != nil {
				t.Fatal(err)
			}
			c := enter(t, tree, "env-1", "sh", "-c", "while :; do :; done")
			defer c.Wait()
			used := func() int64 {
				b := get(t, "/proc", strconv.Itoa(c.Process.Pid), "stat")
				f := strings.Fields(b[strings.LastIndex(b, ")")+1:])
				n, _ := strconv.ParseInt(f[11], 10, 64)
				return n
			}
			for range 2 {
				if err := tree.Freeze(t.Context(), "env-1"); err != nil {
					t.Fatal(err)
				}
			}
			before := used()
			time.Sleep(100 * time.Millisecond)
			if after := used(); after != before {
				t.Errorf("ticks while frozen: got = %d, want %d", after, before)
			}
			if _, _, frozen, err := tree.Look("env-1"); !frozen || err != nil {
				t.Errorf("look: got = %v %v, want frozen", frozen, err)
			}
			if err := tree.Thaw(t.Context(), "env-1"); err != nil {
				t.Fatal(err)
			}
			for deadline := time.Now().Add(10 * time.Second); used() == before; {
				if time.Now().After(deadline) {
					t.Fatal("stands still after thaw")
				}
				time.Sleep(time.Millisecond)
			}
			if err := tree.Freeze(t.Context(), "env-1"); err != nil {
				t.Fatal(err)
			}
			if err := tree.Kill(t.Context(), "env-1"); err != nil {
				t.Errorf("kill while frozen: %v", err)
			}
		})
	}
}

func TestKillOutrunsForks(t *testing.T) {
	for name, tree := range trees(t) {
		t.Run(name, func(t *testing.T) {
			if err := tree.Create("env-1", mayfly.Limits{PIDs: 60}); err != nil {
				t.Fatal(err)
			}
			c := enter(t, tree, "env-1", "bash", "-c", ":(){ :|:& };:; while :; do sleep 100 & done")
			defer c.Wait()
			time.Sleep(50 * time.Millisecond)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			if err := tree.Kill(ctx, "env-1"); err != nil {
				t.Fatal(err)
			}
			if err := tree.Remove(ctx, "env-1"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestGroupsBelowAreRemovedToo(t *testing.T) {
	for name, tree := range trees(t) {
		t.Run(name, func(t *testing.T) {
			if err := tree.Create("env-1", mayfly.Limits{}); err != nil {
				t.Fatal(err)
			}
			for _, dir := range tree.dirs("env-1") {
				if err := os.MkdirAll(filepath.Join(dir, "a", "b"), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if err := tree.Remove(t.Context(), "env-1"); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestMissingGroupIsNotExist(t *testing.T) {
	for name, tree := range trees(t) {
		t.Run(name, func(t *testing.T) {
			if exists, _, _, err := tree.Look("env-1"); exists || err != nil {
				t.Errorf("look: got = %v %v, want nothing", exists, err)
			}
			_, _, _, _, err := tree.Usage("env-1")
			for what, err := range map[string]error{
				"usage": err, "freeze": tree.Freeze(t.Context(), "env-1"), "thaw": tree.Thaw(t.Context(), "env-1"),
			} {
				if !errors.Is(err, os.ErrNotExist) {
					t.Errorf("%s: got = %v, want not exist", what, err)
				}
			}
			if err := errors.Join(tree.Kill(t.Context(), "env-1"), tree.Remove(t.Context(), "env-1")); err != nil {
				t.Errorf("kill and remove: %v", err)
			}
		})
	}
}

func TestOutOfMemoryIsCounted(t *testing.T) {
	for name, tree := range trees(t) {
		t.Run(name, func(t *testing.T) {
			if err := tree.Create("env-1", mayfly.Limits{Memory: 16 << 20}); err != nil {
				t.Fatal(err)
			}
			c := enter(t, tree, "env-1", "tail", "/dev/zero")
			if err := c.Wait(); err == nil || c.ProcessState.Sys().(syscall.WaitStatus).Signal() != unix.SIGKILL {
				t.Errorf("got = %v, want killed", err)
			}
			if _, _, _, killed, err := tree.Usage("env-1"); killed != 1 || err != nil {
				t.Errorf("got = %d %v, want 1", killed, err)
			}
			f, err := tree.OpenKills("env-1")
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			b := make([]byte, 1000)
			n, _ := f.Read(b)
			if !strings.Contains(string(b[:n]), "oom_kill 1\n") {
				t.Errorf("got = %q, want oom_kill 1", b[:n])
			}
		})
	}
}
