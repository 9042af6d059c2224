package volume

import (
	"context"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"mayfly.dev/mayfly"
)

// MaxLayers is how many layers a view can have: the kernel's bound for an
// overlay.
const MaxLayers = 500

// View shows the merged content of layers. It is a read-only overlay that is
// mounted nowhere, so that nothing else sees it and it ends with its
// descriptors.
type View struct {
	mount int // descriptor; -1 for a view of one layer
	root  *os.Root
}

// OpenView opens the merged view of directories, topmost first, 1 to
// MaxLayers of them. A single directory is opened as it is; whiteouts show in
// it. What is read follows no symbolic link out of the view. The layers should
// not change meanwhile: of what does, either state may be seen.
//
// It needs root. An overlay that this kernel cannot make gives an error that
// wraps errors.ErrUnsupported.
func OpenView(ctx context.Context, layers []string) (*View, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("open view: %w", err)
	}
	v := &View{mount: -1}
	var path string
	var err error
	switch n := len(layers); {
	case n == 0 || n > MaxLayers:
		return nil, mayfly.Errorf(mayfly.Invalid, "open view: %d layers, 1 to %d are possible", n, MaxLayers)
	case n == 1:
		path = layers[0]
	default:
		if v.mount, err = mountLayers(layers); err != nil {
			return nil, fmt.Errorf("open view: %w", err)
		}
		path = procPath(v.mount)
	}
	if v.root, err = os.OpenRoot(path); err != nil {
		v.Close()
		return nil, fmt.Errorf("open view: %w", err)
	}
	return v, nil
}

// Root is the directory at the top of the view. It is closed with the view.
func (v *View) Root() *os.Root { return v.root }

// Close ends the view. Files opened in it stay readable.
func (v *View) Close() error {
	var err error
	if v.root != nil {
		err = v.root.Close()
	}
	if v.mount >= 0 {
		unix.Close(v.mount)
		v.mount = -1
	}
	return err
}

// mountLayers makes a detached overlay and returns its descriptor.
func mountLayers(layers []string) (int, error) {
	config, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, explainOverlay(config, err)
	}
	defer unix.Close(config)
	for _, dir := range layers {
		if err := addLayer(config, dir); err != nil {
			return -1, fmt.Errorf("layer %s: %w", dir, explainOverlay(config, err))
		}
	}
	// Redirects are what the uppers that become layers contain.
	if err := unix.FsconfigSetString(config, "redirect_dir", "follow"); err != nil {
		return -1, explainOverlay(config, err)
	}
	if err := unix.FsconfigCreate(config); err != nil {
		return -1, explainOverlay(config, err)
	}
	const attributes = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	mount, err := unix.Fsmount(config, unix.FSMOUNT_CLOEXEC, attributes)
	if err != nil {
		return -1, explainOverlay(config, err)
	}
	return mount, nil
}

// addLayer names the layer through a descriptor: the paths that fsconfig takes
// are short.
func addLayer(config int, dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.FsconfigSetString(config, "lowerdir+", procPath(fd))
}

// explainOverlay adds what the kernel has to say about a failed mount.
func explainOverlay(config int, err error) error {
	switch err {
	case unix.ENODEV, unix.ENOSYS:
		return unsupported("this kernel has no overlay file system, or is older than 6.5", "modprobe overlay", err)
	case unix.EPERM:
		return unsupported("mounting is not permitted here", "run the server as root", err)
	}
	buf := make([]byte, 1024)
	if n, rerr := unix.Read(config, buf); config >= 0 && rerr == nil {
		return fmt.Errorf("%w: %s", err, strings.TrimSpace(string(buf[:n])))
	}
	return err
}
