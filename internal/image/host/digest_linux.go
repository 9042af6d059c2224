package host

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"mayfly.dev/mayfly"
)

// Digest names the machine's programs: SHA-256 over the processor
// architecture, os-release, and the names and versions of all installed
// packages. Machines with the same packages have the same digest where the
// package manager keeps a text that says so (dpkg, apk, pacman, Nix, dnf5);
// with an older rpm it changes whenever packages do, but holds for one machine
// only, since its database is binary and unlike on every machine. Software
// that no package manager knows of, as below /usr/local and /opt, is not
// covered.
func Digest() (string, error) { return digest("/") }

func digest(root string) (string, error) {
	h := sha256.New()
	fmt.Fprintf(h, "mayfly host 1\narch %s\n", runtime.GOARCH)
	release, err := readSmall(filepath.Join(root, "etc/os-release"), 1<<20)
	if errors.Is(err, fs.ErrNotExist) {
		release, err = readSmall(filepath.Join(root, "usr/lib/os-release"), 1<<20)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read os-release: %w", err)
	}
	fmt.Fprintf(h, "os-release %d\n%s", len(release), release)
	found := false
	for _, db := range databases {
		err := db.read(h, filepath.Join(root, db.path))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", fmt.Errorf("read the package database: %w", err)
		}
		found = true
		if db.last {
			break
		}
	}
	if !found {
		return "", mayfly.Errorf(mayfly.Unsupported, "this machine has no package database that mayfly knows (dpkg, rpm, apk, pacman, Nix)").
			Hint("use an image: write base: with image: below it in mayfly.yaml")
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil)), nil
}

// databases are tried in order; a machine may have several. last ends the
// search, where the next ones say the same less well.
var databases = []struct {
	path string
	read func(w io.Writer, path string) error
	last bool
}{
	{"var/lib/dpkg/status", dpkg, false},
	{"lib/apk/db/installed", apk, false},
	{"usr/lib/apk/db/installed", apk, false},
	{"var/lib/pacman/local", directory, false},
	{"run/current-system", link, false},
	{"usr/lib/sysimage/libdnf5/nevras.toml", content, true},
	{"usr/lib/sysimage/rpm/rpmdb.sqlite", identity, true},
	{"var/lib/rpm/rpmdb.sqlite", identity, true},
	{"usr/lib/sysimage/rpm/Packages.db", identity, true},
	{"var/lib/rpm/Packages.db", identity, true},
	{"var/lib/rpm/Packages", identity, true},
}

// dpkg notes the packages that are installed, and leaves out descriptions and
// what else changes without a package changing.
func dpkg(w io.Writer, path string) error {
	data, err := readSmall(path, 256<<20)
	if err != nil {
		return err
	}
	return stanzas(w, "dpkg", data, [][]byte{[]byte("Package: "), []byte("Architecture: "), []byte("Version: "), []byte("Status: ")}, []byte("Status: install ok installed"))
}

// apk notes name, version and checksum.
func apk(w io.Writer, path string) error {
	data, err := readSmall(path, 256<<20)
	if err != nil {
		return err
	}
	return stanzas(w, "apk", data, [][]byte{[]byte("P:"), []byte("V:"), []byte("A:"), []byte("C:")}, nil)
}

// stanzas notes, for each paragraph that has the line that must be in it, the
// lines with the prefixes, and sorts the paragraphs.
func stanzas(w io.Writer, name string, data []byte, prefixes [][]byte, must []byte) error {
	var all [][]byte
	var kept []byte
	has := must == nil
	flush := func() {
		if has && len(kept) > 0 {
			all = append(all, bytes.Clone(kept))
		}
		kept, has = kept[:0], must == nil
	}
	for len(data) > 0 {
		line := data
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			line, data = data[:i], data[i+1:]
		} else {
			data = nil
		}
		if len(line) == 0 {
			flush()
			continue
		}
		if line[0] == ' ' {
			continue // of a description
		}
		for _, p := range prefixes {
			if bytes.HasPrefix(line, p) {
				kept = append(append(kept, line...), '\n')
				has = has || bytes.Equal(line, must)
				break
			}
		}
	}
	flush()
	if len(all) == 0 {
		return fmt.Errorf("the database of %s lists nothing", name)
	}
	slices.SortFunc(all, bytes.Compare)
	fmt.Fprintf(w, "%s %d\n", name, len(all))
	for _, stanza := range all {
		if _, err := w.Write(append(stanza, '\n')); err != nil {
			return err
		}
	}
	return nil
}

// directory notes the names in a directory, which contain versions.
func directory(w io.Writer, path string) error {
	list, err := os.ReadDir(path)
	if err != nil {
		return err
	}
	names := make([]string, 0, len(list))
	for _, e := range list {
		names = append(names, e.Name())
	}
	_, err = fmt.Fprintf(w, "%s\n%s\n", filepath.Base(filepath.Dir(path)), strings.Join(names, "\n"))
	return err
}

// link notes where a link leads, which contains a digest.
func link(w io.Writer, path string) error {
	target, err := os.Readlink(path)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "system %s\n", target)
	return err
}

// content notes a text that package managers keep beside their database.
func content(w io.Writer, path string) error {
	data, err := readSmall(path, 256<<20)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s %d\n%s", filepath.Base(path), len(data), data)
	return err
}

// identity notes which state of a binary database there is: tens of megabytes
// take longer to read than a run takes to start.
func identity(w io.Writer, path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s %d %d\n", filepath.Base(path), info.Size(), info.ModTime().UnixNano())
	return err
}

// readSmall reads a file of at most max bytes, with one buffer of its size.
func readSmall(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > max {
		return nil, fmt.Errorf("%s is not a file of at most %d bytes", path, max)
	}
	data := make([]byte, info.Size())
	n, err := io.ReadFull(f, data)
	if errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF {
		err = nil // it shrank meanwhile
	}
	return data[:n], err
}
