package volume

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The ioctls of btrfs that a pool needs; linux/btrfs.h and
// linux/btrfs_tree.h define them.
const (
	iocResize        = 0x50009403
	iocSubvolCreate  = 0x5000940e
	iocTreeSearchV2  = 0xc0709411
	iocInoLookup     = 0xd0009412
	iocSnapCreateV2  = 0x50009417
	iocDevInfo       = 0xd000941e
	iocFSInfo        = 0x8400941f
	iocQuotaCtl      = 0xc0109428
	iocQgroupAssign  = 0x40189429
	iocQgroupCreate  = 0x4010942a
	iocQgroupLimit   = 0x8030942b
	iocSnapDestroyV2 = 0x5000943f
	iocSubvolInfo    = 0x81f8943c
	iocTrim          = 0xc0185879 // FITRIM of linux/fs.h

	subvolReadOnly      = 1 << 1
	subvolQgroupInherit = 1 << 2
	subvolByID          = 1 << 4

	quotaEnableSimple = 4
	qgroupMaxReferred = 1

	rootTree   = 1
	quotaTree  = 8
	firstInode = 256 // of every subvolume: its root directory

	keyRoot    = 132
	keyRootRef = 156
	keyQgroup  = 242 // QGROUP_INFO
)

// volArgs is struct btrfs_ioctl_vol_args; volArgsV2 is btrfs_ioctl_vol_args_v2
// with its unions spelled out.
type volArgs struct {
	fd   int64
	name [4088]byte
}

type volArgsV2 struct {
	fd      int64
	transid uint64
	flags   uint64
	size    uint64
	inherit uint64 // address of a qgroupInherit
	_       [2]uint64
	name    [4040]byte // or, by id, a uint64
}

// qgroupInherit is struct btrfs_qgroup_inherit with room for one group.
type qgroupInherit struct {
	flags, groups, refCopies, exclCopies uint64
	limit                                [5]uint64
	group                                uint64
}

type qgroupLimit struct {
	group                                   uint64
	flags, maxRef, maxExcl, rsvRef, rsvExcl uint64
}

type devInfo struct {
	devid       uint64
	uuid        [16]byte
	used, total uint64 // bytes
	_           [378]uint64
	_           [8]byte
	path        [1024]byte
}

type fsInfo struct {
	maxID, devices uint64
	fsid           [16]byte
	_              [992]byte
}

type searchKey struct {
	tree                     uint64
	minObject, maxObject     uint64
	minOffset, maxOffset     uint64
	minTransid, maxTransid   uint64
	minType, maxType, nItems uint32
	_                        uint32
	_                        [4]uint64
}

type searchArgs struct {
	key  searchKey
	size uint64
	buf  [4096]byte
}

// item is one found by search: its key and content.
type item struct {
	object, offset uint64
	kind           uint32
	data           []byte
}

func ioctl(fd int, request uint, arg unsafe.Pointer) error {
	for {
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), uintptr(request), uintptr(arg))
		if errno == unix.EINTR {
			continue
		}
		if errno != 0 {
			return errno
		}
		return nil
	}
}

// withDir calls fn with a descriptor of the directory.
func withDir(dir string, fn func(fd int) error) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(fd)
	return fn(fd)
}

// createSubvolume makes an empty subvolume at path, mode 0755.
func createSubvolume(path string) error {
	return withDir(filepath.Dir(path), func(fd int) error {
		var a volArgs
		copy(a.name[:len(a.name)-1], filepath.Base(path))
		if err := ioctl(fd, iocSubvolCreate, unsafe.Pointer(&a)); err != nil {
			return &fs.PathError{Op: "create subvolume", Path: path, Err: err}
		}
		return os.Chmod(path, 0o755)
	})
}

// snapshotSubvolume makes dst a snapshot of the subvolume src, as a member of
// the quota group when that is not 0. It is on disk when it returns.
func snapshotSubvolume(src, dst string, readOnly bool, group uint64) error {
	return withDir(src, func(from int) error {
		return withDir(filepath.Dir(dst), func(fd int) error {
			a := volArgsV2{fd: int64(from)}
			copy(a.name[:len(a.name)-1], filepath.Base(dst))
			if readOnly {
				a.flags |= subvolReadOnly
			}
			if group != 0 {
				var pin runtime.Pinner
				defer pin.Unpin()
				inherit := &qgroupInherit{groups: 1, group: group}
				pin.Pin(inherit)
				a.flags |= subvolQgroupInherit
				a.size = uint64(unsafe.Sizeof(*inherit))
				a.inherit = uint64(uintptr(unsafe.Pointer(inherit)))
			}
			if err := ioctl(fd, iocSnapCreateV2, unsafe.Pointer(&a)); err != nil {
				return &fs.PathError{Op: "snapshot to", Path: dst, Err: err}
			}
			return nil
		})
	})
}

// destroySubvolume deletes the subvolume name of the directory, with all the
// subvolumes in it. The space comes back a moment later.
func destroySubvolume(dirfd int, name string) error {
	var a volArgsV2
	if len(name) >= len(a.name) {
		return unix.ENAMETOOLONG
	}
	copy(a.name[:], name)
	err := ioctl(dirfd, iocSnapDestroyV2, unsafe.Pointer(&a))
	if !errors.Is(err, unix.ENOTEMPTY) {
		return err
	}
	if err := destroyNested(dirfd, name); err != nil {
		return err
	}
	return ioctl(dirfd, iocSnapDestroyV2, unsafe.Pointer(&a))
}

// destroyNested deletes the subvolumes below one. They are made by whoever may
// write into a database directory, which lies on btrfs itself.
func destroyNested(dirfd int, name string) error {
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	top, err := subvolumeID(fd)
	if err != nil {
		return err
	}
	// Breadth first, then deleted from the end: children before parents.
	ids := []uint64{top}
	for i := 0; i < len(ids); i++ {
		err := search(fd, searchKey{tree: rootTree, minObject: ids[i], maxObject: ids[i],
			minType: keyRootRef, maxType: keyRootRef}, func(it item) bool {
			ids = append(ids, it.offset)
			return true
		})
		if err != nil {
			return fmt.Errorf("list nested subvolumes: %w", err)
		}
	}
	for i := len(ids) - 1; i > 0; i-- {
		a := volArgsV2{flags: subvolByID}
		binary.NativeEndian.PutUint64(a.name[:], ids[i])
		if err := ioctl(fd, iocSnapDestroyV2, unsafe.Pointer(&a)); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete nested subvolume %d: %w", ids[i], err)
		}
	}
	return nil
}

// subvolumeID is the id of the subvolume that the open directory lies in.
func subvolumeID(fd int) (uint64, error) {
	var a struct {
		tree, object uint64
		name         [4080]byte
	}
	a.object = firstInode
	if err := ioctl(fd, iocInoLookup, unsafe.Pointer(&a)); err != nil {
		return 0, fmt.Errorf("look up subvolume: %w", err)
	}
	return a.tree, nil
}

// search calls fn with every item between the key's bounds, whose maximal
// offset and transaction are unlimited when 0, until fn returns false. Tree 0
// is the subvolume of fd.
func search(fd int, key searchKey, fn func(item) bool) error {
	if key.maxOffset == 0 {
		key.maxOffset = math.MaxUint64
	}
	if key.maxTransid == 0 {
		key.maxTransid = math.MaxUint64
	}
	a := new(searchArgs)
	for {
		a.key = key
		a.key.nItems = math.MaxUint32
		a.size = uint64(len(a.buf))
		if err := ioctl(fd, iocTreeSearchV2, unsafe.Pointer(a)); err != nil {
			return err
		}
		if a.key.nItems == 0 {
			return nil
		}
		var last item
		for b, n := a.buf[:], a.key.nItems; n > 0; n-- {
			if len(b) < 32 {
				return errors.New("btrfs: truncated search result")
			}
			size := int(binary.NativeEndian.Uint32(b[28:]))
			if len(b) < 32+size {
				return errors.New("btrfs: truncated search result")
			}
			last = item{object: binary.NativeEndian.Uint64(b[8:]), offset: binary.NativeEndian.Uint64(b[16:]),
				kind: binary.NativeEndian.Uint32(b[24:]), data: b[32 : 32+size]}
			if last.kind >= key.minType && last.kind <= key.maxType && !fn(last) {
				return nil
			}
			b = b[32+size:]
		}
		// The next key in order: offset, then type, then object.
		key.minObject, key.minType, key.minOffset = last.object, last.kind, last.offset+1
		if key.minOffset == 0 {
			if key.minType++; key.minType > 255 {
				key.minType, key.minObject = 0, key.minObject+1
			}
		}
		if key.minObject > key.maxObject || key.minObject == key.maxObject && key.minType > key.maxType {
			return nil
		}
	}
}

// deviceInfo describes the first device of the file system; its used bytes
// are those given to block groups.
func deviceInfo(fd int) (devInfo, error) {
	a := devInfo{devid: 1}
	if err := ioctl(fd, iocDevInfo, unsafe.Pointer(&a)); err != nil {
		return a, fmt.Errorf("read device information: %w", err)
	}
	return a, nil
}

// resizeToDevice lets the file system use all of its first device.
func resizeToDevice(fd int) error {
	var a volArgs
	copy(a.name[:], "1:max")
	if err := ioctl(fd, iocResize, unsafe.Pointer(&a)); err != nil {
		return fmt.Errorf("resize file system: %w", err)
	}
	return nil
}

// sysfsDir is where the kernel describes the file system of fd.
func sysfsDir(fd int) (string, error) {
	var a fsInfo
	if err := ioctl(fd, iocFSInfo, unsafe.Pointer(&a)); err != nil {
		return "", fmt.Errorf("read file system id: %w", err)
	}
	id := a.fsid
	return fmt.Sprintf("/sys/fs/btrfs/%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:]), nil
}

// trimFileSystem discards the free space of a mounted file system.
func trimFileSystem(fd int) error {
	args := struct{ start, length, minimum uint64 }{length: math.MaxUint64}
	return ioctl(fd, iocTrim, unsafe.Pointer(&args))
}
