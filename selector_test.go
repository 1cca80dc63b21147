// This file tests Select without a Caddy around it: the order of choice, time, bad input, speed.

package caddybokeh

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/caddyserver/caddy/v2"
	"github.com/caddyserver/caddy/v2/modules/caddyhttp/reverseproxy"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh"
	"github.com/caddy-bokeh/caddy-bokeh/internal/bokeh/bokehtest"
	"github.com/caddy-bokeh/caddy-bokeh/internal/breaker"
	"github.com/caddy-bokeh/caddy-bokeh/internal/sessions"
	"github.com/caddy-bokeh/caddy-bokeh/internal/stamp"
)

// testPool returns n upstreams named u0:80, u1:80 and so on.
func testPool(n int) reverseproxy.UpstreamPool {
	pool := make(reverseproxy.UpstreamPool, n)
	for i := range pool {
		pool[i] = &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: fmt.Sprintf("u%d:80", i)}
	}
	return pool
}

// newTestSelection returns a policy with a table of its own, for a handler with the given pool.
func newTestSelection(pool reverseproxy.UpstreamPool) *Selection {
	return newTestSelectionWith(newLedger(), pool)
}

// newTestSelectionWith returns a policy of another config of the same process.
func newTestSelectionWith(t *ledger, pool reverseproxy.UpstreamPool) *Selection {
	s := new(Selection)
	s.logger, s.ring = zap.NewNop(), new(atomic.Pointer[stamp.Keyring])
	s.setDefaults()
	s.ring.Store(&bokehtest.Ring)
	s.attach(t)
	s.owner = t.newOwner(true)
	s.knowPool(&reverseproxy.Handler{Upstreams: pool})
	return s
}

// discovers makes s the policy of a handler that discovers its upstreams, the same for every request.
func discovers(s *Selection) {
	s.knowPool(&reverseproxy.Handler{DynamicUpstreamsRaw: []byte(`{"source":"a","name":"app.test"}`)})
}

// request is one request on its way through a handler.
type request struct {
	*http.Request
	s    *Selection
	repl *caddy.Replacer
	end  context.CancelFunc
}

func newRequest(s *Selection, target string, header ...string) *request {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header[header[i]] = []string{header[i+1]}
	}
	repl := caddy.NewReplacer()
	ctx, cancel := context.WithCancel(context.WithValue(r.Context(), caddy.ReplacerCtxKey, repl))
	return &request{r.WithContext(ctx), s, repl, cancel}
}

func newSocket(s *Selection, token string) *request {
	return newRequest(s, "/app/ws", "Upgrade", "websocket", "Connection", "Upgrade", "Sec-Websocket-Protocol", "bokeh, "+token)
}

// choose selects an upstream and returns its address, or nothing, and the decision.
func (r *request) choose(pool reverseproxy.UpstreamPool) (addr, why string) {
	u := r.s.Select(pool, r.Request, nil)
	if u == nil {
		return "", ""
	}
	why, _ = r.repl.GetString(placeholderDecision)
	return u.Dial, why
}

// run returns what the policy knows of the request.
func (r *request) run() *visit {
	if v, ok := r.Context().Value(visitKey{r.s}).(*visit); ok {
		return v
	}
	return r.s.visit(r.Request)
}

// answer plays the rest of an attempt that the upstream answers, and ends the request.
func (r *request) answer(status int) {
	rn := r.run()
	rn.connected(rn.attempt)
	rn.firstByteCame(rn.attempt)
	r.repl.Set(placeholderStatus, status)
	r.end()
}

// hang plays an attempt that the upstream takes and does not answer, until the client gives up.
func (r *request) hang() {
	rn := r.run()
	rn.connected(rn.attempt)
	time.Sleep(10 * time.Second)
	r.end()
}

// badGateway plays the end of a request whose last attempt has brought no answer.
func (r *request) badGateway() { r.proxyError(http.StatusBadGateway) }

// proxyError plays the end of a request by an error of the proxy's own.
func (r *request) proxyError(status int) {
	r.repl.Set(placeholderErrorID, "of this error")
	r.repl.Set(placeholderErrorStatus, status)
	r.end()
}

// refuse plays an attempt whose dial fails.
func (r *request) refuse() {
	rn := r.run()
	rn.dialed(rn.attempt, fmt.Errorf("connection refused"))
}

// landed requests a page and says where it was made, and the token for its socket.
func landed(t *testing.T, s *Selection, pool reverseproxy.UpstreamPool) (home, token string) {
	t.Helper()
	page := newRequest(s, "/app")
	home, _ = page.choose(pool)
	page.answer(200)
	synctest.Wait()
	return home, bokehtest.Token(t, page.stamp(), nil)
}

// stamp is what a page request carries after Select.
func (r *request) stamp() string {
	if s := r.Header.Get(bokeh.StampHeader); s != "" {
		return s
	}
	return r.Header.Get(bokeh.SessionIDHeader)
}

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

// A server that takes no connection in time may be busy with a page, while more than its system lets wait. New sessions go elsewhere at
// once, its own only when that has lasted for a minute.
func TestBusyServerIsNotLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		home, token := landed(t, s, pool)
		late := func(r *request) {
			r.run().dialed(r.run().attempt, &net.OpError{Op: "dial", Err: os.ErrDeadlineExceeded})
			r.badGateway()
			synctest.Wait()
		}
		socketAt := func(when, want string) {
			t.Helper()
			r := newSocket(s, token)
			if addr, why := r.choose(pool); (addr == home) != (want == "bound") || why != want {
				t.Errorf("%s: %s at %s, home is %s", when, why, addr, home)
			}
			late(r)
		}
		socketAt("before", "bound")
		for range 20 {
			r := newRequest(s, "/app")
			if addr, _ := r.choose(pool); addr == home {
				t.Fatal("a new session went to an upstream that takes no connection")
			}
			r.end()
		}
		for i := range 11 {
			time.Sleep(5 * time.Second)
			socketAt(fmt.Sprint("for ", 5*(i+1), " s"), "bound")
		}
		there := newSocket(s, token)
		there.choose(pool)
		there.run().connected(there.run().attempt)
		there.end()
		synctest.Wait()
		for i := range 12 {
			time.Sleep(5 * time.Second)
			socketAt(fmt.Sprint("for ", 5*i, " s since it was there"), "bound")
		}
		time.Sleep(6 * time.Second)
		socketAt("for a minute", "moved")
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

// A server that hangs, or fails at once, has nothing to build and no sessions. It must not draw the visitors.
func TestPagesThatFailWeigh(t *testing.T) {
	for name, fail := range map[string]func(*request){
		"hangs": func(r *request) { r.run().connected(r.run().attempt); time.Sleep(10 * time.Second); r.end() },
		"fails": func(r *request) { r.answer(500) },
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(3)
			s := newTestSelection(pool)
			bad := 0
			for range 30 {
				r := newRequest(s, "/app")
				if addr, _ := r.choose(pool); addr == "u0:80" {
					bad++
					go fail(r)
				} else {
					r.answer(200)
				}
				time.Sleep(time.Second)
			}
			if bad > 4 {
				t.Errorf("%s: %d of 30 visits in half a minute went to it", name, bad)
			}
			time.Sleep(time.Minute)
			for _, m := range s.index.Load().all {
				if m.Backlog() != 0 {
					t.Errorf("%s: a minute later %d pages weigh at %s", name, m.Backlog(), m.Name)
				}
			}
		})
	}
}

// A server that signs says so. A 403 without that may be the app's verdict on a visitor, and counts only
// while the server has not taken an id.
func TestRefusedIDs(t *testing.T) {
	const own = "403 Forbidden"
	for name, tc := range map[string]struct {
		answers []string // to pages, each "200" or a status text
		want    bool     // whether ids are given afterwards
	}{
		"says so":                  {[]string{refusal}, false},
		"says nothing":             {[]string{own}, false},
		"has taken one":            {[]string{"200", own, own}, true},
		"signs since it restarted": {[]string{"200", refusal}, false},
		"and is not asked again":   {[]string{refusal, "200"}, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(1)
			s := newTestSelection(pool)
			for _, a := range tc.answers {
				r := newRequest(s, "/app")
				r.choose(pool)
				r.repl.Set(placeholderStatusText, a)
				status := 403
				if a == "200" {
					status = 200
				}
				r.answer(status)
				synctest.Wait()
			}
			r := newRequest(s, "/app")
			r.choose(pool)
			if given := r.Header.Get(bokeh.SessionIDHeader) != ""; given != tc.want {
				t.Errorf("%s: an id is given: %v, want %v", name, given, tc.want)
			}
			// Another key is another matter.
			s.ring.Store(&stamp.Keyring{stamp.NewKey([]byte("another"))})
			r = newRequest(s, "/app")
			r.choose(pool)
			if r.Header.Get(bokeh.SessionIDHeader) == "" {
				t.Errorf("%s: no id by another key", name)
			}
		})
	}
}

// A full upstream still takes its own sessions.
func TestFullUpstreamKeepsItsSessions(t *testing.T) {
	pool := testPool(2)
	s := newTestSelection(pool)
	ring := *s.ring.Load()
	stamp := ring[0].Stamp(ring[0].Tag("u1:80"))
	pool[1].MaxRequests = -1
	if addr, why := newSocket(s, bokehtest.Token(t, stamp, nil)).choose(pool); addr != "u1:80" || why != "bound" {
		t.Errorf("%s at %s", why, addr)
	}
}

func TestRetriesOfANewSession(t *testing.T) {
	pool := testPool(3)
	s := newTestSelection(pool)
	r := newRequest(s, "/app")
	seen := map[string]bool{}
	stamps := map[string]bool{}
	for range 3 {
		addr, _ := r.choose(pool)
		tg, k, ok := bokehtest.Ring.Verify(r.stamp())
		if !ok || tg != k.Tag(addr) {
			t.Errorf("the stamp does not name %s", addr)
		}
		seen[addr], stamps[r.stamp()] = true, true
		r.refuse()
	}
	if len(seen) != 3 || len(stamps) != 3 {
		t.Errorf("3 attempts at %d upstreams with %d stamps", len(seen), len(stamps))
	}
	if addr, _ := r.choose(pool); addr == "" {
		t.Error("with all tried it does not start over")
	}
	total := int64(0)
	for _, m := range s.index.Load().all {
		total += m.Slots.Sessions.Load()
	}
	if total != 1 {
		t.Errorf("one request weighs %d", total)
	}
}

// Caddy copies the headers of each attempt from those of the first where there are header
// operations, and sends the ones on the request where there are none.
func TestFreshStampIsSent(t *testing.T) {
	for name, withOps := range map[string]bool{"header operations": true, "none": false} {
		pool := testPool(4)
		s := newTestSelection(pool)
		r := newRequest(s, "/app")
		original := r.Header
		for range 4 {
			addr, _ := r.choose(pool)
			if withOps {
				r.Header = original.Clone()
				r.Header.Set("X-A", "b")
			}
			if tg, k, ok := bokehtest.Ring.Verify(r.Header.Get(bokeh.SessionIDHeader)); !ok || tg != k.Tag(addr) {
				t.Errorf("%s: the stamp sent does not name %s", name, addr)
			}
			r.refuse()
		}
	}
}

func TestForeignIDs(t *testing.T) {
	pool := testPool(5)
	one, two := newTestSelection(pool), newTestSelection(testPool(5))
	count := map[string]int{}
	for i := range 200 {
		id := fmt.Sprint("id-", i)
		page := newRequest(one, "/app", bokeh.SessionIDHeader, id)
		addr, why := page.choose(pool)
		if why != "new" {
			t.Fatalf("decision %s", why)
		}
		count[addr]++
		page.end()
		// Its socket finds it through another node as well, by the id alone.
		if there, _ := newSocket(two, bokehtest.Token(t, id, nil)).choose(two.static); there != addr {
			t.Errorf("page at %s, socket at %s", addr, there)
		}
	}
	for addr, n := range count {
		if n < 20 || n > 60 {
			t.Errorf("%s has %d of 200 sessions", addr, n)
		}
	}
	if len(count) != 5 {
		t.Errorf("only %d of 5 upstreams are used", len(count))
	}
}

// A client names a session of ours whose server is lost, to a stack that makes ids of its own: the socket goes where
// the page went, on every node.
func TestOldIDOfAStackThatIgnoresIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		s := newTestSelection(pool)
		home, token := landed(t, s, pool)
		old := bokeh.ReadToken(token, bokehtest.Ring).ID
		page := newRequest(s, "/app", bokeh.SessionIDHeader, old)
		page.choose(pool)
		page.refuse()
		there, _ := page.choose(pool)
		page.answer(200)
		if there == home {
			t.Fatal("the page stays at the server that refuses it")
		}
		if got := page.Header.Get(bokeh.SessionIDHeader); got != old {
			t.Errorf("the upstream sees another id than the client sent: %q", got)
		}
		packed := bokehtest.Token(t, "made-by-the-stack", map[string]any{bokeh.SessionIDHeader: old, bokeh.StampHeader: page.Header.Get(bokeh.StampHeader)})
		for name, node := range map[string]*Selection{"this node": s, "another": newTestSelection(pool)} {
			if addr, _ := newSocket(node, packed).choose(pool); addr != there {
				t.Errorf("%s: page at %s, socket at %s", name, there, addr)
			}
		}
	})
}

// A client names a session of ours whose server drains: the page goes elsewhere, and so does its socket through another
// Caddy, though the session's id names the draining server.
func TestOldIDOfADrainingUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(3)
		one, two := newTestSelection(pool), newTestSelection(pool)
		old := bokehtest.Stamp("u0:80")
		for _, s := range []*Selection{one, two} {
			defer drainUpstream(s, "u0:80")()
		}
		page := newRequest(one, "/app", bokeh.SessionIDHeader, old)
		there, _ := page.choose(pool)
		page.answer(200)
		if there == "u0:80" {
			t.Fatal("the page goes to the draining server")
		}
		token := bokehtest.Token(t, old, map[string]any{bokeh.SessionIDHeader: old, bokeh.StampHeader: page.Header.Get(bokeh.StampHeader)})
		for name, node := range map[string]*Selection{"this node": one, "another": two} {
			if addr, _ := newSocket(node, token).choose(pool); addr != there {
				t.Errorf("%s: page at %s, socket at %s", name, there, addr)
			}
		}
	})
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

// One id on two sites is two sessions, and each site sees only its own pool.
func TestOneForeignIDOnTwoSites(t *testing.T) {
	inner, outer := testPool(1), reverseproxy.UpstreamPool{{Host: new(reverseproxy.Host), Dial: "public:80"}}
	a, b := newTestSelection(inner), newTestSelection(outer)
	b.attach(a.table)
	b.owner = a.table.newOwner(false)
	b.knowPool(&reverseproxy.Handler{Upstreams: outer})
	token := bokehtest.Token(t, "shared-id", nil)
	if addr, _ := newSocket(a, token).choose(inner); addr != "u0:80" {
		t.Errorf("inner site: %s", addr)
	}
	if addr, _ := newSocket(b, token).choose(outer); addr != "public:80" {
		t.Errorf("outer site: %s", addr)
	}
	if addr, _ := newSocket(a, token).choose(inner); addr != "u0:80" {
		t.Errorf("inner site again: %s", addr)
	}
}

// A reload that takes an upstream off loses no session there: not while the config before is still ending, nor where another
// site has the upstream.
func TestReloadThatTakesOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		before := newTestSelection(pool)
		_, token := landed(t, before, pool[:1])
		after := newTestSelectionWith(before.table, pool[1:])
		other := newTestSelection(pool[:1])
		other.attach(before.table)
		other.owner = before.table.newOwner(false)
		other.knowPool(&reverseproxy.Handler{Upstreams: pool[:1]})
		for range 3 {
			r := newSocket(after, token)
			if addr, why := r.choose(pool[1:]); addr != u0 || why != "bound" {
				t.Errorf("after the reload it is %s at %s", why, addr)
			}
			r.answer(http.StatusSwitchingProtocols)
			synctest.Wait()
		}
	})
}

// Also where the sites share some upstreams: each finds its own session, the same on every node.
func TestOneForeignIDOnTwoSitesThatShare(t *testing.T) {
	both, one := testPool(2), testPool(2)[1:]
	a, b := newTestSelection(both), newTestSelection(one)
	b.attach(a.table)
	b.owner = a.table.newOwner(false)
	b.knowPool(&reverseproxy.Handler{Upstreams: one})
	moved := 0
	for i := range 50 {
		token := bokehtest.Token(t, fmt.Sprint("id-", i), nil)
		before, _ := newSocket(a, token).choose(both)
		newSocket(b, token).choose(one)
		if after, _ := newSocket(a, token).choose(both); after != before {
			moved++
		}
	}
	if moved > 0 {
		t.Errorf("%d of 50 sessions of one site were moved by the other", moved)
	}
}

// A stamp that names an upstream that is gone, and one by a key that is, lead to the same
// upstream on every node.
func TestStampThatNamesNobody(t *testing.T) {
	pool := testPool(4)
	for name, stamp := range map[string]string{
		"gone":        bokehtest.Stamp("gone:80"),
		"another key": stamp.NewKey([]byte("x")).Stamp(stamp.Tag{}),
	} {
		first := ""
		for range 3 {
			addr, _ := newSocket(newTestSelection(pool), bokehtest.Token(t, stamp, nil)).choose(pool)
			if first == "" {
				first = addr
			}
			if addr == "" || addr != first {
				t.Errorf("%s: %q, then %q", name, first, addr)
			}
		}
	}
}

// Where every server has just refused a connection, each may be back: nobody is turned away.
func TestAllUpstreamsFailing(t *testing.T) {
	for name, pool := range map[string]reverseproxy.UpstreamPool{"pool of one": testPool(1), "pool of three": testPool(3)} {
		s := newTestSelection(pool)
		for _, m := range s.candidatesIn(pool, nil) {
			m.Dialed(0, s.table.Now(), breaker.Backoff, fmt.Errorf("connection refused"))
		}
		home := pool[len(pool)-1].Dial
		for what, r := range map[string]*request{
			"new page":                newRequest(s, "/app"),
			"page of a foreign id":    newRequest(s, "/app", bokeh.SessionIDHeader, "x"),
			"socket of a foreign id":  newSocket(s, bokehtest.Token(t, "x", nil)),
			"stamp that names nobody": newSocket(s, bokehtest.Token(t, bokehtest.Stamp("gone:80"), nil)),
			"static file":             newRequest(s, "/static/x.js"),
		} {
			if addr, _ := r.choose(pool); addr == "" {
				t.Errorf("%s: no upstream for a %s", name, what)
			}
		}
		if addr, why := newSocket(s, bokehtest.Token(t, bokehtest.Stamp(home), nil)).choose(pool); addr != home || why != "bound" {
			t.Errorf("%s: a session of %s is %s at %s", name, home, why, addr)
		}
	}
}

// A dynamic source makes new upstreams for every attempt; sessions and failures are known by name.
func TestPoolThatChangesAtEveryAttempt(t *testing.T) {
	s := newTestSelection(nil)
	page := newRequest(s, "/app")
	home, _ := page.choose(testPool(3))
	page.answer(200)
	for range 10 {
		r := newSocket(s, bokehtest.Token(t, page.stamp(), nil))
		if addr, why := r.choose(testPool(3)); addr != home || why != "bound" {
			t.Errorf("%s at %s, home is %s", why, addr, home)
		}
		r.end()
	}
	r := newSocket(s, bokehtest.Token(t, page.stamp(), nil))
	r.choose(testPool(3))
	r.refuse()
	if addr, why := r.choose(testPool(3)); addr == home || why != "moved" {
		t.Errorf("%s at %s, home is %s", why, addr, home)
	}
}

// An upstream that has left a discovered pool gets no new session, keeps those it has until they end, and is then forgotten.
// Back in the pool it is as before.
func TestGoneUpstream(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(nil)
		discovers(s)
		home, token := landed(t, s, testPool(1))
		rest := func() reverseproxy.UpstreamPool { return testPool(3)[1:] }
		for range 20 {
			r := newRequest(s, "/app")
			if addr, why := r.choose(rest()); addr == home || why != "new" {
				t.Fatalf("a new session is %s at %s, which is gone", why, addr)
			}
			r.end()
			if addr, _ := newRequest(s, "/static/x.js").choose(rest()); addr == home {
				t.Fatal("a file was asked of an upstream that is gone")
			}
			if addr, _ := newRequest(s, "/app", bokeh.SessionIDHeader, rand.Text()).choose(rest()); addr == home {
				t.Fatal("a foreign id went to an upstream that is gone")
			}
		}
		open := newSocket(s, token)
		if addr, why := open.choose(rest()); addr != home || why != "bound" {
			t.Errorf("its own session is %s at %s, home is %s", why, addr, home)
		}
		if addr, why := newRequest(s, "/app", bokeh.SessionIDHeader, bokehtest.Stamp("u0:80")).choose(rest()); addr == home {
			t.Errorf("a page with its stamp is %s at %s", why, addr)
		}
		time.Sleep(2 * memberTTL)
		newRequest(s, "/app").choose(append(rest(), &reverseproxy.Upstream{Host: new(reverseproxy.Host), Dial: "u9:80"}))
		if addr, why := newSocket(s, token).choose(rest()); addr != home || why != "bound" {
			t.Errorf("after %v its own session is %s at %s", 2*memberTTL, why, addr)
		}
		wantTally(t, "still connected", upstreamAt(s.table, home), tally{0, 0, 1, 0})
		for range 10 {
			r := newRequest(s, "/app")
			if addr, _ := r.choose(testPool(1)); addr != home {
				t.Error("back in the pool it gets no new session")
			}
			r.end()
		}
		synctest.Wait()
		wantTally(t, "back in the pool", upstreamAt(s.table, home), tally{0, 0, 1, 0})
	})
}

// A resolver that answers with one half of the fleet and then the other changes nothing for visitors.
func TestAlternatingPool(t *testing.T) {
	s := newTestSelection(nil)
	discovers(s)
	halves := []reverseproxy.UpstreamPool{testPool(4)[:2], testPool(4)[2:]}
	var pages []*request
	for i := range 20 {
		r := newRequest(s, "/app")
		if addr, _ := r.choose(halves[i%2]); addr == "" {
			t.Fatal("no upstream for a page")
		}
		pages = append(pages, r)
		r.answer(200)
	}
	for i, p := range pages {
		for _, half := range halves {
			tg, k, _ := bokehtest.Ring.Verify(p.stamp())
			addr, why := newSocket(s, bokehtest.Token(t, p.stamp(), nil)).choose(half)
			if k.Tag(addr) != tg || why != "bound" {
				t.Errorf("visit %d: %s at %s", i, why, addr)
			}
		}
	}
}

// What a source finds for one request may be somebody else's: a token of one site opens no door on another.
func TestGoneUpstreamOfAnotherSite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(nil)
		s.knowPool(&reverseproxy.Handler{DynamicUpstreamsRaw: []byte(`{"source":"a","name":"{http.request.host}"}`)})
		home, token := landed(t, s, testPool(1))
		if addr, _ := newSocket(s, token).choose(testPool(3)[1:]); addr == home {
			t.Errorf("another site's token led to %s", addr)
		}
	})
}

func TestEmptyPoolIsNoInformation(t *testing.T) {
	s := newTestSelection(nil)
	if addr, _ := newRequest(s, "/app").choose(nil); addr != "" {
		t.Errorf("%s of a pool that was always empty", addr)
	}
	discovers(s)
	newRequest(s, "/app").choose(testPool(2))
	if addr, _ := newRequest(s, "/app").choose(nil); addr == "" {
		t.Error("an empty pool after a good one serves nobody")
	}
}

// A resolver that fails for two minutes changes nothing for visitors: who is there stays, also at an upstream that it had
// ceased to find before, and who comes is spread over those that it found last.
func TestResolverFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newTestSelection(nil)
		discovers(s)
		homes := map[string]string{} // of the sessions, by their tokens
		visit := func(pool reverseproxy.UpstreamPool) (home string) {
			home, token := landed(t, s, pool)
			homes[token] = home
			return home
		}
		visit(testPool(1)) // u0 is gone after that
		found := func() reverseproxy.UpstreamPool { return testPool(3)[1:] }
		for range 4 {
			visit(found())
		}
		// Every browser loses its connection and comes back.
		comeBack := func(pool reverseproxy.UpstreamPool) {
			t.Helper()
			for token, home := range homes {
				r := newSocket(s, token)
				if addr, why := r.choose(pool); addr != home || why != "bound" {
					t.Errorf("at %s a session of %s is %s at %s", time.Now().Format(time.TimeOnly), home, why, addr)
				}
				r.answer(http.StatusSwitchingProtocols)
			}
			synctest.Wait()
		}
		comeBack(found())
		news := map[string]int{}
		for range 6 {
			time.Sleep(20 * time.Second)
			for range 4 {
				news[visit(nil)]++
			}
			if addr, why := newRequest(s, "/static/js/bokeh.js").choose(nil); addr == "" || addr == "u0:80" || why != "shared" {
				t.Errorf("a file is %s at %q", why, addr)
			}
			comeBack(nil)
		}
		if news["u1:80"] != 12 || news["u2:80"] != 12 {
			t.Errorf("the new sessions are at %v", news)
		}
		time.Sleep(20 * time.Second)
		comeBack(found())
	})
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

// What a handler before us left behind must not be taken for an answer to us.
func TestStatusOfAnEarlierHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(1)
		s := newTestSelection(pool)
		r := newRequest(s, "/app")
		r.repl.Set(placeholderStatus, 200)
		r.choose(pool)
		r.refuse()
		r.end()
		synctest.Wait()
		wantTally(t, "failed", s.index.Load().all[0].Upstream, tally{})
	})
}

// The next request knows of a failed dial at once, not when the first one has been told; but a name of which one address
// takes the connection has not failed.
func TestFailedDialIsKnownAtOnce(t *testing.T) {
	for _, tc := range []struct {
		addrs, failures int
		want            bool
	}{{0, 1, true}, {1, 1, true}, {2, 1, false}, {2, 2, true}} {
		pool := testPool(1)
		s := newTestSelection(pool)
		r := newRequest(s, "/app")
		r.choose(pool)
		rn := r.run()
		if tc.addrs > 0 {
			rn.lookedUp(rn.attempt, httptrace.DNSDoneInfo{Addrs: make([]net.IPAddr, tc.addrs)})
		}
		for range tc.failures {
			r.refuse()
		}
		m := s.index.Load().all[0].member
		if got := m.failing(s.table.Now()); got != tc.want {
			t.Errorf("%d of %d addresses: failing is %v, want %v", tc.failures, tc.addrs, got, tc.want)
		}
		rn.failed()
		if !m.failing(s.table.Now()) {
			t.Errorf("%d of %d addresses, attempt over: not failing", tc.failures, tc.addrs)
		}
		rn.connected(rn.attempt)
		if m.failing(s.table.Now()) {
			t.Errorf("%d of %d addresses, then connected: failing", tc.failures, tc.addrs)
		}
	}
}

// Hooks of a connection can be called long after the attempt is over.
func TestLateHooks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		pool := testPool(2)
		s := newTestSelection(pool)
		r := newRequest(s, "/app")
		r.choose(pool)
		first := r.run().attempt
		r.refuse()
		r.choose(pool)
		r.run().firstByteCame(first)
		r.run().dialed(first, fmt.Errorf("late"))
		if second := r.run().attempt.m; second.failing(s.table.Now()) || second.Count(sessions.Building) != 1 {
			t.Error("a late hook of the first attempt tells on the second")
		}
		r.answer(200)
		synctest.Wait()
		r.run().firstByteCame(r.run().attempt)
		time.Sleep(testLifetime + 2*time.Second)
		wantEmpty(t, s.table, 2)
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

// Clients that can make up addresses must not make the process grow.
func TestMembersAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kept := testPool(1)
		s := newTestSelection(kept)
		for i := range 3 * maxMembers {
			time.Sleep(time.Microsecond)
			s.members.get(fmt.Sprintf("made-up-%d:80", i))
		}
		if _, n := s.table.Size(); n > maxMembers+1 {
			t.Errorf("%d upstreams are known", n)
		}
		if _, ok := s.members.byDial.Load(kept[0].Dial); !ok {
			t.Error("the upstream of the config was forgotten")
		}
		time.Sleep(memberTTL + time.Minute)
		s.members.get("one-more:80")
		if _, n := s.table.Size(); n != 2 {
			t.Errorf("after a while %d upstreams are known, want 2", n)
		}
		if err := s.Cleanup(); err != nil {
			t.Fatal(err)
		}
		s.members.get("late:80")
		wantEmpty(t, s.table, 0)
	})
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

// Whoever has told the policy of signing hears of the key, not to tell it.
func TestRefusedIDsAreAdvisedOn(t *testing.T) {
	for ids, want := range map[string]string{sessionIDsUnsigned: "set session_ids signed", sessionIDsSigned: "compare the first secret_key"} {
		synctest.Test(t, func(t *testing.T) {
			pool := testPool(1)
			s := newTestSelection(pool)
			s.SessionIDs, s.givesIDs = ids, true
			core, logs := observer.New(zapcore.ErrorLevel)
			s.logger = zap.New(core)
			r := newRequest(s, "/app")
			r.choose(pool)
			r.repl.Set(placeholderStatusText, refusal)
			r.answer(http.StatusForbidden)
			synctest.Wait()
			if text := fmt.Sprint(logs.All()); !strings.Contains(text, want) {
				t.Errorf("with session_ids %s it does not say %q: %s", ids, want, text)
			}
		})
	}
}
