//go:build agents

package agents

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
)

// volumes are those directories of a state directory that hold the files of
// environments, in which secrets may be.
var volumes = []string{"pool", "pool.img", "base"}

// checkSecrets looks for secrets in everything that the server keeps and says.
func (r recorded) checkSecrets(t *testing.T) {
	s := map[string]string{
		"the prompt's": r.secrets.prompt, "the result's": r.secrets.result, "the answer's": r.secrets.answer,
		"the server's": r.secrets.server, "the real key": r.Key,
	}
	texts := r.kept(t)
	texts["the server's log"] = []byte(r.Log())
	for _, args := range [][]string{
		{"graph", r.env}, {"graph", r.env, "--json"}, {"events", "--json"}, {"show", r.env, "1", "--request"},
		{"show", r.env, "2", "--request"}, {"show", r.env, "2", "--answer"},
	} {
		texts["mayfly "+strings.Join(args, " ")] = []byte(r.Mayfly("/", args...))
	}
	control := false
	for _, text := range texts {
		control = control || find(text, "looks at the sum")
	}
	if !control {
		t.Error("control: what an action has shown is found nowhere")
	}
	for what, secret := range s {
		for where, text := range texts {
			if find(text, secret) {
				t.Errorf("%s secret is in %s", what, where)
			}
		}
	}
}

// kept is what the state directory holds beside the volumes, each file as it
// is and decompressed.
func (r recorded) kept(t *testing.T) map[string][]byte {
	t.Helper()
	texts := map[string][]byte{}
	err := filepath.WalkDir(r.State, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(r.State, path)
		if slices.Contains(volumes, rel) {
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() {
			return nil
		}
		b, err := os.ReadFile(path)
		texts[rel] = append(b, decompressed(b)...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return texts
}

// decompressed is the content of the zstd frames that begin anywhere in b.
func decompressed(b []byte) []byte {
	var all []byte
	magic := []byte{0x28, 0xb5, 0x2f, 0xfd}
	for at := 0; ; at += len(magic) {
		next := bytes.Index(b[at:], magic)
		if next < 0 {
			return all
		}
		at += next
		d, err := zstd.NewReader(bytes.NewReader(b[at:]), zstd.WithDecoderConcurrency(1), zstd.IgnoreChecksum(true))
		if err != nil {
			continue
		}
		var out bytes.Buffer
		out.ReadFrom(d) // to the first byte that is none of the frame's
		d.Close()
		all = append(append(all, out.Bytes()...), '\n')
	}
}

// find reports whether the text holds a good part of the secret, in one of the
// forms in which bytes are written.
func find(text []byte, secret string) bool {
	const part = 14 // bytes: a secret may be cut in two
	for at := 0; at+part <= len(secret); at++ {
		piece := []byte(secret[at : at+part])
		forms := [][]byte{piece, []byte(hex.EncodeToString(piece))}
		for shift := range 3 {
			// Without the ends, which depend on what is beside.
			coded := base64.StdEncoding.EncodeToString(append(make([]byte, shift), piece...))
			forms = append(forms, []byte(coded[4:16]))
		}
		for _, form := range forms {
			if bytes.Contains(text, form) {
				return true
			}
		}
	}
	return false
}
