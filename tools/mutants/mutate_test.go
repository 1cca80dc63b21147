// This file tests what mutants are made.

package main

import (
	"go/parser"
	"go/token"
	"slices"
	"testing"
)

func TestMutants(t *testing.T) {
	for source, want := range map[string][]string{
		"func f(a, b int) bool { return a < b }": {
			"return a < b => nothing", "a < b => a >= b", "a < b => a <= b",
		},
		"func f(a int, b bool) { if a == 1 && !b { a++ } }": {
			"a == 1 => a != 1", "a == 1 && !b => a == 1 || !b", "!b => b", "a++ => nothing", "a++ => a--",
		},
		"func f(a, b bool) { if a || b { return } }": {
			"a => !(a)", "a || b => a && b", "b => !(b)", "return => nothing",
		},
		"func f(a bool) { if a { return }; for a { break } }": {
			"a => !(a)", "return => nothing", "a => !(a) (no. 2)", "break => nothing",
		},
		"func f(a, b int) { switch { case a > b: a = min(a, b*2) } }": {
			"a > b => a <= b", "a > b => a >= b", "a = min(a, b*2) => nothing", "min(a, b*2) => max(a, b*2)", "b*2 => b/2",
		},
		"func f(m *sync.Mutex) { m.Lock(); defer m.Unlock(); m.unlock() }": {"m.unlock() => nothing"},
		"func f() { a := true; a = false }":                                {"true => false", "a = false => nothing", "false => true"},
		"func f(a int) { a += 1 }":                                         {"a += 1 => nothing", "a += 1 => a -= 1"},
		"func f() {}":                                                      nil,
	} {
		text := []byte("package p\n\n" + source + "\n")
		mutants, err := mutantsOf("p.go", text)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, m := range mutants {
			got = append(got, m.old+" => "+m.new)
			if m.in != "f" || m.line != 3 {
				t.Errorf("%s: a mutant is in %q, line %d", source, m.in, m.line)
			}
			if _, err := parser.ParseFile(token.NewFileSet(), "p.go", m.apply(text), 0); err != nil {
				t.Errorf("%s: %s is no Go: %v", source, m.name(), err)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s\n\tmutants %q\n\twant    %q", source, got, want)
		}
	}
}

func TestNames(t *testing.T) {
	mutants, err := mutantsOf("p.go", []byte("package p\n\nfunc (a *x) f() { a.y++ }\n\nfunc (a x) f() { a.y++ }\n\nconst a = 1 + 1\n"))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range mutants {
		got = append(got, m.name())
	}
	want := []string{"(*x).f: a.y++ => nothing", "(*x).f: a.y++ => a.y--", "x.f: a.y++ => nothing", "x.f: a.y++ => a.y--", ": 1 + 1 => 1 - 1"}
	if !slices.Equal(got, want) {
		t.Errorf("names %q, want %q", got, want)
	}
}
