package postgres

import (
	"io/fs"
	"os"
	"syscall"
)

// inputs is where the files of a template are. With a root, nothing outside of
// it is read, whatever links lead there: those who wrote the template shall
// not see, in an error or in a table, what only this process may read.
type inputs struct{ root *os.Root }

// openInputs opens the directory that names are relative to; an empty one
// means that names are paths of this machine, which the caller vouches for.
func openInputs(dir string) (inputs, error) {
	if dir == "" {
		return inputs{}, nil
	}
	root, err := os.OpenRoot(dir)
	return inputs{root}, err
}

func (in inputs) close() {
	if in.root != nil {
		in.root.Close()
	}
}

// open opens a file without waiting for the writer of a pipe.
func (in inputs) open(name string) (*os.File, error) {
	if in.root != nil {
		return in.root.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	}
	return os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0)
}

// openRoot opens a directory.
func (in inputs) openRoot(name string) (*os.Root, error) {
	if in.root != nil {
		return in.root.OpenRoot(name)
	}
	return os.OpenRoot(name)
}

func (in inputs) stat(name string) (fs.FileInfo, error) {
	if in.root != nil {
		return in.root.Stat(name)
	}
	return os.Stat(name)
}

func (in inputs) readDir(name string) ([]fs.DirEntry, error) {
	root, err := in.openRoot(name)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return fs.ReadDir(root.FS(), ".")
}

func (in inputs) isDirectory(name string) bool {
	info, err := in.stat(name)
	return err == nil && info.IsDir()
}
