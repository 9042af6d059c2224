package postgres

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"syscall"

	"mayfly.dev/mayfly"
)

// clean makes the data directory fit for a new server. Its user could have put
// anything there: nothing is followed out of it.
func (i Instance) clean() error {
	root, err := os.OpenRoot(i.Data.Host)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := checkMajor(root, i.Data.Host, i.Install); err != nil {
		return err
	}
	if err := removeAll(root, "postmaster.pid", "postmaster.opts"); err != nil {
		return err
	}
	if !i.KeepSlots {
		if err := empty(root, "pg_replslot"); err != nil {
			return err
		}
	}
	admitted := access
	if i.Closed {
		admitted = closed
	}
	if err := replace(root, "pg_hba.conf", []byte(admitted)); err != nil {
		return err
	}
	sockets, err := os.OpenRoot(i.Socket.Host)
	if err != nil {
		return err
	}
	defer sockets.Close()
	return removeAll(sockets, socketName, socketName+".lock")
}

func removeAll(root *os.Root, names ...string) error {
	for _, name := range names {
		if err := root.RemoveAll(name); err != nil {
			return err
		}
	}
	return nil
}

// empty removes what is in a directory.
func empty(root *os.Root, dir string) error {
	entries, err := fs.ReadDir(root.FS(), dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		err = errors.Join(err, root.RemoveAll(dir+"/"+e.Name()))
	}
	return err
}

// replace writes a file anew unless it has the content; it belongs to the
// owner of the directory then.
func replace(root *os.Root, name string, content []byte) error {
	if old, err := readSmall(root, name); err == nil && bytes.Equal(old, content) {
		return nil
	}
	if err := root.RemoveAll(name); err != nil {
		return err
	}
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := root.Stat(".")
	if err != nil {
		return err
	}
	owner := info.Sys().(*syscall.Stat_t)
	if err := f.Chown(int(owner.Uid), int(owner.Gid)); err != nil {
		return err
	}
	_, err = f.Write(content)
	return err
}

// readSmall reads a regular file of at most 64 KiB.
func readSmall(root *os.Root, name string) ([]byte, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is no regular file", name)
	}
	return io.ReadAll(io.LimitReader(f, 64<<10))
}

// checkMajor refuses a directory of another major version.
func checkMajor(root *os.Root, path string, in Install) error {
	b, err := readSmall(root, "PG_VERSION")
	major, bad := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || bad != nil {
		return mayfly.Errorf(mayfly.Invalid, "%s is no data directory of Postgres: it has no PG_VERSION", path).
			Hint("name a directory as initdb or pg_basebackup makes it")
	}
	if major != in.Major {
		return wrongMajor(fmt.Sprintf("the data directory %s", path), strconv.Itoa(major), in)
	}
	return nil
}

// wrongMajor says that something is of another version than is to run it.
func wrongMajor(what, version string, in Install) error {
	return mayfly.Errorf(mayfly.Invalid, "%s is of Postgres %s, and Postgres %d is to run it", what, version, in.Major).
		Hint("set the service's version to %s, or dump the data with pg_dump and use the dump", strings.SplitN(version, ".", 2)[0])
}

// ready reports whether the server has written that it accepts connections,
// in the eighth line of its pid file.
func (r Running) ready() bool {
	root, err := os.OpenRoot(r.Data.Host)
	if err != nil {
		return false
	}
	defer root.Close()
	b, err := readSmall(root, "postmaster.pid")
	lines := strings.Split(string(b), "\n")
	return err == nil && len(lines) > 7 && strings.TrimSpace(lines[7]) == "ready"
}
