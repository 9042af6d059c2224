// Command work does to files and databases what agents do all day and prints how long it
// took, in nanoseconds, without its own start. It runs in the current
// directory, inside an environment and outside alike.
package main

import (
	"archive/tar"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"
)

// archive is what "prepare" makes and "untar" unpacks.
const archive = "work.tar"

func main() {
	if len(os.Args) < 2 {
		fmt.Fprintln(os.Stderr, "usage: work prepare DIR | git-status | untar | npm | fsync | touch N SALT | query SQL | reconnect SQL ANSWER")
		os.Exit(64)
	}
	if err := run(os.Args[1], os.Args[2:]); err != nil {
		fmt.Fprintln(os.Stderr, "work:", err)
		os.Exit(1)
	}
}

func run(command string, args []string) error {
	switch command {
	case "prepare":
		return prepare(filepath.Join(args[0], archive))
	case "git-status":
		return timed(gitStatus)
	case "untar":
		return inScratch(func(dir string) error { return untar(archive, dir) })
	case "npm":
		return inScratch(npm)
	case "fsync":
		return inScratch(fsync)
	case "touch":
		n, err := strconv.Atoi(args[0])
		if err != nil {
			return err
		}
		return timed(func() error { return touch(n, args[1]) })
	case "query":
		return query(args[0])
	case "reconnect":
		return reconnect(args[0], args[1])
	}
	return fmt.Errorf("unknown workload %q", command)
}

func timed(f func() error) error {
	start := time.Now()
	if err := f(); err != nil {
		return err
	}
	fmt.Println(time.Since(start).Nanoseconds())
	return nil
}

// inScratch times f with a new directory, and removes it afterwards.
func inScratch(f func(dir string) error) error {
	dir, err := os.MkdirTemp(".", "scratch-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	return timed(func() error { return f(dir) })
}

func gitStatus() error {
	return exec.Command("git", "-c", "safe.directory=*", "status", "--porcelain").Run()
}

// prepare writes an archive of 5,000 files of 4 KB.
func prepare(path string) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	w := tar.NewWriter(f)
	content := make([]byte, 4096)
	for i := range 5000 {
		h := &tar.Header{Name: fmt.Sprintf("p%02d/f%04d", i/100, i), Mode: 0o644, Size: int64(len(content))}
		if err := w.WriteHeader(h); err != nil {
			return err
		}
		if _, err := w.Write(content); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

func untar(path, dir string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	r := tar.NewReader(f)
	for {
		h, err := r.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		out, err := os.Create(name)
		if err != nil {
			return err
		}
		if _, err := io.Copy(out, r); err != nil {
			return err
		}
		if err := out.Close(); err != nil {
			return err
		}
	}
}

// npm does what a package manager does: 200 packages of 25 small files each
// are written to a temporary directory and renamed to their place.
func npm(dir string) error {
	content := make([]byte, 1500)
	for p := range 200 {
		staged := filepath.Join(dir, ".staging", fmt.Sprintf("pkg-%d", p))
		if err := os.MkdirAll(filepath.Join(staged, "lib"), 0o755); err != nil {
			return err
		}
		for f := range 25 {
			if err := os.WriteFile(filepath.Join(staged, "lib", fmt.Sprintf("m%d.js", f)), content, 0o644); err != nil {
				return err
			}
		}
		if err := os.MkdirAll(filepath.Join(dir, "node_modules"), 0o755); err != nil {
			return err
		}
		if err := os.Rename(staged, filepath.Join(dir, "node_modules", fmt.Sprintf("pkg-%d", p))); err != nil {
			return err
		}
	}
	return nil
}

func fsync(dir string) error {
	f, err := os.Create(filepath.Join(dir, "journal"))
	if err != nil {
		return err
	}
	defer f.Close()
	record := make([]byte, 512)
	for range 300 {
		if _, err := f.Write(record); err != nil {
			return err
		}
		if err := f.Sync(); err != nil {
			return err
		}
	}
	return nil
}

// touch rewrites n existing files, spread over the tree, so that they differ
// for each salt.
func touch(n int, salt string) error {
	files, err := filepath.Glob("d*/f*.txt")
	if err != nil {
		return err
	}
	if len(files) < n {
		return fmt.Errorf("%d files here, want %d", len(files), n)
	}
	for i := range n {
		name := files[i*len(files)/n]
		if err := os.WriteFile(name, []byte("touched "+salt+"\n"), 0o644); err != nil {
			return err
		}
	}
	return nil
}
