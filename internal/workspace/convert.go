package workspace

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// conversion is how a file's bytes in git relate to those on disk.
type conversion byte

const (
	asIs conversion = iota
	maybeConverted
	throughLFS
)

// autocrlf reports whether git converts the line ends of every file that it
// takes for text.
func (r *repository) autocrlf() bool {
	switch strings.ToLower(r.config["core.autocrlf"]) {
	case "", "false", "no", "off", "0":
		return false
	}
	return true
}

// hasConversionAttributes looks for attribute files that mention one of the
// attributes which cause conversions.
func (r *repository) hasConversionAttributes(tracked []treeEntry) bool {
	names := []string{filepath.Join(r.commonDir, "info", "attributes"), "/etc/gitattributes"}
	if dir, err := os.UserHomeDir(); err == nil {
		names = append(names, filepath.Join(dir, ".config", "git", "attributes"))
	}
	if dir := os.Getenv("XDG_CONFIG_HOME"); dir != "" {
		names = append(names, filepath.Join(dir, "git", "attributes"))
	}
	for dir := range directories(tracked) {
		names = append(names, filepath.Join(r.root, filepath.FromSlash(dir), ".gitattributes"))
	}
	if slices.ContainsFunc(names, mentionsConversion) {
		return true
	}
	return slices.ContainsFunc(tracked, func(e treeEntry) bool { // one that is not on disk is read from the index
		return e.absent && path.Base(e.path) == ".gitattributes"
	})
}

// directories are all directories that hold tracked files, "" included.
func directories(tracked []treeEntry) map[string]bool {
	dirs := map[string]bool{"": true}
	last := ""
	for _, e := range tracked {
		dir := path.Dir(e.path)
		if dir == last {
			continue
		}
		last = dir
		for dir != "." && !dirs[dir] {
			dirs[dir] = true
			dir = path.Dir(dir)
		}
	}
	return dirs
}

// conversionWords are what an attribute line must contain to cause a
// conversion; a macro's definition contains them too.
var conversionWords = [][]byte{
	[]byte("text"), []byte("eol"), []byte("crlf"), []byte("filter"), []byte("ident"), []byte("encoding"),
}

const maxAttributes = 1 << 20

func mentionsConversion(name string) bool {
	b, err := readSmall(name, maxAttributes)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return false
	}
	if err != nil {
		// Too large or no file: git may still read it; let git decide.
		st, serr := os.Stat(name)
		return serr == nil && !st.IsDir()
	}
	for _, w := range conversionWords {
		if bytes.Contains(b, w) {
			return true
		}
	}
	return false
}

// converted asks git which of the paths are subject to conversion.
func (r *repository) converted(ctx context.Context, paths []string) (map[string]conversion, error) {
	if len(paths) == 0 {
		return nil, nil
	}
	cmd := r.command(ctx, "check-attr", "-z", "--stdin", "text", "crlf", "eol", "filter", "ident", "working-tree-encoding")
	cmd.Stdin = strings.NewReader(strings.Join(paths, "\x00") + "\x00")
	out, err := r.outputOf(ctx, cmd)
	if err != nil {
		return nil, err
	}
	return parseAttributes(out, r.autocrlf())
}

// parseAttributes reads git check-attr -z: triples of path, attribute, value;
// those of a path come one after the other.
func parseAttributes(out []byte, autocrlf bool) (map[string]conversion, error) {
	result := map[string]conversion{}
	name, values := "", map[string]string{}
	flush := func() {
		if how := classify(values, autocrlf); how != asIs {
			result[name] = how
		}
		clear(values)
	}
	for len(out) > 0 {
		p, rest, ok := bytes.Cut(out, []byte{0})
		attr, rest, ok2 := bytes.Cut(rest, []byte{0})
		value, rest, ok3 := bytes.Cut(rest, []byte{0})
		if !ok || !ok2 || !ok3 {
			return nil, errors.New("git check-attr: unexpected output")
		}
		out = rest
		if string(p) != name {
			flush()
			name = string(p)
		}
		values[string(attr)] = string(value)
	}
	flush()
	return result, nil
}

func classify(values map[string]string, autocrlf bool) conversion {
	given := func(attr string) bool {
		v := values[attr]
		return v != "" && v != "unspecified" && v != "unset"
	}
	unset := func(attr string) bool { return values[attr] == "unset" }
	switch {
	case len(values) == 0:
		return asIs
	case values["filter"] == "lfs":
		return throughLFS
	case given("filter"), given("ident"), given("working-tree-encoding"):
		return maybeConverted
	case given("text"), given("crlf") && !unset("text"), given("eol") && !unset("text"):
		return maybeConverted
	case autocrlf && !unset("text") && !unset("crlf"):
		return maybeConverted
	}
	return asIs
}
