// This file makes mutants: the source of a package with one small fault in it.
//
// Gremlins, which was tried first, looks at coverage to decide what is worth a try, and Go counts no coverage in the condition of a case
// (https://github.com/go-gremlins/gremlins/issues/298). Most decisions of these packages stand there. Nor does it swap min and max or leave
// out a statement, which are the faults that had gone unnoticed.

package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strings"
)

// mutant is one fault in a file.
type mutant struct {
	in         string // the function, or nothing in a declaration
	line       int
	start, end int    // of the bytes that it replaces
	old, new   string // what it replaces, as people read it, and by what
	text       string // what stands there then
}

// name tells the mutant from the others of its package. It has no line number, so that it stays when the code around it changes.
func (m *mutant) name() string { return fmt.Sprintf("%s: %s => %s", m.in, m.old, m.new) }

// apply returns the source with the fault in it.
func (m *mutant) apply(source []byte) []byte {
	return slices.Concat(source[:m.start], []byte(m.text), source[m.end:])
}

// swaps are the operators that take each other's place. Of those with two faults the second is the neighbour across the boundary.
var swaps = map[token.Token][]token.Token{
	token.EQL: {token.NEQ}, token.NEQ: {token.EQL},
	token.LSS: {token.GEQ, token.LEQ}, token.GEQ: {token.LSS, token.GTR},
	token.GTR: {token.LEQ, token.GEQ}, token.LEQ: {token.GTR, token.LSS},
	token.LAND: {token.LOR}, token.LOR: {token.LAND},
	token.ADD: {token.SUB}, token.SUB: {token.ADD}, token.MUL: {token.QUO}, token.QUO: {token.MUL}, token.REM: {token.MUL},
	token.SHL: {token.SHR}, token.SHR: {token.SHL}, token.AND: {token.OR}, token.OR: {token.AND}, token.XOR: {token.AND},
	token.AND_NOT:    {token.AND},
	token.ADD_ASSIGN: {token.SUB_ASSIGN}, token.SUB_ASSIGN: {token.ADD_ASSIGN},
	token.MUL_ASSIGN: {token.QUO_ASSIGN}, token.QUO_ASSIGN: {token.MUL_ASSIGN},
	token.INC: {token.DEC}, token.DEC: {token.INC},
}

// words are the names that take each other's place.
var words = map[string]string{"min": "max", "max": "min", "true": "false", "false": "true"}

// maker collects the mutants of a file.
type maker struct {
	files   *token.FileSet
	source  []byte
	in      string
	mutants []*mutant
}

// mutantsOf returns the mutants of a file, in the order of its lines.
func mutantsOf(name string, source []byte) ([]*mutant, error) {
	m := maker{files: token.NewFileSet(), source: source}
	file, err := parser.ParseFile(m.files, name, source, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	for _, d := range file.Decls {
		m.in = ""
		if f, ok := d.(*ast.FuncDecl); ok {
			m.in = m.nameOf(f)
		}
		ast.Inspect(d, m.visit)
	}
	slices.SortStableFunc(m.mutants, func(a, b *mutant) int { return a.start - b.start })
	number(m.mutants)
	return m.mutants, nil
}

// number tells those apart that would have one name.
func number(mutants []*mutant) {
	seen := make(map[string]int)
	for _, m := range mutants {
		name := m.name()
		if seen[name]++; seen[name] > 1 {
			m.new += fmt.Sprintf(" (no. %d)", seen[name])
		}
	}
}

// nameOf returns the name of a function as in a stack trace.
func (m *maker) nameOf(f *ast.FuncDecl) string {
	if f.Recv == nil {
		return f.Name.Name
	}
	kind := m.textOf(f.Recv.List[0].Type)
	if strings.HasPrefix(kind, "*") {
		kind = "(" + kind + ")"
	}
	return kind + "." + f.Name.Name
}

func (m *maker) offset(p token.Pos) int { return m.files.Position(p).Offset }

// textOf returns a node as people read it: in one line.
func (m *maker) textOf(n ast.Node) string {
	return strings.Join(strings.Fields(string(m.source[m.offset(n.Pos()):m.offset(n.End())])), " ")
}

// put replaces what stands between two places of a node.
func (m *maker) put(around ast.Node, from, to token.Pos, by string) {
	start, end := m.offset(from), m.offset(to)
	whole, before := m.offset(around.Pos()), string(m.source[:start])
	changed := before[whole:] + by + string(m.source[end:m.offset(around.End())])
	m.mutants = append(m.mutants, &mutant{
		in: m.in, line: m.files.Position(from).Line, start: start, end: end, text: by,
		old: m.textOf(around), new: strings.Join(strings.Fields(changed), " "),
	})
}

// visit makes the mutants of a node.
func (m *maker) visit(n ast.Node) bool {
	switch n := n.(type) {
	case *ast.BinaryExpr:
		m.swap(n, n.OpPos, n.Op)
		if n.Op == token.LAND || n.Op == token.LOR {
			m.negate(n.X)
			m.negate(n.Y)
		}
	case *ast.UnaryExpr:
		if n.Op == token.NOT {
			m.put(n, n.OpPos, n.X.Pos(), "")
		}
	case *ast.AssignStmt:
		m.swap(n, n.TokPos, n.Tok)
	case *ast.IncDecStmt:
		m.swap(n, n.TokPos, n.Tok)
	case *ast.CallExpr:
		if f, ok := n.Fun.(*ast.Ident); ok && (f.Name == "min" || f.Name == "max") {
			m.put(n, f.Pos(), f.End(), words[f.Name])
		}
	case *ast.Ident:
		if n.Name == "true" || n.Name == "false" {
			m.put(n, n.Pos(), n.End(), words[n.Name])
		}
	case *ast.IfStmt:
		m.negate(n.Cond)
	case *ast.ForStmt:
		if n.Cond != nil {
			m.negate(n.Cond)
		}
	case *ast.SwitchStmt:
		if n.Tag == nil {
			for _, c := range n.Body.List {
				for _, condition := range c.(*ast.CaseClause).List {
					m.negate(condition)
				}
			}
		}
	case *ast.BlockStmt:
		m.leaveOut(n.List)
	case *ast.CaseClause:
		m.leaveOut(n.Body)
	case *ast.CommClause:
		m.leaveOut(n.Body)
	}
	return true
}

// swap puts other operators in the place of one.
func (m *maker) swap(around ast.Node, at token.Pos, operator token.Token) {
	for _, other := range swaps[operator] {
		m.put(around, at, at+token.Pos(len(operator.String())), other.String())
	}
}

// negate turns a condition round that has no operator to swap.
func (m *maker) negate(condition ast.Expr) {
	switch c := condition.(type) {
	case *ast.BinaryExpr, *ast.ParenExpr:
		return
	case *ast.UnaryExpr:
		if c.Op == token.NOT {
			return
		}
	}
	m.put(condition, condition.Pos(), condition.End(), "!("+string(m.source[m.offset(condition.Pos()):m.offset(condition.End())])+")")
}

// leaveOut leaves out one statement after the other. It still stands there, so that what it uses is used.
func (m *maker) leaveOut(list []ast.Stmt) {
	for _, s := range list {
		switch s := s.(type) {
		case *ast.AssignStmt:
			if s.Tok == token.DEFINE {
				continue
			}
		case *ast.ExprStmt:
			if isLocking(s.X) {
				continue
			}
		case *ast.DeferStmt:
			if isLocking(s.Call) {
				continue
			}
		case *ast.IncDecStmt, *ast.SendStmt, *ast.GoStmt, *ast.ReturnStmt, *ast.BranchStmt:
		default:
			continue
		}
		m.put(s, s.Pos(), s.End(), "if false { "+string(m.source[m.offset(s.Pos()):m.offset(s.End())])+" }")
		m.mutants[len(m.mutants)-1].new = "nothing"
	}
}

// isLocking says whether a call locks or unlocks. What goes wrong without it is the race detector's to find.
func isLocking(call ast.Expr) bool {
	c, ok := call.(*ast.CallExpr)
	if !ok {
		return false
	}
	method, ok := c.Fun.(*ast.SelectorExpr)
	return ok && slices.Contains([]string{"Lock", "Unlock", "RLock", "RUnlock"}, method.Sel.Name)
}
