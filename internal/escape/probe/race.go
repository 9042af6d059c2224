//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

func init() { add(map[string]door{"swap-links": swapLinks}) }

// swapLinks makes directories, files and links to the host path change places
// as fast as it can for count seconds, in the hope that whoever reads the
// volume from outside looks at the one and opens the other.
func swapLinks(o options) (bool, string) {
	dir := work()
	host := filepath.Dir(o.path)
	for _, err := range []error{
		os.MkdirAll(filepath.Join(dir, "tree"), 0o755),
		os.WriteFile(filepath.Join(dir, "tree", filepath.Base(o.path)), []byte("inside\n"), 0o644),
		os.Symlink(host, filepath.Join(dir, "tree-link")),
		os.WriteFile(filepath.Join(dir, "file"), []byte("inside\n"), 0o644),
		os.Symlink(o.path, filepath.Join(dir, "file-link")),
	} {
		if err != nil {
			return false, err.Error()
		}
	}
	end := time.Now().Add(time.Duration(o.count) * time.Second)
	n := 0
	for ; time.Now().Before(end); n++ {
		for _, name := range []string{"tree", "file"} {
			a, b := filepath.Join(dir, name), filepath.Join(dir, name+"-link")
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				return false, err.Error()
			}
		}
	}
	return false, fmt.Sprintf("swapped %d times", n)
}
