// Package internal holds the one test that is about all packages: which of
// them may import which.
package internal

import (
	"go/parser"
	"go/token"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "mayfly.dev/mayfly"

// leaves are small packages without a subject of their own, which any other
// may use.
var leaves = []string{"internal/archive", "internal/attach", "internal/modelapi", "internal/nearest", "internal/unixsock"}

// allowed lists what a package may import beyond the root, its own
// subpackages and the leaves. Packages that are not listed are capabilities
// and import nothing else of the module.
var allowed = map[string][]string{
	"internal/driver":  {"*"}, // drivers put capabilities together
	"internal/control": {"internal/driver", "internal/store"},
	"cmd/mayfly":       {"*"},
	"cmd/mayfly-guest": {"internal/guest/record", "internal/guest/wire", "internal/sandbox/boot"},
	"internal/bench":   {"client", "internal/scriptedmodel"},
	"internal/agents":  {"client", "internal/scriptedmodel"},
}

// unit is the part of an import path that imports are ruled by: two elements.
func unit(pkg string) string {
	parts := strings.SplitN(pkg, "/", 3)
	return strings.Join(parts[:min(2, len(parts))], "/")
}

func TestImportsGoOneWay(t *testing.T) {
	root := ".."
	checked := 0
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
			return err
		}
		rel, err := filepath.Rel(root, name)
		if err != nil {
			return err
		}
		pkg := path.Dir(filepath.ToSlash(rel))
		if strings.HasPrefix(pkg, "examples/") {
			return nil // programs of their own
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		checked++
		for _, spec := range file.Imports {
			imported, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if pkg == "." && strings.Contains(imported, ".") {
				t.Errorf("%s imports %s: the root package has the standard library only", rel, imported)
			}
			ours, ok := strings.CutPrefix(imported, module+"/")
			if !ok || mayImport(pkg, ours) {
				continue
			}
			t.Errorf("%s imports %s: declare an interface of what it needs, and let cmd or a driver pass it in", rel, ours)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if checked < 50 {
		t.Errorf("files checked = %d: the test does not see the module", checked)
	}
}

func mayImport(pkg, imported string) bool {
	list := allowed[unit(pkg)]
	return unit(imported) == unit(pkg) || slices.Contains(leaves, imported) ||
		slices.Contains(list, "*") || slices.Contains(list, imported)
}
