package agreement

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"strings"
)

// fileHead begins what a patch in git's format has about one file. No other
// line of a patch begins so: those of files have a sign before them.
var fileHead = []byte("diff --git ")

// Files reads a patch in git's format and returns a digest of what it does to
// each file, by the line that names the file.
func Files(patch io.Reader) (map[string]string, error) {
	files := map[string]string{}
	r := bufio.NewReaderSize(patch, 64<<10)
	name, sum := "", hash.Hash(nil)
	end := func() {
		if sum != nil {
			files[name] = hex.EncodeToString(sum.Sum(nil)[:8])
		}
	}
	whole := true // the last line read was read to its end
	for {
		line, err := r.ReadSlice('\n')
		if whole && bytes.HasPrefix(line, fileHead) {
			end()
			name, sum = fileName(string(line[len(fileHead):])), sha256.New()
		}
		if sum != nil {
			sum.Write(line)
		}
		whole = !errors.Is(err, bufio.ErrBufferFull)
		if errors.Is(err, io.EOF) {
			end()
			return files, nil
		}
		if err != nil && whole {
			return nil, fmt.Errorf("read patch: %w", err)
		}
	}
}

// fileName is the new path in "a/OLD b/NEW", as far as it can be told.
func fileName(line string) string {
	line = strings.TrimRight(line, "\n")
	if half := len(line) / 2; len(line)%2 == 1 && line[half] == ' ' && strings.TrimPrefix(line[:half], "a/") == strings.TrimPrefix(line[half+1:], "b/") {
		return strings.TrimPrefix(line[:half], "a/")
	}
	return line
}
