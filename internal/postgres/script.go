package postgres

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"

	"mayfly.dev/mayfly"
)

// runFiles executes SQL files in order.
func (p *preparation) runFiles(ctx context.Context, names []string) error {
	for _, name := range names {
		files, err := p.scripts(name)
		if err != nil {
			return err
		}
		for _, file := range files {
			if err := p.runFile(ctx, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// suffixes are those of the files that are taken from a directory.
var suffixes = []string{".sql", ".sql.gz", ".sql.zst"}

// scripts lists the files that a name stands for.
func (p *preparation) scripts(name string) ([]string, error) {
	info, err := p.inputs.stat(name)
	if err != nil {
		return nil, mayfly.Errorf(mayfly.Invalid, "no SQL to run: %w", err).Hint("correct the path in the manifest")
	}
	if !info.IsDir() {
		return []string{name}, nil
	}
	entries, err := p.inputs.readDir(name)
	var files []string
	for _, e := range entries {
		if !e.IsDir() && slices.ContainsFunc(suffixes, func(s string) bool { return strings.HasSuffix(e.Name(), s) }) {
			files = append(files, filepath.Join(name, e.Name()))
		}
	}
	if err == nil && len(files) == 0 {
		err = mayfly.Errorf(mayfly.Invalid, "no *.sql file in %s", name).Hint("correct the path in the manifest")
	}
	return files, err
}

func (p *preparation) runFile(ctx context.Context, name string) error {
	r, err := p.inputs.script(name)
	if err != nil {
		return err
	}
	defer r.Close()
	if b, _ := r.Peek(len(archiveMagic)); string(b) == archiveMagic {
		return mayfly.Errorf(mayfly.Invalid, "%s is no SQL, but a dump in pg_dump's own format", name).
			Hint("name it as the service's dump")
	}
	return p.psql(ctx, name, r)
}

// script is a file's content, decompressed.
type script struct {
	*bufio.Reader
	file *os.File
	done func()
}

func (s script) Close() error {
	if s.done != nil {
		s.done()
	}
	return s.file.Close()
}

// script opens a regular file and recognises how it is compressed.
func (in inputs) script(name string) (script, error) {
	f, err := in.open(name)
	if err != nil {
		return script{}, mayfly.Errorf(mayfly.Invalid, "read SQL: %w", err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return script{}, mayfly.Errorf(mayfly.Invalid, "%s is no regular file", name)
	}
	s := script{Reader: bufio.NewReader(f), file: f}
	magic, _ := s.Peek(4)
	switch {
	case bytes.HasPrefix(magic, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(s.Reader)
		if err != nil {
			f.Close()
			return script{}, mayfly.Errorf(mayfly.Invalid, "decompress %s: %w", name, err)
		}
		s.Reader = bufio.NewReader(z)
	case bytes.Equal(magic, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		z, err := zstd.NewReader(s.Reader)
		if err != nil {
			f.Close()
			return script{}, mayfly.Errorf(mayfly.Invalid, "decompress %s: %w", name, err)
		}
		s.Reader, s.done = bufio.NewReader(z), z.Close
	}
	return s, nil
}

// psql executes SQL as Admin; name is what errors call it. Each statement is a
// transaction of its own unless the SQL says otherwise.
func (p *preparation) psql(ctx context.Context, name string, sql io.Reader) error {
	var out head
	source := &failing{Reader: sql}
	// Rows are of no interest; what else it says is messages.
	cmd := p.command("psql", "-X", "-q", "-b", "-o", "/dev/null", "-v", "ON_ERROR_STOP=1", "-f", "-")
	status, err := p.Workshop.Run(ctx, cmd, source, &out)
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case source.err != nil:
		return damaged(name, source.err)
	case err != nil:
		return err
	case status != "":
		return p.explain(name, out.String(), status)
	}
	return nil
}

// headBytes is how much of psql's messages is kept: the first error ends it,
// and is followed by the whole statement.
const headBytes = 8 << 20

// head keeps the beginning of what is written to it.
type head struct{ buf bytes.Buffer }

func (h *head) Write(b []byte) (int, error) {
	h.buf.Write(b[:min(len(b), headBytes-h.buf.Len())])
	return len(b), nil
}

func (h *head) String() string { return h.buf.String() }

// failing remembers that reading failed: whoever is fed from it sees the end
// of the input then, and may take that for the whole.
type failing struct {
	io.Reader
	err error
}

func (f *failing) Read(b []byte) (int, error) {
	n, err := f.Reader.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		f.err = err
	}
	return n, err
}

// problem is what psql says about a statement that failed.
type problem struct {
	line      int // of the file, where the statement begins; 0: unknown
	statement string
	message   string
}

const psqlPrefix = "psql:<stdin>:"

// parseProblem finds the first error in psql's messages.
func parseProblem(out string) (problem, bool) {
	var p problem
	var message, statement strings.Builder
	var in *strings.Builder
	for line := range strings.Lines(out) {
		rest, ok := strings.CutPrefix(line, psqlPrefix)
		if !ok {
			if in != nil {
				in.WriteString(line)
			}
			continue
		}
		number, text, _ := strings.Cut(rest, ": ")
		in = nil
		for _, severity := range []string{"ERROR:  ", "FATAL:  ", "PANIC:  ", "error: "} {
			if said, ok := strings.CutPrefix(text, severity); ok && message.Len() == 0 {
				p.line, _ = strconv.Atoi(number)
				in = &message
				in.WriteString(said)
			}
		}
		if said, ok := strings.CutPrefix(text, "STATEMENT:  "); ok && message.Len() > 0 && statement.Len() == 0 {
			in = &statement
			in.WriteString(said)
		}
	}
	p.message, p.statement = message.String(), statement.String()
	p.statement, p.message = strings.TrimSpace(p.statement), strings.TrimSpace(p.message)
	p.line = max(p.line-strings.Count(p.statement, "\n"), 0)
	return p, p.message != ""
}

// explain makes an error of what psql said.
func (p *preparation) explain(name, out, status string) error {
	found, ok := parseProblem(out)
	if !ok {
		return mayfly.Errorf(mayfly.Invalid, "%s: psql: %s: %s", name, status, lastLines(out, 5))
	}
	if extension := missingExtension(found.message); extension != "" {
		return p.Install.missingExtension(extension)
	}
	kind, hint := mayfly.Invalid, "correct it and try again; nothing was kept"
	if isFull(found.message) {
		kind, hint = mayfly.Exhausted, "free space on the disk, and try again"
	}
	where := fmt.Sprintf("%s:%d", name, found.line)
	if found.statement == "" {
		return mayfly.Errorf(kind, "%s: %s", where, found.message).Hint("%s", hint)
	}
	return mayfly.Errorf(kind, "%s: %s\nin the statement: %.600s", where, found.message, found.statement).Hint("%s", hint)
}

// missingExtension is the name in a complaint about an extension that is not
// installed.
func missingExtension(message string) string {
	if rest, ok := strings.CutPrefix(message, `extension "`); ok && strings.Contains(rest, "is not available") {
		name, _, _ := strings.Cut(rest, `"`)
		return name
	}
	if strings.HasPrefix(message, "could not open extension control file") {
		if path, _, ok := strings.Cut(message, `.control"`); ok {
			return path[strings.LastIndexByte(path, '/')+1:]
		}
	}
	return ""
}
