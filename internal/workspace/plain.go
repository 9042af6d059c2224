package workspace

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"

	"mayfly.dev/mayfly"
)

// readPlain fills s from a directory that is no git repository.
func (s *Source) readPlain(ctx context.Context) error {
	if s.opts.Commit != "" {
		return mayfly.Errorf(mayfly.Invalid, "%s is not in a git repository, so it has no commit %q", s.root, s.opts.Commit).
			Hint("leave the commit out, or: git init")
	}
	s.dir = "."
	s.note("%s is not in a git repository: its files are taken as they are, and nothing is ignored", s.root)
	w := &workTree{s: s, ctx: ctx}
	var rubbish []string
	var pending []pendingFile
	root, err := os.OpenRoot(s.root)
	if err != nil {
		return readError(s.root, err)
	}
	defer root.Close()
	queue := []string{"."}
	for len(queue) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		dir := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		list, err := readDirectory(root, dir)
		if errors.Is(err, fs.ErrNotExist) && dir != "." {
			continue // removed meanwhile, as if it had never been
		}
		if err != nil {
			return readError(dir, err)
		}
		for _, e := range list {
			name := strings.TrimPrefix(dir+"/"+e.Name(), "./")
			switch {
			case isRubbish(e.Name(), e.IsDir()):
				rubbish = append(rubbish, name)
			case e.Name() == ".git":
				w.nested = append(w.nested, dir)
			case e.IsDir():
				s.dirs = append(s.dirs, name)
				queue = append(queue, name)
			default:
				pending = append(pending, pendingFile{file: file{path: name}})
			}
		}
	}
	if err := w.read(pending); err != nil {
		return err
	}
	slices.Sort(s.dirs)
	s.noteSome("rubbish, left out", rubbish)
	w.report()
	return nil
}

func readDirectory(root *os.Root, dir string) ([]fs.DirEntry, error) {
	f, err := root.Open(dir)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.ReadDir(-1)
}

// isRubbish knows what editors, desktops and interpreters drop everywhere and
// nobody means to keep.
func isRubbish(name string, dir bool) bool {
	if dir {
		return name == "__pycache__" || name == ".Trash-1000" || name == ".Spotlight-V100"
	}
	switch {
	case name == ".DS_Store", name == "Thumbs.db", name == "desktop.ini":
		return true
	case strings.HasSuffix(name, "~"), strings.HasPrefix(name, ".#"):
		return true
	case strings.HasPrefix(name, ".") && (strings.HasSuffix(name, ".swp") || strings.HasSuffix(name, ".swo")):
		return true
	}
	return false
}
