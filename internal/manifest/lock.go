package manifest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/gowebpki/jcs"

	"mayfly.dev/mayfly"
)

// lockVersion is the version of the lock's format and of the rule by which
// Template is computed.
const lockVersion = 1

// Resolve pins a manifest: base and ws are what its base and workspace are
// now, lockfiles maps the path of each lockfile in the workspace to its
// digest, and epoch is SOURCE_DATE_EPOCH in seconds since 1970. Where there is
// a lock already, pass its epoch, and the commit's time otherwise: a lock that
// is itself committed must not drift by that.
//
// Template, the digest that names the prepared volume, is SHA-256 over the
// canonical JSON (RFC 8785) of all that the volume and the commands in it
// depend on: the version of this rule; the kind and digest of the base; the
// commit, digest and depth of the workspace; the lockfiles; the setup commands; the
// services; env, seed (as a string), epoch (as a string) and nested sandboxes. The name, the
// reference by which an image was found, the counts of files, and the limits,
// timeouts, model and recording, which environments and runs carry themselves,
// are not in it. The model is for the caller to pin.
func Resolve(m Manifest, base mayfly.LockedBase, ws mayfly.LockedWorkspace, lockfiles map[string]string, epoch int64) (mayfly.Lock, error) {
	l := mayfly.Lock{
		Version: lockVersion, Name: m.Name, Base: base, Workspace: ws,
		Setup: m.Setup, Env: maps.Clone(m.Env), Seed: m.Seed, Epoch: epoch,
		Limits: m.Limits, TTL: m.TTL, Idle: m.Idle, Nested: m.Nested,
	}
	l.Workspace.Depth = m.Workspace.Depth
	if m.Exact != mayfly.ExactEncrypted { // the default, which locks were written without
		l.Exact = m.Exact
	}
	if len(lockfiles) > 0 {
		l.Lockfiles = map[string]string{}
	}
	for name, digest := range lockfiles {
		if err := checkDigest(digest); err != nil {
			return l, fmt.Errorf("pin %s: %w", name, err)
		}
		if len(m.Services) == 0 || m.IsLockfile(name) {
			l.Lockfiles[printable(name)] = digest
		}
	}
	for name, value := range l.Env {
		if err := CheckEnv(name, value); err != nil {
			return l, err
		}
		if !utf8.ValidString(value) {
			return l, mayfly.Errorf(mayfly.Invalid, "the value of %s is not valid UTF-8", name).Hint("encode it, for example in base64")
		}
	}
	if len(l.Lockfiles) == 0 {
		l.Lockfiles = nil
	}
	for what, digest := range map[string]string{"base": base.Digest, "workspace": ws.Digest} {
		if err := checkDigest(digest); err != nil {
			return l, fmt.Errorf("pin the %s: %w", what, err)
		}
	}
	var err error
	if l.Services, err = lockServices(m.Services, lockfiles); err != nil {
		return l, err
	}
	l.Template, err = templateDigest(l)
	return l, err
}

// printable writes the bytes of a path that are not UTF-8, and control
// characters, as \xNN, so that a lock can hold it and a terminal show it.
func printable(path string) string {
	var b strings.Builder
	for i, r := range path {
		if r < ' ' || r == 0x7f || r == utf8.RuneError && path[i] != "\uFFFD"[0] {
			fmt.Fprintf(&b, `\x%02x`, path[i])
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// templateDigest applies the rule that Resolve documents.
func templateDigest(l mayfly.Lock) (string, error) {
	type base struct {
		Kind   string `json:"kind"`
		Digest string `json:"digest"`
	}
	type workspace struct {
		Commit string `json:"commit"`
		Digest string `json:"digest"`
		Depth  int    `json:"depth"`
	}
	data, err := json.Marshal(struct {
		Version   int               `json:"version"`
		Base      base              `json:"base"`
		Workspace workspace         `json:"workspace"`
		Lockfiles map[string]string `json:"lockfiles,omitempty"`
		Setup     []string          `json:"setup,omitempty"`
		Env       map[string]string `json:"env,omitempty"`
		Seed      string            `json:"seed"`  // canonical JSON has no integers above 2⁵³
		Epoch     string            `json:"epoch"` // for the same reason
		Nested    bool              `json:"nested_sandboxes"`

		Services []mayfly.LockedService `json:"services,omitempty"`
	}{
		l.Version, base{l.Base.Kind, l.Base.Digest}, workspace{l.Workspace.Commit, l.Workspace.Digest, l.Workspace.Depth},
		l.Lockfiles, l.Setup, l.Env, strconv.FormatUint(l.Seed, 10), strconv.FormatInt(l.Epoch, 10), l.Nested,
		l.Services,
	})
	if err == nil {
		data, err = jcs.Transform(data)
	}
	if err != nil {
		return "", fmt.Errorf("compute the template's digest: %w", err)
	}
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

// service is a locked service with a unit in its duration.
type service struct {
	mayfly.LockedService
	Timeout string `json:"timeout"`
}

func servicesOf(l mayfly.Lock) []service {
	var list []service
	for _, s := range l.Services {
		list = append(list, service{s, FormatDuration(s.Timeout)})
	}
	return list
}

// VerifyLock reports whether a lock's Template is that of its content, and what
// names files is as this package makes it. The server calls it on locks that it
// receives: whoever may send one may have written it by hand.
func VerifyLock(l mayfly.Lock) error {
	for _, digest := range []string{l.Base.Digest, l.Workspace.Digest} {
		if err := checkDigest(digest); err != nil {
			return err
		}
	}
	if err := checkServices(l); err != nil {
		return err
	}
	want, err := templateDigest(l)
	if err != nil {
		return err
	}
	if l.Version != lockVersion {
		return mayfly.Errorf(mayfly.Invalid, "the lock has version %d, and this mayfly knows %d", l.Version, lockVersion).
			Hint("use the same version of mayfly on both sides")
	}
	if l.Template != want {
		return mayfly.Errorf(mayfly.Invalid, "the lock's template is %s, and its content gives %s", l.Template, want).
			Hint("the lock was edited; write it anew with: mayfly lock")
	}
	return nil
}

// checkServices reads the services of a lock as if they came from a file.
func checkServices(l mayfly.Lock) error {
	if len(l.Services) == 0 {
		return nil
	}
	const name = "the lock"
	text, err := json.Marshal(servicesOf(l))
	if err != nil {
		return fmt.Errorf("check services: %w", err)
	}
	root, err := parseJSON(name, text)
	if err != nil {
		return err
	}
	d := decoder{file: name}
	d.lockedServices(&mayfly.Lock{})("services", root)
	return d.err
}

// ReadLock reads mayfly.lock. Every error names the file, and the line and
// column where there is one; a missing file is fs.ErrNotExist with a hint.
func ReadLock(path string) (mayfly.Lock, error) {
	data, err := readFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return mayfly.Lock{}, mayfly.Errorf(mayfly.NotFound, "there is no lock: %w", err).Hint("write it with: mayfly lock")
	}
	if err != nil {
		return mayfly.Lock{}, err
	}
	return ParseLock(path, data)
}

// ParseLock reads a lock from memory; name stands for it in error messages.
func ParseLock(name string, data []byte) (mayfly.Lock, error) {
	var l mayfly.Lock
	root, err := parseJSON(name, data)
	if err != nil {
		return l, err
	}
	d := decoder{file: name}
	d.lock(root, &l)
	if d.err != nil {
		return mayfly.Lock{}, d.err
	}
	if err := VerifyLock(l); err != nil {
		var e *mayfly.Error
		if errors.As(err, &e) {
			err = mayfly.Errorf(e.Kind, "%s: %w", name, e).Hint("%s", e.Fix)
		}
		return mayfly.Lock{}, err
	}
	return l, nil
}

// WriteLock writes the lock in place of what is at path, all or nothing. The
// form is stable: the same lock gives the same bytes.
func WriteLock(path string, l mayfly.Lock) error {
	data, err := FormatLock(l)
	if err != nil {
		return err
	}
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return notAFile(path, info.Mode().Type())
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".mayfly.lock-*")
	if err != nil {
		return fmt.Errorf("write the lock: %w", err)
	}
	defer os.Remove(f.Name()) // fails once it is renamed
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return fmt.Errorf("write the lock: %w", err)
	}
	return nil
}

// FormatLock is the content of mayfly.lock: JSON, one value a line, sizes and
// durations with units.
func FormatLock(l mayfly.Lock) ([]byte, error) {
	type limits struct {
		CPU    float64 `json:"cpu"`
		Memory string  `json:"memory"`
		PIDs   int64   `json:"pids"`
		Disk   string  `json:"disk"`
		Output string  `json:"output"`
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(struct {
		Version   int                    `json:"version"`
		Name      string                 `json:"name"`
		Base      mayfly.LockedBase      `json:"base"`
		Workspace mayfly.LockedWorkspace `json:"workspace"`
		Lockfiles map[string]string      `json:"lockfiles,omitempty"`
		Setup     []string               `json:"setup,omitempty"`
		Env       map[string]string      `json:"env,omitempty"`
		Seed      uint64                 `json:"seed"`
		Epoch     int64                  `json:"epoch"`
		Limits    limits                 `json:"limits"`
		TTL       string                 `json:"ttl"`
		Idle      string                 `json:"idle_timeout"`
		Nested    bool                   `json:"nested_sandboxes,omitempty"`
		Model     *mayfly.LockedModel    `json:"model,omitempty"`
		Exact     mayfly.ExactRecording  `json:"exact,omitempty"`
		Services  []service              `json:"services,omitempty"`
		Template  string                 `json:"template"`
	}{
		l.Version, l.Name, l.Base, l.Workspace, l.Lockfiles, l.Setup, l.Env, l.Seed, l.Epoch,
		limits{l.Limits.CPU, FormatSize(l.Limits.Memory), l.Limits.PIDs, FormatSize(l.Limits.Disk), FormatSize(l.Limits.Output)},
		FormatDuration(l.TTL), FormatDuration(l.Idle), l.Nested, l.Model, l.Exact, servicesOf(l), l.Template,
	})
	if err != nil {
		return nil, fmt.Errorf("format the lock: %w", err)
	}
	return b.Bytes(), nil
}

// keysOf are the keys of both maps, sorted.
func keysOf(a, b map[string]string) []string {
	keys := slices.Collect(maps.Keys(a))
	return slices.Compact(slices.Sorted(slices.Values(slices.AppendSeq(keys, maps.Keys(b)))))
}
