package manifest

import (
	"math"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"mayfly.dev/mayfly"
)

// The least that an environment can be expected to live with, and the bounds
// of what makes sense on one machine.
const (
	minCPU    = 0.01
	maxCPU    = 4096.0
	minMemory = 16 << 20
	minDisk   = 16 << 20
	minOutput = 4 << 10
	minPIDs   = 16
	maxPIDs   = 4 << 20
)

// manifest decodes the root of mayfly.yaml.
func (d *decoder) manifest(n *node, m *Manifest) {
	d.fieldsOf(n, "", map[string]func(string, *node){
		"name":             d.text(&m.Name, mayfly.CheckName),
		"base":             d.base(&m.Base),
		"workspace":        d.workspace(&m.Workspace),
		"lockfiles":        d.texts(&m.Lockfiles, checkPattern),
		"setup":            d.texts(&m.Setup, checkCommand),
		"env":              d.textMap(&m.Env, CheckEnv),
		"seed":             d.unsigned(&m.Seed),
		"limits":           d.limits(&m.Limits),
		"ttl":              d.duration(&m.TTL, mayfly.MinTTL, mayfly.MaxTTL),
		"idle":             d.duration(&m.Idle, mayfly.MinTTL, mayfly.MaxTTL),
		"nested_sandboxes": d.boolean(&m.Nested),
		"model":            d.text(&m.Model, checkModel),
		"recording":        d.recording(m),
		"services":         d.services(m),
	})
}

func (d *decoder) base(b *Base) func(string, *node) {
	return func(name string, n *node) {
		const hint = "write base: host, or an image: field below base:"
		switch n.kind {
		case stringNode:
			if n.text != string(HostBase) {
				d.fail(n, hint, "base is %q", n.text)
			}
			*b = Base{Kind: HostBase}
		case mappingNode:
			b.Kind = ImageBase
			d.fieldsOf(n, name, map[string]func(string, *node){"image": d.text(&b.Image, checkImage)})
			if d.err == nil && b.Image == "" {
				d.fail(n, hint, "base has no image")
			}
		default:
			d.wrongType(n, name, "host or a mapping with the field image")
		}
	}
}

func (d *decoder) workspace(w *Workspace) func(string, *node) {
	return func(name string, n *node) {
		depth := int64(w.Depth)
		d.fieldsOf(n, name, map[string]func(string, *node){
			"uncommitted": d.boolean(&w.Uncommitted),
			"depth":       d.whole(&depth, 0, math.MaxInt32),
		})
		w.Depth = int(depth)
	}
}

func (d *decoder) limits(l *mayfly.Limits) func(string, *node) {
	return func(name string, n *node) {
		d.fieldsOf(n, name, map[string]func(string, *node){
			"cpu":    d.cores(&l.CPU),
			"memory": d.size(&l.Memory, minMemory),
			"pids":   d.whole(&l.PIDs, minPIDs, maxPIDs),
			"disk":   d.size(&l.Disk, minDisk),
			"output": d.size(&l.Output, minOutput),
		})
	}
}

func (d *decoder) recording(m *Manifest) func(string, *node) {
	return func(name string, n *node) {
		exact := string(m.Exact)
		d.fieldsOf(n, name, map[string]func(string, *node){"exact": d.text(&exact, checkExact)})
		m.Exact = mayfly.ExactRecording(exact)
	}
}

// checkModel looks at the form of a reference to the model registry.
func checkModel(s string) error {
	name, version, exact := strings.Cut(s, "@")
	n, err := strconv.Atoi(version)
	if mayfly.CheckName(name) != nil || exact && (err != nil || n < 1) {
		return mayfly.Errorf(mayfly.Invalid, "bad model %.100q", s).
			Hint("write NAME or NAME@VERSION, as mayfly model list shows them")
	}
	return nil
}

func checkExact(s string) error {
	if s != string(mayfly.ExactEncrypted) && s != string(mayfly.ExactNone) {
		return mayfly.Errorf(mayfly.Invalid, "recording.exact is %.100q", s).Hint("use encrypted or none")
	}
	return nil
}

// checkImage looks at the form of an image reference. Whether there is such
// an image shows when it is resolved.
func checkImage(s string) error {
	if strings.ContainsFunc(s, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) }) || len(s) > 4096 {
		return mayfly.Errorf(mayfly.Invalid, "bad image reference %.100q", s).
			Hint("write it without spaces, such as debian:12 or oci:./image")
	}
	for _, t := range transports {
		if s == t {
			return mayfly.Errorf(mayfly.Invalid, "%q has no path", s).Hint("write the path behind it, such as %s./image", t)
		}
	}
	if scheme, _, ok := strings.Cut(s, "://"); ok {
		return mayfly.Errorf(mayfly.Invalid, "image reference %q begins with %s://", s, scheme).
			Hint("write a registry reference without a scheme, or oci:DIR, oci-archive:FILE or docker-archive:FILE")
	}
	return nil
}

func checkCommand(s string) error {
	if strings.ContainsRune(s, 0) {
		return mayfly.Errorf(mayfly.Invalid, "a command contains a NUL character").Hint("remove it")
	}
	if len(s) > maxEnv {
		return mayfly.Errorf(mayfly.Invalid, "a command of %d bytes", len(s)).Hint("put it into a script in the repository")
	}
	return nil
}

// checkPattern refuses patterns that can match nothing in a workspace.
func checkPattern(s string) error {
	bad := func(why string) error {
		return mayfly.Errorf(mayfly.Invalid, "bad pattern %q: %s", s, why).
			Hint("write a name such as go.sum, or a path in the repository such as web/package-lock.json or **/*.lock")
	}
	switch segments := strings.Split(s, "/"); {
	case strings.HasPrefix(s, "/"):
		return bad("it is an absolute path")
	case slices.Contains(segments, "..") || slices.Contains(segments, ".") || slices.Contains(segments, ""):
		return bad("a part of it is empty, . or ..")
	case len(segments) > 64:
		return bad("it has too many parts")
	}
	if _, err := path.Match(s, ""); err != nil {
		return bad("its brackets or backslashes do not match")
	}
	return nil
}

// maxEnv bounds "NAME=value" with its final NUL, and a command: the kernel's
// MAX_ARG_STRLEN.
const maxEnv = 128 << 10

// reserved are the variables that mayfly sets in every environment, with what
// to do instead of setting them.
var reserved = map[string]string{
	"HOME":              "it is always /home/agent",
	"USER":              "it is always agent",
	"LOGNAME":           "it is always agent",
	"HOSTNAME":          "it is always mayfly",
	"PWD":               "commands start in /workspace",
	"TZ":                "it is always UTC, so that runs are comparable",
	"LANG":              "it is always C.UTF-8, so that runs are comparable; LC_ALL may be set",
	"SOURCE_DATE_EPOCH": "it is set from the lock",
	"PYTHONHASHSEED":    "it is set from the seed",
}

// CheckEnv reports whether a variable may be set in an environment: a name of
// letters, digits and underscores that mayfly does not set itself, and a value
// that fits.
func CheckEnv(name, value string) error {
	if !validEnvName(name) {
		return mayfly.Errorf(mayfly.Invalid, "bad variable name %.100q", name).
			Hint("use letters, digits and underscores, not beginning with a digit")
	}
	if strings.HasPrefix(name, "MAYFLY_") {
		return mayfly.Errorf(mayfly.Invalid, "the variable %s is reserved", name).Hint("names that begin with MAYFLY_ belong to mayfly; use another")
	}
	if why, ok := reserved[name]; ok {
		return mayfly.Errorf(mayfly.Invalid, "the variable %s is reserved", name).Hint("remove it: %s", why)
	}
	if strings.ContainsRune(value, 0) {
		return mayfly.Errorf(mayfly.Invalid, "the value of %s contains a NUL character", name).Hint("remove it")
	}
	if n := len(name) + len(value) + 2; n > maxEnv {
		return mayfly.Errorf(mayfly.Invalid, "the variable %s has %d bytes", name, n).
			Hint("Linux allows %d; put the value into a file", maxEnv)
	}
	return nil
}

func validEnvName(s string) bool {
	for i, c := range []byte(s) {
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c == '_'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return s != ""
}

// lock decodes the root of mayfly.lock.
func (d *decoder) lock(n *node, l *mayfly.Lock) {
	var version, files, uncommitted, depth int64
	var exact string
	required := []string{"version", "name", "base", "workspace", "epoch", "limits", "ttl", "idle_timeout", "template"}
	d.fieldsOf(n, "", map[string]func(string, *node){
		"version": d.whole(&version, 1, math.MaxInt32),
		"name":    d.text(&l.Name, mayfly.CheckName),
		"base": func(name string, n *node) {
			d.fieldsOf(n, name, map[string]func(string, *node){
				"kind":      d.text(&l.Base.Kind, checkKind),
				"reference": d.text(&l.Base.Reference, checkImage),
				"digest":    d.text(&l.Base.Digest, checkDigest),
			})
		},
		"workspace": func(name string, n *node) {
			d.fieldsOf(n, name, map[string]func(string, *node){
				"commit":      d.text(&l.Workspace.Commit, checkCommit),
				"digest":      d.text(&l.Workspace.Digest, checkDigest),
				"files":       d.whole(&files, 0, math.MaxInt32),
				"uncommitted": d.whole(&uncommitted, 0, math.MaxInt32),
				"depth":       d.whole(&depth, 0, math.MaxInt32),
			})
		},
		"lockfiles":        d.textMap(&l.Lockfiles, func(_, digest string) error { return checkDigest(digest) }),
		"setup":            d.texts(&l.Setup, checkCommand),
		"env":              d.textMap(&l.Env, CheckEnv),
		"seed":             d.unsigned(&l.Seed),
		"epoch":            d.whole(&l.Epoch, 0, math.MaxInt64),
		"limits":           d.limits(&l.Limits),
		"ttl":              d.duration(&l.TTL, mayfly.MinTTL, mayfly.MaxTTL),
		"idle_timeout":     d.duration(&l.Idle, mayfly.MinTTL, mayfly.MaxTTL),
		"nested_sandboxes": d.boolean(&l.Nested),
		"model": func(name string, n *node) {
			l.Model = &mayfly.LockedModel{}
			d.fieldsOf(n, name, map[string]func(string, *node){
				"ref":    d.text(&l.Model.Ref, checkModel),
				"digest": d.text(&l.Model.Digest, checkDigest),
			})
		},
		"exact":    d.text(&exact, checkExact),
		"services": d.lockedServices(l),
		"template": d.text(&l.Template, checkDigest),
	})
	for _, name := range required {
		if !slices.ContainsFunc(n.fields, func(f field) bool { return f.key.text == name }) {
			d.fail(n, "write the lock anew with: mayfly lock", "the field %q is missing", name)
		}
	}
	if d.err == nil && (l.Base.Digest == "" || l.Workspace.Digest == "" || l.Limits.CPU == 0) {
		d.fail(n, "write the lock anew with: mayfly lock", "a digest or limit is missing")
	}
	if version > lockVersion {
		d.fail(n, "update mayfly, or write the lock anew with: mayfly lock", "the lock has version %d, and this mayfly knows %d", version, lockVersion)
	}
	l.Version, l.Exact = int(version), mayfly.ExactRecording(exact)
	l.Workspace.Files, l.Workspace.Uncommitted, l.Workspace.Depth = int(files), int(uncommitted), int(depth)
}

func checkKind(s string) error {
	if s != string(HostBase) && s != string(ImageBase) {
		return mayfly.Errorf(mayfly.Invalid, "%q is neither host nor image", s).Hint("write the lock anew with: mayfly lock")
	}
	return nil
}

func checkDigest(s string) error {
	hex, ok := strings.CutPrefix(s, "sha256:")
	if !ok || len(hex) != 64 || strings.Trim(hex, "0123456789abcdef") != "" {
		return mayfly.Errorf(mayfly.Invalid, "%.100q is not a digest", s).Hint("a digest is sha256: and 64 hexadecimal digits; write the lock anew with: mayfly lock")
	}
	return nil
}

func checkCommit(s string) error {
	if (len(s) != 40 && len(s) != 64) || strings.Trim(s, "0123456789abcdef") != "" {
		return mayfly.Errorf(mayfly.Invalid, "%.100q is not a commit", s).Hint("write the lock anew with: mayfly lock")
	}
	return nil
}
