package rowdiff

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// extent is a range of bytes of a file.
type extent struct{ begin, end int64 }

// mapped is an extent and where it lies on the device.
type mapped struct {
	extent
	physical int64
}

// The ioctl FS_IOC_FIEMAP, of the kernel's Documentation/filesystems/fiemap.rst.
const (
	fsIocFiemap = 0xc020660b
	fiemapSync  = 1
	fiemapBatch = 512
	fiemapLast  = 1
	// fiemapUnsure are the flags of extents whose place says nothing about
	// their content: unknown, delayed, encoded, encrypted, unaligned, inline,
	// tail, unwritten.
	fiemapUnsure = 0x2 | 0x4 | 0x8 | 0x80 | 0x100 | 0x200 | 0x400 | 0x800
)

type fiemap struct {
	start, length                         uint64
	flags, mappedExtents, count, reserved uint32
	extents                               [fiemapBatch]struct {
		logical, physical, length uint64
		_                         [2]uint64
		flags                     uint32
		_                         [3]uint32
	}
}

// unshared lists the ranges of the first size bytes in which the files do not
// share their extents, in whole blocks: everything, where the file system
// cannot tell.
func unshared(a, b *os.File, size, block int64) []extent {
	all := []extent{{0, size}}
	if !sameFilesystem(a, b) {
		return all
	}
	x, ok := extents(a, size)
	if !ok {
		return all
	}
	y, ok := extents(b, size)
	if !ok {
		return all
	}
	return without(size, block, shared(x, y))
}

// shared intersects two maps, in order.
func shared(x, y []mapped) []extent {
	var out []extent
	for len(x) > 0 && len(y) > 0 {
		begin, end := max(x[0].begin, y[0].begin), min(x[0].end, y[0].end)
		if begin < end && x[0].physical-x[0].begin == y[0].physical-y[0].begin {
			out = append(out, extent{begin, end})
		}
		if x[0].end < y[0].end {
			x = x[1:]
		} else {
			y = y[1:]
		}
	}
	return out
}

// without is what remains of the first size bytes, widened to whole blocks.
func without(size, block int64, known []extent) []extent {
	var out []extent
	add := func(begin, end int64) {
		begin, end = begin/block*block, min((end+block-1)/block*block, size)
		if begin >= end {
			return
		}
		if n := len(out); n > 0 && out[n-1].end >= begin {
			out[n-1].end = max(out[n-1].end, end)
			return
		}
		out = append(out, extent{begin, end})
	}
	at := int64(0)
	for _, k := range known {
		add(at, min(k.begin, size))
		at = max(at, k.end)
	}
	add(at, size)
	return out
}

// extents maps a file after writing out what is only in memory.
func extents(f *os.File, size int64) ([]mapped, bool) {
	var out []mapped
	var m fiemap
	for at := int64(0); at < size; {
		m.start, m.length, m.flags, m.count, m.mappedExtents = uint64(at), uint64(size-at), fiemapSync, fiemapBatch, 0
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, f.Fd(), fsIocFiemap, uintptr(unsafe.Pointer(&m))); e != 0 || m.mappedExtents > fiemapBatch {
			return nil, false
		}
		if m.mappedExtents == 0 {
			return out, true
		}
		for _, e := range m.extents[:m.mappedExtents] {
			end := int64(e.logical + e.length)
			if e.length == 0 || int64(e.logical) < 0 || end <= at {
				return nil, false
			}
			if e.flags&fiemapUnsure == 0 {
				out = append(out, mapped{extent{int64(e.logical), end}, int64(e.physical)})
			}
			at = end
			if e.flags&fiemapLast != 0 {
				return out, true
			}
		}
	}
	return out, true
}

// sameFilesystem tells whether places on the device can be compared, and can
// be shared at all: asking for them writes out what is only in memory. Each
// subvolume of a btrfs has a device number of its own, but they share the
// first half of the file system's id.
func sameFilesystem(a, b *os.File) bool {
	var v, w unix.Statfs_t
	if unix.Fstatfs(int(a.Fd()), &v) != nil || unix.Fstatfs(int(b.Fd()), &w) != nil || v.Type != w.Type {
		return false
	}
	switch v.Type {
	case unix.BTRFS_SUPER_MAGIC:
		return v.Fsid.Val[0] == w.Fsid.Val[0]
	case unix.XFS_SUPER_MAGIC:
		return v.Fsid == w.Fsid
	}
	return false
}
