package cgroup

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// period is over what time CPU is measured out, in microseconds; both
// versions have it as their default.
const period = 100_000

// limit writes the limits that are not zero.
func (t *Tree) limit(env string, l mayfly.Limits) error {
	var errs []error
	if l.Memory > 0 {
		errs = append(errs, t.limitMemory(env, l.Memory))
	}
	if l.CPU > 0 {
		errs = append(errs, t.limitCPU(env, l.CPU))
	}
	if l.PIDs > 0 {
		errs = append(errs, write(t.group("pids", env), "pids.max", strconv.FormatInt(l.PIDs, 10)))
	}
	return errors.Join(errs...)
}

// limitMemory allows no swap on top of the memory, so that the limit is what
// it says. Kernels without swap accounting lack the second file.
func (t *Tree) limitMemory(env string, bytes int64) error {
	dir, limit := t.group("memory", env), strconv.FormatInt(bytes, 10)
	if _, v1 := t.v1["memory"]; !v1 {
		return errors.Join(
			write(dir, "memory.max", limit),
			optional(write(dir, "memory.swap.max", "0")))
	}
	// The limit with swap must never be below the one without: of a new group,
	// which has none, it comes second, and when both are raised, first.
	err := write(dir, "memory.limit_in_bytes", limit)
	if swap := optional(write(dir, "memory.memsw.limit_in_bytes", limit)); swap != nil {
		return errors.Join(err, swap)
	}
	if errors.Is(err, unix.EINVAL) {
		err = write(dir, "memory.limit_in_bytes", limit)
	}
	return err
}

func (t *Tree) limitCPU(env string, cores float64) error {
	// The kernel refuses quotas below a millisecond.
	quota := strconv.FormatInt(max(int64(math.Round(cores*period)), 1000), 10)
	dir := t.group("cpu", env)
	if _, v1 := t.v1["cpu"]; !v1 {
		return write(dir, "cpu.max", quota+" "+strconv.Itoa(period))
	}
	return write(dir, "cpu.cfs_quota_us", quota)
}

// optional forgives a file that is not there.
func optional(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Usage reads the counters of an environment's groups: CPU time used, bytes
// of memory and tasks now, and how many processes were killed for memory. The
// error is fs.ErrNotExist when the groups are not there.
func (t *Tree) Usage(env string) (cpu time.Duration, memory, tasks, killed int64, err error) {
	var errs [4]error
	if t.v2 != "" {
		// There even without the cpu controller.
		var µs int64
		µs, errs[0] = field(filepath.Join(t.v2, env), "cpu.stat", "usage_usec")
		cpu = time.Duration(µs) * time.Microsecond
	} else {
		var ns int64
		ns, errs[0] = number(t.group("cpuacct", env), "cpuacct.usage")
		cpu = time.Duration(ns)
	}
	dir := t.group("memory", env)
	if _, v1 := t.v1["memory"]; v1 {
		memory, errs[1] = number(dir, "memory.usage_in_bytes")
	} else {
		memory, errs[1] = number(dir, "memory.current")
	}
	killed, errs[2] = field(dir, t.kills(), "oom_kill")
	tasks, errs[3] = number(t.group("pids", env), "pids.current")
	return cpu, memory, tasks, killed, errors.Join(errs[:]...)
}

// kills names the file with a line "oom_kill <n>".
func (t *Tree) kills() string {
	if _, v1 := t.v1["memory"]; v1 {
		return "memory.oom_control"
	}
	return "memory.events"
}

// OpenKills opens the file that counts processes killed for memory, in a line
// "oom_kill <n>", for reading.
func (t *Tree) OpenKills(env string) (*os.File, error) {
	return openFile(filepath.Join(t.group("memory", env), t.kills()), unix.O_RDONLY)
}

// number reads a file that holds one number.
func number(dir, name string) (int64, error) {
	s, err := read(dir, name)
	if err != nil {
		return 0, err
	}
	return strconv.ParseInt(strings.TrimSpace(s), 10, 64)
}

// field reads one number of a file that has one per line, after its name.
func field(dir, name, key string) (int64, error) {
	s, err := read(dir, name)
	if err != nil {
		return 0, err
	}
	return find(s, key)
}

func find(text, key string) (int64, error) {
	for line := range strings.Lines(text) {
		k, v, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok && k == key {
			return strconv.ParseInt(v, 10, 64)
		}
	}
	return 0, errors.New("no line " + key)
}
