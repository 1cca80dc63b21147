// This file tests every stack that speaks Bokeh's protocol, and makes the table of them that docs/bokeh-servers.md shows.

package e2e

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// stackCase is a stack, and what is known of it beforehand.
type stackCase struct {
	plan
	name  string
	spare bool               // it runs the app once a server for no visit, to keep a session at hand
	embed string             // the path of the app for pages of other sites, if not the same
	shows func(*fleet, *tab) // checks what it shows beside the counter, if not nil
}

const (
	newStacks = "requirements-stacks.txt"
	oldStacks = "requirements-old.txt"
)

// bokehServe is bokeh serve with the counter app, in the version that a file names.
func bokehServe(name, needs string, env ...string) stackCase {
	return stackCase{name: name, plan: plan{needs: needs, serveEnv: env}}
}

// panelServe is a Panel server with one of the apps.
func panelServe(name, app string, args ...string) stackCase {
	return stackCase{name: name, plan: plan{
		needs: newStacks, page: "/" + app, serve: args,
		program: []string{"panel", "serve", testFile(app + ".py"), "--address", "127.0.0.1"},
	}}
}

// underUvicorn is an ASGI application under uvicorn.
func underUvicorn(name, module string, env ...string) stackCase {
	return stackCase{name: name, plan: plan{
		needs: newStacks, page: "/counter", serveEnv: env,
		program: []string{"uvicorn", module + ":application", "--host", "127.0.0.1"},
	}}
}

// withTestFiles are the servers of a stack, which find the apps.
func (c stackCase) withTestFiles() plan {
	c.serveEnv = append([]string{"PYTHONPATH=" + testFile("")}, c.serveEnv...)
	return c.plan
}

// testFile is a file that a stack needs.
func testFile(name string) string { return filepath.Join(kit.root, "testdata", "stacks", name) }

func stackCases() []stackCase {
	django := underUvicorn("bokeh-django 0.2", "bokeh_django_app", "BOKEH_RESOURCES=server") // or its pages have Bokeh's files from another site
	django.embed = "/embedded"
	warm := panelServe("Panel 1.10, `--reuse-sessions --warm`", "panel_counter", "--reuse-sessions", "--warm")
	warm.spare = true
	login := panelServe("Panel 1.10, `--basic-auth`", "panel_counter", "--basic-auth", password, "--cookie-secret", secret)
	login.enter = logIn
	files := panelServe("Panel 1.10, Tabulator and FileDownload", "panel_files")
	files.shows = downloads
	widgets := panelServe("Panel 1.10, ipywidgets", "panel_ipywidgets")
	widgets.shows = func(_ *fleet, b *tab) { b.await("the slider is drawn", `find(".widget-slider .noUi-handle") != null`) }
	return []stackCase{
		bokehServe("Bokeh 3.10", ""),
		bokehServe("Bokeh 3.0", oldStacks, "PYTHONPATH="+testFile("old")),
		underUvicorn("Bokeh 3.10's ASGI server", "bokeh_asgi"),
		underUvicorn("bokeh-fastapi 0.1", "bokeh_fastapi_app"),
		django,
		panelServe("Panel 1.10", "panel_counter"),
		panelServe("Panel 1.10, `--reuse-sessions`", "panel_counter", "--reuse-sessions"),
		warm,
		login,
		files,
		widgets,
		underUvicorn("Panel 1.10 on FastAPI", "panel_fastapi"),
	}
}

const password = "everybody's"

// logIn fills in the form that Panel shows first.
func logIn(b *tab) {
	b.t.Helper()
	b.eval(`document.querySelector("[name=username]").value = "somebody"`, nil)
	b.eval(fmt.Sprintf(`document.querySelector("[name=password]").value = %q`, password), nil)
	ctx, cancel := stack.Patience(b.ctx, patience)
	defer cancel()
	if _, err := chromedp.RunResponse(ctx, chromedp.Evaluate[chromedp.Void](`document.querySelector("form").submit()`)); err != nil {
		b.t.Fatal(err)
	}
}

// downloads looks at the table, and takes the file that the app makes when it is asked to.
func downloads(f *fleet, b *tab) {
	b.t.Helper()
	b.await("the table is drawn", `find(".tabulator-row") != null`)
	folder := b.t.TempDir()
	send(b, browser.SetDownloadBehavior, browser.SetDownloadBehaviorParams{
		Behavior: "allow", DownloadPath: folder, BrowserContextID: chromedp.FromContext(b.ctx).BrowserContextID,
	})
	b.eval(`find("button > a").click()`, nil)
	f.await(func() error {
		text, err := os.ReadFile(filepath.Join(folder, "file.txt"))
		if string(text) == "what the file holds" {
			return nil
		}
		return fmt.Errorf("the file holds %q: %v", text, err)
	})
}

// Every stack runs the app once a visit, keeps its state, and is drained without a loss.
func TestStacks(t *testing.T) {
	t.Parallel()
	need(t)
	rows := make([]string, len(stackCases()))
	t.Cleanup(func() { // when all have run
		if !slices.Contains(rows, "") {
			wantTable(t, rows)
		}
	})
	for i, c := range stackCases() {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			elsewhere := newSite(t)
			p := quick(c.withTestFiles())
			p.directive, p.size = true, 2
			p.origins = []string{elsewhere.origin()}
			f := start(t, p)
			visits := 12
			if c.enter != nil { // each in a browser of its own
				visits = 8
			}
			f.visits(visits)
			spare := 0
			if c.spare {
				spare = len(f.servers)
			}
			f.wantRuns(visits + spare)
			_, by := f.appRuns()
			for server, n := range by {
				if n < visits/4 {
					t.Errorf("server %s ran the app %d times", server, n)
				}
			}
			if c.shows != nil {
				b := f.visit()
				c.shows(f, b)
				b.close()
			}
			back := f.reconnects()
			f.namedByClients()
			f.broken()
			embedded := f.embedded(elsewhere, cmp.Or(c.embed, f.plan.page), back)
			ways := []func() *tab{f.visit}
			if embedded == "yes" {
				ways = append(ways, elsewhere.visit)
			}
			f.drainOne(ways...)
			for line := range strings.Lines(f.caddy.Output()) {
				if strings.Contains(line, "/static/") && strings.Contains(line, `"status":404`) {
					t.Errorf("a file is missing: %.500s", line)
				}
			}
			rows[i] = fmt.Sprintf("| %s | 1%s | %s | %s |", c.name, map[bool]string{true: ", and one a server"}[c.spare], back, embedded)
			t.Log(rows[i])
		})
	}
}

// embedded shows the app in a page of another site with cookies blocked, and says whether that works. Where it does not,
// it must not without us. Where it does, a lost connection comes back as that of the app's own page.
func (f *fleet) embedded(s *site, path, back string) string {
	f.t.Helper()
	s.embeds(f.url(path))
	before, _ := f.appRuns()
	visits := 4
	for range visits {
		b := blocked(f.t, s.URL)
		if !b.drawn() {
			story := b.story()
			b.close()
			s.embeds(fmt.Sprintf("http://localhost:%d%s", f.servers[0].Port, path))
			if blocked(f.t, s.URL).drawn() {
				f.t.Error("it works without Caddy only: ", story)
			}
			return "no"
		}
		b.ready()
		b.clicks(2)
		b.close()
	}
	if back == sameDocument {
		f.keepsDocument(s.visit())
		visits++
	}
	if after, _ := f.appRuns(); after != before+visits {
		f.t.Errorf("%d embedded visits ran the app %d times", visits, after-before)
	}
	return "yes"
}

// drawn says whether the app is drawn.
func (b *tab) drawn() bool {
	b.eval(library, nil)
	return b.becomes(`model("count") != null && clickable() != null`)
}

// sameDocument is what somebody sees whose connection was lost, where all is well.
const sameDocument = "the same document"

// reconnects visits, cuts the connection, and says what the visitor sees.
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
	return sameDocument
}

// keepsDocument cuts the connection of a visitor, who must see the same document again.
func (f *fleet) keepsDocument(b *tab) {
	f.t.Helper()
	b.clicks(2)
	b.mark()
	time.Sleep(pause)
	f.front.cut()
	b.reconnected()
	b.click(3)
	b.close()
}

// awaitSessions waits until so many sessions are counted, each with its websocket: those of closed tabs end, and a page and
// its websocket are one, whatever ids they have.
func (f *fleet) awaitSessions(want int) {
	f.t.Helper()
	f.await(func() error {
		_, body, err := f.ask("/bokeh/upstreams")
		if err != nil {
			return err
		}
		var upstreams []struct {
			Sessions struct{ Connected int }
			Total    int `json:"total_sessions"`
		}
		if err := json.Unmarshal([]byte(body), &upstreams); err != nil {
			return err
		}
		connected, total := 0, 0
		for _, u := range upstreams {
			connected += u.Sessions.Connected
			total += u.Total
		}
		if connected != want || total != want {
			return fmt.Errorf("%d sessions are counted, %d of them connected, want %d of both: %s", total, connected, want, body)
		}
		return nil
	})
}

// namedByClients visits as clients that name the session themselves, and try to name the server.
func (f *fleet) namedByClients() {
	f.t.Helper()
	before, _ := f.appRuns()
	for _, header := range []string{"Bokeh-Session-Id", "bokeh-session-id", "Caddy-Bokeh-Stamp"} {
		b := newVisitor(f.t)
		send(b, network.SetExtraHTTPHeaders, network.SetExtraHTTPHeadersParams{Headers: network.Headers{header: "x" + rand.Text()}})
		f.visitIn(b)
		b.clicks(2)
		b.close()
	}
	if after, by := f.appRuns(); after != before+3 {
		f.t.Errorf("3 visits of clients that name their session ran the app %d times: %v", after-before, by)
	}
}

// broken opens websockets with tokens that are none. Who does hears the same as without Caddy.
func (f *fleet) broken() {
	f.t.Helper()
	b := f.visit()
	defer b.close()
	var token string
	b.eval(`tokens.at(-1)`, &token)
	protocols := []string{"", "bokeh", "bokeh,", "bokeh, " + token + ", " + token, token + ", bokeh", "other, " + token}
	for i := 0; i < len(token); i += 1 + i/8 { // all lengths are those of TestTokenIsCut, which is quicker
		protocols = append(protocols, "bokeh, "+token[:i])
	}
	protocols = append(protocols, "bokeh, "+token[:len(token)-1])
	there := f.server(b.place()).Addr()
	for _, p := range protocols {
		through, direct := f.handshake(f.front.to, p), f.handshake(there, p)
		if through != direct {
			f.t.Errorf("with subprotocols of length %d, %.20q: %d through Caddy, %d without", len(p), p, through, direct)
		}
	}
	b.click(1)
}

// handshake asks for a websocket and returns the status of the answer.
func (f *fleet) handshake(addr, protocols string) int {
	f.t.Helper()
	ctx, cancel := stack.Patience(f.t.Context(), patience)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+f.plan.page+"/ws", nil)
	if err != nil {
		f.t.Fatal(err)
	}
	r.Host = f.host()
	r.Header = http.Header{
		"Connection": {"Upgrade"}, "Upgrade": {"websocket"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {"dGhlIHNhbXBsZSBub25jZQ=="},
		"Origin": {"http://" + f.host()}, "Sec-Websocket-Protocol": {protocols},
	}
	res, err := http.DefaultTransport.RoundTrip(r)
	if err != nil {
		f.t.Fatal(err)
	}
	res.Body.Close()
	return res.StatusCode
}

// drainOne drains one of the servers while people are at work who have come in some ways, and stops it when that is
// drained.
func (f *fleet) drainOne(ways ...func() *tab) {
	f.t.Helper()
	way := func(i int) *tab { return ways[i%len(ways)]() }
	var tabs []*tab
	for i := range 2 * len(f.servers) {
		b := way(i)
		b.clicks(2)
		tabs = append(tabs, b)
	}
	f.awaitSessions(len(tabs))
	leaving := f.server(tabs[len(ways)-1].place())
	before, _ := f.appRuns()
	f.bokeh("drain", leaving.Addr()).wait()
	for _, g := range f.others { // what Python prepares there before it knows is not found here
		g.awaitLog("marked draining")
	}
	for _, b := range tabs {
		b.click(3)
	}
	for i := range 4 {
		b := way(i)
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
	f.bokeh("drain", leaving.Addr(), "--wait", "--timeout", stack.Stretch(2*time.Minute).String()).wait()
	leaving.Stop()
	for _, b := range stay {
		b.click(4)
		b.close()
	}
	way(0).click(1)
	if after, by := f.appRuns(); after != before+5 {
		f.t.Errorf("5 visits ran the app %d times: %v", after-before, by)
	}
}

// The table's page, and where it stands there.
const (
	tablePage   = "docs/bokeh-servers.md"
	tableBegins = "<!-- the table of stacks, made by: make stacks -->\n"
	tableHead   = "| stack | app runs a visit | after a lost connection | embedded, cookies blocked |\n| --- | --- | --- | --- |\n"
	tableEnds   = "<!-- its end -->\n"
)

// wantTable compares the page's table with what was measured, or writes it there.
func wantTable(t *testing.T, rows []string) {
	t.Helper()
	before, table, after := tableOf(t)
	want := tableHead + strings.Join(rows, "\n") + "\n"
	switch {
	case table == want:
	case os.Getenv("UPDATE_DOCS") != "":
		if err := os.WriteFile(filepath.Join(kit.root, tablePage), []byte(before+want+after), 0o644); err != nil {
			t.Fatal(err)
		}
	default:
		t.Errorf("the table of %s is another one than measured (make stacks writes it):\n%s", tablePage, want)
	}
}

// tableOf returns the page's table, and what stands around it.
func tableOf(t *testing.T) (before, table, after string) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(kit.root, tablePage))
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), tableBegins)
	table, after, also := strings.Cut(rest, tableEnds)
	if !ok || !also {
		t.Fatalf("%s has no place for the table of stacks", tablePage)
	}
	return before + tableBegins, table, tableEnds + after
}

// Without a browser and servers it is known at least that the table has a row for each stack.
func TestTableOfStacks(t *testing.T) {
	t.Parallel()
	_, table, _ := tableOf(t)
	rows := strings.Split(strings.TrimSuffix(strings.TrimPrefix(table, tableHead), "\n"), "\n")
	wantTable(t, rows)
	cases := stackCases()
	if len(rows) != len(cases) {
		t.Fatalf("the table has %d rows for %d stacks", len(rows), len(cases))
	}
	for i, c := range cases {
		if !strings.HasPrefix(rows[i], "| "+c.name+" | 1") {
			t.Errorf("row %d is not of %s: %s", i+1, c.name, rows[i])
		}
	}
}
