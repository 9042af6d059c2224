package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"slices"
	"strconv"
)

// edit replaces one token of a file.
type edit struct {
	File   string `json:"file"`
	Line   int    `json:"line"`
	Column int    `json:"column"` // in bytes, from 1
	Old    string `json:"old"`
	New    string `json:"new"`
	rarity int    // how unusual the mistake is that this would correct, from 1
	undo   bool   // takes another one back
}

// inverse takes the edit back.
func (e edit) inverse() edit {
	e.Old, e.New, e.undo = e.New, e.Old, !e.undo
	return e
}

// operators lists what an operator may have been meant to be, and how unusual
// that mistake is: a boundary off by one is the most common.
var operators = map[token.Token]map[token.Token]int{
	token.LSS:  {token.LEQ: 1, token.GTR: 2, token.GEQ: 3},
	token.LEQ:  {token.LSS: 1, token.GEQ: 2, token.GTR: 3},
	token.GTR:  {token.GEQ: 1, token.LSS: 2, token.LEQ: 3},
	token.GEQ:  {token.GTR: 1, token.LEQ: 2, token.LSS: 3},
	token.EQL:  {token.NEQ: 2},
	token.NEQ:  {token.EQL: 2},
	token.LAND: {token.LOR: 2},
	token.LOR:  {token.LAND: 2},
	token.ADD:  {token.SUB: 3},
	token.SUB:  {token.ADD: 3},
	token.MUL:  {token.QUO: 4},
	token.QUO:  {token.MUL: 4, token.REM: 4},
	token.REM:  {token.QUO: 4},
}

// mutations are all edits of one token that could correct a slip: another
// operator, or a number one more or one less.
func mutations(file, source string) ([]edit, error) {
	files := token.NewFileSet()
	tree, err := parser.ParseFile(files, file, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("parse %s: %w", file, err)
	}
	var edits []edit
	propose := func(pos token.Pos, old, new string, rarity int) {
		p := files.Position(pos)
		edits = append(edits, edit{File: file, Line: p.Line, Column: p.Column, Old: old, New: new, rarity: rarity})
	}
	ast.Inspect(tree, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BinaryExpr:
			for _, op := range slices.Sorted(maps.Keys(operators[n.Op])) {
				propose(n.OpPos, n.Op.String(), op.String(), operators[n.Op][op])
			}
		case *ast.BasicLit:
			if v, err := strconv.Atoi(n.Value); n.Kind == token.INT && err == nil {
				propose(n.Pos(), n.Value, strconv.Itoa(v+1), 3)
				if v > 0 {
					propose(n.Pos(), n.Value, strconv.Itoa(v-1), 3)
				}
			}
		}
		return true
	})
	return edits, nil
}
