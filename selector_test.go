// This file tests Select without a Caddy around it: the order of choice, time, bad input, speed.

package caddybokeh

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

func TestNewSessionsGoWhereFewestPagesAreBuilt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		chosen := map[string]*request{}
		for range 3 {
			r := newRequest(s, "/app")
			addr, why := r.choose(pool)
			if why != "new" || chosen[addr] != nil {
				t.Fatalf("%s, %s", addr, why)
			}
			chosen[addr] = r
		}
		// u0 has its page built and holds a session now: still the best, for nothing is in its queue.
		chosen["u0:80"].answer(200)
		synctest.Wait()
		next := newRequest(s, "/app")
		if addr, _ := next.choose(pool); addr != "u0:80" {
			t.Errorf("went to %s, want u0:80", addr)
		}
		// With no page being built anywhere, sessions decide.
		for _, r := range []*request{next, chosen["u1:80"]} {
			r.answer(200)
		}
		chosen["u2:80"].answer(302)
		synctest.Wait()
		last := newRequest(s, "/app")
		if addr, _ := last.choose(pool); addr != "u2:80" {
			t.Errorf("went to %s, want u2:80", addr)
		}
		last.end()
		synctest.Wait()
		time.Sleep(testLifetime + 2*time.Second)
		wantEmpty(t, s.table, 3)
	})
}

func TestHealthTouchesNewSessionsFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		home, token := landed(t, s, pool)

		var up atomic.Bool
		s.healthy = func(u *reverseproxy.Upstream) bool { return up.Load() || u.Dial != home }
		for range 20 {
			r := newRequest(s, "/app")
			if addr, _ := r.choose(pool); addr == home {
				t.Fatal("a new session went to an unhealthy upstream")
			}
			r.end()
		}
		socketAt := func(when, wantWhy string) {
			t.Helper()
			r := newSocket(s, token)
			addr, why := r.choose(pool)
			if (addr == home) != (wantWhy == "bound") || why != wantWhy {
				t.Errorf("%s: %s at %s, home is %s", when, why, addr, home)
			}
			r.end()
			synctest.Wait()
		}
		socketAt("at once", "bound")
		time.Sleep(50 * time.Second)
		socketAt("after 50 s", "bound")
		up.Store(true)
		socketAt("healthy again", "bound")
		up.Store(false)
		socketAt("down again", "bound")
		time.Sleep(50 * time.Second)
		socketAt("50 s later", "bound")
		time.Sleep(11 * time.Second)
		socketAt("lost", "moved")
	})
}

// Where visitors are few, health is looked after all the same: an upstream that stays unhealthy is lost
// after a minute, and one that was up meanwhile is not.
func TestHealthWithFewVisitors(t *testing.T) {
	for name, want := range map[string]string{"unhealthy all the time": "moved", "healthy for a while": "bound"} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(3)
			s := newTestSelection(pool)
			home, token := landed(t, s, pool)
			var up atomic.Bool
			s.healthy = func(u *reverseproxy.Upstream) bool { return up.Load() || u.Dial != home }
			look := func(when, want string) {
				r := newSocket(s, token)
				if _, why := r.choose(pool); why != want {
					t.Errorf("%s, %s: %s, want %s", name, when, why, want)
				}
				r.end()
				synctest.Wait()
			}
			look("at once", "bound")
			time.Sleep(5 * time.Minute)
			up.Store(want == "bound")
			time.Sleep(2 * healthInterval)
			up.Store(false)
			time.Sleep(5 * time.Minute)
			look("ten minutes later", want)
			if err := s.Cleanup(); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// Over HTTP/3 a request does not say whether it has a body. It is a page like any other.
func TestPageOfUnknownLength(t *testing.T) {
	pool := testPool(3)
	page := newRequest(newTestSelection(pool), "/app")
	page.ContentLength = -1
	page.choose(pool)
	if page.Header.Get(bokeh.SessionIDHeader) == "" || page.Header.Get(bokeh.StampHeader) != "" {
		t.Errorf("the stamp is not the session's id: %v", page.Header)
	}
}

func TestSharedRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		busy := newRequest(s, "/app")
		builder, _ := busy.choose(pool)
		for range 20 {
			if addr, why := newRequest(s, "/static/js/bokeh.js").choose(pool); addr == builder || why != "shared" {
				t.Fatalf("%s at %s, which builds a page", why, addr)
			}
		}
		busy.answer(200)
		synctest.Wait()
		// Only a server that has built a page knows the files of extensions.
		for range 20 {
			if addr, _ := newRequest(s, "/static/extensions/panel/panel.min.js").choose(pool); addr != builder {
				t.Fatalf("an extension's file was asked of %s, which has built no page", addr)
			}
		}
	})
}

func TestBadTokensAreShared(t *testing.T) {
	pool := testPool(3)
	s := newTestSelection(pool)
	for name, tc := range bokehtest.Tokens(t) {
		r := newSocket(s, tc.Token)
		addr, why := r.choose(pool)
		if addr == "" || (why == "shared") != (tc.ID == "") {
			t.Errorf("%s: %q at %q", name, why, addr)
		}
		if got := r.Header.Get("Sec-Websocket-Protocol"); got != "bokeh, "+tc.Token {
			t.Errorf("%s: the header was changed", name)
		}
		r.end()
	}
}

func TestWithoutReplacer(t *testing.T) {
	pool := testPool(1)
	s := newTestSelection(pool)
	if u := s.Select(pool, httptest.NewRequest(http.MethodGet, "/app", nil), nil); u != pool[0] {
		t.Errorf("chose %v", u)
	}
}

// FuzzSelect drives Select with whatever a client can send.
func FuzzSelect(f *testing.F) {
	f.Add("/app", "", "", "", "")
	f.Add("/app", bokehtest.Stamp("u0:80"), "", "", "")
	f.Add("/app/ws", "", "bokeh, "+bokehtest.Token(f, bokehtest.Stamp("u1:80"), nil), "websocket", "")
	f.Add("/static/extensions/x", "", "", "", strings.Repeat("x", 100))
	pool := testPool(3)
	s := newTestSelection(pool)
	f.Fuzz(func(t *testing.T, path, id, protocol, upgrade, theirs string) {
		if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, " \x00\r\n") {
			return
		}
		r := newRequest(s, "/", bokeh.SessionIDHeader, id, "Sec-Websocket-Protocol", protocol, "Upgrade", upgrade, bokeh.StampHeader, theirs)
		r.URL.Path = path
		addr, _ := r.choose(pool)
		if addr == "" {
			t.Error("no upstream")
		}
		if got := r.Header.Get(bokeh.StampHeader); got != "" && (got == theirs || len(got) != stamp.Len) {
			t.Errorf("the client's stamp %q is passed on", got)
		}
		r.end()
	})
}

// BenchmarkSelect compares the policy with Caddy's own over pools of three sizes, and with itself while one in ten upstreams
// drains, that of the bound session among them. Each operation is a whole request as the policy sees it: Select, and the end
// of the request's context.
func BenchmarkSelect(b *testing.B) {
	for _, n := range []int{3, 100, 1000} {
		pool := testPool(n)
		ours, draining := newTestSelection(pool), newTestSelection(pool)
		for i := n / 2 % 10; i < n; i += 10 {
			drainUpstream(draining, pool[i].Dial)
		}
		cookie := &reverseproxy.CookieHashSelection{Name: "lb", Secret: "secret"}
		ipHash := new(reverseproxy.IPHashSelection)
		leastConn := new(reverseproxy.LeastConnSelection)
		mac := hmac.New(sha256.New, []byte("secret"))
		mac.Write([]byte(pool[n/2].Dial))
		bound := hex.EncodeToString(mac.Sum(nil))
		token := bokehtest.Token(b, bokehtest.Ring[0].Stamp(bokehtest.Ring[0].Tag(pool[n/2].Dial)), map[string]any{"Host": "example.com"})
		protocol := http.Header{"Upgrade": {"websocket"}, "Connection": {"Upgrade"}, "Sec-Websocket-Protocol": {"bokeh, " + token}}
		for _, bm := range []struct {
			name   string
			policy reverseproxy.Selector
			path   string
			header http.Header
		}{
			{"bokeh/new", ours, "/app", http.Header{}},
			{"bokeh/bound", ours, "/app/ws", protocol},
			{"bokeh/new/draining", draining, "/app", http.Header{}},
			{"bokeh/bound/draining", draining, "/app/ws", protocol},
			{"bokeh/shared", ours, "/static/js/bokeh.js", http.Header{}},
			{"cookie/bound", cookie, "/app/ws", http.Header{"Cookie": {"lb=" + bound}}},
			{"ip_hash", ipHash, "/app", http.Header{}},
			{"least_conn", leastConn, "/app", http.Header{}},
		} {
			b.Run(fmt.Sprintf("%s/%d", bm.name, n), func(b *testing.B) {
				b.ReportAllocs()
				b.RunParallel(func(pb *testing.PB) {
					blank := httptest.NewRequest(http.MethodGet, bm.path, nil)
					w := httptest.NewRecorder()
					repl := caddy.NewReplacer()
					base := context.WithValue(context.Background(), caddy.ReplacerCtxKey, repl)
					for pb.Next() {
						ctx, cancel := context.WithCancel(base)
						r := blank.WithContext(ctx)
						r.Header = maps.Clone(bm.header)
						u := bm.policy.Select(pool, r, w)
						cancel()
						if u == nil {
							b.Error("no upstream")
						}
					}
				})
			})
		}
	}
}

// BenchmarkSessions shows that the cost of a bound socket does not grow with the sessions.
func BenchmarkSessions(b *testing.B) {
	for _, n := range []int{1, 1000, 1_000_000} {
		pool := testPool(3)
		s := newTestSelection(pool)
		for i := range n - 1 {
			s.table.BeginPage(s.table.Key(fmt.Sprint(i)), s.members.get("u0:80").Upstream, sessions.Terms{Lifetime: time.Hour})
		}
		token := bokehtest.Token(b, bokehtest.Stamp("u1:80"), nil)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for b.Loop() {
				r := newSocket(s, token)
				s.Select(pool, r.Request, nil)
				r.end()
			}
		})
	}
}
