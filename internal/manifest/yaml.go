package manifest

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"

	"mayfly.dev/mayfly"
)

// maxDepth bounds the nesting of mappings and lists. A manifest needs 3; the
// parser recurses, so that a file must not choose its depth.
const maxDepth = 16

// maxTokens bounds the number of keys and values together: the parser takes
// quadratic time in it. Long text in one value is a single token.
const maxTokens = 1 << 15

// parseYAML parses one document whose root is a mapping. It returns nil for a
// document without content. Anchors, aliases, tags and merge keys are refused:
// a manifest is data, and what it says stands where it is said.
func parseYAML(file string, data []byte) (*node, error) {
	data = bytes.TrimPrefix(data, []byte("\xef\xbb\xbf"))
	if err := checkText(file, data); err != nil {
		return nil, err
	}
	tokens := lexer.Tokenize(string(data))
	if err := checkTokens(file, tokens); err != nil {
		return nil, err
	}
	// Duplicate keys are found below, where the message can name both places.
	f, err := parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
	if err != nil {
		return nil, syntaxError(file, err)
	}
	var body ast.Node
	for _, doc := range f.Docs {
		if doc.Body == nil {
			continue
		}
		if body != nil {
			p := position(doc.Body)
			return nil, located(file, p.Line, p.Column, "a second document").Hint("a manifest is one document: remove the line ---")
		}
		body = doc.Body
	}
	if body == nil {
		return nil, nil
	}
	c := converter{file: file}
	n, err := c.node(body, 0)
	if err != nil {
		return nil, err
	}
	switch n.kind {
	case nullNode:
		return nil, nil
	case mappingNode:
		return n, nil
	}
	return nil, located(file, n.line, n.col, "the file holds %s instead of fields", n.kind).Hint("write lines such as: name: example")
}

// checkText refuses bytes that no YAML document may contain.
func checkText(file string, data []byte) error {
	line, start := 1, 0
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		at := func() (int, int) { return line, utf8.RuneCount(data[start:i]) + 1 }
		switch {
		case r == utf8.RuneError && size == 1:
			l, c := at()
			return located(file, l, c, "the byte 0x%02x is not valid UTF-8", data[i]).Hint("save the file as UTF-8")
		case r == '\n':
			line, start = line+1, i+1
		case r < ' ' && r != '\t' && r != '\r', r == 0x7f:
			l, c := at()
			return located(file, l, c, "the control character 0x%02x is not allowed", r).Hint(`write it in double quotes, as "\x%02x"`, r)
		}
		i += size
	}
	return nil
}

// checkTokens refuses what the parser should not see: constructs that
// manifests do without, and nesting deep enough to exhaust its stack.
func checkTokens(file string, tokens token.Tokens) error {
	depth, entries, line := 0, 0, 0
	for i, t := range tokens {
		refuse := func(what, hint string) error {
			return located(file, t.Position.Line, t.Position.Column, "%s", what).Hint("%s", hint)
		}
		if i == maxTokens {
			return refuse("the file has too many keys and values", "keep long lists in files of their own, in the repository")
		}
		if t.Position.Line != line {
			line, entries = t.Position.Line, 0
		}
		switch t.Type {
		case token.InvalidType:
			return syntaxAt(file, t, t.Error)
		case token.AnchorType, token.AliasType, token.MergeKeyType:
			return refuse("anchors, aliases and merge keys are not supported", "write the value out; quote it if it begins with & or *")
		case token.TagType, token.DirectiveType:
			return refuse("tags and directives are not supported", "remove it; quote a value that begins with ! or %")
		case token.MappingKeyType:
			return refuse("explicit keys (?) are not supported", "write key: value; quote a value that begins with ?")
		case token.MappingStartType, token.SequenceStartType:
			depth++
		case token.MappingEndType, token.SequenceEndType:
			depth--
		case token.SequenceEntryType, token.MappingValueType:
			entries++
		}
		if depth > maxDepth || depth == 0 && entries > maxDepth || t.Position.IndentLevel > maxDepth {
			return refuse("nested too deeply", "no field of a manifest needs this")
		}
	}
	return nil
}

// syntaxError gives an error of the parser the form of all others.
func syntaxError(file string, err error) error {
	var y yaml.Error
	if !errors.As(err, &y) || y.GetToken() == nil {
		return mayfly.Errorf(mayfly.Invalid, "%s: %w", file, err)
	}
	return syntaxAt(file, y.GetToken(), y.GetMessage())
}

func syntaxAt(file string, t *token.Token, message string) error {
	e := located(file, t.Position.Line, t.Position.Column, "%s", message)
	if strings.Contains(message, "tab") || strings.HasPrefix(strings.TrimLeft(t.Origin, " \n"), "\t") {
		return e.Hint("indent with spaces: YAML does not allow tabs")
	}
	return e.Hint("correct the YAML syntax near this place")
}

// converter turns the parser's tree into nodes.
type converter struct{ file string }

func (c converter) node(n ast.Node, depth int) (*node, error) {
	p := position(n)
	out := &node{line: p.Line, col: p.Column, text: n.GetToken().Value}
	if depth > maxDepth {
		return nil, located(c.file, p.Line, p.Column, "nested too deeply")
	}
	switch n := n.(type) {
	case *ast.NullNode:
	case *ast.BoolNode:
		out.kind = boolNode
	case *ast.IntegerNode:
		out.kind = intNode
	case *ast.FloatNode, *ast.InfinityNode, *ast.NanNode:
		out.kind = floatNode
	case *ast.StringNode:
		out.kind, out.text = stringNode, n.Value
	case *ast.LiteralNode:
		out.kind, out.text = stringNode, n.Value.Value
	case *ast.SequenceNode:
		out.kind = sequenceNode
		for _, v := range n.Values {
			item, err := c.node(v, depth+1)
			if err != nil {
				return nil, err
			}
			out.items = append(out.items, item)
		}
	case *ast.MappingNode:
		return out, c.mapping(out, n.Values, depth)
	case *ast.MappingValueNode:
		return out, c.mapping(out, []*ast.MappingValueNode{n}, depth)
	default:
		return nil, located(c.file, p.Line, p.Column, "%s is not supported here", strings.ToLower(n.Type().String())).
			Hint("use plain strings, numbers, lists and mappings")
	}
	return out, nil
}

func (c converter) mapping(out *node, values []*ast.MappingValueNode, depth int) error {
	out.kind = mappingNode
	seen := map[string]*node{}
	for _, v := range values {
		key, err := c.node(v.Key, depth+1)
		if err != nil {
			return err
		}
		if key.kind == mappingNode || key.kind == sequenceNode {
			return located(c.file, key.line, key.col, "%s cannot be a key", key.kind)
		}
		if first, ok := seen[key.text]; ok {
			return duplicate(c.file, first, key)
		}
		seen[key.text] = key
		value := &node{line: key.line, col: key.col}
		if v.Value != nil {
			if value, err = c.node(v.Value, depth+1); err != nil {
				return err
			}
		}
		out.fields = append(out.fields, field{*key, value})
	}
	if len(out.fields) > 0 {
		out.line, out.col = out.fields[0].key.line, out.fields[0].key.col
	}
	return nil
}

// position is where a node begins. The token of a mapping is the colon behind
// its first key.
func position(n ast.Node) *token.Position {
	switch m := n.(type) {
	case *ast.MappingNode:
		if len(m.Values) > 0 && !m.IsFlowStyle {
			return position(m.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return position(m.Key)
	}
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position
	}
	return &token.Position{Line: 1, Column: 1}
}
