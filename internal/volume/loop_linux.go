package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// attach returns the loop device of an image, which it makes unless there is
// one: attaching an image twice would let two file systems write to it. The
// device goes away by itself when the last user has closed it, which before a
// mount is the returned file.
func attach(image *os.File) (*os.File, error) {
	dev, err := findLoop(image)
	if dev != nil || err != nil {
		return dev, err
	}
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("attach image: %w", err)
	}
	defer control.Close()
	for range 64 {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("get a loop device: %w", err)
		}
		dev, err := os.OpenFile(fmt.Sprintf("/dev/loop%d", n), os.O_RDWR, 0)
		if err != nil {
			return nil, fmt.Errorf("attach image: %w", err)
		}
		err = configureLoop(dev, image)
		if err == nil {
			return dev, nil
		}
		dev.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return nil, fmt.Errorf("attach %s to %s: %w", image.Name(), dev.Name(), err)
		}
	}
	return nil, fmt.Errorf("attach %s: no loop device is free", image.Name())
}

// configureLoop attaches with direct I/O, so that the cache holds file content
// once and not once more as content of the image. The device gets a file of
// its own: it holds it open, and with it a lock taken on it, after the process
// has ended.
func configureLoop(dev, image *os.File) error {
	own, err := os.OpenFile(procPath(int(image.Fd())), os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open image again: %w", err)
	}
	defer own.Close()
	config := unix.LoopConfig{Fd: uint32(own.Fd()), Size: 4096}
	config.Info.Flags = unix.LO_FLAGS_AUTOCLEAR | unix.LO_FLAGS_DIRECT_IO
	copy(config.Info.File_name[:len(config.Info.File_name)-1], image.Name())
	return unix.IoctlLoopConfigure(int(dev.Fd()), &config)
}

// findLoop returns the loop device that the image is attached to, nil when
// there is none.
func findLoop(image *os.File) (*os.File, error) {
	attached, err := filepath.Glob("/sys/block/loop*/loop")
	if err != nil {
		return nil, err
	}
	for _, dir := range attached {
		name := "/dev/" + filepath.Base(filepath.Dir(dir))
		dev, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("look for the image's loop device: %w", err)
		}
		if backs(image, dev) {
			return dev, nil
		}
		dev.Close()
	}
	return nil, nil
}

// backs reports whether the open loop device is attached to the image.
func backs(image, dev *os.File) bool {
	var st unix.Stat_t
	if err := unix.Fstat(int(image.Fd()), &st); err != nil {
		return false
	}
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	return err == nil && info.Inode == st.Ino && info.Device == st.Dev
}

// deviceOf is the device that a mounted btrfs lies on.
func deviceOf(dir string) (name string, err error) {
	err = withDir(dir, func(fd int) error {
		info, err := deviceInfo(fd)
		name, _, _ = strings.Cut(string(info.path[:]), "\x00")
		return err
	})
	return name, err
}
