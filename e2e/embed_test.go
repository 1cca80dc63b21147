// This file tests pages of another site that show an app, with Bokeh's functions for that, and with cookies blocked.

package e2e

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"

	"github.com/caddy-bokeh/caddy-bokeh/e2e/stack"
)

// pages starts a Flask server with pages that show the app. It prepares sessions through one Caddy, browsers come through
// another.
func (f *fleet) pages(pulled *fleet, port int) *stack.Bokeh {
	f.t.Helper()
	s, err := install(f.t, newStacks).StartBokeh(kit.root, stack.BokehConfig{
		Program: []string{"flask", "--app", testFile("flask_pages.py"), "run"},
		Port:    port, Ready: "/ready",
		Env: []string{"VISITED=" + f.url("/counter"), "PULLED=" + pulled.url("/counter")},
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(s.Kill)
	return s
}

// blocked opens a page of another site in a browser that refuses that site's cookies.
func blocked(t *testing.T, url string) *tab {
	t.Helper()
	b := newBlocked(t)
	b.opens(url)
	return b
}

// newBlocked opens a tab in a browser that refuses the cookies of sites that are shown in pages of others.
func newBlocked(t *testing.T) *tab {
	t.Helper()
	b := newVisitor(t)
	b.blockCookies()
	return b
}

// opens goes to a page, which must be there.
func (b *tab) opens(url string) {
	b.t.Helper()
	if status := b.goTo(url); status != http.StatusOK {
		b.t.Fatalf("%s is answered with %d", url, status)
	}
}

// site is another site with one page. To the browser 127.0.0.1 and localhost are two sites.
type site struct {
	*httptest.Server
	t     *testing.T
	shows string // in the page; set before somebody looks
}

func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{t: t}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, "<!DOCTYPE html><title>another site</title><body>%s</body>", s.shows)
	}))
	t.Cleanup(s.Close)
	return s
}

// visit opens the page in a browser that refuses its cookies, and waits for the app.
func (s *site) visit() *tab {
	s.t.Helper()
	b := blocked(s.t, s.URL)
	b.ready()
	return b
}

func (s *site) origin() string { return strings.TrimPrefix(s.URL, "http://") }

// embeds makes the page show an app, by a script that loads its autoload.js.
func (s *site) embeds(url string) {
	s.t.Helper()
	out, err := exec.Command(string(kit.python), "-c",
		fmt.Sprintf("from bokeh.embed import server_document; print(server_document(%q))", url)).Output()
	if err != nil {
		s.t.Fatal(err)
	}
	s.shows = string(out)
}

func TestEmbeddedWithCookiesBlocked(t *testing.T) {
	t.Parallel()
	need(t)
	const visits = 6
	for policy, wrong := range map[string]func(runs int) bool{
		"bokeh": func(runs int) bool { return runs != visits },
		// The control: a balancer that binds by cookie cannot do it.
		"cookie": func(runs int) bool { return runs <= visits },
	} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			f := start(t, plan{policy: policy, origins: []string{s.origin()}})
			s.embeds(f.url("/counter"))
			b := newBlocked(t)
			for range visits {
				b.opens(s.URL)
				b.ready()
				b.clicks(2)
			}
			if runs, by := f.appRuns(); wrong(runs) {
				t.Errorf("%d visits ran the app %d times: %v", visits, runs, by)
			}
		})
	}
}

// A session that a program has prepared is shown by a page of another site, through another Caddy: the very same one, also
// with a server down, or draining, and after a lost connection.
func TestPulledSessions(t *testing.T) {
	t.Parallel()
	for _, trouble := range []string{"none", "a server is down", "a server drains"} {
		t.Run(trouble, func(t *testing.T) {
			t.Parallel()
			ports, err := stack.FreePorts(1)
			if err != nil {
				t.Fatal(err)
			}
			site := fmt.Sprint("127.0.0.1:", ports[0])
			p := plan{proxy: "\t\tlb_try_duration 5s", global: "\tstorage file_system " + t.TempDir(), origins: []string{"*", site}}
			if trouble == "none" {
				p = quick(p) // a drain waits for what has ended
			}
			f := start(t, p)
			g := f.another()
			flask := f.pages(g, ports[0])
			visits := 8
			switch trouble {
			case "none":
				visits = 12
			case "a server is down":
				f.servers[0].Stop()
			case "a server drains":
				f.bokeh("drain", f.servers[0].Addr()).wait()
				g.awaitLog("marked draining")
			}
			visitIn := func(b *tab) *tab {
				b.opens("http://" + flask.Addr() + "/session")
				b.ready()
				b.await("it shows what was prepared", `model("count").text == "41"`)
				return b
			}
			visit := func() *tab { return visitIn(newBlocked(t)) }
			b := newBlocked(t)
			for range visits {
				visitIn(b).click(1) // the app counts for itself
			}
			b.close()
			f.keepsDocument(visit())
			f.wantRuns(visits + 1)
			if _, by := f.appRuns(); trouble != "none" && by[fmt.Sprint(":", f.servers[0].Port)] > 0 {
				t.Errorf("a session is on the server that takes none: %v", by)
			}
			if trouble == "none" {
				f.drainOne(visit)
			}
		})
	}
}

// A page of another site lets the browser make the session.
func TestServerDocumentInFlask(t *testing.T) {
	t.Parallel()
	ports, err := stack.FreePorts(1)
	if err != nil {
		t.Fatal(err)
	}
	f := start(t, quick(plan{origins: []string{fmt.Sprint("127.0.0.1:", ports[0])}}))
	flask := f.pages(f, ports[0])
	visitIn := func(b *tab) *tab {
		b.opens("http://" + flask.Addr() + "/document")
		b.ready()
		return b
	}
	visit := func() *tab { return visitIn(newBlocked(t)) }
	const visits = 12
	b := newBlocked(t)
	for range visits {
		visitIn(b).clicks(2)
	}
	b.close()
	f.keepsDocument(visit())
	f.wantRuns(visits + 1)
	f.drainOne(visit)
}
