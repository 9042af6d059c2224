package volume

import (
	"path/filepath"
	"strings"

	"mayfly.dev/mayfly"
)

// Names inside a pool. A name that begins with a dot is half-made: Recover
// removes it.
const (
	layersDir    = "layers"
	envsDir      = "envs"
	trashDir     = "trash"
	treeName     = "tree"
	liveName     = "live"
	nextName     = ".next"
	snapshotsDir = "snapshots"
	hostName     = "host"
	upperName    = "upper"
	workName     = "work"
	dbName       = "db"
)

// layout knows where things are below a pool's directory.
type layout struct{ dir string }

func (l layout) layers() string            { return filepath.Join(l.dir, layersDir) }
func (l layout) layer(name string) string  { return filepath.Join(l.dir, layersDir, name) }
func (l layout) envs() string              { return filepath.Join(l.dir, envsDir) }
func (l layout) env(env string) string     { return filepath.Join(l.dir, envsDir, env) }
func (l layout) live(env string) string    { return filepath.Join(l.env(env), liveName) }
func (l layout) next(env string) string    { return filepath.Join(l.env(env), nextName) }
func (l layout) trash() string             { return filepath.Join(l.dir, trashDir) }
func (l layout) snapshots(e string) string { return filepath.Join(l.env(e), snapshotsDir) }
func (l layout) snapshot(env, snapshot string) string {
	return filepath.Join(l.env(env), snapshotsDir, snapshot)
}

// hidden is the name beside path under which something is made before it
// appears at path.
func hidden(path string) string {
	return filepath.Join(filepath.Dir(path), "."+filepath.Base(path))
}

// volumeOf is the directory of the volume that an upper directory of the
// layout belongs to, empty when the path has another form.
func volumeOf(upper string) string {
	tree := filepath.Dir(upper)
	if filepath.Base(tree) == liveName {
		return filepath.Dir(tree)
	}
	if snapshots := filepath.Dir(tree); filepath.Base(snapshots) == snapshotsDir {
		return filepath.Dir(snapshots)
	}
	return ""
}

// checkNames refuses identifiers that are not [a-z0-9-]{1,64}.
func checkNames(names ...string) error {
	for _, n := range names {
		if len(n) == 0 || len(n) > 64 || strings.ContainsFunc(n, notIdentifier) {
			return mayfly.Errorf(mayfly.Invalid, "%.80q is not a volume identifier", n).
				Hint("use 1 to 64 of a-z, 0-9 and -")
		}
	}
	return nil
}

func notIdentifier(r rune) bool {
	return (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-'
}
