package manifest

import (
	"fmt"

	"mayfly.dev/mayfly"
)

// node is a piece of a parsed file, YAML or JSON, with its place in it.
type node struct {
	kind      nodeKind
	line, col int     // from 1
	text      string  // of a string, its value; of other scalars, as written
	fields    []field // of a mapping, in order, without duplicates
	items     []*node // of a sequence
}

type field struct {
	key   node
	value *node
}

type nodeKind int

const (
	nullNode nodeKind = iota
	boolNode
	intNode
	floatNode
	stringNode
	sequenceNode
	mappingNode
)

func (k nodeKind) String() string {
	return [...]string{"nothing", "a boolean", "an integer", "a number", "a string", "a list", "a mapping"}[k]
}

// duplicate is the error for a key that a mapping has twice.
func duplicate(file string, first, second *node) error {
	return located(file, second.line, second.col, "%q is set twice, first in line %d", second.text, first.line).
		Hint("remove one of the two")
}

// located is an error about a place in a file.
func located(file string, line, col int, format string, args ...any) *mayfly.Error {
	return mayfly.Errorf(mayfly.Invalid, "%s:%d:%d: %s", file, line, col, fmt.Sprintf(format, args...))
}
