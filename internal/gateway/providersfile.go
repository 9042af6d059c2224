package gateway

import (
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path/filepath"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"mayfly.dev/mayfly"
	"mayfly.dev/mayfly/internal/nearest"
)

// ParseProviders reads the text of a providers file, which sets upstreams
// beside the built-in ones or in their place:
//
//	providers:
//	  - name: anthropic               # built-in: only what is set changes
//	    key_file: /etc/mayfly/anthropic.key
//	  - name: local                   # at /u/local/…
//	    url: http://127.0.0.1:8080/v1
//	    api: openai                   # the default; or anthropic, gemini
//	    key_env: LOCAL_KEY            # or key_file; without either no key is sent
//	    headers: {X-Team: tools}
//
// Errors are of kind Invalid and name file, line and column.
func ParseProviders(file string, text []byte) (map[string]Provider, error) {
	list := builtIn()
	root, err := parseYAML(file, text)
	if err != nil || root == nil {
		return list, err
	}
	r := &providerReader{file: file}
	top := r.fields(root, "the file", "providers")
	items, ok := top["providers"].(*ast.SequenceNode)
	if top["providers"] != nil && !ok {
		r.fail(top["providers"], "write a line beginning with - for each provider", "providers is not a list")
	}
	if items == nil {
		return list, r.result()
	}
	seen := map[string]bool{}
	for _, item := range items.Values {
		p := r.provider(item, list)
		if r.err == nil && seen[p.Name] {
			r.fail(item, "remove one of the two", "the provider %q is set twice", p.Name)
		}
		seen[p.Name] = true
		list[p.Name] = p
	}
	return list, r.result()
}

// maxNesting is deeper than any providers file goes.
const maxNesting = 16

func parseYAML(file string, text []byte) (ast.Node, error) {
	depth := 0
	for _, c := range text { // the parser calls itself for each level
		switch c {
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		}
		if depth > maxNesting {
			return nil, mayfly.Errorf(mayfly.Invalid, "%s: nested too deeply", file)
		}
	}
	f, err := parser.ParseBytes(text, 0)
	if err != nil {
		var y yaml.Error
		if errors.As(err, &y) && y.GetToken() != nil {
			at := y.GetToken().Position
			return nil, located(file, at, "%s", y.GetMessage()).Hint("correct the YAML syntax near this place")
		}
		return nil, mayfly.Errorf(mayfly.Invalid, "%s: %w", file, err)
	}
	var root ast.Node
	for _, d := range f.Docs {
		if d.Body == nil {
			continue
		}
		if root != nil {
			return nil, located(file, position(d.Body), "a second document").Hint("remove the line ---")
		}
		root = d.Body
	}
	if _, empty := root.(*ast.NullNode); empty {
		return nil, nil
	}
	return root, nil
}

func located(file string, at *token.Position, format string, args ...any) *mayfly.Error {
	return mayfly.Errorf(mayfly.Invalid, "%s:%d:%d: %s", file, at.Line, at.Column, fmt.Sprintf(format, args...))
}

// position is where a node begins. The token of a mapping is the colon behind
// its first key.
func position(n ast.Node) *token.Position {
	switch m := n.(type) {
	case *ast.MappingNode:
		if len(m.Values) > 0 && !m.IsFlowStyle {
			return position(m.Values[0])
		}
	case *ast.MappingValueNode:
		if m.Key != nil {
			return position(m.Key)
		}
	}
	if n != nil {
		if t := n.GetToken(); t != nil && t.Position != nil {
			return t.Position
		}
	}
	return &token.Position{Line: 1, Column: 1}
}

// providerReader turns nodes into providers. The first error stays.
type providerReader struct {
	file string
	err  error
}

// result is nil, not a nil pointer in an interface, when all is well.
func (r *providerReader) result() error { return r.err }

func (r *providerReader) fail(n ast.Node, hint, format string, args ...any) {
	if r.err == nil {
		r.err = located(r.file, position(n), format, args...).Hint("%s", hint)
	}
}

// fields are the values of a mapping that may have only the known keys.
func (r *providerReader) fields(n ast.Node, what string, known ...string) map[string]ast.Node {
	values := map[string]ast.Node{}
	pairs := r.pairs(n, what)
	for _, key := range slices.Sorted(maps.Keys(pairs)) {
		v := pairs[key]
		if !slices.Contains(known, key) {
			r.fail(v, unknownHint(key, known), "unknown field %q", key)
			continue
		}
		values[key] = v.Value
	}
	return values
}

// pairs are the entries of a mapping by key.
func (r *providerReader) pairs(n ast.Node, what string) map[string]*ast.MappingValueNode {
	var list []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.MappingNode:
		list = m.Values
	case *ast.MappingValueNode:
		list = []*ast.MappingValueNode{m}
	default:
		r.fail(n, "write lines such as: name: value", "%s is not a mapping", what)
	}
	pairs := map[string]*ast.MappingValueNode{}
	for _, v := range list {
		key := ""
		if k, ok := v.Key.(*ast.StringNode); ok {
			key = k.Value
		} else {
			r.fail(v, "use plain words as keys", "%s is not a field", v.Key)
		}
		if pairs[key] != nil {
			r.fail(v, "remove one of the two", "%q is set twice", key)
		}
		pairs[key] = v
	}
	return pairs
}

func unknownHint(key string, known []string) string {
	for _, k := range known {
		if len(key) <= 64 && nearest.Distance(key, k) <= max(1, len(k)/3) {
			return "did you mean " + k + "?"
		}
	}
	return "known fields here: " + strings.Join(known, ", ")
}

func (r *providerReader) text(n ast.Node, name string) string {
	switch s := n.(type) {
	case nil:
		return ""
	case *ast.StringNode:
		return s.Value
	case *ast.LiteralNode:
		return s.Value.Value
	}
	r.fail(n, "write a string, in quotes if need be", "%s is not a string", name)
	return ""
}

func (r *providerReader) provider(n ast.Node, list map[string]Provider) Provider {
	f := r.fields(n, "a provider", "name", "url", "api", "key_env", "key_file", "headers")
	name := r.text(f["name"], "name")
	if f["name"] == nil {
		r.fail(n, "add a line such as: name: local", "a provider without a name")
	} else if err := mayfly.CheckName(name); err != nil {
		r.fail(f["name"], "use 1 to 63 lower-case letters, digits and dashes", "%v", err)
	}
	p := Provider{Name: name, API: openaiName}
	if isBuiltIn(name) {
		p = list[name]
	}
	if f["url"] != nil {
		p.URL = r.url(f["url"])
	} else if p.URL == nil {
		r.fail(n, "add a line such as: url: http://127.0.0.1:8080/v1", "the provider %q has no url", name)
	}
	if f["api"] != nil {
		p.API = r.api(f["api"], p)
	}
	r.key(n, f, &p)
	if f["headers"] != nil {
		p.Header = r.headers(f["headers"])
	}
	return p
}

func (r *providerReader) url(n ast.Node) *url.URL {
	text := r.text(n, "url")
	u, err := url.Parse(text)
	const hint = "write a URL such as https://models.example.com/v1"
	switch {
	case err != nil:
		r.fail(n, hint, "bad url %q", text)
	case u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "":
		r.fail(n, hint, "the url %q is not one of http or https with a host", text)
	case u.User != nil:
		r.fail(n, "use key_env or key_file, or a header", "the url contains a user or password")
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		r.fail(n, hint, "the url %q has more than a path", text)
	case hasDotSegment(u.Path):
		r.fail(n, hint, "the path of the url %q has dots for segments", text)
	}
	return u
}

func (r *providerReader) api(n ast.Node, p Provider) string {
	api := r.text(n, "api")
	if !isBuiltIn(api) {
		r.fail(n, "use anthropic, openai or gemini", "unknown api %q", api)
	} else if isBuiltIn(p.Name) && api != p.Name {
		r.fail(n, "give a provider with another API another name", "the provider %q cannot speak %s", p.Name, api)
	}
	return api
}

func (r *providerReader) key(n ast.Node, f map[string]ast.Node, p *Provider) {
	env, file := r.text(f["key_env"], "key_env"), r.text(f["key_file"], "key_file")
	if f["key_env"] != nil && f["key_file"] != nil {
		r.fail(f["key_file"], "remove one of the two", "both key_env and key_file are set")
	}
	switch {
	case f["key_env"] != nil:
		if env == "" || strings.ContainsFunc(env, notInVariable) {
			r.fail(f["key_env"], "write the name of a variable, not its value", "bad variable name in key_env")
		}
		p.KeyEnv, p.KeyFile = env, ""
	case f["key_file"] != nil:
		if !filepath.IsAbs(file) {
			r.fail(f["key_file"], "write an absolute path", "key_file is %q", file)
		}
		p.KeyEnv, p.KeyFile = "", file
	case f["url"] != nil && isBuiltIn(p.Name):
		p.KeyEnv = "" // the key of one place is not for another
	}
}

func notInVariable(c rune) bool {
	return c != '_' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z')
}

func (r *providerReader) headers(n ast.Node) map[string]string {
	header := map[string]string{}
	pairs := r.pairs(n, "headers")
	for _, name := range slices.Sorted(maps.Keys(pairs)) {
		v := pairs[name]
		value := r.text(v.Value, "headers."+name)
		if name == "" || strings.ContainsFunc(name, notInHeaderName) {
			r.fail(v, "use letters, digits and dashes", "bad header name %q", name)
		}
		if strings.ContainsFunc(value, func(c rune) bool { return c < ' ' || c >= 0x7f }) {
			r.fail(v, "use printable ASCII", "the header %s cannot be sent", name)
		}
		for _, hop := range append(hopHeaders, "Content-Length", "Content-Encoding", "Accept-Encoding", "Host") {
			if strings.EqualFold(name, hop) {
				r.fail(v, "remove it", "the header %s is not for a provider to set", name)
			}
		}
		header[name] = value
	}
	return header
}

func notInHeaderName(c rune) bool { return c == '_' || c != '-' && notInVariable(c) }
