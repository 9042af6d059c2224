package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Swap lets clients that connect to the published path reach this instance,
// from one connection to the next; those that are connected stay where they
// are. The path is on the file system of the instance's socket and in another
// directory, so that the end of an instance does not remove what another has
// published.
func (i Instance) Swap(published string) error {
	next := filepath.Join(filepath.Dir(published), "."+filepath.Base(published)+".next")
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Link(i.Path(), next); err != nil {
		return fmt.Errorf("publish socket: %w", err)
	}
	// Names of one socket: renaming would leave both.
	if same(next, published) {
		return os.Remove(next)
	}
	if err := os.Rename(next, published); err != nil {
		return fmt.Errorf("publish socket: %w", errors.Join(err, os.Remove(next)))
	}
	return nil
}

func same(a, b string) bool {
	x, err := os.Lstat(a)
	y, err2 := os.Lstat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}
