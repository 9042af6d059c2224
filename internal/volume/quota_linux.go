package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// quotaLevel is the level of the quota groups that stand for environments,
// one that nobody else on the file system is likely to use.
const quotaLevel = 28006

// quota holds environments to a number of bytes with simple quotas: every
// extent, of data and of metadata, is charged to the subvolume that wrote it
// for as long as anything refers to it. The live state and the snapshots of an
// environment are members of one group, whose id follows from the inode of the
// environment's directory, so that nothing needs to be saved.
type quota struct {
	dir       string // of the pool
	sysfs     string // …/qgroups
	subvolume uint64 // that dir lies in
	stale     atomic.Bool
}

// openQuota returns the quota of the file system at dir. With enable it
// switches simple quotas on where they are off; without it, and where the
// kernel has none, the result is nil.
func openQuota(dir string, enable bool) (*quota, error) {
	q := &quota{dir: dir}
	err := withDir(dir, func(fd int) (err error) {
		if q.subvolume, err = subvolumeID(fd); err != nil {
			return err
		}
		base, err := sysfsDir(fd)
		if err != nil {
			return err
		}
		q.sysfs = filepath.Join(base, "qgroups")
		if q.on() || !enable {
			return nil
		}
		args := struct{ cmd, status uint64 }{cmd: quotaEnableSimple}
		err = ioctl(fd, iocQuotaCtl, unsafe.Pointer(&args))
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
			return nil // the kernel is older than 6.7
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("enable quotas: %w", err)
	}
	if !q.on() {
		return nil, nil
	}
	q.stale.Store(true) // from before, perhaps
	return q, nil
}

// on reports whether simple quotas are enabled.
func (q *quota) on() bool {
	mode, err := os.ReadFile(filepath.Join(q.sysfs, "mode"))
	return err == nil && strings.TrimSpace(string(mode)) == "squota"
}

// group is the id of the group of an environment's directory.
func (q *quota) group(envDir string) (uint64, error) {
	var st unix.Stat_t
	if err := unix.Lstat(envDir, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: envDir, Err: err}
	}
	return quotaLevel<<48 | (q.subvolume<<28^st.Ino)&(1<<48-1), nil
}

// create makes the group of an environment.
func (q *quota) create(envDir string) error {
	group, err := q.group(envDir)
	if err != nil {
		return err
	}
	return withDir(q.dir, func(fd int) error {
		args := struct{ create, id uint64 }{1, group}
		if err := ioctl(fd, iocQgroupCreate, unsafe.Pointer(&args)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("create quota group: %w", err)
		}
		return nil
	})
}

// enroll charges the tree, a subvolume, to the group of the environment.
func (q *quota) enroll(envDir, tree string) error {
	group, err := q.group(envDir)
	if err != nil {
		return err
	}
	return withDir(tree, func(fd int) error {
		id, err := subvolumeID(fd)
		if err != nil {
			return err
		}
		args := struct{ assign, src, dst uint64 }{1, id, group}
		if err := ioctl(fd, iocQgroupAssign, unsafe.Pointer(&args)); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add to quota group: %w", err)
		}
		return nil
	})
}

// limit bounds the environment's group; 0 lifts the bound.
func (q *quota) limit(envDir string, bytes int64) error {
	group, err := q.group(envDir)
	if err != nil {
		return err
	}
	return withDir(q.dir, func(fd int) error {
		args := qgroupLimit{group: group, flags: qgroupMaxReferred, maxRef: uint64(bytes)}
		if bytes <= 0 {
			args.maxRef = 1<<64 - 1 // clears it
		}
		if err := ioctl(fd, iocQgroupLimit, unsafe.Pointer(&args)); err != nil {
			return fmt.Errorf("limit quota group: %w", err)
		}
		return nil
	})
}

// read returns a counter of the environment's group.
func (q *quota) read(envDir, counter string) (int64, error) {
	group, err := q.group(envDir)
	if err != nil {
		return 0, err
	}
	name := fmt.Sprintf("%d_%d", group>>48, group&(1<<48-1))
	b, err := os.ReadFile(filepath.Join(q.sysfs, name, counter))
	if err != nil {
		return 0, fmt.Errorf("read quota group: %w", err)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read quota group: %w", err)
	}
	return int64(min(n, 1<<63-1)), nil
}

// used is what the environment's group occupies and has reserved, in bytes.
func (q *quota) used(envDir string) (int64, error) {
	referenced, err := q.read(envDir, "referenced")
	if err != nil {
		return 0, err
	}
	reserved, err := q.read(envDir, "rsv_data")
	return referenced + reserved, err
}

// limitOf is the bound of the environment's group, 0 when it has none.
func (q *quota) limitOf(envDir string) (int64, error) {
	flags, err := q.read(envDir, "limit_flags")
	if err != nil || flags&qgroupMaxReferred == 0 {
		return 0, err
	}
	return q.read(envDir, "max_referenced")
}

// sweep removes the groups of environments and of subvolumes that are gone.
// The kernel keeps a group that still has members or extents, which it has
// until the deletion of the subvolumes is through: sweeping is repeated until
// nothing is left. It reports whether something is.
func (q *quota) sweep() (left bool, err error) {
	if !q.stale.Swap(false) {
		return false, nil
	}
	err = withDir(q.dir, func(fd int) error {
		groups, err := q.gone(fd)
		if err != nil {
			return err
		}
		// Level 0 first: a group with members cannot be removed.
		for _, g := range groups {
			args := struct{ create, id uint64 }{0, g}
			err := ioctl(fd, iocQgroupCreate, unsafe.Pointer(&args))
			if err != nil && !errors.Is(err, unix.ENOENT) {
				left = true
			}
		}
		return nil
	})
	if left || err != nil {
		q.stale.Store(true)
	}
	return left, err
}

// gone lists the groups whose environment or subvolume does not exist, in
// ascending order. It reads the groups before what they stand for, so that
// one that is being made is not taken for one that is left.
func (q *quota) gone(fd int) ([]uint64, error) {
	var groups []uint64
	err := search(fd, searchKey{tree: quotaTree, minType: keyQgroup, maxType: keyQgroup}, func(it item) bool {
		if level := it.offset >> 48; level == 0 || level == quotaLevel {
			groups = append(groups, it.offset)
		}
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("list quota groups: %w", err)
	}
	keep := map[uint64]bool{}
	for _, parent := range []string{envsDir, trashDir} {
		entries, err := os.ReadDir(filepath.Join(q.dir, parent))
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if g, err := q.group(filepath.Join(q.dir, parent, e.Name())); err == nil {
				keep[g] = true
			}
		}
	}
	err = search(fd, searchKey{tree: rootTree, maxObject: 1<<64 - 1, minType: keyRoot, maxType: keyRoot},
		func(it item) bool {
			keep[it.object] = true
			return true
		})
	if err != nil {
		return nil, fmt.Errorf("list subvolumes: %w", err)
	}
	return slices.DeleteFunc(groups, func(g uint64) bool { return keep[g] }), nil
}
