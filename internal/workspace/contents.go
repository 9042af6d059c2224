package workspace

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"

	"mayfly.dev/mayfly"
)

// contents calls use with the content of each file, in order.
func (s *Source) contents(ctx context.Context, files []file, use func(f file, c content) error) error {
	switch {
	case len(files) == 0:
		return nil
	case s.blobs:
		return s.blobContents(ctx, files, use)
	}
	return s.diskContents(ctx, files, use)
}

// readAhead is how many files are read before they are used; with smallFile
// it bounds the memory.
const readAhead = 32

type readResult struct {
	content
	err error
}

// diskContents reads from disk, several files at a time.
func (s *Source) diskContents(ctx context.Context, files []file, use func(f file, c content) error) error {
	type job struct {
		file   file
		result chan readResult
	}
	jobs := make(chan job)
	order := make(chan job, readAhead)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		defer close(jobs)
		defer close(order)
		for _, f := range files {
			j := job{f, make(chan readResult, 1)}
			for _, to := range []chan job{jobs, order} {
				select {
				case to <- j:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
		}
		return nil
	})
	for range min(max(runtime.GOMAXPROCS(0), 2), 8, len(files)) {
		g.Go(func() error {
			d, err := openDisk(s.root, s.format)
			if err != nil {
				return err
			}
			defer d.Close()
			for j := range jobs {
				c, err := d.read(ctx, j.file)
				j.result <- readResult{c, err}
			}
			return nil
		})
	}
	g.Go(func() error {
		for j := range order {
			select {
			case r := <-j.result:
				if r.err != nil {
					return r.err
				}
				if err := use(j.file, r.content); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		return nil
	})
	return g.Wait()
}

// blobContents reads from git's objects.
func (s *Source) blobContents(ctx context.Context, files []file, use func(f file, c content) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := s.repo.command(ctx, "cat-file", "--batch")
	var complaint tail
	cmd.Stderr = &complaint
	in, err := cmd.StdinPipe()
	if err != nil {
		return err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return s.repo.explain(ctx, cmd, err, "")
	}
	var g errgroup.Group
	g.Go(func() error {
		defer in.Close()
		w := bufio.NewWriter(in)
		for _, f := range files {
			w.WriteString(f.id + "\n")
		}
		return w.Flush()
	})
	err = useBlobs(bufio.NewReaderSize(out, 128<<10), files, use)
	if err != nil {
		cancel()
	}
	werr := errors.Join(g.Wait(), cmd.Wait())
	if err == nil && werr != nil {
		return s.repo.explain(ctx, cmd, werr, complaint.String())
	}
	return err
}

func useBlobs(r *bufio.Reader, files []file, use func(f file, c content) error) error {
	for _, f := range files {
		line, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("git cat-file: %w", err)
		}
		w := strings.Fields(line)
		if len(w) != 3 || w[0] != f.id || w[1] != "blob" {
			return mayfly.Errorf(mayfly.Invalid, "the repository lacks the content of %s", visible(f.path)).
				Hint("git fsck tells what is missing; a partial clone fetches it with: git fetch --refetch --no-filter")
		}
		size, err := strconv.ParseInt(w[2], 10, 64)
		if err != nil || size < 0 {
			return fmt.Errorf("git cat-file: bad size in %q", line)
		}
		body := &io.LimitedReader{R: r, N: size}
		err = use(f, content{size: size, copyTo: func(w io.Writer) error {
			n, err := io.Copy(w, body)
			if err == nil && n != size {
				err = io.ErrUnexpectedEOF
			}
			return err
		}})
		if err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, body); err != nil {
			return err
		}
		if end, err := r.ReadByte(); err != nil || end != '\n' {
			return fmt.Errorf("git cat-file: %s: unexpected end", f.id)
		}
	}
	return nil
}
