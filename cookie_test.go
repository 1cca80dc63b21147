// This file tests the cookie that names the server of a browser's newest page.

package caddybokeh

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// Links that name no session find what the page has made, whatever they are called. A page goes where it is ready first.
func TestCookie(t *testing.T) {
	servers, addrs := three(t)
	for _, b := range servers {
		b.files = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprintf(w, `{"server":%q}`, b.addr())
		})
	}
	s := serve(t, "reverse_proxy "+deadAddr(t)+" "+addrs+" {\n lb_policy bokeh {\n cookie\n}\n lb_try_duration 5s\n}")
	homes := map[string]bool{}
	for range 9 {
		p := s.get("/app")
		lines := p.header.Values("Set-Cookie")
		if len(lines) != 1 || !strings.HasPrefix(lines[0], "bokeh_server=") || !strings.HasSuffix(lines[0], "; Path=/; HttpOnly; SameSite=Lax") {
			t.Fatalf("a page sets %q", lines)
		}
		homes[p.Server] = true
		cookie, _, _ := strings.Cut(lines[0], ";")
		for _, path := range []string{"/download/1", "/app/static/plot.png", "/download/2", "/rest/status"} {
			got := s.get(path, "Cookie", "other=1; "+cookie)
			if got.Server != p.Server || got.header.Get("Set-Cookie") != "" {
				t.Errorf("%s is asked of %s, the page is at %s; it sets %q", path, got.Server, p.Server, got.header.Get("Set-Cookie"))
			}
		}
		next := s.get("/app", "Cookie", cookie)
		homes[next.Server] = true // the pages spread evenly, every second one alone need not
		if (next.Server == p.Server) != (next.header.Get("Set-Cookie") == "") {
			t.Errorf("the next page is at %s and sets %q, the first is at %s", next.Server, next.header.Get("Set-Cookie"), p.Server)
		}
	}
	if len(homes) != 3 {
		t.Errorf("pages are at %v alone", homes)
	}
}

// The cookie draws nobody to where new sessions do not go, and one that nobody was given means nothing.
func TestCookieDrawsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		named := bokehtest.Ring[0].Tag("u0:80")
		for what, tc := range map[string]struct {
			value string
			make  func(s *Selection) // so
			drawn bool
		}{
			"all is well":            {value: base64.RawURLEncoding.EncodeToString(named[:]), drawn: true},
			"it drains":              {value: base64.RawURLEncoding.EncodeToString(named[:]), make: func(s *Selection) { drainUpstream(s, "u0:80") }},
			"it is called down":      {value: base64.RawURLEncoding.EncodeToString(named[:]), make: func(s *Selection) { s.healthy = notNamed("u0:80") }},
			"it refused":             {value: base64.RawURLEncoding.EncodeToString(named[:]), make: func(s *Selection) { s.members.get("u0:80").Dialed(2, 2, breaker.Backoff, http.ErrAbortHandler) }},
			"no cookie is set":       {value: base64.RawURLEncoding.EncodeToString(named[:]), make: func(s *Selection) { s.Cookie = "" }},
			"somebody made it up":    {value: "AAAAAAAA"},
			"it is no tag":           {value: "u0:80"},
			"it is longer than one":  {value: base64.RawURLEncoding.EncodeToString(append(named[:], 0, 0, 0))},
			"it is empty":            {value: ""},
			"its name is another's":  {value: "; x=" + base64.RawURLEncoding.EncodeToString(named[:])},
			"it is one of many keys": {value: base64.RawURLEncoding.EncodeToString(named[:]), make: func(s *Selection) { s.ring.Store(&stamp.Keyring{stamp.NewKey([]byte("new")), bokehtest.Ring[0]}) }, drawn: true},
		} {
			pool := testPool(3)
			s := newTestSelection(pool)
			s.Cookie = defaultCookie
			if tc.make != nil {
				tc.make(s)
			}
			for _, path := range []string{"/static/x.png", "/download/1"} {
				drawn := 0
				for range 30 {
					r := newRequest(s, path, "Cookie", defaultCookie+"="+tc.value)
					if addr, _ := r.choose(pool); addr == "u0:80" {
						drawn++
					}
					r.end()
				}
				synctest.Wait()
				if (drawn == 30) != tc.drawn {
					t.Errorf("%s: %d of 30 requests for %s go to the server that the cookie names", what, drawn, path)
				}
			}
		}
	})
}

// notNamed is a health check that calls one upstream down.
func notNamed(addr string) func(*reverseproxy.Upstream) bool {
	return func(u *reverseproxy.Upstream) bool { return u.Dial != addr }
}

// Pages of an app that is known, embedded ones and sockets do not depend on the cookie.
func TestPagesAndTheCookie(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		s.Cookie = defaultCookie
		home, token := landed(t, s, pool)
		tag := bokehtest.Ring[0].Tag(home)
		for _, path := range []string{"/app", "/app/", "/other/autoload.js"} {
			r := newRequest(s, path, "Cookie", defaultCookie+"="+base64.RawURLEncoding.EncodeToString(tag[:]))
			if addr, why := r.choose(pool); addr == home || why != "new" {
				t.Errorf("%s is %s at %s, which has a session more than the others", path, why, addr)
			}
			r.end()
			synctest.Wait()
		}
		away := bokehtest.Ring[0].Tag(pool[0].Dial)
		if home == pool[0].Dial {
			away = bokehtest.Ring[0].Tag(pool[1].Dial)
		}
		r := newSocket(s, token)
		r.Header.Set("Cookie", defaultCookie+"="+base64.RawURLEncoding.EncodeToString(away[:]))
		if addr, _ := r.choose(pool); addr != home {
			t.Errorf("the socket is at %s, its page at %s", addr, home)
		}
	})
}
