package postgres

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"mayfly.dev/mayfly"
)

// Install is one major version of Postgres on this machine.
type Install struct {
	Bin     string // directory of postgres, initdb, psql, …
	Share   string // directory that holds extension/
	Version string // "15.18"
	Major   int
}

// places are where distributions put the programs of a version.
var places = []string{
	"/usr/lib/postgresql/*/bin", "/usr/libexec/postgresql*", "/usr/pgsql-*/bin",
	"/opt/postgresql/*/bin", "/usr/local/pgsql/bin", "/usr/local/bin", "/usr/bin",
}

// Find returns the newest installation of a major version; an empty version
// means the newest of all. A minor version ("15.4") asks for at least that.
func Find(version string) (Install, error) { return find(version, places) }

func find(version string, places []string) (Install, error) {
	all := installs(places)
	if version == "" && len(all) > 0 {
		return all[0], nil
	}
	want, minor, err := parseVersion(cmp.Or(version, "15"))
	if err != nil {
		return Install{}, err
	}
	for _, in := range all {
		if _, m, _ := parseVersion(in.Version); in.Major == want && m >= minor {
			return in, nil
		}
	}
	return Install{}, mayfly.Errorf(mayfly.Unsupported, "Postgres %s is not installed here; %s", cmp.Or(version, "of any version"), there(all)).
		Hint("install it without a cluster of its own: apt-get install --no-install-recommends postgresql-%d", want)
}

// there says which versions are installed.
func there(all []Install) string {
	if len(all) == 0 {
		return "no version is"
	}
	var versions []string
	for _, in := range all {
		versions = append(versions, in.Version)
	}
	return "installed: " + strings.Join(versions, ", ")
}

// parseVersion takes "15" or "15.4" apart; what follows a beta's or a
// release candidate's number does not count.
func parseVersion(s string) (major, minor int, err error) {
	first, rest, _ := strings.Cut(s, ".")
	first = strings.TrimRight(strings.SplitN(strings.SplitN(first, "beta", 2)[0], "rc", 2)[0], "devl")
	major, err = strconv.Atoi(first)
	if err == nil && rest != "" {
		minor, err = strconv.Atoi(rest)
	}
	if err != nil || major < 10 || major > 99 || minor < 0 {
		return 0, 0, mayfly.Errorf(mayfly.Invalid, "bad Postgres version %.40q", s).Hint(`use a major version such as "15"`)
	}
	return major, minor, nil
}

// installs lists what is installed, the newest first.
func installs(places []string) []Install {
	var all []Install
	for _, pattern := range places {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			if in, err := inspect(dir); err == nil {
				all = append(all, in)
			}
		}
	}
	slices.SortStableFunc(all, func(a, b Install) int {
		_, am, _ := parseVersion(a.Version)
		_, bm, _ := parseVersion(b.Version)
		return cmp.Or(cmp.Compare(b.Major, a.Major), cmp.Compare(bm, am))
	})
	return all
}

// inspect asks the programs in a directory which version they are.
func inspect(bin string) (Install, error) {
	for _, program := range []string{"postgres", "initdb", "psql"} {
		if info, err := os.Stat(filepath.Join(bin, program)); err != nil || !info.Mode().IsRegular() {
			return Install{}, fmt.Errorf("no %s in %s", program, bin)
		}
	}
	out, err := askVersion(filepath.Join(bin, "postgres"))
	if err != nil {
		return Install{}, err
	}
	fields := strings.Fields(string(out)) // postgres (PostgreSQL) 15.18 (Debian …)
	if len(fields) < 3 {
		return Install{}, fmt.Errorf("unexpected version %q", out)
	}
	in := Install{Bin: bin, Version: fields[2]}
	if in.Major, _, err = parseVersion(in.Version); err != nil {
		return Install{}, err
	}
	for _, share := range []string{
		fmt.Sprintf("/usr/share/postgresql/%d", in.Major), filepath.Join(bin, "../share/postgresql"),
		filepath.Join(bin, "../share"), fmt.Sprintf("/usr/share/postgresql%d", in.Major), "/usr/share/postgresql",
	} {
		if _, err := os.Stat(filepath.Join(share, "extension/plpgsql.control")); err == nil {
			in.Share = filepath.Clean(share)
			return in, nil
		}
	}
	return Install{}, fmt.Errorf("no extensions beside %s", bin)
}

// answers are what programs have said of their version. To start one takes as
// long as all else that a look at an installation does.
var answers sync.Map // by program: answer

type answer struct {
	of  os.FileInfo
	out []byte
}

// askVersion asks a program which version it is, once for as long as its file
// is the same.
func askVersion(program string) ([]byte, error) {
	info, err := os.Stat(program)
	if err != nil {
		return nil, err
	}
	if known, ok := answers.Load(program); ok {
		k := known.(answer)
		if os.SameFile(k.of, info) && k.of.ModTime().Equal(info.ModTime()) && k.of.Size() == info.Size() {
			return k.out, nil
		}
	}
	out, err := exec.Command(program, "--version").Output()
	if err == nil {
		answers.Store(program, answer{info, out})
	}
	return out, err
}

func (in Install) program(name string) string { return filepath.Join(in.Bin, name) }

// packages are the names of Debian's packages whose extension has another
// one; %d stands for the major version.
var packages = map[string]string{
	"vector": "postgresql-%d-pgvector", "postgis": "postgresql-%d-postgis-3", "postgis_raster": "postgresql-%d-postgis-3",
	"postgis_topology": "postgresql-%d-postgis-3", "address_standardizer": "postgresql-%d-postgis-3",
	"pg_cron": "postgresql-%d-cron", "pg_partman": "postgresql-%d-partman", "pg_repack": "postgresql-%d-repack",
	"pg_hint_plan": "postgresql-%d-pg-hint-plan", "pgaudit": "postgresql-%d-pgaudit", "pgrouting": "postgresql-%d-pgrouting",
	"plpython3u": "postgresql-plpython3-%d", "plperl": "postgresql-plperl-%d", "plperlu": "postgresql-plperl-%d",
	"pltcl": "postgresql-pltcl-%d", "pltclu": "postgresql-pltcl-%d", "http": "postgresql-%d-http", "hll": "postgresql-%d-hll",
	"pgtap": "postgresql-%d-pgtap", "rum": "postgresql-%d-rum", "wal2json": "postgresql-%d-wal2json",
}

// contrib come with the server; where one is missing, the whole set is.
var contrib = []string{"amcheck", "btree_gin", "btree_gist", "citext", "cube", "dblink", "fuzzystrmatch", "hstore",
	"intarray", "ltree", "pageinspect", "pg_stat_statements", "pg_trgm", "pg_walinspect", "pgcrypto", "postgres_fdw",
	"tablefunc", "unaccent", "uuid-ossp"}

// HasExtension reports whether an extension is installed; the error names the
// package that brings it.
func (in Install) HasExtension(name string) error {
	if name == "" || strings.ContainsAny(name, "/\x00") || strings.HasPrefix(name, ".") {
		return mayfly.Errorf(mayfly.Invalid, "bad extension name %.80q", name).Hint("use a name such as pg_trgm")
	}
	if _, err := os.Stat(filepath.Join(in.Share, "extension", name+".control")); err == nil {
		return nil
	}
	return in.missingExtension(name)
}

func (in Install) missingExtension(name string) error {
	e := mayfly.Errorf(mayfly.Unsupported, "the extension %q is not installed for Postgres %d", name, in.Major)
	if p, ok := packages[name]; ok {
		return e.Hint("apt-get install "+p, in.Major)
	}
	if slices.Contains(contrib, name) {
		return e.Hint("apt-get install postgresql-%d, or postgresql-contrib elsewhere than on Debian", in.Major)
	}
	return e.Hint("find its package, perhaps postgresql-%d-%s, with: apt-cache search postgresql-%d", in.Major,
		strings.ReplaceAll(name, "_", "-"), in.Major)
}
