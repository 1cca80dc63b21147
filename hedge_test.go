// This file tests that a file whose server does not answer is asked of another one as well, in a running Caddy.

package caddybokeh

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/headers"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
)

// heldServer is a server whose thread is held: it takes connections, and answers when it is released.
type heldServer struct {
	*httptest.Server
	asked   atomic.Int64
	left    chan string // paths of those who left before
	release chan struct{}
}

func newHeld(t *testing.T) *heldServer {
	t.Helper()
	h := &heldServer{left: make(chan string, 100), release: make(chan struct{})}
	h.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.asked.Add(1)
		select {
		case <-h.release:
			fmt.Fprint(w, "held")
		case <-r.Context().Done():
			h.left <- r.URL.Path
		}
	}))
	t.Cleanup(func() {
		h.CloseClientConnections()
		h.Close()
	})
	return h
}

// hedgedOf returns how often files of the server at an address were asked of another one.
func hedgedOf(addr, outcome string) int64 {
	u := thisLedger().Hold(upstreamName(addr))
	defer thisLedger().Release(u)
	return u.History.Hedged[outcome].Load()
}

// hedged runs Caddy before a server that is held and one that does as it is told. New requests go to the held one first: the
// other one has a request that it does not answer.
func hedged(t *testing.T, second http.HandlerFunc, options string) (s *site, h *heldServer) {
	t.Helper()
	h = newHeld(t)
	other := httptest.NewServer(second)
	t.Cleanup(other.Close)
	s = serve(t, fmt.Sprintf(`header >X-Upstream {rp.upstream.hostport}
	bokeh_proxy %s %s {
		hedge_after 100ms
		%s
	}`, h.Listener.Addr(), other.Listener.Addr(), options))
	comesSecond(other)
	return s, h
}

// comesSecond lets a server have a request that it does not answer.
func comesSecond(server *httptest.Server) {
	u := thisLedger().Hold(upstreamName(server.Listener.Addr().String()))
	defer thisLedger().Release(u)
	u.Unanswered.Ask(new(sessions.Question), thisLedger().Now()+time.Hour)
}

func TestHedge(t *testing.T) {
	for name, test := range map[string]struct {
		method, path string
		header       []string
		second       int    // what the second server answers
		options      string // of bokeh_proxy
		body         string // that the visitor gets
		asked        bool   // whether the second server was asked
	}{
		"a file":                   {"GET", "/static/js/bokeh.min.js?v=1", nil, 200, "", "second", true},
		"its headers":              {"HEAD", "/static/js/bokeh.min.js", nil, 200, "", "", true},
		"a script of the app's":    {"GET", "/assets/x", []string{"Sec-Fetch-Dest", "script"}, 200, "", "second", true},
		"one that has not changed": {"GET", "/static/js/bokeh.min.js", []string{"If-None-Match", `"x"`}, 304, "", "", true},
		"one that the other lacks": {"GET", "/static/js/bokeh.min.js", nil, 404, "", "held", true},
		"one that fails there":     {"GET", "/static/js/bokeh.min.js", nil, 500, "", "held", true},
		"one that it cuts off":     {"GET", "/static/js/bokeh.min.js", nil, 0, "", "held", true},
		"a login":                  {"GET", "/login?code=once", nil, 200, "", "held", false},
		"an answer of the app's":   {"GET", "/api/data.json", nil, 200, "", "held", false},
		"an order":                 {"POST", "/static/js/bokeh.min.js", nil, 200, "", "held", false},
		"a host that is named":     {"GET", "/static/js/bokeh.min.js", nil, 200, "header_up Host {upstream_hostport}", "held", false},
		"a page named like a file": {"GET", "/static/report.json", []string{"Accept", "text/html,application/xhtml+xml,*/*;q=0.8"}, 200, "", "held", false},
	} {
		t.Run(name, func(t *testing.T) {
			asked := make(chan struct{}, 1)
			s, h := hedged(t, func(w http.ResponseWriter, r *http.Request) {
				asked <- struct{}{}
				if test.second == 0 {
					panic(http.ErrAbortHandler)
				}
				w.WriteHeader(test.second)
				if test.second != http.StatusNotModified {
					fmt.Fprint(w, "second")
				}
			}, test.options)
			wins := test.body != "held"
			ctx, cancel := context.WithCancel(t.Context())
			go func() {
				if test.asked {
					<-asked
				} else {
					select {
					case <-asked:
						t.Error("the second server was asked")
					case <-time.After(300 * time.Millisecond):
					case <-ctx.Done():
					}
				}
				if !wins {
					close(h.release)
				}
			}()
			f := s.fetch(t, test.method, test.path, test.header...)
			cancel()
			if f.body != test.body {
				t.Errorf("the answer is %q, want %q", f.body, test.body)
			}
			addr := h.Listener.Addr().String()
			if by := f.header.Get("X-Upstream"); by == "" || (by == addr) == wins {
				t.Errorf("the placeholder names %q; the first server is %s", by, addr)
			}
			if n := h.asked.Load(); n != 1 {
				t.Errorf("the first server was asked %d times", n)
			}
			if !test.asked {
				return
			}
			outcome := hedgeLost
			if wins {
				outcome = hedgeWon
				<-h.left // nobody waits for the first any more
			}
			soon(t, "counted", func() bool { return hedgedOf(addr, outcome) == 1 })
		})
	}
}

// Many ask while one of the servers is held: each has an answer, and after the first ones nobody asks the held one.
func TestHedgeOfManyFiles(t *testing.T) {
	h := newHeld(t)
	well := newBokeh(t, "")
	s := serve(t, fmt.Sprintf("bokeh_proxy %s %s {\n hedge_after 100ms\n}", h.Listener.Addr(), well.addr()))
	for i := range 40 {
		if body := s.fetch(t, "GET", fmt.Sprintf("/static/js/%d.js", i)).body; body != well.addr() {
			t.Fatalf("file %d is %q", i, body)
		}
	}
	if n := h.asked.Load(); n > 20 {
		t.Errorf("the server that is held was asked for %d of 40 files", n)
	}
	for range h.asked.Load() {
		<-h.left
	}
}

// Where the other server does not answer either, it is not asked.
func TestNoHedgeWhereAllAreHeld(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(testPool(2))
		first := fileAt0(s)
		other, at := file(s)
		if at != "u1:80" {
			t.Fatalf("the second file goes to %s", at)
		}
		second := func(f *request) *candidate { return f.visit().second(s.candidates(s.static, f.visit())) }
		time.Sleep(sessions.StalledAfter)
		if c, d := second(first), second(other); c != nil || d != nil {
			t.Errorf("for files of two servers that are held, further ones would be asked: %v and %v", c, d)
		}
		other.answer(http.StatusOK)
		synctest.Wait()
		if c := second(first); c == nil || c.Name != "u1:80" {
			t.Errorf("when one answers again, it is not asked: %v", c)
		}
		first.end()
		time.Sleep(time.Minute)
	})
}

// What has been a page is asked once, whatever a browser calls it.
func TestNoHedgeOfAPage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(testPool(2))
		s.hedges = true
		for _, wants := range []bool{true, false} {
			f := newRequest(s, "/app", "Sec-Fetch-Dest", "script")
			f.choose(s.static)
			if got := f.visit().mayHedge; got != wants {
				t.Errorf("another server may be asked: %v, want %v", got, wants)
			}
			f.answer(http.StatusOK)
			landed(t, s, s.static)
		}
		time.Sleep(time.Minute) // until the sessions have ended
	})
}

// While servers have two versions, the one that is slow gets to answer where the faster one has another file.
func TestHedgeOfTwoVersions(t *testing.T) {
	s, h := hedged(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "second") }, "")
	go func() {
		<-h.left
		close(h.release)
	}()
	s.fetch(t, "GET", addressOf("held")).want(t, 200, "bokeh-files; fwd=uri-miss; stored; detail=elsewhere", "held")
}

// With TLS the request names its server, and so it does for the second one.
func TestHedgeOverTLS(t *testing.T) {
	first := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
	second := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Host) }))
	for _, server := range []*httptest.Server{first, second} {
		t.Cleanup(func() {
			server.CloseClientConnections()
			server.Close()
		})
	}
	s := serve(t, fmt.Sprintf("bokeh_proxy https://%[1]s https://%[2]s {\n hedge_after 100ms\n transport http {\n tls_insecure_skip_verify\n }\n}",
		first.Listener.Addr(), second.Listener.Addr()))
	comesSecond(second)
	if f := s.fetch(t, "GET", "/static/js/bokeh.min.js"); f.body != second.Listener.Addr().String() {
		t.Errorf("the host that was asked for is %q, want the second server", f.body)
	}
}

func TestIsFile(t *testing.T) {
	for target, want := range map[string]bool{
		"/static/js/bokeh.min.js?v=0":     true,
		"/app/static/extensions/x/y.css":  true,
		"/components/panel.js":            true,
		"/static/gallery":                 false, // may be an app
		"/static/../app/data.json":        false,
		"/app":                            false,
		"/login":                          false,
		"/api/slow.json":                  false,
		"/static/js/":                     false,
		"/nostatic/js/bokeh.js":           false,
		"/static/fonts/x.WOFF2":           true,
		"/download/static-report.csv?x=1": false,
	} {
		if got := isFile(httptest.NewRequest(http.MethodGet, target, nil)); got != want {
			t.Errorf("%s is a file: %v", target, got)
		}
		if isFile(httptest.NewRequest(http.MethodGet, target, strings.NewReader("x"))) {
			t.Errorf("%s with a body is a file", target)
		}
	}
}

func TestCanHedge(t *testing.T) {
	for name, test := range map[string]struct {
		h    reverseproxy.Handler
		t    reverseproxy.HTTPTransport
		want bool
	}{
		"plain":                  {want: true},
		"TLS":                    {t: reverseproxy.HTTPTransport{TLS: new(reverseproxy.TLSConfig)}, want: true},
		"a server name for each": {t: reverseproxy.HTTPTransport{TLS: &reverseproxy.TLSConfig{ServerName: "{http.reverse_proxy.upstream.host}"}}},
		"PROXY protocol":         {t: reverseproxy.HTTPTransport{ProxyProtocol: "v2"}},
		"a header": {h: reverseproxy.Handler{Headers: &headers.Handler{Request: &headers.HeaderOps{
			Set: http.Header{"X-Real-Ip": {"{http.request.remote.host}"}},
		}}}, want: true},
		"a header that names it": {h: reverseproxy.Handler{Headers: &headers.Handler{Request: &headers.HeaderOps{
			Set: http.Header{"Host": {"{http.reverse_proxy.upstream.hostport}"}},
		}}}},
	} {
		if got := canHedge(&test.h, &test.t); got != test.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	s := &Selection{HedgeAfter: caddy.Duration(time.Millisecond)}
	s.setDefaults()
	if err := s.Validate(); err == nil {
		t.Error("hedge_after 1ms is let in")
	}
}

// A file that is the same everywhere is asked of another server, too, whatever its browser has.
func TestHedgeOfAFileThatIsTheSameEverywhere(t *testing.T) {
	pool := testPool(2)
	s := newTestSelection(pool)
	s.Cookie, s.hedges = defaultCookie, true
	for _, asked := range []*askedUpstreams{nil, {}} {
		r := newRequest(s, addressOf(aScript), "Cookie", defaultCookie+"=AAAAAAAA")
		if asked != nil {
			r.Request = r.WithContext(context.WithValue(r.Context(), askedKey{}, asked))
		}
		if got, want := r.visit().mayHedge, asked != nil; got != want {
			t.Errorf("it may be asked twice: %v, want %v", got, want)
		}
	}
}

// A file that the second server answers ends with that server's grace period.
func TestHedgedFileIsEnded(t *testing.T) {
	ended := make(chan struct{})
	var second atomic.Value
	s, _ := hedged(t, func(w http.ResponseWriter, r *http.Request) {
		second.Store(r.Context().Value(http.LocalAddrContextKey).(net.Addr).String())
		fmt.Fprint(w, "begins")
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
		close(ended)
	}, "")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+s.addr+"/static/js/bokeh.min.js", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	u := thisLedger().Hold(upstreamName(second.Load().(string)))
	defer thisLedger().Release(u)
	u.Drain.Requests.EndAll(time.Nanosecond)
	select {
	case <-ended:
	case <-time.After(hangs):
		t.Error("it goes on")
	}
}
