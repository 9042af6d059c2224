package postgres

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/goccy/go-yaml"

	"mayfly.dev/mayfly"
)

// Sources is the path of the file in which the administrator of a machine says
// what baselines may be copied from, beside the files of a template:
//
//	servers:                  # connections, by the names that manifests have for them
//	  production: postgres://reader:PASSWORD@db.example.com:5432/shop
//	directories: [/srv/pg]    # data directories of this machine, and what is below
//
// It holds passwords: it is read when it is needed, and refused when others
// than its owner may read it. Nothing of it is in an error.
type Sources string

type sources struct {
	Servers     map[string]string `yaml:"servers"`
	Directories []string          `yaml:"directories"`
}

func (s Sources) read() (v sources, err error) {
	f, err := os.Open(string(s))
	if errors.Is(err, fs.ErrNotExist) {
		return v, nil
	}
	if err != nil {
		return v, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return v, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return v, mayfly.Errorf(mayfly.Forbidden, "%s can be read by others than its owner", s).Hint("chmod 600 %s", s)
	}
	err = yaml.NewDecoder(f, yaml.Strict()).Decode(&v)
	var wrong yaml.Error
	if errors.As(err, &wrong) && wrong.GetToken() != nil { // its message quotes the file
		return v, s.malformed(fmt.Sprintf(" near line %d", wrong.GetToken().Position.Line))
	}
	if err != nil && info.Size() > 0 {
		return v, s.malformed("")
	}
	return v, nil
}

func (s Sources) malformed(where string) error {
	return mayfly.Errorf(mayfly.Invalid, "%s is not as it should be%s", s, where).
		Hint("it has servers, a mapping of names to connections, and directories, a list of absolute paths")
}

// Server returns the connection of that name.
func (s Sources) Server(name string) (Server, error) {
	v, err := s.read()
	if err != nil {
		return Server{}, err
	}
	connection, ok := v.Servers[name]
	if !ok {
		return Server{}, mayfly.Errorf(mayfly.NotFound, "there is no secret %q", name).
			Hint("add it to the servers in %s: %s: postgres://USER:PASSWORD@HOST:PORT/DATABASE", s, name)
	}
	server, err := ParseServer(connection)
	if err != nil {
		return Server{}, fmt.Errorf("%s: %s: %w", s, name, err)
	}
	return server, nil
}

// Directory returns nil when a data directory may be copied, whatever links
// lead there.
func (s Sources) Directory(path string) error {
	v, err := s.read()
	if err != nil {
		return err
	}
	real, err := filepath.EvalSymlinks(path)
	for _, dir := range v.Directories {
		allowed, bad := filepath.EvalSymlinks(dir)
		if err == nil && bad == nil && filepath.IsAbs(dir) && (real == allowed || strings.HasPrefix(real, strings.TrimSuffix(allowed, "/")+"/")) {
			return nil
		}
	}
	return mayfly.Errorf(mayfly.Forbidden, "the directory %s may not be copied", path).
		Hint("add it, or one above it, to the directories in %s, if environments may see what is in it", s)
}
