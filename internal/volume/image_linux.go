package volume

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// Sizes of an image, in bytes.
const (
	// imageHeadroom is how much of an image stays free for what is written
	// until the upkeep looks again.
	imageHeadroom = 4 << 30
	// imageStep is what the size is rounded up to.
	imageStep = 1 << 30
	// imageMin is the smallest size that is worth a pool.
	imageMin = 512 << 20
	// hostReserve is what stays free on the file system that holds the image.
	// An image that cannot be written any more makes btrfs read-only.
	hostReserve = 512 << 20
)

// image is a sparse file with a btrfs, mounted at a directory through a loop
// device. It grows ahead of what is written to it, as far as the file system
// below has room, and gets holes where the btrfs frees space.
type image struct {
	path, dir string
	limit     int64    // largest size, bytes; 0: none
	file      *os.File // locked while the pool is open
	now       func() time.Time
	step      func(string) error

	mu      sync.Mutex // guards what follows and changes of size
	trimmed time.Time
}

// openImage makes, attaches and mounts the image at dir, or finds it so.
func openImage(ctx context.Context, dir string, limit int64, now func() time.Time, step func(string) error) (*image, error) {
	im := &image{path: imagePath(dir), dir: dir, limit: limit, now: now, step: step}
	if os.Geteuid() != 0 {
		return nil, unsupported("mounting a btrfs image needs root", "sudo mayfly serve", nil)
	}
	if _, err := os.Lstat(im.path); errors.Is(err, fs.ErrNotExist) {
		if err := im.format(ctx); err != nil {
			return nil, err
		}
	}
	var err error
	if im.file, err = os.OpenFile(im.path, os.O_RDWR|unix.O_NOFOLLOW, 0); err != nil {
		return nil, err
	}
	if err = lock(im.file); err == nil {
		err = im.mount()
	}
	if err != nil {
		im.file.Close()
		return nil, err
	}
	// One that could not grow is still a pool; admit says so when it is full.
	_ = im.grow()
	return im, nil
}

// imagePath is where the image of the pool at dir is.
func imagePath(dir string) string { return filepath.Join(filepath.Dir(dir), "pool.img") }

// layersPath is where the layers of a pool in an image are.
func layersPath(dir string) string { return filepath.Join(filepath.Dir(dir), "base") }

// format makes the image under another name first.
func (im *image) format(ctx context.Context) error {
	mkfs, err := findMkfs()
	if err != nil {
		return err
	}
	size, err := im.firstSize()
	if err != nil {
		return err
	}
	tmp := im.path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := lock(f); err != nil {
		return err
	}
	// Emptied first: what an interrupted call left is no part of this one.
	if err := errors.Join(f.Truncate(0), f.Truncate(size)); err != nil {
		return err
	}
	// The file system below already cares for its metadata: no second copy.
	cmd := exec.CommandContext(ctx, mkfs, "-q", "-f", "-K", "-L", "mayfly", "-m", "single", "-d", "single", tmp)
	if err := im.step("format image"); err != nil {
		return err
	}
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("make file system in %s: %w: %.500s", tmp, err, output.Bytes())
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := im.step("name image"); err != nil {
		return err
	}
	if err := os.Rename(tmp, im.path); err != nil {
		return err
	}
	return withDir(filepath.Dir(im.path), unix.Fsync)
}

var mkfsNames = []string{"mkfs.btrfs", "/usr/sbin/mkfs.btrfs", "/sbin/mkfs.btrfs"}

// findMkfs finds mkfs.btrfs, also where the search path of a user lacks the
// directories for administrators.
func findMkfs() (string, error) {
	for _, name := range mkfsNames {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", unsupported("mkfs.btrfs is not installed", "apt-get install btrfs-progs", nil)
}

func (im *image) firstSize() (int64, error) {
	free, err := freeBytes(filepath.Dir(im.path))
	if err != nil {
		return 0, err
	}
	size := min(2*imageHeadroom, free-hostReserve)
	if im.limit > 0 {
		size = min(size, im.limit)
	}
	size = size / (1 << 20) * (1 << 20)
	if size < imageMin {
		return 0, mayfly.Errorf(mayfly.Exhausted, "%d MiB for the pool image %s are too few: it needs %d MiB beside %d MiB in reserve",
			max(size, 0)>>20, im.path, imageMin>>20, hostReserve>>20).Hint("free space, or use another state directory with --state")
	}
	return size, nil
}

// mounted reports whether the image is mounted at its directory.
func (im *image) mounted() bool {
	name, err := deviceOf(im.dir)
	if err != nil {
		return false
	}
	dev, err := os.Open(name)
	if err != nil {
		return false
	}
	defer dev.Close()
	return backs(im.file, dev)
}

func (im *image) mount() error {
	if im.mounted() {
		return im.makePrivate()
	}
	dev, err := attach(im.file)
	if err != nil {
		return explainMount(err)
	}
	defer dev.Close() // the mount holds the device
	if err := im.step("mount image"); err != nil {
		return err
	}
	return im.mountDevice(dev.Name())
}

func (im *image) mountDevice(dev string) error {
	const flags = unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOSUID
	if err := unix.Mount(dev, im.dir, "btrfs", flags, "ssd,discard=async,commit=5"); err != nil {
		return explainMount(fmt.Errorf("mount %s at %s: %w", im.path, im.dir, err))
	}
	return im.makePrivate()
}

// makePrivate keeps namespaces that got a copy of the mount from being told of
// the mounts below it.
func (im *image) makePrivate() error {
	if err := im.step("make mount private"); err != nil {
		return err
	}
	if err := unix.Mount("", im.dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mount at %s private: %w", im.dir, err)
	}
	return nil
}

func explainMount(err error) error {
	switch {
	case errors.Is(err, unix.ENODEV):
		return unsupported("this kernel has no btrfs", "modprobe btrfs", err)
	case errors.Is(err, fs.ErrNotExist):
		return unsupported("this kernel has no loop devices", "modprobe loop", err)
	case errors.Is(err, fs.ErrPermission):
		return unsupported("mounting is not permitted here", "run the server as root, outside of containers without CAP_SYS_ADMIN", err)
	}
	return err
}

// unsupported is an error about a missing feature, with the command that
// brings it.
func unsupported(feature, command string, cause error) error {
	if cause != nil {
		feature = fmt.Sprintf("%s (%v)", feature, cause)
	}
	return mayfly.Errorf(mayfly.Unsupported, "%s: %w", feature, errors.ErrUnsupported).Hint("%s", command)
}

// unmount fails while anything uses the file system, be it through a mount
// elsewhere such as an overlay, and leaves it mounted then.
func (im *image) unmount() error {
	name, err := deviceOf(im.dir)
	if err != nil {
		return err
	}
	dev, err := os.Open(name) // so that the device survives until the end of this
	if err != nil {
		return err
	}
	defer dev.Close()
	busy := mayfly.Errorf(mayfly.Conflict, "the pool %s is in use", im.dir).
		Hint("end the environments that use it; see them with: mayfly env list")
	err = whileBusy(func() error { return unix.Unmount(im.dir, unix.UMOUNT_NOFOLLOW) })
	if errors.Is(err, unix.EBUSY) {
		return busy
	} else if err != nil {
		return fmt.Errorf("unmount %s: %w", im.dir, err)
	}
	// A file system that is alive holds its device exclusively.
	err = whileBusy(func() error {
		claim, err := unix.Open(name, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			unix.Close(claim)
		}
		return err
	})
	if errors.Is(err, unix.EBUSY) {
		if err := im.mountDevice(name); err != nil {
			return err
		}
		return busy
	} else if err != nil {
		return fmt.Errorf("unmount %s: %w", im.dir, err)
	}
	return im.file.Close()
}

// whileBusy repeats fn for a while when it says EBUSY: whoever makes a mount
// namespace has a copy of every mount until it lets go of them.
func whileBusy(fn func() error) error {
	err := fn()
	for deadline := time.Now().Add(2 * time.Second); errors.Is(err, unix.EBUSY) && time.Now().Before(deadline); err = fn() {
		time.Sleep(10 * time.Millisecond)
	}
	return err
}

// admit makes room in the image and fails when the file system below has none
// to give.
func (im *image) admit() error {
	free, err := freeBytes(filepath.Dir(im.path))
	if err != nil {
		return err
	}
	if free < hostReserve {
		im.trim(0)
		if free, err = freeBytes(filepath.Dir(im.path)); err == nil && free < hostReserve {
			err = full(filepath.Dir(im.path), uint64(max(free, 0)), hostReserve)
		}
		if err != nil {
			return err
		}
	}
	return im.grow()
}

// upkeep grows the image when its free part becomes small, and gives back
// freed space at once when the file system below runs short of it.
func (im *image) upkeep() error {
	free, err := freeBytes(filepath.Dir(im.path))
	if err != nil {
		return err
	}
	if free < 2*hostReserve {
		im.trim(30 * time.Second)
	}
	return im.grow()
}

// grow enlarges the image so that imageHeadroom of it is free. What it adds
// must exist below: the image could fill that file system otherwise.
func (im *image) grow() error {
	im.mu.Lock()
	defer im.mu.Unlock()
	return withDir(im.dir, func(fd int) error {
		info, err := deviceInfo(fd)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(int(im.file.Fd()), &st); err != nil {
			return err
		}
		want, err := im.wantedSize(int64(info.used), st.Size, st.Blocks*512)
		if err != nil {
			return err
		}
		if want == int64(info.total) {
			return nil
		}
		return im.resize(fd, want, st.Size)
	})
}

// wantedSize is the size that an image of the given size, of which the btrfs
// has given used bytes to block groups and the file allocated bytes on disk,
// should have. It never shrinks.
func (im *image) wantedSize(used, size, allocated int64) (int64, error) {
	want := (used + imageHeadroom + imageStep - 1) / imageStep * imageStep
	if want <= size {
		return size, nil
	}
	free, err := freeBytes(filepath.Dir(im.path))
	if err != nil {
		return 0, err
	}
	want = min(want, (allocated+free-hostReserve)/(1<<20)*(1<<20))
	if im.limit > 0 {
		want = min(want, im.limit)
	}
	return max(want, size), nil
}

// resize brings file, device and file system to the wanted size; repeated
// after a crash in the middle of it, it finishes.
func (im *image) resize(fd int, want, size int64) error {
	if err := im.step("grow image"); err != nil {
		return err
	}
	if want > size {
		if err := im.file.Truncate(want); err != nil {
			return fmt.Errorf("grow %s: %w", im.path, err)
		}
	}
	name, err := deviceOf(im.dir)
	if err != nil {
		return err
	}
	dev, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, unix.EBUSY) || errors.Is(err, fs.ErrPermission) {
		dev, err = os.Open(name) // kernels that protect mounted devices
	}
	if err != nil {
		return err
	}
	defer dev.Close()
	if err := im.step("grow device"); err != nil {
		return err
	}
	if _, err := unix.IoctlRetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY); err != nil {
		return fmt.Errorf("grow %s: %w", name, err)
	}
	if err := im.step("grow file system"); err != nil {
		return err
	}
	return resizeToDevice(fd)
}

// trim makes holes in the image wherever the btrfs is free, unless that was
// done within the interval: it walks all free space.
func (im *image) trim(interval time.Duration) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.now().Sub(im.trimmed) < interval {
		return
	}
	im.trimmed = im.now()
	// Failing leaves the image larger than it could be, and the caller looks
	// at the free space again.
	_ = withDir(im.dir, trimFileSystem)
}

// freeBytes is the free space at dir for unprivileged writers.
func freeBytes(dir string) (int64, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return 0, &fs.PathError{Op: "statfs", Path: dir, Err: err}
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// lockPatience is how long a lock may outlive its server.
const lockPatience = 500 * time.Millisecond

// lock keeps a second server from the same pool. The kernel drops it with the
// process.
func lock(f *os.File) error {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	// A child that a killed server had just forked holds the lock until it
	// executes its program.
	for deadline := time.Now().Add(lockPatience); errors.Is(err, unix.EWOULDBLOCK) && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if errors.Is(err, unix.EWOULDBLOCK) {
		return mayfly.Errorf(mayfly.Conflict, "another server uses the pool %s", f.Name()).
			Hint("stop it, or use another state directory with --state")
	} else if err != nil {
		return fmt.Errorf("lock %s: %w", f.Name(), err)
	}
	return nil
}
