package volumetest

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Manifest describes a tree: for every path all that a copy must keep, in a
// form that can be compared.
type Manifest map[string]string

// ManifestOf reads the tree at dir without following symbolic links.
func ManifestOf(t testing.TB, dir string) Manifest {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	return manifestOf(t, root)
}

func manifestOf(t testing.TB, root *os.Root) Manifest {
	t.Helper()
	top, err := root.Open(".")
	if err != nil {
		t.Fatal(err)
	}
	defer top.Close()
	m := Manifest{}
	links := map[uint64]string{}
	if err := m.walk(int(top.Fd()), ".", links); err != nil {
		t.Fatalf("read tree: %v", err)
	}
	return m
}

func (m Manifest) walk(fd int, path string, links map[uint64]string) error {
	if err := m.describe(fd, ".", path, links); err != nil {
		return err
	}
	dup, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	dir := os.NewFile(uintptr(dup), path)
	names, err := dir.Readdirnames(-1)
	dir.Close()
	if err != nil {
		return err
	}
	slices.Sort(names) // so that the first name of a hard link is the same in copies
	for _, name := range names {
		child := strings.TrimPrefix(path+"/"+name, "./")
		sub, err := unix.Openat(fd, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			if err := m.describe(fd, name, child, links); err != nil {
				return fmt.Errorf("%q: %w", child, err)
			}
			continue
		}
		err = m.walk(sub, child, links)
		unix.Close(sub)
		if err != nil {
			return err
		}
	}
	return nil
}

// describe records one inode.
func (m Manifest) describe(dirfd int, name, path string, links map[uint64]string) error {
	var st unix.Stat_t
	if err := unix.Fstatat(dirfd, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "mode=%o owner=%d:%d mtime=%d.%09d", st.Mode, st.Uid, st.Gid, st.Mtim.Sec, st.Mtim.Nsec)
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
	case unix.S_IFREG:
		fmt.Fprintf(&b, " size=%d", st.Size)
		sum, err := digest(dirfd, name)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, " sha256=%x", sum)
	case unix.S_IFLNK:
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(dirfd, name, buf)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, " target=%q", buf[:n])
	default:
		fmt.Fprintf(&b, " rdev=%d", st.Rdev)
	}
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		if _, ok := links[st.Ino]; !ok {
			links[st.Ino] = path
		}
		fmt.Fprintf(&b, " link=%q", links[st.Ino])
	}
	if err := describeXattrs(&b, dirfd, name); err != nil {
		return err
	}
	m[path] = b.String()
	return nil
}

func digest(dirfd int, name string) ([]byte, error) {
	fd, err := unix.Openat(dirfd, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NOATIME|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 64<<10)
	zero := make([]byte, len(buf))
	for at := int64(0); ; {
		// What is a hole and what are zeros does not matter, where data is does.
		data, err := unix.Seek(fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return h.Sum(nil), nil
		} else if err != nil {
			return nil, err
		}
		at = data / int64(len(buf)) * int64(len(buf))
		n, err := f.ReadAt(buf, at)
		if err != nil && err != io.EOF {
			return nil, err
		}
		if !bytes.Equal(buf[:n], zero[:n]) {
			fmt.Fprintf(h, "%d %d ", at, n)
			h.Write(buf[:n])
		}
		at += int64(len(buf))
	}
}

func describeXattrs(b *strings.Builder, dirfd int, name string) error {
	fd, err := unix.Openat(dirfd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	path := fmt.Sprintf("/proc/self/fd/%d", fd)
	buf := make([]byte, 64<<10)
	n, err := unix.Listxattr(path, buf)
	if err != nil {
		return nil //nolint:nilerr // pipes and the like have none
	}
	names := strings.Split(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00")
	slices.Sort(names)
	for _, x := range names {
		if x == "" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Getxattr(path, x, value)
		if err != nil {
			return err
		}
		fmt.Fprintf(b, " %s=%q", x, value[:n])
	}
	return nil
}

// compare reports every path that differs.
func compare(t testing.TB, what string, got, want Manifest) {
	t.Helper()
	paths := map[string]bool{}
	for p := range maps.Keys(got) {
		paths[p] = true
	}
	for p := range maps.Keys(want) {
		paths[p] = true
	}
	for _, p := range slices.Sorted(maps.Keys(paths)) {
		if got[p] != want[p] {
			t.Errorf("%s: %q = %s, want %s", what, p, got[p], want[p])
		}
	}
}

// allocated is the space that the files below dir occupy, in bytes.
func allocated(t testing.TB, dir string) (total int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return err
		}
		total += st.Blocks * 512
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return total
}
