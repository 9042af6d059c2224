package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Secret is a value that must not be written, and the name that stands in its
// place.
type Secret struct{ Name, Value string }

// shortest is the length of the shortest value that is looked for: shorter
// ones are found everywhere.
const shortest = 6

// exact is one form of a secret.
type exact struct {
	name  string
	form  []byte
	fold  bool // letters in any case
	extra int  // bytes before and after that hold the rest of it
}

func (e *exact) match(text []byte, at int) (start, end int, ok bool) {
	if len(text)-at < len(e.form) {
		return 0, 0, false
	}
	end = at + len(e.form)
	if e.fold {
		ok = bytes.EqualFold(text[at:end], e.form)
	} else {
		ok = bytes.Equal(text[at:end], e.form)
	}
	if !ok {
		return 0, 0, false
	}
	for n := 0; n < e.extra && at > 0 && isBase64(text[at-1]); n++ {
		at--
	}
	for n := 0; n < e.extra && end < len(text) && isBase64(text[end]); n++ {
		end++
	}
	return at, end, true
}

func isBase64(c byte) bool {
	return isLetter(c) || isDigit(c) || strings.IndexByte("+/-_=", c) >= 0
}

// forms are the ways in which a secret is written. JSON's escapes are not
// among them: texts are looked at with their escapes undone.
func forms(s Secret) []*exact {
	name := label(s.Name)
	var list []*exact
	add := func(form string, fold bool, extra int) {
		same := func(e *exact) bool { return string(e.form) == form }
		if len(form) >= shortest && !slices.ContainsFunc(list, same) {
			list = append(list, &exact{name, []byte(form), fold, extra})
		}
	}
	value := strings.TrimSpace(s.Value)
	add(value, false, 0)
	if len(list) == 0 {
		return nil
	}
	add(url.QueryEscape(value), true, 0)
	add(url.PathEscape(value), true, 0)
	add(hex.EncodeToString([]byte(value)), true, 0)
	for _, enc := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
		for shift := range 3 {
			add(inner(enc, value, shift), false, 4)
		}
	}
	return list
}

// inner is the part of a base64 text that does not depend on what stands
// before and after value, when shift bytes of a group of three come before.
func inner(enc *base64.Encoding, value string, shift int) string {
	text := enc.EncodeToString(append(make([]byte, shift), value...))
	from := (shift*8 + 5) / 6
	to := (shift + len(value)) * 8 / 6
	return text[from:to]
}

var notLabel = regexp.MustCompile(`[^a-z0-9-]+`)

// label makes a name fit for a marker.
func label(name string) string {
	name = strings.Trim(notLabel.ReplaceAllString(strings.ToLower(name), "-"), "-")
	if name == "" {
		return "secret"
	}
	return name[:min(len(name), 40)]
}

var secretName = regexp.MustCompile(`(?i)key|token|secret|passw|passphrase|credential|auth|private|_pat$|dsn|database_url|cookie`)

// FromEnvironment picks the variables of an environment that look as if they
// held secrets.
func FromEnvironment(environ []string) []Secret {
	var list []Secret
	for _, pair := range environ {
		name, value, _ := strings.Cut(pair, "=")
		if !secretName.MatchString(name) || len(value) < 8 || strings.HasPrefix(value, "/") {
			continue
		}
		list = append(list, Secret{name, value})
	}
	return list
}
