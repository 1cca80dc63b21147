// This file tests what is learned of a request from its answer.

package caddybokeh

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
	"testing/synctest"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// besidesApps is what a Bokeh server has beside its apps: an index, a REST handler, a download, a file of --static-dirs.
func besidesApps(t *testing.T) (h http.Handler, goOn chan struct{}) {
	t.Helper()
	goOn = make(chan struct{})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/rest/status":
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, `{"token":"of another kind"}`)
		case "/download":
			w.Header().Set("Content-Type", "application/octet-stream")
			fmt.Fprint(w, "begins")
			_ = http.NewResponseController(w).Flush()
			<-goOn
		case "/part":
			w.Header().Set("Content-Type", "text/html")
			w.WriteHeader(http.StatusPartialContent)
		case "/zipped":
			w.Header().Set("Content-Type", "text/html")
			w.Header().Set("Content-Encoding", "br")
			fmt.Fprint(w, "nobody can read this")
		default:
			w.Header().Set("Content-Type", "text/html; charset=UTF-8")
			fmt.Fprintf(w, `<form><input name="token"></form>`)
		}
	}), goOn
}

// What is answered with no page of Bokeh's takes no place of a visitor's.
func TestGetThatIsNoPage(t *testing.T) {
	b := newBokeh(t, "")
	files, goOn := besidesApps(t)
	b.files = files
	s := serve(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh {\n max_sessions 1\n}\n}")
	for _, path := range []string{"/", "/rest/status", "/part", "/report.html"} {
		s.get(path)
		soonCounts(t, "after "+path, b.addr(), tally{})
	}
	// A download may take for ever. It is none as soon as that is known.
	downloads := make(chan page)
	go func() {
		p, _ := s.tryGet(t.Context(), "/download")
		downloads <- p
	}()
	soon(t, "the download begins", func() bool { return thisNodesEnded(b.addr()) == 5 })
	soonCounts(t, "while it goes on", b.addr(), tally{})
	p, w := s.visit()
	soonCounts(t, "with a visitor", b.addr(), tally{0, 0, 1, 0})
	close(goOn)
	<-downloads
	if p := s.get("/anything"); p.status != http.StatusServiceUnavailable {
		t.Errorf("without a place what may be a page is answered %d", p.status)
	}
	if p := s.get("/"); p.status != http.StatusOK {
		t.Errorf("without a place what never was a page is answered %d", p.status)
	}
	w.Close()
	_ = p
}

// thisNodesEnded is how many sessions and requests have ended at an upstream.
func thisNodesEnded(addr string) int64 {
	tb := thisLedger()
	return upstreamAt(tb, upstreamName(addr)).History.Ended.Count(tb.Now())
}

// What nobody can read is what its name says.
func TestAnswerThatNobodyCanRead(t *testing.T) {
	b := newBokeh(t, "")
	b.files, _ = besidesApps(t)
	s := serve(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh\n}")
	s.get("/zipped", "Accept-Encoding", "br")
	soonCounts(t, "a page", b.addr(), tally{0, 1, 0, 0})
}

// An app may have the name of a file or of a side page. Its visit is one all the same, and is counted.
func TestAppsNamedLikeFiles(t *testing.T) {
	servers, addrs := three(t)
	apps := []string{"/metadata", "/login", "/liveness", "/components/button", "/static/gallery", "/map.json", "/reports/2024.pdf"}
	for _, b := range servers {
		b.apps = apps
	}
	s := serve(t, "reverse_proxy "+addrs+" {\n lb_policy bokeh\n}")
	visits := 0
	for _, app := range apps {
		for range 4 {
			p := s.get(app)
			soonSessions(t, servers, visits+1)
			w, err := s.tryOpen(app+"/ws", "bokeh, "+p.Token)
			if err != nil {
				t.Fatal(err)
			}
			if visits++; w.server != p.Server || runs(servers) != visits {
				t.Errorf("%s: page by %s, socket by %s, %d runs of the app in %d visits", app, p.Server, w.server, runs(servers), visits)
			}
			soonSessions(t, servers, visits)
		}
	}
	// What is only named so is not counted, nor given an id.
	s.get("/static/js/bokeh.min.js")
	soonSessions(t, servers, visits)
}

// Where every server drains, files are still served, and no session begins.
func TestFilesOfADrainingServer(t *testing.T) {
	pool := testPool(2)
	s := newTestSelection(pool)
	stop := drainUpstream(s, "u0:80")
	r := newRequest(s, "/login")
	if addr, why := r.choose(pool); addr != "u1:80" || why != "shared" || r.Header.Get(bokeh.StampHeader) == "" || r.Header.Get(bokeh.SessionIDHeader) != "" {
		t.Errorf("%s at %s with %v", why, addr, r.Header)
	}
	r.refuse()
	defer stop()
	defer drainUpstream(s, "u1:80")()
	if addr, _ := r.choose(pool); addr == "" || r.Header.Get(bokeh.StampHeader) != "" {
		t.Errorf("a file of a draining server: %q, with %v", addr, r.Header)
	}
	if addr, _ := newRequest(s, "/app").choose(pool); addr != "" {
		t.Errorf("a page goes to %s, which drains", addr)
	}
}

func TestTokenFinder(t *testing.T) {
	page := strings.Repeat("x", 100) + `[{"token":"abc"}]` + strings.Repeat("y", 100)
	for name, body := range map[string]string{
		"page":                page,
		"at the end":          `{"token":`,
		"in Bokeh's dev mode": `[{"token": "abc"}]`,
		"escaped":             `{\"token\":\"abc\"}`,
		"a form's":            `<input name="token">`,
		"nearly":              `"token"`,
		"nothing":             "",
		"begun twice":         `"tok"token":`,
	} {
		want := strings.Contains(body, tokenMark)
		for how, read := range map[string]func(io.Reader) io.Reader{
			"at once":      func(r io.Reader) io.Reader { return r },
			"byte by byte": iotest.OneByteReader,
			"by halves":    iotest.HalfReader,
			"with its end": iotest.DataErrReader,
		} {
			calls, found := 0, false
			f := &tokenFinder{ReadCloser: io.NopCloser(read(strings.NewReader(body))), done: func(is bool) {
				calls++
				found = is
			}}
			got, err := io.ReadAll(f)
			if err != nil || string(got) != body {
				t.Errorf("%s, %s: passed on %q, %v", name, how, got, err)
			}
			if calls != 1 || found != want {
				t.Errorf("%s, %s: found %v in %d calls", name, how, found, calls)
			}
		}
	}
}

// A page that breaks off has begun a session, so nobody says that it is none.
func TestTokenFinderOfABrokenBody(t *testing.T) {
	f := &tokenFinder{ReadCloser: io.NopCloser(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("abc")))), done: func(bool) {
		t.Error("an answer that broke off is judged")
	}}
	_, _ = io.ReadAll(f)
}

func FuzzTokenFinder(f *testing.F) {
	f.Add([]byte(`x"token":y`), 3, 6)
	f.Add([]byte(`"tok"token":`), 1, 2)
	f.Fuzz(func(t *testing.T, body []byte, a, b int) {
		a, b = min(max(a, 0), len(body)), min(max(b, 0), len(body))
		a, b = min(a, b), max(a, b)
		found := false
		finder := &tokenFinder{
			ReadCloser: io.NopCloser(io.MultiReader(bytes.NewReader(body[:a]), bytes.NewReader(body[a:b]), bytes.NewReader(body[b:]))),
			done:       func(is bool) { found = is },
		}
		if _, err := io.ReadAll(finder); err != nil {
			t.Fatal(err)
		}
		if want := bytes.Contains(body, []byte(tokenMark)); found != want {
			t.Errorf("found %v in %q, cut at %d and %d", found, body, a, b)
		}
	})
}

// BenchmarkTokenFinder reads a page of 100 KB without a token, as a proxy does, and the same without looking for one.
func BenchmarkTokenFinder(b *testing.B) {
	page := bytes.Repeat([]byte(`<div class="bk" id="x">{"a":1}</div>`), 100<<10/36)
	room := make([]byte, 32<<10)
	read := func(b *testing.B, look bool) {
		b.SetBytes(int64(len(page)))
		for b.Loop() {
			body := io.NopCloser(struct{ io.Reader }{bytes.NewReader(page)})
			if look {
				body = &tokenFinder{ReadCloser: body, done: func(bool) {}}
			}
			if _, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, body, room); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.Run("look", func(b *testing.B) { read(b, true) })
	b.Run("pass", func(b *testing.B) { read(b, false) })
}

// An answer that is no page says nothing of pages: not that a server is well whose pages fail, nor how long one takes.
func TestNoPageSaysNothingOfPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		s.members.get("u0:80").Drain.AddConfigs(1) // so that all go to the other one
		m := s.members.get("u1:80")
		for range breaker.PagesInARow {
			status := newRequest(s, "/rest/status")
			status.choose(pool)
			v := status.visit()
			v.connected(v.attempt)
			v.firstByteCame(v.attempt)
			v.hasAnswer(&http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Body: http.NoBody})
			if n := m.Slots.Sessions.Load(); n != 0 {
				t.Errorf("%d sessions, though the answer is no page", n)
			}
			status.answer(http.StatusOK)
			page := newRequest(s, "/app")
			page.choose(pool)
			page.answer(http.StatusInternalServerError)
			synctest.Wait()
		}
		if !m.Breaker.Tripped() {
			t.Error("a server all of whose pages fail is taken for well")
		}
		if m.IsWarm() || s.table.Addresses.HasPages(s.table.App("", 0, "/rest/status")) {
			t.Error("an answer that is no page counts as one")
		}
	})
}

// Whatever a client says that it wants an app's address for, the app runs: so it has a place, and whoever has none is turned away.
func TestEveryRunOfAnAppIsCounted(t *testing.T) {
	upgrade := []string{"Connection", "Upgrade", "Upgrade", "websocket"}
	for name, header := range map[string][]string{
		"a page":                    nil,
		"an image":                  {"Sec-Fetch-Dest", "image"},
		"a script":                  {"Sec-Fetch-Dest", "script"},
		"a websocket, but no token": upgrade,
	} {
		t.Run(name, func(t *testing.T) {
			b := newBokeh(t, "")
			s := serve(t, "reverse_proxy "+b.addr()+" {\n lb_policy bokeh {\n max_sessions 2\n}\n}")
			// The first one may tell that there is an app at all.
			for i := range 2 {
				if p := s.get("/app", header...); p.status != http.StatusOK {
					t.Errorf("the first are answered with %d", p.status)
				}
				soonSessions(t, []*bokehServer{b}, i+1)
			}
			for range 3 {
				if p := s.get("/app", header...); p.status != http.StatusServiceUnavailable {
					t.Errorf("without a place it is answered with %d", p.status)
				}
			}
			if got := b.appRuns(); got != 2 {
				t.Errorf("the app ran %d times for 2 places", got)
			}
		})
	}
}

// A websocket that brings no token of Bokeh's is not taken for a page where it is none.
func TestForeignWebsockets(t *testing.T) {
	b := newBokeh(t, "")
	b.files = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("X-Server", b.addr())
		w.WriteHeader(http.StatusSwitchingProtocols)
	})
	s := serve(t, "bokeh_proxy "+b.addr()+" {\n max_sessions 1\n}")
	s.visit()
	for _, path := range []string{"/api/stream", "/app/data"} {
		w, err := s.tryOpen(path, "graphql-ws")
		if err != nil || w.status != http.StatusSwitchingProtocols {
			t.Errorf("%s is answered with %d, error %v", path, w.status, err)
		}
		w.Close()
	}
	soonCounts(t, "only the visitor", b.addr(), tally{0, 0, 1, 0})
}

// An address from which no page has ever come weighs like none, however long it takes to answer.
func TestAddressWithoutPages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newTestSelection(pool)
		ask := func() *request {
			r := newRequest(s, "/poll")
			r.choose(pool)
			r.visit().connected(r.visit().attempt)
			synctest.Wait()
			return r
		}
		first := ask()
		u := first.visit().attempt.m
		if got := u.Backlog(); got != 1 {
			t.Errorf("%d pages are built where nothing is known yet, want 1", got)
		}
		v := first.visit()
		v.firstByteCame(v.attempt)
		v.readAnswer(v.attempt, false)
		first.end()
		next := ask()
		if got := u.Backlog(); got != 0 {
			t.Errorf("%d pages are built where none ever came", got)
		}
		v = next.visit()
		v.firstByteCame(v.attempt)
		v.readAnswer(v.attempt, true) // there is an app by now
		if got := u.Count(sessions.Waiting); got != 1 {
			t.Errorf("a page that comes all the same counts %d times", got)
		}
		next.end()
		synctest.Wait()
		ask()
		if got := u.Backlog(); got != 1 {
			t.Errorf("%d pages are built at the address of an app, want 1", got)
		}
	})
}
