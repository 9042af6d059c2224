package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"mayfly.dev/mayfly"
)

// idleEnvironments measures what an environment costs that does nothing: the
// memory of its processes, what the server grows by, and what the machine has
// less, which includes the kernel's share.
func (b *bench) idleEnvironments(ctx context.Context) error {
	template, dir, err := b.base(ctx)
	if err != nil {
		return err
	}
	info, err := b.Info(ctx)
	if err != nil {
		return err
	}
	before, err := available()
	if err != nil {
		return err
	}
	serverBefore, err := memoryOf(info.PID, "Pss:")
	if err != nil {
		return err
	}
	var ids []string
	began := time.Now()
	for range b.idle {
		e, err := b.CreateEnvironment(ctx, mayfly.CreateEnvironment{Template: template})
		if err != nil {
			return fmt.Errorf("environment %d: %w", len(ids)+1, err)
		}
		ids = append(ids, e.ID)
	}
	took := time.Since(began)
	after, err := available()
	if err != nil {
		return err
	}
	serverAfter, err := memoryOf(info.PID, "Pss:")
	if err != nil {
		return err
	}
	own, err := memoryBelow(info.PID)
	if err != nil {
		return err
	}
	for _, id := range ids {
		if _, err := b.DeleteEnvironment(ctx, id); err != nil {
			return err
		}
	}
	wrap, err := b.idleBubblewraps(ctx, dir)
	if err != nil {
		return err
	}
	n := float64(b.idle)
	each := func(what string, bytes float64) Result {
		return Result{Name: fmt.Sprintf("idle x%d: %s", b.idle, what), Unit: "KB", Value: round(bytes / n / 1024), OK: true}
	}
	b.report(each("memory, PSS", own).against("bwrap", wrap/1024))
	b.report(each("server", serverAfter-serverBefore))
	b.report(each("machine", before-after))
	b.report(Result{Name: fmt.Sprintf("idle x%d: create", b.idle), Unit: "ms", Value: round(milliseconds(took) / n), OK: true})
	return nil
}

// idleBubblewraps is the memory of one idle bubblewrap with a sleep in it, in
// bytes.
func (b *bench) idleBubblewraps(ctx context.Context, dir string) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	before, err := memoryBelow(os.Getpid())
	if err != nil {
		return 0, err
	}
	for range b.baseIdle {
		cmd := bwrap(ctx, dir, "sleep", "300")
		if err := cmd.Start(); err != nil {
			return 0, fmt.Errorf("bwrap: %w", err)
		}
		defer cmd.Wait()
		defer cancel()
	}
	time.Sleep(time.Second)
	total, err := memoryBelow(os.Getpid())
	return (total - before) / float64(b.baseIdle), err
}

// descendants are the processes that a process has started, and those that
// they have.
func descendants(root int) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// The command's name, in parentheses, may hold anything; the parent
		// follows the state after it.
		stat, err := os.ReadFile(filepath.Join("/proc", e.Name(), "stat"))
		if err != nil {
			continue
		}
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
		if len(fields) > 1 {
			parent, _ := strconv.Atoi(fields[1])
			children[parent] = append(children[parent], pid)
		}
	}
	found := children[root]
	for i := 0; i < len(found); i++ {
		found = append(found, children[found[i]]...)
	}
	return found, nil
}

// memoryBelow adds up the memory of a process's descendants, in bytes.
func memoryBelow(root int) (float64, error) {
	pids, err := descendants(root)
	if err != nil {
		return 0, err
	}
	var total float64
	for _, pid := range pids {
		n, err := memoryOf(pid, "Pss:")
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			continue
		}
		if err != nil {
			return 0, err
		}
		total += n
	}
	return total, nil
}

// memoryOf reads a field of a process's smaps_rollup, in bytes. A process
// that has ended is fs.ErrNotExist or counts nothing.
func memoryOf(pid int, field string) (float64, error) {
	return kilobytes(filepath.Join("/proc", strconv.Itoa(pid), "smaps_rollup"), field)
}

// available is how much memory the machine could give away, in bytes, after
// what the kernel holds only for speed is gone.
func available() (float64, error) {
	if err := os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0); err != nil && !errors.Is(err, fs.ErrPermission) {
		return 0, fmt.Errorf("drop caches: %w", err)
	}
	return kilobytes("/proc/meminfo", "MemAvailable:")
}

func kilobytes(path, field string) (float64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), field); ok {
			n, err := strconv.ParseFloat(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 64)
			return n * 1024, err
		}
	}
	// Kernel threads and processes at their end have no such field.
	return 0, nil
}
