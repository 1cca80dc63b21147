//go:build stacks

// This file tests every stack that speaks Bokeh's protocol, and makes the README's table of them.

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// stackCase is a stack, and what is known of it beforehand.
type stackCase struct {
	name    string
	python  string // the file that lists what it needs
	program []string
	page    string
	serve   []string
	env     []string
	spare   bool // it runs the app once a server for no visit, to keep a session at hand
}

const (
	newStacks = "requirements-stacks.txt"
	oldStacks = "requirements-old.txt"
)

// panelServe is a Panel server with one of the apps.
func panelServe(name, app string, args ...string) stackCase {
	return stackCase{
		name: name, python: newStacks, page: "/" + app, serve: append(slices.Clone(quickly), args...),
		program: []string{"panel", "serve", filepath.Join(kit.root, "testdata", "stacks", app+".py"), "--address", "127.0.0.1"},
	}
}

// underUvicorn is an ASGI application under uvicorn.
func underUvicorn(name, module string) stackCase {
	return stackCase{
		name: name, python: newStacks, page: "/counter",
		program: []string{"uvicorn", module + ":application", "--host", "127.0.0.1"},
	}
}

func stackCases() []stackCase {
	django := underUvicorn("bokeh-django 0.2", "bokeh_django_app")
	django.env = []string{"BOKEH_RESOURCES=server"} // or its pages have Bokeh's files from another site
	warm := panelServe("Panel 1.10, `--reuse-sessions --warm`", "panel_counter", "--reuse-sessions", "--warm")
	warm.spare = true
	return []stackCase{
		{name: "Bokeh 3.10", serve: quickly},
		{name: "Bokeh 3.0", python: oldStacks, serve: quickly, env: []string{"PYTHONPATH=" + filepath.Join(kit.root, "testdata", "stacks", "old")}},
		underUvicorn("Bokeh 3.10's ASGI server", "bokeh_asgi"),
		underUvicorn("bokeh-fastapi 0.1", "bokeh_fastapi_app"),
		django,
		panelServe("Panel 1.10", "panel_counter"),
		panelServe("Panel 1.10, `--reuse-sessions`", "panel_counter", "--reuse-sessions"),
		warm,
		panelServe("Panel 1.10, Tabulator and FileDownload", "panel_files"),
		panelServe("Panel 1.10, ipywidgets", "panel_ipywidgets"),
		underUvicorn("Panel 1.10 on FastAPI", "panel_fastapi"),
	}
}

// Every stack runs the app once a visit, keeps its state, and is drained without a loss.
func TestStacks(t *testing.T) {
	need(t)
	t.Parallel()
	rows := make([]string, len(stackCases()))
	t.Cleanup(func() { // when all have run
		if !slices.Contains(rows, "") {
			wantTable(t, rows)
		}
	})
	for i, c := range stackCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting
			f := start(t, c.plan(t))
			const visits = 20
			for range visits {
				b := f.visit()
				b.click(1)
				b.close()
			}
			spare := 0
			if c.spare {
				spare = len(f.servers)
			}
			f.wantRuns(visits + spare)
			_, by := f.appRuns()
			for server, n := range by {
				if n < 5 {
					t.Errorf("server %s ran the app %d times", server, n)
				}
			}
			back := f.reconnects()
			f.drainOne()
			for line := range strings.Lines(f.caddy.Output()) {
				if strings.Contains(line, "/static/") && strings.Contains(line, `"status":404`) {
					t.Errorf("a file is missing: %.500s", line)
				}
			}
			rows[i] = fmt.Sprintf("| %s | 1%s | %s |", c.name, map[bool]string{true: ", and one a server"}[c.spare], back)
		})
	}
}

func (c stackCase) plan(t *testing.T) plan {
	t.Helper()
	p := quick(plan{keepAlive: true, program: c.program, page: c.page})
	p.serve = c.serve
	p.serveEnv = append([]string{"PYTHONPATH=" + filepath.Join(kit.root, "testdata", "stacks")}, c.env...)
	if c.python != "" {
		python, err := stack.NewPython(t.Context(), kit.root, c.python)
		if err != nil {
			t.Fatal(err)
		}
		p.python = python
	}
	return p
}

// reconnects cuts the connection of somebody at work and says what that one sees.
func (f *fleet) reconnects() string {
	f.t.Helper()
	b := f.visit()
	defer b.close()
	b.clicks(2)
	b.mark()
	time.Sleep(pause)
	f.front.cut()
	if !b.becomes(broughtAgain) {
		return "no"
	}
	b.await("it has a count", `model("count").text != ""`)
	var count string
	b.eval(`model("count").text`, &count)
	if count != "2" {
		return "a fresh document"
	}
	b.click(3)
	return "the same document"
}

// drainOne drains one of three servers while people are at work, and stops it when that is drained.
func (f *fleet) drainOne() {
	f.t.Helper()
	var tabs []*tab
	for range 2 * len(f.servers) {
		b := f.visit()
		b.clicks(2)
		tabs = append(tabs, b)
	}
	leaving := f.server(tabs[0].place())
	before, _ := f.appRuns()
	f.bokeh("drain", leaving.Addr()).wait()
	for _, b := range tabs {
		b.click(3)
	}
	for range 4 {
		b := f.visit()
		if f.server(b.place()) == leaving {
			f.t.Error("a newcomer is sent to the draining server")
		}
		b.click(1)
		b.close()
	}
	stay := slices.DeleteFunc(tabs, func(b *tab) bool {
		if f.server(b.place()) != leaving {
			return false
		}
		b.click(4)
		b.close()
		return true
	})
	f.bokeh("drain", leaving.Addr(), "--wait", "--timeout", "2m").wait()
	leaving.Stop()
	for _, b := range stay {
		b.click(4)
		b.close()
	}
	f.visit().click(1)
	if after, by := f.appRuns(); after != before+5 {
		f.t.Errorf("5 visits ran the app %d times: %v", after-before, by)
	}
}

// Where the table stands in the README.
const (
	tableBegins = "<!-- the table of stacks, made by: make stacks -->\n"
	tableEnds   = "<!-- its end -->\n"
)

// wantTable compares the README's table with what was measured, or writes it there.
func wantTable(t *testing.T, rows []string) {
	t.Helper()
	readme := filepath.Join(kit.root, "README.md")
	text, err := os.ReadFile(readme)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok := strings.Cut(string(text), tableBegins)
	table, tail, also := strings.Cut(rest, tableEnds)
	if !ok || !also {
		t.Fatal("the README has no place for the table of stacks")
	}
	want := "| stack | app runs a visit | after a lost connection |\n| --- | --- | --- |\n" + strings.Join(rows, "\n") + "\n"
	switch {
	case table == want:
	case os.Getenv("UPDATE_README") != "":
		if err := os.WriteFile(readme, []byte(head+tableBegins+want+tableEnds+tail), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the README's table is another one than measured (make stacks writes it):\n%s", want)
	}
}
