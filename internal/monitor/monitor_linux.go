// Package monitor tells which programs are started in environments, as the
// kernel sees it: nothing inside can hide from it or pretend. What runs under
// gVisor is no process of the kernel's and cannot be seen.
package monitor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// Options configure Open.
type Options struct {
	Buffer int // bytes for records that nobody has read yet, a power of two; 0: 1 MiB
}

// defaultBuffer holds some ten thousand starts of programs with a short line.
const defaultBuffer = 1 << 20

// maxWatched is how many control groups can be watched at a time.
const maxWatched = 4096

// Monitor watches control groups. Its methods may be called concurrently.
type Monitor struct {
	maps    maps
	program *ebpf.Program
	link    link.Link
	reader  *ringbuf.Reader

	mu      sync.Mutex
	last    uint64            // number of the last watch
	watches map[uint64]string // number to environment
	groups  map[string]group  // by environment
	ended   []uint64          // watches whose last records may still be unread
}

// group is a watched control group.
type group struct{ id, watch uint64 }

// Open loads the program that sees starts of programs into the kernel, where
// it stays until Close or the end of this process. The error is
// errors.ErrUnsupported, and says what is missing, where that cannot be.
func Open(o Options) (_ *Monitor, err error) {
	m := &Monitor{watches: map[uint64]string{}, groups: map[string]group{}}
	defer func() {
		if err != nil {
			m.Close()
		}
	}()
	places, err := findOffsets()
	if err != nil {
		return nil, unsupported("the kernel does not describe its types (CONFIG_DEBUG_INFO_BTF)", err)
	}
	if o.Buffer == 0 {
		o.Buffer = defaultBuffer
	}
	if err := m.maps.open(uint32(o.Buffer)); err != nil {
		return nil, unsupported("BPF maps cannot be made", err)
	}
	m.program, err = ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "mayfly_exec", Type: ebpf.RawTracepoint, License: "GPL", Instructions: onExec(m.maps, places),
	})
	if err != nil {
		return nil, unsupported("the BPF program cannot be loaded", err)
	}
	m.link, err = link.AttachRawTracepoint(link.RawTracepointOptions{Name: "sched_process_exec", Program: m.program})
	if err != nil {
		return nil, unsupported("the tracepoint sched_process_exec cannot be used", err)
	}
	if m.reader, err = ringbuf.NewReader(m.maps.ring); err != nil {
		return nil, fmt.Errorf("open monitor: %w", err)
	}
	return m, nil
}

// unsupported explains what a machine lacks; what has another reason stays an
// error of its own.
func unsupported(missing string, err error) error {
	for _, reason := range []error{ebpf.ErrNotSupported, fs.ErrNotExist, unix.EPERM, unix.EACCES, unix.ENOSYS, unix.EINVAL, unix.ENOENT} {
		if errors.Is(err, reason) {
			return mayfly.Errorf(mayfly.Unsupported, "watching processes: %s: %w", missing, errors.Join(errors.ErrUnsupported, err)).
				Hint("it takes root with CAP_BPF and CAP_PERFMON, and Linux 5.8 or newer with BPF and BTF built in")
		}
	}
	return fmt.Errorf("open monitor: %s: %w", missing, err)
}

func (m *maps) open(buffer uint32) error {
	for _, s := range []struct {
		to   **ebpf.Map
		spec ebpf.MapSpec
	}{
		{&m.watched, ebpf.MapSpec{Name: "mayfly_watched", Type: ebpf.Hash, KeySize: 8, ValueSize: 8, MaxEntries: maxWatched}},
		{&m.ring, ebpf.MapSpec{Name: "mayfly_ring", Type: ebpf.RingBuf, MaxEntries: buffer}},
		{&m.scratch, ebpf.MapSpec{Name: "mayfly_scratch", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: recordSize, MaxEntries: 1}},
		{&m.lost, ebpf.MapSpec{Name: "mayfly_lost", Type: ebpf.PerCPUArray, KeySize: 4, ValueSize: 8, MaxEntries: 1}},
	} {
		opened, err := ebpf.NewMap(&s.spec)
		if err != nil {
			return err
		}
		*s.to = opened
	}
	return nil
}

// Close ends the watching; Run returns.
func (m *Monitor) Close() error {
	var errs []error
	if m.link != nil {
		errs = append(errs, m.link.Close())
	}
	if m.reader != nil {
		errs = append(errs, m.reader.Close())
	}
	if m.program != nil {
		errs = append(errs, m.program.Close())
	}
	for _, opened := range []*ebpf.Map{m.maps.watched, m.maps.ring, m.maps.scratch, m.maps.lost} {
		if opened != nil {
			errs = append(errs, opened.Close())
		}
	}
	return errors.Join(errs...)
}

// Watch begins to tell of an environment: of the processes in a control group
// of the unified hierarchy and in those below it. Watching it again replaces
// the group. The error is errors.ErrUnsupported when the path is not in the
// unified hierarchy.
func (m *Monitor) Watch(env, cgroup string) error {
	id, err := groupID(cgroup)
	if err != nil {
		return fmt.Errorf("watch environment %s: %w", env, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.groups[env].id == id {
		return nil
	}
	if err := m.forget(env); err != nil {
		return fmt.Errorf("watch environment %s: %w", env, err)
	}
	m.last++
	if err := m.maps.watched.Put(id, m.last); err != nil {
		return fmt.Errorf("watch environment %s: %w", env, err)
	}
	m.groups[env] = group{id, m.last}
	m.watches[m.last] = env
	return nil
}

// Unwatch ends it. What happened before is still told. Ending what was not
// begun is not an error.
func (m *Monitor) Unwatch(env string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.forget(env); err != nil {
		return fmt.Errorf("unwatch environment %s: %w", env, err)
	}
	return nil
}

func (m *Monitor) forget(env string) error {
	g, ok := m.groups[env]
	if !ok {
		return nil
	}
	if err := m.maps.watched.Delete(g.id); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	delete(m.groups, env)
	m.ended = append(m.ended, g.watch)
	return nil
}

// groupID returns the id of a control group, which is its inode number, see
// cgroups(7).
func groupID(dir string) (uint64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	if int64(st.Type) != unix.CGROUP2_SUPER_MAGIC {
		return 0, mayfly.Errorf(mayfly.Unsupported, "%s is no control group of the unified hierarchy: %w", dir, errors.ErrUnsupported).
			Hint("mount it: mount -t cgroup2 none /sys/fs/cgroup")
	}
	if n := depth(dir); n > maxDepth {
		return 0, mayfly.Errorf(mayfly.Unsupported, "%s lies %d groups deep, %d at most: %w", dir, n, maxDepth, errors.ErrUnsupported)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return 0, err
	}
	return info.Sys().(*syscall.Stat_t).Ino, nil
}

// depth is how many groups lie between the hierarchy's mount and a directory.
func depth(dir string) int {
	n := 0
	for dir = filepath.Clean(dir); dir != "/"; n++ {
		dir = filepath.Dir(dir)
		var st unix.Statfs_t
		if unix.Statfs(dir, &st) != nil || int64(st.Type) != unix.CGROUP2_SUPER_MAGIC {
			break
		}
	}
	return n
}

// Run tells of every start of a program in a watched environment, in the
// order of the buffer, until ctx ends or the monitor is closed. One Run at a
// time.
func (m *Monitor) Run(ctx context.Context, tell func(Exec)) error {
	defer context.AfterFunc(ctx, func() { m.reader.Flush() })() // wakes the reader up
	var raw ringbuf.Record
	for {
		err := m.reader.ReadInto(&raw)
		if errors.Is(err, ringbuf.ErrClosed) || ctx.Err() != nil && errors.Is(err, ringbuf.ErrFlushed) {
			return nil
		}
		if errors.Is(err, ringbuf.ErrFlushed) {
			continue // of a Run before this one
		}
		if err != nil {
			return fmt.Errorf("read what was started: %w", err)
		}
		r, err := parse(raw.RawSample)
		if err != nil {
			return fmt.Errorf("read what was started: %w", err)
		}
		if env := m.environment(r.watch); env != "" {
			r.exec.Environment = env
			r.exec.Time = wall(r.time)
			tell(r.exec)
		}
	}
}

// environment returns whose watch it is, and forgets those that have ended
// when everything is read.
func (m *Monitor) environment(watch uint64) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	env := m.watches[watch]
	if len(m.ended) > 0 && m.reader.AvailableBytes() == 0 {
		for _, n := range m.ended {
			delete(m.watches, n)
		}
		m.ended = nil
	}
	return env
}

// wall turns a time of CLOCK_MONOTONIC into one of day.
func wall(monotonic uint64) time.Time {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return time.Now().UTC()
	}
	return time.Now().Add(time.Duration(int64(monotonic) - now.Nano())).UTC()
}

// Lost is how many starts of programs were not told, because nobody read fast
// enough.
func (m *Monitor) Lost() (uint64, error) {
	var counts []uint64
	if err := m.maps.lost.Lookup(uint32(0), &counts); err != nil {
		return 0, fmt.Errorf("count what was lost: %w", err)
	}
	var n uint64
	for _, c := range counts {
		n += c
	}
	stats, err := m.program.Stats()
	if err != nil {
		return 0, fmt.Errorf("count what was lost: %w", err)
	}
	return n + stats.RecursionMisses, nil
}
