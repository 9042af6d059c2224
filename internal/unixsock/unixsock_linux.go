// Package unixsock dials and listens on unix sockets whose paths may be
// longer than the 107 bytes that a socket address holds.
package unixsock

import (
	"context"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// maxPath is what fits into sockaddr_un.sun_path with its final NUL; see
// unix(7).
const maxPath = 107

// Dial connects to the socket at path.
func Dial(ctx context.Context, path string) (net.Conn, error) {
	short, dir, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	var d net.Dialer
	return d.DialContext(ctx, "unix", short)
}

// Listen makes the socket at path with the given permissions, replacing one
// that nobody listens on any more: the caller knows, by a lock, that it is
// alone. Closing the listener removes the socket.
func Listen(path string, mode fs.FileMode) (net.Listener, error) {
	if info, err := os.Lstat(path); err == nil {
		if info.Mode().Type() != fs.ModeSocket {
			return nil, fmt.Errorf("listen on %s: there is a file that is no socket", path)
		}
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove stale socket: %w", err)
		}
	}
	short, dir, err := shorten(path)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	// The socket must never be open to others, not even before its chmod.
	old := unix.Umask(0o177)
	l, err := net.Listen("unix", short)
	unix.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	u := l.(*net.UnixListener)
	u.SetUnlinkOnClose(false) // the name it knows may hold a descriptor's number
	if err := os.Chmod(path, mode); err != nil {
		u.Close()
		return nil, err
	}
	return listener{UnixListener: u, path: path}, nil
}

type listener struct {
	*net.UnixListener
	path string
}

func (l listener) Close() error {
	err := l.UnixListener.Close()
	os.Remove(l.path)
	return err
}

// shorten returns a name for path that fits into a socket address, valid
// while the returned file is open.
func shorten(path string) (string, *os.File, error) {
	if len(path) <= maxPath {
		return path, nil, nil
	}
	name := filepath.Base(path)
	dir, err := os.OpenFile(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return "", nil, err
	}
	short := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), name)
	if len(short) > maxPath {
		dir.Close()
		return "", nil, fmt.Errorf("socket name %q is too long", name)
	}
	return short, dir, nil
}
