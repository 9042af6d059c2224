package manifest

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"unicode/utf8"
)

// parseJSON parses one JSON value (RFC 8259) with the place of each part.
func parseJSON(file string, data []byte) (*node, error) {
	if err := checkText(file, data); err != nil {
		return nil, err
	}
	p := jsonParser{file: file, data: data, dec: json.NewDecoder(bytes.NewReader(data)), line: 1}
	p.dec.UseNumber()
	n, err := p.value(0)
	if err != nil {
		return nil, err
	}
	at := p.place()
	if _, err := p.dec.Token(); err != io.EOF {
		return nil, p.fail(at, "something follows the end of the value")
	}
	return n, nil
}

type jsonParser struct {
	file string
	data []byte
	dec  *json.Decoder

	line, lineStart, seen int // of the place last asked for
}

// place is an empty node where the next token begins.
func (p *jsonParser) place() *node {
	i := int(p.dec.InputOffset())
	for i < len(p.data) && strings.IndexByte(" \t\r\n,:", p.data[i]) >= 0 {
		i++
	}
	return p.at(i)
}

// at is an empty node at an offset, which never decreases from call to call.
func (p *jsonParser) at(offset int) *node {
	for ; p.seen < offset; p.seen++ {
		if p.data[p.seen] == '\n' {
			p.line, p.lineStart = p.line+1, p.seen+1
		}
	}
	return &node{line: p.line, col: utf8.RuneCount(p.data[p.lineStart:max(offset, p.lineStart)]) + 1}
}

func (p *jsonParser) fail(n *node, message string) error {
	return located(p.file, n.line, n.col, "%s", message).Hint("write the lock anew with: mayfly lock")
}

// token reads the next token.
func (p *jsonParser) token() (*node, json.Token, error) {
	n := p.place()
	t, err := p.dec.Token()
	var syntax *json.SyntaxError
	switch {
	case errors.As(err, &syntax):
		return n, nil, p.fail(p.at(max(p.seen, min(int(syntax.Offset)-1, len(p.data)))), syntax.Error())
	case err != nil:
		return n, nil, p.fail(p.at(len(p.data)), "the file ends in the middle")
	}
	return n, t, nil
}

func (p *jsonParser) value(depth int) (*node, error) {
	n, t, err := p.token()
	if err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, p.fail(n, "nested too deeply")
	}
	switch t := t.(type) {
	case string:
		n.kind, n.text = stringNode, t
	case json.Number:
		n.kind, n.text = intNode, t.String()
		if strings.ContainsAny(n.text, ".eE") {
			n.kind = floatNode
		}
	case bool:
		n.kind, n.text = boolNode, map[bool]string{true: "true", false: "false"}[t]
	case json.Delim:
		if t == '[' {
			n.kind = sequenceNode
			return n, p.sequence(n, depth)
		}
		n.kind = mappingNode
		return n, p.mapping(n, depth)
	}
	return n, nil
}

func (p *jsonParser) sequence(n *node, depth int) error {
	for p.dec.More() {
		item, err := p.value(depth + 1)
		if err != nil {
			return err
		}
		n.items = append(n.items, item)
	}
	_, _, err := p.token() // the closing bracket
	return err
}

func (p *jsonParser) mapping(n *node, depth int) error {
	seen := map[string]*node{}
	for p.dec.More() {
		key, t, err := p.token()
		if err != nil {
			return err
		}
		key.kind = stringNode
		key.text, _ = t.(string) // the decoder accepts no other key
		if first, ok := seen[key.text]; ok {
			return duplicate(p.file, first, key)
		}
		seen[key.text] = key
		value, err := p.value(depth + 1)
		if err != nil {
			return err
		}
		n.fields = append(n.fields, field{*key, value})
	}
	_, _, err := p.token() // the closing brace
	return err
}
