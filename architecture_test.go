// This file tests that docs/architecture.md speaks of packages, files and functions that there are.

package caddybokeh

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// house is the code by its rooms.
type house struct {
	imports map[string][]string // of each package, those of this module that it imports, by their last names
	names   map[string]bool     // of what is declared: Name, type.name, package.Name
	files   map[string]bool
}

// inspect reads the packages of this module, without their tests.
func inspect(t *testing.T) house {
	t.Helper()
	h := house{imports: make(map[string][]string), names: make(map[string]bool), files: make(map[string]bool)}
	folders, err := filepath.Glob("internal/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range append(folders, ".") {
		files, _ := filepath.Glob(filepath.Join(folder, "*.go"))
		for _, file := range files {
			if !strings.HasSuffix(file, "_test.go") {
				h.read(t, folder, file)
			}
		}
		slices.Sort(h.imports[folder])
		h.imports[folder] = slices.Compact(h.imports[folder])
	}
	return h
}

func (h house) read(t *testing.T, folder, file string) {
	t.Helper()
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	h.files[file], h.files[filepath.Base(file)] = true, true
	for _, imported := range parsed.Imports {
		if path, ours := strings.CutPrefix(strings.Trim(imported.Path.Value, `"`), "github.com/caddy-bokeh/caddy-bokeh/internal/"); ours {
			h.imports[folder] = append(h.imports[folder], path)
		}
	}
	if h.imports[folder] == nil {
		h.imports[folder] = []string{}
	}
	add := func(name string) { h.names[name], h.names[parsed.Name.Name+"."+name] = true, true }
	ast.Inspect(parsed, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.FuncDecl:
			if n.Recv == nil {
				add(n.Name.Name)
				break
			}
			of := n.Recv.List[0].Type
			if pointer, ok := of.(*ast.StarExpr); ok {
				of = pointer.X
			}
			if name, ok := of.(*ast.Ident); ok {
				add(name.Name + "." + n.Name.Name)
			}
			add(n.Name.Name)
		case *ast.TypeSpec:
			add(n.Name.Name)
			if fields, ok := n.Type.(*ast.StructType); ok {
				for _, field := range fields.Fields.List {
					for _, name := range field.Names {
						add(n.Name.Name + "." + name.Name)
					}
				}
			}
		case *ast.ValueSpec:
			for _, name := range n.Names {
				add(name.Name)
			}
		}
		return true
	})
}

func TestArchitecture(t *testing.T) {
	text, err := os.ReadFile("docs/architecture.md")
	if err != nil {
		t.Fatal(err)
	}
	h := inspect(t)
	told := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| `(\\.|internal/\\w+)` \\| (.*?) ?\\| ").FindAllStringSubmatch(string(text), -1) {
		told[row[1]] = true
		if imports := strings.Fields(strings.ReplaceAll(row[2], "`", "")); !slices.Equal(imports, h.imports[row[1]]) {
			t.Errorf("%s is said to import %v, and imports %v", row[1], imports, h.imports[row[1]])
		}
	}
	for folder := range h.imports {
		if !told[folder] {
			t.Errorf("nothing is said of %s", folder)
		}
	}
	isName := regexp.MustCompile(`^(\w+\.)?\w+$`)
	for _, quoted := range regexp.MustCompile("`([^`\n]+)`").FindAllStringSubmatch(string(text), -1) {
		name := quoted[1]
		switch {
		case strings.HasSuffix(name, ".go"):
			if !h.files[name] {
				t.Errorf("there is no file %s", name)
			}
		case isName.MatchString(name) && regexp.MustCompile(`\.|^[a-z]+[A-Z]|^[A-Z]`).MatchString(name) && !h.names[name]:
			t.Errorf("nothing is named %s", name)
		}
	}
}
